//! What is done about the next pod, and what people are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use objects::condition::{Condition, find_condition, set_condition};
use objects::kind;
use objects::pod::Pod;
use serde_json::{Value, json};

use super::class::{Class, FEASIBLE, number};
use super::config::{Config, Profile};
use super::cycle::{
    Attempt, Cure, Filtered, Nominations, choose, filter, fits, reasons, refusal, sentence,
    with_nominated,
};
use super::framework::{Change, Permit, Point, Refusal, Reserved};
use super::queue::Entry;
use super::snapshot::{Kind, Snapshot};
use super::topology::NodeId;
use super::{Decision, Event, NOBODY, Promise, Scheduler};
use crate::action::{Action, Note, Steps, Target};
use crate::view::View;

/// Classes kept; beyond, the one that was used longest ago goes.
const CLASSES_MAX: usize = 128;
/// How long a pod's volumes may take; upstream's.
const VOLUMES_MAX: Duration = Duration::from_secs(600);

/// Why a pod got no node.
struct Failure {
    message: String,
    refusers: Vec<&'static str>,
    cure: Option<Cure>,
    /// Is the promise of a node to be taken back?
    lost: bool,
}

impl Scheduler {
    /// Decides about the next pod; `None` when nothing is to be done now.
    pub fn next(&mut self, now: Timestamp) -> Option<Decision> {
        self.give_up_on_volumes(now);
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            let entry = self.queue.pop(now)?;
            self.rounds += 1;
            if let Some(decision) = self.look_at(&entry, now) {
                return Some(decision);
            }
        }
    }

    fn turn(&mut self) -> u64 {
        // xorshift64*: enough to take turns by.
        self.chance ^= self.chance >> 12;
        self.chance ^= self.chance << 25;
        self.chance ^= self.chance >> 27;
        self.chance.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn look_at(&mut self, entry: &Entry, now: Timestamp) -> Option<Decision> {
        let pod = &entry.pod;
        let profile = self.config.profile(&pod.spec.scheduler_name)?;
        let kind = self.kind_of(entry);
        let mut class = self.class(&kind, profile);
        let found = self.place(&mut class, pod, profile);
        let decision = match found {
            Ok(node) => self.assume(pod, &kind, profile, node, now),
            Err(failure) => {
                let uid = &pod.metadata.uid;
                let refusers = failure.refusers.clone();
                let decision = self.fail(pod, failure, now);
                self.queue.rest(uid, refusers, now);
                decision
            }
        };
        self.classes.push(class);
        decision
    }

    fn kind_of(&mut self, entry: &Entry) -> Arc<Kind> {
        if let Some((generation, kind)) = &entry.kind
            && *generation == self.snapshot.generation
        {
            return Arc::clone(kind);
        }
        let kind = self.snapshot.kind(&entry.pod);
        let known = (self.snapshot.generation, Arc::clone(&kind));
        self.queue.note_kind(&entry.pod.metadata.uid, known);
        kind
    }

    /// Takes a kind's class out of the store, or makes it.
    fn class(&mut self, kind: &Arc<Kind>, profile: usize) -> Class {
        if self.classes_generation != self.snapshot.generation {
            self.classes.clear();
            self.classes_generation = self.snapshot.generation;
        }
        let known = self
            .classes
            .iter()
            .position(|one| one.profile == profile && Arc::ptr_eq(&one.kind, kind));
        let mut class = match known {
            Some(at) => self.classes.swap_remove(at),
            None => {
                if self.classes.len() >= CLASSES_MAX
                    && let Some((at, _)) =
                        self.classes.iter().enumerate().min_by_key(|(_, one)| one.used)
                {
                    self.classes.swap_remove(at);
                }
                let own = self.config.profiles.get(profile);
                let spread = own.map(|own| own.spread_of(&kind.needs)).unwrap_or_default();
                let questions = self.snapshot.questions(kind, &spread);
                Class::new(kind, profile, questions)
            }
        };
        class.used = self.rounds;
        class
    }

    /// Finds a pod's node.
    fn place(
        &mut self,
        class: &mut Class,
        pod: &Arc<Pod>,
        profile: usize,
    ) -> Result<NodeId, Failure> {
        let turn = self.turn();
        let failed = |message: &str| Failure {
            message: message.to_owned(),
            refusers: vec![NOBODY],
            cure: None,
            lost: false,
        };
        let profile = self.config.profiles.get(profile).cloned();
        let profile = profile.ok_or_else(|| failed("no such profile"))?;
        if self.snapshot.table.len() == 0 {
            return Err(failed("no nodes available to schedule pods"));
        }
        let mut filtered = match filter(&self.snapshot, class, &profile, pod) {
            Ok(filtered) => filtered,
            Err(refusal) => {
                return Err(self.refused_everywhere(class, &profile, pod, &refusal, turn));
            }
        };
        self.respect_nominations(class, &profile, pod, &mut filtered);
        let codes = filtered.codes.as_deref().unwrap_or(&class.codes);
        if !codes.contains(&FEASIBLE) {
            return Err(self.refused(class, &profile, pod, &filtered, turn));
        }
        choose(&self.snapshot, class, &profile, pod, filtered, turn)
            .ok_or_else(|| failed("no nodes available to schedule pods"))
    }

    /// Strikes out nodes that would be too full once the pods nominated to them are there.
    fn respect_nominations(
        &mut self,
        class: &Class,
        profile: &Profile,
        pod: &Arc<Pod>,
        filtered: &mut Filtered,
    ) {
        let Self { snapshot, nominations, .. } = self;
        // In a crowd that waits for others to leave there are few nodes to be struck out, or none.
        let codes = filtered.codes.as_deref().unwrap_or(&class.codes);
        for node in promised(snapshot, nominations, codes) {
            let Some(pods) = nominations.get(snapshot.table.name(node)) else { continue };
            if pods.len() == 1 && pods.contains_key(&pod.metadata.uid) {
                continue;
            }
            let check = with_nominated(snapshot, nominations, pod, node, |snapshot| {
                fits(snapshot, profile, pod, &class.kind, &class.questions, node)
            });
            if let Err(refusal) = check {
                let code = number(&mut filtered.refusals, refusal) + class.refusals.len();
                let codes = filtered.codes.get_or_insert_with(|| class.codes.clone());
                if let Some(place) = codes.get_mut(node) {
                    *place = code;
                }
            }
        }
    }

    fn refused_everywhere(
        &mut self,
        class: &Class,
        profile: &Profile,
        pod: &Arc<Pod>,
        refusal: &Refusal,
        turn: u64,
    ) -> Failure {
        let nodes = self.snapshot.table.len();
        let first = format!("0/{nodes} nodes are available: {}.", refusal.reasons().join(", "));
        let refusers = vec![refusal.plugin];
        self.with_cure(class, profile, pod, Vec::new(), turn, (first, refusers))
    }

    fn refused(
        &mut self,
        class: &Class,
        profile: &Profile,
        pod: &Arc<Pod>,
        filtered: &Filtered,
        turn: u64,
    ) -> Failure {
        let codes = filtered.codes.as_deref().unwrap_or(&class.codes);
        let mut refusers = Vec::new();
        let mut curable = Vec::new();
        for (node, code) in codes.iter().enumerate() {
            let Some(found) = refusal(class, &filtered.refusals, *code) else { continue };
            if !refusers.contains(&found.plugin) {
                refusers.push(found.plugin);
            }
            if found.curable {
                curable.push(node);
            }
        }
        let counts = reasons(class, codes, &filtered.refusals);
        let first = sentence(self.snapshot.table.len(), &counts);
        self.with_cure(class, profile, pod, curable, turn, (first, refusers))
    }

    /// Asks PostFilter.
    fn with_cure(
        &mut self,
        class: &Class,
        profile: &Profile,
        pod: &Arc<Pod>,
        curable: Vec<NodeId>,
        turn: u64,
        (mut message, refusers): (String, Vec<&'static str>),
    ) -> Failure {
        let mut attempt = Attempt {
            snapshot: &mut self.snapshot,
            profile,
            pod,
            kind: &class.kind,
            questions: &class.questions,
            curable,
            nominations: &self.nominations,
            turn: usize::try_from(turn).unwrap_or(0),
        };
        for one in profile.at(Point::PostFilter) {
            match one.plugin.post_filter(&mut attempt) {
                Ok(cure) => {
                    return Failure { message, refusers, cure: Some(cure), lost: false };
                }
                Err(why) if !why.is_empty() => {
                    message.push(' ');
                    message.push_str(&why);
                }
                Err(_) => (),
            }
        }
        let lost = !message.contains("terminating pod on the nominated node");
        Failure { message, refusers, cure: None, lost }
    }

    /// Reserve and Permit, then binding begins.
    fn assume(
        &mut self,
        pod: &Arc<Pod>,
        kind: &Arc<Kind>,
        profile: usize,
        node: NodeId,
        now: Timestamp,
    ) -> Option<Decision> {
        let uid = &pod.metadata.uid;
        let plugins = self.config.profiles.get(profile).cloned()?;
        let name = self.snapshot.table.name(node).to_owned();
        let reserved = Reserved { pod: Arc::clone(pod), node: name.clone(), volumes: Vec::new() };
        let mut promise = Promise { reserved, profile, until: None };
        for one in plugins.at(Point::Reserve) {
            let reserving = one.plugin.reserve(&mut self.snapshot, &mut promise.reserved, kind);
            if let Err(refusal) = reserving {
                self.unreserve(&promise);
                let nodes = self.snapshot.table.len();
                let reason = refusal.reasons().join(", ");
                let message = format!("0/{nodes} nodes are available: 1 {reason}.");
                self.queue.rest(uid, vec![refusal.plugin], now);
                return self.tell(pod, "Unschedulable", &message, None, now).map(Decision::Tell);
            }
        }
        self.snapshot.add_pod(pod, kind, &name);
        self.nominate(pod, "");
        self.wake(&Change::PodPlaced(Arc::clone(pod)), now);
        let waits = plugins
            .at(Point::Permit)
            .iter()
            .any(|one| one.plugin.permit(&self.snapshot, &promise.reserved) == Permit::Wait);
        let decision = if waits {
            let wait = SignedDuration::try_from(VOLUMES_MAX).unwrap_or(SignedDuration::MAX);
            promise.until = Some(now.saturating_add(wait).unwrap_or(Timestamp::MAX));
            let steps = pre_bind(&plugins, &promise.reserved);
            Some(Decision::Prepare { uid: uid.clone(), steps })
        } else {
            binding(&plugins, &promise.reserved)
        };
        self.promises.insert(uid.clone(), promise);
        decision.filter(
            |decision| !matches!(decision, Decision::Prepare { steps, .. } if steps.is_empty()),
        )
    }

    /// Lets the pods bind whose volumes are there.
    pub(super) fn permit_waiting(&mut self) {
        let Self { promises, config, snapshot, ready, .. } = self;
        for promise in promises.values_mut().filter(|promise| promise.until.is_some()) {
            let Some(profile) = config.profiles.get(promise.profile) else { continue };
            let mut all = profile.at(Point::Permit).iter();
            if all.all(|one| one.plugin.permit(snapshot, &promise.reserved) == Permit::Allow) {
                promise.until = None;
                // What was to be done before is done.
                promise.reserved.volumes.clear();
                ready.extend(binding(profile, &promise.reserved));
            }
        }
    }

    fn give_up_on_volumes(&mut self, now: Timestamp) {
        let late = self.promises.iter().filter(|(_, one)| one.until.is_some_and(|at| at <= now));
        let late: Vec<String> = late.map(|(uid, _)| uid.clone()).collect();
        late.iter().for_each(|uid| self.bound(uid, false, now));
    }

    /// Tells why a pod has no node, and carries out what may help it.
    fn fail(&mut self, pod: &Arc<Pod>, failure: Failure, now: Timestamp) -> Option<Decision> {
        let mut steps = Vec::new();
        let mut nominated = None;
        if let Some(cure) = &failure.cure {
            let node = self.snapshot.table.name(cure.node).to_owned();
            steps = self.evict(pod, cure, &node, now);
            self.demote_lesser(pod, &node, now, &mut steps);
            self.nominate(pod, &node);
            nominated = Some(node);
        } else if failure.lost && !pod.status.nominated_node_name.is_empty() {
            self.nominate(pod, "");
            nominated = Some(String::new());
        }
        let told = self.tell(pod, "Unschedulable", &failure.message, nominated.as_deref(), now);
        // Whom room is made for is written down first: a successor finds it there.
        let mut all = told.unwrap_or_default();
        all.extend(steps);
        (!all.is_empty()).then_some(Decision::Tell(all))
    }

    /// Removes victims, saying why in their status.
    fn evict(&mut self, pod: &Pod, cure: &Cure, node: &str, now: Timestamp) -> Vec<Action> {
        let mut steps = Vec::new();
        let Self { snapshot, leaving, .. } = self;
        for id in &cure.victims {
            let Some(victim) = snapshot.lodger(*id).map(|lodger| &lodger.pod) else {
                continue;
            };
            if victim.metadata.is_deleting() {
                continue;
            }
            leaving.note(&victim.metadata.uid, &pod.metadata.uid);
            let by = if pod.spec.scheduler_name.is_empty() {
                super::DEFAULT_NAME
            } else {
                &pod.spec.scheduler_name
            };
            let message = format!("{by}: preempting to accommodate a higher priority pod");
            let target =
                Condition::new("DisruptionTarget", true, "PreemptionByScheduler", &message);
            let mut conditions = victim.status.conditions.clone();
            set_condition(&mut conditions, target, now);
            let target = Target::of_kind(&kind::POD, &victim.metadata);
            let message = format!("Preempted by pod {} on node {node}", pod.metadata.uid);
            let note = Note::normal(&target, "Preempted", message);
            steps.push(Action::patch_status(target.clone(), json!({ "conditions": conditions })));
            steps.push(Action::delete(target).telling(note));
        }
        steps
    }

    /// Pods less important that hoped for the same node must look again.
    fn demote_lesser(
        &mut self,
        pod: &Arc<Pod>,
        node: &str,
        now: Timestamp,
        steps: &mut Vec<Action>,
    ) {
        let priority = pod.spec.priority.unwrap_or(0);
        let others = self.nominations.get(node).into_iter().flatten();
        let lesser = others.filter(|(_, other)| other.spec.priority.unwrap_or(0) < priority);
        let lesser: Vec<Arc<Pod>> = lesser.map(|(_, other)| Arc::clone(other)).collect();
        for other in lesser {
            self.nominate(&other, "");
            let current = self.queue.get(&other.metadata.uid).map(|entry| Arc::clone(&entry.pod));
            let Some(current) = current else { continue };
            if !current.status.nominated_node_name.is_empty() {
                let target = Target::of(&*current);
                steps.push(Action::patch_status(target, json!({"nominatedNodeName": null})));
            }
            self.queue.retry(&other.metadata.uid, now);
        }
    }

    /// Writes the reason into the pod's condition, once per reason.
    fn tell(
        &mut self,
        pod: &Arc<Pod>,
        reason: &'static str,
        message: &str,
        nominated: Option<&str>,
        now: Timestamp,
    ) -> Option<Vec<Action>> {
        self.told.insert(pod.metadata.uid.clone(), (reason, message.to_owned()));
        let moved = nominated.is_some_and(|node| node != pod.status.nominated_node_name);
        if says(pod, reason, message) && !moved {
            return None;
        }
        let mut conditions = pod.status.conditions.clone();
        let condition = Condition::new("PodScheduled", false, reason, message);
        set_condition(&mut conditions, condition, now);
        let mut status = json!({ "conditions": conditions });
        if moved && let Some(fields) = status.as_object_mut() {
            let node = nominated.filter(|node| !node.is_empty());
            fields.insert("nominatedNodeName".to_owned(), node.map_or(Value::Null, Value::from));
        }
        let target = Target::of(&**pod);
        let note = (reason == "Unschedulable")
            .then(|| Note::warning(&target, "FailedScheduling", message));
        let step = Action::patch_status(target, status);
        Some(vec![match note {
            Some(note) => step.telling(note),
            None => step,
        }])
    }

    /// Says that a gated pod is gated.
    pub(super) fn tell_gates(&mut self, pod: &Arc<Pod>, now: Timestamp) {
        if pod.spec.scheduling_gates.is_empty() {
            return;
        }
        let message = "Scheduling is blocked due to non-empty scheduling gates";
        let told = self.tell(pod, "SchedulingGated", message, None, now);
        self.ready.extend(told.map(Decision::Tell));
    }

    /// Says again what another write has washed away.
    pub(super) fn tell_again(&mut self, pod: &Arc<Pod>, now: Timestamp) {
        if !pod.spec.scheduling_gates.is_empty() {
            return;
        }
        let Some((reason, message)) = self.told.get(&pod.metadata.uid).cloned() else { return };
        let nominated = self.nominated.get(&pod.metadata.uid).cloned();
        let told = self.tell(pod, reason, &message, nominated.as_deref(), now);
        self.ready.extend(told.map(Decision::Tell));
    }
}

/// Nodes without objections that are promised to pods; goes through whichever are fewer.
fn promised(snapshot: &Snapshot, nominations: &Nominations, codes: &[usize]) -> Vec<NodeId> {
    let table = &snapshot.table;
    let free = || codes.iter().enumerate().filter(|(_, code)| **code == FEASIBLE);
    if nominations.is_empty() {
        Vec::new()
    } else if free().count() < nominations.len() {
        let nodes = free().map(|(node, _)| node);
        nodes.filter(|node| nominations.contains_key(table.name(*node))).collect()
    } else {
        let nodes = nominations.keys().filter_map(|name| table.find(name));
        nodes.filter(|node| codes.get(*node) == Some(&FEASIBLE)).collect()
    }
}

/// Does the pod's condition say this already?
fn says(pod: &Pod, reason: &str, message: &str) -> bool {
    find_condition(&pod.status.conditions, "PodScheduled")
        .is_some_and(|one| one.status == "False" && one.reason == reason && one.message == message)
}

fn pre_bind(profile: &Profile, reserved: &Reserved) -> Vec<Action> {
    profile.at(Point::PreBind).iter().flat_map(|one| one.plugin.pre_bind(reserved)).collect()
}

/// PreBind, Bind and PostBind as one decision.
fn binding(profile: &Profile, reserved: &Reserved) -> Option<Decision> {
    let bind = profile.at(Point::Bind).iter().find_map(|one| one.plugin.bind(reserved))?;
    let note = profile.at(Point::PostBind).iter().find_map(|one| one.plugin.post_bind(reserved));
    Some(Decision::Bind {
        uid: reserved.pod.metadata.uid.clone(),
        before: pre_bind(profile, reserved),
        bind: Box::new(bind),
        note: note.map(Box::new),
    })
}

/// Plans bindings and reasons for every pod of a view that waits, as one round.
///
/// The way of the simulation and of tests: a scheduler is made, told all, and asked until it has
/// nothing more to do. Bindings the view does not show yet are taken from `view.assumed`.
#[must_use]
pub fn plan(view: &View, now: Timestamp) -> Steps {
    let mut scheduler = Scheduler::new(Config::named(&view.settings.scheduler_name), 1);
    for namespace in view.namespaces.iter() {
        scheduler.apply(Event::Namespace(Arc::clone(namespace)), now);
    }
    for node in view.nodes.iter() {
        scheduler.apply(Event::Node(Arc::clone(node)), now);
    }
    for pod in view.pods.iter() {
        match view.assumed.get(&pod.metadata.uid) {
            Some(node) if !pod.is_bound() => {
                let mut there = Pod::clone(pod);
                there.spec.node_name = node.clone();
                scheduler.apply(Event::Pod(Arc::new(there)), now);
            }
            _ => scheduler.apply(Event::Pod(Arc::clone(pod)), now),
        }
    }
    let mut steps = Steps::none();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    while let Some(decision) = scheduler.next(now) {
        match decision {
            Decision::Bind { before, bind, .. } => {
                steps.actions.extend(before);
                steps.push(*bind);
            }
            Decision::Prepare { steps: before, .. } => steps.actions.extend(before),
            Decision::Tell(told) => {
                // A later word about a pod takes the place of an earlier one.
                for action in told {
                    let name = action.target().map(|target| target.uid.clone());
                    let patch = matches!(action, Action::Patch { .. });
                    let Some(uid) = name.filter(|_| patch) else {
                        steps.push(action);
                        continue;
                    };
                    match seen.get(&uid).and_then(|at| steps.actions.get_mut(*at)) {
                        Some(place) => *place = action,
                        None => {
                            seen.insert(uid, steps.actions.len());
                            steps.push(action);
                        }
                    }
                }
            }
        }
    }
    steps
}
