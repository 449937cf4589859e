//! The sockets around `boot`: DHCP, TFTP, HTTP with ranges, and reports.
//!
//! Decides nothing: bytes go to [`boot::Site`], records go to disk, then answers go out.
//!
//! Tasks: one *desk* owns the site and the journal and takes everything over one bounded channel;
//! a listener per DHCP socket, one task for TFTP with all its transfers, one for HTTP, and one
//! reporter to the API feed it. Every task ends with the service; a failed one ends it.
//!
//! *Limits*: IPv4; no HTTPS (old loaders speak none: what is served is public and signed).

#![forbid(unsafe_code)]

mod desk;
mod http;
mod journal;
mod probe;
mod reporter;
mod segment;
mod tftp;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boot::{Moment, Settings, Site, SiteError};
use cluster::plan::Plan;
use runtime::Supervisor;
use runtime::supervise::TaskFailed;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use crate::desk::{Desk, DeskHandle};
use crate::journal::{FileJournal, JournalError};
pub use crate::segment::Segments;

/// Packets and questions waiting for the desk. More is answered late, and then asked again.
const QUEUE_LEN: usize = 1024;

/// What the boot server serves, and where.
#[derive(Debug, Clone)]
pub struct Config {
    /// The checked plan.
    pub plan: Plan,
    /// The directory of `vmlinuz`, `initrd`, `root.img`, `manifest.json`, `manifest.sig` and the
    /// loaders `undionly.kpxe` and `snponly.efi`.
    pub image_dir: PathBuf,
    /// The site's UKI; without it UEFI HTTP boot finds nothing.
    pub uki: Option<PathBuf>,
    /// The cluster CA's certificate in PEM, served as `/ca.pem`; public.
    pub ca_pem: Option<PathBuf>,
    /// Where `journal.jsonl` is kept; made when missing.
    pub state_dir: PathBuf,
    /// What iPXE tells the kernel; of a UKI it is inside.
    pub command_line: String,
    /// The API, to report to and to see Ready nodes; may come later than the boot server.
    pub kubeconfig: Option<PathBuf>,
    /// Sockets.
    pub listen: Listen,
}

/// Where the boot server listens. A port of 0 takes any free one.
#[derive(Debug, Clone)]
pub struct Listen {
    /// DHCP requests of relays and of machines that renew.
    pub dhcp: SocketAddrV4,
    /// Segments on which broadcasts are heard.
    pub segments: Segments,
    /// TFTP; transfers go out from other ports of this address.
    pub tftp: SocketAddrV4,
    /// HTTP.
    pub http: SocketAddrV4,
    /// Where relays take answers: 67, except in tests without root.
    pub relay_port: u16,
    /// Where machines take answers: 68, except in tests without root.
    pub client_port: u16,
}

impl Config {
    /// Makes the usual configuration for a plan: all on the seed's address and the usual ports.
    #[must_use]
    pub fn new(plan: Plan, image_dir: PathBuf, state_dir: PathBuf) -> Self {
        let seed = plan.seed.address;
        let http_port = plan.seed.http_port;
        Self {
            plan,
            image_dir,
            uki: None,
            ca_pem: None,
            state_dir,
            command_line: String::new(),
            kubeconfig: None,
            listen: Listen {
                dhcp: SocketAddrV4::new(seed, 67),
                segments: Segments::Detect,
                tftp: SocketAddrV4::new(seed, 69),
                http: SocketAddrV4::new(seed, http_port),
                relay_port: 67,
                client_port: 68,
            },
        }
    }
}

/// Why the boot server stopped, or never began.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A socket could not be opened; worth a retry once the address is there.
    #[error("cannot listen for {what} on {address}")]
    Listen {
        /// What for.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The plan or settings cannot be served.
    #[error("cannot serve the plan")]
    Site(#[from] SiteError),
    /// The journal failed: memory would be ahead of the disk.
    #[error("journal failed")]
    Journal(#[from] JournalError),
    /// A bug: a task panicked.
    #[error("the {name} task panicked")]
    Panicked {
        /// Which task.
        name: String,
        /// What tokio knows of it.
        #[source]
        source: JoinError,
    },
    /// The journal was lost by a round that did not end: a bug.
    #[error("the journal is gone")]
    NoJournal,
}

/// The addresses that were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// DHCP.
    pub dhcp: SocketAddr,
    /// TFTP.
    pub tftp: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
}

/// A boot server with open sockets that does not answer yet.
pub struct Server {
    addresses: Addresses,
    desk: Desk,
    handle: DeskHandle,
    dhcp: Vec<desk::Listener>,
    tftp: Arc<UdpSocket>,
    http: TcpListener,
    config: Config,
}

/// Serves until `stop` is cancelled.
///
/// May be killed at any moment: what was promised is on disk, and starting it again goes on.
///
/// # Errors
/// When a socket or the journal fails. The supervisor may start it again.
pub async fn run(stop: CancellationToken, config: Config) -> Result<(), RunError> {
    Server::bind(config).await?.run(stop).await
}

impl Server {
    /// Opens sockets and reads the journal.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn bind(config: Config) -> Result<Self, RunError> {
        let listen = &config.listen;
        let http = TcpListener::bind(listen.http).await;
        let http = http.map_err(failed("HTTP", listen.http))?;
        let tftp = segment::open_unicast(listen.tftp).map_err(failed("TFTP", listen.tftp))?;
        let dhcp = segment::open_all(&config).map_err(|failure| RunError::Listen {
            what: "DHCP",
            address: failure.address,
            source: failure.source,
        })?;
        let address_of = |socket: &UdpSocket, asked: SocketAddrV4| {
            socket.local_addr().unwrap_or(SocketAddr::V4(asked))
        };
        let addresses = Addresses {
            dhcp: dhcp.first().map_or(SocketAddr::V4(listen.dhcp), |first| {
                address_of(&first.socket, listen.dhcp)
            }),
            tftp: address_of(&tftp, listen.tftp),
            http: http.local_addr().unwrap_or(SocketAddr::V4(listen.http)),
        };
        let settings = Settings {
            http_port: addresses.http.port(),
            command_line: config.command_line.trim().to_owned(),
            relay_port: listen.relay_port,
            client_port: listen.client_port,
            ..Settings::default()
        };
        let (journal, records) = FileJournal::open(&config.state_dir)?;
        let site = Site::new(settings, config.plan.clone(), records)?;
        let (handle, questions) = desk::queue(QUEUE_LEN);
        let desk = Desk::new(site, journal, questions, dhcp.clone())?;
        Ok(Self { addresses, desk, handle, dhcp, tftp: Arc::new(tftp), http, config })
    }

    /// Tells where it listens.
    #[must_use]
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until `stop` is cancelled.
    ///
    /// # Errors
    /// See [`run`].
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let Self { addresses, desk, handle, dhcp, tftp, http, config } = self;
        tracing::info!(dhcp = %addresses.dhcp, tftp = %addresses.tftp, http = %addresses.http, "boot server listens");
        // A failed task takes the service with it, not the whole process.
        let mut tasks = Supervisor::new(stop.child_token());
        let stop = tasks.stop();
        tasks.spawn_fallible("desk", desk.run(stop.clone()));
        for listener in dhcp {
            tasks.spawn("dhcp", desk::listen(stop.clone(), listener, handle.clone()));
        }
        let image_dir = config.image_dir.clone();
        tasks.spawn("tftp", tftp::run(stop.clone(), tftp, image_dir, handle.clone()));
        if config.listen.segments == Segments::Detect {
            tasks.spawn("probe", probe::run(stop.clone(), config.clone(), handle.clone()));
        }
        if let Some(kubeconfig) = config.kubeconfig.clone() {
            tasks.spawn("reporter", reporter::run(stop.clone(), kubeconfig, handle.clone()));
        }
        tasks.spawn("http", http::run(stop.clone(), http, config, handle));
        tasks.join().await.map_err(|failed| match failed {
            TaskFailed::Failed { source, .. } => source,
            TaskFailed::Panicked { name, source } => RunError::Panicked { name, source },
        })
    }
}

/// The time, for the logic that has no clock.
pub(crate) fn now() -> Moment {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Moment::from_unix_ms(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX))
}

/// IPv4 address of a peer; an IPv6 peer is nobody we lease to.
pub(crate) fn peer_v4(peer: SocketAddr) -> Ipv4Addr {
    match peer {
        SocketAddr::V4(peer) => *peer.ip(),
        SocketAddr::V6(peer) => peer.ip().to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED),
    }
}

fn failed(what: &'static str, address: SocketAddrV4) -> impl FnOnce(std::io::Error) -> RunError {
    move |source| RunError::Listen { what, address: address.into(), source }
}
