//! The scheduler's loop, with the pods it has placed but not yet seen placed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::action::{Action, Note};
use control::scheduler;
use control::view::{Settings, View};
use jiff::Timestamp;
use objects::kind::{self, Kind};
use runtime::driver::{Plan, World};

use crate::apply::{Hand, StepError};
use crate::hub::{Hub, Unseen};
use crate::worker::wait_until;

/// What the scheduler looks at.
pub(crate) const NEEDS: &[&Kind] = &[&kind::POD, &kind::NODE, &kind::NAMESPACE];
/// How long a binding may stay unseen before the pod is looked at anew.
const ASSUMED_MAX: Duration = Duration::from_secs(30);
/// Our name in events.
const NAME: &str = "default-scheduler";

/// The scheduler's world.
pub(crate) struct Scheduling {
    hub: Arc<Hub>,
    hand: Arc<Hand>,
    settings: Settings,
    /// Node and time of each binding that the view does not show yet, by pod uid.
    assumed: BTreeMap<String, (String, Instant)>,
    unseen: Unseen,
}

impl Scheduling {
    pub(crate) fn new(hub: &Arc<Hub>, hand: &Arc<Hand>, settings: Settings) -> Self {
        Self {
            hub: Arc::clone(hub),
            hand: Arc::clone(hand),
            settings,
            assumed: BTreeMap::new(),
            unseen: Unseen::default(),
        }
    }

    /// Forgets bindings that the view shows, and those that never came true.
    fn settle_assumed(&mut self, view: &View) {
        if self.assumed.is_empty() {
            return;
        }
        let waiting = view.pods.iter().filter(|pod| !pod.is_bound());
        let waiting: std::collections::BTreeSet<&str> =
            waiting.map(|pod| pod.metadata.uid.as_str()).collect();
        self.assumed
            .retain(|uid, (_, at)| waiting.contains(uid.as_str()) && at.elapsed() < ASSUMED_MAX);
    }
}

impl World for Scheduling {
    type Seen = (View, Timestamp);
    type Action = Action;
    type Error = StepError;

    fn name(&self) -> &str {
        NAME
    }

    async fn observe(&mut self) -> Result<Self::Seen, StepError> {
        // Conditions are waited for; bindings are assumed instead.
        self.hub.catch_up(&mut self.unseen).await?;
        let mut view = self.hub.view(NEEDS, &self.settings);
        self.settle_assumed(&view);
        let pairs = self.assumed.iter();
        view.assumed = pairs.map(|(uid, (node, _))| (uid.clone(), node.clone())).collect();
        Ok((view, Timestamp::now()))
    }

    fn plan(&mut self, (view, now): &Self::Seen) -> Plan<Action> {
        let steps = scheduler::plan(view, *now);
        Plan { actions: steps.actions, again_after: wait_until(steps.again_at, *now) }
    }

    async fn apply(&mut self, action: &Action) -> Result<(), StepError> {
        self.unseen.extend(self.hand.carry_out(NAME, action).await?);
        Ok(())
    }

    async fn apply_all(&mut self, actions: Vec<Action>) -> usize {
        for action in &actions {
            if let Action::Bind { target, node } = action {
                self.assumed.insert(target.uid.clone(), (node.clone(), Instant::now()));
            }
        }
        let results = self.hand.carry_out_all(NAME, &actions).await;
        let mut failures = 0;
        for (action, result) in actions.iter().zip(results) {
            match (action, result) {
                (Action::Bind { target, node }, Ok(_)) => {
                    let (ns, name) = (&target.namespace, &target.name);
                    let message = format!("Successfully assigned {ns}/{name} to {node}");
                    self.hand.events.tell(NAME, &Note::normal(target, "Scheduled", message));
                }
                (Action::Bind { target, .. }, Err(())) => {
                    self.assumed.remove(&target.uid);
                    failures += 1;
                }
                (_, Ok(pending)) => self.unseen.extend(pending),
                (_, Err(())) => failures += 1,
            }
        }
        failures
    }
}
