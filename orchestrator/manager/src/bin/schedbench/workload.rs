//! Workloads as data: steps that make nodes, pods and other objects.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::Failure;

/// A whole workload.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Workload {
    /// Upstream's name for it.
    pub(crate) name: String,
    /// The steps in order; each waits until what it made is as it should be.
    pub(crate) steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Step {
    /// What is made; `$i` in any text becomes the number of the object, counted by its kind.
    #[serde(default)]
    pub(crate) nodes: Option<Batch>,
    #[serde(default)]
    pub(crate) pods: Option<Batch>,
    /// Any object, as it is.
    #[serde(default)]
    pub(crate) object: Option<Value>,
}

/// Many alike.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Batch {
    pub(crate) count: usize,
    /// Does the clock run for these?
    #[serde(default)]
    pub(crate) measured: bool,
    /// Are these left waiting, because nothing will place them?
    #[serde(default)]
    pub(crate) stranded: bool,
    /// Merged into the usual object.
    #[serde(default)]
    pub(crate) template: Value,
    /// Labels whose values are given out in turn.
    #[serde(default)]
    pub(crate) label: Option<Turns>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Turns {
    pub(crate) key: String,
    pub(crate) values: Vec<String>,
}

impl Workload {
    /// Reads a file; every count is divided by `divide`.
    pub(crate) fn parse(text: &str, divide: usize) -> Result<Self, Failure> {
        let mut workload: Self = serde_saphyr::from_str(text)?;
        for step in &mut workload.steps {
            for batch in [&mut step.nodes, &mut step.pods].into_iter().flatten() {
                batch.count = (batch.count / divide).max(1);
            }
        }
        Ok(workload)
    }

    /// How many nodes it has.
    pub(crate) fn nodes(&self) -> usize {
        self.steps.iter().filter_map(|step| step.nodes.as_ref()).map(|batch| batch.count).sum()
    }
}

fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                merge(target.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => (),
        (target, patch) => *target = patch.clone(),
    }
}

fn fill(value: &mut Value, number: &str) {
    match value {
        Value::String(text) if text.contains("$i") => *text = text.replace("$i", number),
        Value::Array(all) => all.iter_mut().for_each(|one| fill(one, number)),
        Value::Object(all) => all.values_mut().for_each(|one| fill(one, number)),
        _ => (),
    }
}

impl Batch {
    fn finish(&self, mut object: Value, number: usize) -> Value {
        merge(&mut object, &self.template);
        if let Some(turns) = &self.label
            && let Some(value) = turns.values.get(number % turns.values.len().max(1))
        {
            merge(&mut object, &json!({"metadata": {"labels": {(turns.key.as_str()): value}}}));
        }
        fill(&mut object, &number.to_string());
        object
    }

    /// The node of a number: 4 CPUs, 32 GiB, 110 pods, as upstream's.
    pub(crate) fn node(&self, number: usize) -> Value {
        let name = format!("node-{number}");
        let amounts = json!({"cpu": "4", "memory": "32Gi", "pods": "110"});
        let object = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {
                "capacity": amounts, "allocatable": amounts, "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True", "reason": "Fake", "message": "a node that is none"}],
            },
        });
        self.finish(object, number)
    }

    /// The pod of a number: 100m CPU, 500 MiB, as upstream's.
    pub(crate) fn pod(&self, number: usize) -> Value {
        let requests = json!({"cpu": "100m", "memory": "500Mi"});
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("pod-{number}"), "namespace": "default"},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "pause", "image": "registry.k8s.io/pause:3.10",
                    "ports": [{"containerPort": 80}],
                    "resources": {"requests": requests, "limits": requests},
                }],
            },
        });
        self.finish(object, number)
    }
}
