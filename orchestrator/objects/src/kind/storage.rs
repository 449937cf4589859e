//! Kinds of storage and devices.

use super::{BASE, Kind};

/// A storage driver and what it can do.
pub static CSI_DRIVER: Kind = Kind {
    group: "storage.k8s.io",
    kind: "CSIDriver",
    plural: "csidrivers",
    singular: "csidriver",
    namespaced: false,
    has_generation: true,
    ..BASE
};

/// The storage drivers of a node.
pub static CSI_NODE: Kind = Kind {
    group: "storage.k8s.io",
    kind: "CSINode",
    plural: "csinodes",
    singular: "csinode",
    namespaced: false,
    ..BASE
};

/// How much a storage class can still make at a place.
pub static CSI_STORAGE_CAPACITY: Kind = Kind {
    group: "storage.k8s.io",
    kind: "CSIStorageCapacity",
    plural: "csistoragecapacities",
    singular: "csistoragecapacity",
    ..BASE
};

/// A way to make volumes.
pub static STORAGE_CLASS: Kind = Kind {
    group: "storage.k8s.io",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    short_names: &["sc"],
    namespaced: false,
    ..BASE
};

/// A volume that is to be at a node.
pub static VOLUME_ATTACHMENT: Kind = Kind {
    group: "storage.k8s.io",
    kind: "VolumeAttachment",
    plural: "volumeattachments",
    singular: "volumeattachment",
    namespaced: false,
    has_status: true,
    subresources: &["status"],
    ..BASE
};

/// Changeable properties of volumes under one name.
pub static VOLUME_ATTRIBUTES_CLASS: Kind = Kind {
    group: "storage.k8s.io",
    kind: "VolumeAttributesClass",
    plural: "volumeattributesclasses",
    singular: "volumeattributesclass",
    short_names: &["vac"],
    namespaced: false,
    ..BASE
};

/// A snapshot that somebody asks for. Custom: served where its definition is.
pub static VOLUME_SNAPSHOT: Kind = Kind {
    group: "snapshot.storage.k8s.io",
    kind: "VolumeSnapshot",
    plural: "volumesnapshots",
    singular: "volumesnapshot",
    short_names: &["vs"],
    has_status: true,
    has_generation: true,
    subresources: &["status"],
    ..BASE
};

/// A snapshot that is there. Custom, as above.
pub static VOLUME_SNAPSHOT_CONTENT: Kind = Kind {
    group: "snapshot.storage.k8s.io",
    kind: "VolumeSnapshotContent",
    plural: "volumesnapshotcontents",
    singular: "volumesnapshotcontent",
    short_names: &["vsc", "vscs"],
    namespaced: false,
    has_status: true,
    has_generation: true,
    subresources: &["status"],
    ..BASE
};

/// How snapshots are made. Custom, as above.
pub static VOLUME_SNAPSHOT_CLASS: Kind = Kind {
    group: "snapshot.storage.k8s.io",
    kind: "VolumeSnapshotClass",
    plural: "volumesnapshotclasses",
    singular: "volumesnapshotclass",
    short_names: &["vsclass", "vsclasses"],
    namespaced: false,
    has_generation: true,
    ..BASE
};

/// A kind of devices under one name.
pub static DEVICE_CLASS: Kind = Kind {
    group: "resource.k8s.io",
    kind: "DeviceClass",
    plural: "deviceclasses",
    singular: "deviceclass",
    namespaced: false,
    has_generation: true,
    ..BASE
};

/// A claim on devices to be made for each pod.
pub static RESOURCE_CLAIM_TEMPLATE: Kind = Kind {
    group: "resource.k8s.io",
    kind: "ResourceClaimTemplate",
    plural: "resourceclaimtemplates",
    singular: "resourceclaimtemplate",
    ..BASE
};

/// Devices a pod asks for.
pub static RESOURCE_CLAIM: Kind = Kind {
    group: "resource.k8s.io",
    kind: "ResourceClaim",
    plural: "resourceclaims",
    singular: "resourceclaim",
    has_status: true,
    subresources: &["status"],
    ..BASE
};

/// Devices a driver offers.
pub static RESOURCE_SLICE: Kind = Kind {
    group: "resource.k8s.io",
    kind: "ResourceSlice",
    plural: "resourceslices",
    singular: "resourceslice",
    namespaced: false,
    has_generation: true,
    selectable: &["spec.nodeName", "spec.driver"],
    ..BASE
};
