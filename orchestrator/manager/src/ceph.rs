//! A Ceph cluster, asked by its own `ceph` and `rbd` programs.
//!
//! *Limits*: the programs must be where the manager runs (Debian's package `ceph-common`).

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use objects::config::Secret;
use objects::storage::PersistentVolume;
use runtime::{report, resource};
use serde_json::Value;
use thiserror::Error;
use tokio::process::Command;
use volumes::rbd::{Monitor, Rbd, parse_rbd};
use volumes::remote::SecretName;

use crate::apply::{Hand, StepError};

/// How long a fenced client stays fenced: longer than any machine is forgotten and found again.
pub(crate) const FENCE_SECONDS: u32 = 365 * 24 * 3600;
/// How long the cluster may take for one answer.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the programs look for a monitor, in seconds.
const CONNECT_SECONDS: &str = "10";
/// Exit codes of the programs: no such image, and one is there already.
const ABSENT: i32 = 2;
const EXISTS: i32 = 17;

/// Why a cluster did not do what was asked.
#[derive(Debug, Error)]
pub(crate) enum CephError {
    /// The volume says too little about its cluster.
    #[error("volume {volume} names no cluster that can be asked: {why}")]
    Volume {
        /// Which.
        volume: String,
        /// What is wrong with it.
        why: String,
    },
    /// A program cannot be run here.
    #[error("cannot run {program}; images are managed by Ceph's own programs")]
    Program {
        /// Which.
        program: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The cluster gives no answer.
    #[error("{program} gave no answer within {} s", LIMIT.as_secs())]
    Slow {
        /// Which was run.
        program: &'static str,
    },
    /// The cluster refuses.
    #[error("{program} said: {said}")]
    Refused {
        /// Which was run.
        program: &'static str,
        /// Its last words.
        said: String,
        /// Its exit code: an error number of the system's.
        code: i32,
    },
}

/// A Ceph cluster, as a user of one of its images.
pub(crate) struct Cluster {
    image: Rbd,
    monitors: String,
    key: Option<String>,
}

impl Cluster {
    /// The cluster of a volume, as the user the volume names.
    pub(crate) async fn of_volume(
        hand: &Hand,
        volume: &PersistentVolume,
    ) -> Result<Self, StepError> {
        let name = &volume.metadata.name;
        let source = volume.spec.rbd.as_ref().unwrap_or(&Value::Null);
        let image = parse_rbd(source).map_err(|err| unclear(name, report(&err)))?;
        let own = volume.spec.claim_ref.as_ref().map(|claim| claim.namespace.as_str());
        let secret = image.secret.clone();
        let key = key(hand, name, secret.as_ref(), own.unwrap_or_default()).await?;
        Ok(Self { monitors: monitors(&image), image, key })
    }

    /// The same cluster, as the administrator its class names.
    pub(crate) async fn of_class(
        hand: &Hand,
        volume: &PersistentVolume,
        parameters: &BTreeMap<String, String>,
    ) -> Result<Self, StepError> {
        let name = &volume.metadata.name;
        let given = |name: &str| parameters.get(name).filter(|value| !value.is_empty());
        let source = volume.spec.rbd.as_ref().unwrap_or(&Value::Null);
        let mut image = parse_rbd(source).map_err(|err| unclear(name, report(&err)))?;
        image.user = given("adminId").map_or("admin", String::as_str).to_owned();
        let secret = given("adminSecretName").map(|name| SecretName {
            namespace: given("adminSecretNamespace").map_or("default", String::as_str).to_owned(),
            name: name.clone(),
        });
        let key = key(hand, name, secret.as_ref(), "default").await?;
        Ok(Self { monitors: monitors(&image), image, key })
    }

    /// Makes the image; that it is there already is no failure.
    pub(crate) async fn make(&self, bytes: i64) -> Result<(), CephError> {
        let (image, size) = (self.name(), mebibytes(bytes));
        let features = "layering,exclusive-lock";
        let arguments = ["create", &image, "--size", &size, "--image-feature", features];
        done_before(self.run("rbd", &arguments).await, EXISTS)
    }

    /// Grows the image.
    pub(crate) async fn grow(&self, bytes: i64) -> Result<(), CephError> {
        let (image, size) = (self.name(), mebibytes(bytes));
        self.run("rbd", &["resize", &image, "--size", &size, "--no-progress"]).await.map(drop)
    }

    /// Deletes the image; that it is gone already is no failure.
    pub(crate) async fn delete(&self) -> Result<(), CephError> {
        done_before(self.run("rbd", &["rm", &self.name(), "--no-progress"]).await, ABSENT)
    }

    fn name(&self) -> String {
        format!("{}/{}", self.image.pool, self.image.image)
    }

    /// Who watches the image or holds its lock.
    pub(crate) async fn clients(&self) -> Result<BTreeSet<String>, CephError> {
        let image = self.name();
        let status = ["status", image.as_str(), "--format", "json"];
        let locks = ["lock", "ls", image.as_str(), "--format", "json"];
        let (status, locks) = tokio::join!(self.run("rbd", &status), self.run("rbd", &locks));
        Ok(addresses(&status?).into_iter().chain(addresses(&locks?)).collect())
    }

    /// Returns when the monitors have agreed.
    pub(crate) async fn fence(&self, client: &str, seconds: u32) -> Result<(), CephError> {
        let seconds = seconds.to_string();
        self.run("ceph", &["osd", "blocklist", "add", client, &seconds]).await.map(drop)
    }

    async fn run(&self, program: &'static str, arguments: &[&str]) -> Result<Vec<u8>, CephError> {
        let mut command = Command::new(program);
        command.args(["--conf", "/dev/null", "-m", &self.monitors, "--id", &self.image.user]);
        if program == "ceph" {
            command.args(["--connect-timeout", CONNECT_SECONDS]);
        }
        if let Some(key) = &self.key {
            // Arguments are seen by everyone on the machine, the environment only by its owner.
            command.env("CEPH_ARGS", format!("--key={key}"));
        }
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, command.output()).await;
        let output = output.map_err(|_| CephError::Slow { program })?;
        let output = output.map_err(|source| CephError::Program { program, source })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(CephError::Refused {
            program,
            said: said.lines().last().unwrap_or_default().to_owned(),
            code: output.status.code().unwrap_or_default(),
        })
    }
}

fn unclear(volume: &str, why: String) -> StepError {
    let source = CephError::Volume { volume: volume.to_owned(), why };
    StepError::Ceph { volume: volume.to_owned(), source }
}

/// The key in a secret, as text; `None` when none is named.
async fn key(
    hand: &Hand,
    volume: &str,
    secret: Option<&SecretName>,
    own: &str,
) -> Result<Option<String>, StepError> {
    let Some(SecretName { namespace, name }) = secret else { return Ok(None) };
    let namespace = if namespace.is_empty() { own } else { namespace };
    let found = hand.client.get(&resource::SECRETS, Some(namespace), name).await?;
    let found: Secret =
        serde_json::from_value(found).map_err(|err| unclear(volume, report(&err)))?;
    let value = found.data.get("key").or_else(|| found.data.values().next_back());
    let text = value.and_then(|value| STANDARD.decode(value).ok());
    let text = text.and_then(|text| String::from_utf8(text).ok());
    let text = text.ok_or_else(|| unclear(volume, format!("secret {name} holds no key")))?;
    Ok(Some(text.trim().to_owned()))
}

/// Asking twice is no failure.
fn done_before(done: Result<Vec<u8>, CephError>, code: i32) -> Result<(), CephError> {
    match done {
        Err(CephError::Refused { code: said, .. }) if said == code => Ok(()),
        done => done.map(drop),
    }
}

/// The program counts in MiB.
fn mebibytes(bytes: i64) -> String {
    format!("{}M", bytes.saturating_add((1 << 20) - 1) >> 20)
}

/// The monitors as the programs take them: those of the new protocol find the old port too.
fn monitors(image: &Rbd) -> String {
    let known = image.monitors.iter().filter_map(|one| Monitor::parse(one));
    let text = |one: Monitor| match one.host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{}", one.port),
        Err(_) => format!("{}:{}", one.host, one.port),
    };
    known.map(text).collect::<Vec<_>>().join(",")
}

/// The addresses in what `rbd status` or `rbd lock ls` printed; nonces included.
fn addresses(printed: &[u8]) -> BTreeSet<String> {
    let value: Value = serde_json::from_slice(printed).unwrap_or_default();
    let list = value.get("watchers").unwrap_or(&value);
    // Older releases print a map by number or id.
    let all: Vec<&Value> = match list {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    let address = |one: &&Value| Some(one.get("address")?.as_str()?.to_owned());
    all.iter().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn clients_are_read_as_the_programs_print_them() {
        let status = br#"{"watchers":[{"address":"10.98.1.12:0/3030","client":4123,"cookie":1}]}"#;
        assert_eq!(addresses(status).into_iter().collect::<Vec<_>>(), ["10.98.1.12:0/3030"]);
        let old = br#"{"watchers":{"watcher":{"address":"10.98.1.12:0/1","client":4,"cookie":1}}}"#;
        assert_eq!(addresses(old).len(), 1);
        let locks = br#"[{"id":"auto 1","locker":"client.4114","address":"10.98.1.12:0/30"}]"#;
        assert_eq!(addresses(locks).into_iter().collect::<Vec<_>>(), ["10.98.1.12:0/30"]);
        assert_eq!(addresses(b"[]").len() + addresses(b"rubbish").len(), 0);
    }

    #[test]
    fn monitors_are_written_with_their_ports() {
        let given = json!({"monitors": ["10.0.0.1", "10.0.0.2:3300", "fd00::1"], "image": "i"});
        let text = monitors(&parse_rbd(&given).unwrap());
        assert_eq!(text, "10.0.0.1:6789,10.0.0.2:3300,[fd00::1]:6789");
    }
}
