//! Claims that ask for more than they have.
//!
//! Spec: upstream's expand controller, which grows nothing itself any more: it names the driver
//! that is to do it (`volume.kubernetes.io/storage-resizer`) and says that it waits for it. The
//! driver's side grows the volume and writes its new capacity; the node grows the file system and
//! writes the claim's.

use jiff::Timestamp;
use objects::Quantity;
use objects::pod::ResourceList;
use objects::storage::PersistentVolume;
use serde_json::json;

use crate::action::{Action, Note, Steps, Target};
use crate::view::{Key, View};
use crate::wake::Touch;

/// Annotation of claims: the driver that is to grow the volume.
pub const RESIZER: &str = "volume.kubernetes.io/storage-resizer";

/// The claim that has a volume.
#[must_use]
pub fn claim_of_volume(_view: &View, touch: &Touch) -> Vec<Key> {
    let claims = touch.typed::<PersistentVolume>().filter_map(|one| one.spec.claim_ref.as_ref());
    let mut keys: Vec<Key> = claims.map(|claim| Key::new(&claim.namespace, &claim.name)).collect();
    keys.dedup();
    keys
}

fn storage(list: &ResourceList) -> Quantity {
    list.get("storage").cloned().unwrap_or_default()
}

/// Plans the step for one claim.
#[must_use]
pub fn reconcile(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(claim) = view.claims.get(&key.namespace, &key.name) else { return steps };
    if claim.metadata.is_deleting() || claim.status.phase != "Bound" {
        return steps;
    }
    let Some(volume) = view.volumes.get("", &claim.spec.volume_name) else { return steps };
    let holder = volume.spec.claim_ref.as_ref();
    if holder.is_none_or(|one| one.uid != claim.metadata.uid) {
        return steps;
    }
    let (asked, has) = (storage(&claim.spec.resources.requests), storage(&claim.status.capacity));
    let grows = asked.value() > has.value();
    let driver = volume.spec.csi.as_ref().and_then(|csi| csi.get("driver")?.as_str());
    let driver = driver.or_else(|| volume.metadata.annotation("pv.kubernetes.io/provisioned-by"));
    let Some(driver) = driver.filter(|_| grows) else { return steps };
    if claim.metadata.annotation(RESIZER) == Some(driver) {
        return steps;
    }
    let target = Target::of(&**claim);
    let message = "waiting for an external controller to expand this PVC";
    let note = Note::normal(&target, "ExternalExpanding", message);
    let body = json!({"metadata": {"annotations": {RESIZER: driver}}});
    steps.push(Action::patch(target, body).telling(note));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use objects::kind;
    use objects::storage::PersistentVolumeClaim;

    #[track_caller]
    fn check(asked: &str, has: &str, uid: &str, expected: Option<&str>) {
        let mut world = World::default();
        world.add(
            &kind::PERSISTENT_VOLUME_CLAIM,
            json!({
                "metadata": {"name": "c", "namespace": "n"},
                "spec": {"volumeName": "v", "resources": {"requests": {"storage": asked}}},
                "status": {"phase": "Bound", "capacity": {"storage": has}},
            }),
        );
        world.add(
            &kind::PERSISTENT_VOLUME,
            json!({
                "metadata": {"name": "v"},
                "spec": {
                    "claimRef": {"namespace": "n", "name": "c", "uid": uid},
                    "csi": {"driver": "rbd", "volumeHandle": "h"},
                },
            }),
        );
        let mut all = crate::controller::CONTROLLERS.iter();
        let controller = all.find(|one| one.name == "persistentvolume-expander-controller");
        while world.round(controller.unwrap()) {}
        let claim = &world.all::<PersistentVolumeClaim>()[0];
        assert_eq!(claim.metadata.annotation(RESIZER), expected);
        let told = world.told.iter().filter(|one| one.starts_with("ExternalExpanding")).count();
        assert_eq!(told, usize::from(expected.is_some()));
    }

    #[test]
    fn a_claim_that_asks_for_more_names_the_driver_that_is_to_give_it() {
        check("2Gi", "1Gi", "uid-1", Some("rbd"));
        check("1Gi", "1Gi", "uid-1", None);
        check("1Gi", "2Gi", "uid-1", None);
        check("2Gi", "1Gi", "another", None);
    }
}
