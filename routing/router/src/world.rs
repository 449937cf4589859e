//! The router's round: look at API, BIRD, kernel and files, decide, act.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use kernel::nft::{self, NftError};
use kernel::{
    Family, Link, LinkIndex, Netlink, NetlinkError, Route, RouteKind, RouteOrigin, sysctl,
};
use routes::birdc::ProtocolRow;
use routes::compare::{Difference, KernelRoute, Way};
use routes::intent::Source;
use routes::{BirdView, Intent, IntentError, Survey, render_node};
use runtime::driver::{Plan, World};
use thiserror::Error;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::Paths;
use crate::bird::{Bird, BirdError};
use crate::pod_network::{FileError, GATEWAY, PodNetwork, beside, render_list, write_file};
use crate::site::{Known, Site};

/// Settings a node forwards with. Loose reverse-path checks, because ways there and back differ
/// with several routers; flows, not packets, are spread over them.
const SETTINGS: [(&str, &str); 5] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/fib_multipath_hash_policy", "1"),
    // Pods and their neighbours share the uplink only by way of us: nothing to redirect to.
    ("net/ipv4/conf/all/send_redirects", "0"),
];
/// How long pods wait for the first neighbour. Their network would be ready before the rest of
/// the site can reach it; but a node whose ToR is down must not stay without pods for ever: those
/// of this node still reach each other, and the ToR's fault would hide behind a node's.
const NEIGHBOUR_WAIT: Duration = Duration::from_secs(10);
/// How often a neighbour is looked for meanwhile.
const NEIGHBOUR_BEAT: Duration = Duration::from_millis(200);

/// The node as the router's world.
#[derive(Debug)]
pub(crate) struct Node {
    name: String,
    paths: Paths,
    site: Site,
    bird: Bird,
    netlink: Option<Netlink>,
    /// When BIRD first ran with our configuration.
    configured: Option<Instant>,
    /// What was reported last: a fault is logged when it comes and when it goes.
    reported: Reported,
    /// The differences of the round before.
    seen_before: Vec<Difference>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Reported {
    missing: Option<&'static str>,
    intent: Option<IntentError>,
    down: Vec<String>,
    differences: Vec<Difference>,
}

/// What a round sees.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The API has not said enough yet.
    Waiting(&'static str),
    /// Everything that matters.
    All(Box<Everything>),
}

#[derive(Debug)]
pub(crate) struct Everything {
    known: Known,
    uplink: Link,
    settings: Vec<bool>,
    routes: Vec<Route>,
    loopback: LinkIndex,
    bird: BirdView,
    bird_config: Option<BirdConfig>,
    pod_network: Option<String>,
    list: Option<String>,
    survey: Option<String>,
    /// How long BIRD has had our configuration.
    configured_for: Option<Duration>,
}

/// BIRD's configuration. It may hold the rack's key and is not printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct BirdConfig(String);

impl std::fmt::Debug for BirdConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BirdConfig({} bytes)", self.0.len())
    }
}

/// One step.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Write a kernel setting.
    Set { name: &'static str, value: &'static str },
    /// Give service addresses a route, so that local clients get as far as nat.
    RouteServices { route: Box<Route> },
    /// Put a configuration into force.
    Configure { text: BirdConfig },
    /// Tell the plugin the pod network.
    PublishPodNetwork { text: String },
    /// Tell the runtime that pods may come.
    PublishList { text: String },
    /// Tell `muster routes` what is meant and what is.
    PublishSurvey { text: String },
}

/// Why a round failed.
#[derive(Debug, Error)]
pub(crate) enum RouterError {
    #[error("the kernel does not tell its links or routes")]
    Kernel(#[source] NetlinkError),
    #[error("the table of services cannot be read")]
    Table(#[source] NftError),
    #[error("no link has the node's address {0}")]
    NoUplink(std::net::Ipv4Addr),
    #[error("no loopback link")]
    NoLoopback,
    #[error("BIRD is not in step")]
    Bird(#[source] BirdError),
    #[error("cannot set up forwarding")]
    Setting(#[source] sysctl::SysctlError),
    #[error("cannot route service addresses")]
    Services(#[source] NetlinkError),
    #[error("cannot publish")]
    Publish(#[source] FileError),
}

impl Node {
    pub(crate) fn new(name: String, paths: Paths, site: Site) -> Self {
        let bird = Bird::at(&paths.bird_socket);
        let reported = Reported::default();
        let seen_before = Vec::new();
        Self { name, paths, site, bird, netlink: None, configured: None, reported, seen_before }
    }

    fn intent(&self, seen: &Everything) -> Result<Intent, IntentError> {
        Intent::new(Source {
            node: &self.name,
            interface: &seen.uplink.name,
            pods: seen.known.pods,
            racks: &seen.known.racks,
            machines: &seen.known.machines,
            networks: &seen.known.networks,
            keys: &seen.known.keys,
        })
        .map(|intent| Intent { announce: seen.known.announce.clone(), ..intent })
    }

    async fn look(&mut self, mut known: Known) -> Result<Everything, RouterError> {
        let netlink = match self.netlink.take() {
            Some(netlink) => netlink,
            None => Netlink::open().map_err(RouterError::Kernel)?,
        };
        let looked = kernel_view(&netlink, &known, &self.name).await;
        // Only a socket that works is kept.
        let (uplink, loopback, routes) = looked?;
        self.netlink = Some(netlink);
        let settings = SETTINGS
            .iter()
            .map(|(name, value)| sysctl::read(name).is_ok_and(|current| current == *value));
        // Nobody is invited before there is somebody to open the door.
        if !known.announce.is_empty()
            && !nft::has_table("ip", node::service::TABLE).await.map_err(RouterError::Table)?
        {
            known.announce.clear();
        }
        let bird = self.bird.view().await.map_err(RouterError::Bird)?;
        let configured_for = self.configured.map(|at| at.elapsed());
        Ok(Everything {
            settings: settings.collect(),
            known,
            uplink,
            loopback,
            routes,
            bird,
            bird_config: fs::read_to_string(&self.paths.bird_config).ok().map(BirdConfig),
            pod_network: fs::read_to_string(&self.paths.pod_network).ok(),
            list: fs::read_to_string(&self.paths.cni_config).ok(),
            survey: fs::read_to_string(&self.paths.survey).ok(),
            configured_for,
        })
    }

    /// Says what is wrong, once when it comes and once when it goes.
    fn tell(&mut self, now: Reported) {
        if now == self.reported {
            return;
        }
        match now.missing {
            Some(missing) if self.reported.missing != Some(missing) => {
                info!(node = self.name, missing, "routing waits");
            }
            _ => (),
        }
        if let Some(err) = &now.intent
            && self.reported.intent.as_ref() != Some(err)
        {
            warn!(node = self.name, %err, "plan and node do not fit; routing stays as it is");
        }
        if now.down != self.reported.down {
            match now.down.as_slice() {
                [] => info!(node = self.name, "all neighbours are up"),
                down => {
                    warn!(node = self.name, neighbours = down.join(", "), "neighbours are down")
                }
            }
        }
        if now.differences != self.reported.differences {
            for difference in &now.differences {
                warn!(node = self.name, %difference, "the kernel's routes differ from the intent");
            }
            if now.differences.is_empty() {
                info!(node = self.name, "the kernel's routes are as intended");
            }
        }
        self.reported = now;
    }

    async fn configure(&mut self, BirdConfig(text): &BirdConfig) -> Result<(), RouterError> {
        let file = self.paths.bird_config.clone();
        let new = beside(&file);
        let io = |operation, path, err| RouterError::Publish(FileError::io(operation, path, err));
        write_private(&new, text).map_err(|err| io("write", &new, err))?;
        self.bird.check(&new).await.map_err(RouterError::Bird)?;
        fs::rename(&new, &file).map_err(|err| io("replace", &file, err))?;
        self.bird.configure(&file).await.map_err(RouterError::Bird)?;
        self.configured.get_or_insert_with(Instant::now);
        info!(node = self.name, "BIRD has a new configuration");
        Ok(())
    }

    async fn route(&mut self, route: &Route) -> Result<(), RouterError> {
        let netlink = match &self.netlink {
            Some(netlink) => netlink,
            None => &*self.netlink.insert(Netlink::open().map_err(RouterError::Services)?),
        };
        netlink.replace_route(route).await.map_err(RouterError::Services)
    }
}

impl World for Node {
    type Seen = Seen;
    type Action = Action;
    type Error = RouterError;

    fn name(&self) -> &str {
        "router"
    }

    async fn observe(&mut self) -> Result<Seen, RouterError> {
        match self.site.known() {
            Ok(known) => Ok(Seen::All(Box::new(self.look(known).await?))),
            Err(missing) => Ok(Seen::Waiting(missing)),
        }
    }

    fn plan(&mut self, seen: &Seen) -> Plan<Action> {
        let mut now = Reported::default();
        let seen = match seen {
            Seen::Waiting(missing) => {
                now.missing = Some(missing);
                self.tell(now);
                return Plan::of(Vec::new());
            }
            Seen::All(seen) => seen,
        };
        let intent = match self.intent(seen) {
            Ok(intent) => intent,
            Err(err) => {
                now.intent = Some(err);
                self.tell(now);
                return Plan::of(Vec::new());
            }
        };
        let mut plan = plan(&intent, seen, &self.paths);
        let survey = Survey::new(&intent, &seen.bird, &kernel_routes(&seen.routes));
        // While pods wait for a neighbour there is nothing to report yet.
        if plan.actions.is_empty() && plan.again_after.is_none() {
            now.missing = seen.known.pods.is_none().then_some("the node's podCIDR");
            now.down = neighbours(seen).filter(|row| !row.is_running()).map(describe).collect();
            // While neighbours come up the table is still filling.
            if now.down.is_empty() {
                // Kernel and BIRD are not looked at in one instant: what is seen once may be a
                // change on its way.
                now.differences.clone_from(&survey.differences);
                now.differences.retain(|one| self.seen_before.contains(one));
            }
            self.tell(now);
        }
        self.seen_before.clone_from(&survey.differences);
        let text = render_survey(&survey);
        if seen.survey.as_ref() != Some(&text) {
            plan.actions.push(Action::PublishSurvey { text });
        }
        plan
    }

    async fn apply(&mut self, action: &Action) -> Result<(), RouterError> {
        match action {
            Action::Set { name, value } => sysctl::write(name, value).map_err(RouterError::Setting),
            Action::RouteServices { route } => self.route(route).await,
            Action::Configure { text } => self.configure(text).await,
            Action::PublishSurvey { text } => {
                write_file(&self.paths.survey, text).map_err(RouterError::Publish)
            }
            Action::PublishPodNetwork { text } => {
                write_file(&self.paths.pod_network, text).map_err(RouterError::Publish)
            }
            Action::PublishList { text } => {
                write_file(&self.paths.cni_config, text).map_err(RouterError::Publish)?;
                info!(node = self.name, "the pod network is ready");
                Ok(())
            }
        }
    }
}

/// Plans the steps towards the intent; pure. The pod network comes last: whoever sees it may use
/// everything before.
fn plan(intent: &Intent, seen: &Everything, paths: &Paths) -> Plan<Action> {
    let mut actions = Vec::new();
    for ((name, value), right) in SETTINGS.into_iter().zip(&seen.settings) {
        if !right {
            actions.push(Action::Set { name, value });
        }
    }
    let services = services_route(intent, seen.loopback);
    if !seen.routes.iter().any(|route| same_way(route, &services)) {
        actions.push(Action::RouteServices { route: Box::new(services) });
    }
    let text = BirdConfig(render_node(intent));
    // A BIRD without our protocols was restarted with its unit's minimal configuration.
    let forgotten = !seen.bird.protocols.iter().any(|row| row.name == "pods4");
    if forgotten || seen.bird_config.as_ref() != Some(&text) {
        actions.push(Action::Configure { text });
        return Plan { actions, again_after: Some(NEIGHBOUR_BEAT) };
    }
    // BIRD is told before, so that the neighbours are there when the pods come.
    let Some(pod_cidr) = seen.known.pods else {
        return Plan::of(actions);
    };
    let network = PodNetwork {
        pod_cidr,
        gateway: GATEWAY,
        mtu: seen.uplink.mtu,
        node_address: intent.address,
    };
    let network = network.render();
    if seen.pod_network.as_ref() != Some(&network) {
        actions.push(Action::PublishPodNetwork { text: network });
    }
    let list = render_list(&paths.pod_network);
    if seen.list.as_ref() == Some(&list) {
        return Plan::of(actions);
    }
    let connected = neighbours(seen).any(ProtocolRow::is_running);
    // An agent that found BIRD configured already was restarted: long enough ago.
    let patience = seen.configured_for.is_some_and(|time| time < NEIGHBOUR_WAIT);
    if !connected && patience {
        return Plan { actions, again_after: Some(NEIGHBOUR_BEAT) };
    }
    actions.push(Action::PublishList { text: list });
    Plan::of(actions)
}

/// The sessions with other routers.
fn neighbours(seen: &Everything) -> impl Iterator<Item = &ProtocolRow> {
    seen.bird.neighbours()
}

/// Writes a file that nobody else may read.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    // A file that is there keeps its mode.
    match fs::remove_file(path) {
        Err(err) if err.kind() != ErrorKind::NotFound => return Err(err),
        Ok(()) | Err(_) => (),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

/// A survey as its file holds it.
fn render_survey(survey: &Survey) -> String {
    // Names and addresses under string keys: there is nothing JSON cannot say.
    serde_json::to_string(survey).unwrap_or_default() + "\n"
}

fn describe(row: &ProtocolRow) -> String {
    format!("{} ({})", row.name, row.info)
}

/// `SERVICES dev lo`: an address that no route leads to fails before nat has seen it.
fn services_route(intent: &Intent, loopback: LinkIndex) -> Route {
    let mut route = Route::on_link(IpNet::V4(intent.networks.services), loopback);
    route.source = Some(IpAddr::V4(intent.address));
    route
}

fn same_way(found: &Route, wanted: &Route) -> bool {
    found.destination == wanted.destination
        && found.kind == wanted.kind
        && found.source == wanted.source
}

/// The link that holds the node's address, the loopback link, and the IPv4 routes.
async fn kernel_view(
    netlink: &Netlink,
    known: &Known,
    node: &str,
) -> Result<(Link, LinkIndex, Vec<Route>), RouterError> {
    let address = known
        .machines
        .iter()
        .find(|machine| machine.name == node)
        .map_or(std::net::Ipv4Addr::UNSPECIFIED, |machine| machine.address);
    let links = netlink.links().await.map_err(RouterError::Kernel)?;
    let mut loopback = None;
    let mut uplink = None;
    for link in links {
        if link.loopback {
            loopback = Some(link.index);
            continue;
        }
        // Pods' links carry only the gateway's address; asking them all would be slow with many.
        if uplink.is_some() || link.name.starts_with(crate::cni::LINK_PREFIX) {
            continue;
        }
        let addresses = netlink.addresses(link.index).await.map_err(RouterError::Kernel)?;
        if addresses.iter().any(|one| one.address == IpAddr::V4(address)) {
            uplink = Some(link);
        }
    }
    let routes = netlink.routes(Family::V4).await.map_err(RouterError::Kernel)?;
    Ok((
        uplink.ok_or(RouterError::NoUplink(address))?,
        loopback.ok_or(RouterError::NoLoopback)?,
        routes,
    ))
}

/// The kernel's routes in the words of `routes`.
fn kernel_routes(routes: &[Route]) -> Vec<KernelRoute> {
    let way = |kind: &RouteKind| match kind {
        RouteKind::Unicast(hops) => {
            let gateways: Vec<_> = hops.iter().filter_map(|hop| hop.gateway).collect();
            if gateways.is_empty() { Way::Link } else { Way::Via(gateways) }
        }
        RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Other => Way::Blackhole,
    };
    let route = |route: &Route| KernelRoute {
        destination: route.destination,
        way: way(&route.kind),
        by_bird: route.origin == RouteOrigin::Bird,
    };
    routes.iter().map(route).collect()
}

#[cfg(test)]
mod tests;
