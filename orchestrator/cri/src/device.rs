//! Speaks with device plugins: they register at a socket of ours, we list and allocate at theirs.
//!
//! Spec: upstream's device plugin API `v1beta1`. Plugins of `v1beta1` are the only ones there
//! are; the version is checked by whoever takes the registration.
//!
//! Nothing is decided here. One task accepts registrations, one more for each connection.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;
use tracing::debug;

use crate::client::{CallError, ConnectError, ask, ready};
use crate::message::{CdiDevice, Device as ContainerDevice, KeyValue, Mount};

/// The version of the API that is spoken.
pub const VERSION: &str = "v1beta1";
/// Limit of a call to a plugin; some set their hardware up meanwhile.
const LIMIT: Duration = Duration::from_secs(30);
/// How many plugins may register at once.
const CONNECTIONS_MAX: usize = 64;

/// A plugin that wants to be known.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RegisterRequest {
    /// The version of the API it speaks.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Its socket, beside ours.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// The resource its devices are, as `example.org/card`.
    #[prost(string, tag = "3")]
    pub resource_name: String,
    /// What it wants to be asked.
    #[prost(message, optional, tag = "4")]
    pub options: Option<PluginOptions>,
}

/// What a plugin wants to be asked.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct PluginOptions {
    /// Whether it is told before a container starts.
    #[prost(bool, tag = "1")]
    pub pre_start_required: bool,
    /// Whether it knows which devices go well together.
    #[prost(bool, tag = "2")]
    pub get_preferred_allocation_available: bool,
}

/// Nothing.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Nothing {}

/// All devices of a plugin.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Devices {
    /// Every device, healthy or not.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
}

/// One device.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Device {
    /// Its name within the resource.
    #[prost(string, tag = "1")]
    pub id: String,
    /// `Healthy` or not.
    #[prost(string, tag = "2")]
    pub health: String,
}

/// Which devices the containers of a pod get.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AllocateRequest {
    /// One for each container.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<DeviceIds>,
}

/// The devices of one container.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DeviceIds {
    /// Their names.
    #[prost(string, repeated, tag = "1")]
    pub ids: Vec<String>,
}

/// What the containers need besides.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AllocateResponse {
    /// One for each container asked for.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<Allocation>,
}

/// What a container needs to use its devices.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Allocation {
    /// Variables.
    #[prost(btree_map = "string, string", tag = "1")]
    pub envs: BTreeMap<String, String>,
    /// Files of the node.
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<DeviceMount>,
    /// Device nodes.
    #[prost(message, repeated, tag = "3")]
    pub devices: Vec<ContainerDevice>,
    /// Annotations for the runtime.
    #[prost(btree_map = "string, string", tag = "4")]
    pub annotations: BTreeMap<String, String>,
    /// Devices that the runtime itself knows by name.
    #[prost(message, repeated, tag = "5")]
    pub cdi_devices: Vec<CdiDevice>,
}

/// A file of the node that a device needs.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DeviceMount {
    /// Where the container sees it.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// Where it is.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Whether it must not be written.
    #[prost(bool, tag = "3")]
    pub read_only: bool,
}

/// Which devices a container is about to start with.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PreStartRequest {
    /// Their names.
    #[prost(string, repeated, tag = "1")]
    pub ids: Vec<String>,
}

impl Allocation {
    /// The message as bytes, to be kept.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(self)
    }

    /// Reads bytes that were kept; `None` when they are something else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        prost::Message::decode(bytes).ok()
    }

    /// The mounts as the runtime wants them.
    #[must_use]
    pub fn render_mounts(&self) -> Vec<Mount> {
        let render = |mount: &DeviceMount| Mount {
            container_path: mount.container_path.clone(),
            host_path: mount.host_path.clone(),
            readonly: mount.read_only,
            ..Mount::default()
        };
        self.mounts.iter().map(render).collect()
    }

    /// The variables as the runtime wants them.
    #[must_use]
    pub fn render_envs(&self) -> Vec<KeyValue> {
        let pairs = self.envs.clone().into_iter();
        pairs.map(|(key, value)| KeyValue { key, value }).collect()
    }
}

/// A registration to be answered: `Ok` takes the plugin, `Err` says why not.
pub type Registration = (RegisterRequest, oneshot::Sender<Result<(), String>>);

/// Takes registrations and hands them on, until whoever takes them is gone.
pub async fn serve(listener: UnixListener, registrations: mpsc::Sender<Registration>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! { biased;
            () = registrations.closed() => return,
            Some(_) = connections.join_next() => {}
            taken = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                let Ok((stream, _)) = taken else { return };
                connections.spawn(connection(stream, registrations.clone()));
            }
        }
    }
}

async fn connection(stream: UnixStream, registrations: mpsc::Sender<Registration>) {
    let answer = hyper::service::service_fn(move |request| {
        let registrations = registrations.clone();
        async move { Ok::<_, std::convert::Infallible>(dispatch(registrations, request).await) }
    });
    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    if let Err(err) = http.serve_connection(TokioIo::new(stream), answer).await {
        debug!(%err, "a device plugin went away");
    }
}

async fn dispatch(
    registrations: mpsc::Sender<Registration>,
    request: http::Request<Incoming>,
) -> http::Response<Body> {
    if request.uri().path() != "/v1beta1.Registration/Register" {
        return Status::unimplemented(request.uri().path().to_owned()).into_http();
    }
    let work = service_fn(move |asked: Request<RegisterRequest>| {
        let registrations = registrations.clone();
        async move {
            let (sender, receiver) = oneshot::channel();
            let gone = |_| Status::unavailable("the agent is stopping");
            let sent = registrations.send((asked.into_inner(), sender)).await;
            sent.map_err(|_| Status::unavailable("the agent is stopping"))?;
            match receiver.await.map_err(gone)? {
                Ok(()) => Ok(Response::new(Nothing {})),
                Err(why) => Err(Status::invalid_argument(why)),
            }
        }
    });
    let codec = ProstCodec::<Nothing, RegisterRequest>::default();
    tonic::server::Grpc::new(codec).unary(work, request).await
}

/// Registers a plugin with the agent behind `socket`.
///
/// # Errors
///
/// When the agent refuses or cannot be reached.
pub async fn register(socket: &Path, request: RegisterRequest) -> Result<(), CallError> {
    let agent = Plugin::at(socket)
        .map_err(|err| CallError::unavailable("Register", format!("{err}: {}", err.source)))?;
    let path = "/v1beta1.Registration/Register";
    let _: Nothing = agent.unary("Register", path, request).await?;
    Ok(())
}

/// A client of one plugin; clones share the connection.
#[derive(Debug, Clone)]
pub struct Plugin {
    channel: Channel,
}

/// What a plugin tells of its devices, until it breaks off.
#[derive(Debug)]
pub struct Listing {
    stream: Streaming<Devices>,
}

impl Listing {
    /// Waits for the next list; `None` when the plugin ended the stream.
    ///
    /// # Errors
    ///
    /// When the connection broke.
    pub async fn next(&mut self) -> Result<Option<Devices>, CallError> {
        self.stream.message().await.map_err(|status| CallError::new("ListAndWatch", &status))
    }
}

impl Plugin {
    /// Sets up a client of the plugin behind `socket`; connects at the first call.
    ///
    /// # Errors
    ///
    /// When no channel can be made at all.
    pub fn at(socket: &Path) -> Result<Self, ConnectError> {
        let path: PathBuf = socket.to_path_buf();
        let endpoint = Endpoint::from_shared("http://plugin.invalid")
            .map_err(|source| ConnectError { socket: path.clone(), source })?;
        let connector = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Ok(Self { channel: endpoint.connect_with_connector_lazy(connector) })
    }

    /// Asks for the devices, now and whenever they change.
    ///
    /// # Errors
    ///
    /// When the plugin cannot be reached.
    pub async fn list(&self) -> Result<Listing, CallError> {
        let call = "ListAndWatch";
        let mut client = self.ready(call).await?;
        let path = PathAndQuery::from_static("/v1beta1.DevicePlugin/ListAndWatch");
        let codec = ProstCodec::<Nothing, Devices>::default();
        let answer = client.server_streaming(Request::new(Nothing {}), path, codec).await;
        let answer = answer.map_err(|status| CallError::new(call, &status))?;
        Ok(Listing { stream: answer.into_inner() })
    }

    /// Asks what a container needs to use devices.
    ///
    /// # Errors
    ///
    /// When the plugin refuses, cannot be reached or is too slow.
    pub async fn allocate(&self, request: AllocateRequest) -> Result<AllocateResponse, CallError> {
        self.unary("Allocate", "/v1beta1.DevicePlugin/Allocate", request).await
    }

    /// Tells that a container is about to start with devices.
    ///
    /// # Errors
    ///
    /// When the plugin refuses, cannot be reached or is too slow.
    pub async fn pre_start(&self, request: PreStartRequest) -> Result<(), CallError> {
        let path = "/v1beta1.DevicePlugin/PreStartContainer";
        let _: Nothing = self.unary("PreStartContainer", path, request).await?;
        Ok(())
    }

    async fn ready(&self, call: &'static str) -> Result<Grpc<Channel>, CallError> {
        ready(call, Grpc::new(self.channel.clone())).await
    }

    async fn unary<Q, A>(
        &self,
        call: &'static str,
        path: &'static str,
        request: Q,
    ) -> Result<A, CallError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let work = async { ask(call, self.ready(call).await?, path, Request::new(request)).await };
        tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| {
            let message = format!("no answer within {} s", LIMIT.as_secs());
            Err(CallError::unavailable(call, message))
        })
    }
}
