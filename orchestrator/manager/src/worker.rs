//! One controller's loop: view, plan per key, carry out.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use control::action::{Action, Steps};
use control::controller::Controller;
use control::lifecycle::Heartbeats;
use control::view::{Key, Settings, View};
use jiff::{SignedDuration, Timestamp};
use runtime::driver::{Plan, World};
use tracing::error;

use crate::apply::{Hand, StepError};
use crate::hub::{Hub, Unseen};

/// How long a key whose planning panicked is left alone.
const POISONED: SignedDuration = SignedDuration::from_secs(60);

/// The world of one controller.
pub(crate) struct Worker {
    controller: &'static Controller,
    hub: Arc<Hub>,
    hand: Arc<Hand>,
    settings: Settings,
    heartbeats: Heartbeats,
    unseen: Unseen,
    poisoned: BTreeMap<Key, Timestamp>,
}

impl Worker {
    pub(crate) fn new(
        controller: &'static Controller,
        hub: &Arc<Hub>,
        hand: &Arc<Hand>,
        settings: Settings,
    ) -> Self {
        Self {
            controller,
            hub: Arc::clone(hub),
            hand: Arc::clone(hand),
            settings,
            heartbeats: Heartbeats::default(),
            unseen: Unseen::default(),
            poisoned: BTreeMap::new(),
        }
    }

    /// Plans for one key; a panic is a bug of ours with that object, and must not stop others.
    fn plan_key(&mut self, view: &View, key: Key, now: Timestamp) -> Steps {
        if let Some(until) = self.poisoned.get(&key) {
            if now < *until {
                return Steps { actions: Vec::new(), again_at: Some(*until) };
            }
            self.poisoned.remove(&key);
        }
        let controller = self.controller;
        let planned = catch_unwind(AssertUnwindSafe(|| controller.plan(view, &key, now)));
        planned.unwrap_or_else(|_| {
            let (ns, name) = (&key.namespace, &key.name);
            error!(controller = controller.name, ns, name, "planning panicked; set aside");
            let until = now.saturating_add(POISONED).unwrap_or(now);
            self.poisoned.insert(key, until);
            Steps { actions: Vec::new(), again_at: Some(until) }
        })
    }
}

/// Waits until then; never zero, so that a clock at rest cannot spin a loop.
pub(crate) fn wait_until(again_at: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let wait = Duration::try_from(now.duration_until(again_at?)).unwrap_or_default();
    Some(wait.max(Duration::from_millis(50)))
}

impl World for Worker {
    type Seen = (View, Timestamp);
    type Action = Action;
    type Error = StepError;

    fn name(&self) -> &str {
        self.controller.name
    }

    async fn observe(&mut self) -> Result<Self::Seen, StepError> {
        self.hub.catch_up(&mut self.unseen).await?;
        let mut view = self.hub.view(self.controller.needs, &self.settings);
        let now = Timestamp::now();
        self.heartbeats.observe(&mut view, now);
        Ok((view, now))
    }

    fn plan(&mut self, (view, now): &Self::Seen) -> Plan<Action> {
        let mut steps = Steps::none();
        for key in (self.controller.keys)(view) {
            steps.extend(self.plan_key(view, key, *now));
        }
        Plan { actions: steps.actions, again_after: wait_until(steps.again_at, *now) }
    }

    async fn apply(&mut self, action: &Action) -> Result<(), StepError> {
        let pending = self.hand.carry_out(self.controller.name, action).await?;
        self.unseen.extend(pending);
        Ok(())
    }

    async fn apply_all(&mut self, actions: Vec<Action>) -> usize {
        let results = self.hand.carry_out_all(self.controller.name, &actions).await;
        let mut failures = 0;
        for result in results {
            match result {
                Ok(pending) => self.unseen.extend(pending),
                Err(()) => failures += 1,
            }
        }
        failures
    }
}
