//! Plugins about volumes: where a pod's claims can be reached, and how many a node bears.

use std::collections::BTreeSet;

use objects::kind;
use serde_json::json;

use crate::action::{Action, Target};
use crate::scheduler::framework::{
    Change, Cycle, Interest, Permit, Plugin, Point, Refusal, Reserved, Scope,
};
use crate::scheduler::snapshot::{Kind, Snapshot};
use crate::scheduler::topology::NodeId;
use crate::scheduler::volume::{ClaimKey, Provision, SELECTED_NODE, reaches};

/// Labels by which older volumes say where they are.
const PLACES: &[&str] = &[
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
/// The access mode that admits a single pod.
const ONE_POD: &str = "ReadWriteOncePod";

fn storage_or_node(change: &Change) -> bool {
    match change {
        Change::Storage | Change::NodeAdded(_) | Change::NodeChanged(_) | Change::PodGone(_) => {
            true
        }
        Change::PodPlaced(_) | Change::Namespace => false,
    }
}

fn has_claims(cycle: &Cycle<'_>) -> Interest {
    if cycle.kind.needs.claims.is_empty() { Interest::Skip } else { Interest::Ask }
}

/// Keeps apart pods that may not hold a disk together.
#[derive(Debug)]
pub(super) struct VolumeRestrictions;

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn scope(&self) -> Scope {
        Scope::Cluster
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>) -> Result<Interest, Refusal> {
        let needs = &cycle.kind.needs;
        let any = !needs.disks.is_empty() || !needs.claims.is_empty();
        Ok(if any { Interest::Ask } else { Interest::Skip })
    }

    fn filter(&self, cycle: &Cycle<'_>, node: NodeId) -> Result<(), Refusal> {
        let needs = &cycle.kind.needs;
        if !needs.disks.is_empty() {
            let clashes = cycle.snapshot.lodgers(node).any(|(_, other)| {
                other.kind.needs.disks.iter().any(|held| {
                    let mut wanted = needs.disks.iter();
                    // RBD images and their like may be read together, but not written.
                    wanted.any(|disk| {
                        disk.kind == held.kind
                            && disk.identity == held.identity
                            && !(disk.read_only
                                && held.read_only
                                && disk.kind != "awsElasticBlockStore")
                    })
                })
            });
            if clashes {
                return Err(Refusal::curable(self.name(), "node(s) had no available disk"));
            }
        }
        let volumes = &cycle.snapshot.volumes;
        let taken = needs.claims.iter().any(|claim| {
            let key: ClaimKey = (needs.namespace.clone(), claim.name.clone());
            let single = volumes
                .claims
                .get(&key)
                .is_some_and(|found| found.spec.access_modes.iter().any(|mode| mode == ONE_POD));
            single && volumes.users.get(&key).is_some_and(|users| *users > 0)
        });
        if taken {
            let reason = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
            return Err(Refusal::curable(self.name(), reason));
        }
        Ok(())
    }

    fn may_help(&self, _snapshot: &Snapshot, _kind: &Kind, change: &Change) -> bool {
        storage_or_node(change)
    }
}

/// Keeps a node from more volumes of a driver than the driver can attach there.
#[derive(Debug)]
pub(super) struct NodeVolumeLimits;

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn scope(&self) -> Scope {
        Scope::Cluster
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>) -> Result<Interest, Refusal> {
        Ok(has_claims(cycle))
    }

    fn filter(&self, cycle: &Cycle<'_>, node: NodeId) -> Result<(), Refusal> {
        let volumes = &cycle.snapshot.volumes;
        let Some(limits) = volumes.limits.get(cycle.snapshot.table.name(node)) else {
            return Ok(());
        };
        let driven = |kind: &Kind| -> Vec<(String, String)> {
            let claims = kind.needs.claims.iter();
            let keys = claims.map(|one| (kind.needs.namespace.clone(), one.name.clone()));
            keys.filter_map(|key| volumes.driver(&key)).collect()
        };
        // One volume that several pods share is attached once.
        let held: BTreeSet<(String, String)> =
            cycle.snapshot.lodgers(node).flat_map(|(_, other)| driven(&other.kind)).collect();
        let mut all = held.clone();
        all.extend(driven(cycle.kind));
        for (driver, most) in limits {
            let count = |set: &BTreeSet<(String, String)>| {
                i64::try_from(set.iter().filter(|(one, _)| one == driver).count())
                    .unwrap_or(i64::MAX)
            };
            let (before, after) = (count(&held), count(&all));
            if after > before && after > *most {
                return Err(Refusal::curable(self.name(), "node(s) exceed max volume count"));
            }
        }
        Ok(())
    }

    fn may_help(&self, _snapshot: &Snapshot, _kind: &Kind, change: &Change) -> bool {
        storage_or_node(change)
    }
}

/// Finds nodes that reach a pod's volumes, and binds claims that waited for their pod.
#[derive(Debug)]
pub(super) struct VolumeBinding;

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::Reserve, Point::Permit, Point::PreBind]
    }

    fn scope(&self) -> Scope {
        Scope::Cluster
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>) -> Result<Interest, Refusal> {
        let needs = &cycle.kind.needs;
        let uid = &cycle.pod.metadata.uid;
        let sorted = cycle.snapshot.volumes.sort(&needs.namespace, &needs.claims, uid);
        cycle.notes.claims = sorted.map_err(|reason| Refusal::told(self.name(), reason))?;
        Ok(has_claims(cycle))
    }

    fn filter(&self, cycle: &Cycle<'_>, node: NodeId) -> Result<(), Refusal> {
        let Some(found) = cycle.snapshot.table.get(node) else { return Ok(()) };
        let (name, labels) = (&found.node.metadata.name, &found.node.metadata.labels);
        for (_, volume) in &cycle.notes.claims.bound {
            let Some(volume) = volume else {
                let reason =
                    "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
                return Err(Refusal::lasting(self.name(), reason));
            };
            if !reaches(volume, name, labels) {
                let reason = "node(s) had volume node affinity conflict";
                return Err(Refusal::lasting(self.name(), reason));
            }
        }
        let waiting = &cycle.notes.claims.waiting;
        if waiting.is_empty() || cycle.snapshot.volumes.provide(waiting, name, labels).is_some() {
            return Ok(());
        }
        let reason = "node(s) didn't find available persistent volumes to bind";
        Err(Refusal::lasting(self.name(), reason))
    }

    fn reserve(
        &self,
        snapshot: &mut Snapshot,
        reserved: &mut Reserved,
        kind: &Kind,
    ) -> Result<(), Refusal> {
        let refused = |reason| Refusal::told(self.name(), reason);
        let (needs, uid) = (&kind.needs, &reserved.pod.metadata.uid);
        let claims =
            snapshot.volumes.sort(&needs.namespace, &needs.claims, uid).map_err(refused)?;
        if claims.waiting.is_empty() {
            return Ok(());
        }
        let id = snapshot.table.find(&reserved.node);
        let found = id.and_then(|id| snapshot.table.get(id));
        let plan = found.and_then(|found| {
            let labels = &found.node.metadata.labels;
            snapshot.volumes.provide(&claims.waiting, &reserved.node, labels)
        });
        let reason = "node(s) didn't find available persistent volumes to bind";
        let plan = plan.ok_or(Refusal::lasting(self.name(), reason))?;
        snapshot.volumes.promise(&plan);
        reserved.volumes = plan;
        Ok(())
    }

    fn unreserve(&self, snapshot: &mut Snapshot, reserved: &Reserved) {
        for (claim, _) in &reserved.volumes {
            let meta = &claim.metadata;
            snapshot.volumes.release(&(meta.namespace.clone(), meta.name.clone()));
        }
    }

    fn permit(&self, snapshot: &Snapshot, reserved: &Reserved) -> Permit {
        let bound = reserved.volumes.iter().all(|(claim, _)| {
            let key = (claim.metadata.namespace.clone(), claim.metadata.name.clone());
            snapshot
                .volumes
                .claims
                .get(&key)
                .is_some_and(|claim| crate::scheduler::volume::is_bound(claim))
        });
        if bound { Permit::Allow } else { Permit::Wait }
    }

    fn pre_bind(&self, reserved: &Reserved) -> Vec<Action> {
        let each = reserved.volumes.iter().filter_map(|(claim, step)| match step {
            Provision::Take(volume) => {
                let meta = &claim.metadata;
                if volume.spec.claim_ref.as_ref().is_some_and(|one| one.uid == meta.uid) {
                    return None;
                }
                let reference = json!({
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "namespace": meta.namespace, "name": meta.name, "uid": meta.uid,
                });
                let body = json!({
                    "metadata": {"annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}},
                    "spec": {"claimRef": reference},
                });
                let target = Target::of_kind(&kind::PERSISTENT_VOLUME, &volume.metadata);
                Some(Action::patch(target, body))
            }
            Provision::Make => {
                if claim.metadata.annotation(SELECTED_NODE) == Some(&reserved.node) {
                    return None;
                }
                let body = json!({"metadata": {"annotations": {SELECTED_NODE: reserved.node}}});
                let target = Target::of_kind(&kind::PERSISTENT_VOLUME_CLAIM, &claim.metadata);
                Some(Action::patch(target, body))
            }
        });
        each.collect()
    }

    fn may_help(&self, _snapshot: &Snapshot, _kind: &Kind, change: &Change) -> bool {
        storage_or_node(change)
    }
}

/// Keeps pods in the zone of volumes that name it by a label.
#[derive(Debug)]
pub(super) struct VolumeZone;

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn scope(&self) -> Scope {
        Scope::Cluster
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>) -> Result<Interest, Refusal> {
        Ok(has_claims(cycle))
    }

    fn filter(&self, cycle: &Cycle<'_>, node: NodeId) -> Result<(), Refusal> {
        let Some(found) = cycle.snapshot.table.get(node) else { return Ok(()) };
        let labels = &found.node.metadata.labels;
        // A node that says nothing of places belongs to a cluster without them.
        if !PLACES.iter().any(|key| labels.contains_key(*key)) {
            return Ok(());
        }
        let volumes = cycle.notes.claims.bound.iter().filter_map(|(_, volume)| volume.as_ref());
        for volume in volumes {
            let away = PLACES.iter().any(|key| {
                // Several places are joined by two underscores.
                volume.metadata.label(key).is_some_and(|places| {
                    !labels.get(*key).is_some_and(|here| places.split("__").any(|one| one == here))
                })
            });
            if away {
                let reason = "node(s) had no available volume zone";
                return Err(Refusal::lasting(self.name(), reason));
            }
        }
        Ok(())
    }

    fn may_help(&self, _snapshot: &Snapshot, _kind: &Kind, change: &Change) -> bool {
        storage_or_node(change)
    }
}
