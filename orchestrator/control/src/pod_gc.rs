//! Pods that nobody will ever finish: those of deleted nodes, and those deleted before they
//! got a node.

use jiff::Timestamp;

use crate::action::{Action, Steps, Target, node_reference};
use crate::view::{Key, View};
use crate::wake::Touch;

/// The pods of a node that came or went.
#[must_use]
pub fn pods_of_node(view: &View, touch: &Touch) -> Vec<Key> {
    if !touch.came_or_went() {
        return Vec::new();
    }
    view.pods_on(&touch.key.name).map(|pod| Key::of(&pod.metadata)).collect()
}

/// Plans the step for one pod.
#[must_use]
pub fn reconcile(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let Some(pod) = view.pods.get(&key.namespace, &key.name) else { return Steps::none() };
    if !pod.is_bound() {
        if pod.metadata.is_deleting() {
            return vec![Action::remove_pod(pod)].into();
        }
        return Steps::none();
    }
    if view.nodes.get("", &pod.spec.node_name).is_some() {
        return Steps::none();
    }
    vec![Action::DeleteIfGone {
        target: Target::of(&**pod),
        absent: vec![node_reference(&pod.spec.node_name)],
        grace_seconds: Some(0),
    }]
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Set;
    use objects::meta::ObjectMeta;
    use objects::node::Node;
    use objects::pod::Pod;
    use std::sync::Arc;

    #[track_caller]
    fn check(node_name: &str, deleting: bool, expected: usize) {
        let mut pod = Pod { metadata: ObjectMeta::in_namespace("n", "p"), ..Pod::blank() };
        node_name.clone_into(&mut pod.spec.node_name);
        pod.metadata.deletion_timestamp = deleting.then(|| Timestamp::UNIX_EPOCH.into());
        let node = Node { metadata: ObjectMeta::named("here"), ..Node::blank() };
        let view = View {
            pods: Set::from_iter([Arc::new(pod)]),
            nodes: Set::from_iter([Arc::new(node)]),
            ..View::default()
        };
        let steps = reconcile(&view, &Key::new("n", "p"), Timestamp::UNIX_EPOCH);
        assert_eq!(steps.actions.len(), expected, "{steps:?}");
    }

    #[test]
    fn only_pods_without_a_future_go() {
        check("here", false, 0);
        check("here", true, 0);
        check("", false, 0);
        check("", true, 1);
        check("gone", false, 1);
        check("gone", true, 1);
    }
}
