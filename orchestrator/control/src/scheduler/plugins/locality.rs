//! Plugins about where things are: images, racks, data.

use objects::storage::{PersistentVolume, PersistentVolumeClaim};
use serde_json::Value;

use crate::membership::ZONE;
use crate::scheduler::census::at;
use crate::scheduler::framework::{BEST, Cycle, Interest, Plugin, Point, Scope, more_is_better};
use crate::scheduler::snapshot::Snapshot;
use crate::scheduler::topology::NodeId;

/// Bytes of images below which they are not worth a thought, per container.
const SMALL: i64 = 23 << 20;
/// Bytes from which more make no difference, per container.
const LARGE: i64 = 1000 << 20;

/// Prefers nodes that have the pod's images.
#[derive(Debug)]
pub(super) struct ImageLocality;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreScore, Point::Score]
    }

    fn pre_score(&self, cycle: &mut Cycle<'_>, _feasible: &[NodeId]) -> Interest {
        let known = &cycle.snapshot.table.images;
        let anywhere = cycle.kind.needs.images.iter().any(|image| known.contains_key(image));
        if anywhere { Interest::Ask } else { Interest::Skip }
    }

    fn score(&self, cycle: &Cycle<'_>, node: NodeId) -> i64 {
        let table = &cycle.snapshot.table;
        let Some(found) = table.get(node) else { return 0 };
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let all = count(table.len()).max(1);
        let images = &cycle.kind.needs.images;
        let there = images.iter().filter_map(|image| {
            let size = found.images.get(image)?;
            // An image that few nodes have shall not draw every pod to them.
            let spread = count(table.images.get(image).copied().unwrap_or(0));
            Some(size.saturating_mul(spread) / all)
        });
        let sum: i64 = there.sum();
        let containers = count(images.len()).max(1);
        let (small, large) = (SMALL * containers, LARGE * containers);
        BEST * (sum.clamp(small, large) - small) / (large - small).max(1)
    }
}

/// Keeps equal pods apart, first over racks, then over nodes.
///
/// Racks are failure domains by default: the plan's racks are the zones of their nodes. Pods
/// with spread constraints of their own have said what they want instead.
#[derive(Debug)]
pub(super) struct RackSpread;

/// How much more a sibling in the rack counts than one on the node.
const RACK: i64 = 1000;

impl Plugin for RackSpread {
    fn name(&self) -> &'static str {
        "RackSpread"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreScore, Point::Score, Point::NormalizeScore]
    }

    fn scope(&self) -> Scope {
        Scope::Cluster
    }

    fn pre_score(&self, cycle: &mut Cycle<'_>, _feasible: &[NodeId]) -> Interest {
        let siblings = cycle.questions.siblings.as_ref();
        let any = siblings.is_some_and(|(all, ..)| cycle.snapshot.census.total(*all) > 0);
        if any && cycle.kind.needs.spread.is_empty() { Interest::Ask } else { Interest::Skip }
    }

    fn score(&self, cycle: &Cycle<'_>, node: NodeId) -> i64 {
        let Some((all, key, by_rack)) = cycle.questions.siblings else { return 0 };
        let census = &cycle.snapshot.census;
        let here = at(census.per_node(all), node);
        let rack = cycle.snapshot.topology.value(key, node);
        // Without a rack the node stands for itself.
        let near = rack.map_or(here, |rack| at(census.per_value(by_rack), rack));
        near.saturating_mul(RACK).saturating_add(here.min(RACK - 1))
    }

    fn normalizes(&self) -> bool {
        true
    }

    fn normalize_score(&self, _cycle: &Cycle<'_>, _nodes: &[NodeId], scores: &mut [i64]) {
        let least = scores.iter().copied().min().unwrap_or(0);
        let span = scores.iter().copied().max().unwrap_or(0) - least;
        for score in scores {
            *score = if span == 0 { BEST } else { BEST - (*score - least) * BEST / span };
        }
    }
}

/// Prefers nodes near a pod's RBD data, as far as the CRUSH map tells where that is.
#[derive(Debug)]
pub(super) struct DataLocality;

impl Plugin for DataLocality {
    fn name(&self) -> &'static str {
        "DataLocality"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreScore, Point::Score, Point::NormalizeScore]
    }

    fn scope(&self) -> Scope {
        Scope::Cluster
    }

    fn pre_score(&self, cycle: &mut Cycle<'_>, _feasible: &[NodeId]) -> Interest {
        if cycle.snapshot.crush.is_none() {
            return Interest::Skip;
        }
        let claims = &cycle.notes.claims;
        let bound = claims.bound.iter().filter_map(|(_, volume)| pool_of(volume.as_deref()?));
        let waiting = claims.waiting.iter().filter_map(|claim| pool_to_be(cycle.snapshot, claim));
        let pools: Vec<String> = bound.chain(waiting).collect();
        cycle.notes.data = pools;
        if cycle.notes.data.is_empty() { Interest::Skip } else { Interest::Ask }
    }

    fn score(&self, cycle: &Cycle<'_>, node: NodeId) -> i64 {
        let Some(crush) = &cycle.snapshot.crush else { return 0 };
        let Some(found) = cycle.snapshot.table.get(node) else { return 0 };
        let meta = &found.node.metadata;
        let rack = meta.label(ZONE).unwrap_or_default();
        let each = cycle
            .notes
            .data
            .iter()
            .map(|pool| crush.share(pool, &meta.name).saturating_add(crush.share(pool, rack)));
        each.sum()
    }

    fn normalizes(&self) -> bool {
        true
    }

    fn normalize_score(&self, _cycle: &Cycle<'_>, _nodes: &[NodeId], scores: &mut [i64]) {
        more_is_better(scores);
    }
}

/// The pool of a volume, if it is an RBD image.
fn pool_of(volume: &PersistentVolume) -> Option<String> {
    let text = |value: &Value, path: &str| value.pointer(path)?.as_str().map(str::to_owned);
    if let Some(rbd) = &volume.spec.rbd {
        return text(rbd, "/pool").or_else(|| Some("rbd".to_owned()));
    }
    let csi = volume.spec.csi.as_ref()?;
    let driver = text(csi, "/driver")?;
    if driver.contains("rbd") { text(csi, "/volumeAttributes/pool") } else { None }
}

/// The pool in which a claim's volume will be made.
fn pool_to_be(snapshot: &Snapshot, claim: &PersistentVolumeClaim) -> Option<String> {
    let class = claim.spec.storage_class_name.as_ref()?;
    let class = snapshot.volumes.classes.get(class)?;
    let rbd = class.provisioner.contains("rbd");
    if rbd { class.parameters.get("pool").cloned() } else { None }
}
