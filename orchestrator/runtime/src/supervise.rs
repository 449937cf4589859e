//! Named tasks with one owner.
//!
//! Nothing is detached: every task of a service is in its [`Supervisor`], which joins them
//! all. A task that panics or fails ends the service, because start-up is the recovery path.

use std::future::Future;
use std::time::Duration;

use thiserror::Error;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use std::collections::BTreeMap;

/// How long tasks may take to finish after the stop signal before they are dropped.
const GRACE: Duration = Duration::from_secs(10);

/// Why a supervised service ended.
#[derive(Debug, Error)]
pub enum TaskFailed<E: std::error::Error + 'static> {
    /// A task returned an error.
    #[error("task {name} failed")]
    Failed {
        /// The task.
        name: String,
        /// Its error.
        #[source]
        source: E,
    },
    /// A task panicked: a bug.
    #[error("task {name} panicked")]
    Panicked {
        /// The task.
        name: String,
        /// What tokio knows of it.
        #[source]
        source: JoinError,
    },
}

/// Owner of a service's tasks.
#[derive(Debug)]
pub struct Supervisor<E = std::convert::Infallible> {
    stop: CancellationToken,
    tasks: JoinSet<Result<(), E>>,
    names: BTreeMap<Id, String>,
}

impl<E: std::error::Error + Send + 'static> Supervisor<E> {
    /// An owner without tasks; `stop` ends them all, and is pulled when one of them fails.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, tasks: JoinSet::new(), names: BTreeMap::new() }
    }

    /// The signal the tasks should listen to.
    #[must_use]
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task that cannot fail.
    pub fn spawn(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_fallible(name, async move {
            task.await;
            Ok(())
        });
    }

    /// Starts a task whose error ends the service.
    pub fn spawn_fallible(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(task);
        self.names.insert(handle.id(), name.into());
    }

    /// Waits until every task has ended.
    ///
    /// The first failure pulls the stop signal; the others then have ten seconds.
    ///
    /// # Errors
    ///
    /// The first failure.
    pub async fn join(mut self) -> Result<(), TaskFailed<E>> {
        let mut first = None;
        loop {
            let ended = if self.stop.is_cancelled() {
                match tokio::time::timeout(GRACE, self.tasks.join_next_with_id()).await {
                    Ok(ended) => ended,
                    Err(_) => {
                        tracing::warn!(
                            names = ?self.names.values().collect::<Vec<_>>(),
                            "tasks did not stop in time and are dropped"
                        );
                        None
                    }
                }
            } else {
                tokio::select! { biased;
                    () = self.stop.cancelled() => continue,
                    ended = self.tasks.join_next_with_id() => ended,
                }
            };
            let Some(ended) = ended else { break };
            if let Err(failure) = self.judge(ended) {
                self.stop.cancel();
                first.get_or_insert(failure);
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn judge(
        &mut self,
        ended: Result<(Id, Result<(), E>), JoinError>,
    ) -> Result<(), TaskFailed<E>> {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let name = self.names.remove(&id).unwrap_or_default();
        match ended {
            Ok((_, Ok(()))) => Ok(()),
            Ok((_, Err(source))) => Err(TaskFailed::Failed { name, source }),
            Err(source) => Err(TaskFailed::Panicked { name, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_stops_the_others_and_is_named() {
        let stop = CancellationToken::new();
        let mut tasks: Supervisor = Supervisor::new(stop.clone());
        tasks.spawn("waits", async move { stop.cancelled().await });
        tasks.spawn("falls", async { panic!("on purpose") });
        let failure = tasks.join().await.unwrap_err();
        assert_eq!(failure.to_string(), "task falls panicked");
    }

    #[tokio::test]
    async fn tasks_that_end_are_no_failure() {
        let mut tasks: Supervisor = Supervisor::new(CancellationToken::new());
        tasks.spawn("ends", async {});
        assert!(tasks.join().await.is_ok());
    }
}
