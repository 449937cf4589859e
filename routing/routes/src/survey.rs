//! What a node was meant to do, what BIRD makes of it, and what the kernel does: side by side.
//!
//! Pure: three views in, one [`Survey`] out, as text or as JSON. It compares; it mends nothing.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::birdc::{BirdRoute, Counts, ProtocolRow};
use crate::compare::{Difference, KernelRoute, Way, compare, ways};
use crate::intent::{Intent, Protocol};

/// One node's routing, seen from three sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Survey {
    /// The node's name.
    pub node: String,
    /// The protocol of its rack.
    pub protocol: String,
    /// Its sessions with other routers.
    pub neighbours: Vec<Neighbour>,
    /// What it tells them, and which of them were told.
    pub announced: Vec<Announced>,
    /// Every destination that any of the three knows of.
    pub routes: Vec<Row>,
    /// Every point where they disagree; empty when all is well.
    pub differences: Vec<Difference>,
}

/// One session with another router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Neighbour {
    /// The instance's name in BIRD's configuration.
    pub name: String,
    /// The protocol's kind, in BIRD's words.
    pub kind: String,
    /// Whether it exchanges routes.
    pub running: bool,
    /// Since when it is in this state, in BIRD's words.
    pub since: String,
    /// What BIRD says of it.
    pub info: String,
}

/// One prefix this node originates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announced {
    /// The prefix.
    pub destination: IpNet,
    /// What it is for.
    pub purpose: String,
    /// The sessions over which BIRD tells it now.
    pub to: BTreeSet<String>,
}

/// One destination, as each of the three sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Which packets it is about.
    pub destination: IpNet,
    /// What it is for.
    pub purpose: String,
    /// What the plan says; `None` when it leaves it open.
    pub intent: Option<String>,
    /// What BIRD would have the kernel do; `None` without a route.
    pub bird: Option<String>,
    /// What the kernel does; `None` without a route.
    pub kernel: Option<String>,
}

/// What BIRD says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BirdView {
    /// `show protocols`.
    pub protocols: Vec<ProtocolRow>,
    /// How many prefixes each protocol takes and gives.
    pub counts: BTreeMap<String, Counts>,
    /// `show route export` of the kernel's protocols.
    pub routes: Vec<BirdRoute>,
    /// `show route export` of each session with another router, by its name.
    pub told: BTreeMap<String, BTreeSet<IpNet>>,
}

impl BirdView {
    /// The sessions with other routers.
    pub fn neighbours(&self) -> impl Iterator<Item = &ProtocolRow> {
        self.protocols.iter().filter(|row| matches!(row.kind.as_str(), "BGP" | "OSPF"))
    }
}

impl Survey {
    /// Puts the three views side by side.
    #[must_use]
    pub fn new(intent: &Intent, bird: &BirdView, table: &[KernelRoute]) -> Self {
        let mut differences = compare(intent, table);
        differences.extend(out_of_step(intent, bird, table));
        differences.extend(untold(intent, bird));
        differences.sort();
        differences.dedup();
        Self {
            node: intent.node.clone(),
            protocol: describe(&intent.protocol),
            neighbours: bird.neighbours().map(neighbour).collect(),
            announced: announced(intent, bird),
            routes: rows(intent, bird, table),
            differences,
        }
    }

    /// How many sessions exchange routes.
    #[must_use]
    pub fn running(&self) -> usize {
        self.neighbours.iter().filter(|one| one.running).count()
    }

    /// Whether everything is as it was meant.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.differences.is_empty() && self.running() == self.neighbours.len()
    }

    /// Renders it for people; ends with a line feed.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!(
            "{}: {}, {} of {} neighbours up, {}\n",
            self.node,
            self.protocol,
            self.running(),
            self.neighbours.len(),
            match self.differences.len() {
                0 => "no difference".to_owned(),
                1 => "1 difference".to_owned(),
                several => format!("{several} differences"),
            }
        );
        let neighbours = self.neighbours.iter().map(|one| {
            let state = if one.running { "up" } else { "down" };
            vec![
                one.name.clone(),
                one.kind.clone(),
                state.to_owned(),
                one.since.clone(),
                one.info.clone(),
            ]
        });
        text += &table(&["NEIGHBOUR", "KIND", "STATE", "SINCE", "BIRD SAYS"], neighbours);
        let announced = self.announced.iter().map(|one| {
            let to: Vec<&str> = one.to.iter().map(String::as_str).collect();
            let to = if to.is_empty() { "nobody".to_owned() } else { to.join(", ") };
            vec![one.destination.to_string(), one.purpose.clone(), to]
        });
        text += &table(&["ANNOUNCED", "WHAT", "TO"], announced);
        let routes = self.routes.iter().map(|row| {
            let cell = |view: &Option<String>| view.clone().unwrap_or_else(|| "-".to_owned());
            let destination = row.destination.to_string();
            vec![
                destination,
                row.purpose.clone(),
                cell(&row.intent),
                cell(&row.bird),
                cell(&row.kernel),
            ]
        });
        text += &table(&["DESTINATION", "WHAT", "INTENT", "BIRD", "KERNEL"], routes);
        for difference in &self.differences {
            text += &format!("  difference: {difference}\n");
        }
        text
    }
}

/// Columns as wide as their widest cell, indented; nothing when there are no rows.
fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut all: Vec<Vec<String>> = vec![header.iter().map(|&word| word.to_owned()).collect()];
    all.extend(rows);
    if all.len() == 1 {
        return String::new();
    }
    let mut widths = vec![0_usize; header.len()];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &all {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text += &format!("  {}\n", line.trim_end());
    }
    text
}

fn describe(protocol: &Protocol) -> String {
    match protocol {
        Protocol::Bgp { asn, .. } => format!("BGP, AS {asn}"),
        Protocol::Ibgp { asn, clients, .. } if clients.is_empty() => format!("iBGP, AS {asn}"),
        Protocol::Ibgp { asn, .. } => format!("iBGP, AS {asn}, route reflector"),
        Protocol::Ospf { area, .. } => format!("OSPF area {area}"),
    }
}

fn neighbour(row: &ProtocolRow) -> Neighbour {
    Neighbour {
        name: row.name.clone(),
        kind: row.kind.clone(),
        running: row.is_running(),
        since: row.since.clone(),
        info: row.info.clone(),
    }
}

/// The prefixes a node originates, and what each is for.
fn origins(intent: &Intent) -> Vec<(IpNet, &'static str)> {
    let own = std::iter::once((IpNet::V4(intent.pods), "own pods"));
    let api = intent.networks.api_net();
    let purpose = |net| if api == Some(net) { "API" } else { "service" };
    let host = intent.own_host().map(|net| (IpNet::V4(net), "own address"));
    let second = intent.second.iter().flat_map(|second| {
        let host = matches!(intent.protocol, Protocol::Bgp { .. }).then(|| second.host());
        let host = host.map(|net| (IpNet::V6(net), "own address"));
        std::iter::once((IpNet::V6(second.pods), "own pods")).chain(host)
    });
    own.chain(host)
        .chain(second)
        .chain(intent.announce.iter().map(|net| (IpNet::V4(*net), purpose(*net))))
        .collect()
}

fn announced(intent: &Intent, bird: &BirdView) -> Vec<Announced> {
    let mut all: BTreeMap<IpNet, &str> = origins(intent).into_iter().collect();
    let foreign = match &intent.protocol {
        Protocol::Ibgp { clients, .. } if !clients.is_empty() => "reflected",
        Protocol::Bgp { .. } | Protocol::Ibgp { .. } | Protocol::Ospf { .. } => "not ours",
    };
    for net in bird.told.values().flatten() {
        all.entry(*net).or_insert(foreign);
    }
    let one = |(destination, purpose): (IpNet, &str)| Announced {
        destination,
        purpose: purpose.to_owned(),
        to: listeners(bird, destination),
    };
    all.into_iter().map(one).collect()
}

fn listeners(bird: &BirdView, net: IpNet) -> BTreeSet<String> {
    let told = bird.told.iter().filter(|(_, nets)| nets.contains(&net));
    told.map(|(session, _)| session.clone()).collect()
}

/// What a session that runs is told or not told against the intent.
fn untold(intent: &Intent, bird: &BirdView) -> Vec<Difference> {
    let origins: BTreeMap<IpNet, &str> = origins(intent).into_iter().collect();
    let mut differences = Vec::new();
    for row in bird.neighbours().filter(|row| row.is_running()) {
        let Some(told) = bird.told.get(&row.name) else { continue };
        // OSPF has an instance for each family, BGP sessions carry both.
        let carries = |net: &IpNet| match (row.kind.as_str(), net) {
            ("OSPF", IpNet::V4(_)) => !row.name.ends_with('6'),
            ("OSPF", IpNet::V6(_)) => row.name.ends_with('6'),
            _ => true,
        };
        let lacking = origins.keys().filter(|net| carries(net) && !told.contains(net));
        differences.extend(lacking.map(|net| Difference {
            destination: *net,
            wanted: format!("announced to {}", row.name),
            found: "not announced".to_owned(),
        }));
        // A reflector says what its clients said; they were judged when they said it.
        if matches!(&intent.protocol, Protocol::Ibgp { clients, .. } if !clients.is_empty()) {
            continue;
        }
        let foreign = told.iter().filter(|net| !origins.contains_key(net));
        differences.extend(foreign.map(|net| Difference {
            destination: *net,
            wanted: "not announced".to_owned(),
            found: format!("announced to {}", row.name),
        }));
    }
    differences
}

/// Where the kernel does not do what BIRD told it, or still does what BIRD told it once.
fn out_of_step(intent: &Intent, bird: &BirdView, table: &[KernelRoute]) -> Vec<Difference> {
    let mut differences = Vec::new();
    let kernel: BTreeMap<IpNet, &KernelRoute> = table
        .iter()
        .filter(|route| route.by_bird)
        .map(|route| (route.destination, route))
        .collect();
    for route in &bird.routes {
        let found = kernel.get(&route.destination).map(|route| sorted(&route.way));
        let wanted = sorted(&route.way);
        if found.as_ref() != Some(&wanted) {
            let found = found.map_or_else(|| "no route".to_owned(), |way| way.to_string());
            let wanted = format!("{wanted} as BIRD says");
            differences.push(Difference { destination: route.destination, wanted, found });
        }
    }
    // Without BIRD's word there is nothing to be out of step with: `compare` has its say.
    if bird.protocols.is_empty() {
        return differences;
    }
    let known: BTreeSet<IpNet> = bird.routes.iter().map(|route| route.destination).collect();
    let second = intent.second.as_ref();
    let ours = |net: &IpNet| {
        IpNet::V4(intent.networks.pods).contains(net)
            || second.is_some_and(|second| IpNet::V6(second.all_pods).contains(net))
    };
    let left = kernel.values().filter(|route| !known.contains(&route.destination));
    // Foreign pod networks are named by `compare` already.
    differences.extend(left.filter(|route| !ours(&route.destination)).map(|route| {
        let found = format!("{} from an earlier BIRD", route.way);
        Difference { destination: route.destination, wanted: "no route".to_owned(), found }
    }));
    differences
}

fn sorted(way: &Way) -> Way {
    match way {
        Way::Via(gateways) => {
            let mut gateways = gateways.clone();
            gateways.sort_unstable();
            gateways.dedup();
            Way::Via(gateways)
        }
        Way::Link => Way::Link,
        Way::Blackhole => Way::Blackhole,
    }
}

fn rows(intent: &Intent, bird: &BirdView, table: &[KernelRoute]) -> Vec<Row> {
    let mut rows: BTreeMap<IpNet, Row> = BTreeMap::new();
    let mut want = |destination: IpNet, purpose: String, way: Option<Way>| {
        let intent = way.map(|way| way.to_string());
        rows.insert(destination, Row { destination, purpose, intent, bird: None, kernel: None });
    };
    want(intent.pods.into(), "own pods".to_owned(), Some(Way::Blackhole));
    want(intent.networks.services.into(), "services".to_owned(), Some(Way::Link));
    if let Some(second) = &intent.second {
        want(second.pods.into(), "own pods".to_owned(), Some(Way::Blackhole));
        want(second.services.into(), "services".to_owned(), Some(Way::Link));
    }
    for other in &intent.others {
        for (pods, gateways) in ways(intent, other) {
            want(pods, format!("pods of {}", other.node), Some(Way::Via(gateways)));
        }
    }
    let second = intent.second.as_ref();
    let racks = intent.underlay.iter().map(|net| IpNet::V4(*net));
    let racks = racks.chain(second.iter().flat_map(|one| &one.underlay).map(|net| IpNet::V6(*net)));
    for net in racks {
        want(net, "another rack".to_owned(), None);
    }
    let purpose = |net: &IpNet| {
        if net.prefix_len() == 0 {
            "way out".to_owned()
        } else if IpNet::V4(intent.networks.services).contains(net) {
            "service".to_owned()
        } else if IpNet::V4(intent.networks.pods).contains(net)
            || second.is_some_and(|second| IpNet::V6(second.all_pods).contains(net))
        {
            "nobody's pods".to_owned()
        } else {
            "not in the plan".to_owned()
        }
    };
    let fresh = |destination: IpNet| Row {
        purpose: purpose(&destination),
        destination,
        intent: None,
        bird: None,
        kernel: None,
    };
    for route in &bird.routes {
        let row = rows.entry(route.destination).or_insert_with(|| fresh(route.destination));
        row.bird = Some(route.way.to_string());
    }
    for route in table {
        // Links of the node's own and of its pods are no routing protocol's business.
        if !route.by_bird && !rows.contains_key(&route.destination) {
            continue;
        }
        let row = rows.entry(route.destination).or_insert_with(|| fresh(route.destination));
        // Beside BIRD's there may be one of the boot's, by the default route: it comes second.
        if route.by_bird || row.kernel.is_none() {
            row.kernel = Some(route.way.to_string());
        }
    }
    rows.into_values().collect()
}

#[cfg(test)]
mod tests;
