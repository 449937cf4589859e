//! Deletion of namespaces: what is inside goes first.

use jiff::Timestamp;

use crate::action::{Action, Steps, Target};
use crate::view::{Key, View};

/// Plans the step for one namespace.
///
/// How far the emptying has come is not in the view, so the step is planned until the
/// namespace is gone; a look every two seconds is its pace.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(namespace) = view.namespaces.get("", &key.name) else { return steps };
    if namespace.metadata.is_deleting() {
        steps.push(Action::Empty { target: Target::of(&**namespace) });
        steps.look_again(now.saturating_add(jiff::SignedDuration::from_secs(2)).unwrap_or(now));
    }
    steps
}
