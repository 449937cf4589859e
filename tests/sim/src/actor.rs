//! One controller with its own views of the server, which may lag, skip and go back.
//!
//! There is a view for each kind, as in life: one may be older than another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use control::action::Action;
use control::controller::{Controller, Memory, News, Remembers};
use control::scaling::Observed;
use control::view::{Index, Key, PodIndex, Settings, View};
use control::view_kinds;
use control::wake::{Seen, Touch};
use jiff::Timestamp;
use objects::meta::Object;
use objects::pod::Pod;

use crate::agent;
use crate::dice::Dice;
use crate::rule::Restarts;
use crate::server::{Pending, Server, Typed, Written};

type Spot = (&'static str, Key);

/// How far a view of each kind has come, and what it holds.
#[derive(Default)]
pub(crate) struct Sight {
    seen: BTreeMap<&'static str, usize>,
    held: BTreeMap<Spot, Typed>,
}

/// One object as a view sees it change.
pub(crate) struct Change<'a> {
    pub(crate) written: &'a Written,
    pub(crate) before: Option<Typed>,
}

impl Sight {
    /// Takes in the history of a kind up to a revision; what lies between is skipped over.
    pub(crate) fn look<'a>(
        &mut self,
        server: &'a Server,
        plural: &'static str,
        until: usize,
        changes: &mut Vec<Change<'a>>,
    ) {
        let Some(revisions) = server.revisions.get(plural) else { return };
        let seen = self.seen.entry(plural).or_default();
        let from = revisions.partition_point(|one| one <= seen);
        *seen = until.max(*seen);
        let mut latest: BTreeMap<&Key, &Written> = BTreeMap::new();
        for revision in revisions.iter().skip(from).take_while(|one| **one <= until) {
            if let Some(written) = server.log.get(revision - 1) {
                latest.insert(&written.key, written);
            }
        }
        for (key, written) in latest {
            let spot = (plural, key.clone());
            let before = match &written.object {
                Some(typed) => self.held.insert(spot, typed.clone()),
                None => self.held.remove(&spot),
            };
            if before.is_some() || written.object.is_some() {
                changes.push(Change { written, before });
            }
        }
    }

    /// Does the view show a write?
    pub(crate) fn shows(&self, pending: &Pending) -> bool {
        self.seen.get(pending.kind.plural).is_some_and(|seen| *seen >= pending.revision)
    }

    /// One object of the view.
    pub(crate) fn find<T: 'static + Send + Sync>(
        &self,
        plural: &'static str,
        key: &Key,
    ) -> Option<Arc<T>> {
        let (any, _) = self.held.get(&(plural, key.clone()))?;
        Arc::clone(any).downcast().ok()
    }
}

/// Where each kind's view stands: behind the head by chance, or at it.
pub(crate) fn horizon(server: &Server, dice: Option<&mut Dice>, most: usize) -> usize {
    let head = server.head();
    dice.map_or(head, |dice| head.saturating_sub(dice.below(most)))
}

/// A controller at work.
pub(crate) struct Actor {
    pub(crate) controller: &'static Controller,
    pub(crate) view: View,
    /// The pods of the view by what they belong to, kept change by change.
    pods: PodIndex,
    looks: Vec<&'static str>,
    sight: Sight,
    memory: Memory,
    pub(crate) dirty: BTreeSet<Key>,
    pub(crate) timers: BTreeMap<Key, Timestamp>,
    /// What the view must show before a key is planned again.
    unseen: BTreeMap<Key, Vec<Pending>>,
}

/// Puts one write into a view.
fn show(view: &mut View, written: &Written) {
    let Written { kind, key, object } = written;
    macro_rules! by_kind {
        ($($field:ident: $type:ty,)*) => {
            $(if <$type as Object>::KIND.plural == kind.plural {
                let typed = object.as_ref().and_then(|(any, _)| Arc::clone(any).downcast::<$type>().ok());
                view.$field.put(&key.namespace, &key.name, typed);
            })*
        };
    }
    view_kinds!(by_kind);
}

fn plurals() -> Vec<&'static str> {
    let mut all = Vec::new();
    macro_rules! every {
        ($($field:ident: $type:ty,)*) => { $(all.push(<$type as Object>::KIND.plural);)* };
    }
    view_kinds!(every);
    all
}

impl Actor {
    pub(crate) fn new(controller: &'static Controller, settings: &Settings) -> Self {
        let needs = controller.needs.iter().map(|(kind, _)| kind.plural);
        let mut looks: Vec<&'static str> = needs.collect();
        if looks.is_empty() {
            looks = plurals();
        }
        Self {
            controller,
            view: View { settings: settings.clone(), ..View::default() },
            pods: PodIndex::default(),
            looks,
            sight: Sight::default(),
            memory: Memory::default(),
            dirty: BTreeSet::new(),
            timers: BTreeMap::new(),
            unseen: BTreeMap::new(),
        }
    }

    /// The process ends and begins again, with views of now or of an earlier time.
    pub(crate) fn crash(&mut self, server: &Server, dice: &mut Dice) {
        let settings = self.view.settings.clone();
        *self = Self::new(self.controller, &settings);
        // Those who give away what there is once must know what they gave.
        let old = server.rules.restarts == Restarts::Old && !self.controller.serial;
        self.see(server, old.then_some(dice), 60);
        self.dirty.extend((self.controller.keys)(&self.view));
    }

    /// Takes in some of the history: all of it without dice.
    pub(crate) fn see(&mut self, server: &Server, mut dice: Option<&mut Dice>, most: usize) {
        let mut changes = Vec::new();
        for plural in &self.looks {
            let until = horizon(server, dice.as_deref_mut(), most);
            self.sight.look(server, plural, until, &mut changes);
        }
        self.index(&changes);
        let mut news = News::default();
        for Change { written, before } in changes {
            // Who needs nothing in particular reads the graph alone.
            if !self.controller.needs.is_empty() {
                show(&mut self.view, written);
            }
            let side = |typed: Option<&Typed>| -> Option<Arc<dyn Seen>> {
                typed.map(|(_, seen)| Arc::clone(seen))
            };
            news.touches.push(Touch {
                kind: written.kind,
                key: written.key.clone(),
                before: side(before.as_ref()),
                after: side(written.object.as_ref()),
            });
        }
        if self.controller.remembers == Remembers::Scaling && !self.view.autoscalers.is_empty() {
            let usage = agent::usage(server);
            self.view.observed = Arc::new(Observed { usage, ..Observed::default() });
        }
        let woken = self.controller.wake(&mut self.view, &news, &mut self.memory, server.now);
        self.dirty.extend(woken);
        let sight = &self.sight;
        self.unseen.retain(|_, writes| {
            writes.retain(|one| !sight.shows(one));
            !writes.is_empty()
        });
    }

    /// Notes where pods belong now.
    fn index(&mut self, changes: &[Change<'_>]) {
        // The view's own hold on the index would make every note a copy.
        self.view.index = Arc::default();
        let pod = |typed: Option<&Typed>| -> Option<Arc<Pod>> {
            typed.and_then(|(any, _)| Arc::clone(any).downcast().ok())
        };
        for change in changes.iter().filter(|one| one.written.kind.plural == "pods") {
            let (before, after) = (change.before.as_ref(), change.written.object.as_ref());
            self.pods.note(pod(before).as_ref(), pod(after).as_ref());
        }
        self.view.index = Arc::new(Index::from(self.pods.clone()));
    }

    /// Keys whose time has come.
    fn ring(&mut self, now: Timestamp) {
        let due: Vec<Key> =
            self.timers.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.timers.remove(&key);
            self.dirty.insert(key);
        }
    }

    /// Plans for one key that may be planned, carries the steps out, may fall in between.
    /// `false` when there was nothing to do.
    pub(crate) fn round(&mut self, server: &mut Server, dice: &mut Dice, falls: bool) -> bool {
        self.ring(server.now);
        if self.controller.serial && !self.unseen.is_empty() {
            return false;
        }
        let free: Vec<&Key> =
            self.dirty.iter().filter(|key| !self.unseen.contains_key(*key)).collect();
        let Some(key) = free.get(dice.below(free.len())).map(|key| Key::clone(key)) else {
            return false;
        };
        let steps = self.controller.plan(&self.view, &key, server.now);
        match steps.again_at {
            Some(at) => _ = self.timers.insert(key.clone(), at),
            None => _ = self.timers.remove(&key),
        }
        // What the server may refuse is asked again when the key wants it, not at once.
        if steps.actions.iter().all(Action::may_be_refused) {
            self.dirty.remove(&key);
        }
        server.who = self.controller.name;
        for action in &steps.actions {
            if falls && dice.once_in(40) {
                server.say(|| "falls".to_owned());
                self.crash(server, dice);
                return true;
            }
            let done = server.carry_out(action);
            // The answer is lost, and what was done with it. Who gives away what there is once asks
            // the server again; others do what the view then wants, which may be once too often.
            let may_lose = server.rules.restarts == Restarts::Old && !self.controller.serial;
            if falls && may_lose && done.is_some() && dice.once_in(60) {
                server.say(|| "an answer is lost".to_owned());
                continue;
            }
            if done.is_none() {
                server.say(|| format!("too late: {}", name_of(action)));
            }
            let Some(pending) = done else { continue };
            if self.looks.contains(&pending.kind.plural) {
                self.unseen.entry(key.clone()).or_default().push(pending);
            }
        }
        true
    }

    /// Everything the controller would do now, about every key.
    pub(crate) fn wishes(&self, now: Timestamp) -> Vec<Action> {
        let keys = (self.controller.keys)(&self.view);
        keys.iter().flat_map(|key| self.controller.plan(&self.view, key, now).actions).collect()
    }
}

fn name_of(action: &Action) -> String {
    let text = format!("{action:?}");
    let verb: String = text.chars().take_while(|one| one.is_alphanumeric()).collect();
    let target = action.target();
    let name = target.map_or(String::new(), |one| format!("{}/{}", one.namespace, one.name));
    format!("{verb} {name}")
}
