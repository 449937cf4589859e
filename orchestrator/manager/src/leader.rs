//! One manager acts at a time: the holder of a Lease.
//!
//! A lease is no lock: a manager that lost it without noticing may still finish a write. That
//! is why every write of ours names the version it was decided on. Expiry is judged by our
//! own clock, from when we saw the lease change.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use objects::lease::{Lease, LeaseSpec};
use objects::meta::{Object, ObjectMeta};
use objects::time::MicroTime;
use runtime::backoff::Backoff;
use runtime::resource::LEASES;
use runtime::{Client, ClientError, report};
use serde_json::json;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Where the lease is.
const NAMESPACE: &str = "kube-system";
/// The lease of who runs every controller: upstream's, which keeps upstream's manager from acting
/// beside ours, and ours beside it.
pub(crate) const CONTROLLERS: &str = "kube-controller-manager";
/// The lease of who runs some controllers beside another manager.
pub(crate) const SOME_CONTROLLERS: &str = "muster-manager";
/// The lease of who runs the scheduler, upstream's too.
pub(crate) const SCHEDULER: &str = "kube-scheduler";
/// How long a claim holds without renewal.
const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed, and how often others look.
const RENEW: Duration = Duration::from_secs(5);
/// How long we go on without a renewal that worked; shorter than what others wait.
const DEADLINE: Duration = Duration::from_secs(12);

/// The lease went to someone else, or could not be renewed in time.
#[derive(Debug, Error)]
#[error("lost the leader's lease")]
pub struct LeaseLost;

/// A held lease.
pub(crate) struct Held {
    client: Client,
    lease: Lease,
    name: &'static str,
}

/// Waits until the lease is ours; `None` when stopped before.
pub(crate) async fn acquire(
    stop: &CancellationToken,
    client: &Client,
    identity: &str,
    name: &'static str,
) -> Option<Held> {
    let mut watcher = Watcher { name, seen: None };
    let mut backoff = Backoff::default();
    loop {
        let wait = match watcher.attempt(client, identity).await {
            Ok(Some(lease)) => {
                info!(identity, name, "leading");
                return Some(Held { client: client.clone(), lease, name });
            }
            Ok(None) => RENEW,
            Err(err) => {
                // The server may still be on its way up.
                tracing::debug!(err = report(&err), "cannot ask for the leader's lease");
                backoff.step()
            }
        };
        tokio::select! { biased;
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(wait) => (),
        }
    }
}

/// Remembers when another holder last gave a sign of life.
struct Watcher {
    name: &'static str,
    seen: Option<(String, Instant)>,
}

impl Watcher {
    async fn attempt(
        &mut self,
        client: &Client,
        identity: &str,
    ) -> Result<Option<Lease>, ClientError> {
        let found = match client.get(&LEASES, Some(NAMESPACE), self.name).await {
            Ok(found) => Lease::decode(&found).unwrap_or_else(|_| Lease::blank()),
            Err(err) if err.is_not_found() => {
                let metadata = ObjectMeta::in_namespace(NAMESPACE, self.name);
                let spec = claim(identity, &LeaseSpec::default());
                let lease = json!(Lease { metadata, spec, ..Lease::blank() });
                let made = client.create(&LEASES, Some(NAMESPACE), &lease).await?;
                return Ok(Lease::decode(&made).ok());
            }
            Err(err) => return Err(err),
        };
        if !self.is_free(&found, identity) {
            return Ok(None);
        }
        let spec = claim(identity, &found.spec);
        write(client, self.name, Lease { spec, ..found }).await
    }

    /// Is the lease ours, nobody's, or of someone who went silent?
    fn is_free(&mut self, lease: &Lease, identity: &str) -> bool {
        let holder = lease.spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == identity {
            return true;
        }
        let version = &lease.metadata.resource_version;
        match &self.seen {
            Some((seen, at)) if seen == version => at.elapsed() > DURATION,
            _ => {
                self.seen = Some((version.clone(), Instant::now()));
                false
            }
        }
    }
}

/// The claim that follows another.
fn claim(identity: &str, before: &LeaseSpec) -> LeaseSpec {
    let now = Some(MicroTime::from(Timestamp::now()));
    let same = before.holder_identity.as_deref() == Some(identity);
    let transitions = before.lease_transitions.unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i64::try_from(DURATION.as_secs()).ok(),
        acquire_time: if same { before.acquire_time } else { now },
        renew_time: now,
        lease_transitions: Some(if same { transitions } else { transitions.saturating_add(1) }),
        ..before.clone()
    }
}

/// Writes the lease; `None` when someone else was quicker.
async fn write(client: &Client, name: &str, lease: Lease) -> Result<Option<Lease>, ClientError> {
    match client.update(&LEASES, Some(NAMESPACE), name, &json!(lease)).await {
        Ok(written) => Ok(Lease::decode(&written).ok()),
        Err(err) if err.is_conflict() => Ok(None),
        Err(err) => Err(err),
    }
}

impl Held {
    /// Renews until `stop`, then gives the lease back.
    ///
    /// # Errors
    ///
    /// When it is no longer ours, or was not renewed for too long.
    pub(crate) async fn keep(mut self, stop: CancellationToken) -> Result<(), LeaseLost> {
        let mut renewed = Instant::now();
        loop {
            tokio::select! { biased;
                () = stop.cancelled() => {
                    self.give_back().await;
                    return Ok(());
                }
                () = tokio::time::sleep(RENEW) => (),
            }
            let identity = self.lease.spec.holder_identity.clone().unwrap_or_default();
            let spec = claim(&identity, &self.lease.spec);
            let next = Lease { spec, ..self.lease.clone() };
            match write(&self.client, self.name, next).await {
                Ok(Some(lease)) => {
                    self.lease = lease;
                    renewed = Instant::now();
                }
                Ok(None) => self.look_again(&identity).await?,
                Err(err) => warn!(err = report(&err), "cannot renew the leader's lease"),
            }
            if renewed.elapsed() > DEADLINE {
                return Err(LeaseLost);
            }
        }
    }

    /// Someone changed the lease: that is fine as long as it is still ours.
    async fn look_again(&mut self, identity: &str) -> Result<(), LeaseLost> {
        let Ok(found) = self.client.get(&LEASES, Some(NAMESPACE), self.name).await else {
            return Ok(());
        };
        match Lease::decode(&found) {
            Ok(lease) if lease.spec.holder_identity.as_deref() == Some(identity) => {
                self.lease = lease;
                Ok(())
            }
            _ => Err(LeaseLost),
        }
    }

    async fn give_back(self) {
        let spec = LeaseSpec { holder_identity: Some(String::new()), ..self.lease.spec.clone() };
        let lease = Lease { spec, ..self.lease };
        // The server is often going down with us; then the lease runs out by itself.
        let limit = Duration::from_secs(1);
        let _given = tokio::time::timeout(limit, write(&self.client, self.name, lease)).await;
    }
}
