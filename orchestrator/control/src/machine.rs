//! What is true of each machine of the plan, as conditions for `kubectl wait` and for people.
//!
//! The boot server writes how far a machine has come (`status.phase` and the like); this puts the
//! machine and its node together: `Provisioned` (it runs its image and its agent has answered),
//! `Ready` (its node is), `Maintenance` (its node is being emptied, or is empty) and `Quarantined`.

use std::sync::Arc;

use jiff::Timestamp;
use objects::condition::{Condition, find_condition, set_condition};
use objects::machine::Machine;
use objects::node::Node;
use serde_json::json;

use crate::action::{Action, Note, Steps, Target};
use crate::drain;
use crate::view::{Key, View};
use crate::wake::{Touch, node_matters};

/// Phases in which the agent runs.
const RUNNING: [&str; 2] = ["agent", "ready"];

/// The machine of a node, when more than its heartbeat changed.
#[must_use]
pub fn of_node(_view: &View, touch: &Touch) -> Vec<Key> {
    let mut sides = touch.typed::<Node>();
    let same = sides
        .next()
        .zip(sides.next())
        .is_some_and(|(before, after)| before.metadata.annotations == after.metadata.annotations);
    if same && !node_matters(touch) { Vec::new() } else { vec![Key::new("", &touch.key.name)] }
}

/// Plans the conditions of one machine.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(machine) = view.machines.get("", &key.name) else { return steps };
    if machine.metadata.is_deleting() {
        return steps;
    }
    let node = view.nodes.get("", &key.name);
    let mut conditions = machine.status.conditions.clone();
    let mut changed = false;
    for wanted in [provisioned(machine, node), ready(node), maintenance(node), quarantined(machine)]
    {
        let generation = machine.metadata.generation;
        let wanted = Condition { observed_generation: generation, ..wanted };
        changed |= set_condition(&mut conditions, wanted, now);
    }
    if !changed {
        return steps;
    }
    let target = Target::of(&**machine);
    let note = told(machine, &conditions, &target);
    let step = Action::patch_status(target, json!({ "conditions": conditions }));
    steps.push(match note {
        Some(note) => step.telling(note),
        None => step,
    });
    steps
}

fn provisioned(machine: &Machine, node: Option<&Arc<Node>>) -> Condition {
    let (phase, cause) = (machine.status.phase.as_str(), machine.status.cause.as_str());
    let kind = "Provisioned";
    if node.is_some_and(|node| node.is_ready()) || RUNNING.contains(&phase) {
        return Condition::new(kind, true, "AgentRunning", "The machine runs its node image.");
    }
    if phase.is_empty() {
        return Condition::new(kind, false, "NotSeen", "The machine was not seen yet.");
    }
    let message = if cause.is_empty() {
        format!("The machine has come to phase {phase}.")
    } else {
        format!("The machine has come to phase {phase}: {cause}")
    };
    Condition::new(kind, false, "Booting", &message)
}

fn ready(node: Option<&Arc<Node>>) -> Condition {
    let Some(node) = node else {
        return Condition::new("Ready", false, "NoNode", "The machine has no node in the cluster.");
    };
    match find_condition(&node.status.conditions, "Ready") {
        Some(one) => Condition {
            status: one.status.clone(),
            ..Condition::new("Ready", false, &one.reason, &one.message)
        },
        None => Condition {
            status: "Unknown".to_owned(),
            ..Condition::new("Ready", false, "NodeStatusNeverUpdated", "The node said nothing yet.")
        },
    }
}

fn maintenance(node: Option<&Arc<Node>>) -> Condition {
    let state = node.and_then(|node| node.metadata.annotation(drain::STATE));
    let (status, reason, message) = match state {
        Some("ready") => (true, "Empty", "The node is empty: the machine may be switched off."),
        Some("blocked") => (true, "Blocked", "Pods on the node would be lost."),
        Some(_) => (true, "Draining", "The node is being emptied."),
        None => (false, "InService", "Nobody wants the node empty."),
    };
    Condition::new("Maintenance", status, reason, message)
}

fn quarantined(machine: &Machine) -> Condition {
    if machine.status.quarantined {
        let message = "Identities clash: the machine is given nothing.";
        return Condition::new("Quarantined", true, "IdentityClash", message);
    }
    Condition::new("Quarantined", false, "IdentityFits", "No other machine claims this identity.")
}

/// What is worth an event: the first time a machine is there, and when it must be looked at.
fn told(machine: &Machine, after: &[Condition], target: &Target) -> Option<Note> {
    let turned = |kind: &str| {
        let is = |all: &[Condition]| find_condition(all, kind).is_some_and(Condition::is_true);
        is(after) && !is(&machine.status.conditions)
    };
    let message =
        |kind: &str| find_condition(after, kind).map_or("", |one| &one.message).to_owned();
    if turned("Quarantined") {
        return Some(Note::warning(target, "Quarantined", message("Quarantined")));
    }
    turned("Provisioned").then(|| Note::normal(target, "Provisioned", message("Provisioned")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use objects::kind;
    use serde_json::Value;

    /// What the conditions of machine `a` say, as `type=status reason`.
    #[track_caller]
    fn check(status: Value, node: Option<Value>, expected: [&str; 4]) {
        let mut world = World::default();
        world.add(&kind::MACHINE, json!({"metadata": {"name": "a"}, "status": status}));
        if let Some(patch) = node {
            world.add_node("a", "r1");
            world.change(&kind::NODE, "", "a", &patch);
        }
        let mut all = crate::controller::CONTROLLERS.iter();
        let machines = all.find(|one| one.name == "machine-controller").unwrap();
        while world.round(machines) {}
        let machine = &world.all::<Machine>()[0];
        let said = machine.status.conditions.iter();
        let said: Vec<String> =
            said.map(|one| format!("{}={} {}", one.kind, one.status, one.reason)).collect();
        assert_eq!(said, expected);
    }

    #[test]
    fn a_machine_is_put_together_with_its_node() {
        let (calm, fits) = ("Maintenance=False InService", "Quarantined=False IdentityFits");
        check(json!({}), None, ["Provisioned=False NotSeen", "Ready=False NoNode", calm, fits]);
        check(
            json!({"phase": "kernel", "cause": "the image does not verify"}),
            None,
            ["Provisioned=False Booting", "Ready=False NoNode", calm, fits],
        );
        check(
            json!({"phase": "ready"}),
            Some(json!({})),
            ["Provisioned=True AgentRunning", "Ready=True ", calm, fits],
        );
        let unknown =
            json!([{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]);
        check(
            json!({"phase": "agent", "quarantined": true}),
            Some(json!({
                "metadata": {"annotations": {drain::STATE: "ready"}},
                "status": {"conditions": unknown},
            })),
            [
                "Provisioned=True AgentRunning",
                "Ready=Unknown NodeStatusUnknown",
                "Maintenance=True Empty",
                "Quarantined=True IdentityClash",
            ],
        );
    }
}
