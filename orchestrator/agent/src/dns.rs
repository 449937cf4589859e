//! Cluster DNS on this node: questions in by UDP and TCP, answers out.
//!
//! Every node answers at the site's one DNS address, which it gives to its own loopback device:
//! pods ask the node they run on, no packet leaves it, and nothing of it depends on the API
//! server, whose last word the caches keep. What is answered is decided in `node::dns`; foreign
//! names go to the site's stub domains, its upstream name servers, or the node's own.
//!
//! Settings, in the config map `kube-system/muster-site`, as JSON under the keys that upstream's
//! kube-dns used: `stubDomains` (`{"acme.local": ["10.0.0.53"]}`), `upstreamNameservers`
//! (`["10.0.0.53"]`).
//!
//! Tasks: the loop that keeps zone and sockets current; one for UDP, one for TCP; one per
//! foreign question under way and per TCP connection, owned by those.

mod datagram;
mod forward;
mod memory;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use ipnet::IpNet;
use kernel::{Address, AddressScope, Netlink, NetlinkError};
use node::dns::Zone;
use runtime::telemetry::report;
use thiserror::Error;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::services::{DnsConfig, Told, Watched};
use server::Desk;

/// The port of DNS.
const PORT: u16 = 53;
/// A burst of changes becomes one new zone.
const SETTLE: Duration = Duration::from_millis(20);
/// How often settings of the node are read again, and a failed start is tried again.
const BEAT: Duration = Duration::from_secs(10);

/// Answers from a zone that does not change, for ever; foreign names are refused service.
///
/// For benchmarks: the same sockets and tasks as a node's.
pub async fn serve_zone(zone: Zone, udp: UdpSocket, tcp: TcpListener) {
    let desk = Arc::new(Desk::default());
    desk.change_zone(|own| {
        *own = Some(zone);
        true
    });
    tokio::join!(server::serve_udp(udp, Arc::clone(&desk)), server::serve_tcp(tcp, desk));
}

/// Why DNS cannot answer at an address.
#[derive(Debug, Error)]
enum ListenError {
    #[error("this node cannot have the address {0}")]
    Address(SocketAddr, #[source] NetlinkError),
    #[error("{0} cannot be listened at")]
    Socket(SocketAddr, #[source] std::io::Error),
}

/// Cluster DNS of one node.
pub(crate) struct Dns {
    watched: Watched,
    config: DnsConfig,
    desk: Arc<Desk>,
    /// How far the zone has followed what the API says.
    told: Told,
    /// When the node's own settings were read, and what of the site's they were read with.
    read: Option<(Instant, [Option<String>; 2])>,
}

/// Sockets in use, and their tasks.
struct Serving {
    address: SocketAddr,
    /// Ends with this value.
    tasks: JoinSet<()>,
}

impl Dns {
    pub(crate) fn new(watched: Watched, config: DnsConfig) -> Self {
        Self { watched, config, desk: Arc::default(), told: Told::default(), read: None }
    }

    /// Answers until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(mut self) {
        let mut wakes = self.watched.changes();
        let mut serving: Option<Serving> = None;
        loop {
            self.refresh().await;
            let wanted = self.wanted();
            if let Some(wanted) = wanted
                && serving.as_ref().is_none_or(|serving| serving.address != wanted)
            {
                // The old sockets first: the new ones may be at the same port.
                drop(serving.take());
                match self.serve(wanted).await {
                    Ok(begun) => {
                        info!(address = %begun.address, "cluster DNS answers");
                        self.config.told.send_replace(vec![begun.address.ip().to_string()]);
                        serving = Some(begun);
                    }
                    Err(err) => warn!(err = report(&err), "cluster DNS cannot answer; retrying"),
                }
            }
            let changed = select_all(wakes.iter_mut().map(|wake| Box::pin(wake.changed())));
            if tokio::time::timeout(BEAT, changed).await.is_ok() {
                tokio::time::sleep(SETTLE).await;
            }
        }
    }

    /// Where to answer; `None` until there is something to say, or when the site has no address
    /// for it.
    fn wanted(&self) -> Option<SocketAddr> {
        let dns = self.watched.ranges().and_then(|site| site.v4.dns);
        let address = dns.map(|ip| SocketAddr::from((ip, PORT)));
        self.config.listen.or(address).filter(|_| self.desk.has_zone())
    }

    /// Takes in what the API and the node's settings say.
    async fn refresh(&mut self) {
        self.read_settings().await;
        let Some(site) = self.watched.ranges().filter(|_| self.watched.synced()) else {
            return;
        };
        let families = [Some(&site.v4), site.v6.as_ref()].into_iter().flatten();
        let ranges: Vec<IpNet> = families.flat_map(|one| [one.pods, one.services]).collect();
        let (watched, told, domain) = (&self.watched, &mut self.told, &self.config.domain);
        self.desk.change_zone(|own| {
            if own.as_ref().is_none_or(|zone| zone.ranges() != ranges) {
                *told = Told::default();
                *own = Zone::new(domain, ranges)
                    .inspect_err(|err| {
                        warn!(err = report(err), "the cluster's names cannot be served");
                    })
                    .ok();
            }
            let Some(zone) = own else { return false };
            watched.tell(told, zone.behind());
            zone.refresh()
        });
    }

    /// Reads whom to ask about foreign names, when that may have changed.
    async fn read_settings(&mut self) {
        let site = ["stubDomains", "upstreamNameservers"].map(|key| self.watched.setting(key));
        let recent = |(at, of): &(Instant, _)| at.elapsed() < BEAT && *of == site;
        if self.read.as_ref().is_some_and(recent) {
            return;
        }
        let resolv = tokio::fs::read_to_string(&self.config.resolv_conf).await;
        let own = self.wanted().map(|address| address.ip());
        let [stubs, general] = site.each_ref().map(Option::as_deref);
        let resolv = resolv.unwrap_or_default();
        self.desk.set_upstreams(forward::Upstreams::read(stubs, general, &resolv, own));
        self.read = Some((Instant::now(), site));
    }

    async fn serve(&self, address: SocketAddr) -> Result<Serving, ListenError> {
        if self.config.listen.is_none() {
            take_address(address).await?;
        }
        let failed = |source| ListenError::Socket(address, source);
        let udp = UdpSocket::bind(address).await.map_err(failed)?;
        // A port of 0 becomes the same free one for both.
        let address = udp.local_addr().map_err(failed)?;
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(server::serve_udp(udp, Arc::clone(&self.desk)));
        tasks.spawn(server::serve_tcp(tcp, Arc::clone(&self.desk)));
        // Whoever asked for any port is content with the one it became.
        let address = self.config.listen.unwrap_or(address);
        Ok(Serving { address, tasks })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

/// Gives the address to the loopback device, where every pod of this node can reach it.
async fn take_address(address: SocketAddr) -> Result<(), ListenError> {
    let failed = |source| ListenError::Address(address, source);
    let netlink = Netlink::open().map_err(failed)?;
    let loopback = netlink.require_link("lo").await.map_err(failed)?;
    let own = Address { address: address.ip(), prefix_len: 32, scope: AddressScope::Global };
    netlink.add_address(loopback.index, own).await.map_err(failed)
}
