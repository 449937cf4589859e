//! Addresses and ports for services.
//!
//! Which are free depends on all other services, so the API server calls this between
//! `prepare_create`/`prepare_update` and the store, holding its lock on services.

use std::{collections::BTreeSet, net::Ipv4Addr};

use objects::{Cause, Status, kind};
use serde_json::{Value, json};

/// The range addresses and ports of services come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceRange {
    /// The network's first address.
    pub network: Ipv4Addr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// The lowest node port.
    pub node_port_min: u16,
    /// The highest node port.
    pub node_port_max: u16,
}

impl ServiceRange {
    /// A range with upstream's node ports, 30000 to 32767.
    #[must_use]
    pub fn new(network: Ipv4Addr, prefix_len: u8) -> Self {
        Self { network, prefix_len, node_port_min: 30_000, node_port_max: 32_767 }
    }

    /// The range as text, `172.21.0.0/24`.
    #[must_use]
    pub fn cidr(&self) -> String {
        format!("{}/{}", Ipv4Addr::from_bits(self.base()), self.prefix_len)
    }

    /// The address of the service `kubernetes`: the first of the range.
    #[must_use]
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base().saturating_add(1))
    }

    /// The address of cluster DNS: the tenth of the range, if it has so many.
    #[must_use]
    pub fn tenth(&self) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from_bits(self.base().saturating_add(10));
        // The last address of the range is nobody's.
        (self.mask() | address.to_bits() != u32::MAX && self.contains(address)).then_some(address)
    }

    fn base(&self) -> u32 {
        self.network.to_bits() & self.mask()
    }

    fn mask(&self) -> u32 {
        u32::MAX.checked_shl(32_u32.saturating_sub(self.prefix_len.into())).unwrap_or(0)
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.base()
    }

    /// How many addresses can be given away: neither the network's nor the broadcast address.
    fn size(&self) -> u32 {
        (!self.mask()).saturating_sub(1)
    }
}

/// Gives a service the address and node ports it needs, or checks those it asks for.
///
/// `others` are all other services. `seed` chooses where the search for a free one starts.
///
/// # Errors
///
/// 422 when an address or port is out of range or taken, 500 when none is left.
pub fn assign(
    service: &mut Value,
    others: &[&Value],
    range: &ServiceRange,
    seed: u64,
) -> Result<(), Status> {
    assign_address(service, others, range, seed)?;
    assign_node_ports(service, others, range, seed)
}

fn text<'a>(service: &'a Value, path: &str) -> &'a str {
    objects::field::str_at(service, path).unwrap_or("")
}

fn invalid(service: &Value, cause: Cause) -> Status {
    Status::invalid(&kind::SERVICE, text(service, "metadata.name"), vec![cause])
}

fn assign_address(
    service: &mut Value,
    others: &[&Value],
    range: &ServiceRange,
    seed: u64,
) -> Result<(), Status> {
    let wanted = text(service, "spec.clusterIP").to_owned();
    if text(service, "spec.type") == "ExternalName" || wanted == "None" {
        return Ok(());
    }
    let used: BTreeSet<Ipv4Addr> =
        others.iter().filter_map(|other| text(other, "spec.clusterIP").parse().ok()).collect();
    let address = if wanted.is_empty() {
        // The first address is the API's own.
        let size = range.size().saturating_sub(1).max(1);
        let start = u32::try_from(seed % u64::from(size)).unwrap_or(0);
        (0..size)
            .map(|step| (start.wrapping_add(step)) % size)
            .map(|offset| Ipv4Addr::from_bits(range.base().saturating_add(2 + offset)))
            .find(|address| !used.contains(address))
            .ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?
    } else {
        let shown = json!(wanted);
        let fail = |service: &Value, why: &str| {
            invalid(service, Cause::invalid("spec.clusterIPs", &json!([shown]), why))
        };
        let Ok(address) = wanted.parse::<Ipv4Addr>() else {
            return Err(fail(service, "must be an IPv4 address"));
        };
        if !range.contains(address) {
            let why = format!(
                "failed to allocate IP {wanted}: the provided IP is not in the valid range {}/{}",
                range.network, range.prefix_len
            );
            return Err(fail(service, &why));
        }
        if used.contains(&address) {
            let why = format!("failed to allocate IP {wanted}: provided IP is already allocated");
            return Err(fail(service, &why));
        }
        address
    };
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("clusterIP".to_owned(), json!(address.to_string()));
        spec.insert("clusterIPs".to_owned(), json!([address.to_string()]));
    }
    Ok(())
}

fn node_ports(service: &Value) -> impl Iterator<Item = i64> + '_ {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    ports.into_iter().flatten().filter_map(|port| port.get("nodePort")?.as_i64())
}

fn assign_node_ports(
    service: &mut Value,
    others: &[&Value],
    range: &ServiceRange,
    seed: u64,
) -> Result<(), Status> {
    if !matches!(text(service, "spec.type"), "NodePort" | "LoadBalancer") {
        return Ok(());
    }
    let (low, high) = (i64::from(range.node_port_min), i64::from(range.node_port_max));
    let mut used: BTreeSet<i64> = others.iter().flat_map(|other| node_ports(other)).collect();
    let asked: Vec<i64> = node_ports(service).filter(|port| *port != 0).collect();
    for (at, port) in asked.iter().enumerate() {
        let field = format!("spec.ports[{at}].nodePort");
        if !(low..=high).contains(port) {
            let why = format!(
                "provided port is not in the valid range. The range of valid ports is {low}-{high}"
            );
            return Err(invalid(service, Cause::invalid(field, &json!(port), &why)));
        }
        if used.contains(port) {
            let why = "provided port is already allocated";
            return Err(invalid(service, Cause::invalid(field, &json!(port), why)));
        }
    }
    used.extend(asked);
    let span = (high - low).saturating_add(1).max(1);
    let start = i64::try_from(seed % u64::try_from(span).unwrap_or(1)).unwrap_or(0);
    let mut candidates = (0..span).map(|step| low + (start + step) % span);
    let ports = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        if port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0 {
            continue;
        }
        let free = candidates
            .find(|candidate| !used.contains(candidate))
            .ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))?;
        if let Some(port) = port.as_object_mut() {
            port.insert("nodePort".to_owned(), json!(free));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> ServiceRange {
        ServiceRange::new(Ipv4Addr::new(172, 21, 0, 0), 30)
    }

    fn wide() -> ServiceRange {
        ServiceRange::new(Ipv4Addr::new(172, 21, 0, 0), 24)
    }

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "s"}, "spec": spec})
    }

    #[test]
    fn addresses_are_given_once() {
        let mut first = service(json!({"type": "ClusterIP"}));
        assign(&mut first, &[], &range(), 7).unwrap();
        assert_eq!(first["spec"]["clusterIP"], "172.21.0.2");
        let mut second = service(json!({"type": "ClusterIP"}));
        let full = assign(&mut second, &[&first], &range(), 7).unwrap_err();
        assert_eq!(full.code, 500);
        let mut taken = service(json!({"type": "ClusterIP", "clusterIP": "172.21.0.2"}));
        assert_eq!(assign(&mut taken, &[&first], &range(), 7).unwrap_err().code, 422);
        let mut outside = service(json!({"type": "ClusterIP", "clusterIP": "10.0.0.1"}));
        assert_eq!(assign(&mut outside, &[], &range(), 7).unwrap_err().code, 422);
    }

    #[test]
    fn headless_services_get_no_address() {
        let mut headless = service(json!({"type": "ClusterIP", "clusterIP": "None"}));
        assign(&mut headless, &[], &range(), 7).unwrap();
        assert_eq!(headless["spec"]["clusterIP"], "None");
    }

    #[test]
    fn node_ports_are_given_once() {
        let spec =
            json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81, "nodePort": 30001}]});
        let mut first = service(spec);
        assign(&mut first, &[], &wide(), 0).unwrap();
        assert_eq!(first["spec"]["ports"][0]["nodePort"], 30000);
        let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]});
        let mut second = service(spec);
        assert_eq!(assign(&mut second, &[&first], &wide(), 0).unwrap_err().code, 422);
    }
}
