//! Which namespaces, links and addresses a rig has: all of it follows from plan and tag.
//!
//! Pure. Nothing is stored of this; every process that opens the rig computes it again.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cluster::plan::{BootMethod, Machine, Numbering, Plan, Rack, RackRouting};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The link from the seed to its ToR router, in the seed.
pub(crate) const SEED_UPLINK: &str = "rack0";
/// The link from the seed to the host, in the seed.
pub(crate) const SEED_HOST_LINK: &str = "host0";
/// The bridge of a rack, in its ToR router.
pub(crate) const BRIDGE: &str = "br0";
/// The link to the seed, in the seed's ToR router.
pub(crate) const TOR_SEED_LINK: &str = "seed0";

/// A rig as it is to be built.
#[derive(Debug, Clone)]
pub(crate) struct Topology {
    pub(crate) seed: SeedSite,
    pub(crate) tors: Vec<TorSite>,
    pub(crate) cables: Vec<Cable>,
    pub(crate) host: HostLink,
}

/// The operator's host.
#[derive(Debug, Clone)]
pub(crate) struct SeedSite {
    pub(crate) namespace: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix_len: u8,
    pub(crate) gateway: Ipv4Addr,
    /// Index of its ToR router.
    pub(crate) tor: usize,
    /// Whether it stands on the rack's own bridge rather than behind a port of the router.
    pub(crate) is_flat: bool,
}

/// A rack's router. The first one of a rack also holds the rack's bridge and its machines; another
/// one hangs at that bridge with a cable of its own.
#[derive(Debug, Clone)]
pub(crate) struct TorSite {
    /// The rack's name; with a number behind it for any but the rack's first.
    pub(crate) name: String,
    pub(crate) rack: String,
    /// Index of the rack's first router; `None` for that one itself.
    pub(crate) bridge_of: Option<usize>,
    /// Which of the rack's routers it is, from zero.
    pub(crate) number: usize,
    pub(crate) namespace: String,
    /// Its own address in the rack: the gateway's for the first.
    pub(crate) gateway: Ipv4Addr,
    pub(crate) prefix_len: u8,
    /// Its IPv6 addresses in the rack, all of them of `/64`s: what the plan's other family or its
    /// sessions without numbers ask for.
    pub(crate) addresses_v6: Vec<Ipv6Addr>,
    /// Stable address of the bridge, so that it does not change with every tap.
    pub(crate) bridge_mac: String,
    pub(crate) machines: Vec<MachineSite>,
}

/// A machine at its router.
#[derive(Debug, Clone)]
pub(crate) struct MachineSite {
    pub(crate) name: String,
    pub(crate) tap: String,
    pub(crate) mac: String,
    pub(crate) uuid: String,
    pub(crate) serial: String,
    pub(crate) boot: BootMethod,
}

/// A cable between two routers.
#[derive(Debug, Clone)]
pub(crate) struct Cable {
    pub(crate) ends: [CableEnd; 2],
}

/// One end of a cable.
#[derive(Debug, Clone)]
pub(crate) struct CableEnd {
    /// Index of the router.
    pub(crate) tor: usize,
    pub(crate) interface: String,
    pub(crate) address: Ipv4Addr,
    /// The same where the plan has a second family, a `/127`.
    pub(crate) address_v6: Option<Ipv6Addr>,
    pub(crate) asn: u32,
}

/// The link between host and seed, by which kubectl on the host reaches the API.
#[derive(Debug, Clone)]
pub(crate) struct HostLink {
    pub(crate) interface: String,
    pub(crate) host: Ipv4Addr,
    pub(crate) seed: Ipv4Addr,
}

/// Names a rig: the site, and four digits that keep equal sites in two directories apart.
pub(crate) fn tag_of(site: &str, dir: &Path) -> String {
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    let digits: String = hex::encode(digest).chars().take(4).collect();
    // Namespace names are paths and show up in prompts: short ones do.
    let site: String = site.chars().take(20).collect();
    format!("{site}-{digits}")
}

/// Where sockets live: their paths must stay short, whatever the state directory is.
pub(crate) fn socket_dir(tag: &str) -> PathBuf {
    Path::new("/run/muster-rig").join(tag)
}

/// A machine that stands in a rack though no plan names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stranger {
    /// What the rig calls it.
    pub name: String,
    /// The rack it is plugged into.
    pub rack: String,
    /// Its boot NIC.
    pub mac: String,
    /// SMBIOS UUID; `None` gives it one of its own.
    pub uuid: Option<String>,
    /// How its firmware boots.
    pub boot: BootMethod,
}

impl Topology {
    /// Lays out the rig of a plan, with machines that the plan does not name.
    pub(crate) fn new(plan: &Plan, strangers: &[Stranger], tag: &str) -> Result<Self> {
        let uninvited = |rack: &str| {
            let here = strangers.iter().enumerate().filter(move |(_, one)| one.rack == rack);
            here.map(|(index, one)| MachineSite {
                name: one.name.clone(),
                tap: format!("x{index}"),
                mac: one.mac.clone(),
                uuid: one.uuid.clone().unwrap_or_else(|| stable_uuid(&plan.site, &one.name)),
                serial: format!("SIM-{}-{}", plan.site, one.name),
                boot: one.boot,
            })
            .collect::<Vec<_>>()
        };
        let mut tors: Vec<TorSite> = plan
            .racks
            .iter()
            .map(|rack| TorSite {
                name: rack.name.clone(),
                bridge_of: None,
                number: 0,
                rack: rack.name.clone(),
                namespace: format!("{tag}-tor-{}", rack.name),
                gateway: rack.gateway,
                prefix_len: rack.subnet.prefix_len(),
                addresses_v6: addresses_v6(rack, 0, rack.gateway),
                bridge_mac: stable_mac(tag, &rack.name),
                machines: plan
                    .machines
                    .iter()
                    .filter(|machine| machine.rack == rack.name)
                    .map(|machine| MachineSite::new(&plan.site, machine))
                    .chain(uninvited(&rack.name))
                    .collect(),
            })
            .collect();
        tors.extend(further_routers(plan, tag));
        let seed = seed_site(plan, tag)?;
        let cables = cables(plan, &tors)?;
        Ok(Self { seed, tors, cables, host: HostLink::new(tag) })
    }

    /// Every namespace, the seed's first.
    pub(crate) fn namespaces(&self) -> Vec<&str> {
        let tors = self.tors.iter().map(|tor| tor.namespace.as_str());
        std::iter::once(self.seed.namespace.as_str()).chain(tors).collect()
    }

    /// A router: by the name of its rack the first one there, with a number behind it another.
    pub(crate) fn tor(&self, name: &str) -> Result<&TorSite> {
        let found = self.tors.iter().find(|tor| tor.name == name);
        found.with_context(|| format!("the plan has no rack or router {name}"))
    }

    /// A machine and the router it is plugged into.
    pub(crate) fn machine(&self, name: &str) -> Result<(&TorSite, &MachineSite)> {
        let all = self.tors.iter().flat_map(|tor| tor.machines.iter().map(move |one| (tor, one)));
        let found = all.into_iter().find(|(_, machine)| machine.name == name);
        found.with_context(|| format!("the plan has no machine {name}"))
    }

    /// The ends of cables at a router, each with the far end.
    pub(crate) fn cable_ends(&self, tor: usize) -> impl Iterator<Item = (&CableEnd, &CableEnd)> {
        self.cables.iter().filter_map(move |cable| {
            let [left, right] = &cable.ends;
            match (left.tor == tor, right.tor == tor) {
                (true, _) => Some((left, right)),
                (false, true) => Some((right, left)),
                (false, false) => None,
            }
        })
    }
}

impl MachineSite {
    fn new(site: &str, machine: &Machine) -> Self {
        let uuid = machine.uuid.clone().unwrap_or_else(|| stable_uuid(site, &machine.name));
        let serial =
            machine.serial.clone().unwrap_or_else(|| format!("SIM-{site}-{}", machine.name));
        Self {
            name: machine.name.clone(),
            tap: format!("m{}", machine.node),
            mac: machine.mac.clone(),
            uuid,
            serial,
            boot: machine.boot,
        }
    }
}

impl HostLink {
    /// Derives a /31 of link-local addresses from the tag, clear of the well-known ones.
    fn new(tag: &str) -> Self {
        let digest = Sha256::digest(tag.as_bytes());
        let byte = |at: usize| digest.get(at).copied().unwrap_or_default();
        // 169.254.16.0 to 169.254.143.255: neither the gateway of pods (169.254.1.1) nor the
        // metadata service of clouds (169.254.169.254), nor the reserved first and last /24.
        let third = 16 + byte(0) % 128;
        let fourth = byte(1) & 0xfe;
        let digits: String = hex::encode(digest).chars().take(8).collect();
        Self {
            interface: format!("mu{digits}"),
            host: Ipv4Addr::new(169, 254, third, fourth),
            seed: Ipv4Addr::new(169, 254, third, fourth | 1),
        }
    }
}

fn seed_site(plan: &Plan, tag: &str) -> Result<SeedSite> {
    let seed = &plan.seed;
    let flat = plan.racks.iter().position(|rack| rack.subnet == seed.subnet);
    let named = seed.rack.as_ref();
    let named = named.and_then(|name| plan.racks.iter().position(|rack| rack.name == *name));
    let tor = flat.or(named).context("no router leads to the seed's subnet: set seed.rack")?;
    let rack = plan.racks.get(tor).context("the plan has no rack")?;
    let gateway = if flat.is_some() { Some(rack.gateway) } else { seed.gateway };
    Ok(SeedSite {
        namespace: format!("{tag}-seed"),
        address: seed.address,
        prefix_len: seed.subnet.prefix_len(),
        gateway: gateway.context("the seed's subnet has no router: set seed.gateway")?,
        tor,
        is_flat: flat.is_some(),
    })
}

/// The routers of racks that have more than one, without the first of each: `a2` beside `a`.
fn further_routers(plan: &Plan, tag: &str) -> Vec<TorSite> {
    let mut all = Vec::new();
    for (index, rack) in plan.racks.iter().enumerate() {
        let RackRouting::Bgp { tors, .. } = &rack.routing else { continue };
        for (number, address) in tors.iter().enumerate().skip(1) {
            let name = format!("{}{}", rack.name, number + 1);
            all.push(TorSite {
                namespace: format!("{tag}-tor-{name}"),
                bridge_mac: stable_mac(tag, &name),
                name,
                rack: rack.name.clone(),
                bridge_of: Some(index),
                number,
                addresses_v6: addresses_v6(rack, number, *address),
                gateway: *address,
                prefix_len: rack.subnet.prefix_len(),
                machines: Vec::new(),
            });
        }
    }
    all
}

/// What a router of a rack, the N-th from zero, has of IPv6 on the rack's link.
fn addresses_v6(rack: &Rack, number: usize, address: Ipv4Addr) -> Vec<Ipv6Addr> {
    let local = match rack.routing {
        RackRouting::Bgp { numbering: Numbering::Unnumbered, .. } => {
            Some(Numbering::link_local(number))
        }
        RackRouting::Bgp { .. } | RackRouting::Ibgp { .. } | RackRouting::Ospf { .. } => None,
    };
    rack.address_v6(address).into_iter().chain(local).collect()
}

/// A cable between each pair of routers of different racks.
fn cables(plan: &Plan, tors: &[TorSite]) -> Result<Vec<Cable>> {
    let asn = |routing: &RackRouting| match routing {
        RackRouting::Bgp { tor_asn, .. } => Some(*tor_asn),
        RackRouting::Ibgp { asn, .. } => Some(*asn),
        RackRouting::Ospf { tor_asn, .. } => *tor_asn,
    };
    let mut addresses = links(plan.sim.links);
    let mut cables = Vec::new();
    for (left, near) in tors.iter().enumerate() {
        for (right, far) in tors.iter().enumerate().skip(left + 1) {
            if near.rack == far.rack {
                continue;
            }
            let rack = |tor: &TorSite| plan.rack(&tor.rack).context("a router's rack");
            let (left_rack, right_rack) = (rack(near)?, rack(far)?);
            let [low, high] = addresses
                .next()
                .with_context(|| format!("sim.links = {} is used up", plan.sim.links))?;
            let end = |tor: usize, far: usize, address: Ipv4Addr, rack: &cluster::plan::Rack| {
                let asn = asn(&rack.routing).with_context(|| {
                    format!("rack {} needs routing.torAsn to reach other racks", rack.name)
                })?;
                // A unique local range of the rig's own, with the first family's address in it.
                let address_v6 =
                    Ipv6Addr::from((0xfdff_u128 << 112) | u128::from(u32::from(address)));
                let address_v6 = plan.networks.v6().map(|_| address_v6);
                let interface = format!("to{far}");
                anyhow::Ok(CableEnd { tor, interface, address, address_v6, asn })
            };
            let ends = [end(left, right, low, left_rack)?, end(right, left, high, right_rack)?];
            cables.push(Cable { ends });
        }
    }
    ensure!(cables.len() <= 1000, "a rig of {} racks is too much for one host", plan.racks.len());
    Ok(cables)
}

fn links(range: Ipv4Net) -> impl Iterator<Item = [Ipv4Addr; 2]> {
    let subnets = range.subnets(31).ok();
    subnets.into_iter().flatten().map(|link| [link.network(), link.broadcast()])
}

/// A locally administered unicast address.
fn stable_mac(tag: &str, name: &str) -> String {
    let digest = Sha256::digest(format!("{tag}/{name}").as_bytes());
    let rest: Vec<String> = digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    format!("02:{}", rest.join(":"))
}

/// The UUID of a machine whose plan gives none.
pub(crate) fn stable_uuid(site: &str, name: &str) -> String {
    let digest = Sha256::digest(format!("{site}/{name}").as_bytes());
    let mut bytes = [0_u8; 16];
    for (to, from) in bytes.iter_mut().zip(digest) {
        *to = from;
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid().hyphenated().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAB: &str = include_str!("../../../examples/lab/rack.yaml");
    const TWO_TORS: &str = include_str!("../../../examples/two-tors/rack.yaml");
    const UNIVERSITY: &str = include_str!("../../../examples/university/rack.yaml");

    #[test]
    fn the_lab_has_two_routers_and_one_cable() {
        let plan = Plan::parse(LAB).unwrap();
        let site = Topology::new(&plan, &[], "lab-0000").unwrap();
        assert_eq!(site.namespaces(), ["lab-0000-seed", "lab-0000-tor-a", "lab-0000-tor-b"]);
        assert_eq!(site.seed.gateway, Ipv4Addr::new(10, 98, 0, 254));
        assert!(!site.seed.is_flat);
        let ends: Vec<_> = site.cable_ends(1).collect();
        assert_eq!(ends.len(), 1);
        assert_eq!(ends[0].0.address, Ipv4Addr::new(10, 98, 255, 1));
        assert_eq!(ends[0].1.asn, 65001);
        assert_eq!(site.machine("b-worker").unwrap().0.rack, "b");
    }

    #[test]
    fn racks_of_two_routers_have_four_cables_between_them() {
        let plan = Plan::parse(TWO_TORS).unwrap();
        let site = Topology::new(&plan, &[], "t-0000").unwrap();
        let names: Vec<_> = site.tors.iter().map(|tor| tor.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "a2", "b2"]);
        assert_eq!(site.cables.len(), 4);
        let second = site.tor("a2").unwrap();
        assert_eq!((second.gateway, second.bridge_of), (Ipv4Addr::new(10, 97, 1, 2), Some(0)));
        assert_eq!(site.machine("a-two").unwrap().0.name, "a");
        let near: Vec<_> = site.cable_ends(2).map(|(_, far)| (far.tor, far.asn)).collect();
        assert_eq!(near, [(1, 65002), (3, 65002)]);
    }

    #[test]
    fn a_flat_seed_stands_on_the_racks_bridge() {
        let plan = Plan::parse(UNIVERSITY).unwrap();
        let site = Topology::new(&plan, &[], "u-0000").unwrap();
        assert!(site.seed.is_flat);
        assert_eq!(site.seed.gateway, Ipv4Addr::new(10, 38, 2, 1));
        assert!(site.cables.is_empty());
    }

    #[test]
    fn the_same_machine_keeps_its_identity() {
        let plan = Plan::parse(LAB).unwrap();
        let one = Topology::new(&plan, &[], "lab-0000").unwrap();
        let two = Topology::new(&plan, &[], "lab-1111").unwrap();
        let (left, right) =
            (one.machine("a-worker").unwrap().1, two.machine("a-worker").unwrap().1);
        assert_eq!((&left.uuid, &left.serial), (&right.uuid, &right.serial));
        assert_ne!(left.uuid, one.machine("b-worker").unwrap().1.uuid);
    }

    #[test]
    fn a_stranger_stands_in_its_rack() {
        let plan = Plan::parse(LAB).unwrap();
        let stranger = Stranger {
            name: "nobody".to_owned(),
            rack: "b".to_owned(),
            mac: "52:54:00:00:02:99".to_owned(),
            uuid: None,
            boot: BootMethod::Bios,
        };
        let site = Topology::new(&plan, &[stranger], "lab-0000").unwrap();
        let (tor, machine) = site.machine("nobody").unwrap();
        assert_eq!((tor.rack.as_str(), machine.tap.as_str()), ("b", "x0"));
    }

    #[test]
    fn tags_give_links_that_fit_the_kernel() {
        for tag in ["lab-0000", "a", "a-very-long-site-name-0000"] {
            let link = HostLink::new(tag);
            assert!(link.interface.len() <= 15);
            assert_eq!(link.host.octets()[3] & 1, 0);
            assert_eq!(link.seed.octets()[3], link.host.octets()[3] | 1);
        }
    }
}
