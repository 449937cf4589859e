//! Volumes of other drivers: staged once for the node, published for each pod, taken away.
//!
//! Before a driver is asked for anything, what is asked is written to `DATA/pods/UID/csi/NAME`:
//! whatever happens then, what is in use is known, and is asked to be undone when the pod goes. A
//! volume is unstaged when no pod's note names it any more. Until then the node's status lists it
//! as in use, and the cluster does not take it away.
//!
//! Spec: CSI `csi.v1`, the node's half; upstream's paths, volume context of pods, access modes
//! and group policies.
//!
//! A driver that wants to be asked again (`requiresRepublish`) is asked at each refresh of the
//! pod's volumes, with new tokens when it wants those.
//!
//! *Limits*: no `SELinux` mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use csi::message::*;
use objects::config::Secret;
use objects::meta::Object;
use objects::pod::Pod;
use objects::storage::VolumeAttachment;
use runtime::client::Patch;
use runtime::{ClientError, report, resource};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};
use volumes::TokenRequest;
use volumes::remote::{Csi, Mode, Remote, SecretName};

use super::{Driver, STAGES, seen_by_drivers};
use crate::Shared;
use crate::remote::group::give;
use crate::remote::{PLUGINS, RemoteError, file, group, make_dir, names, remove_dir, remove_file};

/// Below `DATA/plugins`: volumes that are there once for all pods.
const STAGED: &str = "kubernetes.io/csi";
/// Below a pod's directory: the notes.
const NOTES: &str = "csi";
/// How long one try waits for an attachment; the next try comes with back-off.
const ATTACH_LIMIT: Duration = Duration::from_secs(10);
/// How long a token lasts whose driver does not say, in seconds; upstream's.
const TOKEN_SECONDS: i64 = 3600;
/// Under what name a driver is given tokens.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
const PERSISTENT: &str = "Persistent";
const EPHEMERAL: &str = "Ephemeral";
/// How often it is looked for meanwhile.
const ATTACH_PACE: Duration = Duration::from_millis(300);

/// What a driver was asked to do for a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    driver: String,
    handle: String,
    target: PathBuf,
    staging: Option<PathBuf>,
    attached: bool,
    /// The driver has said yes.
    published: bool,
}

/// Where a pod sees a volume of a driver: below the directory that is ours.
pub(crate) fn inner_place(place: PathBuf, remote: &Remote) -> PathBuf {
    match remote.mode {
        Mode::Filesystem => place.join("mount"),
        Mode::Block => place,
    }
}

/// Brings a volume of a driver to a pod; `target` is on the node.
pub(crate) async fn set_up(
    shared: &Shared,
    pod: &Pod,
    (remote, volume): (&Remote, &Csi),
    target: &Path,
) -> Result<(), RemoteError> {
    let path = note_path(shared, &pod.metadata.uid, &remote.name);
    let known = read(&path).filter(|note| note.published);
    let missing =
        || RemoteError::NoDriver { name: remote.name.clone(), driver: volume.driver.clone() };
    let driver = shared.disks.drivers.get(&volume.driver).ok_or_else(missing)?;
    let wishes = Wishes::of(shared, &volume.driver).await?;
    if let Some(note) = known {
        if !wishes.republish {
            return Ok(());
        }
        let context = if note.attached {
            await_attached(shared, remote, volume).await?
        } else {
            BTreeMap::new()
        };
        let job = Job { shared, pod, remote, volume, driver: &driver, context };
        return job.publish(&note, &wishes).await;
    }
    let ephemeral = volume.handle.is_empty();
    wishes.check_life(remote, volume)?;
    let attached = wishes.attach && !ephemeral;
    let handle = if ephemeral {
        format!("csi-{}", hex(&format!("{}{}", pod.metadata.uid, remote.name)))
    } else {
        volume.handle.clone()
    };
    let staging = (driver.can(STAGES) && !ephemeral).then(|| staging(shared, remote, volume));
    let note = Note {
        driver: volume.driver.clone(),
        handle,
        target: outside(shared, target),
        staging: staging.clone(),
        attached,
        published: false,
    };
    write(&path, &note)?;
    tell_in_use(shared).await.map_err(|source| record(remote, source))?;
    let context =
        if attached { await_attached(shared, remote, volume).await? } else { BTreeMap::new() };
    let job = Job { shared, pod, remote, volume, driver: &driver, context };
    // One volume is staged once at a time.
    let lock = shared.disks.lock(&PathBuf::from(format!("{}^{}", note.driver, note.handle)));
    let _held = lock.lock().await;
    if let Some(staging) = &staging {
        job.stage(&note, staging).await?;
    }
    if let Some(above) = target.parent() {
        make_dir(above)?;
    }
    job.publish(&note, &wishes).await?;
    // A driver that can mount for a group has done so.
    let owns = wishes.owns(remote, volume) && job.mount_group().is_empty();
    if let Some(group) = group(pod).filter(|_| owns) {
        give(target, group).map_err(file(target))?;
    }
    write(&path, &Note { published: true, ..note })
}

/// Takes the volumes of drivers away from a pod, and from the node those that no pod has.
pub(crate) async fn release(shared: &Shared, uid: &str) -> Result<(), RemoteError> {
    let dir = notes_dir(shared, uid);
    let all = names(&dir);
    for name in &all {
        let path = dir.join(name);
        let Some(note) = read(&path) else {
            // Cut short while it was written: nothing had been asked yet.
            remove_file(&path)?;
            continue;
        };
        let lock = shared.disks.lock(&PathBuf::from(format!("{}^{}", note.driver, note.handle)));
        let _held = lock.lock().await;
        undo(shared, name, &note, &path).await?;
    }
    remove_dir(&dir, true)?;
    if !all.is_empty()
        && let Err(err) = tell_in_use(shared).await
    {
        tracing::warn!(err = report(&err), "cannot tell which volumes are in use; retrying");
    }
    Ok(())
}

async fn undo(shared: &Shared, name: &str, note: &Note, path: &Path) -> Result<(), RemoteError> {
    let missing = || RemoteError::NoDriver { name: name.to_owned(), driver: note.driver.clone() };
    let driver = shared.disks.drivers.get(&note.driver).ok_or_else(missing)?;
    let failed = |source| RemoteError::Driver { name: name.to_owned(), source };
    let request = NodeUnpublishVolumeRequest {
        volume_id: note.handle.clone(),
        target_path: text(&note.target),
    };
    driver.client.node_unpublish_volume(request).await.map_err(failed)?;
    let others = all_notes(shared).into_iter().filter(|(other, _)| other != path);
    let used = others
        .into_iter()
        .any(|(_, other)| other.driver == note.driver && other.handle == note.handle);
    if let Some(staging) = note.staging.as_ref().filter(|_| !used) {
        let request = NodeUnstageVolumeRequest {
            volume_id: note.handle.clone(),
            staging_target_path: text(staging),
        };
        driver.client.node_unstage_volume(request).await.map_err(failed)?;
        let own = inside(shared, staging);
        for dir in [Some(own.as_path()), own.parent()].into_iter().flatten() {
            // A driver may have removed it; what is not empty stays.
            drop(fs::remove_dir(dir));
        }
    }
    remove_file(path)
}

/// Makes a driver take up a volume's growth; nothing for drivers that leave that to their
/// controller.
pub(crate) async fn expand(
    shared: &Shared,
    pod: &Pod,
    (remote, volume): (&Remote, &Csi),
    (target, bytes): (&Path, i64),
) -> Result<(), RemoteError> {
    let missing =
        || RemoteError::NoDriver { name: remote.name.clone(), driver: volume.driver.clone() };
    let driver = shared.disks.drivers.get(&volume.driver).ok_or_else(missing)?;
    if !driver.can(capability::NODE_EXPAND_VOLUME) {
        return Ok(());
    }
    let job = Job { shared, pod, remote, volume, driver: &driver, context: BTreeMap::new() };
    let staging = driver.can(STAGES).then(|| staging(shared, remote, volume));
    let request = NodeExpandVolumeRequest {
        volume_id: volume.handle.clone(),
        volume_path: text(outside(shared, target)),
        capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        staging_target_path: staging.map(text).unwrap_or_default(),
        volume_capability: Some(job.capability()),
        secrets: job.secrets(volume.expand_secret.as_ref()).await?,
    };
    let failed = |source| RemoteError::Driver { name: remote.name.clone(), source };
    driver.client.node_expand_volume(request).await.map(drop).map_err(failed)
}

/// What the cluster was told about how a driver wants to be treated.
#[derive(Debug, Clone)]
struct Wishes {
    attach: bool,
    pod_info: bool,
    group_policy: String,
    republish: bool,
    tokens: Vec<TokenRequest>,
    /// Tokens come as a secret, not among what the driver may write down.
    tokens_in_secrets: bool,
    /// What its volumes may be: `Persistent`, `Ephemeral`; `None` when nothing was told.
    lives: Option<Vec<String>>,
}

impl Wishes {
    async fn of(shared: &Shared, driver: &str) -> Result<Self, RemoteError> {
        let found = match shared.client.get(&resource::CSI_DRIVERS, None, driver).await {
            Ok(found) => found,
            Err(err) if err.is_not_found() => Value::Null,
            Err(source) => return Err(RemoteError::Record { name: driver.to_owned(), source }),
        };
        Ok(Self::parse(&found))
    }

    fn parse(found: &Value) -> Self {
        let spec = found.get("spec").unwrap_or(&Value::Null);
        let flag = |name: &str| spec.get(name).and_then(Value::as_bool);
        let policy = spec.get("fsGroupPolicy").and_then(Value::as_str);
        let list = |name: &str| spec.get(name).and_then(Value::as_array).cloned();
        let token = |one: &Value| TokenRequest {
            audience: one.get("audience").and_then(Value::as_str).unwrap_or_default().to_owned(),
            seconds: one.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(TOKEN_SECONDS),
        };
        let word = |one: &Value| one.as_str().map(str::to_owned);
        let lives = list("volumeLifecycleModes").filter(|all| !all.is_empty());
        let lives =
            lives.map_or(vec![PERSISTENT.to_owned()], |all| all.iter().filter_map(word).collect());
        Self {
            attach: flag("attachRequired").unwrap_or(true),
            pod_info: flag("podInfoOnMount").unwrap_or(false),
            group_policy: policy.unwrap_or("ReadWriteOnceWithFSType").to_owned(),
            republish: flag("requiresRepublish").unwrap_or(false),
            tokens: list("tokenRequests").unwrap_or_default().iter().map(token).collect(),
            tokens_in_secrets: flag("serviceAccountTokenInSecrets").unwrap_or(false),
            lives: found.get("spec").is_some().then_some(lives),
        }
    }

    /// Does the driver have volumes that live so long?
    fn check_life(&self, remote: &Remote, volume: &Csi) -> Result<(), RemoteError> {
        let mode = if volume.handle.is_empty() { EPHEMERAL } else { PERSISTENT };
        let refused = |known: String| RemoteError::Life {
            name: remote.name.clone(),
            mode,
            driver: volume.driver.clone(),
            known,
        };
        match &self.lives {
            Some(lives) if lives.iter().any(|one| one == mode) => Ok(()),
            Some(lives) => Err(refused(format!("only supports {lives:?}"))),
            None if mode == PERSISTENT => Ok(()),
            None => Err(refused("no CSIDriver object".to_owned())),
        }
    }

    /// Are the files of a volume given to the pod's group?
    fn owns(&self, remote: &Remote, volume: &Csi) -> bool {
        let once = |mode: &String| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod";
        let by_type = !volume.fs_type.is_empty() && volume.access_modes.iter().any(once);
        remote.mode == Mode::Filesystem
            && !remote.read_only
            && match self.group_policy.as_str() {
                "File" => true,
                "None" => false,
                _ => by_type,
            }
    }
}

/// One volume for one pod.
struct Job<'a> {
    shared: &'a Shared,
    pod: &'a Pod,
    remote: &'a Remote,
    volume: &'a Csi,
    driver: &'a Driver,
    context: BTreeMap<String, String>,
}

impl Job<'_> {
    async fn stage(&self, note: &Note, staging: &Path) -> Result<(), RemoteError> {
        let own = inside(self.shared, staging);
        make_dir(&own)?;
        let request = NodeStageVolumeRequest {
            volume_id: note.handle.clone(),
            publish_context: self.context.clone(),
            staging_target_path: text(staging),
            volume_capability: Some(self.capability()),
            secrets: self.secrets(self.volume.stage_secret.as_ref()).await?,
            volume_context: self.volume.attributes.clone(),
        };
        let failed = |source| RemoteError::Driver { name: self.remote.name.clone(), source };
        self.driver.client.node_stage_volume(request).await.map(drop).map_err(failed)
    }

    async fn publish(&self, note: &Note, wishes: &Wishes) -> Result<(), RemoteError> {
        let mut volume_context = self.volume.attributes.clone();
        let mut secrets = self.secrets(self.volume.publish_secret.as_ref()).await?;
        if wishes.pod_info {
            volume_context.extend(pod_info(self.pod, self.volume.handle.is_empty()));
        }
        if let Some(tokens) = self.tokens(&wishes.tokens).await? {
            let place = if wishes.tokens_in_secrets { &mut secrets } else { &mut volume_context };
            place.insert(TOKENS.to_owned(), tokens);
        }
        let request = NodePublishVolumeRequest {
            volume_id: note.handle.clone(),
            publish_context: self.context.clone(),
            staging_target_path: note.staging.as_deref().map(text).unwrap_or_default(),
            target_path: text(&note.target),
            volume_capability: Some(self.capability()),
            readonly: self.remote.read_only,
            secrets,
            volume_context,
        };
        let failed = |source| RemoteError::Driver { name: self.remote.name.clone(), source };
        self.driver.client.node_publish_volume(request).await.map(drop).map_err(failed)
    }

    fn capability(&self) -> VolumeCapability {
        let many = self.driver.can(capability::NODE_SINGLE_NODE_MULTI_WRITER);
        let mode = access_mode(&self.volume.access_modes, many);
        let access_mode = Some(AccessMode { mode });
        let mount = MountVolume {
            fs_type: self.volume.fs_type.clone(),
            mount_flags: self.remote.mount_options.clone(),
            volume_mount_group: self.mount_group(),
        };
        match self.remote.mode {
            Mode::Filesystem => VolumeCapability { block: None, mount: Some(mount), access_mode },
            Mode::Block => VolumeCapability { block: Some(Empty {}), mount: None, access_mode },
        }
    }

    /// The group a driver mounts for, when it can; empty otherwise.
    fn mount_group(&self) -> String {
        let able = self.driver.can(capability::NODE_VOLUME_MOUNT_GROUP);
        group(self.pod).filter(|_| able).map(|group| group.id.to_string()).unwrap_or_default()
    }

    /// The pod's tokens that a driver wants, by audience, as upstream writes them.
    async fn tokens(&self, wanted: &[TokenRequest]) -> Result<Option<String>, RemoteError> {
        let mut all = serde_json::Map::new();
        for request in wanted {
            let given = crate::token::give(self.shared, self.pod, request).await;
            let (token, end) = given.map_err(|source| record(self.remote, source))?;
            let token = json!({"token": token, "expirationTimestamp": end});
            all.insert(request.audience.clone(), token);
        }
        Ok((!all.is_empty()).then(|| Value::Object(all).to_string()))
    }

    async fn secrets(
        &self,
        secret: Option<&SecretName>,
    ) -> Result<BTreeMap<String, String>, RemoteError> {
        let Some(SecretName { namespace, name }) = secret else { return Ok(BTreeMap::new()) };
        let own = &self.pod.metadata.namespace;
        let namespace = if namespace.is_empty() { own } else { namespace };
        let failed = |why: String| RemoteError::Secret {
            namespace: namespace.clone(),
            name: name.clone(),
            why,
        };
        let found = self.shared.client.get(&resource::SECRETS, Some(namespace), name).await;
        let found = found.map_err(|err| failed(report(&err)))?;
        let found: Secret = serde_json::from_value(found).map_err(|err| failed(report(&err)))?;
        let decode = |(key, value): (&String, &String)| {
            let text = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
            Some((key.clone(), text))
        };
        Ok(found.data.iter().filter_map(decode).collect())
    }
}

/// What a driver that asks for it is told of the pod.
fn pod_info(pod: &Pod, ephemeral: bool) -> [(String, String); 5] {
    let meta = &pod.metadata;
    [
        ("pod.name", meta.name.clone()),
        ("pod.namespace", meta.namespace.clone()),
        ("pod.uid", meta.uid.clone()),
        ("serviceAccount.name", pod.spec.service_account_name.clone()),
        ("ephemeral", ephemeral.to_string()),
    ]
    .map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value))
}

/// The interface's number of what a volume was made for; upstream's choice.
fn access_mode(modes: &[String], many_writers: bool) -> i32 {
    let has = |name: &str| modes.iter().any(|mode| mode == name);
    if has("ReadWriteMany") {
        access::MULTI_NODE_MULTI_WRITER
    } else if has("ReadOnlyMany") && !has("ReadWriteOnce") {
        access::MULTI_NODE_READER_ONLY
    } else if has("ReadWriteOncePod") && many_writers {
        access::SINGLE_NODE_SINGLE_WRITER
    } else if many_writers {
        access::SINGLE_NODE_MULTI_WRITER
    } else {
        access::SINGLE_NODE_WRITER
    }
}

/// Waits until the driver's controller has attached a volume; gives what it says about that.
async fn await_attached(
    shared: &Shared,
    remote: &Remote,
    volume: &Csi,
) -> Result<BTreeMap<String, String>, RemoteError> {
    let end = Instant::now() + ATTACH_LIMIT;
    let name =
        format!("csi-{}", hex(&format!("{}{}{}", volume.handle, volume.driver, shared.node.name)));
    loop {
        let why = match shared.client.get(&resource::VOLUME_ATTACHMENTS, None, &name).await {
            Ok(found) => {
                let decoded = VolumeAttachment::decode(&found);
                let decoded =
                    decoded.map_err(|source| ClientError::Decode { path: name.clone(), source });
                let found = decoded.map_err(|source| record(remote, source))?;
                if found.metadata.is_deleting() {
                    "it is being taken away from this node"
                } else if found.status.attached == Some(true) {
                    return Ok(found.status.attachment_metadata);
                } else {
                    "its driver has not attached it yet"
                }
            }
            Err(err) if err.is_not_found() || err.status().is_some_and(|said| said.code == 403) => {
                "it is not attached to this node yet"
            }
            Err(err) => return Err(record(remote, err)),
        };
        if Instant::now() >= end {
            return Err(RemoteError::Unattached { name: remote.name.clone(), why });
        }
        sleep(ATTACH_PACE).await;
    }
}

fn record(remote: &Remote, source: ClientError) -> RemoteError {
    RemoteError::Record { name: remote.name.clone(), source }
}

/// The volumes that this node uses and the cluster must leave to it, as its status names them.
pub(crate) fn in_use(shared: &Shared) -> Vec<String> {
    let notes = all_notes(shared).into_iter().map(|(_, note)| note);
    let names: BTreeSet<String> = notes
        .filter(|note| note.attached)
        .map(|note| format!("kubernetes.io/csi/{}^{}", note.driver, note.handle))
        .collect();
    names.into_iter().collect()
}

/// Tells at once; the node's beat says it again.
async fn tell_in_use(shared: &Shared) -> Result<(), ClientError> {
    let patch = Patch::merge(json!({"status": {"volumesInUse": in_use(shared)}})).on("status");
    shared.client.patch(&resource::NODES, None, &shared.node.name, &patch).await.map(drop)
}

fn staging(shared: &Shared, remote: &Remote, volume: &Csi) -> PathBuf {
    let plugins = seen_by_drivers(&shared.config).join(PLUGINS).join(STAGED);
    match remote.mode {
        Mode::Filesystem => {
            plugins.join(&volume.driver).join(hex(&volume.handle)).join("globalmount")
        }
        Mode::Block => plugins.join("volumeDevices/staging").join(hex(&volume.handle)),
    }
}

/// A path of ours as drivers see it.
fn outside(shared: &Shared, path: &Path) -> PathBuf {
    let part = path.strip_prefix(&shared.config.data_dir).unwrap_or(path);
    seen_by_drivers(&shared.config).join(part)
}

/// A path as drivers see it, as we see it.
fn inside(shared: &Shared, path: &Path) -> PathBuf {
    let part = path.strip_prefix(seen_by_drivers(&shared.config)).unwrap_or(path);
    shared.config.data_dir.join(part)
}

fn notes_dir(shared: &Shared, uid: &str) -> PathBuf {
    shared.config.data_dir.join("pods").join(uid).join(NOTES)
}

fn note_path(shared: &Shared, uid: &str, name: &str) -> PathBuf {
    notes_dir(shared, uid).join(name)
}

fn all_notes(shared: &Shared) -> Vec<(PathBuf, Note)> {
    let pods = names(&shared.config.data_dir.join("pods"));
    let dirs = pods.iter().map(|uid| notes_dir(shared, uid));
    let paths = dirs.flat_map(|dir| names(&dir).into_iter().map(move |name| dir.join(name)));
    paths.filter_map(|path| Some((path.clone(), read(&path)?))).collect()
}

fn read(path: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write(path: &Path, note: &Note) -> Result<(), RemoteError> {
    let dir = path.parent().unwrap_or(path);
    make_dir(dir)?;
    let bytes = serde_json::to_vec(note).unwrap_or_default();
    // Whole or not at all. A pod's volumes are set up one after the other: one name is enough.
    let next = dir.with_extension("next");
    fs::write(&next, bytes).map_err(file(&next))?;
    fs::rename(&next, path).map_err(file(path))
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}

fn hex(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_volumes_become_the_interfaces_numbers() {
        let check = |modes: &[&str], many: bool, expected: i32| {
            let modes: Vec<String> = modes.iter().map(|mode| (*mode).to_owned()).collect();
            assert_eq!(access_mode(&modes, many), expected, "{modes:?}");
        };
        check(&[], false, access::SINGLE_NODE_WRITER);
        check(&["ReadWriteOnce"], false, access::SINGLE_NODE_WRITER);
        check(&["ReadWriteOnce"], true, access::SINGLE_NODE_MULTI_WRITER);
        check(&["ReadWriteOncePod"], true, access::SINGLE_NODE_SINGLE_WRITER);
        check(&["ReadWriteOnce", "ReadOnlyMany"], false, access::SINGLE_NODE_WRITER);
        check(&["ReadOnlyMany"], true, access::MULTI_NODE_READER_ONLY);
        check(&["ReadWriteOnce", "ReadWriteMany"], true, access::MULTI_NODE_MULTI_WRITER);
    }

    #[test]
    fn a_driver_that_says_nothing_is_attached_and_told_nothing() {
        let silent = Wishes::parse(&Value::Null);
        assert_eq!((silent.attach, silent.pod_info), (true, false));
        let said = Wishes::parse(&json!({"spec": {"attachRequired": false, "podInfoOnMount": true,
            "fsGroupPolicy": "File"}}));
        assert_eq!((said.attach, said.pod_info, &*said.group_policy), (false, true, "File"));
        assert!(!said.republish && said.tokens.is_empty());
        let said = Wishes::parse(&json!({"spec": {"requiresRepublish": true, "tokenRequests":
            [{"audience": "vault", "expirationSeconds": 600}, {"audience": ""}]}}));
        let seconds: Vec<i64> = said.tokens.iter().map(|one| one.seconds).collect();
        assert!(said.republish && !said.tokens_in_secrets);
        assert_eq!((&*said.tokens[0].audience, seconds), ("vault", vec![600, 3600]));
    }

    #[test]
    fn a_note_is_read_as_it_was_written_and_half_a_note_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi/pv.1");
        let note = Note {
            driver: "d".into(),
            handle: "h".into(),
            target: "/t".into(),
            staging: Some("/s".into()),
            attached: true,
            published: false,
        };
        write(&path, &note).unwrap();
        assert_eq!(read(&path), Some(note));
        assert_eq!(names(&dir.path().join("csi")), ["pv.1"]);
        fs::write(&path, "{\"driver\":").unwrap();
        assert_eq!(read(&path), None);
    }
}
