//! The ends of the road: who is looked at first, and how a pod gets its node.

use std::cmp::Reverse;

use objects::kind;
use objects::pod::Pod;

use crate::action::{Action, Note, Target};
use crate::scheduler::framework::{Plugin, Point, Reserved};
use crate::scheduler::queue::{Arrival, Rank};

/// Looks at important pods first, and among equals at those that wait longest.
#[derive(Debug)]
pub(super) struct PrioritySort;

impl Plugin for PrioritySort {
    fn name(&self) -> &'static str {
        "PrioritySort"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::QueueSort]
    }

    fn queue_sort(&self, pod: &Pod, arrival: Arrival) -> Rank {
        Rank { priority: Reverse(pod.spec.priority.unwrap_or(0)), arrival }
    }
}

/// Binds through the pod's `binding` subresource.
#[derive(Debug)]
pub(super) struct DefaultBinder;

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Bind, Point::PostBind]
    }

    fn bind(&self, reserved: &Reserved) -> Option<Action> {
        let target = Target::of_kind(&kind::POD, &reserved.pod.metadata);
        Some(Action::Bind { target, node: reserved.node.clone() })
    }

    fn post_bind(&self, reserved: &Reserved) -> Option<Note> {
        let target = Target::of_kind(&kind::POD, &reserved.pod.metadata);
        let (ns, name, node) = (&target.namespace, &target.name, &reserved.node);
        let message = format!("Successfully assigned {ns}/{name} to {node}");
        Some(Note::normal(&target, "Scheduled", message))
    }
}
