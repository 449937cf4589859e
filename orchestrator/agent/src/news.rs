//! The runtime's news: which pods have changed in it since the last look.
//!
//! The listing is the truth; the runtime's event stream only says that it is time to look. A
//! runtime without such a stream is looked at often, one with it seldom.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cri::message::{ListContainersRequest, ListPodSandboxRequest};
use cri::{CallError, Runtime};
use node::names::POD_UID;
use runtime::backoff::Backoff;
use runtime::report;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::Shared;

/// Between looks, without the event stream.
const BEAT: Duration = Duration::from_secs(2);
/// Between looks, with it.
const SLOW_BEAT: Duration = Duration::from_secs(15);
/// Events come in flocks; this long is waited for the rest of one.
const FLOCK: Duration = Duration::from_millis(20);

/// Sandboxes and containers of each pod with their states, by the pod's uid.
pub(crate) type Listing = BTreeMap<String, Vec<(String, i32)>>;

/// The sending end.
#[derive(Debug, Clone)]
pub(crate) struct Wakes {
    inner: Arc<Inner>,
    listing: watch::Sender<Arc<Listing>>,
}

#[derive(Debug, Default)]
struct Inner {
    nudge: Notify,
    evented: AtomicBool,
}

/// Both ends; the receiver sees the latest listing.
pub(crate) fn channel() -> (Wakes, watch::Receiver<Arc<Listing>>) {
    let (listing, receiver) = watch::channel(Arc::new(Listing::new()));
    (Wakes { inner: Arc::default(), listing }, receiver)
}

/// Looks at the runtime again and again until `stop`.
pub(crate) async fn relist(stop: CancellationToken, shared: Arc<Shared>, wakes: Wakes) {
    let mut backoff = Backoff::new(Duration::from_millis(100), BEAT);
    loop {
        let pause = match observe(&shared.runtime).await {
            Ok(listing) => {
                backoff.reset();
                wakes.listing.send_if_modified(|have| {
                    let changed = **have != listing;
                    if changed {
                        *have = Arc::new(listing);
                    }
                    changed
                });
                if wakes.inner.evented.load(Ordering::Relaxed) { SLOW_BEAT } else { BEAT }
            }
            Err(err) => {
                // A runtime that is not up yet is no news; the node's condition tells it anyway.
                if err.is_unavailable() {
                    debug!(err = report(&err), "the runtime does not answer");
                } else {
                    warn!(err = report(&err), "cannot list the runtime's pods; retrying");
                }
                backoff.step()
            }
        };
        tokio::select! { biased;
            () = stop.cancelled() => return,
            () = wakes.inner.nudge.notified() => tokio::time::sleep(FLOCK).await,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Listens to the runtime until `stop`, or until it says that it never tells.
pub(crate) async fn events(stop: CancellationToken, shared: Arc<Shared>, wakes: Wakes) {
    let listen = async {
        let mut backoff = Backoff::new(Duration::from_millis(100), BEAT);
        loop {
            match listen(&shared.runtime, &wakes, &mut backoff).await {
                Err(err) if err.is_unimplemented() => {
                    info!("the runtime has no event stream; it is listed often instead");
                    return;
                }
                Err(err) => debug!(err = report(&err), "the runtime's event stream broke"),
                Ok(()) => {}
            }
            wakes.inner.evented.store(false, Ordering::Relaxed);
            tokio::time::sleep(backoff.step()).await;
        }
    };
    tokio::select! { biased;
        () = stop.cancelled() => (),
        () = listen => (),
    }
}

async fn listen(runtime: &Runtime, wakes: &Wakes, backoff: &mut Backoff) -> Result<(), CallError> {
    let mut events = runtime.events().await?;
    loop {
        let event = events.next().await?;
        if event.is_none() {
            return Ok(());
        }
        backoff.reset();
        // Only a stream that has told something is trusted to go on telling.
        wakes.inner.evented.store(true, Ordering::Relaxed);
        wakes.inner.nudge.notify_one();
    }
}

async fn observe(runtime: &Runtime) -> Result<Listing, CallError> {
    let mut listing = Listing::new();
    let sandboxes = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
    let mut owners = BTreeMap::new();
    for sandbox in sandboxes {
        let Some(uid) = sandbox.labels.get(POD_UID) else { continue };
        owners.insert(sandbox.id.clone(), uid.clone());
        listing.entry(uid.clone()).or_default().push((sandbox.id, sandbox.state));
    }
    for container in runtime.list_containers(ListContainersRequest::default()).await?.containers {
        if let Some(uid) = owners.get(&container.pod_sandbox_id) {
            // Sandbox and container states share numbers but never ids.
            listing.entry(uid.clone()).or_default().push((container.id, container.state));
        }
    }
    listing.values_mut().for_each(|all| all.sort());
    Ok(listing)
}
