//! The table of nodes, column by column: what each has, what is taken, who is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use objects::node::{Node, Taint};

use super::needs::{HostPort, Needs, normal_image};
use super::resource::{CPU, MEMORY, Names, ResourceId};
use super::topology::NodeId;

/// Pods per node when the node does not say; upstream's.
const PODS_DEFAULT: i64 = 110;
/// Taint of nodes closed by their operator.
pub(super) const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Taint of nodes that are not ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// One resource over all nodes.
#[derive(Debug, Default)]
struct Column {
    capacity: Vec<i64>,
    used: Vec<i64>,
}

/// A node's own description, read once per change of it.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) node: Arc<Node>,
    /// Taints that keep pods away, one more if the node is not ready.
    pub(super) hard: Vec<Taint>,
    /// Taints that only discourage.
    pub(super) mild: Vec<Taint>,
    /// Images that are there, with their sizes.
    pub(super) images: BTreeMap<String, i64>,
}

/// A pod that counts on its node, by its place in the table of pods.
pub(super) type PodId = usize;

/// All nodes.
#[derive(Debug, Default)]
pub(super) struct Table {
    names: BTreeMap<String, NodeId>,
    described: Vec<Option<Described>>,
    columns: Vec<Column>,
    pods_max: Vec<i64>,
    /// CPU and memory with defaults for pods that ask for nothing.
    load: Vec<(i64, i64)>,
    pods: Vec<Vec<PodId>>,
    ports: Vec<Vec<HostPort>>,
    free: Vec<NodeId>,
    /// Nodes that changed, in order; the first has the number `log_base`.
    log: Vec<NodeId>,
    log_base: usize,
    /// Changes under trial are not written down: they are taken back.
    trying: bool,
    /// Counts changes that bear on every node's score, as the images of any node do.
    pub(super) epoch: u64,
    /// Nodes per image.
    pub(super) images: BTreeMap<String, usize>,
}

fn describe(node: &Arc<Node>) -> Described {
    let implied = |key: &str| Taint {
        key: key.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let mut hard: Vec<Taint> = Vec::new();
    let mut mild = Vec::new();
    for taint in &node.spec.taints {
        match taint.effect.as_str() {
            // Whether the operator closed the node is asked by a plugin of its own.
            "NoSchedule" if taint.key == UNSCHEDULABLE && node.spec.unschedulable => (),
            "NoSchedule" | "NoExecute" => hard.push(taint.clone()),
            "PreferNoSchedule" => mild.push(taint.clone()),
            _ => (),
        }
    }
    // A node that is not ready counts as tainted even before its taint is written.
    if !node.is_ready() && !hard.iter().any(|taint| taint.key == NOT_READY) {
        hard.push(implied(NOT_READY));
    }
    let mut images = BTreeMap::new();
    for image in &node.status.images {
        images.extend(image.names.iter().map(|name| (normal_image(name), image.size_bytes)));
    }
    Described { node: Arc::clone(node), hard, mild, images }
}

impl Table {
    /// The place of a node.
    pub(super) fn find(&self, name: &str) -> Option<NodeId> {
        self.names.get(name).copied()
    }

    /// A node.
    pub(super) fn get(&self, id: NodeId) -> Option<&Described> {
        self.described.get(id)?.as_ref()
    }

    /// A node's name; empty for an empty place.
    pub(super) fn name(&self, id: NodeId) -> &str {
        self.get(id).map_or("", |one| &one.node.metadata.name)
    }

    /// All nodes.
    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Described)> {
        self.described.iter().enumerate().filter_map(|(id, one)| Some((id, one.as_ref()?)))
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// How many places there are, empty ones included.
    pub(super) fn places(&self) -> usize {
        self.described.len()
    }

    /// Puts a node in, or in place of its older state.
    pub(super) fn put(&mut self, names: &mut Names, node: &Arc<Node>) -> NodeId {
        let id = self.find(&node.metadata.name).unwrap_or_else(|| self.place());
        let described = describe(node);
        let status = &node.status;
        let source =
            if status.allocatable.is_empty() { &status.capacity } else { &status.allocatable };
        let mut pods_max = PODS_DEFAULT;
        let pods = names.id("pods");
        let mut capacity = names.amounts(source);
        if let Some(most) = capacity.remove(&pods) {
            pods_max = most;
        }
        self.widen(names.len());
        for (resource, column) in self.columns.iter_mut().enumerate() {
            if let Some(place) = column.capacity.get_mut(id) {
                *place = capacity.get(&resource).copied().unwrap_or(0);
            }
        }
        if let Some(place) = self.pods_max.get_mut(id) {
            *place = pods_max;
        }
        let same = self.get(id).is_some_and(|old| old.images == described.images);
        if !same || !self.names.contains_key(&node.metadata.name) {
            self.forget_images(id);
            for name in described.images.keys() {
                *self.images.entry(name.clone()).or_default() += 1;
            }
            self.epoch += 1;
        }
        self.names.insert(node.metadata.name.clone(), id);
        if let Some(place) = self.described.get_mut(id) {
            *place = Some(described);
        }
        self.changed(id);
        id
    }

    fn place(&mut self) -> NodeId {
        if let Some(id) = self.free.pop() {
            return id;
        }
        self.described.push(None);
        self.pods_max.push(0);
        self.load.push((0, 0));
        self.pods.push(Vec::new());
        self.ports.push(Vec::new());
        for column in &mut self.columns {
            column.capacity.push(0);
            column.used.push(0);
        }
        self.described.len() - 1
    }

    fn widen(&mut self, resources: usize) {
        let places = self.described.len();
        while self.columns.len() < resources {
            self.columns.push(Column { capacity: vec![0; places], used: vec![0; places] });
        }
    }

    fn forget_images(&mut self, id: NodeId) {
        let Some(Some(old)) = self.described.get(id) else { return };
        for name in old.images.keys() {
            if let Some(count) = self.images.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.images.remove(name);
                }
            }
        }
    }

    /// Takes a node out; its pods must have been taken off before.
    pub(super) fn remove(&mut self, id: NodeId) {
        self.forget_images(id);
        let Some(Some(old)) = self.described.get_mut(id).map(Option::take) else { return };
        self.names.remove(&old.node.metadata.name);
        self.free.push(id);
        self.epoch += 1;
        self.changed(id);
    }

    /// Counts a pod onto a node.
    pub(super) fn add(&mut self, id: NodeId, pod: PodId, needs: &Needs) {
        self.account(id, needs, 1);
        if let Some(pods) = self.pods.get_mut(id) {
            pods.push(pod);
        }
        if let Some(ports) = self.ports.get_mut(id) {
            ports.extend(needs.ports.iter().cloned());
        }
        self.changed(id);
    }

    /// Counts a pod off a node.
    pub(super) fn subtract(&mut self, id: NodeId, pod: PodId, needs: &Needs) {
        self.account(id, needs, -1);
        if let Some(pods) = self.pods.get_mut(id)
            && let Some(at) = pods.iter().position(|one| *one == pod)
        {
            pods.remove(at);
        }
        if let Some(ports) = self.ports.get_mut(id) {
            for port in &needs.ports {
                if let Some(at) = ports.iter().position(|one| one == port) {
                    ports.swap_remove(at);
                }
            }
        }
        self.changed(id);
    }

    fn account(&mut self, id: NodeId, needs: &Needs, sign: i64) {
        if let Some((most, _)) = needs.requests.last() {
            self.widen(most + 1);
        }
        for (resource, amount) in &needs.requests {
            let column = self.columns.get_mut(*resource);
            if let Some(used) = column.and_then(|column| column.used.get_mut(id)) {
                *used = used.saturating_add(sign * amount);
            }
        }
        if let Some((cpu, memory)) = self.load.get_mut(id) {
            *cpu += sign * needs.load.0;
            *memory += sign * needs.load.1;
        }
    }

    /// What a node can give of a resource.
    pub(super) fn capacity(&self, id: NodeId, resource: ResourceId) -> i64 {
        let column = self.columns.get(resource);
        column.and_then(|one| one.capacity.get(id)).copied().unwrap_or(0)
    }

    /// What is asked of a resource on a node.
    pub(super) fn used(&self, id: NodeId, resource: ResourceId) -> i64 {
        let column = self.columns.get(resource);
        column.and_then(|one| one.used.get(id)).copied().unwrap_or(0)
    }

    /// What counts as asked when nodes are compared: pods that say nothing count a little.
    pub(super) fn load(&self, id: NodeId, resource: ResourceId) -> i64 {
        let (cpu, memory) = self.load.get(id).copied().unwrap_or_default();
        match resource {
            CPU => cpu,
            MEMORY => memory,
            _ => self.used(id, resource),
        }
    }

    /// The most pods of a node.
    pub(super) fn pods_max(&self, id: NodeId) -> i64 {
        self.pods_max.get(id).copied().unwrap_or(0)
    }

    /// The pods on a node.
    pub(super) fn pods(&self, id: NodeId) -> &[PodId] {
        self.pods.get(id).map_or(&[], Vec::as_slice)
    }

    /// The ports taken on a node.
    pub(super) fn ports(&self, id: NodeId) -> &[HostPort] {
        self.ports.get(id).map_or(&[], Vec::as_slice)
    }

    fn changed(&mut self, id: NodeId) {
        if self.trying || self.log.last() == Some(&id) {
            return;
        }
        // Whoever is that far behind reads all nodes anew.
        if self.log.len() > 2 * self.described.len() + 64 {
            self.log_base += self.log.len();
            self.log.clear();
        }
        self.log.push(id);
    }

    /// Says whether what follows is tried only, and will be taken back.
    pub(super) fn try_only(&mut self, trying: bool) {
        self.trying = trying;
    }

    /// The number the next change will have.
    pub(super) fn now(&self) -> usize {
        self.log_base + self.log.len()
    }

    /// Nodes that changed since; `None` when that is no longer known.
    ///
    /// The last change may have been told already: a node is named once for changes in a row.
    pub(super) fn since(&self, seen: usize) -> Option<&[NodeId]> {
        self.log.get(seen.saturating_sub(1).checked_sub(self.log_base)?..)
    }
}
