//! Cluster roles that are made of others' rules.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::action::{Action, Steps, Target};
use crate::view::{Key, View};

/// Plans the write of one role; only those with an aggregation rule are ours.
#[must_use]
pub fn reconcile(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(role) = view.cluster_roles.get("", &key.name) else { return steps };
    let Some(aggregation) = &role.aggregation_rule else { return steps };
    let mut rules: Vec<Value> = Vec::new();
    for selector in &aggregation.cluster_role_selectors {
        let Some(selector) = selector.compile() else { continue };
        let parts = view.cluster_roles.iter().filter(|one| one.metadata.name != key.name);
        for part in parts.filter(|one| selector.matches(&one.metadata.labels)) {
            for rule in &part.rules {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    if rules != role.rules && !role.metadata.is_deleting() {
        steps.push(Action::patch(Target::of(&**role), json!({ "rules": rules })));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use objects::access::ClusterRole;
    use objects::kind;

    #[test]
    fn a_role_has_the_rules_of_those_it_selects() {
        let mut world = World::default();
        let rule = |verb: &str| json!({"verbs": [verb], "resources": ["pods"], "apiGroups": [""]});
        let label = json!({"to-admin": "yes"});
        world.add(
            &kind::CLUSTER_ROLE,
            json!({
                "metadata": {"name": "admin"},
                "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": label}]},
                "rules": [rule("stale")],
            }),
        );
        for (name, labels) in [("a", label.clone()), ("b", label.clone()), ("c", json!({}))] {
            let metadata = json!({"name": name, "labels": labels});
            world.add(&kind::CLUSTER_ROLE, json!({"metadata": metadata, "rules": [rule(name)]}));
        }
        world.settle(&[]);
        let admin = world.all::<ClusterRole>().into_iter().find(|one| one.metadata.name == "admin");
        assert_eq!(admin.unwrap().rules, [rule("a"), rule("b")]);
    }
}
