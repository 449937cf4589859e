//! Rules between the parts: what must differ, what must not overlap, what must contain what.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::fields::{Found, Problems};
use super::second::PodRangeV6;
use super::word::PodRange;
use super::{MachineDraft, NODE_ASN_BASE, RackDraft, SeedDraft};
use crate::plan::{Machine, Rack, RackRouting, Role, Seed};
use crate::problem::Place;

/// Everything that could be read, not yet compared.
pub(super) struct Draft {
    pub(super) seed: Option<SeedDraft>,
    pub(super) pods: Option<Found<PodRange>>,
    pub(super) services: Option<Found<Ipv4Net>>,
    pub(super) load_balancers: Vec<Found<Ipv4Net>>,
    /// The API's address, which is a range of one: nobody else may have it.
    pub(super) api: Option<Found<Ipv4Net>>,
    /// Where the IPv6 ranges of pods and of services would stand, if they are not there.
    pub(super) v6_missing: [Option<Place>; 2],
    pub(super) pods_v6: Option<Found<PodRangeV6>>,
    pub(super) services_v6: Option<Found<Ipv6Net>>,
    pub(super) racks: Vec<RackDraft>,
    pub(super) machines: Vec<MachineDraft>,
    pub(super) links: Option<Found<Ipv4Net>>,
}

impl Draft {
    /// Compares everything with everything; `None` when a part is missing (reported already).
    pub(super) fn check(&self, problems: &mut Problems) -> Option<(Seed, Vec<Rack>, Vec<Machine>)> {
        self.check_overlaps(problems);
        super::second::check(self, problems);
        self.check_unique(problems);
        let seed = self.check_seed(problems);
        let racks: Vec<Option<Rack>> =
            self.racks.iter().map(|rack| self.check_rack(rack, problems)).collect();
        let machines: Vec<Option<Machine>> =
            self.machines.iter().map(|machine| self.check_machine(machine, problems)).collect();
        self.check_addresses(&machines, problems);
        if self.racks.is_empty() {
            return None;
        }
        Some((
            seed?,
            racks.into_iter().collect::<Option<_>>()?,
            machines.into_iter().collect::<Option<_>>()?,
        ))
    }

    fn check_overlaps(&self, problems: &mut Problems) {
        let mut earlier: Vec<(Ipv4Net, &Place, bool)> = Vec::new();
        let seed = self.seed.as_ref().and_then(|seed| seed.subnet.as_ref());
        let pods = self.pods.as_ref().map(|pods| (pods.value.range, &pods.place, false));
        let services = self.services.as_ref().map(|found| (found.value, &found.place, false));
        let racks = self.racks.iter().filter_map(|rack| rack.subnet.as_ref());
        let ranges = seed
            .map(|found| (found.value, &found.place, true))
            .into_iter()
            .chain(pods)
            .chain(services)
            .chain(racks.map(|found| (found.value, &found.place, false)))
            .chain(self.links.as_ref().map(|found| (found.value, &found.place, false)))
            .chain(self.load_balancers.iter().map(|found| (found.value, &found.place, false)))
            .chain(self.api.as_ref().map(|found| (found.value, &found.place, false)));
        for (range, place, is_seed) in ranges {
            for (other, other_place, other_is_seed) in &earlier {
                // A seed may stand in a rack's own subnet: then the two ranges are one.
                let shared = (is_seed || *other_is_seed) && range == *other && self.is_rack(range);
                if !shared && (range.contains(other) || other.contains(&range)) {
                    let rule = format!("overlaps {} = {other}", other_place.path);
                    problems.add(place, range, rule, "choose a range of its own");
                }
            }
            earlier.push((range, place, is_seed));
        }
    }

    fn is_rack(&self, range: Ipv4Net) -> bool {
        self.racks.iter().filter_map(|rack| rack.subnet.as_ref()).any(|net| net.value == range)
    }

    fn check_unique(&self, problems: &mut Problems) {
        unique("rack name", self.racks.iter().filter_map(|rack| rack.name.as_ref()), problems);
        let asns: Vec<Found<u32>> = self.racks.iter().filter_map(tor_asn).collect();
        unique("ToR AS number", asns.iter(), problems);
        let machines = &self.machines;
        unique("name", machines.iter().filter_map(|machine| machine.name.as_ref()), problems);
        unique(
            "node number",
            machines.iter().filter_map(|machine| machine.node.as_ref()),
            problems,
        );
        unique("mac", machines.iter().filter_map(|machine| machine.mac.as_ref()), problems);
        unique("uuid", machines.iter().filter_map(|machine| machine.uuid.as_ref()), problems);
        unique("serial", machines.iter().filter_map(|machine| machine.serial.as_ref()), problems);
    }

    fn check_seed(&self, problems: &mut Problems) -> Option<Seed> {
        let draft = self.seed.as_ref()?;
        let subnet = draft.subnet.as_ref().map(|found| found.value);
        for found in draft.address.iter().chain(&draft.gateway) {
            inside(found, subnet, problems);
        }
        if let (Some(address), Some(gateway)) = (&draft.address, &draft.gateway)
            && address.value == gateway.value
        {
            let rule = "is the seed's own address";
            problems.add(&gateway.place, gateway.value, rule, "give the router's address");
        }
        if let Some(rack) = &draft.rack {
            self.known_rack(rack, problems);
        }
        let flat = subnet.is_some_and(|subnet| self.is_rack(subnet));
        let gateway = draft.gateway.as_ref().map(|found| found.value);
        let last = subnet.and_then(|subnet| subnet.hosts().next_back());
        let gateway =
            if flat { gateway } else { gateway.or(last.filter(|_| draft.rack.is_some())) };
        if let Some(subnet) = &draft.subnet
            && !flat
            && draft.rack.is_none()
            && self.racks.iter().any(|rack| rack.subnet.is_some())
        {
            let rule = "is no rack's subnet, and no rack is named whose router leads there";
            problems.add(&subnet.place, subnet.value, rule, "name it with seed.rack");
        }
        Some(Seed {
            address: draft.address.as_ref()?.value,
            subnet: subnet?,
            rack: draft.rack.as_ref().map(|found| found.value.clone()),
            gateway,
            api_port: draft.api_port,
            http_port: draft.http_port,
        })
    }

    fn known_rack(&self, rack: &Found<String>, problems: &mut Problems) -> Option<&RackDraft> {
        let named =
            |draft: &&RackDraft| draft.name.as_ref().is_some_and(|name| name.value == rack.value);
        let found = self.racks.iter().find(named);
        // With a rack whose name could not be read, this may be the one that was meant.
        if found.is_none() && self.racks.iter().all(|rack| rack.name.is_some()) {
            let names: Vec<&str> = self
                .racks
                .iter()
                .filter_map(|rack| Some(rack.name.as_ref()?.value.as_str()))
                .collect();
            let hint = format!("the racks are {}", names.join(", "));
            problems.add(&rack.place, &rack.value, "is an unknown rack", hint);
        }
        found
    }

    fn check_machine(&self, draft: &MachineDraft, problems: &mut Problems) -> Option<Machine> {
        let pod_cidr = self.pod_network(draft, problems);
        let rack = draft.rack.as_ref().and_then(|rack| self.known_rack(rack, problems));
        let subnet = rack.and_then(|rack| rack.subnet.as_ref()).map(|found| found.value);
        let address = match (&draft.address, &draft.node, subnet) {
            (Some(address), _, subnet) => {
                inside(address, subnet, problems);
                Some(address.value)
            }
            (None, Some(node), Some(subnet)) => by_formula(node, subnet, problems),
            (None, _, _) => None,
        };
        let node = draft.node.as_ref()?.value;
        let pod_cidr_v6 = self.pods_v6.as_ref().and_then(|pods| pods.value.network(node));
        let subnet_v6 = rack.and_then(|rack| rack.subnet_v6.as_ref()).map(|found| found.value);
        Some(Machine {
            name: draft.name.as_ref()?.value.clone(),
            rack: draft.rack.as_ref()?.value.clone(),
            node,
            role: draft.role.as_ref()?.value,
            address: address?,
            prefix_len: subnet?.prefix_len(),
            gateway: rack?.gateway.as_ref()?.value,
            mac: draft.mac.as_ref()?.value.clone(),
            uuid: draft.uuid.as_ref().map(|found| found.value.clone()),
            serial: draft.serial.as_ref().map(|found| found.value.clone()),
            boot: draft.boot.as_ref()?.value,
            disk: draft.disk.clone(),
            pod_cidr: pod_cidr?,
            pod_cidr_v6,
            address_v6: super::second::address(address?, subnet?, subnet_v6),
            asn: NODE_ASN_BASE + node,
            r#virtual: draft.is_virtual,
        })
    }

    fn check_rack(&self, draft: &RackDraft, problems: &mut Problems) -> Option<Rack> {
        let subnet = draft.subnet.as_ref().map(|found| found.value);
        if let Some(found) = draft.subnet.as_ref().filter(|found| found.value.prefix_len() > 30) {
            problems.add(&found.place, found.value, "has no room for machines", "give a /24");
        }
        if let Some(gateway) = &draft.gateway {
            inside(gateway, subnet, problems);
        }
        let name = draft.name.as_ref().map(|found| found.value.clone());
        let mut routing = draft.routing.as_ref()?.routing.value.clone();
        match &mut routing {
            RackRouting::Bgp { tors, .. } => check_tors(draft, subnet, tors, problems),
            RackRouting::Ibgp { reflectors, .. } => {
                self.check_reflectors(draft, name.as_deref(), reflectors, problems);
            }
            RackRouting::Ospf { .. } => (),
        }
        Some(Rack {
            name: name?,
            subnet: subnet?,
            gateway: draft.gateway.as_ref()?.value,
            routing,
            authentication: draft.routing.as_ref()?.authentication,
            subnet_v6: draft.subnet_v6.as_ref().map(|found| found.value),
        })
    }

    /// Reflectors are machines of the rack; without any named, its masters first.
    fn check_reflectors(
        &self,
        draft: &RackDraft,
        rack: Option<&str>,
        reflectors: &mut Vec<String>,
        problems: &mut Problems,
    ) {
        let mut here: Vec<(bool, u32, &str)> = self
            .machines
            .iter()
            .filter(|one| one.rack.as_ref().map(|found| found.value.as_str()) == rack)
            .filter_map(|one| {
                let role = one.role.as_ref()?.value;
                let (node, name) = (one.node.as_ref()?.value, &one.name.as_ref()?.value);
                Some((role != Role::Master, node, name.as_str()))
            })
            .collect();
        here.sort_unstable();
        if reflectors.is_empty() {
            reflectors.extend(here.iter().take(2).map(|(_, _, name)| (*name).to_owned()));
            return;
        }
        for found in draft.routing.iter().flat_map(|routing| &routing.reflectors) {
            if !here.iter().any(|(_, _, name)| *name == found.value) {
                let names: Vec<&str> = here.iter().map(|(_, _, name)| *name).collect();
                let hint = format!("the machines here are {}", names.join(", "));
                problems.add(&found.place, &found.value, "is no machine of this rack", hint);
            }
        }
    }

    fn pod_network(&self, draft: &MachineDraft, problems: &mut Problems) -> Option<Ipv4Net> {
        let (node, pods) = (draft.node.as_ref()?, self.pods.as_ref()?.value);
        let network = pods.network(node.value);
        if network.is_none() {
            let rule = format!("has no pod network in {}", pods.range);
            let hint = format!("give a number from 1 to {}", pods.node_max);
            problems.add(&node.place, node.value, rule, hint);
        }
        network
    }

    /// Addresses by formula can meet given ones, the routers' and the seed's.
    fn check_addresses(&self, machines: &[Option<Machine>], problems: &mut Problems) {
        let mut taken: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
        let seed = self.seed.as_ref();
        let fixed = seed.iter().flat_map(|seed| [&seed.address, &seed.gateway]).flatten();
        let gateways = self.racks.iter().filter_map(|rack| rack.gateway.as_ref());
        let tors = self.racks.iter().filter_map(|rack| rack.routing.as_ref());
        let tors = tors.flat_map(|routing| &routing.tors);
        for found in fixed.chain(tors).chain(gateways) {
            taken.insert(found.value, found.place.path.clone());
        }
        if let Some((subnet, seed)) = seed.and_then(|seed| Some((seed.subnet.as_ref()?, seed)))
            && seed.gateway.is_none()
            && !self.is_rack(subnet.value)
            && let (Some(last), Some(address)) = (subnet.value.hosts().next_back(), &seed.address)
            && last == address.value
        {
            let rule = "is the address of the router (the subnet's last, unless said)";
            problems.add(&address.place, address.value, rule, "give seed.gateway");
        }
        for (draft, machine) in self.machines.iter().zip(machines) {
            let Some(machine) = machine else { continue };
            let place = draft.address.as_ref().map_or(&draft.place, |found| &found.place);
            // A node number used twice was reported as that; its address follows from it.
            let twin = |other: &&Machine| other.rack == machine.rack && other.node == machine.node;
            if draft.address.is_none() && machines.iter().flatten().filter(twin).count() > 1 {
                continue;
            }
            if let Some(holder) = taken.get(&machine.address) {
                let rule = format!("is the address of {holder} already");
                let hint = if draft.address.is_some() {
                    "give an address of its own"
                } else {
                    "it follows from the node number; give another, or an address"
                };
                problems.add(place, machine.address, rule, hint);
            } else {
                taken.insert(machine.address, format!("machine {}", machine.name));
            }
        }
    }
}

fn tor_asn(rack: &RackDraft) -> Option<Found<u32>> {
    let routing = &rack.routing.as_ref()?.routing;
    let value = match &routing.value {
        RackRouting::Bgp { tor_asn, .. } => *tor_asn,
        RackRouting::Ibgp { asn, .. } => *asn,
        RackRouting::Ospf { tor_asn, .. } => (*tor_asn)?,
    };
    Some(Found { value, place: routing.place.clone() })
}

/// Further routers of a rack stand in its subnet, and the gateway is one of them.
fn check_tors(
    draft: &RackDraft,
    subnet: Option<Ipv4Net>,
    tors: &mut [Ipv4Addr],
    problems: &mut Problems,
) {
    let Some(gateway) = draft.gateway.as_ref().map(|found| found.value) else { return };
    let Some(routing) = &draft.routing else { return };
    for found in &routing.tors {
        inside(found, subnet, problems);
    }
    if let (false, Some(first)) = (tors.contains(&gateway), routing.tors.first()) {
        let rule = format!("is a list without the rack's gateway {gateway}");
        problems.add(&first.place, first.value, rule, "list every ToR router of the rack");
    }
    // The gateway first; the others in the order they were written.
    tors.sort_by_key(|tor| *tor != gateway);
}

fn by_formula(node: &Found<u32>, subnet: Ipv4Net, problems: &mut Problems) -> Option<Ipv4Addr> {
    let address = u32::from(subnet.network()).checked_add(node.value).map(Ipv4Addr::from);
    let good = address.filter(|address| subnet.contains(address) && *address != subnet.broadcast());
    if good.is_none() {
        let hosts = u32::from(subnet.broadcast()) - u32::from(subnet.network());
        let rule = format!("has no address in {subnet}");
        let hint = format!("give a number from 1 to {}, or an address", hosts.saturating_sub(1));
        problems.add(&node.place, node.value, rule, hint);
    }
    good
}

/// Checks that `found` is a host's address of `subnet`, when that could be read.
fn inside(found: &Found<Ipv4Addr>, subnet: Option<Ipv4Net>, problems: &mut Problems) {
    let Some(subnet) = subnet else { return };
    let example = subnet.hosts().next().unwrap_or(subnet.network());
    if !subnet.contains(&found.value) {
        let rule = format!("is outside the subnet {subnet}");
        problems.add(&found.place, found.value, rule, format!("try {example}"));
    } else if subnet.prefix_len() < 31
        && (found.value == subnet.network() || found.value == subnet.broadcast())
    {
        let rule = format!("is the network or broadcast address of {subnet}");
        problems.add(&found.place, found.value, rule, format!("try {example}"));
    }
}

/// Reports each value that came before.
fn unique<'a, T>(what: &str, all: impl Iterator<Item = &'a Found<T>>, problems: &mut Problems)
where
    T: Ord + std::fmt::Display + 'a,
{
    let mut seen: BTreeMap<&T, &Place> = BTreeMap::new();
    for found in all {
        if let Some(first) = seen.get(&found.value) {
            let rule = format!("is a {what} used already by {}", first.path);
            let hint = format!("each {what} must be unique (line {})", first.line);
            problems.add(&found.place, &found.value, rule, hint);
        } else {
            seen.insert(&found.value, &found.place);
        }
    }
}
