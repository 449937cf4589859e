//! Service accounts: every pod has one, with its token, the cluster's CA and its namespace in a
//! volume.
//!
//! *Limits*: the account `default` may be missing, for it is made by a controller a moment after
//! its namespace; such a pod gets no token. Upstream refuses it.

use objects::field::Fields as _;
use objects::{Status, field::str_at, kind};
use serde_json::{Value, json};

use super::Admission;
use crate::json::put;

/// Where containers find the token.
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A node's own pods, known by this annotation, have no account.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// An hour, and a little more so that it is told apart from one asked for.
const TOKEN_SECONDS: i64 = 3607;

/// Gives a new pod what its account brings.
pub(super) fn mount(admission: &Admission<'_>, pod: &mut Value) -> Result<(), Status> {
    let mirror = pod.field("metadata.annotations").and_then(|all| all.get(MIRROR)).is_some();
    if mirror {
        return Ok(());
    }
    let said = str_at(pod, "spec.serviceAccountName").unwrap_or("");
    let name = if said.is_empty() { "default" } else { said }.to_owned();
    let namespace = &admission.request.namespace;
    let account = admission.view().get(&kind::SERVICE_ACCOUNT, namespace, &name);
    let known = admission.view().get(&kind::NAMESPACE, "", namespace).is_some();
    let Some(account) = account else {
        if name == "default" || !known {
            return Ok(());
        }
        let why = format!(
            "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not \
             found"
        );
        return Err(admission.forbid(pod, &why));
    };
    let Some(spec) = pod.get_mut("spec") else { return Ok(()) };
    let none = spec.get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if let (true, Some(secrets)) = (none, account.get("imagePullSecrets")) {
        put(spec, "imagePullSecrets", secrets.clone());
    }
    let wish = |object: &Value| object.get("automountServiceAccountToken")?.as_bool();
    if !wish(spec).or_else(|| wish(&account)).unwrap_or(true)
        || !admission.view().settings().token_volumes
    {
        return Ok(());
    }
    let suffix: String = admission.context.name_suffix.chars().take(5).collect();
    let volume = token_volume(spec).unwrap_or_else(|| format!("kube-api-access-{suffix}"));
    if mount_everywhere(spec, &volume) && token_volume(spec).is_none() {
        add_volume(spec, &volume);
    }
    Ok(())
}

/// The volume of an earlier round, when the pod has one.
fn token_volume(spec: &Value) -> Option<String> {
    let volumes = spec.get("volumes")?.as_array()?;
    let names = volumes.iter().filter_map(|one| one.get("name")?.as_str());
    names.into_iter().find(|name| name.starts_with("kube-api-access-")).map(str::to_owned)
}

/// Mounts the volume where nothing else is; whether it is needed anywhere.
fn mount_everywhere(spec: &mut Value, volume: &str) -> bool {
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().any(|mount| mount.get("mountPath") == Some(&json!(MOUNT))) {
                continue;
            }
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT}));
            needed = true;
        }
    }
    needed
}

fn add_volume(spec: &mut Value, name: &str) {
    let namespace = json!({"path": "namespace",
        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
    let volume = json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt",
                    "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [namespace]}},
            ],
        },
    });
    let Some(spec) = spec.as_object_mut() else { return };
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(volume);
    }
}
