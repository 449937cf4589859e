//! Volumes, claims on them, and classes they are made by.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    condition::Condition,
    kind,
    meta::{LabelSelector, ObjectReference},
    pod::{NodeSelector, ResourceList, ResourceRequirements},
    quantity::Quantity,
    time::Time,
    view::{objects, views},
};

objects! {
    /// A piece of storage.
    kind::PERSISTENT_VOLUME => pub struct PersistentVolume {
        pub spec: PersistentVolumeSpec,
        pub status: PersistentVolumeStatus,
    }

    /// A claim on storage.
    kind::PERSISTENT_VOLUME_CLAIM => pub struct PersistentVolumeClaim {
        pub spec: PersistentVolumeClaimSpec,
        pub status: PersistentVolumeClaimStatus,
    }

    /// How volumes are made.
    kind::STORAGE_CLASS => pub struct StorageClass {
        pub provisioner: String,
        pub parameters: BTreeMap<String, String>,
        pub reclaim_policy: Option<String>,
        pub mount_options: Vec<String>,
        pub allow_volume_expansion: Option<bool>,
        pub volume_binding_mode: Option<String>,
        pub allowed_topologies: Vec<Value>,
    }

    /// A storage driver and what it can do.
    kind::CSI_DRIVER => pub struct CsiDriver {
        pub spec: CsiDriverSpec,
    }

    /// A snapshot that somebody asks for.
    kind::VOLUME_SNAPSHOT => pub struct VolumeSnapshot {
        pub spec: VolumeSnapshotSpec,
        pub status: VolumeSnapshotStatus,
    }

    /// A snapshot that is there, or is to be made.
    kind::VOLUME_SNAPSHOT_CONTENT => pub struct VolumeSnapshotContent {
        pub spec: VolumeSnapshotContentSpec,
        pub status: VolumeSnapshotContentStatus,
    }

    /// How snapshots are made.
    kind::VOLUME_SNAPSHOT_CLASS => pub struct VolumeSnapshotClass {
        pub driver: String,
        pub parameters: BTreeMap<String, String>,
        pub deletion_policy: String,
    }

    /// A volume that is, or is to be, at a node.
    kind::VOLUME_ATTACHMENT => pub struct VolumeAttachment {
        pub spec: VolumeAttachmentSpec,
        pub status: VolumeAttachmentStatus,
    }
}

views! {
    /// What a volume is; its source stays in `extra`.
    pub struct PersistentVolumeSpec {
        pub capacity: ResourceList,
        pub access_modes: Vec<String>,
        pub claim_ref: Option<ObjectReference>,
        pub persistent_volume_reclaim_policy: String,
        pub storage_class_name: String,
        pub mount_options: Vec<String>,
        pub volume_mode: Option<String>,
        pub node_affinity: Option<VolumeNodeAffinity>,
        pub csi: Option<Value>,
        pub rbd: Option<Value>,
    }

    /// Where a volume can be reached.
    pub struct VolumeNodeAffinity {
        pub required: Option<NodeSelector>,
    }

    /// What is known of a volume.
    pub struct PersistentVolumeStatus {
        pub phase: String,
        pub message: String,
        pub reason: String,
        pub last_phase_transition_time: Option<Time>,
    }

    /// What is claimed.
    pub struct PersistentVolumeClaimSpec {
        pub access_modes: Vec<String>,
        pub selector: Option<LabelSelector>,
        pub resources: ResourceRequirements,
        pub volume_name: String,
        pub storage_class_name: Option<String>,
        pub volume_mode: Option<String>,
        pub data_source: Option<Value>,
        pub data_source_ref: Option<Value>,
    }

    /// What was given.
    pub struct PersistentVolumeClaimStatus {
        pub phase: String,
        pub access_modes: Vec<String>,
        pub capacity: ResourceList,
        pub conditions: Vec<Condition>,
    }

    /// Of what a snapshot is asked.
    pub struct VolumeSnapshotSpec {
        pub source: VolumeSnapshotSource,
        pub volume_snapshot_class_name: Option<String>,
    }

    /// A claim to be snapshotted, or a snapshot that is there.
    pub struct VolumeSnapshotSource {
        pub persistent_volume_claim_name: Option<String>,
        pub volume_snapshot_content_name: Option<String>,
    }

    /// What became of the wish.
    pub struct VolumeSnapshotStatus {
        pub bound_volume_snapshot_content_name: Option<String>,
        pub creation_time: Option<Time>,
        pub ready_to_use: Option<bool>,
        pub restore_size: Option<Quantity>,
        pub error: Option<Value>,
    }

    /// What a snapshot is of.
    pub struct VolumeSnapshotContentSpec {
        pub volume_snapshot_ref: ObjectReference,
        pub deletion_policy: String,
        pub driver: String,
        pub volume_snapshot_class_name: Option<String>,
        pub source: VolumeSnapshotContentSource,
        pub source_volume_mode: Option<String>,
    }

    /// The volume, or the snapshot, as its driver calls it.
    pub struct VolumeSnapshotContentSource {
        pub volume_handle: Option<String>,
        pub snapshot_handle: Option<String>,
    }

    /// What the driver said.
    pub struct VolumeSnapshotContentStatus {
        pub snapshot_handle: Option<String>,
        pub creation_time: Option<i64>,
        pub restore_size: Option<i64>,
        pub ready_to_use: Option<bool>,
        pub error: Option<Value>,
    }

    /// What a storage driver can do.
    pub struct CsiDriverSpec {
        pub attach_required: Option<bool>,
    }

    /// Which volume, at which node, by whom.
    pub struct VolumeAttachmentSpec {
        pub attacher: String,
        pub source: VolumeAttachmentSource,
        pub node_name: String,
    }

    /// The volume of an attachment.
    pub struct VolumeAttachmentSource {
        pub persistent_volume_name: Option<String>,
        pub inline_volume_spec: Option<Value>,
    }

    /// Is it there?
    pub struct VolumeAttachmentStatus {
        pub attached: Option<bool>,
        pub attachment_metadata: BTreeMap<String, String>,
        pub attach_error: Option<Value>,
        pub detach_error: Option<Value>,
    }
}

/// Annotation of a node: the kernel clients it writes Ceph images with, a JSON object by
/// `POOL/IMAGE`. The node writes it before it mounts an image and after it unmapped one.
pub const RBD_CLIENTS: &str = "storage.muster.dev/rbd-clients";

impl PersistentVolume {
    /// Is it a Ceph image that at most one node may write at a time, and must be attached first?
    #[must_use]
    pub fn is_attached_to_write(&self) -> bool {
        let many = |mode: &String| mode == "ReadWriteMany" || mode == "ReadOnlyMany";
        self.spec.rbd.as_ref().is_some_and(|rbd| rbd.get("readOnly") != Some(&Value::Bool(true)))
            && !self.spec.access_modes.iter().any(many)
    }

    /// `POOL/IMAGE` of a Ceph image.
    #[must_use]
    pub fn rbd_image(&self) -> Option<String> {
        let rbd = self.spec.rbd.as_ref()?;
        let text =
            |name: &str| rbd.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        Some(format!("{}/{}", text("pool").unwrap_or("rbd"), text("image")?))
    }
}

impl VolumeAttachment {
    /// The name of the one attachment of a Ceph image: two nodes cannot have it at once.
    ///
    /// *Limits*: a volume whose own name nearly fills what names may have cannot be attached.
    #[must_use]
    pub fn name_of_image(volume: &str) -> String {
        format!("rbd-{volume}")
    }
}
