//! Static pods: reads the node's own files of pods, and keeps their mirrors in the API.
//!
//! One task looks at the directory at a beat and tells the workers which pods there are; it
//! needs no API. Each pod's worker tells its mirror. What a file means is decided in
//! `node::manifest`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use node::manifest::{Step, adopt, is_mirror, local_uid, mirror_of, plan_mirror};
use objects::meta::Object;
use objects::pod::{Pod, PodStatus};
use runtime::client::{DeleteParams, Patch};
use runtime::{ClientError, report, resource};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Shared, disk};

/// How often the files are looked at.
const BEAT: Duration = Duration::from_secs(2);

/// The files as they were seen: when each was changed, and its length.
type Listing = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

/// Reads the directory of static pods again and again until `stop`.
pub(crate) async fn run(stop: CancellationToken, shared: Arc<Shared>) {
    let Some(dir) = shared.config.settings.static_pods.clone().map(PathBuf::from) else { return };
    let mut before: Option<Listing> = None;
    loop {
        let place = dir.clone();
        let found = disk::blocking(move || observe(&place)).await;
        if before.as_ref() != Some(&found) {
            let node = shared.node.name.clone();
            let listing = found.clone();
            let pods = disk::blocking(move || read(&listing, &node)).await;
            info!(dir = %dir.display(), pods = pods.len(), "static pods were read");
            shared.fixed.send_replace(Arc::new(pods));
            shared.files_read.send_replace(true);
            before = Some(found);
        }
        tokio::select! { biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(BEAT) => {}
        }
    }
}

/// Makes, replaces or tells the mirror of a static pod, one step at a time; gives whether the
/// API has the status now.
pub(crate) async fn show(
    shared: &Shared,
    pod: &Pod,
    status: &PodStatus,
) -> Result<bool, ClientError> {
    let meta = &pod.metadata;
    let (client, namespace) = (&shared.client, Some(meta.namespace.as_str()));
    let mirror = shared.pods.get(&meta.namespace, &meta.name);
    let uid = match (plan_mirror(pod, mirror.as_deref()), mirror) {
        (Step::Tell, Some(mirror)) => mirror.metadata.uid.clone(),
        (Step::Remove, Some(mirror)) => {
            remove(shared, &mirror).await?;
            return Ok(false);
        }
        _ => {
            let node = client.get(&resource::NODES, None, &shared.node.name).await?;
            let owner = node.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
            let body = mirror_of(pod, owner);
            let body = body.encode().map_err(|source| ClientError::Encode { source })?;
            let made = match client.create(&resource::PODS, namespace, &body).await {
                // The cache has not heard of it yet.
                Err(err) if err.is_already_exists() => return Ok(false),
                other => other?,
            };
            made.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned()
        }
    };
    let status = serde_json::to_value(status).map_err(|source| ClientError::Encode { source })?;
    let patch = Patch::merge(json!({"metadata": {"uid": uid}, "status": status})).on("status");
    match client.patch(&resource::PODS, namespace, &meta.name, &patch).await {
        Ok(_) => Ok(true),
        Err(err) if err.is_not_found() || err.is_conflict() => Ok(false),
        Err(err) => Err(err),
    }
}

/// Takes the mirror of a static pod away.
pub(crate) async fn hide(shared: &Shared, pod: &Pod) -> Result<(), ClientError> {
    let meta = &pod.metadata;
    match shared.pods.get(&meta.namespace, &meta.name) {
        Some(mirror) if is_mirror(&mirror) => remove(shared, &mirror).await,
        _ => Ok(()),
    }
}

/// Removes mirrors of pods whose files went while no agent looked.
pub(crate) async fn sweep(shared: &Shared, known: &(dyn Fn(&str) -> bool + Sync)) {
    for pod in shared.pods.list() {
        if is_mirror(&pod) && !known(local_uid(&pod)) {
            info!(pod = pod.key(), "a mirror without its pod is removed");
            if let Err(err) = remove(shared, &pod).await {
                warn!(pod = pod.key(), err = report(&err), "cannot remove a mirror; retrying");
            }
        }
    }
}

async fn remove(shared: &Shared, mirror: &Pod) -> Result<(), ClientError> {
    let meta = &mirror.metadata;
    let params = DeleteParams::uid(&meta.uid).grace(0);
    let namespace = Some(meta.namespace.as_str());
    match shared.client.delete(&resource::PODS, namespace, &meta.name, &params).await {
        Err(err) if !err.is_not_found() && !err.is_conflict() => Err(err),
        _ => Ok(()),
    }
}

fn observe(dir: &Path) -> Listing {
    let Ok(entries) = std::fs::read_dir(dir) else { return Listing::new() };
    let mut found = Listing::new();
    for entry in entries.flatten() {
        let path = entry.path();
        // Editors leave hidden files; a link is followed.
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if let Ok(meta) = std::fs::metadata(&path)
            && meta.is_file()
            && !hidden
        {
            found.insert(path, (meta.modified().ok(), meta.len()));
        }
    }
    found
}

/// Reads every file; one that is no static pod is told and left out.
fn read(listing: &Listing, node: &str) -> Vec<Arc<Pod>> {
    let mut pods: BTreeMap<String, Arc<Pod>> = BTreeMap::new();
    for path in listing.keys() {
        let name = path.to_string_lossy();
        let parsed = std::fs::read(path).map_err(|err| report(&err)).and_then(|bytes| {
            let value: Value = serde_saphyr::from_slice(&bytes).map_err(|err| report(&err))?;
            adopt(value, node, &name).map_err(|err| report(&err))
        });
        match parsed {
            Ok(pod) if pods.contains_key(&pod.key()) => {
                warn!(file = %name, pod = pod.key(), "another file has a pod of this name");
            }
            Ok(pod) => drop(pods.insert(pod.key(), Arc::new(pod))),
            Err(why) => warn!(file = %name, why, "a file is no static pod"),
        }
    }
    pods.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_bad_ones_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let pod = |name: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: a\n    image: i\n"
            )
        };
        put("a.yaml", &pod("web"));
        put("b.yaml", &pod("web"));
        put(
            "c.json",
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"},"spec":{"containers":[{"name":"a"}]}}"#,
        );
        put(".hidden.yaml", &pod("hidden"));
        put("bad.yaml", "kind: [");
        let before = observe(dir.path());
        let names: Vec<_> =
            read(&before, "w1").iter().map(|pod| pod.metadata.name.clone()).collect();
        assert_eq!(names, ["c-w1", "web-w1"]);
        put("a.yaml", &pod("longer-name"));
        assert_ne!(observe(dir.path()), before);
        assert!(observe(&dir.path().join("absent")).is_empty());
    }
}
