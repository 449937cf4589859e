//! From a claim in a pod to the volume it has.
//!
//! Spec: upstream's volume manager of the node: a claim must exist, be bound, not be going
//! away, and be known to its volume; the claim of a generic ephemeral volume is named after pod
//! and volume and must belong to the pod.

use objects::pod::Pod;
use objects::storage::{PersistentVolume, PersistentVolumeClaim};
use serde_json::Value;

use crate::remote::{Growth, Mode, RemoteKind, parse_remote, text};
use crate::source::{Problem, Source, host_path};

/// A claim that a volume of a pod names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The volume's name in the pod.
    pub volume: String,
    /// The claim's name in the pod's namespace.
    pub claim: String,
    /// The pod only reads.
    pub read_only: bool,
    /// The claim was made for this pod.
    pub ephemeral: bool,
}

/// The claims that a pod's volumes name.
#[must_use]
pub fn wanted(pod: &Pod) -> Vec<Wanted> {
    let of = |volume: &objects::pod::Volume| {
        if let Some(given) = &volume.persistent_volume_claim {
            let read_only = given.get("readOnly").and_then(Value::as_bool).unwrap_or_default();
            let claim = text(given, "claimName");
            return Some(Wanted {
                volume: volume.name.clone(),
                claim,
                read_only,
                ephemeral: false,
            });
        }
        volume.extra.get("ephemeral")?;
        let claim = format!("{}-{}", pod.metadata.name, volume.name);
        Some(Wanted { volume: volume.name.clone(), claim, read_only: false, ephemeral: true })
    };
    pod.spec.volumes.iter().filter_map(of).collect()
}

/// The volume's name behind a claim.
///
/// # Errors
///
/// When the claim cannot be used now.
pub fn bound_to(
    pod: &Pod,
    wanted: &Wanted,
    claim: Option<&PersistentVolumeClaim>,
) -> Result<String, Problem> {
    let namespace = &pod.metadata.namespace;
    let name = format!("{namespace}/{}", wanted.claim);
    let failed = |why: String| Problem::Claim { claim: name.clone(), why };
    let Some(claim) = claim else {
        let why = format!("persistentvolumeclaim \"{}\" not found", wanted.claim);
        return Err(failed(format!("failed to fetch PVC from API server: {why}")));
    };
    let owned = |owner: &objects::OwnerReference| owner.uid == pod.metadata.uid;
    if wanted.ephemeral && !claim.metadata.owner_references.iter().any(owned) {
        return Err(failed(format!(
            "PVC {name} was not created for pod {namespace}/{} (pod is not owner)",
            pod.metadata.name
        )));
    }
    if claim.metadata.is_deleting() {
        return Err(failed("PVC is being deleted".to_owned()));
    }
    if claim.status.phase != "Bound" || claim.spec.volume_name.is_empty() {
        return Err(failed("PVC is not bound".to_owned()));
    }
    Ok(claim.spec.volume_name.clone())
}

/// What a claim's volume is made of.
///
/// # Errors
///
/// When the volume is not there, is not this claim's, or cannot be used here.
pub fn source_of(
    wanted: &Wanted,
    claim: &PersistentVolumeClaim,
    volume: Option<&PersistentVolume>,
) -> Result<Source, Problem> {
    let name = &claim.spec.volume_name;
    let failed = |why: String| {
        let claim = format!("{}/{}", claim.metadata.namespace, wanted.claim);
        Problem::Claim { claim, why }
    };
    let missing = || {
        failed(format!(
            "failed to fetch PV {name} from API server: persistentvolume \"{name}\" not found"
        ))
    };
    let volume = volume.ok_or_else(missing)?;
    let uid = volume.spec.claim_ref.as_ref().map(|claim| claim.uid.as_str()).unwrap_or_default();
    if uid != claim.metadata.uid {
        return Err(failed(format!(
            "the volume's spec.claimRef.uid {uid:?} does not match expected PVC UID {:?}",
            claim.metadata.uid
        )));
    }
    let spec = &volume.spec;
    if let Some(given) = spec.extra.get("hostPath") {
        let given = serde_json::from_value(given.clone());
        let wrong = |_| Problem::Value { field: "hostPath", value: name.clone() };
        return host_path(&given.map_err(wrong)?);
    }
    let mut fields = spec.extra.clone();
    let typed = [("rbd", &spec.rbd), ("csi", &spec.csi)];
    fields.extend(
        typed.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))),
    );
    let unknown =
        || Problem::Kind { kind: "of a persistent volume without a known source".to_owned() };
    let mut remote = parse_remote(&fields, name).ok_or_else(unknown)??;
    let only = |mode: &str| spec.access_modes.iter().all(|one| one == mode);
    remote.read_only |= wanted.read_only || (!spec.access_modes.is_empty() && only("ReadOnlyMany"));
    remote.shared = spec.access_modes.iter().any(|mode| mode == "ReadWriteMany");
    remote.attached = matches!(remote.kind, RemoteKind::Rbd(_)) && volume.is_attached_to_write();
    remote.growth = growth(claim, volume).filter(|_| !remote.read_only);
    remote.mount_options.clone_from(&spec.mount_options);
    if spec.volume_mode.as_deref() == Some("Block") {
        remote.mode = Mode::Block;
    }
    // A secret named without a namespace is looked for beside the claim.
    let own = |secret: &mut Option<crate::remote::SecretName>| {
        if let Some(secret) = secret.as_mut().filter(|secret| secret.namespace.is_empty()) {
            secret.namespace.clone_from(&claim.metadata.namespace);
        }
    };
    match &mut remote.kind {
        RemoteKind::Rbd(rbd) => own(&mut rbd.secret),
        RemoteKind::CephFs(share) => own(&mut share.secret),
        RemoteKind::Csi(csi) => {
            own(&mut csi.stage_secret);
            own(&mut csi.publish_secret);
            own(&mut csi.expand_secret);
            csi.access_modes.clone_from(&spec.access_modes);
        }
        RemoteKind::Nfs(_) | RemoteKind::Iscsi(_) | RemoteKind::Local(_) => {}
    }
    Ok(Source::Remote(Box::new(remote)))
}

/// What a claim does not have yet of its volume.
fn growth(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Growth> {
    let (is, told) = (volume.spec.capacity.get("storage")?, claim.status.capacity.get("storage")?);
    // A claim may be told less than its volume always had; only one that asks for more grows.
    let asked = claim.spec.resources.requests.get("storage")?;
    (is > told && asked > told).then(|| Growth {
        namespace: claim.metadata.namespace.clone(),
        claim: claim.metadata.name.clone(),
        bytes: is.value(),
        capacity: is.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(mut object: Value, patch: &Value) -> Value {
        for (key, value) in patch.as_object().unwrap() {
            let below = object[key].clone();
            object[key] = if value.is_object() && below.is_object() {
                merged(below, value)
            } else {
                value.clone()
            };
        }
        object
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "pod-1"},
            "spec": {"volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "c", "readOnly": false}},
                {"name": "tmp", "ephemeral": {"volumeClaimTemplate": {}}}]}}))
        .unwrap()
    }

    /// Resolves the claim of volume `index` with patches to a good claim and a good volume.
    fn resolve(index: usize, claim: Value, volume: Value) -> Result<Source, String> {
        let wanted = &wanted(&pod())[index];
        let good = json!({"metadata": {"name": wanted.claim, "namespace": "n", "uid": "claim-1"},
            "spec": {"volumeName": "pv-1"}, "status": {"phase": "Bound"}});
        let claim = serde_json::from_value(merged(good, &claim)).unwrap();
        let good = json!({"metadata": {"name": "pv-1"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "claimRef": {"uid": "claim-1"}, "rbd": {"monitors": ["m"], "image": "i", "secretRef": {"name": "s"}}}});
        let volume = serde_json::from_value(merged(good, &volume)).unwrap();
        bound_to(&pod(), wanted, Some(&claim))
            .and_then(|_| source_of(wanted, &claim, Some(&volume)))
            .map_err(|err| err.to_string())
    }

    #[track_caller]
    fn remote(claim: Value, volume: Value) -> crate::remote::Remote {
        match resolve(0, claim, volume) {
            Ok(Source::Remote(remote)) => *remote,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bound_claim_leads_to_its_volume() {
        let found = remote(json!({}), json!({"spec": {"mountOptions": ["noatime"]}}));
        assert_eq!((&*found.name, &*found.mount_options), ("pv-1", &["noatime".to_owned()][..]));
        assert_eq!((found.read_only, found.shared, found.mode), (false, false, Mode::Filesystem));
        assert_eq!(found.secrets().next().unwrap().namespace, "n");
        let block = remote(json!({}), json!({"spec": {"volumeMode": "Block"}}));
        assert_eq!(block.mode, Mode::Block);
        let reader = remote(json!({}), json!({"spec": {"accessModes": ["ReadOnlyMany"]}}));
        assert!(reader.read_only);
        let owner = json!({"metadata": {"ownerReferences": [{"uid": "pod-1"}]}});
        assert!(resolve(1, owner, json!({})).is_ok());
    }

    #[test]
    fn a_volume_that_outgrew_its_claim_is_to_be_taken_up() {
        let claim = |asked: &str, has: &str| {
            json!({"spec": {"resources": {"requests": {"storage": asked}}},
                "status": {"capacity": {"storage": has}}})
        };
        let volume = |has: &str, modes: &[&str]| json!({"spec": {"capacity": {"storage": has}, "accessModes": modes}});
        let grown = remote(claim("2Gi", "1Gi"), volume("2Gi", &["ReadWriteOnce"])).growth.unwrap();
        assert_eq!((&*grown.claim, grown.bytes, &*grown.capacity), ("c", 2 << 30, "2Gi"));
        for (asked, has, is, mode) in [
            ("2Gi", "1Gi", "1Gi", "ReadWriteOnce"),
            ("1Gi", "1Gi", "2Gi", "ReadWriteOnce"),
            ("2Gi", "2Gi", "2Gi", "ReadWriteOnce"),
            ("2Gi", "1Gi", "2Gi", "ReadOnlyMany"),
        ] {
            assert_eq!(
                remote(claim(asked, has), volume(is, &[mode])).growth,
                None,
                "{asked} {has}"
            );
        }
    }

    #[test]
    fn a_claim_that_cannot_be_used_says_why() {
        let check = |index, claim, volume, expected: &str| {
            let name = ["n/c", "n/p-tmp"][index];
            let expected = format!("error processing PVC {name}: {expected}");
            assert_eq!(resolve(index, claim, volume).unwrap_err(), expected);
        };
        check(0, json!({"status": {"phase": "Pending"}}), json!({}), "PVC is not bound");
        let deleting = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        check(0, deleting, json!({}), "PVC is being deleted");
        check(
            1,
            json!({}),
            json!({}),
            "PVC n/p-tmp was not created for pod n/p (pod is not owner)",
        );
        check(
            0,
            json!({}),
            json!({"spec": {"claimRef": {"uid": "other"}}}),
            "the volume's spec.claimRef.uid \"other\" does not match expected PVC UID \"claim-1\"",
        );
        let gone = bound_to(&pod(), &wanted(&pod())[0], None).unwrap_err().to_string();
        assert_eq!(
            gone,
            "error processing PVC n/c: failed to fetch PVC from API server: \
             persistentvolumeclaim \"c\" not found"
        );
    }
}
