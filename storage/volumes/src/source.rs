//! What each volume of a pod is made of.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use objects::config::{ConfigMap, Secret};
use objects::pod::{
    ConfigMapVolume, DownwardApiVolume, EmptyDirVolume, HostPathVolume, ObjectFieldSelector, Pod,
    ProjectedVolume, ResourceFieldSelector, SecretVolume,
};
use serde_json::Value;
use thiserror::Error;

use crate::files::{DEFAULT_MODE, File, FileSet, mode_bits};
use crate::remote::{Remote, parse_remote};

/// How long a token lasts unless said otherwise, in seconds.
const TOKEN_SECONDS: i64 = 3600;
/// Permission bits a token may have.
const TOKEN_MODE: u32 = 0o644;

/// Why a volume cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// An object is not there; it may come.
    #[error("{kind} \"{name}\" not found")]
    Object {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// An object has no such key; it may come.
    #[error("{kind} \"{name}\" references non-existent key: {key}")]
    Key {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A path leads out of the volume.
    #[error("invalid path {path:?} in the volume: must be relative and stay below it")]
    Path {
        /// The path.
        path: String,
    },
    /// The pod has no such field.
    #[error("unsupported field {path}")]
    Field {
        /// The path of the field.
        path: String,
    },
    /// A value of a secret or of binary data is no base64.
    #[error("{kind} \"{name}\": the value of {key} is not base64")]
    Encoding {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// The kind of volume does not exist on this node.
    #[error("volumes of kind {kind} are not supported yet")]
    Kind {
        /// As it is called in the pod.
        kind: String,
    },
    /// The API gave no token; it may later.
    #[error("no token of the service account for audience \"{audience}\"")]
    Token {
        /// For whom it was to be.
        audience: String,
    },
    /// A field that must be there is not.
    #[error("{field}: Required value")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// A field has a value that cannot be used.
    #[error("{field}: {value:?} is not a name that can be used here")]
    Value {
        /// Which.
        field: &'static str,
        /// What is in it.
        value: String,
    },
    /// A claim cannot be used now; it may be later.
    #[error("error processing PVC {claim}: {why}")]
    Claim {
        /// Namespace and name.
        claim: String,
        /// Why not.
        why: String,
    },
    /// A mount or device does not suit the volume's mode.
    #[error("volume {name} has volumeMode {mode}, but is specified in {field}")]
    Mode {
        /// The volume.
        name: String,
        /// What it has.
        mode: &'static str,
        /// Where it stands.
        field: &'static str,
    },
    /// A mount names no volume of the pod.
    #[error("mount refers to volume \"{name}\", which the pod does not have")]
    Unknown {
        /// The name.
        name: String,
    },
}

/// One volume of a pod, or why it cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name in the pod.
    pub name: String,
    /// What it is made of.
    pub source: Result<Source, Problem>,
}

/// What a volume is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory that lives as long as the pod.
    EmptyDir {
        /// Keep it in memory.
        memory: bool,
        /// The largest size in bytes.
        size_bytes_max: Option<i64>,
    },
    /// A path of the node.
    HostPath {
        /// The path.
        path: String,
        /// What must be there.
        kind: HostPathKind,
    },
    /// Files to be written.
    Files {
        /// The files.
        files: FileSet,
        /// Keep them in memory, for they are secret.
        memory: bool,
    },
    /// Something outside the node's own directories.
    Remote(Box<Remote>),
}

/// What must be at a path of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPathKind {
    /// Anything, or nothing.
    Unchecked,
    /// A directory; made when absent.
    DirectoryOrCreate,
    /// A directory.
    Directory,
    /// A file; made when absent.
    FileOrCreate,
    /// A file.
    File,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Names of the config maps and secrets that volumes refer to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// Config maps.
    pub config_maps: BTreeSet<String>,
    /// Secrets.
    pub secrets: BTreeSet<String>,
}

/// A token that a pod wants of its service account.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenRequest {
    /// For whom it is; empty for the API server.
    pub audience: String,
    /// How long it lasts, in seconds.
    pub seconds: i64,
}

/// What volumes are filled from.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// Config maps of the pod's namespace by name; what is absent does not exist.
    pub config_maps: &'a BTreeMap<String, ConfigMap>,
    /// Secrets of the pod's namespace by name.
    pub secrets: &'a BTreeMap<String, Secret>,
    /// The value of a field of the pod.
    pub field: &'a dyn Fn(&ObjectFieldSelector) -> Option<String>,
    /// The value of a resource field of the pod.
    pub resource: &'a dyn Fn(&ResourceFieldSelector) -> Option<String>,
    /// What the claims of the pod's volumes came to, by the volume's name.
    pub claims: &'a BTreeMap<String, Result<Source, Problem>>,
    /// A token of the pod's service account; `None` while there is none.
    pub token: &'a dyn Fn(&TokenRequest) -> Option<String>,
}

impl std::fmt::Debug for Facts<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Facts").finish_non_exhaustive()
    }
}

/// The config maps and secrets that a pod's volumes refer to.
#[must_use]
pub fn references(pod: &Pod) -> References {
    let mut found = References::default();
    for volume in &pod.spec.volumes {
        found.config_maps.extend(volume.config_map.iter().map(|v| v.name.clone()));
        found.secrets.extend(volume.secret.iter().map(|v| v.secret_name.clone()));
        if let Some(Ok(remote)) = parse_remote(&volume.extra, &volume.name) {
            found.secrets.extend(remote.secrets().map(|secret| secret.name.clone()));
        }
        for source in volume.projected.iter().flat_map(|projected| &projected.sources) {
            found.config_maps.extend(source.config_map.iter().map(|v| v.name.clone()));
            found.secrets.extend(source.secret.iter().map(|v| v.name.clone()));
        }
    }
    found
}

/// The tokens that a pod's volumes hold.
#[must_use]
pub fn token_requests(pod: &Pod) -> BTreeSet<TokenRequest> {
    let projected = pod.spec.volumes.iter().filter_map(|volume| volume.projected.as_ref());
    let sources = projected.flat_map(|projected| &projected.sources);
    sources.filter_map(|source| source.service_account_token.as_ref()).map(token_request).collect()
}

fn token_request(given: &Value) -> TokenRequest {
    TokenRequest {
        audience: given.get("audience").and_then(Value::as_str).unwrap_or_default().to_owned(),
        seconds: given.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(TOKEN_SECONDS),
    }
}

/// Plans every volume of a pod; one that cannot be had does not hide the others.
#[must_use]
pub fn plan_volumes(pod: &Pod, facts: Facts<'_>) -> Vec<Volume> {
    let plan = |volume: &objects::pod::Volume| Volume {
        name: volume.name.clone(),
        source: plan_source(volume, facts),
    };
    pod.spec.volumes.iter().map(plan).collect()
}

fn plan_source(volume: &objects::pod::Volume, facts: Facts<'_>) -> Result<Source, Problem> {
    if let Some(given) = &volume.empty_dir {
        return Ok(empty_dir(given));
    }
    if let Some(given) = &volume.host_path {
        return host_path(given);
    }
    if let Some(given) = &volume.config_map {
        let files = config_map_files(given, facts)?;
        return Ok(Source::Files { files, memory: false });
    }
    if let Some(given) = &volume.secret {
        return Ok(Source::Files { files: secret_files(given, facts)?, memory: true });
    }
    if let Some(given) = &volume.downward_api {
        let mut files = FileSet::default();
        put_downward(&mut files, given, given.default_mode.map_or(DEFAULT_MODE, mode_bits), facts)?;
        return Ok(Source::Files { files, memory: false });
    }
    if let Some(given) = &volume.projected {
        return Ok(Source::Files { files: projected_files(given, facts)?, memory: true });
    }
    if volume.persistent_volume_claim.is_some() || volume.extra.contains_key("ephemeral") {
        let unknown = || Err(Problem::Unknown { name: volume.name.clone() });
        return facts.claims.get(&volume.name).cloned().unwrap_or_else(unknown);
    }
    // Upstream: a disk of the node is for persistent volumes only.
    let local = volume.extra.contains_key("local");
    if let Some(found) = parse_remote(&volume.extra, &volume.name).filter(|_| !local) {
        return found.map(|remote| Source::Remote(Box::new(remote)));
    }
    match volume.extra.keys().next() {
        Some(kind) => Err(Problem::Kind { kind: kind.clone() }),
        // Upstream: a volume without a source is an empty directory.
        None => Ok(empty_dir(&EmptyDirVolume::default())),
    }
}

fn empty_dir(given: &EmptyDirVolume) -> Source {
    Source::EmptyDir {
        memory: given.medium == "Memory",
        size_bytes_max: given.size_limit.map(|limit| limit.value()).filter(|size| *size > 0),
    }
}

pub(crate) fn host_path(given: &HostPathVolume) -> Result<Source, Problem> {
    let kind = match given.kind.as_deref().unwrap_or_default() {
        "" => HostPathKind::Unchecked,
        "DirectoryOrCreate" => HostPathKind::DirectoryOrCreate,
        "Directory" => HostPathKind::Directory,
        "FileOrCreate" => HostPathKind::FileOrCreate,
        "File" => HostPathKind::File,
        "Socket" => HostPathKind::Socket,
        "CharDevice" => HostPathKind::CharDevice,
        "BlockDevice" => HostPathKind::BlockDevice,
        other => return Err(Problem::Kind { kind: format!("hostPath {other}") }),
    };
    if !given.path.starts_with('/') || given.path.split('/').any(|step| step == "..") {
        return Err(Problem::Path { path: given.path.clone() });
    }
    Ok(Source::HostPath { path: given.path.clone(), kind })
}

fn config_map_files(given: &ConfigMapVolume, facts: Facts<'_>) -> Result<FileSet, Problem> {
    let optional = given.optional == Some(true);
    let mode = given.default_mode.map_or(DEFAULT_MODE, mode_bits);
    let mut files = FileSet::default();
    let data = config_map_data(&given.name, optional, facts)?;
    files.put_all(&data, (&given.items, mode, optional), ("configmap", &given.name))?;
    Ok(files)
}

fn secret_files(given: &SecretVolume, facts: Facts<'_>) -> Result<FileSet, Problem> {
    let optional = given.optional == Some(true);
    let mode = given.default_mode.map_or(DEFAULT_MODE, mode_bits);
    let mut files = FileSet::default();
    let data = secret_data(&given.secret_name, optional, facts)?;
    files.put_all(&data, (&given.items, mode, optional), ("secret", &given.secret_name))?;
    Ok(files)
}

fn projected_files(given: &ProjectedVolume, facts: Facts<'_>) -> Result<FileSet, Problem> {
    let mode = given.default_mode.map_or(DEFAULT_MODE, mode_bits);
    let mut files = FileSet::default();
    for source in &given.sources {
        if let Some(named) = &source.config_map {
            let optional = named.optional == Some(true);
            let data = config_map_data(&named.name, optional, facts)?;
            files.put_all(&data, (&named.items, mode, optional), ("configmap", &named.name))?;
        }
        if let Some(named) = &source.secret {
            let optional = named.optional == Some(true);
            let data = secret_data(&named.name, optional, facts)?;
            files.put_all(&data, (&named.items, mode, optional), ("secret", &named.name))?;
        }
        if let Some(downward) = &source.downward_api {
            put_downward(&mut files, downward, mode, facts)?;
        }
        if let Some(given) = &source.service_account_token {
            let missing = || Problem::Token { audience: token_request(given).audience };
            let token = (facts.token)(&token_request(given)).ok_or_else(missing)?;
            let path = given.get("path").and_then(Value::as_str).unwrap_or_default();
            files.put(path, File { bytes: token.into_bytes(), mode: mode & TOKEN_MODE })?;
        }
        if let Some(kind) = source.extra.keys().next() {
            return Err(Problem::Kind { kind: format!("projected {kind}") });
        }
    }
    Ok(files)
}

fn put_downward(
    files: &mut FileSet,
    given: &DownwardApiVolume,
    mode: u32,
    facts: Facts<'_>,
) -> Result<(), Problem> {
    for item in &given.items {
        let (path, value) = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => (field.field_path.clone(), (facts.field)(field)),
            (None, Some(field)) => (field.resource.clone(), (facts.resource)(field)),
            (None, None) => (item.path.clone(), None),
        };
        let value = value.ok_or(Problem::Field { path })?;
        let mode = item.mode.map_or(mode, mode_bits);
        files.put(&item.path, File { bytes: value.into_bytes(), mode })?;
    }
    Ok(())
}

fn config_map_data(
    name: &str,
    optional: bool,
    facts: Facts<'_>,
) -> Result<BTreeMap<String, Vec<u8>>, Problem> {
    let Some(map) = facts.config_maps.get(name) else {
        return absent("configmap", name, optional);
    };
    let mut data = decoded("configmap", name, &map.binary_data)?;
    data.extend(map.data.iter().map(|(key, value)| (key.clone(), value.clone().into_bytes())));
    Ok(data)
}

fn secret_data(
    name: &str,
    optional: bool,
    facts: Facts<'_>,
) -> Result<BTreeMap<String, Vec<u8>>, Problem> {
    match facts.secrets.get(name) {
        Some(secret) => decoded("secret", name, &secret.data),
        None => absent("secret", name, optional),
    }
}

fn decoded(
    kind: &'static str,
    name: &str,
    data: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, Vec<u8>>, Problem> {
    let decode = |(key, value): (&String, &String)| match STANDARD.decode(value) {
        Ok(bytes) => Ok((key.clone(), bytes)),
        Err(_) => Err(Problem::Encoding { kind, name: name.to_owned(), key: key.clone() }),
    };
    data.iter().map(decode).collect()
}

fn absent(
    kind: &'static str,
    name: &str,
    optional: bool,
) -> Result<BTreeMap<String, Vec<u8>>, Problem> {
    if optional {
        Ok(BTreeMap::new())
    } else {
        Err(Problem::Object { kind, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests;
