//! What a field says when the client says nothing.
//!
//! Most defaults are rows of a table, found while the object is walked along its schema; the
//! few that depend on other fields are functions. Values are upstream's.
//!
//! *Limits*: pods get no tolerations by default. How long they stay on a silent node is a setting
//! of the site, which the node lifecycle controller follows.

mod rows;
mod special;

use objects::Kind;
use serde_json::{Map, Value, json};

use self::rows::TABLE;
use crate::schema::{Node, Schema, Type, builtin};

/// A default that depends on nothing.
#[derive(Debug, Clone, Copy)]
enum Word {
    Text(&'static str),
    Number(i64),
    Flag(bool),
    Empty,
}

use Word::{Empty, Flag, Number, Text};

/// Fields that one of must be there, besides the name, or a volume is an empty directory.
const NO_VOLUME_SOURCE: &str = "name";

/// Fills in defaults.
pub(crate) fn set_defaults(kind: &Kind, object: &mut Value) {
    let schema = builtin();
    if kind.kind == "Secret" {
        merge_string_data(object);
    }
    if let Some(root) = schema.root(kind.group, kind.version, kind.kind) {
        walk(schema, root, object);
    }
    if let Some(fields) = object.as_object_mut() {
        special::of_kind(kind, fields);
        match kind.kind {
            "Pod" => {
                if let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) {
                    spec.entry("enableServiceLinks").or_insert(json!(true));
                    requests_from_limits(spec);
                }
            }
            "ReplicationController" => {
                special::labels_from_template(fields);
                selector_from_template(fields);
            }
            _ => {}
        }
    }
}

fn walk(schema: &Schema, shape: &Type, value: &mut Value) {
    let Some(fields) = value.as_object_mut() else { return };
    let name = shape.name.strip_prefix("io.k8s.api.").unwrap_or(shape.name);
    for (_, field, word) in TABLE.iter().filter(|row| row.0 == name) {
        // An empty text is no choice either, where the default is a word.
        let unsaid = match fields.get(*field) {
            None => true,
            Some(Value::String(said)) => said.is_empty(),
            Some(_) => false,
        };
        if unsaid {
            fields.insert((*field).to_owned(), word.value());
        }
    }
    special(name, fields);
    for field in &shape.fields {
        if let Some(value) = fields.get_mut(field.name) {
            descend(schema, &field.node, value);
        }
    }
}

fn descend(schema: &Schema, node: &Node, value: &mut Value) {
    match node {
        Node::Object(id) => {
            if let Some(shape) = schema.get(*id) {
                walk(schema, shape, value);
            }
        }
        Node::List(item) => {
            for value in value.as_array_mut().into_iter().flatten() {
                descend(schema, item, value);
            }
        }
        Node::Map(item) => {
            for (_, value) in value.as_object_mut().into_iter().flatten() {
                descend(schema, item, value);
            }
        }
        Node::Scalar(_) | Node::Any => {}
    }
}

/// Defaults that depend on other fields.
fn special(name: &str, fields: &mut Map<String, Value>) {
    match name {
        "core.v1.Container" | "core.v1.EphemeralContainer" => pull_policy(fields),
        "core.v1.Volume" if fields.keys().all(|key| key == NO_VOLUME_SOURCE) => {
            fields.insert("emptyDir".to_owned(), json!({}));
        }
        "core.v1.PodSpec" => host_ports(fields),
        "core.v1.ServiceSpec" => service_spec(fields),
        "core.v1.ServicePort" => {
            let unsaid = match fields.get("targetPort") {
                None => true,
                Some(said) => said == &json!(0) || said == &json!(""),
            };
            if let (true, Some(port)) = (unsaid, fields.get("port").cloned()) {
                fields.insert("targetPort".to_owned(), port);
            }
        }
        "apps.v1.DeploymentStrategy"
        | "apps.v1.DaemonSetUpdateStrategy"
        | "apps.v1.StatefulSetUpdateStrategy"
            if fields.get("type") == Some(&json!("RollingUpdate")) =>
        {
            fields.entry("rollingUpdate").or_insert(json!({}));
        }
        "core.v1.NodeStatus" => {
            if let (None, Some(capacity)) =
                (fields.get("allocatable"), fields.get("capacity").cloned())
            {
                fields.insert("allocatable".to_owned(), capacity);
            }
        }
        "rbac.v1.Subject" => {
            let group = match fields.get("kind").and_then(Value::as_str) {
                Some("User" | "Group") => "rbac.authorization.k8s.io",
                _ => return,
            };
            fields.entry("apiGroup").or_insert(json!(group));
        }
        _ => special::of_type(name, fields),
    }
}

/// Images that may change under their name are pulled each time.
fn pull_policy(container: &mut Map<String, Value>) {
    if container.get("imagePullPolicy").and_then(Value::as_str).is_some_and(|p| !p.is_empty()) {
        return;
    }
    let image = container.get("image").and_then(Value::as_str).unwrap_or("");
    let last = image.rsplit('/').next().unwrap_or("");
    let moving = !image.contains('@') && last.rsplit_once(':').is_none_or(|(_, t)| t == "latest");
    let policy = if moving { "Always" } else { "IfNotPresent" };
    container.insert("imagePullPolicy".to_owned(), json!(policy));
}

/// In the host's network a container's port is the host's.
fn host_ports(spec: &mut Map<String, Value>) {
    if let Some(account) = spec.get("serviceAccount").cloned() {
        spec.entry("serviceAccountName").or_insert(account);
    }
    if let Some(account) = spec.get("serviceAccountName").cloned() {
        spec.insert("serviceAccount".to_owned(), account);
    }
    if spec.get("hostNetwork") != Some(&Value::Bool(true)) {
        return;
    }
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let ports = container.get_mut("ports").and_then(Value::as_array_mut);
            for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
                if let (None, Some(number)) =
                    (port.get("hostPort"), port.get("containerPort").cloned())
                {
                    port.insert("hostPort".to_owned(), number);
                }
            }
        }
    }
}

fn service_spec(spec: &mut Map<String, Value>) {
    let kind = spec.get("type").and_then(Value::as_str).unwrap_or("").to_owned();
    if spec.get("sessionAffinity") == Some(&json!("ClientIP")) {
        spec.entry("sessionAffinityConfig")
            .or_insert(json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    if kind == "ExternalName" {
        return;
    }
    spec.entry("internalTrafficPolicy").or_insert(json!("Cluster"));
    if kind == "NodePort" || kind == "LoadBalancer" {
        spec.entry("externalTrafficPolicy").or_insert(json!("Cluster"));
    } else {
        spec.remove("externalTrafficPolicy");
        // A port of the nodes has no meaning without them.
        let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            if port.get("nodePort") == Some(&json!(0)) {
                port.remove("nodePort");
            }
        }
    }
    if kind == "LoadBalancer" {
        spec.entry("allocateLoadBalancerNodePorts").or_insert(json!(true));
    }
}

/// What a container may use at most it is taken to ask for, unless it says.
fn requests_from_limits(spec: &mut Map<String, Value>) {
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut)
            else {
                continue;
            };
            let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else {
                continue;
            };
            let requests = resources.entry("requests").or_insert_with(|| json!({}));
            if let Some(requests) = requests.as_object_mut() {
                for (name, amount) in limits {
                    requests.entry(name).or_insert(amount);
                }
            }
        }
    }
}

/// A replication controller that names no selector means its pods' labels.
fn selector_from_template(fields: &mut Map<String, Value>) {
    let labels =
        fields.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
    let spec = fields.get_mut("spec").and_then(Value::as_object_mut);
    if let (Some(spec), Some(labels)) = (spec, labels) {
        spec.entry("selector").or_insert(labels);
    }
}

/// `stringData` is for writing only.
fn merge_string_data(object: &mut Value) {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let Some(fields) = object.as_object_mut() else { return };
    let Some(Value::Object(plain)) = fields.remove("stringData") else { return };
    let data = fields.entry("data").or_insert_with(|| json!({}));
    if let Some(data) = data.as_object_mut() {
        for (key, value) in plain {
            data.insert(key, json!(STANDARD.encode(value.as_str().unwrap_or(""))));
        }
    }
}

/// The quality-of-service class of a pod: who is ended first when memory runs short.
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let mut any = false;
    let mut all = true;
    let containers = ["containers", "initContainers"]
        .iter()
        .filter_map(|list| spec.get(*list)?.as_array())
        .flatten();
    for container in containers {
        for name in ["cpu", "memory"] {
            let amount = |half: &str| -> Option<objects::Quantity> {
                container.pointer(&format!("/resources/{half}/{name}"))?.as_str()?.parse().ok()
            };
            let (request, limit) = (amount("requests"), amount("limits"));
            let some = |q: Option<objects::Quantity>| q.is_some_and(|q| !q.is_zero());
            any |= some(request) || some(limit);
            all &= some(limit) && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// What built-in admission adds to a new pod.
pub(crate) fn admit_pod(spec: &mut Map<String, Value>) {
    let account = match spec.get("serviceAccountName").and_then(Value::as_str) {
        Some(account) if !account.is_empty() => account.to_owned(),
        _ => "default".to_owned(),
    };
    spec.insert("serviceAccountName".to_owned(), json!(account));
    spec.insert("serviceAccount".to_owned(), json!(account));
    spec.entry("priority").or_insert(json!(0));
    spec.entry("preemptionPolicy").or_insert(json!("PreemptLowerPriority"));
}

impl Word {
    fn value(self) -> Value {
        match self {
            Text(text) => json!(text),
            Number(number) => json!(number),
            Flag(flag) => json!(flag),
            Empty => json!({}),
        }
    }
}

#[cfg(test)]
mod tests;
