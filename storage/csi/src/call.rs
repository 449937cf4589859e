//! The calls: one table, from which the client, the service trait and the dispatch are made.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;
use tracing::debug;

use crate::message::*;

/// Limit of a call: making a file system on a large disk takes its time.
const LIMIT: Duration = Duration::from_secs(120);
/// The largest message read.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// How many connections a service keeps at once: its callers are a handful of daemons.
const CONNECTIONS_MAX: usize = 64;

/// A socket that cannot be used.
#[derive(Debug, Error)]
#[error("cannot set up a channel to the storage driver at {socket}")]
pub struct ConnectError {
    /// The socket asked for.
    pub socket: PathBuf,
    /// Why not.
    #[source]
    pub source: tonic::transport::Error,
}

/// A service that ended.
#[derive(Debug, Error)]
#[error("cannot take connections any more")]
pub struct ServeError(#[source] pub io::Error);

/// A call the driver refused or did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("rpc error: code = {code:?} desc = {message}")]
pub struct CallError {
    /// The name of the call.
    pub call: &'static str,
    /// The driver's own sentence.
    pub message: String,
    /// The gRPC status code.
    pub code: Code,
}

impl CallError {
    /// Tells whether the driver may have done, or still do, what was asked: to be undone or asked
    /// again, never forgotten.
    #[must_use]
    pub fn is_uncertain(&self) -> bool {
        matches!(
            self.code,
            Code::DeadlineExceeded | Code::Unavailable | Code::Aborted | Code::Cancelled
        )
    }
}

/// A client of one driver; clones share the connection.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Sets up a client of the driver behind `socket`; connects at the first call.
    ///
    /// # Errors
    ///
    /// When no channel can be made at all. That the driver is absent is no error here.
    pub fn at(socket: &Path) -> Result<Self, ConnectError> {
        let path = socket.to_path_buf();
        // The address is never used: the connector below opens the socket.
        let endpoint = Endpoint::from_shared("http://driver.invalid")
            .map_err(|source| ConnectError { socket: path.clone(), source })?;
        let connector = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Ok(Self { channel: endpoint.connect_with_connector_lazy(connector) })
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
        let refused = |status: &Status| CallError {
            call,
            message: status.message().to_owned(),
            // A broken connection has a cause of its own; tonic gives it the code Unknown.
            code: match std::error::Error::source(status) {
                Some(_) => Code::Unavailable,
                None => status.code(),
            },
        };
        let work = async {
            let mut client =
                Grpc::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
            client.ready().await.map_err(|err| CallError {
                call,
                message: format!("cannot be reached: {err}"),
                code: Code::Unavailable,
            })?;
            let codec = ProstCodec::<Q, A>::default();
            let answer =
                client.unary(Request::new(request), PathAndQuery::from_static(path), codec);
            answer.await.map(Response::into_inner).map_err(|status| refused(&status))
        };
        tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| {
            let message = format!("no answer within {} s", LIMIT.as_secs());
            Err(CallError { call, message, code: Code::DeadlineExceeded })
        })
    }
}

/// Writes trait, client and dispatch: one line per call.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident $service:literal $call:literal $request:ty => $response:ty;)*) => {
        /// A driver; calls it does not have are answered as unimplemented.
        pub trait Service: Send + Sync + 'static {
            $(
                $(#[$doc])*
                fn $name(
                    &self,
                    request: $request,
                ) -> impl Future<Output = Result<$response, Status>> + Send {
                    let _ = request;
                    async { Err(Status::unimplemented($call)) }
                }
            )*
        }

        impl Client {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                ///
                /// When the driver refuses, cannot be reached or is too slow.
                pub async fn $name(&self, request: $request) -> Result<$response, CallError> {
                    self.unary($call, concat!("/", $service, "/", $call), request).await
                }
            )*
        }

        async fn dispatch<S: Service>(
            service: Arc<S>,
            request: http::Request<Incoming>,
        ) -> http::Response<Body> {
            match request.uri().path() {
                $(
                    concat!("/", $service, "/", $call) => {
                        let codec = ProstCodec::<$response, $request>::default();
                        let work = service_fn(move |asked: Request<$request>| {
                            let service = Arc::clone(&service);
                            async move {
                                let done = service.$name(asked.into_inner()).await;
                                if let Err(status) = &done {
                                    let (code, why) = (status.code(), status.message());
                                    debug!(call = $call, ?code, why, "call refused");
                                }
                                done.map(Response::new)
                            }
                        });
                        tonic::server::Grpc::new(codec)
                            .max_decoding_message_size(MESSAGE_BYTES_MAX)
                            .unary(work, request)
                            .await
                    }
                )*
                other => Status::unimplemented(other.to_owned()).into_http(),
            }
        }
    };
}

calls! {
    /// Asks for the plugin's name.
    get_plugin_info "csi.v1.Identity" "GetPluginInfo" Empty => GetPluginInfoResponse;
    /// Asks what the plugin is.
    get_plugin_capabilities "csi.v1.Identity" "GetPluginCapabilities" Empty => GetPluginCapabilitiesResponse;
    /// Asks whether the plugin is well.
    probe "csi.v1.Identity" "Probe" Empty => ProbeResponse;
    /// Makes a volume; idempotent by name.
    create_volume "csi.v1.Controller" "CreateVolume" CreateVolumeRequest => CreateVolumeResponse;
    /// Deletes a volume; idempotent.
    delete_volume "csi.v1.Controller" "DeleteVolume" DeleteVolumeRequest => Empty;
    /// Lets a node use a volume.
    controller_publish_volume "csi.v1.Controller" "ControllerPublishVolume" ControllerPublishVolumeRequest => ControllerPublishVolumeResponse;
    /// Lets a node use a volume no more; when this returns, the node cannot write.
    controller_unpublish_volume "csi.v1.Controller" "ControllerUnpublishVolume" ControllerUnpublishVolumeRequest => Empty;
    /// Asks whether a volume can be used so.
    validate_volume_capabilities "csi.v1.Controller" "ValidateVolumeCapabilities" ValidateVolumeCapabilitiesRequest => ValidateVolumeCapabilitiesResponse;
    /// Lists volumes.
    list_volumes "csi.v1.Controller" "ListVolumes" ListVolumesRequest => ListVolumesResponse;
    /// Reads one volume.
    controller_get_volume "csi.v1.Controller" "ControllerGetVolume" ControllerGetVolumeRequest => ControllerGetVolumeResponse;
    /// Asks how much can be made.
    get_capacity "csi.v1.Controller" "GetCapacity" GetCapacityRequest => GetCapacityResponse;
    /// Asks what the controller can do.
    controller_get_capabilities "csi.v1.Controller" "ControllerGetCapabilities" Empty => GetCapabilitiesResponse;
    /// Makes a snapshot; idempotent by name.
    create_snapshot "csi.v1.Controller" "CreateSnapshot" CreateSnapshotRequest => CreateSnapshotResponse;
    /// Deletes a snapshot; idempotent.
    delete_snapshot "csi.v1.Controller" "DeleteSnapshot" DeleteSnapshotRequest => Empty;
    /// Lists snapshots.
    list_snapshots "csi.v1.Controller" "ListSnapshots" ListSnapshotsRequest => ListSnapshotsResponse;
    /// Reads one snapshot.
    get_snapshot "csi.v1.Controller" "GetSnapshot" GetSnapshotRequest => GetSnapshotResponse;
    /// Grows a volume.
    controller_expand_volume "csi.v1.Controller" "ControllerExpandVolume" ControllerExpandVolumeRequest => ControllerExpandVolumeResponse;
    /// Brings a volume to the node.
    node_stage_volume "csi.v1.Node" "NodeStageVolume" NodeStageVolumeRequest => Empty;
    /// Takes a volume from the node.
    node_unstage_volume "csi.v1.Node" "NodeUnstageVolume" NodeUnstageVolumeRequest => Empty;
    /// Shows a volume to a pod.
    node_publish_volume "csi.v1.Node" "NodePublishVolume" NodePublishVolumeRequest => Empty;
    /// Hides a volume from a pod.
    node_unpublish_volume "csi.v1.Node" "NodeUnpublishVolume" NodeUnpublishVolumeRequest => Empty;
    /// Asks how full a volume is.
    node_get_volume_stats "csi.v1.Node" "NodeGetVolumeStats" NodeGetVolumeStatsRequest => NodeGetVolumeStatsResponse;
    /// Makes the node use what a volume has grown by.
    node_expand_volume "csi.v1.Node" "NodeExpandVolume" NodeExpandVolumeRequest => NodeExpandVolumeResponse;
    /// Asks what the node service can do.
    node_get_capabilities "csi.v1.Node" "NodeGetCapabilities" Empty => GetCapabilitiesResponse;
    /// Asks by what name the driver knows the node.
    node_get_info "csi.v1.Node" "NodeGetInfo" Empty => NodeGetInfoResponse;
    /// Asks a plugin who it is.
    get_info "pluginregistration.Registration" "GetInfo" Empty => PluginInfo;
    /// Tells a plugin whether it was taken.
    notify_registration_status "pluginregistration.Registration" "NotifyRegistrationStatus" RegistrationStatus => Empty;
}

/// Serves a driver until `stop`; calls in hand are finished first.
///
/// # Errors
///
/// When the listener fails.
pub async fn serve<S: Service>(
    stop: CancellationToken,
    listener: UnixListener,
    service: Arc<S>,
) -> Result<(), ServeError> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! { biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            taken = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                let (stream, _) = taken.map_err(ServeError)?;
                connections.spawn(connection(stop.clone(), stream, Arc::clone(&service)));
            }
        }
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn connection<S: Service>(stop: CancellationToken, stream: UnixStream, service: Arc<S>) {
    let answer = hyper::service::service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, std::convert::Infallible>(dispatch(service, request).await) }
    });
    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), answer));
    let ended = tokio::select! { biased;
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(err) = ended {
        debug!(%err, "a caller went away");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Toy;

    impl Service for Toy {
        async fn get_plugin_info(&self, _: Empty) -> Result<GetPluginInfoResponse, Status> {
            Ok(GetPluginInfoResponse { name: "toy".into(), ..Default::default() })
        }

        async fn create_volume(
            &self,
            request: CreateVolumeRequest,
        ) -> Result<CreateVolumeResponse, Status> {
            let range = request.capacity_range.ok_or_else(|| Status::invalid_argument("range"))?;
            let volume = Volume {
                volume_id: request.name,
                capacity_bytes: range.required_bytes,
                volume_context: request.parameters,
                ..Volume::default()
            };
            Ok(CreateVolumeResponse { volume: Some(volume) })
        }
    }

    #[tokio::test]
    async fn what_one_side_says_the_other_hears() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("csi.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(stop.clone(), listener, Arc::new(Toy)));

        let client = Client::at(&socket).unwrap();
        assert_eq!(client.get_plugin_info(Empty {}).await.unwrap().name, "toy");
        let request = CreateVolumeRequest {
            name: "v".into(),
            capacity_range: Some(CapacityRange { required_bytes: 1 << 40, limit_bytes: 0 }),
            parameters: [("pool".to_owned(), "rbd".to_owned())].into(),
            ..Default::default()
        };
        let volume = client.create_volume(request).await.unwrap().volume.unwrap();
        assert_eq!((&*volume.volume_id, volume.capacity_bytes), ("v", 1 << 40));
        assert_eq!(volume.volume_context["pool"], "rbd");
        let err = client.create_volume(CreateVolumeRequest::default()).await.unwrap_err();
        assert_eq!(err.to_string(), "rpc error: code = InvalidArgument desc = range");
        let err = client.probe(Empty {}).await.unwrap_err();
        assert_eq!((err.code, err.is_uncertain()), (Code::Unimplemented, false));

        stop.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
        let err = client.get_plugin_info(Empty {}).await.unwrap_err();
        assert!(err.is_uncertain(), "{err:?}");
    }
}
