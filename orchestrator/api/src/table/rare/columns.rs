//! The columns of the kinds that are looked at less often.

use super::super::{
    Column,
    columns::{boolean, number, text, wide},
};

pub(super) const CREATED: &[Column] = &[text("Name"), ("Created At", "date", false)];
pub(super) const QUOTA: &[Column] = &[text("Name"), text("Request"), text("Limit"), text("Age")];
pub(super) const TEMPLATE: &[Column] =
    &[text("Name"), text("Containers"), text("Images"), text("Pod Labels")];
pub(super) const REVISION: &[Column] =
    &[text("Name"), text("Controller"), number("Revision"), text("Age")];
pub(super) const JOB: &[Column] = &[
    text("Name"),
    text("Status"),
    text("Completions"),
    text("Duration"),
    text("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];
pub(super) const CRON_JOB: &[Column] = &[
    text("Name"),
    text("Schedule"),
    text("Timezone"),
    boolean("Suspend"),
    number("Active"),
    text("Last Schedule"),
    text("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];
pub(super) const AUTOSCALER: &[Column] = &[
    text("Name"),
    text("Reference"),
    text("Targets"),
    text("MinPods"),
    text("MaxPods"),
    text("Replicas"),
    text("Age"),
];
pub(super) const BUDGET: &[Column] = &[
    text("Name"),
    text("Min Available"),
    text("Max Unavailable"),
    number("Allowed Disruptions"),
    text("Age"),
];
pub(super) const INGRESS: &[Column] =
    &[text("Name"), text("Class"), text("Hosts"), text("Address"), text("Ports"), text("Age")];
pub(super) const INGRESS_CLASS: &[Column] =
    &[text("Name"), text("Controller"), text("Parameters"), text("Age")];
pub(super) const NETWORK_POLICY: &[Column] = &[text("Name"), text("Pod-Selector"), text("Age")];
pub(super) const SERVICE_CIDR: &[Column] = &[text("Name"), text("CIDRs"), text("Age")];
pub(super) const IP_ADDRESS: &[Column] = &[text("Name"), text("ParentRef")];
pub(super) const STORAGE_CLASS: &[Column] = &[
    text("Name"),
    text("Provisioner"),
    text("ReclaimPolicy"),
    text("VolumeBindingMode"),
    boolean("AllowVolumeExpansion"),
    text("Age"),
];
pub(super) const ATTACHMENT: &[Column] =
    &[text("Name"), text("Attacher"), text("PV"), text("Node"), boolean("Attached"), text("Age")];
pub(super) const ATTRIBUTES_CLASS: &[Column] = &[text("Name"), text("DriverName"), text("Age")];
pub(super) const CSI_DRIVER: &[Column] = &[
    text("Name"),
    boolean("AttachRequired"),
    boolean("PodInfoOnMount"),
    boolean("StorageCapacity"),
    text("TokenRequests"),
    boolean("RequiresRepublish"),
    text("Modes"),
    text("Age"),
];
pub(super) const CSI_NODE: &[Column] = &[text("Name"), number("Drivers"), text("Age")];
pub(super) const CAPACITY: &[Column] = &[text("Name"), text("StorageClassName"), text("Capacity")];
pub(super) const CLAIM: &[Column] = &[text("Name"), text("State"), text("Age")];
pub(super) const SLICE: &[Column] =
    &[text("Name"), text("Node"), text("Driver"), text("Pool"), text("Age")];
pub(super) const FLOW_SCHEMA: &[Column] = &[
    text("Name"),
    text("PriorityLevel"),
    number("MatchingPrecedence"),
    text("DistinguisherMethod"),
    text("Age"),
    text("MissingPL"),
];
pub(super) const PRIORITY_LEVEL: &[Column] = &[
    text("Name"),
    text("Type"),
    text("NominalConcurrencyShares"),
    text("Queues"),
    text("HandSize"),
    text("QueueLengthLimit"),
    text("Age"),
];
pub(super) const PRIORITY_CLASS: &[Column] = &[
    text("Name"),
    number("Value"),
    boolean("Global-Default"),
    text("Age"),
    text("PreemptionPolicy"),
];
pub(super) const RUNTIME_CLASS: &[Column] = &[text("Name"), text("Handler"), text("Age")];
pub(super) const WEBHOOKS: &[Column] = &[text("Name"), number("Webhooks"), text("Age")];
pub(super) const VALIDATING_POLICY: &[Column] =
    &[text("Name"), number("Validations"), text("ParamKind"), text("Age")];
pub(super) const MUTATING_POLICY: &[Column] =
    &[text("Name"), number("Mutations"), text("ParamKind"), text("Age")];
pub(super) const POLICY_BINDING: &[Column] =
    &[text("Name"), text("PolicyName"), text("ParamRef"), text("Age")];
pub(super) const API_SERVICE: &[Column] =
    &[text("Name"), text("Service"), text("Available"), text("Age")];
