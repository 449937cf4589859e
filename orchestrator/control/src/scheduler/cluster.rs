//! The scheduler's table of nodes: what each has, what is taken, who is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use objects::node::Node;
use objects::pod::{Pod, PodSpec, ResourceList};

use crate::view::View;

/// CPU assumed for scoring when a container asks for none, in thousandths; upstream's.
const CPU_DEFAULT: i64 = 100;
/// Memory likewise, in bytes.
const MEMORY_DEFAULT: i64 = 200 << 20;
/// Pods per node when the node does not say; upstream's.
const PODS_DEFAULT: i64 = 110;

/// Amounts by resource name: CPU in thousandths, everything else in units.
pub(super) type Amounts = BTreeMap<String, i64>;

/// A port taken on a node: protocol, address, number.
pub(super) type HostPort = (String, String, i64);

/// One node as the scheduler counts it.
pub(super) struct NodeRow {
    pub(super) node: Arc<Node>,
    /// What the node can give.
    pub(super) capacity: Amounts,
    /// The most pods.
    pub(super) pods_max: i64,
    /// What pods here ask for.
    pub(super) taken: Amounts,
    /// The same with defaults for those that ask for nothing, for scoring: CPU and memory.
    pub(super) load: (i64, i64),
    /// Pods here that still run.
    pub(super) pods: Vec<Arc<Pod>>,
    /// Ports taken.
    pub(super) ports: BTreeSet<HostPort>,
}

/// All nodes, and what must be known of all pods.
pub(super) struct Cluster<'a> {
    pub(super) view: &'a View,
    pub(super) nodes: Vec<NodeRow>,
    places: BTreeMap<String, usize>,
    /// Is there any running pod with required anti-affinity? Most clusters can skip that.
    pub(super) any_anti_affinity: bool,
}

impl<'a> Cluster<'a> {
    pub(super) fn of(view: &'a View) -> Self {
        let nodes: Vec<NodeRow> = view.nodes.iter().map(NodeRow::empty).collect();
        let places = nodes
            .iter()
            .enumerate()
            .map(|(place, node)| (node.node.metadata.name.clone(), place))
            .collect();
        let mut cluster = Self { view, nodes, places, any_anti_affinity: false };
        for pod in view.pods.iter().filter(|pod| !pod.is_finished()) {
            let assumed = view.assumed.get(&pod.metadata.uid);
            let name = if pod.is_bound() { Some(&pod.spec.node_name) } else { assumed };
            if let Some(place) = name.and_then(|name| cluster.places.get(name)).copied() {
                cluster.assume(pod, place);
            }
        }
        cluster
    }

    /// Counts a pod on a node.
    pub(super) fn assume(&mut self, pod: &Arc<Pod>, place: usize) {
        let Some(row) = self.nodes.get_mut(place) else { return };
        for (name, amount) in requests(&pod.spec) {
            *row.taken.entry(name).or_default() += amount;
        }
        let (cpu, memory) = load(&pod.spec);
        row.load.0 += cpu;
        row.load.1 += memory;
        row.ports.extend(host_ports(&pod.spec));
        row.pods.push(Arc::clone(pod));
        self.any_anti_affinity |= super::affinity::has_required_anti_affinity(&pod.spec);
    }
}

impl NodeRow {
    fn empty(node: &Arc<Node>) -> Self {
        let status = &node.status;
        let source =
            if status.allocatable.is_empty() { &status.capacity } else { &status.allocatable };
        let mut capacity = amounts(source);
        let pods_max = capacity.remove("pods").unwrap_or(PODS_DEFAULT);
        Self {
            node: Arc::clone(node),
            capacity,
            pods_max,
            taken: Amounts::new(),
            load: (0, 0),
            pods: Vec::new(),
            ports: BTreeSet::new(),
        }
    }

    /// A label of the node.
    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.label(key)
    }
}

fn amounts(list: &ResourceList) -> Amounts {
    list.iter()
        .map(|(name, amount)| {
            let amount = if name == "cpu" { amount.milli_value() } else { amount.value() };
            (name.clone(), amount)
        })
        .collect()
}

/// What a pod asks for: the sum of its containers, or the largest step of its start.
///
/// Spec: upstream `PodRequests`: init containers run one after the other, those that restart
/// always run beside everything after them.
pub(super) fn requests(spec: &PodSpec) -> Amounts {
    let mut beside = Amounts::new();
    let mut peak = Amounts::new();
    for container in &spec.init_containers {
        let own = amounts(&container.resources.requests);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut beside, &own);
            raise(&mut peak, &beside);
        } else {
            let mut step = beside.clone();
            add(&mut step, &own);
            raise(&mut peak, &step);
        }
    }
    let mut total = beside;
    for container in &spec.containers {
        add(&mut total, &amounts(&container.resources.requests));
    }
    raise(&mut total, &peak);
    add(&mut total, &amounts(&spec.overhead));
    total
}

fn add(sum: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let had = sum.entry(name.clone()).or_default();
        *had = had.saturating_add(*amount);
    }
}

fn raise(most: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let had = most.entry(name.clone()).or_default();
        *had = (*had).max(*amount);
    }
}

/// CPU and memory of a pod for scoring, with defaults per container that asks for none.
pub(super) fn load(spec: &PodSpec) -> (i64, i64) {
    let each = spec.containers.iter().map(|container| {
        let own = amounts(&container.resources.requests);
        let get = |name: &str, default| own.get(name).copied().unwrap_or(default);
        (get("cpu", CPU_DEFAULT), get("memory", MEMORY_DEFAULT))
    });
    each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

/// Ports a pod takes on its node.
pub(super) fn host_ports(spec: &PodSpec) -> impl Iterator<Item = HostPort> {
    let all = spec.containers.iter().flat_map(|container| &container.ports);
    all.filter_map(|port| {
        // In the host's network every port is one of the node's.
        let own = spec.host_network.then_some(port.container_port);
        let number = port.host_port.or(own).filter(|number| *number > 0)?;
        let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
        let address = if port.host_ip.is_empty() { "0.0.0.0" } else { &port.host_ip };
        Some((protocol.to_owned(), address.to_owned(), number))
    })
}

/// Do two ports of one node get in each other's way?
pub(super) fn ports_clash(one: &HostPort, other: &HostPort) -> bool {
    let any = "0.0.0.0";
    one.0 == other.0 && one.2 == other.2 && (one.1 == other.1 || one.1 == any || other.1 == any)
}
