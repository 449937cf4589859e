//! Claims, volumes and classes as the scheduler sees them, with the matches it has promised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use objects::LabelSelector;
use objects::storage::{PersistentVolume, PersistentVolumeClaim, StorageClass};
use serde_json::Value;

use super::needs::{Claimed, NodeTerm, any_term};

/// A claim's namespace and name.
pub(super) type ClaimKey = (String, String);
/// The provisioner that makes nothing: volumes of its classes are made by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// Annotation: the controller has finished binding.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Annotation: where a volume is to be made.
pub(super) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// All that volumes need to be known by.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    pub(super) claims: BTreeMap<ClaimKey, Arc<PersistentVolumeClaim>>,
    pub(super) volumes: BTreeMap<String, Arc<PersistentVolume>>,
    pub(super) classes: BTreeMap<String, Arc<StorageClass>>,
    /// Most volumes per driver of each node.
    pub(super) limits: BTreeMap<String, BTreeMap<String, i64>>,
    /// Volumes promised to claims that the view does not show as bound yet.
    promised: BTreeMap<String, ClaimKey>,
    /// Pods on nodes by claim.
    pub(super) users: BTreeMap<ClaimKey, i64>,
    /// Counts changes: what was worked out from an older state no longer holds.
    pub(super) epoch: u64,
}

/// The claims of a pod by what is still to be done for them.
#[derive(Debug, Clone, Default)]
pub(super) struct PodClaims {
    /// Claims with their volumes; `None` when the volume is not there.
    pub(super) bound: Vec<(Arc<PersistentVolumeClaim>, Option<Arc<PersistentVolume>>)>,
    /// Claims that wait for their pod's node.
    pub(super) waiting: Vec<Arc<PersistentVolumeClaim>>,
}

/// What is to become of a waiting claim on a node.
#[derive(Debug, Clone)]
pub(super) enum Provision {
    /// This volume is there and fits.
    Take(Arc<PersistentVolume>),
    /// One is made.
    Make,
}

/// Is the binding of a claim complete?
pub(super) fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    !claim.spec.volume_name.is_empty() && claim.metadata.annotations.contains_key(BIND_COMPLETED)
        || (!claim.spec.volume_name.is_empty() && claim.status.phase == "Bound")
}

fn key(claim: &PersistentVolumeClaim) -> ClaimKey {
    (claim.metadata.namespace.clone(), claim.metadata.name.clone())
}

/// A volume's rule about nodes.
pub(super) fn reaches(
    volume: &PersistentVolume,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    let rule = volume.spec.node_affinity.as_ref().and_then(|one| one.required.as_ref());
    rule.is_none_or(|rule| {
        let terms: Vec<NodeTerm> = rule.node_selector_terms.iter().map(NodeTerm::of).collect();
        any_term(&terms, name, labels)
    })
}

impl Volumes {
    /// Sorts the claims of a pod.
    ///
    /// # Errors
    ///
    /// The sentence that says which claim keeps the pod from every node.
    pub(super) fn sort(
        &self,
        namespace: &str,
        claims: &[Claimed],
        pod_uid: &str,
    ) -> Result<PodClaims, String> {
        let mut sorted = PodClaims::default();
        for one in claims {
            let name = &one.name;
            let found = self.claims.get(&(namespace.to_owned(), name.clone()));
            let Some(claim) = found else {
                return Err(if one.ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                    )
                } else {
                    format!("persistentvolumeclaim \"{name}\" not found")
                });
            };
            if claim.metadata.is_deleting() {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            if claim.status.phase == "Lost" {
                let volume = &claim.spec.volume_name;
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                ));
            }
            if one.ephemeral && !claim.metadata.is_controlled_by(pod_uid) {
                return Err(format!(
                    "PVC {namespace}/{name} was not created for pod (pod is not owner)"
                ));
            }
            if is_bound(claim) {
                let volume = self.volumes.get(&claim.spec.volume_name).cloned();
                sorted.bound.push((Arc::clone(claim), volume));
            } else if self.waits_for_its_pod(claim) && claim.spec.volume_name.is_empty() {
                sorted.waiting.push(Arc::clone(claim));
            } else {
                return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
            }
        }
        Ok(sorted)
    }

    fn class(&self, claim: &PersistentVolumeClaim) -> Option<&Arc<StorageClass>> {
        self.classes.get(claim.spec.storage_class_name.as_deref()?)
    }

    fn waits_for_its_pod(&self, claim: &PersistentVolumeClaim) -> bool {
        self.class(claim).is_some_and(|class| {
            class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
        })
    }

    /// Finds a volume for every waiting claim on a node, or that it can be made there.
    pub(super) fn provide(
        &self,
        claims: &[Arc<PersistentVolumeClaim>],
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Option<Vec<(Arc<PersistentVolumeClaim>, Provision)>> {
        let mut taken: BTreeSet<&str> = BTreeSet::new();
        let mut plan = Vec::new();
        // Small claims choose first, so that they do not take what only large ones need.
        let mut claims: Vec<_> = claims.iter().collect();
        claims.sort_by_key(|claim| claim.spec.resources.requests.get("storage").copied());
        for claim in claims {
            let fits = |volume: &&Arc<PersistentVolume>| {
                !taken.contains(volume.metadata.name.as_str())
                    && self.fits(claim, volume)
                    && reaches(volume, name, labels)
            };
            let capacity = |volume: &Arc<PersistentVolume>| {
                volume.spec.capacity.get("storage").copied().unwrap_or_default()
            };
            let best = self.volumes.values().filter(fits).min_by_key(|volume| capacity(volume));
            let step = match best {
                Some(volume) => {
                    taken.insert(&volume.metadata.name);
                    Provision::Take(Arc::clone(volume))
                }
                None if self.can_make(claim, name, labels) => Provision::Make,
                None => return None,
            };
            plan.push((Arc::clone(claim), step));
        }
        Some(plan)
    }

    /// Could this volume serve this claim, wherever it is?
    fn fits(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
        let spec = &volume.spec;
        let named = |reference: &objects::meta::ObjectReference| {
            reference.namespace == claim.metadata.namespace
                && reference.name == claim.metadata.name
                && (reference.uid.is_empty() || reference.uid == claim.metadata.uid)
        };
        let free = match &spec.claim_ref {
            Some(reference) => named(reference),
            None => matches!(volume.status.phase.as_str(), "" | "Available"),
        };
        let promised = self.promised.get(&volume.metadata.name);
        let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
        let selected = claim
            .spec
            .selector
            .as_ref()
            .is_none_or(|one: &LabelSelector| one.matches(&volume.metadata.labels));
        free && promised.is_none_or(|other| *other == key(claim))
            && !volume.metadata.is_deleting()
            && spec.storage_class_name
                == claim.spec.storage_class_name.as_deref().unwrap_or_default()
            && mode(&spec.volume_mode) == mode(&claim.spec.volume_mode)
            && selected
            && claim.spec.access_modes.iter().all(|mode| spec.access_modes.contains(mode))
            && claim.spec.resources.requests.get("storage").copied().unwrap_or_default()
                <= spec.capacity.get("storage").copied().unwrap_or_default()
    }

    fn can_make(
        &self,
        claim: &PersistentVolumeClaim,
        node: &str,
        labels: &BTreeMap<String, String>,
    ) -> bool {
        let Some(class) = self.class(claim) else { return false };
        // A volume is made where it was first decided that it be made.
        let elsewhere =
            claim.metadata.annotation(SELECTED_NODE).is_some_and(|chosen| chosen != node);
        !elsewhere
            && !class.provisioner.is_empty()
            && class.provisioner != NO_PROVISIONER
            && claim.spec.selector.is_none()
            && (class.allowed_topologies.is_empty()
                || class.allowed_topologies.iter().any(|term| topology_allows(term, labels)))
    }

    /// Remembers that these volumes are spoken for.
    pub(super) fn promise(&mut self, plan: &[(Arc<PersistentVolumeClaim>, Provision)]) {
        for (claim, step) in plan {
            if let Provision::Take(volume) = step {
                self.promised.insert(volume.metadata.name.clone(), key(claim));
                self.epoch += 1;
            }
        }
    }

    /// Takes promises to a claim back.
    pub(super) fn release(&mut self, claim: &ClaimKey) {
        let before = self.promised.len();
        self.promised.retain(|_, promised| promised != claim);
        if self.promised.len() != before {
            self.epoch += 1;
        }
    }

    /// Reads the volume limits of a node from its `CSINode`.
    pub(super) fn read_limits(&mut self, node: &Value) {
        let name = node.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let drivers = node.pointer("/spec/drivers").and_then(Value::as_array);
        let each = drivers.into_iter().flatten().filter_map(|driver| {
            let count = driver.pointer("/allocatable/count").and_then(Value::as_i64)?;
            Some((driver.get("name")?.as_str()?.to_owned(), count))
        });
        self.limits.insert(name.to_owned(), each.collect());
        self.epoch += 1;
    }

    /// The driver and handle of a claim's volume, made or to be made.
    pub(super) fn driver(&self, claim: &ClaimKey) -> Option<(String, String)> {
        let found = self.claims.get(claim)?;
        if let Some(volume) = self.volumes.get(&found.spec.volume_name) {
            let csi = volume.spec.csi.as_ref()?;
            let text = |field: &str| Some(csi.get(field)?.as_str()?.to_owned());
            return Some((text("driver")?, text("volumeHandle")?));
        }
        let class = self.class(found)?;
        Some((class.provisioner.clone(), format!("{}/{}", claim.0, claim.1)))
    }
}

/// One term of a class's `allowedTopologies`.
fn topology_allows(term: &Value, labels: &BTreeMap<String, String>) -> bool {
    let all = term.get("matchLabelExpressions").and_then(Value::as_array);
    all.into_iter().flatten().all(|one| {
        let key = one.get("key").and_then(Value::as_str).unwrap_or_default();
        let values = one.get("values").and_then(Value::as_array);
        let listed = |value: &String| {
            values.is_some_and(|all| all.iter().any(|one| one.as_str() == Some(value)))
        };
        labels.get(key).is_some_and(listed)
    })
}
