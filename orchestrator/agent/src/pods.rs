//! One worker per pod: started when the pod or something of it appears, woken when either the
//! API or the runtime has news of it, ended when nothing of it is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use objects::pod::Pod;
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::news::Listing;
use crate::worker::Worker;
use crate::{Shared, disk};

/// How often everything is compared although nobody called: lost wake-ups heal within this.
const BEAT: Duration = Duration::from_secs(30);

/// A running worker.
struct Handle {
    pod: watch::Sender<Option<Arc<Pod>>>,
    wake: Arc<Notify>,
}

/// All workers of the node.
struct Workers {
    stop: CancellationToken,
    shared: Arc<Shared>,
    handles: BTreeMap<String, Handle>,
    tasks: JoinSet<()>,
    owners: BTreeMap<Id, String>,
    /// Pods that are gone here, while the API still has them.
    done: BTreeSet<String>,
    seen: Arc<Listing>,
}

/// Keeps a worker for each pod until `stop`; then waits for the steps in hand.
pub(crate) async fn run(
    stop: CancellationToken,
    shared: Arc<Shared>,
    mut news: watch::Receiver<Arc<Listing>>,
) {
    // Before the API has told which pods are wanted, none may be taken for an orphan.
    tokio::select! { biased;
        () = stop.cancelled() => return,
        () = async { tokio::join!(shared.pods.wait_synced(), shared.services.wait_synced()); } => {}
    }
    let mut changes = shared.pods.changes();
    let mut workers = Workers {
        stop: stop.clone(),
        shared,
        handles: BTreeMap::new(),
        tasks: JoinSet::new(),
        owners: BTreeMap::new(),
        done: BTreeSet::new(),
        seen: Arc::default(),
    };
    loop {
        let listing = Arc::clone(&news.borrow_and_update());
        workers.reconcile(listing);
        tokio::select! { biased;
            () = stop.cancelled() => break,
            Some(ended) = workers.tasks.join_next_with_id() => {
                let id = match &ended {
                    Ok((id, ())) => *id,
                    Err(err) => err.id(),
                };
                workers.ended(id, ended.is_err());
            }
            Ok(()) = changes.changed() => {}
            Ok(()) = news.changed() => {}
            () = tokio::time::sleep(BEAT) => workers.sweep().await,
        }
    }
    while workers.tasks.join_next().await.is_some() {}
}

impl Workers {
    fn reconcile(&mut self, listing: Arc<Listing>) {
        let wanted: BTreeMap<String, Arc<Pod>> = self
            .shared
            .pods
            .list()
            .into_iter()
            .map(|pod| (pod.metadata.uid.clone(), pod))
            .collect();
        self.done.retain(|uid| wanted.contains_key(uid) || listing.contains_key(uid));
        for (uid, pod) in &wanted {
            match self.handles.get(uid) {
                Some(handle) => tell(handle, Some(pod)),
                None if !self.done.contains(uid) => self.spawn(uid, Some(Arc::clone(pod))),
                None => {}
            }
        }
        for (uid, handle) in &self.handles {
            if !wanted.contains_key(uid) {
                tell(handle, None);
            }
            if self.seen.get(uid) != listing.get(uid) {
                handle.wake.notify_one();
            }
        }
        // A listing may be older than the end of a worker: what is done stays done.
        let known = |uid: &String| {
            wanted.contains_key(uid) || self.handles.contains_key(uid) || self.done.contains(uid)
        };
        let orphans: Vec<String> = listing.keys().filter(|uid| !known(uid)).cloned().collect();
        for uid in orphans {
            info!(uid, "the API does not know this pod; it is removed");
            self.spawn(&uid, None);
        }
        self.seen = listing;
    }

    fn spawn(&mut self, uid: &str, pod: Option<Arc<Pod>>) {
        let (sender, receiver) = watch::channel(pod);
        let wake = Arc::new(Notify::new());
        let worker =
            Worker::new(Arc::clone(&self.shared), uid.to_owned(), receiver, Arc::clone(&wake));
        let task = self.tasks.spawn(worker.run(self.stop.clone()));
        self.owners.insert(task.id(), uid.to_owned());
        self.handles.insert(uid.to_owned(), Handle { pod: sender, wake });
    }

    fn ended(&mut self, id: Id, panicked: bool) {
        let Some(uid) = self.owners.remove(&id) else { return };
        self.handles.remove(&uid);
        if panicked {
            // A bug; the pod gets a new worker, and the others are not hurt.
            error!(uid, "a pod's worker panicked");
        } else {
            self.done.insert(uid);
        }
    }

    /// Removes directories of pods that nobody knows.
    async fn sweep(&self) {
        let wanted: BTreeSet<String> =
            self.shared.pods.list().iter().map(|pod| pod.metadata.uid.clone()).collect();
        let known = |uid: &str| {
            wanted.contains(uid) || self.handles.contains_key(uid) || self.seen.contains_key(uid)
        };
        disk::sweep(&self.shared, &known).await;
    }
}

fn tell(handle: &Handle, pod: Option<&Arc<Pod>>) {
    let revision = |pod: Option<&Arc<Pod>>| pod.map(|pod| pod.metadata.resource_version.clone());
    handle.pod.send_if_modified(|have| {
        let changed = revision(have.as_ref()) != revision(pod);
        if changed {
            *have = pod.cloned();
        }
        changed
    });
}
