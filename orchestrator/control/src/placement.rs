//! Whether a pod of a template belongs on a node, capacity aside.

use objects::node::{Node, Taint};
use objects::pod::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Toleration};

/// Do node name, selector and required affinity of a pod allow the node?
pub(crate) fn may_run_on(spec: &PodSpec, node: &Node) -> bool {
    let named = spec.node_name.is_empty() || spec.node_name == node.metadata.name;
    let selected =
        spec.node_selector.iter().all(|(key, value)| node.metadata.label(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|one| one.node_affinity.as_ref());
    let required =
        affinity.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref());
    let wanted = required
        .is_none_or(|one| one.node_selector_terms.iter().any(|term| term_matches(term, node)));
    named && selected && wanted
}

/// Does a term select the node? An empty term selects none.
pub(crate) fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    if term.match_expressions.is_empty() && term.match_fields.is_empty() {
        return false;
    }
    let labels = term.match_expressions.iter();
    let labels = labels.map(|one| requirement_matches(one, node.metadata.label(&one.key)));
    let fields = term.match_fields.iter().map(|one| {
        one.key == "metadata.name" && requirement_matches(one, Some(&node.metadata.name))
    });
    labels.chain(fields).all(|one| one)
}

fn requirement_matches(one: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let listed = value.is_some_and(|value| one.values.iter().any(|other| other == value));
    let number = || value.and_then(|text| text.parse::<i64>().ok());
    let bound = || one.values.first().and_then(|text| text.parse::<i64>().ok());
    match one.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number().zip(bound()).is_some_and(|(number, bound)| number > bound),
        "Lt" => number().zip(bound()).is_some_and(|(number, bound)| number < bound),
        _ => false,
    }
}

/// The first taint of a node with one of these effects that nothing tolerates.
pub(crate) fn untolerated<'a>(
    node: &'a Node,
    tolerations: &[Toleration],
    effects: &[&str],
) -> Option<&'a Taint> {
    node.spec.taints.iter().find(|taint| {
        effects.contains(&taint.effect.as_str())
            && !tolerations.iter().any(|one| one.tolerates(taint))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(spec: Value, expected: bool) {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "a", "labels": {"zone": "r1", "cpus": "8"}},
        }))
        .unwrap();
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(may_run_on(&spec, &node), expected, "{spec:?}");
    }

    #[test]
    fn selectors_names_and_affinity_decide() {
        let term = |term: Value| {
            json!({"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]},
            }}})
        };
        let expression = |key: &str, operator: &str, values: &[&str]| {
            term(json!({"matchExpressions": [
                {"key": key, "operator": operator, "values": values},
            ]}))
        };
        check(json!({}), true);
        check(json!({"nodeName": "b"}), false);
        check(json!({"nodeSelector": {"zone": "r1"}}), true);
        check(json!({"nodeSelector": {"zone": "r2"}}), false);
        check(expression("zone", "In", &["r1", "r2"]), true);
        check(expression("zone", "NotIn", &["r1"]), false);
        check(expression("none", "NotIn", &["r1"]), true);
        check(expression("none", "Exists", &[]), false);
        check(expression("cpus", "Gt", &["4"]), true);
        check(expression("cpus", "Lt", &["4"]), false);
        check(expression("zone", "Is", &["r1"]), false);
        check(term(json!({})), false);
        let field = json!({"key": "metadata.name", "operator": "In", "values": ["a"]});
        check(term(json!({"matchFields": [field]})), true);
    }
}
