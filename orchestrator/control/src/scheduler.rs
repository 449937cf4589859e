//! Gives pods their nodes.
//!
//! A [`Scheduler`] is told what happens ([`Event`]) and asked what to do next ([`Decision`]);
//! time and chance come from outside, so the same story has the same end. One pod is looked at
//! at a time, through upstream's twelve points (`framework`), by upstream's plugins and two of
//! our own (`plugins`). A pod counts on its node from the decision on, long before the API
//! server has heard of it, so the next can be looked at at once.
//!
//! What makes it fast: nothing is worked out twice. Counts of pods per topology value follow
//! every coming and going (`census`), and what one kind of pod was told about a node holds until
//! that node changes (`class`). Every node is looked at for every pod.
//!
//! Start reading at `cycle`, then any plugin.
//!
//! *Limits*: no extenders, no dynamic resource allocation, no gang scheduling.

mod census;
mod class;
mod config;
mod crush;
mod cycle;
mod framework;
mod leaving;
mod needs;
mod plugins;
mod queue;
mod resource;
mod round;
mod snapshot;
mod table;
mod topology;
mod volume;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use objects::config::ConfigMap;
use objects::namespace::Namespace;
use objects::node::Node;
use objects::pod::Pod;
use objects::policy::PodDisruptionBudget;
use objects::storage::{PersistentVolume, PersistentVolumeClaim, StorageClass};
use serde_json::Value;

pub use config::{Config, ConfigError, DEFAULT_NAME};
pub use crush::CRUSH_MAP;
pub use queue::Pending;
pub use round::plan;

use class::Class;
use crush::CrushMap;
use cycle::Nominations;
use framework::{Change, Point, Reserved};
use leaving::Leaving;
use queue::Queue;
use snapshot::Snapshot;

use crate::action::{Action, Note};

/// Something that happened to the cluster, as a watch tells it.
///
/// Gone objects are told by name, or pods by uid, as often as one likes.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the variants are the kinds")]
pub enum Event {
    Pod(Arc<Pod>),
    /// By uid.
    PodGone(String),
    Node(Arc<Node>),
    NodeGone(String),
    Namespace(Arc<Namespace>),
    NamespaceGone(String),
    Claim(Arc<PersistentVolumeClaim>),
    /// By namespace and name.
    ClaimGone(String, String),
    Volume(Arc<PersistentVolume>),
    VolumeGone(String),
    StorageClass(Arc<StorageClass>),
    StorageClassGone(String),
    /// A `CSINode`, for the volume limits of its drivers.
    CsiNode(Arc<Value>),
    CsiNodeGone(String),
    Budget(Arc<PodDisruptionBudget>),
    /// By namespace and name.
    BudgetGone(String, String),
    /// The config map that [`CRUSH_MAP`] names; `None` when it is gone.
    CrushMap(Option<Arc<ConfigMap>>),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Give a pod its node, and say how it went by [`Scheduler::bound`].
    Bind {
        /// The pod.
        uid: String,
        /// Steps to carry out before.
        before: Vec<Action>,
        /// The step itself.
        bind: Box<Action>,
        /// What to tell once it is done.
        note: Option<Box<Note>>,
    },
    /// Steps towards a pod's volumes; it is bound once they are.
    ///
    /// When one fails, say so by [`Scheduler::bound`].
    Prepare {
        /// The pod.
        uid: String,
        /// The steps.
        steps: Vec<Action>,
    },
    /// Steps that nothing waits for: why a pod has no node, and who must leave for it.
    Tell(Vec<Action>),
}

/// A pod whose place is reserved.
#[derive(Debug, Clone)]
struct Promise {
    reserved: Reserved,
    profile: usize,
    /// Until when its volumes may take; `None` once binding has begun.
    until: Option<Timestamp>,
}

/// The state between decisions.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    snapshot: Snapshot,
    queue: Queue,
    classes: Vec<Class>,
    classes_generation: u64,
    nominations: Nominations,
    /// The node each pod is nominated to.
    nominated: BTreeMap<String, String>,
    /// Pods on nodes that no watch has shown there yet, by uid.
    promises: BTreeMap<String, Promise>,
    leaving: Leaving,
    /// What was last told about a pod: reason and message.
    told: BTreeMap<String, (&'static str, String)>,
    ready: VecDeque<Decision>,
    chance: u64,
    rounds: u64,
}

impl Scheduler {
    /// A scheduler that knows nothing yet; equal nodes are chosen between by `seed`.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        Self {
            queue: Queue::new(config.waits, config.queue_sort()),
            config,
            snapshot: Snapshot::default(),
            classes: Vec::new(),
            classes_generation: 0,
            nominations: Nominations::new(),
            nominated: BTreeMap::new(),
            promises: BTreeMap::new(),
            leaving: Leaving::default(),
            told: BTreeMap::new(),
            ready: VecDeque::new(),
            chance: seed | 1,
            rounds: 0,
        }
    }

    /// How many pods wait to be looked at now.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.queue.ready() + self.ready.len()
    }

    /// How many pods wait, and for what.
    #[must_use]
    pub fn pending(&self) -> Pending {
        self.queue.pending()
    }

    /// How many pods wait in all, for whatever reason.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// When time alone may change something.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let volumes = self.promises.values().filter_map(|one| one.until).min();
        self.queue.deadline().into_iter().chain(volumes).min()
    }

    /// Takes note of what happened.
    pub fn apply(&mut self, event: Event, now: Timestamp) {
        match event {
            Event::Pod(pod) => self.see_pod(&pod, now),
            Event::PodGone(uid) => self.forget_pod(&uid, now),
            Event::Node(node) => self.see_node(&node, now),
            Event::NodeGone(name) => self.snapshot.remove_node(&name),
            Event::Namespace(namespace) => {
                let meta = &namespace.metadata;
                self.snapshot.put_namespace(&meta.name, Some(&meta.labels));
                self.wake(&Change::Namespace, now);
            }
            Event::NamespaceGone(name) => self.snapshot.put_namespace(&name, None),
            Event::Budget(budget) => {
                let meta = &budget.metadata;
                let key = (meta.namespace.clone(), meta.name.clone());
                self.snapshot.budgets.insert(key, budget);
            }
            Event::BudgetGone(namespace, name) => {
                self.snapshot.budgets.remove(&(namespace, name));
            }
            Event::CrushMap(map) => {
                self.snapshot.crush = map.and_then(|map| CrushMap::read(&map));
            }
            storage => self.see_storage(storage, now),
        }
    }

    fn see_storage(&mut self, event: Event, now: Timestamp) {
        let volumes = &mut self.snapshot.volumes;
        volumes.epoch += 1;
        match event {
            Event::Claim(claim) => {
                let key = (claim.metadata.namespace.clone(), claim.metadata.name.clone());
                if volume::is_bound(&claim) {
                    volumes.release(&key);
                }
                volumes.claims.insert(key, claim);
            }
            Event::ClaimGone(namespace, name) => {
                let key = (namespace, name);
                volumes.release(&key);
                volumes.claims.remove(&key);
            }
            Event::Volume(volume) => {
                volumes.volumes.insert(volume.metadata.name.clone(), volume);
            }
            Event::VolumeGone(name) => {
                volumes.volumes.remove(&name);
            }
            Event::StorageClass(class) => {
                volumes.classes.insert(class.metadata.name.clone(), class);
            }
            Event::StorageClassGone(name) => {
                volumes.classes.remove(&name);
            }
            Event::CsiNode(node) => volumes.read_limits(&node),
            Event::CsiNodeGone(name) => {
                volumes.limits.remove(&name);
            }
            _ => return,
        }
        self.wake(&Change::Storage, now);
        self.permit_waiting();
    }

    fn see_node(&mut self, node: &Arc<Node>, now: Timestamp) {
        let known = self.snapshot.table.find(&node.metadata.name);
        let old = known.and_then(|id| self.snapshot.table.get(id));
        if old.is_some_and(|old| same_offer(&old.node, node)) {
            return;
        }
        let new = old.is_none();
        self.snapshot.put_node(node);
        let Some(id) = self.snapshot.table.find(&node.metadata.name) else { return };
        let change = if new { Change::NodeAdded(id) } else { Change::NodeChanged(id) };
        self.wake(&change, now);
    }

    fn see_pod(&mut self, pod: &Arc<Pod>, now: Timestamp) {
        let uid = &pod.metadata.uid;
        if pod.is_finished() {
            self.forget_pod(uid, now);
            return;
        }
        if pod.is_bound() {
            self.see_bound(pod, now);
            return;
        }
        if self.promises.contains_key(uid) {
            return;
        }
        let ours = self.config.profile(&pod.spec.scheduler_name).is_some();
        if pod.metadata.is_deleting() || !ours {
            self.forget_pod(uid, now);
            return;
        }
        self.nominate(pod, &pod.status.nominated_node_name);
        self.queue.put(pod, now);
        self.tell_gates(pod, now);
        self.tell_again(pod, now);
    }

    fn see_bound(&mut self, pod: &Arc<Pod>, now: Timestamp) {
        let uid = &pod.metadata.uid;
        self.queue.remove(uid);
        self.told.remove(uid);
        self.nominate(pod, "");
        self.promises.remove(uid);
        let known = self.snapshot.place_of(uid);
        let same = known.filter(|(id, node)| {
            let old = self.snapshot.lodger(*id);
            *node == pod.spec.node_name && old.is_some_and(|old| same_claim(&old.pod, pod))
        });
        if let Some((id, _)) = same {
            self.snapshot.renew_pod(id, pod);
            return;
        }
        let kind = self.snapshot.kind(pod);
        self.snapshot.add_pod(pod, &kind, &pod.spec.node_name);
        self.wake(&Change::PodPlaced(Arc::clone(pod)), now);
    }

    fn forget_pod(&mut self, uid: &str, now: Timestamp) {
        if let Some(entry) = self.queue.remove(uid) {
            self.nominate(&entry.pod, "");
        }
        self.told.remove(uid);
        if let Some(promise) = self.promises.remove(uid) {
            self.unreserve(&promise);
        }
        let beneficiary = self.leaving.left(uid);
        if let Some(lodger) = self.snapshot.remove_pod(uid) {
            self.wake(&Change::PodGone(lodger.pod), now);
        }
        if let Some(pod) = beneficiary {
            // Its place is free: it need not stand in line again.
            self.queue.hasten(&pod);
        }
        self.snapshot.tidy();
    }

    /// Notes the node a pod waits for; none when the name is empty.
    fn nominate(&mut self, pod: &Arc<Pod>, node: &str) {
        let uid = &pod.metadata.uid;
        if node.is_empty() && !self.nominated.contains_key(uid) {
            return;
        }
        if let Some(old) = self.nominated.remove(uid)
            && let Some(there) = self.nominations.get_mut(&old)
        {
            there.remove(uid);
            if there.is_empty() {
                self.nominations.remove(&old);
            }
        }
        if !node.is_empty() {
            self.nominated.insert(uid.clone(), node.to_owned());
            let there = self.nominations.entry(node.to_owned()).or_default();
            there.insert(uid.clone(), Arc::clone(pod));
        }
    }

    /// Asks the plugins that refused pods whether this may help them.
    fn wake(&mut self, change: &Change, now: Timestamp) {
        let Self { queue, snapshot, config, leaving, .. } = self;
        let gone = matches!(change, Change::PodGone(_));
        if matches!(change, Change::NodeAdded(_)) {
            queue.wake(NOBODY, now, |_| true);
        }
        let mut asked = Vec::new();
        for profile in &config.profiles {
            for one in profile.at(Point::Filter) {
                let name = one.plugin.name();
                if asked.contains(&name) || !queue.has_refused(name) {
                    continue;
                }
                asked.push(name);
                queue.wake(name, now, |entry| {
                    // Who waits for several to leave is not helped by the first of them.
                    if gone && leaving.is_awaiting(&entry.pod.metadata.uid) {
                        return false;
                    }
                    let kind = entry.kind.as_ref();
                    kind.is_none_or(|(_, kind)| one.plugin.may_help(snapshot, kind, change))
                });
            }
        }
    }

    /// Takes the report on a binding, or on the steps towards it.
    ///
    /// After a success the pod counts where it is until the watch shows it.
    pub fn bound(&mut self, uid: &str, success: bool, now: Timestamp) {
        if success {
            return;
        }
        let Some(promise) = self.promises.remove(uid) else { return };
        self.unreserve(&promise);
        if let Some(lodger) = self.snapshot.remove_pod(uid) {
            self.wake(&Change::PodGone(lodger.pod), now);
        }
        self.queue.retry(uid, now);
    }

    fn unreserve(&mut self, promise: &Promise) {
        let Some(profile) = self.config.profiles.get(promise.profile).cloned() else { return };
        for one in profile.at(Point::Reserve).iter().rev() {
            one.plugin.unreserve(&mut self.snapshot, &promise.reserved);
        }
    }
}

/// Who "refused" pods when there was no node at all.
const NOBODY: &str = "";

/// Does a node offer the same as before, so that only its heart beat?
fn same_offer(old: &Node, new: &Node) -> bool {
    let (a, b) = (&old.status, &new.status);
    old.spec == new.spec
        && old.metadata.labels == new.metadata.labels
        && a.allocatable == b.allocatable
        && a.capacity == b.capacity
        && a.images == b.images
        && old.is_ready() == new.is_ready()
}

/// Does a pod on a node count as it did before?
fn same_claim(old: &Pod, new: &Pod) -> bool {
    let (a, b) = (&old.metadata, &new.metadata);
    a.is_deleting() == b.is_deleting()
        && a.labels == b.labels
        && a.owner_references == b.owner_references
        && old.spec.containers == new.spec.containers
        && old.spec.resources == new.spec.resources
}

/// Does a pod keep others away?
fn holds_away(pod: &Pod) -> bool {
    let affinity = pod.spec.affinity.as_ref().and_then(|one| one.pod_anti_affinity.as_ref());
    affinity.is_some_and(|one| !one.required_during_scheduling_ignored_during_execution.is_empty())
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod tests;
