//! The API server: sockets, TLS and the store around the decisions of `api`.
//!
//! It serves the Kubernetes API over HTTPS (HTTP/1.1 and 2). Who a client is, its certificate or
//! its token says; strangers may only ask after health and version, and knock at the enrolment
//! door.
//! It decides nothing about objects itself: that is `api`'s, which knows neither sockets nor disk.
//!
//! Tasks: the accept loop with one task per connection, the connections to node agents, and the
//! sweep of what is not meant to last.

mod admit;
mod agent;
mod aggregate;
mod audit;
mod bootstrap;
mod certificate;
mod claim;
mod convert;
mod custom;
mod door;
mod enroll;
mod fair;
mod front;
mod gate;
mod handle;
mod identity;
mod log;
mod metrics;
mod metrics_api;
mod object;
mod proxy;
mod read;
mod registry;
mod respond;
mod review;
mod roles;
mod seal;
mod server;
mod site;
mod storage;
mod stream;
mod sweep;
mod token;
mod typing;
mod watch;
mod webhook;
mod write;

pub use api::service::ServiceRange;
pub use audit::AuditError;
pub use certificate::CertificateError;
pub use identity::{Audit, Identity, Oidc};
pub use seal::SealError;
pub use site::SiteError;
pub use storage::Storage;
pub use store::EtcdOptions;
pub use token::{KeyError, OidcError};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use objects::Status;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::server::Server;

/// How the API server runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// The master's directory: `pki/`, `store/`, `images/` and the kubeconfigs; made when missing. Servers
    /// that share an etcd cluster have the same `pki/`.
    pub data_dir: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Addresses and host names clients reach this server by, besides those it listens on; the
    /// first address stands in `admin.kubeconfig` and behind the service `kubernetes`.
    pub advertise: Vec<String>,
    /// The range service addresses come from, or one of each family; the first address of the
    /// first is the service `kubernetes`.
    pub service_cidr: ServiceRange,
    /// Where the objects are kept.
    pub storage: Storage,
    /// How identities are proven, and what becomes of their requests.
    pub identity: Identity,
    /// How long new pods that do not say it themselves tolerate a node that is not ready or not
    /// reachable, in seconds; upstream's is 300. `None` = nothing is added to pods.
    pub toleration_seconds: Option<u32>,
}

/// Why the API server cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The data directory cannot be used.
    #[error("cannot use the data directory {dir}")]
    Site {
        /// The directory.
        dir: PathBuf,
        /// The reason.
        #[source]
        source: SiteError,
    },
    /// The directory of images cannot be used.
    #[error("cannot use the images' directory {dir}")]
    Images {
        /// The directory.
        dir: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The store cannot be opened.
    #[error("cannot open the store")]
    Store(#[from] store::OpenError),
    /// The store in etcd cannot be used.
    #[error("cannot use the store in etcd")]
    Etcd(#[from] store::EtcdError),
    /// Objects cannot be enciphered or read as the configuration says.
    #[error("cannot keep objects enciphered")]
    Seal(#[from] SealError),
    /// The audit log cannot be kept.
    #[error("cannot keep the audit log")]
    Audit(#[from] AuditError),
    /// The objects every cluster has cannot be made.
    #[error("cannot make the first objects of the cluster")]
    Bootstrap(#[source] Status),
    /// The store failed for good; starting again reads what is there.
    #[error("the store takes no more writes")]
    StoreFailed,
}

/// An API server that listens, and is ready to serve.
///
/// The kubeconfigs are written by now.
pub struct ApiServer {
    listener: TcpListener,
    address: SocketAddr,
    server: Arc<Server>,
    stop: CancellationToken,
}

impl ApiServer {
    /// Listens, prepares the data directory, opens the store and makes what every cluster has.
    ///
    /// # Errors
    ///
    /// When the address is taken, or the directory or its store cannot be used.
    pub async fn open(stop: CancellationToken, config: &Config) -> Result<Self, RunError> {
        let listen = |source| RunError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        // The store is locked first: a second server on the same directory must not touch the
        // kubeconfigs of the one that runs.
        let store = storage::open(config).await?;
        let site = site::prepare(config, address)
            .map_err(|source| RunError::Site { dir: config.data_dir.clone(), source })?;
        let range = config.service_cidr;
        let keeping = config.identity.open()?;
        let dir = config.data_dir.join("images");
        let images = registry::Shelf::open(&dir);
        let images = images.map_err(|source| RunError::Images { dir, source })?;
        let mut server =
            Server::new(store, site, stop.clone(), range, address.port(), keeping, images);
        server.toleration_seconds = config.toleration_seconds;
        seal::renew(&server).await?;
        claim::repair(&server, matches!(config.storage, Storage::Embedded)).await;
        bootstrap::run(&server).await.map_err(RunError::Bootstrap)?;
        fair::settle(&server).await;
        Ok(Self { listener, address, server: Arc::new(server), stop })
    }

    /// Where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds what another part of this process counts to `/metrics`, in Prometheus' text format.
    pub fn measure_also(&self, render: impl Fn() -> String + Send + Sync + 'static) {
        self.server.others.add(render);
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    ///
    /// [`RunError::StoreFailed`] when the disk fails.
    pub async fn serve(self) -> Result<(), RunError> {
        let Self { listener, address, server, stop } = self;
        tracing::info!(%address, revision = server.store.revision(), "the API is served");
        let store = server.store.clone();
        // Its own token, so that a failed store ends the connections too.
        let doors = stop.child_token();
        let serving = async {
            tokio::join!(
                async {
                    door::serve(doors.clone(), listener, Arc::clone(&server)).await;
                    if let Some(log) = &server.audit {
                        log.close();
                    }
                },
                async {
                    if let Some(log) = &server.audit {
                        log.write().await;
                    }
                },
                sweep::run(doors.clone(), &server),
                custom::run(doors.clone(), &server),
                fair::run(doors.clone(), &server),
                typing::run(doors.clone(), &server),
                aggregate::run(doors.clone(), &server),
                roles::follow(doors.clone(), &server),
            )
        };
        let mut serving = std::pin::pin!(serving);
        let failed = tokio::select! { biased;
            _ = &mut serving => false,
            () = store.failed() => true,
        };
        if failed {
            doors.cancel();
            serving.await;
        }
        server.background.end().await;
        if failed { Err(RunError::StoreFailed) } else { Ok(()) }
    }
}

/// Runs an API server until `stop`.
///
/// # Errors
///
/// When it cannot start, or its disk fails; starting again is the way to recover.
pub async fn run(stop: CancellationToken, config: Config) -> Result<(), RunError> {
    ApiServer::open(stop, &config).await?.serve().await
}
