//! The scheduler, told what happens as late as anyone, and asked for one decision at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use control::action::Action;
use control::scheduler::{Config, Decision, Event, Scheduler};
use control::view::Key;
use objects::node::Node;
use objects::pod::{Pod, Toleration};

use crate::actor::{Change, Sight, horizon};
use crate::dice::Dice;
use crate::server::Server;

/// What refers to others is told after them.
const ORDER: [&str; 7] = [
    "namespaces",
    "storageclasses",
    "persistentvolumes",
    "persistentvolumeclaims",
    "poddisruptionbudgets",
    "nodes",
    "pods",
];

/// The scheduler at work.
pub(crate) struct Planner {
    scheduler: Scheduler,
    sight: Sight,
    /// Bindings that were answered, and whose answer is still under way.
    answers: BTreeMap<String, bool>,
    seed: u64,
}

fn event(change: &Change<'_>, events: &mut Vec<Event>) {
    let (ns, name) = (&change.written.key.namespace, &change.written.key.name);
    macro_rules! told {
        ($is:expr, $gone:expr) => {
            match &change.written.object {
                Some((any, _)) => Arc::clone(any).downcast().ok().map($is),
                None => Some($gone),
            }
        };
    }
    let one = match change.written.kind.plural {
        "namespaces" => told!(Event::Namespace, Event::NamespaceGone(name.clone())),
        "storageclasses" => told!(Event::StorageClass, Event::StorageClassGone(name.clone())),
        "persistentvolumes" => told!(Event::Volume, Event::VolumeGone(name.clone())),
        "persistentvolumeclaims" => {
            told!(Event::Claim, Event::ClaimGone(ns.clone(), name.clone()))
        }
        "poddisruptionbudgets" => {
            told!(Event::Budget, Event::BudgetGone(ns.clone(), name.clone()))
        }
        "nodes" => told!(Event::Node, Event::NodeGone(name.clone())),
        _ => {
            // Another pod of the same name is another pod.
            let after = change.written.object.as_ref().map(|(_, seen)| &seen.meta().uid);
            let uid = change.before.as_ref().map(|(_, seen)| seen.meta().uid.clone());
            if let Some(uid) = uid.filter(|uid| after != Some(uid)) {
                events.push(Event::PodGone(uid));
            }
            let pod = change.written.object.as_ref();
            pod.and_then(|(any, _)| Arc::clone(any).downcast().ok()).map(Event::Pod)
        }
    };
    events.extend(one);
}

impl Planner {
    pub(crate) fn new(seed: u64) -> Self {
        let scheduler = Scheduler::new(Config::named("default-scheduler"), seed);
        Self { scheduler, sight: Sight::default(), answers: BTreeMap::new(), seed }
    }

    /// The process ends and begins again with a list of what is true now.
    pub(crate) fn crash(&mut self, server: &Server) {
        *self = Self::new(self.seed.wrapping_add(1));
        self.see(server, None);
    }

    pub(crate) fn see(&mut self, server: &Server, mut dice: Option<&mut Dice>) {
        let mut changes = Vec::new();
        for plural in ORDER {
            let until = horizon(server, dice.as_deref_mut(), 20);
            self.sight.look(server, plural, until, &mut changes);
        }
        let mut events = Vec::new();
        for change in &changes {
            event(change, &mut events);
        }
        for event in events {
            self.scheduler.apply(event, server.now);
        }
        for (uid, success) in std::mem::take(&mut self.answers) {
            self.scheduler.bound(&uid, success, server.now);
        }
    }

    /// Takes one decision; `false` when there was none to take.
    pub(crate) fn round(&mut self, server: &mut Server, dice: &mut Dice, falls: bool) -> bool {
        let Some(decision) = self.scheduler.next(server.now) else { return false };
        server.who = "scheduler";
        match decision {
            Decision::Bind { uid, before, bind, .. } => {
                self.hold_to_view(server, &bind);
                for step in &before {
                    server.carry_out(step);
                }
                if falls && dice.once_in(40) {
                    server.say(|| "falls before a binding".to_owned());
                    self.crash(server);
                    return true;
                }
                let success = server.carry_out(&bind).is_some();
                if falls && dice.once_in(40) {
                    server.say(|| "falls after a binding".to_owned());
                    self.crash(server);
                    return true;
                }
                self.answers.insert(uid, success);
            }
            Decision::Prepare { steps, .. } | Decision::Tell(steps) => {
                for step in &steps {
                    server.carry_out(step);
                }
            }
        }
        true
    }

    /// A node that the scheduler knows to be closed gets nothing.
    fn hold_to_view(&self, server: &mut Server, bind: &Action) {
        let Action::Bind { target, node } = bind else { return };
        let place = self.sight.find::<Node>("nodes", &Key::new("", node));
        let key = Key::new(&target.namespace, &target.name);
        let Some(pod) = self.sight.find::<Pod>("pods", &key) else { return };
        // As the pods of daemon sets do, and go on to do when they have lost their set.
        let bears = |one: &Toleration| one.key == "node.kubernetes.io/unschedulable";
        let goes_anywhere = pod.spec.tolerations.iter().any(bears);
        if place.is_none_or(|one| one.spec.unschedulable && !goes_anywhere) {
            let why =
                format!("pod {} was bound to {node}, closed or gone to its eyes", target.name);
            server.rules.broken.push(why);
        }
    }
}
