//! Static pods: pods of the node's own files, and the mirrors that show them in the API.
//!
//! A static pod runs whatever the API says, before it answers and after it is gone. Its uid is a
//! digest of its file, so that a changed file is another pod. The API gets a mirror of it that
//! tells its status; whoever deletes the mirror deletes nothing else.
//!
//! Spec: upstream's static pods: `NAME-NODE`, the annotations `kubernetes.io/config.*`, no
//! references to objects of the API.

use std::collections::BTreeMap;

use objects::meta::{Object, OwnerReference};
use objects::pod::{Pod, PodStatus, Toleration};
use serde_json::Value;
use thiserror::Error;

use crate::env;
use crate::names::digest;

/// Annotation: where a pod comes from.
pub const SOURCE: &str = "kubernetes.io/config.source";
/// Annotation: the digest a static pod is known by.
pub const HASH: &str = "kubernetes.io/config.hash";
/// Annotation of a mirror: the digest of the pod it shows.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// The priority of what a node cannot do without.
const NODE_CRITICAL: i64 = 2_000_001_000;

/// Why a file is no static pod.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// It is something else.
    #[error("it is not a v1 Pod but {0:?}")]
    Kind(String),
    /// It cannot be read as a pod.
    #[error("it is not a pod: {0}")]
    Shape(String),
    /// It lacks something.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// It needs the API, which a static pod must not.
    #[error("a static pod may not reference {0}")]
    Reference(&'static str),
}

/// Makes the pod of a file on the node of this name.
///
/// # Errors
///
/// When the file holds no pod, or one that cannot be static.
pub fn adopt(value: Value, node: &str, path: &str) -> Result<Pod, Refusal> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = format!("{}/{}", text("apiVersion"), text("kind"));
    if kind != "v1/Pod" {
        return Err(Refusal::Kind(kind));
    }
    let written = value.to_string();
    let mut pod = Pod::decode(&value).map_err(|err| Refusal::Shape(err.to_string()))?;
    if pod.metadata.name.is_empty() {
        return Err(Refusal::Missing("name"));
    }
    if pod.spec.containers.is_empty() {
        return Err(Refusal::Missing("containers"));
    }
    refuse_references(&pod)?;
    let meta = &mut pod.metadata;
    if meta.uid.is_empty() {
        meta.uid = digest(&[node, path, &written]);
    }
    meta.name = format!("{}-{node}", meta.name);
    if meta.namespace.is_empty() {
        "default".clone_into(&mut meta.namespace);
    }
    meta.annotations.insert(SOURCE.to_owned(), "file".to_owned());
    meta.annotations.insert(HASH.to_owned(), meta.uid.clone());
    // The worker compares versions; a file has one.
    "1".clone_into(&mut meta.resource_version);
    node.clone_into(&mut pod.spec.node_name);
    pod.spec.priority.get_or_insert(NODE_CRITICAL);
    pod.spec.tolerations.push(Toleration {
        operator: "Exists".to_owned(),
        effect: "NoExecute".to_owned(),
        ..Toleration::default()
    });
    pod.status = PodStatus { phase: "Pending".to_owned(), ..PodStatus::default() };
    Ok(pod)
}

/// Tells whether a pod is one of this node's files.
#[must_use]
pub fn is_static(pod: &Pod) -> bool {
    pod.metadata.annotations.get(SOURCE).is_some_and(|source| source == "file") && !is_mirror(pod)
}

/// Tells whether a pod of the API only shows a static one.
#[must_use]
pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.contains_key(MIRROR)
}

/// The uid by which the runtime and the disk know a pod of the API.
#[must_use]
pub fn local_uid(pod: &Pod) -> &str {
    pod.metadata.annotations.get(MIRROR).map_or(&pod.metadata.uid, String::as_str)
}

/// The mirror that shows a static pod, owned by its node.
#[must_use]
pub fn mirror_of(pod: &Pod, node_uid: &str) -> Pod {
    let mut mirror = pod.clone();
    let meta = &mut mirror.metadata;
    meta.annotations.insert(MIRROR.to_owned(), std::mem::take(&mut meta.uid));
    meta.resource_version.clear();
    if !node_uid.is_empty() {
        meta.owner_references = vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: pod.spec.node_name.clone(),
            uid: node_uid.to_owned(),
            controller: Some(true),
            ..OwnerReference::default()
        }];
    }
    // The API gives a priority by the class; it refuses any other.
    if mirror.spec.priority_class_name.is_empty() {
        mirror.spec.priority = None;
    }
    mirror.status = PodStatus::default();
    mirror
}

/// What is to be done about the mirror of a static pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It has to be made.
    Create,
    /// It shows another pod, or somebody deletes it: it has to go first.
    Remove,
    /// It is there and only told.
    Tell,
}

/// Decides about the mirror that the API has, if any.
#[must_use]
pub fn plan_mirror(pod: &Pod, mirror: Option<&Pod>) -> Step {
    match mirror {
        None => Step::Create,
        Some(mirror) if mirror.metadata.is_deleting() => Step::Remove,
        Some(mirror) if mirror.metadata.annotations.get(MIRROR) != Some(&pod.metadata.uid) => {
            Step::Remove
        }
        Some(_) => Step::Tell,
    }
}

fn refuse_references(pod: &Pod) -> Result<(), Refusal> {
    if !pod.spec.service_account_name.is_empty() {
        return Err(Refusal::Reference("serviceaccounts"));
    }
    let needed = env::references(pod);
    let mut kinds: BTreeMap<&'static str, bool> = BTreeMap::from([
        ("configmaps", !needed.config_maps.is_empty()),
        ("secrets", !needed.secrets.is_empty() || !pod.spec.image_pull_secrets.is_empty()),
    ]);
    for volume in &pod.spec.volumes {
        let mut note = |kind, used: bool| *kinds.entry(kind).or_default() |= used;
        note("configmaps", volume.config_map.is_some());
        note("secrets", volume.secret.is_some());
        note("persistentvolumeclaims", volume.persistent_volume_claim.is_some());
        for source in volume.projected.iter().flat_map(|projected| &projected.sources) {
            note("configmaps", source.config_map.is_some());
            note("secrets", source.secret.is_some());
            note("serviceaccounts", source.service_account_token.is_some());
        }
    }
    let found = kinds.into_iter().find(|(_, used)| *used);
    found.map_or(Ok(()), |(kind, _)| Err(Refusal::Reference(kind)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(spec: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec})
    }

    fn plain() -> Value {
        file(json!({"containers": [{"name": "a", "image": "i"}]}))
    }

    #[test]
    fn a_file_becomes_a_pod_of_its_node() {
        let pod = adopt(plain(), "w1", "/etc/pods/web.yaml").unwrap();
        assert_eq!((&*pod.metadata.name, &*pod.metadata.namespace), ("web-w1", "default"));
        assert_eq!(pod.metadata.uid.len(), 32);
        assert!(is_static(&pod) && crate::pressure::is_critical(&pod));
        // The same file is the same pod, another file or another text is not.
        let again = adopt(plain(), "w1", "/etc/pods/web.yaml").unwrap();
        assert_eq!(pod, again);
        assert_ne!(
            pod.metadata.uid,
            adopt(plain(), "w1", "/etc/pods/b.yaml").unwrap().metadata.uid
        );
        let mut other = plain();
        other["spec"]["containers"][0]["image"] = json!("j");
        assert_ne!(
            pod.metadata.uid,
            adopt(other, "w1", "/etc/pods/web.yaml").unwrap().metadata.uid
        );
    }

    #[test]
    fn a_mirror_shows_its_pod_and_no_other() {
        let pod = adopt(plain(), "w1", "f").unwrap();
        let mirror = mirror_of(&pod, "n1");
        assert!(is_mirror(&mirror) && !is_static(&mirror));
        assert_eq!(local_uid(&mirror), pod.metadata.uid);
        assert_eq!(mirror.metadata.owner_references[0].uid, "n1");
        assert_eq!((mirror.metadata.uid.as_str(), mirror.spec.priority), ("", None));
        assert_eq!(plan_mirror(&pod, None), Step::Create);
        assert_eq!(plan_mirror(&pod, Some(&mirror)), Step::Tell);
        let mut changed = plain();
        changed["spec"]["hostNetwork"] = json!(true);
        let changed = adopt(changed, "w1", "f").unwrap();
        assert_eq!(plan_mirror(&changed, Some(&mirror)), Step::Remove);
    }

    #[track_caller]
    fn check(value: Value, expected: &str) {
        assert_eq!(adopt(value, "w1", "f").unwrap_err().to_string(), expected);
    }

    #[test]
    fn what_cannot_be_static_is_refused() {
        check(json!({"kind": "Pod", "apiVersion": "v2"}), "it is not a v1 Pod but \"v2/Pod\"");
        check(file(json!({})), "it has no containers");
        let with = |name: &str, value: Value| {
            let mut file = plain();
            file["spec"][name] = value;
            file
        };
        let denied = |what: &str| format!("a static pod may not reference {what}");
        check(with("serviceAccountName", json!("a")), &denied("serviceaccounts"));
        let volume = |value: Value| with("volumes", json!([value]));
        check(volume(json!({"name": "v", "configMap": {"name": "m"}})), &denied("configmaps"));
        let claim = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
        check(volume(claim), &denied("persistentvolumeclaims"));
        let mut variables = plain();
        variables["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "s"}}]);
        check(variables, &denied("secrets"));
    }
}
