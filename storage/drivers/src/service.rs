//! The driver as a service: who it is, what it can do, and which half answers what.

use csi::message::*;
use csi::{Service, Status};
use tracing::{info, warn};

use crate::images::Images;
use crate::publish::node_id;
use crate::{Driver, NAME, controller, required, topology};

/// What node agents call plugins like this one, and the version of their talk.
const PLUGIN_KIND: &str = "CSIPlugin";
const PLUGIN_VERSION: &str = "1.0.0";
/// What the controller half can do.
const CONTROLLER: [i32; 14] = [
    capability::CREATE_DELETE_VOLUME,
    capability::PUBLISH_UNPUBLISH_VOLUME,
    capability::PUBLISH_READONLY,
    capability::LIST_VOLUMES,
    capability::GET_CAPACITY,
    capability::LIST_VOLUMES_PUBLISHED_NODES,
    capability::GET_VOLUME,
    capability::VOLUME_CONDITION,
    capability::SINGLE_NODE_MULTI_WRITER,
    capability::GET_SNAPSHOT,
    capability::CREATE_DELETE_SNAPSHOT,
    capability::LIST_SNAPSHOTS,
    capability::CLONE_VOLUME,
    capability::EXPAND_VOLUME,
];
/// What the node half can do.
const NODE: [i32; 5] = [
    capability::NODE_STAGE_UNSTAGE_VOLUME,
    capability::NODE_GET_VOLUME_STATS,
    capability::NODE_EXPAND_VOLUME,
    capability::NODE_VOLUME_CONDITION,
    capability::NODE_SINGLE_NODE_MULTI_WRITER,
];
/// Volumes grow while no node has them: `PluginCapability.VolumeExpansion.OFFLINE`.
const EXPANSION_OFFLINE: i32 = 2;

fn capabilities(kinds: &[i32]) -> GetCapabilitiesResponse {
    let one = |kind: &i32| RpcCapability { rpc: Some(Kind { r#type: *kind }) };
    GetCapabilitiesResponse { capabilities: kinds.iter().map(one).collect() }
}

impl<I: Images> Service for Driver<I> {
    async fn get_plugin_info(&self, _: Empty) -> Result<GetPluginInfoResponse, Status> {
        let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(GetPluginInfoResponse { name: NAME.to_owned(), vendor_version, ..Default::default() })
    }

    async fn get_plugin_capabilities(
        &self,
        _: Empty,
    ) -> Result<GetPluginCapabilitiesResponse, Status> {
        let service = |kind| PluginCapability {
            service: Some(Kind { r#type: kind }),
            volume_expansion: None,
        };
        let volume_expansion = Some(Kind { r#type: EXPANSION_OFFLINE });
        let mut capabilities = vec![
            service(capability::PLUGIN_CONTROLLER),
            PluginCapability { service: None, volume_expansion },
        ];
        if !self.config.topology.is_empty() {
            capabilities.push(service(capability::PLUGIN_TOPOLOGY));
        }
        Ok(GetPluginCapabilitiesResponse { capabilities })
    }

    async fn get_info(&self, _: Empty) -> Result<PluginInfo, Status> {
        // Whoever asks may see the socket under another name only if it is somewhere else: then
        // it is started without a registry, and a registrar of its own speaks for it.
        let endpoint = std::path::absolute(&self.config.socket);
        let endpoint = endpoint.unwrap_or(self.config.socket.clone());
        Ok(PluginInfo {
            r#type: PLUGIN_KIND.to_owned(),
            name: NAME.to_owned(),
            endpoint: endpoint.to_string_lossy().into_owned(),
            supported_versions: vec![PLUGIN_VERSION.to_owned()],
        })
    }

    async fn notify_registration_status(
        &self,
        request: RegistrationStatus,
    ) -> Result<Empty, Status> {
        if request.plugin_registered {
            info!(driver = NAME, "registered with the node's agent");
        } else {
            // It asks again by itself.
            warn!(driver = NAME, err = request.error, "the node's agent does not take the driver");
        }
        Ok(Empty {})
    }

    async fn probe(&self, _: Empty) -> Result<ProbeResponse, Status> {
        Ok(ProbeResponse { ready: Some(BoolValue { value: true }) })
    }

    async fn controller_get_capabilities(
        &self,
        _: Empty,
    ) -> Result<GetCapabilitiesResponse, Status> {
        Ok(capabilities(&CONTROLLER))
    }

    async fn create_volume(
        &self,
        request: CreateVolumeRequest,
    ) -> Result<CreateVolumeResponse, Status> {
        self.make(request).await
    }

    async fn delete_volume(&self, request: DeleteVolumeRequest) -> Result<Empty, Status> {
        self.delete(request).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
        required("volume id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume capabilities missing in request"));
        }
        self.find(&request.secrets, &request.volume_id).await?;
        let unfit = controller::check_capabilities(&request.volume_capabilities).err();
        if let Some(status) = unfit {
            let message = status.message().to_owned();
            return Ok(ValidateVolumeCapabilitiesResponse { confirmed: None, message });
        }
        let confirmed = Some(Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            ..Confirmed::default()
        });
        Ok(ValidateVolumeCapabilitiesResponse { confirmed, message: String::new() })
    }

    async fn list_volumes(
        &self,
        request: ListVolumesRequest,
    ) -> Result<ListVolumesResponse, Status> {
        self.list(request).await
    }

    async fn get_capacity(
        &self,
        request: GetCapacityRequest,
    ) -> Result<GetCapacityResponse, Status> {
        self.capacity(request).await
    }

    async fn controller_get_volume(
        &self,
        request: ControllerGetVolumeRequest,
    ) -> Result<ControllerGetVolumeResponse, Status> {
        self.get(request).await
    }

    async fn controller_publish_volume(
        &self,
        request: ControllerPublishVolumeRequest,
    ) -> Result<ControllerPublishVolumeResponse, Status> {
        self.give(request).await
    }

    async fn controller_unpublish_volume(
        &self,
        request: ControllerUnpublishVolumeRequest,
    ) -> Result<Empty, Status> {
        self.take_back(request).await
    }

    async fn get_snapshot(
        &self,
        request: GetSnapshotRequest,
    ) -> Result<GetSnapshotResponse, Status> {
        self.get_snap(request).await
    }

    async fn controller_expand_volume(
        &self,
        request: ControllerExpandVolumeRequest,
    ) -> Result<ControllerExpandVolumeResponse, Status> {
        self.expand(request).await
    }

    async fn create_snapshot(
        &self,
        request: CreateSnapshotRequest,
    ) -> Result<CreateSnapshotResponse, Status> {
        self.snapshot(request).await
    }

    async fn delete_snapshot(&self, request: DeleteSnapshotRequest) -> Result<Empty, Status> {
        self.delete_snap(request).await
    }

    async fn list_snapshots(
        &self,
        request: ListSnapshotsRequest,
    ) -> Result<ListSnapshotsResponse, Status> {
        self.list_snaps(request).await
    }

    async fn node_get_capabilities(&self, _: Empty) -> Result<GetCapabilitiesResponse, Status> {
        Ok(capabilities(&NODE))
    }

    async fn node_get_info(&self, _: Empty) -> Result<NodeGetInfoResponse, Status> {
        let domains = self.config.topology.iter();
        let segments = domains.map(|(key, value)| (topology::label(key), value.clone()));
        let accessible_topology = Topology { segments: segments.collect() };
        Ok(NodeGetInfoResponse {
            node_id: node_id(&self.config.node),
            accessible_topology: Some(accessible_topology).filter(|one| !one.segments.is_empty()),
            ..Default::default()
        })
    }

    async fn node_stage_volume(&self, request: NodeStageVolumeRequest) -> Result<Empty, Status> {
        self.stage(request).await
    }

    async fn node_unstage_volume(
        &self,
        request: NodeUnstageVolumeRequest,
    ) -> Result<Empty, Status> {
        self.unstage(request).await
    }

    async fn node_publish_volume(
        &self,
        request: NodePublishVolumeRequest,
    ) -> Result<Empty, Status> {
        self.publish(request).await
    }

    async fn node_unpublish_volume(
        &self,
        request: NodeUnpublishVolumeRequest,
    ) -> Result<Empty, Status> {
        self.unpublish(request).await
    }

    async fn node_get_volume_stats(
        &self,
        request: NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse, Status> {
        self.stats(request).await
    }

    async fn node_expand_volume(
        &self,
        request: NodeExpandVolumeRequest,
    ) -> Result<NodeExpandVolumeResponse, Status> {
        self.grow(request).await
    }
}
