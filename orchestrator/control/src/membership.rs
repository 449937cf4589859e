//! What a node gets from its machine in the plan: its pod network and its place.
//!
//! The pod network of a node follows from the plan alone, so it is the same after every
//! reinstall. A node without a machine is a guest: it gets nothing.

use jiff::Timestamp;
use objects::node::Node;
use serde_json::{Map, Value, json};

use crate::action::{Action, Steps, Target};
use crate::view::{Key, View};

/// Label: the failure domain, which is the rack.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Prefix of labels that `kubectl get nodes` shows as roles.
const ROLE: &str = "node-role.kubernetes.io/";

/// Plans the write to one node.
#[must_use]
pub fn reconcile(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(node) = view.nodes.get("", &key.name) else { return steps };
    let Some(machine) = view.machines.get("", &key.name) else { return steps };
    let Ok(plan) = serde_json::from_value::<cluster::plan::Machine>(machine.spec.clone()) else {
        // A broken Machine is the API's business; its node goes on as it is.
        return steps;
    };
    let role = match plan.role {
        cluster::plan::Role::Master => "master",
        cluster::plan::Role::Worker => "worker",
    };
    let mut labels = Map::new();
    let mut want = |name: String, value: &str| {
        if node.metadata.label(&name) != Some(value) {
            labels.insert(name, Value::from(value));
        }
    };
    want(ZONE.to_owned(), &plan.rack);
    want(format!("{ROLE}{role}"), "");
    want("kubernetes.io/hostname".to_owned(), &plan.name);
    let network = network(node, &plan.pod_cidr.to_string());
    let mut body = Map::new();
    if !labels.is_empty() {
        body.insert("metadata".to_owned(), json!({ "labels": labels }));
    }
    if let Some(spec) = network {
        body.insert("spec".to_owned(), spec);
    }
    if !body.is_empty() {
        steps.push(Action::patch(Target::of(&**node), Value::Object(body)));
    }
    steps
}

/// The pod network to write; a node that has one keeps it, because pods may live in it.
fn network(node: &Node, cidr: &str) -> Option<Value> {
    let spec = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
    node.spec.pod_cidr.is_empty().then_some(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Set;
    use objects::machine::Machine;
    use objects::meta::ObjectMeta;
    use std::sync::Arc;

    fn view(spec: Value, node: Node) -> View {
        let metadata = ObjectMeta::named("a");
        let machine = Machine { metadata, spec, ..Machine::blank() };
        View {
            nodes: Set::from_iter([Arc::new(node)]),
            machines: Set::from_iter([Arc::new(machine)]),
            ..View::default()
        }
    }

    fn plan() -> Value {
        json!({
            "name": "a", "rack": "r1", "node": 11, "role": "worker", "address": "10.98.1.11",
            "prefixLen": 24, "gateway": "10.98.1.1", "mac": "52:54:00:00:01:0b", "boot": "bios",
            "podCIDR": "172.20.11.0/24", "asn": 4_200_000_011_u32,
        })
    }

    #[test]
    fn a_node_learns_its_network_and_rack_once() {
        let node = Node { metadata: ObjectMeta::named("a"), ..Node::blank() };
        let steps =
            reconcile(&view(plan(), node.clone()), &Key::new("", "a"), Timestamp::UNIX_EPOCH);
        let [Action::Patch { body, .. }] = steps.actions.as_slice() else {
            panic!("{steps:?}");
        };
        assert_eq!(body["spec"]["podCIDRs"], json!(["172.20.11.0/24"]));
        assert_eq!(body["metadata"]["labels"][ZONE], "r1");
        assert_eq!(body["metadata"]["labels"]["node-role.kubernetes.io/worker"], "");
        let mut value = serde_json::to_value(&node).unwrap();
        json_merge(&mut value, body);
        let node = serde_json::from_value(value).unwrap();
        let again = reconcile(&view(plan(), node), &Key::new("", "a"), Timestamp::UNIX_EPOCH);
        assert_eq!(again, Steps::none());
    }

    #[test]
    fn a_broken_machine_changes_nothing() {
        let node = Node { metadata: ObjectMeta::named("a"), ..Node::blank() };
        let view = view(json!({"rack": 3}), node);
        let steps = reconcile(&view, &Key::new("", "a"), Timestamp::UNIX_EPOCH);
        assert_eq!(steps, Steps::none());
    }

    use crate::world::merge as json_merge;
}
