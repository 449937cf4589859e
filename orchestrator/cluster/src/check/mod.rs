//! From the document to a plan: every rule of `rack.yaml`, all problems at once.
//!
//! Checking goes on after a mistake with what could be read, so cross-checks compare only values
//! that are good by themselves, and one mistake is reported once.

mod cross;
mod fields;
mod routing;
mod second;
mod word;

use ipnet::{Ipv4Net, Ipv6Net};

use self::cross::Draft;
use self::fields::{Fields, Found, Problems, Refusal, scalar};
use self::routing::RoutingDraft;
use self::second::PodRangeV6;
use self::word::PodRange;
use crate::document::Node;
use crate::plan::{BootMethod, Ceph, DiskSelector, Networks, Plan, Role, Sim, Timings};
use crate::problem::{Place, Problem};

/// AS number of node 0; node N has N more, so no two nodes of a site share one.
const NODE_ASN_BASE: u32 = 4_200_000_000;
/// Keeps `NODE_ASN_BASE + node` below the ToR range that starts at 4,210,000,000.
const NODE_MAX: u32 = 9_999_999;
const API_PORT: u32 = 6443;
const HTTP_PORT: u32 = 8080;
/// Upstream's long-standing defaults of the same names.
const GRACE_PERIOD_SECONDS: u32 = 40;
const EVICTION_TIMEOUT_SECONDS: u32 = 300;

const ROOT_KEYS: [&str; 8] =
    ["site", "seed", "networks", "timings", "racks", "machines", "ceph", "sim"];
const SEED_KEYS: [&str; 6] = ["address", "subnet", "rack", "gateway", "apiPort", "httpPort"];
const MACHINE_KEYS: [&str; 11] =
    ["name", "node", "rack", "role", "mac", "uuid", "serial", "boot", "disk", "address", "virtual"];

/// A rack whose own fields could be read.
#[derive(Debug)]
pub(super) struct RackDraft {
    place: Place,
    name: Option<Found<String>>,
    subnet: Option<Found<Ipv4Net>>,
    subnet_v6: Option<Found<Ipv6Net>>,
    /// Whether it says something of its IPv6 subnet, be it wrong.
    says_v6: bool,
    gateway: Option<Found<std::net::Ipv4Addr>>,
    routing: Option<RoutingDraft>,
}

/// A machine whose own fields could be read.
#[derive(Debug)]
pub(super) struct MachineDraft {
    place: Place,
    name: Option<Found<String>>,
    node: Option<Found<u32>>,
    rack: Option<Found<String>>,
    role: Option<Found<Role>>,
    mac: Option<Found<String>>,
    uuid: Option<Found<String>>,
    serial: Option<Found<String>>,
    boot: Option<Found<BootMethod>>,
    disk: Option<DiskSelector>,
    address: Option<Found<std::net::Ipv4Addr>>,
    is_virtual: bool,
}

/// The seed as far as it could be read.
#[derive(Debug)]
pub(super) struct SeedDraft {
    address: Option<Found<std::net::Ipv4Addr>>,
    subnet: Option<Found<Ipv4Net>>,
    rack: Option<Found<String>>,
    gateway: Option<Found<std::net::Ipv4Addr>>,
    api_port: u16,
    http_port: u16,
}

/// Checks a whole document.
///
/// # Errors
///
/// Every problem, in file order.
pub(crate) fn check(root: &Node) -> Result<Plan, Vec<Problem>> {
    let mut problems = Problems::default();
    let plan = Fields::open("", root, &ROOT_KEYS, &mut problems)
        .and_then(|fields| read(&fields, &mut problems));
    let mut problems = problems.0;
    problems.sort_by(|left, right| {
        (left.place.line, left.place.column).cmp(&(right.place.line, right.place.column))
    });
    match plan {
        Some(plan) if problems.is_empty() => Ok(plan),
        Some(_) | None => Err(problems),
    }
}

/// Points out what is allowed but probably not meant.
pub(crate) fn warnings(plan: &Plan) -> Vec<Problem> {
    let mut problems = Problems::default();
    let place = |path: &str| Place { line: 0, column: 0, path: path.to_owned() };
    let masters = plan.machines.iter().filter(|machine| machine.role == Role::Master).count();
    if masters > 0 && masters % 2 == 0 {
        let rule = "is an even number, which survives no more failures than one master fewer";
        problems.add(&place("machines"), format!("{masters} masters"), rule, "plan an odd number");
    }
    if !plan.machines.iter().any(|machine| machine.role == Role::Worker) {
        let rule = "leaves nowhere for ordinary pods to run";
        problems.add(&place("machines"), "no worker", rule, "give one machine role: worker");
    }
    if let Some(ceph) = plan.ceph.as_ref().filter(|ceph| ceph.monitors.len() % 2 == 0) {
        let found = format!("{} monitors", ceph.monitors.len());
        let rule = "is an even number, which is unusual for a quorum";
        problems.add(&place("ceph.monitors"), found, rule, "list every monitor");
    }
    problems.0
}

fn read(root: &Fields<'_>, problems: &mut Problems) -> Option<Plan> {
    let site = root.required("site", "name the site, as in `site: lab`", problems, word::label);
    let seed = match root.node("seed") {
        Some((node, path)) => read_seed(&path, node, problems),
        None => {
            root.missing("seed", "give the operator's host an address and a subnet", problems);
            None
        }
    };
    let networks = match root.node("networks") {
        Some((node, path)) => read_networks(&path, node, problems),
        None => {
            root.missing("networks", "give pods and services a range each", problems);
            Ranges::default()
        }
    };
    let timings = read_timings(root, problems);
    let (sim, links) = read_sim(root, problems);
    let ceph = root.node("ceph").and_then(|(node, path)| read_ceph(&path, node, problems));
    if root.node("racks").is_none() {
        root.missing("racks", "describe at least one rack", problems);
    }
    let racks = root.list("racks", problems);
    let racks: Vec<RackDraft> =
        racks.into_iter().filter_map(|(node, path)| read_rack(&path, node, problems)).collect();
    let machines = root.list("machines", problems);
    let machines: Vec<MachineDraft> = machines
        .into_iter()
        .filter_map(|(node, path)| read_machine(&path, node, problems))
        .collect();

    let Ranges { v6_missing, pods, services, load_balancers, api, pods_v6, services_v6 } = networks;
    let draft = Draft {
        seed,
        v6_missing,
        pods,
        services,
        load_balancers,
        api,
        pods_v6,
        services_v6,
        racks,
        machines,
        links,
    };
    let (seed, racks, machines) = draft.check(problems)?;
    let networks = Networks {
        pods: draft.pods.as_ref()?.value.range,
        services: draft.services.as_ref()?.value,
        load_balancers: draft.load_balancers.iter().map(|found| found.value).collect(),
        api: draft.api.as_ref().map(|found| found.value.addr()),
        seed: Some(seed.subnet).filter(|subnet| racks.iter().all(|rack| rack.subnet != *subnet)),
        pods_v6: draft.pods_v6.as_ref().map(|found| found.value.range),
        services_v6: draft.services_v6.as_ref().map(|found| found.value),
    };
    Some(Plan { site: site?.value, seed, networks, timings, racks, machines, ceph, sim })
}

fn read_seed(path: &str, node: &Node, problems: &mut Problems) -> Option<SeedDraft> {
    let fields = Fields::open(path, node, &SEED_KEYS, problems)?;
    let hint = "the address machines reach this host by";
    let address = fields.required("address", hint, problems, word::address);
    let subnet =
        fields.required("subnet", "the subnet this host stands in", problems, word::network);
    let rack = fields.optional("rack", problems, word::label);
    let gateway = fields.optional("gateway", problems, word::address);
    let mut port = |key: &str, default: u32| {
        let found = fields.optional(key, problems, |text| word::number(text, 1, 65_535));
        u16::try_from(found.map_or(default, |found| found.value)).unwrap_or(u16::MAX)
    };
    let (api_port, http_port) = (port("apiPort", API_PORT), port("httpPort", HTTP_PORT));
    if api_port == http_port {
        problems.add(&fields.place, api_port, "is both apiPort and httpPort", "use two ports");
    }
    Some(SeedDraft { address, subnet, rack, gateway, api_port, http_port })
}

/// The cluster's ranges as far as they could be read.
#[derive(Debug, Default)]
struct Ranges {
    /// Where either of the IPv6 ranges would stand, if it is not there.
    v6_missing: [Option<Place>; 2],
    pods: Option<Found<PodRange>>,
    services: Option<Found<Ipv4Net>>,
    load_balancers: Vec<Found<Ipv4Net>>,
    api: Option<Found<Ipv4Net>>,
    pods_v6: Option<Found<PodRangeV6>>,
    services_v6: Option<Found<Ipv6Net>>,
}

fn read_networks(path: &str, node: &Node, problems: &mut Problems) -> Ranges {
    let known = ["pods", "services", "loadBalancers", "api", "podsV6", "servicesV6"];
    let Some(fields) = Fields::open(path, node, &known, problems) else {
        return Ranges::default();
    };
    let api = fields.optional("api", problems, |text| word::address(text).map(Ipv4Net::from));
    let nodes = fields.list("loadBalancers", problems);
    let balancers = nodes.into_iter().filter_map(|(node, path)| {
        scalar(&path, node, problems, |text| {
            let net = word::network(text)?;
            if net.prefix_len() >= 16 {
                return Ok(net);
            }
            Err(Refusal::new("is wider than a /16", "a /24 holds 254 outside addresses"))
        })
    });
    let balancers = balancers.collect();
    let hint = "write it as 172.20.{node}.0/24";
    let pods = fields.required("pods", hint, problems, word::pods);
    let hint = "write it as 172.21.0.0/24";
    let services = fields.required("services", hint, problems, |text| {
        let net = word::network(text)?;
        if (12..=28).contains(&net.prefix_len()) {
            return Ok(net);
        }
        Err(Refusal::new("must have a prefix from /12 to /28", "a /24 holds 254 services"))
    });
    let pods_v6 = fields.optional("podsV6", problems, second::pods);
    let services_v6 = fields.optional("servicesV6", problems, second::services);
    let v6_missing = ["podsV6", "servicesV6"].map(|key| fields.absent(key));
    Ranges { v6_missing, pods, services, load_balancers: balancers, api, pods_v6, services_v6 }
}

fn read_timings(root: &Fields<'_>, problems: &mut Problems) -> Timings {
    let mut timings = Timings {
        node_monitor_grace_period_seconds: GRACE_PERIOD_SECONDS,
        pod_eviction_timeout_seconds: EVICTION_TIMEOUT_SECONDS,
    };
    let Some((node, path)) = root.node("timings") else { return timings };
    let known = ["nodeMonitorGracePeriod", "podEvictionTimeout"];
    let Some(fields) = Fields::open(&path, node, &known, problems) else { return timings };
    if let Some(grace) = fields.optional("nodeMonitorGracePeriod", problems, word::seconds) {
        timings.node_monitor_grace_period_seconds = grace.value;
        // Agents renew their lease every ten seconds; fewer than two chances is a coin toss.
        if grace.value < 20 {
            let rule = "is shorter than two heartbeats of a healthy node";
            problems.add(&grace.place, format!("{}s", grace.value), rule, "give at least 20s");
        }
    }
    if let Some(timeout) = fields.optional("podEvictionTimeout", problems, word::seconds) {
        timings.pod_eviction_timeout_seconds = timeout.value;
    }
    timings
}

/// The links come once more with their place, to be compared with the other ranges.
fn read_sim(root: &Fields<'_>, problems: &mut Problems) -> (Sim, Option<Found<Ipv4Net>>) {
    let mut sim = Sim::default();
    let Some((node, path)) = root.node("sim") else { return (sim, None) };
    let Some(fields) = Fields::open(&path, node, &["memoryMiB", "cpus", "links"], problems) else {
        return (sim, None);
    };
    let memory = |text: &str| word::number(text, 512, 1 << 20);
    if let Some(memory) = fields.optional("memoryMiB", problems, memory) {
        sim.memory_mib = memory.value;
    }
    if let Some(cpus) = fields.optional("cpus", problems, |text| word::number(text, 1, 64)) {
        sim.cpus = cpus.value;
    }
    let links = fields.optional("links", problems, word::network);
    if let Some(links) = &links {
        if links.value.prefix_len() > 30 {
            problems.add(&links.place, links.value, "has no room for links", "give a /24");
        }
        sim.links = links.value;
    }
    (sim, links)
}

fn read_ceph(path: &str, node: &Node, problems: &mut Problems) -> Option<Ceph> {
    let fields = Fields::open(path, node, &["monitors", "pool"], problems)?;
    let nodes = fields.list("monitors", problems);
    if nodes.is_empty() {
        fields.missing("monitors", "list the monitors as address:port", problems);
    }
    let mut monitors: Vec<String> = Vec::new();
    for (node, path) in nodes {
        let Some(found) = scalar(&path, node, problems, word::endpoint) else { continue };
        if monitors.contains(&found.value) {
            problems.add(&found.place, &found.value, "is listed twice", "keep one of the two");
        }
        monitors.push(found.value);
    }
    let pool = fields.required("pool", "name the RBD pool for volumes", problems, word::text)?;
    Some(Ceph { monitors, pool: pool.value })
}

fn read_rack(path: &str, node: &Node, problems: &mut Problems) -> Option<RackDraft> {
    let known = ["name", "subnet", "gateway", "routing", "subnetV6"];
    let fields = Fields::open(path, node, &known, problems)?;
    let name = fields.required("name", "name the rack", problems, word::label);
    let subnet =
        fields.required("subnet", "the subnet of the rack's machines", problems, word::network);
    let subnet_v6 = fields.optional("subnetV6", problems, second::subnet);
    let hint = "the ToR router's address in the rack's subnet";
    let gateway = fields.required("gateway", hint, problems, word::address);
    let routing = match fields.node("routing") {
        Some((node, path)) => routing::read(&path, node, problems),
        None => {
            let hint = "write it as { mode: bgp, torAsn: 65001 }, { mode: ibgp, asn: 65010 } or { mode: ospf }";
            fields.missing("routing", hint, problems);
            None
        }
    };
    let says_v6 = fields.node("subnetV6").is_some();
    Some(RackDraft { place: fields.place, name, subnet, subnet_v6, says_v6, gateway, routing })
}

fn read_machine(path: &str, node: &Node, problems: &mut Problems) -> Option<MachineDraft> {
    let fields = Fields::open(path, node, &MACHINE_KEYS, problems)?;
    Some(MachineDraft {
        place: fields.place.clone(),
        name: fields.required("name", "name the machine", problems, word::label),
        node: fields.required("node", "give it a number, unique in the site", problems, |text| {
            word::number(text, 1, NODE_MAX)
        }),
        rack: fields.required("rack", "name the rack it stands in", problems, word::label),
        role: fields.required("role", "the roles are master and worker", problems, word::role),
        mac: fields.required("mac", "the Ethernet address it boots by", problems, word::mac),
        uuid: fields.optional("uuid", problems, word::uuid),
        serial: fields.optional("serial", problems, word::text),
        boot: {
            let hint = "the methods are bios, uefi-pxe and uefi-http";
            fields.required("boot", hint, problems, word::boot)
        },
        disk: fields.node("disk").and_then(|(node, path)| read_disk(&path, node, problems)),
        address: fields.optional("address", problems, word::address),
        is_virtual: fields
            .optional("virtual", problems, word::boolean)
            .is_some_and(|found| found.value),
    })
}

fn read_disk(path: &str, node: &Node, problems: &mut Problems) -> Option<DiskSelector> {
    let fields = Fields::open(path, node, &["serial", "wwn", "sizeMin"], problems)?;
    let selector = DiskSelector {
        serial: fields.optional("serial", problems, word::text).map(|found| found.value),
        wwn: fields.optional("wwn", problems, word::text).map(|found| found.value),
        size_bytes_min: fields.optional("sizeMin", problems, word::bytes).map(|found| found.value),
    };
    if ["serial", "wwn", "sizeMin"].iter().all(|key| fields.node(key).is_none()) {
        let hint = "give serial, wwn or sizeMin, or leave disk out to run from memory";
        problems.add(&fields.place, "{}", "selects every disk", hint);
    }
    Some(selector)
}

#[cfg(test)]
mod tests;
