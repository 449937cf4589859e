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
//! A service has one address of each of its families; which those are says [`family`].

pub(crate) mod family;
mod network;

use std::{collections::BTreeSet, net::IpAddr};

use objects::field::Fields as _;
use objects::{Cause, Status, kind};
use serde_json::{Value, json};

pub use network::{Family, Network, RangeError, ServiceRange, networks};

/// What a service holds that no other may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holding {
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its ports on every node.
    pub ports: BTreeSet<u16>,
}

impl Holding {
    /// What this service holds.
    #[must_use]
    pub fn of(service: &Value) -> Self {
        let several = service.field("spec.clusterIPs").and_then(Value::as_array);
        let several = several.into_iter().flatten().filter_map(Value::as_str);
        let one = std::iter::once(text(service, "spec.clusterIP"));
        let addresses = one.chain(several).filter_map(|text| text.parse().ok()).collect();
        let ports = service.field("spec.ports").and_then(Value::as_array);
        let ports = ports.into_iter().flatten().filter_map(|port| port.get("nodePort"));
        let ports = ports.chain(service.field("spec.healthCheckNodePort"));
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
    fn has_address(&self, address: IpAddr) -> bool;
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

/// Gives a service the families, addresses and node ports it needs, or checks those it asks for.
///
/// `old` is the service before this change, which keeps what it holds; `None` for a new one.
///
/// # Errors
///
/// 422 when families do not fit, or an address or port is out of range or taken, 500 when none is
/// left.
pub fn assign(service: &mut Value, old: Option<&Value>, supply: &Supply<'_>) -> Result<(), Status> {
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        family::link(spec);
    }
    let families: Vec<Family> = supply.range.families().collect();
    family::settle(service, old, &families)?;
    let own = old.map(Holding::of).unwrap_or_default();
    assign_addresses(service, &own, supply)?;
    assign_node_ports(service, &own, supply)
}

fn text<'a>(service: &'a Value, path: &str) -> &'a str {
    objects::field::str_at(service, path).unwrap_or("")
}

fn invalid(service: &Value, cause: Cause) -> Status {
    Status::invalid(&kind::SERVICE, text(service, "metadata.name"), vec![cause])
}

fn texts(service: &Value, path: &str) -> Vec<String> {
    let list = service.field(path).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Gives a service one address of each of its families, in their order.
fn assign_addresses(service: &mut Value, own: &Holding, supply: &Supply<'_>) -> Result<(), Status> {
    let mut addresses = texts(service, "spec.clusterIPs");
    if text(service, "spec.type") == "ExternalName"
        || addresses.first().is_some_and(|address| address == "None")
    {
        return Ok(());
    }
    let families = texts(service, "spec.ipFamilies");
    addresses.resize(families.len().max(addresses.len()), String::new());
    for (at, family) in families.iter().enumerate() {
        let Some(wanted) = addresses.get(at) else { continue };
        if !wanted.is_empty() {
            check_address(wanted, own, supply).map_err(|why| {
                let why = format!("failed to allocate IP {wanted}: {why}");
                invalid(service, Cause::invalid("spec.clusterIPs", &json!(addresses), &why))
            })?;
            continue;
        }
        let networks = supply.networks.iter().filter(|one| one.family().name() == family);
        let mut all = networks.flat_map(|network| network.addresses(supply.seed));
        let free = all.find(|address| !supply.taken.has_address(*address));
        let free =
            free.ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?;
        if let Some(place) = addresses.get_mut(at) {
            *place = free.to_string();
        }
    }
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("clusterIP".to_owned(), json!(addresses.first()));
        spec.insert("clusterIPs".to_owned(), json!(addresses));
    }
    Ok(())
}

/// Says why an address that a service asks for cannot be its.
fn check_address(wanted: &str, own: &Holding, supply: &Supply<'_>) -> Result<(), String> {
    let Ok(address) = wanted.parse::<IpAddr>() else {
        return Err("must be a valid IP address".to_owned());
    };
    if own.addresses.contains(&address) {
        return Ok(());
    }
    match supply.networks.iter().find(|network| network.contains(address)) {
        None => Err("the provided network does not match the current range".to_owned()),
        Some(network) if !network.gives(address) => {
            Err(format!("provided IP {wanted} is not in the valid range"))
        }
        Some(_) if supply.taken.has_address(address) => {
            Err("provided IP is already allocated".to_owned())
        }
        Some(_) => Ok(()),
    }
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
    let ports = service.field("spec.ports").and_then(Value::as_array);
    for (at, port) in ports.into_iter().flatten().enumerate() {
        let port = port.get("nodePort").and_then(Value::as_u64).unwrap_or(0);
        check_port(service, format!("spec.ports[{at}].nodePort"), port, own, supply)?;
    }
    let health = service.field("spec.healthCheckNodePort").and_then(Value::as_u64).unwrap_or(0);
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
    let allocates = service.field("spec.allocateLoadBalancerNodePorts") != Some(&json!(false));
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
mod tests;
