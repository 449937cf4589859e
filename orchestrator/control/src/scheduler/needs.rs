//! What a pod asks of its node, compiled: pods with equal needs are one class.
//!
//! Nothing of a pod's name is in here unless it matters for its placement, so that the pods of
//! one controller are equal.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use objects::pod::{
    NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinity, PodAffinityTerm, PodSpec,
    TopologySpreadConstraint, Volume,
};
use objects::selector::{Requirement, Selector};
use objects::{LabelSelector, node::Taint};

use super::resource::{Amounts, Names, ResourceId, load, requests};

/// A port taken on a node: protocol, address, number.
pub(super) type HostPort = (String, String, i64);

/// Everything the plugins look at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Needs {
    pub(super) namespace: String,
    pub(super) labels: BTreeMap<String, String>,
    /// Uid of the controller, for pods that should lie apart from their like.
    pub(super) controller: String,
    pub(super) requests: Amounts,
    /// CPU and memory with defaults, for scoring.
    pub(super) load: (i64, i64),
    pub(super) ports: Vec<HostPort>,
    pub(super) node_name: String,
    pub(super) selector: Vec<(String, String)>,
    /// One of these must hold; `None` asks nothing.
    pub(super) required: Option<Vec<NodeTerm>>,
    pub(super) preferred: Vec<(i64, NodeTerm)>,
    pub(super) tolerations: Vec<Tolerance>,
    pub(super) affinity: Vec<PodTerm>,
    pub(super) anti_affinity: Vec<PodTerm>,
    /// Wishes; unwanted neighbours weigh less than nothing.
    pub(super) wishes: Vec<(i64, PodTerm)>,
    pub(super) spread: Vec<SpreadRule>,
    pub(super) images: Vec<String>,
    /// Names of claims, those of generic ephemeral volumes included.
    pub(super) claims: Vec<Claimed>,
    /// Disks named in the pod itself that only one node may hold for writing.
    pub(super) disks: Vec<Disk>,
}

/// A claim a pod mounts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Claimed {
    pub(super) name: String,
    /// Must it belong to the pod?
    pub(super) ephemeral: bool,
}

/// A disk named in a pod: kind and identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Disk {
    pub(super) kind: &'static str,
    pub(super) identity: String,
    pub(super) read_only: bool,
}

/// A toleration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Tolerance {
    key: String,
    operator: String,
    value: String,
    effect: String,
}

impl Tolerance {
    pub(super) fn tolerates(&self, taint: &Taint) -> bool {
        if !self.effect.is_empty() && self.effect != taint.effect {
            return false;
        }
        if !self.key.is_empty() && self.key != taint.key {
            return false;
        }
        match self.operator.as_str() {
            "Exists" => true,
            "" | "Equal" => !self.key.is_empty() && self.value == taint.value,
            _ => false,
        }
    }
}

/// One term on nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct NodeTerm {
    labels: Vec<NodeRequirement>,
    fields: Vec<NodeRequirement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct NodeRequirement {
    key: String,
    operator: String,
    values: Vec<String>,
    /// The value as a number, for `Gt` and `Lt`.
    bound: Option<i64>,
}

impl NodeRequirement {
    fn of(one: &NodeSelectorRequirement) -> Self {
        Self {
            key: one.key.clone(),
            operator: one.operator.clone(),
            values: one.values.clone(),
            bound: one.values.first().and_then(|text| text.parse().ok()),
        }
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|one| one == value);
        let compared = || Some((value?.parse::<i64>().ok()?, self.bound?));
        match self.operator.as_str() {
            "In" => value.is_some_and(listed),
            "NotIn" => !value.is_some_and(listed),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => compared().is_some_and(|(value, bound)| value > bound),
            "Lt" => compared().is_some_and(|(value, bound)| value < bound),
            _ => false,
        }
    }
}

impl NodeTerm {
    pub(super) fn of(term: &NodeSelectorTerm) -> Self {
        Self {
            labels: term.match_expressions.iter().map(NodeRequirement::of).collect(),
            fields: term.match_fields.iter().map(NodeRequirement::of).collect(),
        }
    }

    /// Do all requirements hold? An empty term matches nothing.
    pub(super) fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        if self.labels.is_empty() && self.fields.is_empty() {
            return false;
        }
        let field = |key: &str| (key == "metadata.name").then_some(name);
        self.labels.iter().all(|one| one.holds(labels.get(&one.key).map(String::as_str)))
            && self.fields.iter().all(|one| one.holds(field(&one.key)))
    }
}

/// Does one of the terms hold?
pub(super) fn any_term(terms: &[NodeTerm], name: &str, labels: &BTreeMap<String, String>) -> bool {
    terms.iter().any(|term| term.matches(name, labels))
}

/// Which pods are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Who {
    /// Namespaces by name.
    pub(super) namespaces: BTreeSet<String>,
    /// Namespaces by label.
    pub(super) namespace_selector: Option<Selector>,
    /// `None` means nobody.
    pub(super) selector: Option<Selector>,
    /// Pods of this controller alone.
    pub(super) controller: Option<String>,
    /// Only pods that are not on their way out.
    pub(super) lasting: bool,
}

/// Pods to be near to, or far from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PodTerm {
    pub(super) key: String,
    pub(super) who: Who,
}

/// A topology spread constraint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SpreadRule {
    pub(super) key: String,
    pub(super) max_skew: i64,
    pub(super) min_domains: Option<i64>,
    /// Must it hold, or is it a wish?
    pub(super) hard: bool,
    pub(super) who: Who,
    /// Does the pod count towards its own constraint?
    pub(super) own: bool,
    /// Are nodes the pod may not use no domains?
    pub(super) honor_affinity: bool,
    /// Are nodes whose taints the pod does not bear no domains?
    pub(super) honor_taints: bool,
}

/// Adds a requirement on the pod's own value of each key.
fn with_own_values(
    selector: Option<&LabelSelector>,
    pod: &Pod,
    equal: &[String],
    different: &[String],
) -> Option<Selector> {
    let mut all = selector?.compile()?.requirements().to_vec();
    for (keys, same) in [(equal, true), (different, false)] {
        for key in keys {
            let Some(value) = pod.metadata.labels.get(key) else { continue };
            let values = BTreeSet::from([value.clone()]);
            all.push(if same {
                Requirement::In(key.clone(), values)
            } else {
                Requirement::NotIn(key.clone(), values)
            });
        }
    }
    Some(Selector::new(all))
}

impl PodTerm {
    fn of(pod: &Pod, term: &PodAffinityTerm) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(pod.metadata.namespace.clone());
        }
        let namespace_selector = term.namespace_selector.as_ref().and_then(LabelSelector::compile);
        let (equal, different) = (&term.match_label_keys, &term.mismatch_label_keys);
        // The API server may have written the keys into the selector already; twice is once.
        let selector = with_own_values(term.label_selector.as_ref(), pod, equal, different);
        let who = Who { namespaces, namespace_selector, selector, ..Who::default() };
        Self { key: term.topology_key.clone(), who }
    }
}

impl SpreadRule {
    /// A constraint of a pod, or one of the defaults with the selector given.
    pub(super) fn of(pod: &Pod, rule: &TopologySpreadConstraint) -> Self {
        let keys = &rule.match_label_keys;
        let selector = with_own_values(rule.label_selector.as_ref(), pod, keys, &[]);
        let own = selector.as_ref().is_some_and(|one| one.matches(&pod.metadata.labels));
        let who = Who {
            namespaces: [pod.metadata.namespace.clone()].into(),
            selector,
            lasting: true,
            ..Who::default()
        };
        Self {
            key: rule.topology_key.clone(),
            max_skew: rule.max_skew.max(1),
            min_domains: rule.min_domains,
            hard: rule.when_unsatisfiable != "ScheduleAnyway",
            who,
            own,
            honor_affinity: rule.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: rule.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

impl Needs {
    /// How much is asked of a resource.
    pub(super) fn asks(&self, resource: ResourceId) -> i64 {
        let found = self.requests.iter().find(|(id, _)| *id == resource);
        found.map_or(0, |(_, amount)| *amount)
    }

    /// Compiles a pod.
    pub(super) fn of(names: &mut Names, pod: &Pod) -> Self {
        let spec = &pod.spec;
        let affinity = spec.affinity.as_ref();
        let node = affinity.and_then(|one| one.node_affinity.as_ref());
        let required =
            node.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref());
        let required = required
            .map(|one| one.node_selector_terms.iter().map(NodeTerm::of).collect::<Vec<_>>());
        let preferred =
            node.map_or(&[][..], |one| &one.preferred_during_scheduling_ignored_during_execution);
        let near = affinity.and_then(|one| one.pod_affinity.as_ref());
        let far = affinity.and_then(|one| one.pod_anti_affinity.as_ref());
        let mut wishes = weighted(pod, near, 1);
        wishes.extend(weighted(pod, far, -1));
        Self {
            namespace: pod.metadata.namespace.clone(),
            labels: pod.metadata.labels.clone(),
            controller: pod.metadata.controller().map(|one| one.uid.clone()).unwrap_or_default(),
            requests: requests(names, spec),
            load: load(names, spec),
            ports: host_ports(spec),
            node_name: spec.node_name.clone(),
            selector: spec.node_selector.clone().into_iter().collect(),
            required,
            preferred: preferred
                .iter()
                .map(|wish| (wish.weight, NodeTerm::of(&wish.preference)))
                .collect(),
            tolerations: tolerations(spec),
            affinity: hard(pod, near),
            anti_affinity: hard(pod, far),
            wishes,
            spread: spec
                .topology_spread_constraints
                .iter()
                .map(|rule| SpreadRule::of(pod, rule))
                .collect(),
            images: images(spec),
            claims: spec.volumes.iter().filter_map(|volume| claimed(pod, volume)).collect(),
            disks: spec.volumes.iter().filter_map(disk).collect(),
        }
    }

    /// A number that equal needs have in common.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// The only nodes that may do, when every term of the required affinity names some.
    pub(super) fn named_nodes(&self) -> Option<Vec<&str>> {
        let terms = self.required.as_ref()?;
        let mut names = Vec::new();
        for term in terms {
            let by_name =
                |one: &&NodeRequirement| one.key == "metadata.name" && one.operator == "In";
            let found = term.fields.iter().find(by_name)?;
            names.extend(found.values.iter().map(String::as_str));
        }
        Some(names)
    }

    /// May the pod use the node, as far as names and labels say?
    pub(super) fn wants_node(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.required.as_ref().is_none_or(|terms| any_term(terms, name, labels))
    }

    /// Does the pod bear this taint?
    pub(super) fn bears(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|one| one.tolerates(taint))
    }
}

/// FNV-1a over words: the same on every run, which the standard hasher is not.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let word = chunk.iter().fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
            self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        }
    }
}

fn tolerations(spec: &PodSpec) -> Vec<Tolerance> {
    let each = spec.tolerations.iter().map(|one| Tolerance {
        key: one.key.clone(),
        operator: one.operator.clone(),
        value: one.value.clone(),
        effect: one.effect.clone(),
    });
    each.collect()
}

fn hard(pod: &Pod, affinity: Option<&PodAffinity>) -> Vec<PodTerm> {
    let terms =
        affinity.map_or(&[][..], |one| &one.required_during_scheduling_ignored_during_execution);
    terms.iter().map(|term| PodTerm::of(pod, term)).collect()
}

fn weighted(pod: &Pod, affinity: Option<&PodAffinity>, sign: i64) -> Vec<(i64, PodTerm)> {
    let wishes =
        affinity.map_or(&[][..], |one| &one.preferred_during_scheduling_ignored_during_execution);
    let each =
        wishes.iter().map(|wish| (sign * wish.weight, PodTerm::of(pod, &wish.pod_affinity_term)));
    each.collect()
}

fn images(spec: &PodSpec) -> Vec<String> {
    let all = spec.init_containers.iter().chain(&spec.containers);
    all.map(|container| normal_image(&container.image)).collect()
}

/// An image's name as nodes tell it: with a tag.
pub(super) fn normal_image(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || last.contains('@') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

/// Ports a pod takes on its node.
fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let all = spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
    let taken = all.filter_map(|port| {
        // In the host's network every port is one of the node's.
        let own = spec.host_network.then_some(port.container_port);
        let number = port.host_port.or(own).filter(|number| *number > 0)?;
        let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
        let address = if port.host_ip.is_empty() { "0.0.0.0" } else { &port.host_ip };
        Some((protocol.to_owned(), address.to_owned(), number))
    });
    taken.collect()
}

fn claimed(pod: &Pod, volume: &Volume) -> Option<Claimed> {
    let text = |value: &serde_json::Value| {
        value.get("claimName").and_then(serde_json::Value::as_str).map(str::to_owned)
    };
    if let Some(name) = volume.persistent_volume_claim.as_ref().and_then(text) {
        return Some(Claimed { name, ephemeral: false });
    }
    volume.extra.get("ephemeral")?;
    let name = format!("{}-{}", pod.metadata.name, volume.name);
    Some(Claimed { name, ephemeral: true })
}

/// Disks of which upstream knows that two pods on one node get in each other's way.
fn disk(volume: &Volume) -> Option<Disk> {
    let found = |kind: &'static str, fields: &[&str]| {
        let source = volume.extra.get(kind)?;
        let identity = fields.iter().map(|field| match source.get(*field) {
            Some(value) => value.to_string(),
            None => String::new(),
        });
        let read_only = source.get("readOnly").and_then(serde_json::Value::as_bool);
        let identity = identity.collect::<Vec<_>>().join("/");
        Some(Disk { kind, identity, read_only: read_only.unwrap_or(false) })
    };
    found("gcePersistentDisk", &["pdName"])
        .or_else(|| found("awsElasticBlockStore", &["volumeID"]))
        .or_else(|| found("iscsi", &["iqn"]))
        .or_else(|| found("rbd", &["monitors", "pool", "image"]))
}
