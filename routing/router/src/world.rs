//! The router's round: look at API, BIRD, kernel and files, decide, act.

mod view;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use cluster::plan::Role;
use ipnet::Ipv4Net;
use kernel::nft::{self, NftError};
use kernel::{Address, LinkIndex, Netlink, NetlinkError, Route, sysctl};
use objects::node::{ROUTES, ROUTES_ANNOUNCED, ROUTES_WITHDRAWN};
use routes::birdc::ProtocolRow;
use routes::compare::Difference;
use routes::intent::Source;
use routes::{BirdView, Figures, Intent, IntentError, Protocol, Survey, render_node};
use runtime::client::Patch;
use runtime::driver::{Plan, World};
use runtime::resource::NODES;
use runtime::{Client, ClientError};
use serde_json::json;
use thiserror::Error;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::Paths;
use crate::bird::{Bird, BirdError};
use crate::pod_network::{
    FileError, GATEWAY, GATEWAY_V6, PodNetwork, PodNetworkV6, beside, render_list, write_file,
};
use crate::ready::{Answer, Wanted};
use crate::site::{Known, Site};
use view::{
    KernelView, default_route_v6, describe, kernel_routes, kernel_view, own_v6, render_survey,
    same_way, services_route, services_route_v6, settings, shared, write_private,
};

/// How long pods wait for the first neighbour. Their network would be ready before the rest of
/// the site can reach it; but a node whose ToR is down must not stay without pods for ever: those
/// of this node still reach each other, and the ToR's fault would hide behind a node's.
const NEIGHBOUR_WAIT: Duration = Duration::from_secs(10);
/// How often a neighbour is looked for meanwhile.
const NEIGHBOUR_BEAT: Duration = Duration::from_millis(200);

/// How long something that is not as it should be is looked at closely, to tell how long it took;
/// what takes longer is looked at with the beat.
const SETTLE_WAIT: Duration = Duration::from_secs(10);
/// How long after a change of BIRD's configuration its neighbours have surely let go of what was
/// withdrawn. A router hears of it in milliseconds and passes it on as fast; BIRD works out OSPF's
/// ways once a second, and its neighbours after it.
const LET_GO_BGP: Duration = Duration::from_secs(1);
const LET_GO_OSPF: Duration = Duration::from_secs(3);

/// The node as the router's world.
#[derive(Debug)]
pub(crate) struct Node {
    name: String,
    paths: Paths,
    site: Site,
    client: Client,
    health: Health,
    bird: Bird,
    netlink: Option<Netlink>,
    /// What was said last, and what stood there before: until the API shows it, it is on its way.
    saying: Option<(&'static str, Option<String>)>,
    /// Since when the node is closed and BIRD configured accordingly.
    closed: Option<Instant>,
    /// When BIRD first ran with our configuration.
    configured: Option<Instant>,
    /// What was reported last: a fault is logged when it comes and when it goes.
    reported: Reported,
    /// The differences of the round before.
    seen_before: Vec<Difference>,
    begun: Instant,
    figures: Figures,
    /// The figures as they were published last.
    published: String,
}

/// What is known of the node's own API server.
#[derive(Debug)]
pub(crate) struct Health {
    pub(crate) wanted: Wanted,
    pub(crate) answer: Answer,
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
    kernel: KernelView,
    settings: Vec<bool>,
    api: Api,
    bird: BirdView,
    bird_config: Option<BirdConfig>,
    pod_network: Option<String>,
    list: Option<String>,
    survey: Option<String>,
    /// How long BIRD has had our configuration.
    configured_for: Option<Duration>,
}

/// The API's shared address on this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Api {
    /// What the plan says; `None` on all but masters.
    address: Option<Ipv4Addr>,
    /// Whether this node answers to it.
    held: bool,
    /// Whether it may: its own server is ready, and it is not being emptied.
    wanted: bool,
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
    /// Give service addresses a route, so that local clients get as far as nat; or IPv6 its way out.
    Route { route: Box<Route> },
    /// Answer to the node's own IPv6 address, which nothing before us gave it.
    Address { address: Address, link: LinkIndex },
    /// Answer to the API's shared address.
    HoldApi { address: Ipv4Addr, loopback: LinkIndex },
    /// Leave it to the other masters.
    LeaveApi { address: Ipv4Addr, loopback: LinkIndex },
    /// Put a configuration into force.
    Configure { text: BirdConfig },
    /// Tell the plugin the pod network.
    PublishPodNetwork { text: String },
    /// Tell the runtime that pods may come.
    PublishList { text: String },
    /// Tell `muster routes` what is meant and what is.
    PublishSurvey { text: String },
    /// Leave the figures where a scrape finds them.
    PublishFigures { text: String },
    /// Tell the cluster whether this node draws traffic.
    Say { routes: &'static str },
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
    #[error("cannot route service addresses, or IPv6 out of the rack")]
    Services(#[source] NetlinkError),
    #[error("cannot give the node its IPv6 address")]
    Address(#[source] NetlinkError),
    #[error("cannot take or leave the API's address")]
    Api(#[source] NetlinkError),
    #[error("cannot publish")]
    Publish(#[source] FileError),
    #[error("cannot annotate the node")]
    Say(#[source] ClientError),
}

impl Node {
    pub(crate) fn new(
        name: String,
        paths: Paths,
        site: Site,
        client: Client,
        health: Health,
    ) -> Self {
        Self {
            bird: Bird::at(&paths.bird_socket),
            name,
            paths,
            site,
            client,
            health,
            netlink: None,
            saying: None,
            closed: None,
            configured: None,
            reported: Reported::default(),
            seen_before: Vec::new(),
            begun: Instant::now(),
            figures: Figures::default(),
            published: String::new(),
        }
    }

    /// Says a word unless it stands there already, or is on its way.
    fn say_once(&mut self, word: &'static str, said: Option<&str>, plan: &mut Plan<Action>) {
        if said == Some(word) {
            self.saying = None;
            return;
        }
        let on_its_way =
            |(last, before): &(&str, Option<String>)| *last == word && before.as_deref() == said;
        if !self.saying.as_ref().is_some_and(on_its_way) {
            plan.actions.push(Action::Say { routes: word });
        }
    }

    /// Keeps the figures, and adds to a plan what they ask for: to be published, and a closer look
    /// while something settles.
    fn count(&mut self, survey: &Survey, seen: &Everything, plan: &mut Plan<Action>) {
        let now = self.begun.elapsed();
        self.figures.look(neighbours(seen), &seen.bird.counts, survey, now);
        let text = self.figures.render(survey);
        if text != self.published {
            plan.actions.push(Action::PublishFigures { text });
        }
        let settles = |since| now.saturating_sub(since) < SETTLE_WAIT;
        if self.figures.unsettled().is_some_and(settles) {
            plan.again_after.get_or_insert(NEIGHBOUR_BEAT);
        }
    }

    /// Adds to a plan what the node says of its routes, or when it will.
    fn say(&mut self, protocol: &Protocol, seen: &Everything, plan: &mut Plan<Action>) {
        let said = seen.known.said.as_deref();
        if !seen.known.closed {
            self.closed = None;
            self.say_once(ROUTES_ANNOUNCED, said, plan);
            return;
        }
        let in_force = !plan.actions.iter().any(|one| matches!(one, Action::Configure { .. }));
        if !in_force {
            self.closed = None;
            return;
        }
        let since = *self.closed.get_or_insert_with(Instant::now);
        let patience = match protocol {
            Protocol::Bgp { .. } | Protocol::Ibgp { .. } => LET_GO_BGP,
            Protocol::Ospf { .. } => LET_GO_OSPF,
        };
        let left = patience.saturating_sub(since.elapsed());
        if left.is_zero() {
            self.say_once(ROUTES_WITHDRAWN, said, plan);
        } else if said != Some(ROUTES_WITHDRAWN) {
            plan.again_after = Some(plan.again_after.map_or(left, |other| other.min(left)));
        }
    }

    fn intent(&self, seen: &Everything) -> Result<Intent, IntentError> {
        Intent::new(Source {
            node: &self.name,
            interface: &seen.kernel.uplink.name,
            pods: seen.known.pods,
            racks: &seen.known.racks,
            machines: &seen.known.machines,
            networks: &seen.known.networks,
            keys: &seen.known.keys,
        })
        .map(|intent| {
            let mut announce = seen.known.announce.clone();
            announce.extend(seen.api.address.filter(|_| seen.api.wanted).map(Ipv4Net::from));
            announce.sort_unstable();
            Intent { announce, ..intent }
        })
    }

    async fn look(&mut self, mut known: Known) -> Result<Everything, RouterError> {
        let netlink = match self.netlink.take() {
            Some(netlink) => netlink,
            None => Netlink::open().map_err(RouterError::Kernel)?,
        };
        let looked = kernel_view(&netlink, &known, &self.name).await;
        // Only a socket that works is kept.
        let kernel = looked?;
        let api = self.look_at_api(&netlink, &known, kernel.loopback).await?;
        self.netlink = Some(netlink);
        let settings = settings(known.networks.v6().is_some())
            .map(|(name, value)| sysctl::read(name).is_ok_and(|current| current == value));
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
            kernel,
            api,
            bird,
            bird_config: fs::read_to_string(&self.paths.bird_config).ok().map(BirdConfig),
            pod_network: fs::read_to_string(&self.paths.pod_network).ok(),
            list: fs::read_to_string(&self.paths.cni_config).ok(),
            survey: fs::read_to_string(&self.paths.survey).ok(),
            configured_for,
        })
    }

    async fn look_at_api(
        &self,
        netlink: &Netlink,
        known: &Known,
        loopback: LinkIndex,
    ) -> Result<Api, RouterError> {
        let own = known.machines.iter().find(|machine| machine.name == self.name);
        let own = own.filter(|machine| machine.role == Role::Master);
        let Some((machine, address)) = own.zip(known.networks.api) else {
            self.health.wanted.send_if_modified(|whom| whom.take().is_some());
            return Ok(Api::default());
        };
        let server = SocketAddrV4::new(machine.address, known.api_port);
        self.health.wanted.send_if_modified(|whom| whom.replace(server) != Some(server));
        let found = netlink.addresses(loopback).await.map_err(RouterError::Kernel)?;
        Ok(Api {
            address: Some(address),
            held: found.iter().any(|one| one.address == IpAddr::V4(address)),
            wanted: *self.health.answer.borrow() == 1 && !known.closed,
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
        self.figures.configured(self.begun.elapsed());
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
        let survey = Survey::new(&intent, &seen.bird, &kernel_routes(&seen.kernel.routes));
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
        self.say(&intent.protocol, seen, &mut plan);
        self.count(&survey, seen, &mut plan);
        let text = render_survey(&survey);
        if seen.survey.as_ref() != Some(&text) {
            plan.actions.push(Action::PublishSurvey { text });
        }
        plan
    }

    async fn apply(&mut self, action: &Action) -> Result<(), RouterError> {
        match action {
            Action::Set { name, value } => sysctl::write(name, value).map_err(RouterError::Setting),
            Action::Route { route } => self.route(route).await,
            Action::Address { address, link } => {
                let netlink = Netlink::open().map_err(RouterError::Address)?;
                netlink.add_address(*link, *address).await.map_err(RouterError::Address)
            }
            Action::HoldApi { address, loopback } => {
                let netlink = Netlink::open().map_err(RouterError::Api)?;
                netlink.add_address(*loopback, shared(*address)).await.map_err(RouterError::Api)
            }
            Action::LeaveApi { address, loopback } => {
                let netlink = Netlink::open().map_err(RouterError::Api)?;
                let left = netlink.delete_address(*loopback, shared(*address)).await;
                left.map_err(RouterError::Api)
            }
            Action::Configure { text } => self.configure(text).await,
            Action::Say { routes } => {
                let patch = Patch::merge(json!({"metadata": {"annotations": {ROUTES: routes}}}));
                let patched = self.client.patch(&NODES, None, &self.name, &patch).await;
                patched.map_err(RouterError::Say)?;
                let before = self.site.said(&self.name);
                self.saying = Some((*routes, before));
                info!(node = self.name, routes, "the node's word on its routes");
                Ok(())
            }
            Action::PublishSurvey { text } => {
                write_file(&self.paths.survey, text).map_err(RouterError::Publish)
            }
            Action::PublishFigures { text } => {
                let file = self.paths.survey.with_extension("prom");
                write_file(&file, text).map_err(RouterError::Publish)?;
                self.published.clone_from(text);
                Ok(())
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
    for ((name, value), right) in settings(intent.second.is_some()).zip(&seen.settings) {
        if !right {
            actions.push(Action::Set { name, value });
        }
    }
    let kernel = &seen.kernel;
    if let Some(own) = own_v6(intent).filter(|own| !kernel.has_address(own)) {
        actions.push(Action::Address { address: own, link: kernel.uplink.index });
    }
    let first = services_route(intent, kernel.loopback);
    let second = services_route_v6(intent, kernel.uplink.index);
    let way_out = default_route_v6(intent, kernel.uplink.index);
    for route in std::iter::once(first).chain(second).chain(way_out) {
        if !kernel.routes.iter().any(|found| same_way(found, &route)) {
            actions.push(Action::Route { route: Box::new(route) });
        }
    }
    // The address is here before anybody is invited, and until nobody is any more.
    if let Some(address) = seen.api.address.filter(|_| seen.api.wanted && !seen.api.held) {
        actions.push(Action::HoldApi { address, loopback: kernel.loopback });
    }
    let text = BirdConfig(render_node(intent));
    // A BIRD without our protocols was restarted with its unit's minimal configuration.
    let forgotten = !seen.bird.protocols.iter().any(|row| row.name == "pods4");
    if forgotten || seen.bird_config.as_ref() != Some(&text) {
        actions.push(Action::Configure { text });
        return Plan { actions, again_after: Some(NEIGHBOUR_BEAT) };
    }
    if let Some(address) = seen.api.address.filter(|_| !seen.api.wanted && seen.api.held) {
        actions.push(Action::LeaveApi { address, loopback: kernel.loopback });
    }
    // BIRD is told before, so that the neighbours are there when the pods come.
    let Some(pod_cidr) = seen.known.pods else {
        return Plan::of(actions);
    };
    let network = PodNetwork {
        pod_cidr,
        gateway: GATEWAY,
        mtu: kernel.uplink.mtu,
        node_address: intent.address,
        v6: intent.second.as_ref().map(|second| PodNetworkV6 {
            pod_cidr: second.pods,
            gateway: GATEWAY_V6,
            node_address: second.address,
        }),
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

#[cfg(test)]
mod tests;
