//! The client: one method per call, each with a deadline.
//!
//! The channel connects when first used and again after a break, so a restart of the runtime
//! needs no care from the caller: calls fail with [`CallError::is_unavailable`] meanwhile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::message::*;

/// Limit of calls that only read; a healthy runtime answers in milliseconds.
const READ: Duration = Duration::from_secs(15);
/// Limit of calls that start or remove something: the network set-up of a pod is in them.
const CHANGE: Duration = Duration::from_secs(120);
/// Limit of a pull; large images over slow links take their time.
const PULL: Duration = Duration::from_secs(15 * 60);
/// What a stop may take beyond the grace given to the container.
const STOP_MARGIN: Duration = Duration::from_secs(30);
/// The largest answer read: a node full of containers with long annotations stays below.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A socket path that cannot be used.
#[derive(Debug, Error)]
#[error("cannot set up a channel to the container runtime at {socket}")]
pub struct ConnectError {
    /// The socket asked for.
    pub socket: PathBuf,
    /// Why not.
    #[source]
    pub source: tonic::transport::Error,
}

/// A call the runtime refused or did not answer.
#[derive(Debug, Error)]
#[error("container runtime, {call}: {message}")]
pub struct CallError {
    /// The name of the call.
    pub call: &'static str,
    /// The runtime's own sentence.
    pub message: String,
    /// The gRPC status code.
    pub code: Code,
}

impl CallError {
    /// Tells whether the thing asked for does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        // containerd 1.6 reports a missing sandbox with code Unknown in some calls.
        self.code == Code::NotFound || self.message.contains("not found")
    }

    /// Tells whether the runtime could not be reached, so that the same call may do later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
    }

    /// Tells whether what should be made was there before.
    #[must_use]
    pub fn is_there_already(&self) -> bool {
        self.code == Code::AlreadyExists
    }

    /// Tells whether the runtime does not know the call at all.
    #[must_use]
    pub fn is_unimplemented(&self) -> bool {
        self.code == Code::Unimplemented
    }

    pub(crate) fn unavailable(call: &'static str, message: String) -> Self {
        Self { call, message, code: Code::Unavailable }
    }

    pub(crate) fn new(call: &'static str, status: &Status) -> Self {
        // A broken connection has a cause of its own; tonic gives it the code Unknown.
        let broke = std::error::Error::source(status).is_some();
        // containerd listens before it can answer, and says so with the code Unknown too.
        let early = status.message().contains("not initialized yet");
        let code = if broke || early { Code::Unavailable } else { status.code() };
        Self { call, message: status.message().to_owned(), code }
    }
}

/// A client of one container runtime; clones share the connection.
#[derive(Debug, Clone)]
pub struct Runtime {
    channel: Channel,
}

/// The runtime's own store, in one of its namespaces and on account of a lease; containerd only.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    runtime: Runtime,
    namespace: &'static str,
    lease: &'static str,
}

/// What the runtime tells by itself, until it stops or breaks off.
#[derive(Debug)]
pub struct Events {
    stream: Streaming<ContainerEventResponse>,
}

impl Events {
    /// Waits for the next event; `None` when the runtime ended the stream.
    ///
    /// Cancel safety: may be dropped at any time; no event is lost by that.
    ///
    /// # Errors
    ///
    /// When the connection broke; a new stream may be opened.
    pub async fn next(&mut self) -> Result<Option<ContainerEventResponse>, CallError> {
        self.stream.message().await.map_err(|status| CallError::new("GetContainerEvents", &status))
    }
}

/// Writes one method per unary call: name, path, messages, limit.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident $service:literal $call:literal $request:ty => $response:ty, $limit:expr;)*) => {
        impl Runtime {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                ///
                /// When the runtime refuses, cannot be reached or is too slow.
                pub async fn $name(&self, request: $request) -> Result<$response, CallError> {
                    let path = concat!("/runtime.v1.", $service, "/", $call);
                    self.unary($call, path, request, $limit).await
                }
            )*
        }
    };
}

calls! {
    /// Asks who the runtime is.
    version "RuntimeService" "Version" VersionRequest => VersionResponse, READ;
    /// Asks whether runtime and network are ready.
    status "RuntimeService" "Status" StatusRequest => StatusResponse, READ;
    /// Creates and starts a pod's sandbox, its network included.
    run_pod_sandbox "RuntimeService" "RunPodSandbox" RunPodSandboxRequest => RunPodSandboxResponse, CHANGE;
    /// Stops a sandbox and everything in it, and gives its addresses back; idempotent.
    stop_pod_sandbox "RuntimeService" "StopPodSandbox" StopPodSandboxRequest => StopPodSandboxResponse, CHANGE;
    /// Removes a sandbox and its containers; idempotent.
    remove_pod_sandbox "RuntimeService" "RemovePodSandbox" RemovePodSandboxRequest => RemovePodSandboxResponse, CHANGE;
    /// Reads one sandbox, its addresses included.
    pod_sandbox_status "RuntimeService" "PodSandboxStatus" PodSandboxStatusRequest => PodSandboxStatusResponse, READ;
    /// Lists sandboxes.
    list_pod_sandbox "RuntimeService" "ListPodSandbox" ListPodSandboxRequest => ListPodSandboxResponse, READ;
    /// Creates a container in a sandbox, without starting it.
    create_container "RuntimeService" "CreateContainer" CreateContainerRequest => CreateContainerResponse, CHANGE;
    /// Starts a created container.
    start_container "RuntimeService" "StartContainer" StartContainerRequest => StartContainerResponse, CHANGE;
    /// Removes a container, by force when it runs; idempotent.
    remove_container "RuntimeService" "RemoveContainer" RemoveContainerRequest => RemoveContainerResponse, CHANGE;
    /// Lists containers.
    list_containers "RuntimeService" "ListContainers" ListContainersRequest => ListContainersResponse, READ;
    /// Reads one container.
    container_status "RuntimeService" "ContainerStatus" ContainerStatusRequest => ContainerStatusResponse, READ;
    /// Changes what a running container may use.
    update_container_resources "RuntimeService" "UpdateContainerResources" UpdateContainerResourcesRequest => UpdateContainerResourcesResponse, READ;
    /// Makes the runtime open the container's log file again, after it was moved away.
    reopen_container_log "RuntimeService" "ReopenContainerLog" ReopenContainerLogRequest => ReopenContainerLogResponse, READ;
    /// Reads what containers use.
    list_container_stats "RuntimeService" "ListContainerStats" ListContainerStatsRequest => ListContainerStatsResponse, READ;
    /// Asks for the address of a stream that runs a command in a container.
    exec "RuntimeService" "Exec" ExecRequest => ExecResponse, READ;
    /// Asks for the address of a stream to a running container.
    attach "RuntimeService" "Attach" AttachRequest => AttachResponse, READ;
    /// Asks for the address of a stream to ports in a sandbox.
    port_forward "RuntimeService" "PortForward" PortForwardRequest => PortForwardResponse, READ;
    /// Looks an image up; the answer's `image` is empty when the runtime has none.
    image_status "ImageService" "ImageStatus" ImageStatusRequest => ImageStatusResponse, READ;
    /// Pulls an image from its registry.
    pull_image "ImageService" "PullImage" PullImageRequest => PullImageResponse, PULL;
    /// Lists the images.
    list_images "ImageService" "ListImages" ListImagesRequest => ListImagesResponse, READ;
    /// Removes an image; idempotent.
    remove_image "ImageService" "RemoveImage" RemoveImageRequest => RemoveImageResponse, CHANGE;
    /// Asks what the images take of which file system.
    image_fs_info "ImageService" "ImageFsInfo" ImageFsInfoRequest => ImageFsInfoResponse, READ;
}

/// Writes one method per unary call of containerd's own services.
macro_rules! store_calls {
    ($($name:ident $service:literal $call:literal $request:ty => $response:ty;)*) => {
        impl Store {
            $(
                pub(crate) async fn $name(&self, request: $request) -> Result<$response, CallError> {
                    let path = concat!("/containerd.services.", $service, "/", $call);
                    self.runtime.unary_in($call, path, self.addressed(request), CHANGE).await
                }
            )*
        }
    };
}

store_calls! {
    create_lease "leases.v1.Leases" "Create" CreateLeaseRequest => Nothing;
    delete_lease "leases.v1.Leases" "Delete" DeleteLeaseRequest => Nothing;
    create_image "images.v1.Images" "Create" StoreImageRequest => Nothing;
    update_image "images.v1.Images" "Update" StoreImageRequest => Nothing;
}

impl Store {
    /// Writes a piece of a blob; the last one commits it.
    pub(crate) async fn write_content(
        &self,
        request: WriteContentRequest,
    ) -> Result<(), CallError> {
        let call = "Write";
        let refused = |status: Status| CallError::new(call, &status);
        let work = async {
            let mut client = self.runtime.ready(call).await?;
            let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Write");
            let codec = ProstCodec::<WriteContentRequest, Nothing>::default();
            let request = self.addressed(tokio_stream::once(request));
            let answer = client.streaming(request, path, codec).await.map_err(refused)?;
            let mut answers = answer.into_inner();
            while answers.message().await.map_err(refused)?.is_some() {}
            Ok(())
        };
        within(call, CHANGE, work).await
    }

    fn addressed<Q>(&self, request: Q) -> Request<Q> {
        let mut request = Request::new(request);
        let words = request.metadata_mut();
        words.insert("containerd-namespace", MetadataValue::from_static(self.namespace));
        words.insert("containerd-lease", MetadataValue::from_static(self.lease));
        request
    }
}

impl Runtime {
    /// The runtime's own store.
    pub(crate) fn store(&self, namespace: &'static str, lease: &'static str) -> Store {
        Store { runtime: self.clone(), namespace, lease }
    }

    /// Sets up a client of the runtime behind `socket`; connects at the first call.
    ///
    /// # Errors
    ///
    /// When no channel can be made at all. That the runtime is absent is no error here.
    pub fn at(socket: &Path) -> Result<Self, ConnectError> {
        let path = socket.to_path_buf();
        // The address is never used: the connector below opens the socket.
        let endpoint = Endpoint::from_shared("http://runtime.invalid")
            .map_err(|source| ConnectError { socket: path.clone(), source })?;
        let connector = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Ok(Self { channel: endpoint.connect_with_connector_lazy(connector) })
    }

    /// Stops a container: the stop signal, then after `grace` the kill signal; idempotent.
    ///
    /// Cancel safety: dropping the call leaves a container that was told to stop and may be
    /// told again, for instance with a shorter grace.
    ///
    /// # Errors
    ///
    /// When the runtime refuses, cannot be reached or is too slow.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), CallError> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = StopContainerRequest { container_id: id.to_owned(), timeout };
        let path = "/runtime.v1.RuntimeService/StopContainer";
        let limit = grace.saturating_add(STOP_MARGIN);
        let _: StopContainerResponse = self.unary("StopContainer", path, request, limit).await?;
        Ok(())
    }

    /// Runs a command in a container and waits for its end, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the command cannot be run, or does not end in time.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<ExecSyncResponse, CallError> {
        // The runtime counts in whole seconds, and reads 0 as no limit.
        let timeout = i64::try_from(limit.as_secs().max(1)).unwrap_or(i64::MAX);
        let request =
            ExecSyncRequest { container_id: id.to_owned(), cmd: command.to_vec(), timeout };
        let path = "/runtime.v1.RuntimeService/ExecSync";
        self.unary("ExecSync", path, request, limit.saturating_add(READ)).await
    }

    /// Opens the stream of what happens to containers.
    ///
    /// # Errors
    ///
    /// When the runtime knows no such stream (containerd before 1.7) or cannot be reached.
    pub async fn events(&self) -> Result<Events, CallError> {
        let call = "GetContainerEvents";
        let mut client = self.ready(call).await?;
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/GetContainerEvents");
        let codec = ProstCodec::<GetEventsRequest, ContainerEventResponse>::default();
        let answer = client
            .server_streaming(Request::new(GetEventsRequest {}), path, codec)
            .await
            .map_err(|status| CallError::new(call, &status))?;
        Ok(Events { stream: answer.into_inner() })
    }

    async fn ready(&self, call: &'static str) -> Result<Grpc<Channel>, CallError> {
        let client = Grpc::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        ready(call, client).await
    }

    async fn unary<Q, A>(
        &self,
        call: &'static str,
        path: &'static str,
        request: Q,
        limit: Duration,
    ) -> Result<A, CallError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.unary_in(call, path, Request::new(request), limit).await
    }

    async fn unary_in<Q, A>(
        &self,
        call: &'static str,
        path: &'static str,
        request: Request<Q>,
        limit: Duration,
    ) -> Result<A, CallError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let work = async { ask(call, self.ready(call).await?, path, request).await };
        within(call, limit, work).await
    }
}

/// Waits until a call can be sent.
pub(crate) async fn ready(
    call: &'static str,
    mut client: Grpc<Channel>,
) -> Result<Grpc<Channel>, CallError> {
    match client.ready().await {
        Ok(()) => Ok(client),
        Err(err) => Err(CallError::unavailable(call, format!("cannot be reached: {err}"))),
    }
}

/// Sends a request and takes its one answer.
pub(crate) async fn ask<Q, A>(
    call: &'static str,
    mut client: Grpc<Channel>,
    path: &'static str,
    request: Request<Q>,
) -> Result<A, CallError>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let codec = ProstCodec::<Q, A>::default();
    let answer = client.unary(request, PathAndQuery::from_static(path), codec).await;
    answer.map(tonic::Response::into_inner).map_err(|status| CallError::new(call, &status))
}

/// Gives an answer so much time.
pub(crate) async fn within<A>(
    call: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<A, CallError>>,
) -> Result<A, CallError> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let message = format!("no answer within {} s", limit.as_secs());
        Err(CallError { call, message, code: Code::DeadlineExceeded })
    })
}
