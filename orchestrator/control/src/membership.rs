//! What a node gets from its machine in the plan: its pod network and its place.
//!
//! The pod network of a node follows from the plan alone, so it is the same after every
//! reinstall. A node without a machine is a guest: it gets nothing.

use jiff::Timestamp;
use objects::node::Node;
use serde_json::{Map, Value, json};

use crate::action::{Action, Steps, Target};
use crate::view::{Key, View};
use crate::wake::Touch;

/// Label: the failure domain, which is the rack.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Prefix of labels that `kubectl get nodes` shows as roles.
const ROLE: &str = "node-role.kubernetes.io/";

/// The node; every node when one went or got its network, because another may wait for that.
#[must_use]
pub fn nodes_of_node(view: &View, touch: &Touch) -> Vec<Key> {
    let networks: Vec<&str> =
        touch.typed::<Node>().map(|node| node.spec.pod_cidr.as_str()).collect();
    match networks.as_slice() {
        [before, after] if before == after => vec![touch.key.clone()],
        [network] if touch.after.is_some() && network.is_empty() => vec![touch.key.clone()],
        _ => view.nodes.keys(),
    }
}

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
    let network = network(view, node, plan.pod_cidr, plan.pod_cidr_v6);
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

/// The pod network to write.
///
/// A node that has one keeps it, because pods may live in it. One that another node still has,
/// because the plan was changed under it, is not given a second time: the node waits until the
/// other is reinstalled or gone.
fn network(
    view: &View,
    node: &Node,
    planned: ipnet::Ipv4Net,
    second: Option<ipnet::Ipv6Net>,
) -> Option<Value> {
    let overlaps = |text: &String| {
        let had: Result<ipnet::Ipv4Net, _> = text.parse();
        had.is_ok_and(|had| had.contains(&planned) || planned.contains(&had))
    };
    let held = view.nodes.iter().any(|other| {
        other.metadata.name != node.metadata.name
            && (overlaps(&other.spec.pod_cidr) || other.spec.pod_cidrs.iter().any(overlaps))
    });
    if !node.spec.pod_cidr.is_empty() || held {
        return None;
    }
    let cidr = planned.to_string();
    let second = second.map(|net| net.to_string());
    let all: Vec<&String> = std::iter::once(&cidr).chain(&second).collect();
    Some(json!({"podCIDR": cidr, "podCIDRs": all}))
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
    fn a_node_of_two_families_has_a_network_of_each() {
        let node = Node { metadata: ObjectMeta::named("a"), ..Node::blank() };
        let mut spec = plan();
        spec["podCIDRv6"] = json!("fd20:0:0:b::/64");
        let steps = reconcile(&view(spec, node), &Key::new("", "a"), Timestamp::UNIX_EPOCH);
        let [Action::Patch { body, .. }] = steps.actions.as_slice() else { panic!("{steps:?}") };
        assert_eq!(body["spec"]["podCIDR"], "172.20.11.0/24");
        assert_eq!(body["spec"]["podCIDRs"], json!(["172.20.11.0/24", "fd20:0:0:b::/64"]));
    }

    #[test]
    fn a_broken_machine_changes_nothing() {
        let node = Node { metadata: ObjectMeta::named("a"), ..Node::blank() };
        let view = view(json!({"rack": 3}), node);
        let steps = reconcile(&view, &Key::new("", "a"), Timestamp::UNIX_EPOCH);
        assert_eq!(steps, Steps::none());
    }

    #[test]
    fn a_network_that_another_node_still_has_is_not_given_again() {
        let node = Node { metadata: ObjectMeta::named("a"), ..Node::blank() };
        let mut other = Node { metadata: ObjectMeta::named("b"), ..Node::blank() };
        other.spec.pod_cidr = "172.20.11.128/25".to_owned();
        let mut view = view(plan(), node);
        view.nodes.put("", "b", Some(Arc::new(other)));
        let steps = reconcile(&view, &Key::new("", "a"), Timestamp::UNIX_EPOCH);
        let [Action::Patch { body, .. }] = steps.actions.as_slice() else { panic!("{steps:?}") };
        assert!(body.get("spec").is_none(), "{body}");
        view.nodes.put("", "b", None);
        let steps = reconcile(&view, &Key::new("", "a"), Timestamp::UNIX_EPOCH);
        let [Action::Patch { body, .. }] = steps.actions.as_slice() else { panic!("{steps:?}") };
        assert_eq!(body["spec"]["podCIDR"], "172.20.11.0/24");
    }

    use crate::world::merge as json_merge;
}
