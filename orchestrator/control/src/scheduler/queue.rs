//! The pods that wait: active, backing off, unschedulable, gated.
//!
//! A refused pod rests until something happens that one of its refusers says may help, or until
//! it was left alone for five minutes. It is then looked at no sooner than its back-off allows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use objects::pod::Pod;

use super::framework::Plugin;
use super::snapshot::Kind;

/// Longest rest of a pod that nothing seems to help.
const REST_MAX: Duration = Duration::from_secs(300);

/// Who is looked at first: the important, then those that came first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) priority: Reverse<i64>,
    pub(super) arrival: Arrival,
}

/// When a pod came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Arrival {
    pub(super) since: Timestamp,
    pub(super) number: u64,
}

/// Where a waiting pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    /// Until when; one that something may have helped is looked at earlier if there is time.
    BackOff(Timestamp, Patience),
    Resting(Timestamp),
    Gated,
    /// Being looked at, or being bound.
    Out,
}

/// Why a pod backs off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// It was refused, and something happened since.
    Hopeful,
    /// Its binding failed: the server shall be left alone.
    Strict,
}

/// A waiting pod.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) pod: Arc<Pod>,
    /// Its kind, and the snapshot's generation in which that has a meaning.
    pub(super) kind: Option<(u64, Arc<Kind>)>,
    pub(super) attempts: u32,
    pub(super) last_try: Option<Timestamp>,
    pub(super) refusers: Vec<&'static str>,
    rank: Rank,
    place: Place,
}

/// How long a pod that failed must wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    pub(super) initial: Duration,
    pub(super) max: Duration,
}

/// How many pods wait, by why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    /// To be looked at.
    pub active: usize,
    /// For their back-off to end.
    pub backing_off: usize,
    /// For something to happen that helps.
    pub resting: usize,
    /// For their gates to open.
    pub gated: usize,
}

/// All waiting pods.
#[derive(Debug)]
pub(super) struct Queue {
    entries: BTreeMap<String, Entry>,
    active: BTreeSet<(Rank, String)>,
    back_off: BTreeSet<(Timestamp, String)>,
    /// Of those backing off: who may be looked at when nobody else is waiting.
    hopeful: BTreeSet<(Rank, String)>,
    resting: BTreeSet<(Timestamp, String)>,
    refused_by: BTreeMap<&'static str, BTreeSet<String>>,
    waits: Waits,
    gated: BTreeSet<String>,
    sort: Option<Arc<dyn Plugin>>,
    number: u64,
}

fn later(now: Timestamp, wait: Duration) -> Timestamp {
    let wait = jiff::SignedDuration::try_from(wait).unwrap_or(jiff::SignedDuration::MAX);
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

impl Queue {
    pub(super) fn new(waits: Waits, sort: Option<Arc<dyn Plugin>>) -> Self {
        Self {
            entries: BTreeMap::new(),
            active: BTreeSet::new(),
            back_off: BTreeSet::new(),
            hopeful: BTreeSet::new(),
            resting: BTreeSet::new(),
            refused_by: BTreeMap::new(),
            gated: BTreeSet::new(),
            waits,
            sort,
            number: 0,
        }
    }

    fn rank(&self, pod: &Pod, arrival: Arrival) -> Rank {
        match &self.sort {
            Some(plugin) => plugin.queue_sort(pod, arrival),
            None => Rank { priority: Reverse(0), arrival },
        }
    }

    /// A waiting pod.
    pub(super) fn get(&self, uid: &str) -> Option<&Entry> {
        self.entries.get(uid)
    }

    /// How many wait to be looked at now.
    pub(super) fn ready(&self) -> usize {
        self.active.len() + self.hopeful.len()
    }

    /// How many wait, and for what.
    pub(super) fn pending(&self) -> Pending {
        Pending {
            active: self.active.len(),
            backing_off: self.back_off.len(),
            resting: self.resting.len(),
            gated: self.gated.len(),
        }
    }

    /// How many wait in all.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes a pod up, or notes its newer state.
    pub(super) fn put(&mut self, pod: &Arc<Pod>, now: Timestamp) {
        let gated = !pod.spec.scheduling_gates.is_empty();
        let uid = &pod.metadata.uid;
        let Some(mut entry) = self.take(uid) else {
            self.number += 1;
            let arrival = Arrival {
                since: pod.metadata.creation_timestamp.map_or(now, |time| time.0),
                number: self.number,
            };
            let rank = self.rank(pod, arrival);
            let place = if gated { Place::Gated } else { Place::Active };
            let entry = Entry {
                pod: Arc::clone(pod),
                kind: None,
                attempts: 0,
                last_try: None,
                refusers: Vec::new(),
                rank,
                place,
            };
            self.insert(entry);
            return;
        };
        let asks_differently =
            entry.pod.spec != pod.spec || entry.pod.metadata.labels != pod.metadata.labels;
        entry.pod = Arc::clone(pod);
        if asks_differently {
            entry.kind = None;
            entry.rank = self.rank(pod, entry.rank.arrival);
            entry.place = match entry.place {
                Place::Out => Place::Out,
                _ if gated => Place::Gated,
                Place::Active | Place::Gated => Place::Active,
                Place::BackOff(..) | Place::Resting(_) => {
                    self.after_back_off(&entry, Patience::Hopeful, now)
                }
            };
        }
        self.insert(entry);
    }

    /// Forgets a pod.
    pub(super) fn remove(&mut self, uid: &str) -> Option<Entry> {
        self.take(uid)
    }

    fn take(&mut self, uid: &str) -> Option<Entry> {
        let entry = self.entries.remove(uid)?;
        let name = uid.to_owned();
        match entry.place {
            Place::Active => {
                self.active.remove(&(entry.rank.clone(), name));
            }
            Place::BackOff(until, patience) => {
                if patience == Patience::Hopeful {
                    self.hopeful.remove(&(entry.rank.clone(), name.clone()));
                }
                self.back_off.remove(&(until, name));
            }
            Place::Resting(since) => {
                for plugin in &entry.refusers {
                    if let Some(all) = self.refused_by.get_mut(plugin) {
                        all.remove(uid);
                    }
                }
                self.resting.remove(&(since, name));
            }
            Place::Gated => _ = self.gated.remove(uid),
            Place::Out => (),
        }
        Some(entry)
    }

    fn insert(&mut self, entry: Entry) {
        let uid = entry.pod.metadata.uid.clone();
        match entry.place {
            Place::Active => {
                self.active.insert((entry.rank.clone(), uid.clone()));
            }
            Place::BackOff(until, patience) => {
                if patience == Patience::Hopeful {
                    self.hopeful.insert((entry.rank.clone(), uid.clone()));
                }
                self.back_off.insert((until, uid.clone()));
            }
            Place::Resting(since) => {
                for plugin in &entry.refusers {
                    self.refused_by.entry(plugin).or_default().insert(uid.clone());
                }
                self.resting.insert((since, uid.clone()));
            }
            Place::Gated => _ = self.gated.insert(uid.clone()),
            Place::Out => (),
        }
        self.entries.insert(uid, entry);
    }

    /// Hands out the first active pod; it stays known until put back or removed.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<Entry> {
        self.advance(now);
        let uid = self.active.first().or_else(|| self.hopeful.first())?.1.clone();
        let mut entry = self.take(&uid)?;
        entry.place = Place::Out;
        entry.attempts += 1;
        entry.last_try = Some(now);
        self.insert(entry.clone());
        Some(entry)
    }

    /// Keeps what was worked out about a pod.
    pub(super) fn note_kind(&mut self, uid: &str, kind: (u64, Arc<Kind>)) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.kind = Some(kind);
        }
    }

    /// Lays a refused pod to rest.
    pub(super) fn rest(&mut self, uid: &str, refusers: Vec<&'static str>, now: Timestamp) {
        let Some(mut entry) = self.take(uid) else { return };
        entry.refusers = refusers;
        entry.place = Place::Resting(now);
        self.insert(entry);
    }

    /// Lets a pod whose binding failed try again.
    pub(super) fn retry(&mut self, uid: &str, now: Timestamp) {
        self.hurry(uid, Patience::Strict, now);
    }

    fn hurry(&mut self, uid: &str, patience: Patience, now: Timestamp) {
        let Some(mut entry) = self.take(uid) else { return };
        entry.place = self.after_back_off(&entry, patience, now);
        self.insert(entry);
    }

    fn after_back_off(&self, entry: &Entry, patience: Patience, now: Timestamp) -> Place {
        let Some(last) = entry.last_try else { return Place::Active };
        let doublings = entry.attempts.saturating_sub(1).min(16);
        let wait = self.waits.initial.saturating_mul(1 << doublings).min(self.waits.max);
        let until = later(last, wait);
        if until <= now { Place::Active } else { Place::BackOff(until, patience) }
    }

    /// Wakes the pods that a plugin refused and that `helped` says may fit now.
    pub(super) fn wake(
        &mut self,
        plugin: &'static str,
        now: Timestamp,
        mut helped: impl FnMut(&Entry) -> bool,
    ) {
        let Some(refused) = self.refused_by.get(plugin).filter(|all| !all.is_empty()) else {
            return;
        };
        let woken: Vec<String> = refused
            .iter()
            .filter(|uid| self.entries.get(*uid).is_some_and(&mut helped))
            .cloned()
            .collect();
        woken.iter().for_each(|uid| self.hurry(uid, Patience::Hopeful, now));
    }

    /// Lets a pod be looked at now, whatever its back-off.
    pub(super) fn hasten(&mut self, uid: &str) {
        let waits = |entry: &Entry| matches!(entry.place, Place::BackOff(..) | Place::Resting(_));
        if self.entries.get(uid).is_some_and(waits) {
            self.activate(uid);
        }
    }

    /// Have pods been refused by this plugin?
    pub(super) fn has_refused(&self, plugin: &str) -> bool {
        self.refused_by.get(plugin).is_some_and(|all| !all.is_empty())
    }

    /// Moves on what time alone moves.
    fn advance(&mut self, now: Timestamp) {
        while let Some((until, uid)) = self.back_off.first().cloned()
            && until <= now
        {
            self.activate(&uid);
        }
        while let Some((since, uid)) = self.resting.first().cloned()
            && later(since, REST_MAX) <= now
        {
            self.activate(&uid);
        }
    }

    fn activate(&mut self, uid: &str) {
        if let Some(mut entry) = self.take(uid) {
            entry.place = Place::Active;
            self.insert(entry);
        }
    }

    /// When time alone will move something.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let back_off = self.back_off.first().map(|(until, _)| *until);
        let resting = self.resting.first().map(|(since, _)| later(*since, REST_MAX));
        back_off.into_iter().chain(resting).min()
    }
}
