//! The messages of the interface that are used, field for field.
//!
//! Names are the interface's own, so a reader can look each one up in its description. A choice
//! of one among several messages is written as several optional ones, which is the same on the
//! wire.

#![allow(missing_docs, reason = "names and meanings are the interface's own")]

use std::collections::BTreeMap;

/// Writes message types: kind, field, number.
macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($body:tt)* })*) => {
        $( messages!(@ [$(#[$doc])*] $name [] $($body)*); )*
    };
    (@ [$($doc:tt)*] $name:ident [$($done:tt)*]) => {
        $($doc)*
        #[derive(Clone, PartialEq, prost::Message)]
        pub struct $name { $($done)* }
    };
    (@ $doc:tt $name:ident [$($done:tt)*] text $field:ident $tag:tt, $($rest:tt)*) => {
        messages!(@ $doc $name [$($done)* #[prost(string, tag = $tag)] pub $field: String,] $($rest)*);
    };
    (@ $doc:tt $name:ident [$($done:tt)*] texts $field:ident $tag:tt, $($rest:tt)*) => {
        messages!(@ $doc $name [$($done)* #[prost(string, repeated, tag = $tag)] pub $field: Vec<String>,] $($rest)*);
    };
    (@ $doc:tt $name:ident [$($done:tt)*] pairs $field:ident $tag:tt, $($rest:tt)*) => {
        messages!(@ $doc $name [$($done)* #[prost(btree_map = "string, string", tag = $tag)] pub $field: BTreeMap<String, String>,] $($rest)*);
    };
    (@ $doc:tt $name:ident [$($done:tt)*] flag $field:ident $tag:tt, $($rest:tt)*) => {
        messages!(@ $doc $name [$($done)* #[prost(bool, tag = $tag)] pub $field: bool,] $($rest)*);
    };
    (@ $doc:tt $name:ident [$($done:tt)*] long $field:ident $tag:tt, $($rest:tt)*) => {
        messages!(@ $doc $name [$($done)* #[prost(int64, tag = $tag)] pub $field: i64,] $($rest)*);
    };
    (@ $doc:tt $name:ident [$($done:tt)*] int $field:ident $tag:tt, $($rest:tt)*) => {
        messages!(@ $doc $name [$($done)* #[prost(int32, tag = $tag)] pub $field: i32,] $($rest)*);
    };
    (@ $doc:tt $name:ident [$($done:tt)*] one $kind:ident $field:ident $tag:tt, $($rest:tt)*) => {
        messages!(@ $doc $name [$($done)* #[prost(message, optional, tag = $tag)] pub $field: Option<$kind>,] $($rest)*);
    };
    (@ $doc:tt $name:ident [$($done:tt)*] many $kind:ident $field:ident $tag:tt, $($rest:tt)*) => {
        messages!(@ $doc $name [$($done)* #[prost(message, repeated, tag = $tag)] pub $field: Vec<$kind>,] $($rest)*);
    };
}

messages! {
    /// What has nothing to say.
    Empty {}
    GetPluginInfoResponse { text name "1", text vendor_version "2", pairs manifest "3", }
    GetPluginCapabilitiesResponse { many PluginCapability capabilities "1", }
    PluginCapability { one Kind service "1", one Kind volume_expansion "2", }
    /// A capability, by number.
    Kind { int r#type "1", }
    ProbeResponse { one BoolValue ready "1", }
    BoolValue { flag value "1", }
    Int64Value { long value "1", }
    /// A time.
    Timestamp { long seconds "1", int nanos "2", }

    CreateVolumeRequest {
        text name "1", one CapacityRange capacity_range "2", many VolumeCapability volume_capabilities "3",
        pairs parameters "4", pairs secrets "5", one VolumeContentSource volume_content_source "6",
        one TopologyRequirement accessibility_requirements "7", pairs mutable_parameters "8",
    }
    VolumeContentSource { one SnapshotSource snapshot "1", one VolumeSource volume "2", }
    SnapshotSource { text snapshot_id "1", }
    VolumeSource { text volume_id "1", }
    CreateVolumeResponse { one Volume volume "1", }
    VolumeCapability { one Empty block "1", one MountVolume mount "2", one AccessMode access_mode "3", }
    MountVolume { text fs_type "1", texts mount_flags "2", text volume_mount_group "3", }
    AccessMode { int mode "1", }
    CapacityRange { long required_bytes "1", long limit_bytes "2", }
    Volume {
        long capacity_bytes "1", text volume_id "2", pairs volume_context "3",
        one VolumeContentSource content_source "4", many Topology accessible_topology "5",
    }
    TopologyRequirement { many Topology requisite "1", many Topology preferred "2", }
    Topology { pairs segments "1", }
    DeleteVolumeRequest { text volume_id "1", pairs secrets "2", }
    ControllerPublishVolumeRequest {
        text volume_id "1", text node_id "2", one VolumeCapability volume_capability "3",
        flag readonly "4", pairs secrets "5", pairs volume_context "6",
    }
    ControllerPublishVolumeResponse { pairs publish_context "1", }
    ControllerUnpublishVolumeRequest { text volume_id "1", text node_id "2", pairs secrets "3", }
    ValidateVolumeCapabilitiesRequest {
        text volume_id "1", pairs volume_context "2", many VolumeCapability volume_capabilities "3",
        pairs parameters "4", pairs secrets "5", pairs mutable_parameters "6",
    }
    ValidateVolumeCapabilitiesResponse { one Confirmed confirmed "1", text message "2", }
    Confirmed {
        pairs volume_context "1", many VolumeCapability volume_capabilities "2",
        pairs parameters "3", pairs mutable_parameters "4",
    }
    ListVolumesRequest { int max_entries "1", text starting_token "2", }
    ListVolumesResponse { many ListVolumesEntry entries "1", text next_token "2", }
    ListVolumesEntry { one Volume volume "1", one VolumeStatus status "2", }
    VolumeStatus { texts published_node_ids "1", one VolumeCondition volume_condition "2", }
    VolumeCondition { flag abnormal "1", text message "2", }
    ControllerGetVolumeRequest { text volume_id "1", }
    ControllerGetVolumeResponse { one Volume volume "1", one VolumeStatus status "2", }
    GetCapacityRequest {
        many VolumeCapability volume_capabilities "1", pairs parameters "2",
        one Topology accessible_topology "3",
    }
    GetCapacityResponse {
        long available_capacity "1", one Int64Value maximum_volume_size "2",
        one Int64Value minimum_volume_size "3",
    }
    GetCapabilitiesResponse { many RpcCapability capabilities "1", }
    /// What a controller or a node service can do.
    RpcCapability { one Kind rpc "1", }
    CreateSnapshotRequest { text source_volume_id "1", text name "2", pairs secrets "3", pairs parameters "4", }
    CreateSnapshotResponse { one Snapshot snapshot "1", }
    Snapshot {
        long size_bytes "1", text snapshot_id "2", text source_volume_id "3",
        one Timestamp creation_time "4", flag ready_to_use "5", text group_snapshot_id "6",
    }
    DeleteSnapshotRequest { text snapshot_id "1", pairs secrets "2", }
    ListSnapshotsRequest {
        int max_entries "1", text starting_token "2", text source_volume_id "3",
        text snapshot_id "4", pairs secrets "5",
    }
    ListSnapshotsResponse { many ListSnapshotsEntry entries "1", text next_token "2", }
    ListSnapshotsEntry { one Snapshot snapshot "1", }
    GetSnapshotRequest { text snapshot_id "1", pairs secrets "2", }
    GetSnapshotResponse { one Snapshot snapshot "1", }
    ControllerExpandVolumeRequest {
        text volume_id "1", one CapacityRange capacity_range "2", pairs secrets "3",
        one VolumeCapability volume_capability "4",
    }
    ControllerExpandVolumeResponse { long capacity_bytes "1", flag node_expansion_required "2", }

    NodeStageVolumeRequest {
        text volume_id "1", pairs publish_context "2", text staging_target_path "3",
        one VolumeCapability volume_capability "4", pairs secrets "5", pairs volume_context "6",
    }
    NodeUnstageVolumeRequest { text volume_id "1", text staging_target_path "2", }
    NodePublishVolumeRequest {
        text volume_id "1", pairs publish_context "2", text staging_target_path "3",
        text target_path "4", one VolumeCapability volume_capability "5", flag readonly "6",
        pairs secrets "7", pairs volume_context "8",
    }
    NodeUnpublishVolumeRequest { text volume_id "1", text target_path "2", }
    NodeGetVolumeStatsRequest { text volume_id "1", text volume_path "2", text staging_target_path "3", }
    NodeGetVolumeStatsResponse { many VolumeUsage usage "1", one VolumeCondition volume_condition "2", }
    VolumeUsage { long available "1", long total "2", long used "3", int unit "4", }
    NodeExpandVolumeRequest {
        text volume_id "1", text volume_path "2", one CapacityRange capacity_range "3",
        text staging_target_path "4", one VolumeCapability volume_capability "5", pairs secrets "6",
    }
    NodeExpandVolumeResponse { long capacity_bytes "1", }
    NodeGetInfoResponse { text node_id "1", long max_volumes_per_node "2", one Topology accessible_topology "3", }

    /// Who listens behind a socket in the registry of plugins.
    PluginInfo { text r#type "1", text name "2", text endpoint "3", texts supported_versions "4", }
    RegistrationStatus { flag plugin_registered "1", text error "2", }
}

/// How a volume may be used, as numbers travel.
pub mod access {
    pub const SINGLE_NODE_WRITER: i32 = 1;
    pub const SINGLE_NODE_READER_ONLY: i32 = 2;
    pub const MULTI_NODE_READER_ONLY: i32 = 3;
    pub const MULTI_NODE_SINGLE_WRITER: i32 = 4;
    pub const MULTI_NODE_MULTI_WRITER: i32 = 5;
    pub const SINGLE_NODE_SINGLE_WRITER: i32 = 6;
    pub const SINGLE_NODE_MULTI_WRITER: i32 = 7;
}

/// What plugins, controllers and nodes can do.
pub mod capability {
    pub const PLUGIN_CONTROLLER: i32 = 1;
    pub const PLUGIN_TOPOLOGY: i32 = 2;
    pub const EXPANSION_ONLINE: i32 = 1;
    pub const CREATE_DELETE_VOLUME: i32 = 1;
    pub const PUBLISH_UNPUBLISH_VOLUME: i32 = 2;
    pub const LIST_VOLUMES: i32 = 3;
    pub const GET_CAPACITY: i32 = 4;
    pub const CREATE_DELETE_SNAPSHOT: i32 = 5;
    pub const LIST_SNAPSHOTS: i32 = 6;
    pub const CLONE_VOLUME: i32 = 7;
    pub const PUBLISH_READONLY: i32 = 8;
    pub const EXPAND_VOLUME: i32 = 9;
    pub const LIST_VOLUMES_PUBLISHED_NODES: i32 = 10;
    pub const VOLUME_CONDITION: i32 = 11;
    pub const GET_VOLUME: i32 = 12;
    pub const SINGLE_NODE_MULTI_WRITER: i32 = 13;
    pub const GET_SNAPSHOT: i32 = 15;
    pub const NODE_STAGE_UNSTAGE_VOLUME: i32 = 1;
    pub const NODE_GET_VOLUME_STATS: i32 = 2;
    pub const NODE_EXPAND_VOLUME: i32 = 3;
    pub const NODE_VOLUME_CONDITION: i32 = 4;
    pub const NODE_SINGLE_NODE_MULTI_WRITER: i32 = 5;
    pub const NODE_VOLUME_MOUNT_GROUP: i32 = 6;
}

/// Units of [`VolumeUsage`].
pub mod unit {
    pub const BYTES: i32 = 1;
    pub const INODES: i32 = 2;
}
