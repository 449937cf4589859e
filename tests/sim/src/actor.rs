//! One controller with its own view of the server, which may lag, skip and go back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use control::action::Action;
use control::controller::{Controller, Memory, News};
use control::view::{Key, Settings, View};
use control::view_kinds;
use control::wake::{Seen, Touch};
use jiff::Timestamp;
use objects::Kind;
use objects::meta::Object;

use crate::dice::Dice;
use crate::server::{Server, Written};

/// A controller at work.
pub(crate) struct Actor {
    pub(crate) controller: &'static Controller,
    pub(crate) view: View,
    /// What the view holds, for the sides of changes.
    held: BTreeMap<(&'static Kind, Key), Arc<dyn Seen>>,
    /// How much of the history the view shows.
    pub(crate) seen: usize,
    memory: Memory,
    pub(crate) dirty: BTreeSet<Key>,
    timers: BTreeMap<Key, Timestamp>,
    /// What the view must show before a key is planned again.
    unseen: BTreeMap<Key, usize>,
}

/// Puts one write into a view.
pub(crate) fn show(view: &mut View, written: &Written) {
    let Written { kind, key, object } = written;
    macro_rules! by_kind {
        ($($field:ident: $type:ty,)*) => {
            $(if <$type as Object>::KIND == *kind {
                let typed = object.as_ref().and_then(|(any, _)| Arc::clone(any).downcast::<$type>().ok());
                view.$field.put(&key.namespace, &key.name, typed);
            })*
        };
    }
    view_kinds!(by_kind);
    if kind.kind == "Pod" {
        view.index = Arc::default();
    }
}

impl Actor {
    pub(crate) fn new(controller: &'static Controller, settings: &Settings) -> Self {
        Self {
            controller,
            view: View { settings: settings.clone(), ..View::default() },
            held: BTreeMap::new(),
            seen: 0,
            memory: Memory::default(),
            dirty: BTreeSet::new(),
            timers: BTreeMap::new(),
            unseen: BTreeMap::new(),
        }
    }

    /// The process ends and begins again, with a view of an earlier time.
    pub(crate) fn crash(&mut self, server: &Server, back_to: usize) {
        let settings = self.view.settings.clone();
        *self = Self::new(self.controller, &settings);
        self.see(server, back_to);
        self.dirty.extend((self.controller.keys)(&self.view));
    }

    /// Takes in the history up to a revision; what lies between is skipped over.
    pub(crate) fn see(&mut self, server: &Server, until: usize) {
        let mut latest: BTreeMap<(&'static Kind, Key), &Written> = BTreeMap::new();
        for written in server.log.iter().take(until).skip(self.seen) {
            if self.controller.looks_at(written.kind) {
                latest.insert((written.kind, written.key.clone()), written);
            }
        }
        self.seen = self.seen.max(until);
        let mut news = News::default();
        for (place, written) in latest {
            show(&mut self.view, written);
            let after = written.object.as_ref().map(|(_, seen)| Arc::clone(seen));
            let before = match &after {
                Some(after) => self.held.insert(place.clone(), Arc::clone(after)),
                None => self.held.remove(&place),
            };
            if before.is_none() && after.is_none() {
                continue;
            }
            let (kind, key) = place;
            news.touches.push(Touch { kind, key, before, after });
        }
        let woken = self.controller.wake(&mut self.view, &news, &mut self.memory, server.now);
        self.dirty.extend(woken);
        let seen = self.seen;
        self.unseen.retain(|_, revision| *revision > seen);
    }

    /// Keys whose time has come.
    pub(crate) fn ring(&mut self, now: Timestamp) {
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
        let free: Vec<Key> =
            self.dirty.iter().filter(|key| !self.unseen.contains_key(*key)).cloned().collect();
        if free.is_empty() {
            return false;
        }
        let Some(key) = free.get(dice.below(free.len())).cloned() else { return false };
        let steps = self.controller.plan(&self.view, &key, server.now);
        match steps.again_at {
            Some(at) => _ = self.timers.insert(key.clone(), at),
            None => _ = self.timers.remove(&key),
        }
        if steps.actions.is_empty() {
            self.dirty.remove(&key);
            return true;
        }
        for action in &steps.actions {
            if falls && dice.once_in(40) {
                let back = self.seen.saturating_sub(dice.below(30));
                self.crash(server, back);
                return true;
            }
            if let Some(pending) = server.carry_out(action) {
                let seen = self.unseen.entry(key.clone()).or_default();
                *seen = (*seen).max(pending.0);
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
