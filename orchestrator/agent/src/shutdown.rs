//! Ends the node's pods when the machine shuts down, and only then.
//!
//! A stop of the agent alone touches no pod; so, when it is asked to stop, it asks the machine's
//! own manager whether everything stops. The order is decided in `node::shutdown`; the pods' own
//! workers end them. One task, which is the last to let the others go.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cri::message::{ContainerState, ListContainersRequest};
use node::names::POD_UID;
use node::shutdown::{Phase, end, is_graceful, plan_shutdown};
use runtime::report;
use tokio::process::Command;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Shared;

/// How often the runtime is asked whether pods have ended.
const BEAT: Duration = Duration::from_millis(100);
/// How long the machine's manager may take to answer.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// How long the API may take to tell the node's pods to an agent that does not know them yet.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// How long the API may take to be told of the last ends.
const TELL_LIMIT: Duration = Duration::from_secs(2);

/// Waits until the process is asked to stop, ends pods if the machine stops too, and then stops
/// the agent.
pub(crate) async fn run(stop: CancellationToken, shared: Arc<Shared>) {
    tokio::select! { biased;
        () = stop.cancelled() => return,
        () = shared.config.asked.cancelled() => {}
    }
    if is_graceful(&shared.config.settings) && is_ending(&shared.config.machine_state).await {
        info!("the machine shuts down; its pods end first");
        shared.leaving.store(true, Ordering::Relaxed);
        shared.hurry.notify_one();
        // One that has only just started does not know yet whom to end.
        if tokio::time::timeout(LIST_LIMIT, shared.pods.wait_synced()).await.is_err() {
            warn!(
                "the API does not tell this node's pods; only those of its own files end in order"
            );
        }
        let pods = shared.pods.list();
        let fixed = Arc::clone(&shared.fixed.borrow());
        let own = pods.iter().filter(|pod| !node::manifest::is_mirror(pod)).chain(fixed.iter());
        for phase in plan_shutdown(own.map(|pod| &**pod), &shared.config.settings) {
            end_phase(&shared, phase).await;
        }
        info!("the pods have ended");
    }
    stop.cancel();
}

async fn end_phase(shared: &Shared, phase: Phase) {
    let seconds = Duration::from_secs(u64::try_from(phase.seconds).unwrap_or(0));
    let limit = Instant::now() + seconds;
    let uids: BTreeSet<String> = phase.pods.iter().map(|(uid, _)| uid.clone()).collect();
    shared.told.evictions.send_modify(|evictions| {
        evictions.extend(phase.pods.into_iter().map(|(uid, grace)| (uid, end(grace))));
    });
    while run_still(shared, &uids).await {
        if Instant::now() >= limit {
            warn!(pods = uids.len(), "some pods did not end in time");
            return;
        }
        tokio::time::sleep(BEAT).await;
    }
    // Whoever owns them reads what became of them, if the API is still there.
    let limit = Instant::now() + TELL_LIMIT;
    let told = || {
        let mut pods = shared.pods.list().into_iter();
        pods.all(|pod| !uids.contains(&pod.metadata.uid) || pod.is_finished())
    };
    while !told() && Instant::now() < limit {
        tokio::time::sleep(BEAT).await;
    }
}

async fn run_still(shared: &Shared, uids: &BTreeSet<String>) -> bool {
    let Ok(all) = shared.runtime.list_containers(ListContainersRequest::default()).await else {
        return true;
    };
    let running = i32::from(ContainerState::Running);
    all.containers.iter().any(|found| {
        found.state == running && found.labels.get(POD_UID).is_some_and(|uid| uids.contains(uid))
    })
}

/// Asks the machine's manager whether everything stops. Where it cannot be asked, pods are left
/// alone: ending them for a mere restart of the agent would be the greater harm.
async fn is_ending(manager: &Path) -> bool {
    let asked = Command::new(manager).arg("is-system-running").kill_on_drop(true).output();
    match tokio::time::timeout(ASK_LIMIT, asked).await {
        Ok(Ok(answer)) => answer.stdout.trim_ascii() == b"stopping",
        Ok(Err(err)) => {
            warn!(err = report(&err), "cannot ask whether the machine stops; pods are left alone");
            false
        }
        Err(_) => {
            warn!("no answer whether the machine stops; pods are left alone");
            false
        }
    }
}
