//! Addresses and ports for services.
//!
//! What is free the server's claims say, one for each address and port given away; here is decided
//! what a service needs and which of the free ones it gets, between `prepare_create` or
//! `prepare_update` and the store.
//!
//! Spec: addresses come from any `ServiceCIDR` that is ready. What is chosen for a client comes
//! from the upper band of a range as long as there is some, so that the lower one stays for those
//! who ask for a certain address or port.
//!
//! *Limits*: IPv4.

use std::{collections::BTreeSet, net::Ipv4Addr};

use objects::{Cause, Status, kind};
use serde_json::{Value, json};

/// The range addresses and ports of services come from when a cluster begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceRange {
    network: Network,
    /// The lowest node port.
    pub node_port_min: u16,
    /// The highest node port.
    pub node_port_max: u16,
}

impl ServiceRange {
    /// A range with upstream's node ports, 30000 to 32767.
    #[must_use]
    pub fn new(network: Ipv4Addr, prefix_len: u8) -> Self {
        let network = Network::new(network, prefix_len);
        Self { network, node_port_min: 30_000, node_port_max: 32_767 }
    }

    /// The range as text, `172.21.0.0/24`.
    #[must_use]
    pub fn cidr(&self) -> String {
        format!("{}/{}", Ipv4Addr::from_bits(self.network.base), self.network.prefix_len)
    }

    /// The address of the service `kubernetes`: the first of the range.
    #[must_use]
    pub fn first(&self) -> Ipv4Addr {
        self.network.at(0)
    }

    /// The address of cluster DNS: the tenth of the range, if it has so many.
    #[must_use]
    pub fn tenth(&self) -> Option<Ipv4Addr> {
        (self.network.size() >= 10).then(|| self.network.at(9))
    }

    /// Node ports in the order they are tried, begun at random.
    fn node_ports(&self, seed: u64) -> impl Iterator<Item = u16> {
        let size = u32::from(self.node_port_max.saturating_sub(self.node_port_min)) + 1;
        let low = self.node_port_min;
        let steps = rotation(size, reserved(size, 32, 128), seed);
        steps.filter_map(move |step| low.checked_add(u16::try_from(step).ok()?))
    }
}

/// A range of addresses for services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: u32,
    prefix_len: u8,
}

impl Network {
    fn new(address: Ipv4Addr, prefix_len: u8) -> Self {
        Self { base: address.to_bits() & mask(prefix_len), prefix_len }
    }

    fn parse(cidr: &str) -> Option<Self> {
        let (address, prefix_len) = cidr.split_once('/')?;
        let prefix_len = prefix_len.parse().ok().filter(|length| *length <= 32)?;
        Some(Self::new(address.parse().ok()?, prefix_len))
    }

    fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix_len) == self.base
    }

    /// Can this address be given away? Neither the network's nor the broadcast address can.
    fn gives(self, address: Ipv4Addr) -> bool {
        let offset = address.to_bits().wrapping_sub(self.base);
        self.contains(address) && (1..=self.size()).contains(&offset)
    }

    /// How many addresses can be given away.
    fn size(self) -> u32 {
        (!mask(self.prefix_len)).saturating_sub(1)
    }

    fn at(self, step: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.saturating_add(1).saturating_add(step))
    }

    /// Its addresses in the order they are tried, begun at random.
    fn addresses(self, seed: u64) -> impl Iterator<Item = Ipv4Addr> {
        let size = self.size();
        rotation(size, reserved(size, 16, 256), seed).map(move |step| self.at(step))
    }
}

fn mask(prefix_len: u8) -> u32 {
    u32::MAX.checked_shl(32_u32.saturating_sub(prefix_len.into())).unwrap_or(0)
}

/// How many of the lowest are kept for those who ask for them.
fn reserved(size: u32, share: u32, most: u32) -> u32 {
    const LEAST: u32 = 16;
    if size < LEAST { 0 } else { (size / share).clamp(LEAST, most) }
}

/// All steps below `size`: those from `reserved` on begun at random, then the lower ones.
fn rotation(size: u32, reserved: u32, seed: u64) -> impl Iterator<Item = u32> {
    let turn = move |from: u32, length: u32| {
        let start = u32::try_from(seed % u64::from(length.max(1))).unwrap_or(0);
        (start..length).chain(0..start).map(move |step| from.saturating_add(step))
    };
    let reserved = reserved.min(size);
    turn(reserved, size.saturating_sub(reserved)).chain(turn(0, reserved))
}

/// The ranges that addresses come from at the moment: those of each `ServiceCIDR` that is ready.
///
/// One of which nobody says anything counts as ready, for that is a controller's to say.
pub fn networks<'a>(ranges: impl IntoIterator<Item = &'a Value>) -> Vec<Network> {
    let is_ready = |range: &&Value| {
        let conditions = range.pointer("/status/conditions").and_then(Value::as_array);
        let mut conditions = conditions.into_iter().flatten();
        let ready = conditions.find(|one| one.get("type").and_then(Value::as_str) == Some("Ready"));
        let going = range.pointer("/metadata/deletionTimestamp").is_some();
        !going && ready.is_none_or(|one| one.get("status").and_then(Value::as_str) == Some("True"))
    };
    let cidrs = ranges
        .into_iter()
        .filter(is_ready)
        .filter_map(|range| range.pointer("/spec/cidrs")?.as_array());
    cidrs.flatten().filter_map(|cidr| Network::parse(cidr.as_str()?)).collect()
}

/// What a service holds that no other may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holding {
    /// Its addresses.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Its ports on every node.
    pub ports: BTreeSet<u16>,
}

impl Holding {
    /// What this service holds.
    #[must_use]
    pub fn of(service: &Value) -> Self {
        let addresses = text(service, "spec.clusterIP").parse().into_iter().collect();
        let ports = service.pointer("/spec/ports").and_then(Value::as_array);
        let ports = ports.into_iter().flatten().filter_map(|port| port.get("nodePort"));
        let ports = ports.chain(service.pointer("/spec/healthCheckNodePort"));
        let ports = ports.filter_map(|port| u16::try_from(port.as_u64()?).ok());
        Self { addresses, ports: ports.filter(|port| *port != 0).collect() }
    }

    /// What is held here and not there.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            addresses: self.addresses.difference(&other.addresses).copied().collect(),
            ports: self.ports.difference(&other.ports).copied().collect(),
        }
    }
}

/// Knows what others have.
pub trait Taken {
    /// Has anyone this address?
    fn has_address(&self, address: Ipv4Addr) -> bool;
    /// Has anyone this port on every node?
    fn has_port(&self, port: u16) -> bool;
}

/// What addresses and ports are chosen from.
pub struct Supply<'a> {
    /// The ranges of addresses.
    pub networks: &'a [Network],
    /// The range of ports.
    pub range: &'a ServiceRange,
    /// What is taken, by this service before the change too.
    pub taken: &'a dyn Taken,
    /// Chooses where the search for a free one starts.
    pub seed: u64,
}

/// Gives a service the address and node ports it needs, or checks those it asks for.
///
/// `own` is what it holds already.
///
/// # Errors
///
/// 422 when an address or port is out of range or taken, 500 when none is left.
pub fn assign(service: &mut Value, own: &Holding, supply: &Supply<'_>) -> Result<(), Status> {
    assign_address(service, own, supply)?;
    assign_node_ports(service, own, supply)
}

fn text<'a>(service: &'a Value, path: &str) -> &'a str {
    objects::field::str_at(service, path).unwrap_or("")
}

fn invalid(service: &Value, cause: Cause) -> Status {
    Status::invalid(&kind::SERVICE, text(service, "metadata.name"), vec![cause])
}

fn assign_address(service: &mut Value, own: &Holding, supply: &Supply<'_>) -> Result<(), Status> {
    let wanted = text(service, "spec.clusterIP").to_owned();
    if text(service, "spec.type") == "ExternalName" || wanted == "None" {
        return Ok(());
    }
    let address = if wanted.is_empty() {
        let mut all = supply.networks.iter().flat_map(|network| network.addresses(supply.seed));
        all.find(|address| !supply.taken.has_address(*address))
            .ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?
    } else {
        let fail =
            |why: &str| invalid(service, Cause::invalid("spec.clusterIPs", &json!([wanted]), why));
        let Ok(address) = wanted.parse::<Ipv4Addr>() else {
            return Err(fail("must be an IPv4 address"));
        };
        if own.addresses.contains(&address) {
            return Ok(());
        }
        let network = supply.networks.iter().find(|network| network.contains(address));
        let refused = match network {
            None => "the provided network does not match the current range".to_owned(),
            Some(network) if !network.gives(address) => {
                format!("provided IP {wanted} is not in the valid range")
            }
            Some(_) if supply.taken.has_address(address) => {
                "provided IP is already allocated".to_owned()
            }
            Some(_) => String::new(),
        };
        if !refused.is_empty() {
            return Err(fail(&format!("failed to allocate IP {wanted}: {refused}")));
        }
        address
    };
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("clusterIP".to_owned(), json!(address.to_string()));
        spec.insert("clusterIPs".to_owned(), json!([address.to_string()]));
    }
    Ok(())
}

fn assign_node_ports(
    service: &mut Value,
    own: &Holding,
    supply: &Supply<'_>,
) -> Result<(), Status> {
    let balances = text(service, "spec.type") == "LoadBalancer";
    if !balances && text(service, "spec.type") != "NodePort" {
        return Ok(());
    }
    let asked = Holding::of(service);
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    for (at, port) in ports.into_iter().flatten().enumerate() {
        let port = port.get("nodePort").and_then(Value::as_u64).unwrap_or(0);
        check_port(service, format!("spec.ports[{at}].nodePort"), port, own, supply)?;
    }
    let health = service.pointer("/spec/healthCheckNodePort").and_then(Value::as_u64).unwrap_or(0);
    check_port(service, "spec.healthCheckNodePort".to_owned(), health, own, supply)?;
    let mut free = supply
        .range
        .node_ports(supply.seed)
        .filter(|port| !asked.ports.contains(port) && !supply.taken.has_port(*port));
    let mut next = || {
        let free = free.next().map(|port| json!(port));
        free.ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))
    };
    // A balancer of its own may reach the pods without the nodes' ports.
    let allocates = service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&json!(false));
    let checks_health = balances && text(service, "spec.externalTrafficPolicy") == "Local";
    if !balances || allocates {
        let ports = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            if port.get("nodePort").and_then(Value::as_u64).unwrap_or(0) == 0 {
                port.insert("nodePort".to_owned(), next()?);
            }
        }
    }
    let spec = service.get_mut("spec").and_then(Value::as_object_mut);
    if let Some(spec) = spec.filter(|_| checks_health && health == 0) {
        spec.insert("healthCheckNodePort".to_owned(), next()?);
    }
    Ok(())
}

/// Refuses a port that is out of range or another service's.
fn check_port(
    service: &Value,
    field: String,
    port: u64,
    own: &Holding,
    supply: &Supply<'_>,
) -> Result<(), Status> {
    let range = supply.range;
    let (low, high) = (range.node_port_min, range.node_port_max);
    if port == 0 {
        return Ok(());
    }
    let known = u16::try_from(port).ok();
    if known.is_some_and(|port| own.ports.contains(&port)) {
        return Ok(());
    }
    let why = match known.filter(|port| (low..=high).contains(port)) {
        None => format!(
            "provided port is not in the valid range. The range of valid ports is {low}-{high}"
        ),
        Some(port) if supply.taken.has_port(port) => {
            "provided port is already allocated".to_owned()
        }
        Some(_) => return Ok(()),
    };
    Err(invalid(service, Cause::invalid(field, &json!(port), &why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What some services hold.
    #[derive(Default)]
    struct Others(Vec<Holding>);

    impl Taken for Others {
        fn has_address(&self, address: Ipv4Addr) -> bool {
            self.0.iter().any(|one| one.addresses.contains(&address))
        }

        fn has_port(&self, port: u16) -> bool {
            self.0.iter().any(|one| one.ports.contains(&port))
        }
    }

    /// One cluster with its ranges.
    struct Site {
        ranges: Vec<Value>,
        others: Others,
    }

    impl Site {
        fn new(cidr: &str) -> Self {
            let mut site = Self { ranges: Vec::new(), others: Others::default() };
            site.extend(cidr, json!({}));
            site
        }

        fn extend(&mut self, cidr: &str, status: Value) {
            self.ranges.push(json!({"spec": {"cidrs": [cidr]}, "status": status}));
        }

        /// Assigns as for a service that did not exist, and remembers it.
        fn give(&mut self, spec: Value) -> Result<Value, Status> {
            self.change(spec, &Holding::default())
        }

        fn change(&mut self, spec: Value, own: &Holding) -> Result<Value, Status> {
            let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
            let range = ServiceRange::new(Ipv4Addr::new(172, 21, 0, 0), 24);
            let networks = networks(&self.ranges);
            let supply =
                Supply { networks: &networks, range: &range, taken: &self.others, seed: 7 };
            assign(&mut service, own, &supply)?;
            self.others.0.push(Holding::of(&service));
            Ok(service["spec"].take())
        }

        #[track_caller]
        fn refuses(&mut self, spec: Value, code: u16, why: &str) {
            let refused = self.give(spec).unwrap_err();
            assert_eq!(refused.code, code, "{refused:?}");
            assert!(refused.message.contains(why), "{}", refused.message);
        }
    }

    #[test]
    fn addresses_are_given_once_until_a_range_is_added() {
        let mut site = Site::new("172.21.0.0/30");
        let asked = json!({"type": "ClusterIP", "clusterIP": "172.21.0.1"});
        site.give(asked.clone()).unwrap();
        let any = || json!({"type": "ClusterIP"});
        assert_eq!(site.give(any()).unwrap()["clusterIPs"], json!(["172.21.0.2"]));
        site.refuses(any(), 500, "range is full");
        site.refuses(asked, 422, "failed to allocate IP 172.21.0.1: provided IP is already");
        let at = |address: &str| json!({"type": "ClusterIP", "clusterIP": address});
        site.refuses(at("172.21.0.3"), 422, "provided IP 172.21.0.3 is not in the valid range");
        site.refuses(at("10.0.0.1"), 422, "the provided network does not match the current range");
        site.refuses(at("fd00::1"), 422, "must be an IPv4 address");
        // Another range gives addresses once it is ready.
        let ready = |word: &str| json!({"conditions": [{"type": "Ready", "status": word}]});
        site.extend("10.0.0.0/28", ready("False"));
        site.refuses(any(), 500, "range is full");
        site.ranges[1]["status"] = ready("True");
        assert!(site.give(any()).unwrap()["clusterIP"].as_str().unwrap().starts_with("10.0.0."));
        site.ranges[1]["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        site.refuses(any(), 500, "range is full");
    }

    #[test]
    fn the_lower_addresses_and_ports_stay_for_those_who_ask() {
        let mut site = Site::new("172.21.0.0/27");
        let spec = || json!({"type": "NodePort", "ports": [{"port": 80}]});
        let given: Vec<Value> = (0..30).map(|_| site.give(spec()).unwrap()).collect();
        let last = |spec: &Value| -> u8 {
            spec["clusterIP"].as_str().unwrap().rsplit('.').next().unwrap().parse().unwrap()
        };
        let (upper, lower) = given.split_at(14);
        assert!(upper.iter().all(|spec| (17..=30).contains(&last(spec))));
        assert!(lower.iter().all(|spec| (1..=16).contains(&last(spec))));
        assert!(given.iter().all(|spec| spec["ports"][0]["nodePort"].as_u64() >= Some(30_086)));
        site.refuses(spec(), 500, "range is full");
    }

    #[test]
    fn headless_services_get_no_address_and_what_one_has_it_keeps() {
        let mut site = Site::new("172.21.0.0/24");
        let headless = json!({"type": "ClusterIP", "clusterIP": "None"});
        assert_eq!(site.give(headless).unwrap()["clusterIP"], "None");
        // An address from a range that is gone by now.
        let old = json!({
            "type": "NodePort", "clusterIP": "10.9.9.9", "ports": [{"port": 1, "nodePort": 20}],
        });
        let own = Holding::of(&json!({"spec": old}));
        assert_eq!(site.change(old.clone(), &own).unwrap(), old);
    }

    #[test]
    fn node_ports_are_given_once() {
        let mut site = Site::new("172.21.0.0/24");
        let ports = |ports: Value| json!({"type": "NodePort", "ports": ports});
        let spec = ports(json!([{"port": 80}, {"port": 81, "nodePort": 30001}]));
        let given = site.give(spec).unwrap();
        assert_eq!(given["ports"][1]["nodePort"], 30001);
        assert_ne!(given["ports"][0]["nodePort"], 30001);
        let taken = ports(json!([{"port": 80, "nodePort": 30001}]));
        site.refuses(taken, 422, "provided port is already allocated");
        let outside = ports(json!([{"port": 80, "nodePort": 70000}]));
        site.refuses(outside, 422, "The range of valid ports is 30000-32767");
        // One number for both protocols of a service.
        let both = json!([
            {"port": 53, "protocol": "UDP", "nodePort": 30053},
            {"port": 53, "protocol": "TCP", "nodePort": 30053},
        ]);
        site.give(ports(both)).unwrap();
    }

    #[test]
    fn balancers_get_a_port_for_health_and_may_go_without_the_others() {
        let mut site = Site::new("172.21.0.0/24");
        let given = site.give(json!({
            "type": "LoadBalancer", "ports": [{"port": 80}], "externalTrafficPolicy": "Local",
            "allocateLoadBalancerNodePorts": false,
        }));
        let given = given.unwrap();
        assert!(given["healthCheckNodePort"].as_u64() >= Some(30_086));
        assert_eq!(given["ports"], json!([{"port": 80}]));
        let cluster = json!({
            "type": "LoadBalancer", "ports": [{"port": 80}], "externalTrafficPolicy": "Cluster",
        });
        let given = site.give(cluster).unwrap();
        assert_eq!(given.get("healthCheckNodePort"), None);
        assert!(given["ports"][0]["nodePort"].is_u64());
    }
}
