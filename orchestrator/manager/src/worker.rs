//! One controller's loop: who must be looked at, plan per key, carry out.
//!
//! A key is looked at when something it depends on changed, when it asked for it, and at a
//! slow beat. It is left alone while the view does not show its own last writes, and for a
//! growing while after a failure; no key waits for another.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::action::{Action, Note, Steps, Target};
use control::controller::{Controller, Memory, Remembers};
use control::view::{Key, Settings, View};
use jiff::{SignedDuration, Timestamp};
use runtime::backoff::Backoff;
use runtime::driver::{Plan, World};
use tracing::error;

use crate::apply::{Hand, StepError};
use crate::hub::{Cursors, FORGIVE, Hub, Pending};
use crate::metrics::Meter;

/// How long a key whose planning panicked is left alone.
const POISONED: SignedDuration = SignedDuration::from_secs(60);
/// How often every key is looked at although nothing woke it.
const BEAT: Duration = Duration::from_secs(600);
/// How soon to look whether the view shows a write, when no change says so.
const UNSEEN: Duration = Duration::from_millis(50);
/// How soon the server is asked again about an object in doubt.
const DOUBT: Duration = Duration::from_secs(1);
/// How soon a key is looked at again when a step of it came too late. The view will show why, most
/// often at once; when it does not, nobody must knock at the server's door without a pause.
const LATE: (Duration, Duration) = (Duration::from_millis(4), Duration::from_secs(15));
/// How soon what stays true is told again: the first word of it is forgotten after an hour.
const REMIND: Duration = Duration::from_secs(900);
/// Keys planned in one round, so that the first of a flood are not held up by the last.
const KEYS: usize = 512;

/// The world of one controller.
pub(crate) struct Worker {
    controller: &'static Controller,
    hub: Arc<Hub>,
    hand: Arc<Hand>,
    settings: Settings,
    meter: Arc<Meter>,
    memory: Memory,
    cursors: Cursors,
    /// Keys to look at, with the time since when they are not as wanted.
    dirty: BTreeMap<Key, Instant>,
    /// Writes of keys that the view may not show yet.
    unseen: BTreeMap<Key, (Vec<Pending>, Instant)>,
    /// Objects of which nobody knows whether a write of ours reached them: the answer was lost.
    doubts: Vec<(Key, Target)>,
    /// Keys that asked to be looked at.
    timers: BTreeSet<(Timestamp, Key)>,
    asked: BTreeMap<Key, Timestamp>,
    /// Keys that failed.
    failed: BTreeMap<Key, (Backoff, Instant)>,
    /// What the server said when it refused to make something for a key.
    refused: BTreeMap<Key, String>,
    /// What was told of keys, by reason and message, and when.
    told: BTreeMap<Key, BTreeMap<(&'static str, String), Instant>>,
    beat: Option<Instant>,
    /// Keys of this round.
    round: Vec<Key>,
    /// Are there keys left that this round had no room for?
    more: bool,
}

impl Worker {
    pub(crate) fn new(
        controller: &'static Controller,
        hub: &Arc<Hub>,
        hand: &Arc<Hand>,
        settings: Settings,
        meter: Arc<Meter>,
    ) -> Self {
        Self {
            controller,
            hub: Arc::clone(hub),
            hand: Arc::clone(hand),
            settings,
            meter,
            memory: Memory::default(),
            cursors: Cursors::default(),
            dirty: BTreeMap::new(),
            unseen: BTreeMap::new(),
            doubts: Vec::new(),
            timers: BTreeSet::new(),
            asked: BTreeMap::new(),
            failed: BTreeMap::new(),
            refused: BTreeMap::new(),
            told: BTreeMap::new(),
            beat: None,
            round: Vec::new(),
            more: false,
        }
    }

    /// Plans for one key; a panic is a bug of ours with that object, and must not stop others.
    fn plan_key(&self, view: &View, key: &Key, now: Timestamp) -> Steps {
        let controller = self.controller;
        let planned = catch_unwind(AssertUnwindSafe(|| controller.plan(view, key, now)));
        planned.unwrap_or_else(|_| {
            let (ns, name) = (&key.namespace, &key.name);
            error!(controller = controller.name, ns, name, "planning panicked; set aside");
            self.meter.failed(1);
            let until = now.saturating_add(POISONED).unwrap_or(now);
            Steps { again_at: Some(until), ..Steps::none() }
        })
    }

    /// Tells what is true of a key: when it becomes so, and again now and then while it stays so.
    ///
    /// Only puts words into a queue that never waits, so it may be done while planning.
    fn tell(&mut self, key: &Key, notes: Vec<Note>) {
        let before = self.told.remove(key).unwrap_or_default();
        let mut now = BTreeMap::new();
        for note in notes {
            let word = (note.reason, note.message.clone());
            let at = before.get(&word).copied().filter(|at| at.elapsed() < REMIND);
            let at = at.unwrap_or_else(|| {
                self.hand.events.tell(self.controller.name, &note);
                Instant::now()
            });
            now.insert(word, at);
        }
        if !now.is_empty() {
            self.told.insert(key.clone(), now);
        }
    }

    /// Remembers when a key wants to be looked at; an earlier wish is replaced.
    fn ask(&mut self, key: &Key, at: Option<Timestamp>) {
        if let Some(had) = self.asked.remove(key) {
            self.timers.remove(&(had, key.clone()));
        }
        if let Some(at) = at {
            self.asked.insert(key.clone(), at);
            self.timers.insert((at, key.clone()));
        }
    }

    /// Moves keys whose time has come to those to look at.
    fn ring(&mut self, now: Timestamp) {
        while let Some((at, key)) = self.timers.pop_first() {
            if at > now {
                self.timers.insert((at, key));
                return;
            }
            self.asked.remove(&key);
            self.dirty.entry(key).or_insert_with(Instant::now);
        }
    }

    /// May the key be planned now?
    fn is_free(&self, key: &Key, now: Instant) -> bool {
        let waits = if self.controller.serial {
            !self.unseen.is_empty() || !self.doubts.is_empty()
        } else {
            self.unseen.contains_key(key)
        };
        !waits && self.failed.get(key).is_none_or(|(_, until)| now >= *until)
    }

    /// Forgets writes that the view shows by now.
    fn settle(&mut self) {
        let hub = &self.hub;
        self.unseen.retain(|_, (writes, since)| {
            writes.retain(|one| !hub.shows(one));
            // A view that far behind has been made anew.
            !writes.is_empty() && since.elapsed() < FORGIVE
        });
    }

    /// When to look again without being woken.
    fn pause(&self, now: Timestamp) -> Duration {
        let mut pause = self.beat.map_or(BEAT, |at| BEAT.saturating_sub(at.elapsed()));
        if let Some((at, _)) = self.timers.first() {
            pause = pause.min(wait_until(Some(*at), now).unwrap_or(pause));
        }
        if !self.unseen.is_empty() {
            pause = pause.min(UNSEEN);
        }
        if !self.doubts.is_empty() {
            pause = pause.min(DOUBT);
        }
        let instant = Instant::now();
        for (key, (_, until)) in &self.failed {
            if self.dirty.contains_key(key) {
                pause = pause.min(until.saturating_duration_since(instant));
            }
        }
        if !self.hub.settled(self.controller) {
            pause = pause.min(UNSEEN);
        } else if self.dirty.keys().any(|key| self.is_free(key, instant)) {
            pause = Duration::ZERO;
        }
        pause.max(Duration::from_millis(1))
    }
}

/// Waits until then; never zero, so that a clock at rest cannot spin a loop.
pub(crate) fn wait_until(again_at: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let wait = Duration::try_from(now.duration_until(again_at?)).unwrap_or_default();
    Some(wait.max(Duration::from_millis(50)))
}

impl World for Worker {
    type Seen = (View, Timestamp);
    type Action = (Key, Action);
    type Error = StepError;

    fn name(&self) -> &str {
        self.controller.name
    }

    async fn observe(&mut self) -> Result<Self::Seen, StepError> {
        // In this order: the view is at least as new as the news, and as the writes it shows.
        let news = self.hub.news(self.controller, &mut self.cursors);
        self.settle();
        self.resolve().await;
        let mut view = self.hub.view_of(self.controller, &self.settings);
        view.refused.clone_from(&self.refused);
        self.hand.look_around(self.controller, &mut view).await;
        let now = Timestamp::now();
        let woken = self.controller.wake(&mut view, &news, &mut self.memory, now);
        if self.controller.remembers == Remembers::Heartbeats {
            self.meter.count_zones(self.memory.zones());
        }
        let instant = Instant::now();
        for key in woken {
            self.dirty.entry(key).or_insert(instant);
        }
        if self.beat.is_none_or(|at| at.elapsed() >= BEAT) {
            self.beat = Some(instant);
            for key in (self.controller.keys)(&view) {
                self.dirty.entry(key).or_insert(instant);
            }
        }
        self.ring(now);
        let most = if self.hub.settled(self.controller) { KEYS } else { 0 };
        let mut free = self.dirty.keys().filter(|key| self.is_free(key, instant));
        let round: Vec<Key> = free.by_ref().take(most).cloned().collect();
        let more = !round.is_empty() && free.next().is_some();
        (self.round, self.more) = (round, more);
        Ok((view, now))
    }

    fn plan(&mut self, (view, now): &Self::Seen) -> Plan<(Key, Action)> {
        let mut actions = Vec::new();
        for key in std::mem::take(&mut self.round) {
            let steps = self.plan_key(view, &key, *now);
            self.tell(&key, steps.notes);
            self.ask(&key, steps.again_at);
            // What the server may refuse is asked again when the key wants it, not at once.
            if steps.actions.iter().all(Action::may_be_refused) {
                // Who wants nothing more must say so once more.
                if self.refused.remove(&key).is_none() {
                    self.dirty.remove(&key);
                }
                self.failed.remove(&key);
            }
            actions.extend(steps.actions.into_iter().map(|action| (key.clone(), action)));
        }
        self.meter.round(actions.len(), self.dirty.values().min().copied());
        let again_after = match actions.is_empty() {
            // The rest of a flood is not held up by gathering the echoes of this round.
            _ if self.more => Duration::ZERO,
            true => self.pause(*now),
            // After writes the keys are looked at again as soon as the view shows them.
            false => Duration::from_millis(1),
        };
        Plan { actions, again_after: Some(again_after) }
    }

    async fn apply(&mut self, (key, action): &(Key, Action)) -> Result<(), StepError> {
        let pending = self.hand.carry_out(self.controller.name, action).await?;
        if pending.is_none() && tells_success(action) {
            self.hold(key, Backoff::new(LATE.0, LATE.1));
        }
        self.wait_for(key, pending);
        Ok(())
    }

    async fn apply_all(&mut self, actions: Vec<(Key, Action)>) -> usize {
        let (keys, actions): (Vec<Key>, Vec<Action>) = actions.into_iter().unzip();
        let results = self.hand.carry_out_all(self.controller.name, &actions).await;
        let (mut fell, mut late) = (BTreeSet::new(), BTreeSet::new());
        for ((key, action), result) in keys.iter().zip(&actions).zip(results) {
            match result {
                Ok(None) if tells_success(action) => _ = late.insert(key),
                Ok(pending) => self.wait_for(key, pending),
                Err(why) => {
                    self.doubt(key, action, why.is_none());
                    self.meter.failed(1);
                    fell.insert(key);
                    if let (Action::Create { .. }, Some(why)) = (action, why) {
                        self.refused.insert(key.clone(), why);
                    }
                }
            }
        }
        let made = |(_, action): &(&Key, &Action)| matches!(action, Action::Create { .. });
        for (key, _) in keys.iter().zip(&actions).filter(made) {
            if !fell.contains(key) {
                self.refused.remove(key);
            }
        }
        let well = |key: &&Key| !fell.contains(key) && !late.contains(key);
        keys.iter().filter(well).for_each(|key| _ = self.failed.remove(key));
        fell.iter().for_each(|key| self.hold(key, Backoff::default()));
        late.difference(&fell).for_each(|key| self.hold(key, Backoff::new(LATE.0, LATE.1)));
        // Failures hold up their own keys alone.
        0
    }
}

/// Does the step, when it succeeds, say what the view will show?
const fn tells_success(action: &Action) -> bool {
    matches!(
        action,
        Action::Create { .. }
            | Action::Patch { .. }
            | Action::Replace { .. }
            | Action::Delete { .. }
    )
}

impl Worker {
    /// Notes that a write may have been done although no answer came. Only who gives away what
    /// there is once must know; all others may do the same thing again.
    fn doubt(&mut self, key: &Key, action: &Action, unanswered: bool) {
        if let Some(target) = action.target().filter(|_| self.controller.serial && unanswered) {
            self.doubts.push((key.clone(), target.clone()));
        }
    }

    /// Asks the server how objects in doubt are, and waits for the view to show that.
    async fn resolve(&mut self) {
        for (key, target) in std::mem::take(&mut self.doubts) {
            match self.hand.stand(&target).await {
                Ok(pending) => self.wait_for(&key, pending),
                Err(_) => self.doubts.push((key, target)),
            }
        }
    }

    /// Leaves a key alone for a while, longer each time until nothing is wrong with it.
    fn hold(&mut self, key: &Key, backoff: Backoff) {
        let entry = self.failed.entry(key.clone());
        let (backoff, until) = entry.or_insert_with(|| (backoff, Instant::now()));
        *until = Instant::now() + backoff.step();
    }

    /// Holds a key until the view shows a write; kinds it does not look at cannot show any.
    fn wait_for(&mut self, key: &Key, pending: Option<Pending>) {
        let Some(pending) = pending else { return };
        if self.controller.looks_at(pending.kind()) {
            let entry = self.unseen.entry(key.clone());
            entry.or_insert_with(|| (Vec::new(), Instant::now())).0.push(pending);
        }
    }
}
