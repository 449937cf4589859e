//! Which service addresses a node may answer for right now, and so announces.
//!
//! Several nodes announce one address: the fabric spreads flows over them (anycast). A node
//! stops announcing before it stops answering, never after: when it drains, when it is not well,
//! when a service has nobody behind it that this node may send to.
//!
//! Spec: `externalTrafficPolicy`, `loadBalancerClass` and the label
//! `node.kubernetes.io/exclude-from-external-load-balancers` as upstream documents them.
//!
//! *Limits*: IPv4; cluster addresses stay inside the cluster.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use cluster::plan::Networks;
use ipnet::Ipv4Net;
use objects::network::{Endpoint, EndpointSlice, Service};

/// Services of another class are announced by those who serve that class.
const CLASS: &str = "muster.dev/pool";
/// The label by which a slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Whether a node may answer for the outside at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Serving,
    /// It is being drained: it answers only for what nobody else can.
    Draining,
    /// It is not well, not ready yet, or excluded by its operator.
    Out,
}

/// Chooses the addresses that `node` announces, each as a `/32`, sorted.
///
/// Addresses outside the plan's ranges are left out: no neighbour would believe them.
#[must_use]
pub fn choose<'a>(
    node: &str,
    standing: Standing,
    networks: &Networks,
    services: impl IntoIterator<Item = &'a Service>,
    slices: &[&EndpointSlice],
) -> BTreeSet<Ipv4Net> {
    let mut chosen = BTreeSet::new();
    if standing == Standing::Out {
        return chosen;
    }
    for service in services {
        if !is_ours(service) || !answers(node, standing, service, slices) {
            continue;
        }
        let given = service.status.load_balancer.ingress.iter().map(|one| one.ip.as_str());
        let addresses = given.chain(service.spec.external_ips.iter().map(String::as_str));
        let addresses = addresses.filter_map(|text| text.parse::<Ipv4Addr>().ok());
        let planned = |address: &Ipv4Addr| {
            networks.load_balancers.iter().any(|range| range.contains(address))
        };
        chosen.extend(addresses.filter(planned).map(Ipv4Net::from));
    }
    chosen
}

fn is_ours(service: &Service) -> bool {
    let class = service.spec.extra.get("loadBalancerClass").and_then(|class| class.as_str());
    let balanced = service.spec.kind == "LoadBalancer" && class.is_none_or(|class| class == CLASS);
    !service.metadata.is_deleting() && (balanced || !service.spec.external_ips.is_empty())
}

/// Whether this node has somebody to send a client to, and should.
fn answers(node: &str, standing: Standing, service: &Service, slices: &[&EndpointSlice]) -> bool {
    let local = |endpoint: &&Endpoint| endpoint.node_name.as_deref() == Some(node);
    let here = || ready(service, slices).any(|endpoint| local(&endpoint));
    let elsewhere = || ready(service, slices).any(|endpoint| !local(&endpoint));
    match (service.spec.external_traffic_policy.as_str(), standing) {
        ("Local", Standing::Serving) => here(),
        // Nobody else has an endpoint: to withdraw would cut off what still works.
        ("Local", _) => here() && !elsewhere(),
        (_, Standing::Serving) => here() || elsewhere(),
        // Any other node answers as well.
        (_, _) => false,
    }
}

fn ready<'a>(
    service: &'a Service,
    slices: &'a [&EndpointSlice],
) -> impl Iterator<Item = &'a Endpoint> {
    let of = |slice: &&&EndpointSlice| {
        slice.address_type == "IPv4"
            && slice.metadata.namespace == service.metadata.namespace
            && slice.metadata.labels.get(SERVICE_NAME) == Some(&service.metadata.name)
    };
    // Nothing said means ready, as upstream reads it.
    let is_ready = |endpoint: &&Endpoint| {
        endpoint.conditions.ready.unwrap_or(true) || service.spec.publish_not_ready_addresses
    };
    slices.iter().filter(of).flat_map(|slice| &slice.endpoints).filter(is_ready)
}

#[cfg(test)]
mod tests;
