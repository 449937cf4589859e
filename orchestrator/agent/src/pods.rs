//! One worker per pod: started when the pod or something of it appears, woken when either the
//! API or the runtime has news of it, ended when nothing of it is left.
//!
//! Pods of the node's own files run before the API has answered. Their mirrors in the API are
//! no pods of their own: a change of one only wakes the worker of the pod it shows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use node::manifest::{is_mirror, local_uid};
use objects::Time;
use objects::pod::Pod;
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::news::Listing;
use crate::worker::Worker;
use crate::{Shared, disk, manifests};

/// How often everything is compared although nobody called: lost wake-ups heal within this.
const BEAT: Duration = Duration::from_secs(30);

/// A running worker.
struct Handle {
    pod: watch::Sender<Option<Arc<Pod>>>,
    wake: Arc<Notify>,
    /// The pod itself when it is one of the node's files.
    fixed: Option<Arc<Pod>>,
    /// The version of its mirror that it was woken for.
    mirror: String,
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
    /// Whether the API has told which pods are wanted; before, none is taken for an orphan.
    synced: bool,
}

/// Keeps a worker for each pod until `stop`; then waits for the steps in hand.
pub(crate) async fn run(
    stop: CancellationToken,
    shared: Arc<Shared>,
    mut news: watch::Receiver<Arc<Listing>>,
) {
    let caches = Arc::clone(&shared);
    // Neither may a pod of the node's own files be taken for an orphan.
    let mut read = caches.files_read.subscribe();
    let synced = async {
        tokio::join!(caches.pods.wait_synced(), caches.services.wait_synced(), async {
            drop(read.wait_for(|read| *read).await)
        })
    };
    let mut synced = std::pin::pin!(synced);
    let mut changes = shared.pods.changes();
    let mut fixed = shared.fixed.subscribe();
    let mut workers = Workers {
        stop: stop.clone(),
        shared,
        handles: BTreeMap::new(),
        tasks: JoinSet::new(),
        owners: BTreeMap::new(),
        done: BTreeSet::new(),
        seen: Arc::default(),
        synced: false,
    };
    loop {
        fixed.mark_unchanged();
        let listing = Arc::clone(&news.borrow_and_update());
        workers.reconcile(listing);
        tokio::select! { biased;
            () = stop.cancelled() => break,
            _ = synced.as_mut(), if !workers.synced => workers.synced = true,
            Some(ended) = workers.tasks.join_next_with_id() => {
                let id = match &ended {
                    Ok((id, ())) => *id,
                    Err(err) => err.id(),
                };
                workers.ended(id, ended.is_err());
            }
            Ok(()) = changes.changed() => {}
            Ok(()) = news.changed() => {}
            Ok(()) = fixed.changed() => {}
            () = tokio::time::sleep(BEAT) => workers.sweep().await,
        }
    }
    while workers.tasks.join_next().await.is_some() {}
}

impl Workers {
    fn reconcile(&mut self, listing: Arc<Listing>) {
        let wanted = self.wanted();
        self.done.retain(|uid| wanted.contains_key(uid) || listing.contains_key(uid));
        for (uid, pod) in &wanted {
            match self.handles.get(uid) {
                Some(handle) => tell(handle, Some(pod)),
                None if !self.done.contains(uid) => self.spawn(uid, Some(Arc::clone(pod))),
                None => {}
            }
        }
        for (uid, handle) in &mut self.handles {
            // Before the API has answered, a pod of it that is here is as it was.
            if !wanted.contains_key(uid) && self.synced {
                tell(handle, None);
            }
            let mirror = handle.fixed.as_ref().and_then(|pod| {
                let meta = &pod.metadata;
                Some(
                    self.shared
                        .pods
                        .get(&meta.namespace, &meta.name)?
                        .metadata
                        .resource_version
                        .clone(),
                )
            });
            let mirror = mirror.unwrap_or_default();
            if self.seen.get(uid) != listing.get(uid) || handle.mirror != mirror {
                handle.mirror = mirror;
                handle.wake.notify_one();
            }
        }
        // A listing may be older than the end of a worker: what is done stays done.
        let known = |uid: &String| {
            wanted.contains_key(uid) || self.handles.contains_key(uid) || self.done.contains(uid)
        };
        let orphans = listing.keys().filter(|uid| self.synced && !known(uid));
        let orphans: Vec<String> = orphans.cloned().collect();
        for uid in orphans {
            info!(uid, "the API does not know this pod; it is removed");
            self.spawn(&uid, None);
        }
        self.seen = listing;
    }

    /// The pods that are to be here, by uid: the API's and the files'.
    fn wanted(&self) -> BTreeMap<String, Arc<Pod>> {
        let mut wanted = BTreeMap::new();
        if self.synced {
            let pods = self.shared.pods.list().into_iter().filter(|pod| !is_mirror(pod));
            wanted.extend(pods.map(|pod| (pod.metadata.uid.clone(), pod)));
        }
        // One whose file is gone ends in its own time.
        let fixed = Arc::clone(&self.shared.fixed.borrow());
        let kept: BTreeSet<&str> = fixed.iter().map(|pod| pod.metadata.uid.as_str()).collect();
        let mut ending = BTreeSet::new();
        for (uid, handle) in &self.handles {
            let Some(pod) = handle.fixed.as_ref().filter(|_| !kept.contains(uid.as_str())) else {
                continue;
            };
            ending.insert((pod.metadata.namespace.clone(), pod.metadata.name.clone()));
            wanted.insert(uid.clone(), Arc::new(ended(pod)));
        }
        for pod in fixed.iter() {
            let (meta, uid) = (&pod.metadata, &pod.metadata.uid);
            let name = (meta.namespace.clone(), meta.name.clone());
            if self.handles.contains_key(uid) || !ending.contains(&name) {
                wanted.insert(uid.clone(), Arc::clone(pod));
            }
        }
        wanted
    }

    /// A static pod as its mirror knew it: when it started, how often its containers did.
    fn recalled(&self, pod: Arc<Pod>) -> Arc<Pod> {
        let meta = &pod.metadata;
        match self.shared.pods.get(&meta.namespace, &meta.name) {
            // One that ended with the machine begins anew with it.
            Some(mirror) if local_uid(&mirror) == meta.uid && !mirror.is_finished() => {
                Arc::new(Pod { status: mirror.status.clone(), ..Pod::clone(&pod) })
            }
            _ => pod,
        }
    }

    fn spawn(&mut self, uid: &str, pod: Option<Arc<Pod>>) {
        let fixed = pod.clone().filter(|pod| node::manifest::is_static(pod));
        let pod = if fixed.is_some() { pod.map(|pod| self.recalled(pod)) } else { pod };
        let (sender, receiver) = watch::channel(pod);
        let wake = Arc::new(Notify::new());
        let worker =
            Worker::new(Arc::clone(&self.shared), uid.to_owned(), receiver, Arc::clone(&wake));
        let task = self.tasks.spawn(worker.run(self.stop.clone()));
        self.owners.insert(task.id(), uid.to_owned());
        self.handles
            .insert(uid.to_owned(), Handle { pod: sender, wake, fixed, mirror: String::new() });
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
        if !self.synced {
            return;
        }
        manifests::sweep(&self.shared, &|uid| self.handles.contains_key(uid)).await;
        let wanted: BTreeSet<String> =
            self.shared.pods.list().iter().map(|pod| pod.metadata.uid.clone()).collect();
        let known = |uid: &str| {
            wanted.contains(uid) || self.handles.contains_key(uid) || self.seen.contains_key(uid)
        };
        disk::sweep(&self.shared, &known).await;
        self.shared.slices.sweep(&known).await;
    }
}

/// A pod that is to end, as the API would say it.
fn ended(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.metadata.deletion_timestamp = Some(Time::from(jiff::Timestamp::now()));
    "2".clone_into(&mut pod.metadata.resource_version);
    pod
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
