//! Between who loads the table of services and who says that the node is ready.
//!
//! What keeps a node, and for how long, is decided in `node::service::Progress`.

use std::sync::{Arc, Mutex, PoisonError};

use node::service::{Family, Progress};
use runtime::report;
use tokio::time::Instant;
use tracing::debug;

use crate::tables::Tables;

/// How far the node's services are; cheap to clone, and all clones are one. Of a node without
/// services of ours ([`Served::default`]) nobody asks.
#[derive(Debug, Clone, Default)]
pub struct Served(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    since: Instant,
    progress: Mutex<Progress>,
}

impl Served {
    /// The services of a node that somebody loads ([`crate::services::Config`]), from now on.
    ///
    /// Tables that an earlier run of the agent left in the kernel serve already: a new run does
    /// not make the node unready.
    #[must_use]
    pub fn look() -> Self {
        let served = Self::awaited();
        let there = Tables::default().are_there(&[Family::V4]);
        if let Err(err) = &there {
            debug!(err = report(err), "the kernel does not tell its tables");
        }
        if there.unwrap_or(false) {
            served.tell(Progress::Done);
        }
        served
    }

    /// The same, of a node whose kernel nobody asks.
    #[must_use]
    pub fn awaited() -> Self {
        let progress = Mutex::new(Progress::Untold("anything of services"));
        Self(Some(Arc::new(Inner { since: Instant::now(), progress })))
    }

    /// Why the node is not ready; `None` when its services do not keep it.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let inner = self.0.as_ref()?;
        // A poisoned lock still guards a whole step.
        let mut progress = inner.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.problem(inner.since.elapsed())
    }

    /// Tells the next step.
    pub fn tell(&self, next: Progress) {
        if let Some(inner) = &self.0 {
            inner.progress.lock().unwrap_or_else(PoisonError::into_inner).step(next);
        }
    }
}
