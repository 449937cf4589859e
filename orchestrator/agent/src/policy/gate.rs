//! Holds a pod's containers back until what policies say of its address is in force.
//!
//! A pod has its address as soon as its sandbox is made; the API learns of it later, and everybody
//! who follows the API later still. So whoever starts containers tells the address here first, and
//! waits. The enforcer believes it until the API says the same.
//!
//! Spec: upstream's documentation of NetworkPolicy, "pod lifecycle": filtering is effective from
//! the very first instant of a container. What a policy *allows* may come later.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use node::policy::Guest;
use runtime::cache::{Key, Snapshot};
use tokio::sync::watch;

/// How long a start waits; then it has failed, is told so, and is tried again.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between those who start containers and those who enforce policies; without the latter
/// ([`Gate::default`]) nobody is held back.
#[derive(Debug, Clone, Default)]
pub struct Gate(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    /// Pods of this node whose addresses the API may not have told yet, by their uid.
    guests: Mutex<BTreeMap<String, (Key, Arc<Guest>)>>,
    /// Counts what was told here.
    told: watch::Sender<u64>,
    /// How much of that is in force; `None` when there is no policy, and so nothing to wait for.
    done: watch::Sender<Option<u64>>,
}

/// What was told of pods at the gate.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// How many things were told.
    pub(super) count: u64,
    /// Those of whom the API has not said as much.
    pub(super) guests: Vec<Arc<Guest>>,
}

impl Gate {
    /// A gate that somebody opens: see [`crate::services::Config`].
    #[must_use]
    pub fn guarded() -> Self {
        let (told, done) = (watch::channel(0).0, watch::channel(Some(0)).0);
        Self(Some(Arc::new(Shared { guests: Mutex::default(), told, done })))
    }

    /// Waits until policies are in force for a pod's addresses; `false` when that takes too long.
    ///
    /// Cancel safety: safe.
    pub async fn pass(&self, uid: &str, key: Key, guest: Guest) -> bool {
        let Some(shared) = &self.0 else { return true };
        let mut done = shared.done.subscribe();
        if guest.addresses.is_empty() || done.borrow_and_update().is_none() {
            return true;
        }
        let count = shared.tell(uid, (key, Arc::new(guest)));
        let is_done = |done: &Option<u64>| done.is_none_or(|done| done >= count);
        tokio::time::timeout(PATIENCE, done.wait_for(is_done)).await.is_ok()
    }

    /// Forgets a pod that is gone.
    pub(crate) fn leave(&self, uid: &str) {
        if let Some(shared) = &self.0 {
            shared.guests().remove(uid);
        }
    }

    /// Wakes when something was told.
    pub(super) fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.0.as_ref().map(|shared| shared.told.subscribe())
    }

    /// What the API does not say yet.
    pub(super) fn waiting(&self, known: &Snapshot<Guest>) -> Waiting {
        let Some(shared) = &self.0 else { return Waiting::default() };
        let mut guests = shared.guests();
        guests.retain(|_, (key, guest)| {
            let has = |address: &IpAddr| {
                known.get(key).is_some_and(|known| known.addresses.contains(address))
            };
            !guest.addresses.iter().all(has)
        });
        let count = *shared.told.borrow();
        Waiting { count, guests: guests.values().map(|(_, guest)| Arc::clone(guest)).collect() }
    }

    /// Lets through who was told up to `count`; everybody with `None`.
    pub(super) fn open(&self, count: Option<u64>) {
        if let Some(shared) = &self.0 {
            shared.done.send_if_modified(|done| std::mem::replace(done, count) != count);
        }
    }
}

impl Shared {
    /// Notes a pod, and says how many things were told so far.
    fn tell(&self, uid: &str, guest: (Key, Arc<Guest>)) -> u64 {
        let mut guests = self.guests();
        if guests.get(uid) != Some(&guest) {
            guests.insert(uid.to_owned(), guest);
            // Inside the lock: whoever counts finds what was counted.
            self.told.send_modify(|count| *count += 1);
        }
        *self.told.borrow()
    }

    // A poisoned lock still guards a whole map.
    fn guests(&self) -> MutexGuard<'_, BTreeMap<String, (Key, Arc<Guest>)>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn guest(address: &str) -> Guest {
        Guest { addresses: [address.parse().unwrap()].into(), ..Guest::default() }
    }

    fn key() -> Key {
        Key::new("default", "web")
    }

    #[tokio::test]
    async fn containers_start_when_their_address_is_guarded() {
        let gate = Gate::guarded();
        let mut turn = Context::from_waker(Waker::noop());
        let mut first = pin!(gate.pass("1", key(), guest("10.0.0.1")));
        assert_eq!(first.as_mut().poll(&mut turn), Poll::Pending, "nobody guards yet");
        let seen = gate.waiting(&Snapshot::default());
        assert_eq!((seen.count, seen.guests.len()), (1, 1));
        // Another comes while the first one's rules are made.
        let mut second = pin!(gate.pass("2", Key::new("default", "db"), guest("10.0.0.2")));
        assert_eq!(second.as_mut().poll(&mut turn), Poll::Pending);
        gate.open(Some(seen.count));
        assert_eq!(first.as_mut().poll(&mut turn), Poll::Ready(true));
        assert_eq!(second.as_mut().poll(&mut turn), Poll::Pending, "it was not among them");

        // What the API says needs not be believed from here any more.
        let known = Snapshot::new([(key(), Arc::new(guest("10.0.0.1")))].into());
        let seen = gate.waiting(&known);
        assert_eq!((seen.count, seen.guests.len()), (2, 1));
        gate.leave("2");
        assert_eq!(gate.waiting(&known).guests.len(), 0);

        // Without any policy there is nothing to wait for.
        gate.open(None);
        assert_eq!(second.as_mut().poll(&mut turn), Poll::Ready(true));
        assert!(gate.pass("3", key(), guest("10.0.0.3")).await);
        assert!(Gate::default().pass("3", key(), guest("10.0.0.3")).await, "nobody enforces");
    }
}
