//! How far a node's services have come since it started, and what that means for its readiness.
//!
//! Clients are sent to a node as soon as it says that it is Ready, by load balancers, by routers,
//! and by whoever ends a maintenance. Before its table of services is in the kernel it would
//! refuse them all; so it is not Ready until then. Only the *first* table counts: later ones
//! change while the one before serves.
//!
//! Spec: upstream's Node condition `Ready`, of which the container network is a part; upstream's
//! proxy is not, and clients find out.

use std::time::Duration;

/// How long a node waits for what the API has to tell of services. Another kind of API server may
/// never tell it all to a node; such a node serves what it can.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How far the first table of services has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The API has not told everything: what it has not.
    Untold(&'static str),
    /// The site has no services.
    Nothing,
    /// Everything is told, and on its way into the kernel.
    Loading,
    /// The kernel refused, and is asked again: its words.
    Refused(String),
    /// The kernel serves, or the node has once been let go without; that stays so.
    Done,
}

impl Progress {
    /// Why the node is not ready, `waited` after it started; `None` when nothing of this keeps it.
    ///
    /// A node that has been let go is not held again, whatever comes later.
    #[must_use]
    pub fn problem(&mut self, waited: Duration) -> Option<String> {
        match self {
            Self::Untold(what) if waited < PATIENCE => {
                Some(format!("service table is not loaded yet: the API has not told {what}"))
            }
            Self::Loading => Some("service table is not loaded yet".to_owned()),
            Self::Refused(why) => Some(format!("service table is not loaded: {why}")),
            Self::Untold(_) | Self::Nothing | Self::Done => {
                *self = Self::Done;
                None
            }
        }
    }

    /// Takes the next step, if there still is one.
    pub fn step(&mut self, next: Self) {
        if *self != Self::Done {
            *self = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Progress::{Done, Loading, Nothing, Refused, Untold};

    /// What keeps a node that goes these steps and asks at these seconds.
    #[track_caller]
    fn check(steps: &[(Progress, u64)], expected: Option<&str>) {
        let mut progress = Untold("anything");
        let mut last = progress.problem(Duration::ZERO);
        for (step, seconds) in steps {
            progress.step(step.clone());
            last = progress.problem(Duration::from_secs(*seconds));
        }
        assert_eq!(last.as_deref(), expected, "{steps:?}");
    }

    #[test]
    fn a_node_is_not_ready_before_its_first_table_is_in_the_kernel() {
        let untold =
            |what| Some(format!("service table is not loaded yet: the API has not told {what}"));
        let networks = || Untold("the site's networks");
        let refused = || Refused("no such file".to_owned());
        let soon = Some("service table is not loaded yet");
        check(&[], untold("anything").as_deref());
        check(&[(networks(), 119)], untold("the site's networks").as_deref());
        check(&[(Loading, 1)], soon);
        check(&[(Loading, 3600)], soon);
        check(
            &[(Loading, 1), (refused(), 3600)],
            Some("service table is not loaded: no such file"),
        );
        check(&[(Loading, 1), (refused(), 2), (Loading, 3), (Done, 4)], None);
    }

    #[test]
    fn a_node_that_was_let_go_is_not_held_again() {
        // An API that never tells does not keep it for ever, nor one that tells of no services.
        check(&[(Untold("the site's networks"), 120)], None);
        check(&[(Nothing, 0)], None);
        for first in [Untold("services"), Nothing, Done] {
            let refused = Refused("no such file".to_owned());
            check(&[(first, 120), (Loading, 121), (refused, 122)], None);
        }
    }
}
