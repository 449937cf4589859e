//! The second family: which IPv6 ranges a site may have beside its IPv4 ones.
//!
//! A site has both families everywhere or IPv4 alone: pods, services and every rack's subnet come
//! together. Addresses are not given one by one, they follow from the IPv4 ones and from node
//! numbers.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::cross::Draft;
use super::fields::{Found, Problems, Refusal};
use crate::plan::{Authentication, Rack, RackRouting};
use crate::problem::Place;

/// Prefix length of a node's pod network, and of a rack's subnet: what everybody expects of a link.
const LINK_PREFIX: u8 = 64;
/// The API server keeps a bit for every service address; upstream draws the line here, too.
const SERVICES_PREFIX_MIN: u8 = 108;

/// How a node's IPv6 pod network follows from its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PodRangeV6 {
    /// The range that holds every pod network.
    pub(super) range: Ipv6Net,
}

impl PodRangeV6 {
    /// The largest node number with a network of its own.
    fn node_max(self) -> u32 {
        let bits = u32::from(LINK_PREFIX - self.range.prefix_len().min(LINK_PREFIX));
        1_u32.checked_shl(bits).map_or(u32::MAX, |count| count - 1)
    }

    /// The pod network of a node, the N-th of the range; `None` beyond the last.
    pub(super) fn network(self, node: u32) -> Option<Ipv6Net> {
        let offset = u128::from(node) << LINK_PREFIX;
        let address = u128::from(self.range.network()).checked_add(offset)?;
        let good = node <= self.node_max();
        Ipv6Net::new(Ipv6Addr::from(address), LINK_PREFIX).ok().filter(|_| good)
    }
}

/// Parses a network of unicast addresses without host bits.
fn network(text: &str, example: &str) -> Result<Ipv6Net, Refusal> {
    let refusal = || Refusal::new("is not an IPv6 network", format!("write it as {example}"));
    let net: Ipv6Net = text.parse().map_err(|_| refusal())?;
    if net.addr() != net.network() {
        return Err(Refusal::new("has host bits set", format!("try {}", net.trunc())));
    }
    let routed = ["2000::/3", "fc00::/7"].iter().filter_map(|text| text.parse::<Ipv6Net>().ok());
    if routed.into_iter().any(|range| range.contains(&net)) {
        return Ok(net);
    }
    let hint = format!("take a unique local range, as in {example}, or a global one");
    Err(Refusal::new("is no range that routers carry", hint))
}

/// Parses the range of pods: node N gets its N-th `/64`.
pub(super) fn pods(text: &str) -> Result<PodRangeV6, Refusal> {
    if text.contains('{') {
        let rule = "must be a whole range, of which node N gets the N-th /64";
        return Err(Refusal::new(rule, "write it as fd20::/48"));
    }
    let range = network(text, "fd20::/48")?;
    if (32..=60).contains(&range.prefix_len()) {
        return Ok(PodRangeV6 { range });
    }
    Err(Refusal::new("must have a prefix from /32 to /60", "a /48 holds 65535 nodes"))
}

/// Parses the range of services.
pub(super) fn services(text: &str) -> Result<Ipv6Net, Refusal> {
    let net = network(text, "fd21::/112")?;
    if (SERVICES_PREFIX_MIN..=124).contains(&net.prefix_len()) {
        return Ok(net);
    }
    let rule = format!("must have a prefix from /{SERVICES_PREFIX_MIN} to /124");
    Err(Refusal::new(rule, "a /112 holds 65534 services"))
}

/// Parses a rack's subnet.
pub(super) fn subnet(text: &str) -> Result<Ipv6Net, Refusal> {
    let net = network(text, "fd10:0:0:1::/64")?;
    if net.prefix_len() == LINK_PREFIX {
        return Ok(net);
    }
    let hint = format!("try {}", Ipv6Net::new(net.addr(), LINK_PREFIX).unwrap_or(net));
    Err(Refusal::new("is no /64, as the subnet of a link is", hint))
}

/// The address in the IPv6 subnet that belongs to one in the IPv4 subnet.
pub(super) fn address(
    address: Ipv4Addr,
    subnet: Ipv4Net,
    subnet_v6: Option<Ipv6Net>,
) -> Option<Ipv6Addr> {
    let rack = Rack {
        name: String::new(),
        subnet,
        gateway: address,
        routing: RackRouting::Ospf { area: 0, tor_asn: None },
        authentication: Authentication::None,
        subnet_v6,
    };
    rack.address_v6(address)
}

/// Compares what there is of the second family: all of it or nothing, and nothing twice.
pub(super) fn check(draft: &Draft, problems: &mut Problems) {
    if draft.v6_missing.iter().all(Option::is_some) {
        for found in draft.racks.iter().filter_map(|rack| rack.subnet_v6.as_ref()) {
            let rule = "is of no use without IPv6 ranges for pods and services";
            let hint = "give networks.podsV6 and networks.servicesV6, or remove it";
            problems.add(&found.place, found.value, rule, hint);
        }
        return;
    }
    let hints =
        ["give the pods one, too, such as fd20::/48", "give services one, too, such as fd21::/112"];
    for (place, hint) in draft.v6_missing.iter().zip(hints) {
        if let Some(place) = place {
            problems.add(place, "", "is missing", hint);
        }
    }
    for (index, rack) in draft.racks.iter().enumerate().filter(|(_, rack)| !rack.says_v6) {
        let place = Place { path: format!("{}.subnetV6", rack.place.path), ..rack.place.clone() };
        let hint = format!("the site has IPv6: give a /64, such as fd10:0:0:{}::/64", index + 1);
        problems.add(&place, "", "is missing", hint);
    }
    if let Some(pods) = &draft.pods_v6 {
        for node in draft.machines.iter().filter_map(|machine| machine.node.as_ref()) {
            if pods.value.network(node.value).is_none() {
                let rule = format!("has no pod network in {}", pods.value.range);
                let hint = format!("give a number from 1 to {}", pods.value.node_max());
                problems.add(&node.place, node.value, rule, hint);
            }
        }
    }
    overlaps(draft, problems);
}

fn overlaps(draft: &Draft, problems: &mut Problems) {
    let pods = draft.pods_v6.as_ref();
    let pods = pods.map(|found| Found { value: found.value.range, place: found.place.clone() });
    let racks = draft.racks.iter().filter_map(|rack| rack.subnet_v6.clone());
    let ranges: Vec<Found<Ipv6Net>> =
        pods.into_iter().chain(draft.services_v6.clone()).chain(racks).collect();
    for (index, range) in ranges.iter().enumerate() {
        for other in ranges.iter().take(index) {
            if range.value.contains(&other.value) || other.value.contains(&range.value) {
                let rule = format!("overlaps {} = {}", other.place.path, other.value);
                problems.add(&range.place, range.value, rule, "choose a range of its own");
            }
        }
    }
}
