//! A Ceph cluster's control side, asked by its own `ceph` and `rbd` programs: images, snapshots,
//! clones, and which clients may no longer write.
//!
//! Nothing here decides; a question that is asked twice gets the program's second answer, and the
//! error says which kind it is. Nodes need none of this: they map by the kernel.
//!
//! *Limits*: the programs must be where this runs (Debian's package `ceph-common`). An answer is
//! read whole; a pool of a hundred thousand images is a list of that length.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use tokio::process::Command;
use volumes::rbd::Monitor;

/// Limit of one command: deleting a large image removes every object of it.
const LIMIT: Duration = Duration::from_secs(100);
/// How long the `ceph` program looks for a monitor, in seconds; `rbd` knows no such limit.
const CONNECT_SECONDS: &str = "10";
/// What images of ours can do: snapshots and copies, and one writer at a time.
const FEATURES: [&str; 2] = ["--image-feature", "layering,exclusive-lock"];

/// Why a cluster did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CephError {
    /// There is no such image, snapshot or pool.
    #[error("not found: {0}")]
    Missing(String),
    /// There is one already.
    #[error("exists already: {0}")]
    Exists(String),
    /// Someone uses it, or something is made of it.
    #[error("in use: {0}")]
    Busy(String),
    /// The user may not do that.
    #[error("not permitted: {0}")]
    Denied(String),
    /// The cluster gives no answer.
    #[error("{program} gave no answer within {} s", LIMIT.as_secs())]
    Slow {
        /// Which was run.
        program: &'static str,
    },
    /// A program cannot be run here.
    #[error("cannot run {program}, by which images are managed: {why}")]
    Program {
        /// Which.
        program: &'static str,
        /// What the system said.
        why: String,
    },
    /// Anything else, in the program's last words.
    #[error("{program} said: {said}")]
    Refused {
        /// Which was run.
        program: &'static str,
        /// Its last words.
        said: String,
    },
}

/// What comes of asking.
pub type Done<T> = Result<T, CephError>;

/// An image or snapshot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The pool.
    pub pool: String,
    /// The image.
    pub image: String,
    /// The snapshot; `None` for the image itself.
    pub snap: Option<String>,
}

impl Place {
    /// Reads `POOL/IMAGE` or `POOL/IMAGE@SNAPSHOT`; `None` when a word could be an option of a
    /// program or part a line.
    #[must_use]
    pub fn parse(id: &str) -> Option<Self> {
        let (pool, rest) = id.split_once('/')?;
        let (image, snap) = match rest.split_once('@') {
            Some((image, snap)) => (image, Some(snap)),
            None => (rest, None),
        };
        let plain = |word: &str| {
            let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !word.is_empty() && !word.starts_with(['-', '.']) && word.chars().all(good)
        };
        let good = plain(pool) && plain(image) && snap.is_none_or(plain);
        let snap = snap.map(str::to_owned);
        good.then(|| Self { pool: pool.to_owned(), image: image.to_owned(), snap })
    }

    /// As it is written: `POOL/IMAGE` or `POOL/IMAGE@SNAPSHOT`.
    #[must_use]
    pub fn id(&self) -> String {
        match &self.snap {
            Some(snap) => format!("{}/{}@{snap}", self.pool, self.image),
            None => format!("{}/{}", self.pool, self.image),
        }
    }

    /// The image itself.
    #[must_use]
    pub fn whole(&self) -> Self {
        Self { snap: None, ..self.clone() }
    }

    /// A snapshot of the image.
    #[must_use]
    pub fn at(&self, snap: String) -> Self {
        Self { snap: Some(snap), ..self.clone() }
    }
}

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Info {
    /// Its size in bytes.
    pub size: i64,
    /// What it is a copy of.
    #[serde(default)]
    pub parent: Option<Parent>,
}

/// What an image is a copy of.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Parent {
    /// The image.
    pub image: String,
    /// Its snapshot.
    pub snapshot: String,
}

/// A snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Snap {
    /// Its name.
    pub name: String,
    /// The image's size then, in bytes.
    pub size: i64,
    /// When it was made, as the program writes times.
    #[serde(default)]
    pub timestamp: String,
}

/// One line of the table of a pool: an image, or a snapshot of one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Row {
    /// The image.
    pub image: String,
    /// Its snapshot, when the line is one's.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// The size in bytes.
    pub size: i64,
    /// What the image is a copy of.
    #[serde(default)]
    pub parent: Option<Parent>,
}

/// An image that was thrown away, and is not gone yet.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Thrown {
    id: String,
    name: String,
}

/// What `ceph df` prints of pools.
#[derive(Debug, Deserialize)]
struct Usage {
    #[serde(default)]
    pools: Vec<PoolUsage>,
}

#[derive(Debug, Deserialize)]
struct PoolUsage {
    name: String,
    stats: PoolStats,
}

#[derive(Debug, Deserialize)]
struct PoolStats {
    max_avail: i64,
}

/// A cluster, as one of its users.
#[derive(Clone, Default)]
pub struct Cluster {
    /// The programs' configuration file; with monitors but without a file, none is read.
    pub conf: Option<PathBuf>,
    /// Monitors, as people write them; none: those of the configuration file.
    pub monitors: Vec<String>,
    /// Who asks, without `client.`; `None` leaves it to the programs.
    pub user: Option<String>,
    /// The user's key, base64; `None`: the programs look for a keyring.
    pub key: Option<String>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("conf", &self.conf)
            .field("monitors", &self.monitors)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Makes an empty image.
    ///
    /// # Errors
    ///
    /// [`CephError::Exists`] when there is one; others are worth retrying.
    pub async fn create(&self, at: &Place, bytes: i64) -> Done<()> {
        let (id, size) = (at.id(), mebibytes(bytes));
        let verb = ["create", &id, "--size", &size];
        self.rbd(&[&verb[..], &FEATURES].concat()).await.map(drop)
    }

    /// What is known of an image.
    ///
    /// # Errors
    ///
    /// [`CephError::Missing`] when there is none.
    pub async fn info(&self, at: &Place) -> Done<Info> {
        self.json("rbd", &["info", &at.id()]).await
    }

    /// The images of a pool.
    ///
    /// # Errors
    ///
    /// When there is no such pool.
    pub async fn list(&self, pool: &str) -> Done<Vec<String>> {
        self.json("rbd", &["ls", pool]).await
    }

    /// The images of a pool and their snapshots, with sizes, by one question.
    ///
    /// # Errors
    ///
    /// When there is no such pool.
    pub async fn table(&self, pool: &str) -> Done<Vec<Row>> {
        self.json("rbd", &["ls", "-l", pool]).await
    }

    /// How many bytes more a pool may hold, its copies reckoned; `None` where nobody counts, for
    /// that is a manager daemon's work.
    ///
    /// # Errors
    ///
    /// When the cluster does not say.
    pub async fn room(&self, pool: &str) -> Done<Option<i64>> {
        let usage: Usage = self.json("ceph", &["df"]).await?;
        let found = usage.pools.into_iter().find(|one| one.name == pool);
        Ok(found.map(|one| one.stats.max_avail))
    }

    /// Deletes an image, though others may have been made of it: then it is thrown away, and gone
    /// when the last of those is. Only what is called `prefix…` is ever swept from there.
    ///
    /// # Errors
    ///
    /// [`CephError::Missing`] when it is gone, [`CephError::Busy`] when it is used or has
    /// snapshots.
    pub async fn discard(&self, at: &Place, prefix: &str) -> Done<()> {
        match self.remove(at).await {
            Err(CephError::Busy(why)) => {
                let used = !self.clients(at).await?.is_empty();
                if used || !self.snaps(at).await?.is_empty() {
                    return Err(CephError::Busy(why));
                }
                self.rbd(&["trash", "mv", &at.id()]).await.map(drop)
            }
            done => {
                done?;
                self.sweep(&at.pool, prefix).await
            }
        }
    }

    /// Deletes what was thrown away and nothing is made of any more.
    async fn sweep(&self, pool: &str, prefix: &str) -> Done<()> {
        let all: Vec<Thrown> = self.json("rbd", &["trash", "ls", pool]).await?;
        for one in all.into_iter().filter(|one| one.name.starts_with(prefix)) {
            let id = format!("{pool}/{}", one.id);
            match self.rbd(&["trash", "rm", &id, "--no-progress"]).await {
                Ok(_) | Err(CephError::Busy(_) | CephError::Missing(_)) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// What is noted at an image under a name; `None` when nothing is.
    ///
    /// # Errors
    ///
    /// When the cluster does not say; an image that is not there has no notes.
    pub async fn note(&self, at: &Place, name: &str) -> Done<Option<String>> {
        match self.rbd(&["image-meta", "get", &at.id(), name]).await {
            Ok(said) => Ok(Some(String::from_utf8_lossy(&said).trim().to_owned())),
            Err(CephError::Missing(_)) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Notes something at an image under a name; `None` takes the note away.
    ///
    /// # Errors
    ///
    /// [`CephError::Missing`] when there is no image.
    pub async fn set_note(&self, at: &Place, name: &str, text: Option<&str>) -> Done<()> {
        let id = at.id();
        match text {
            Some(text) => self.rbd(&["image-meta", "set", &id, name, text]).await.map(drop),
            None => match self.rbd(&["image-meta", "remove", &id, name]).await {
                Err(CephError::Missing(_)) => Ok(()),
                done => done.map(drop),
            },
        }
    }

    /// Deletes an image or a snapshot.
    ///
    /// # Errors
    ///
    /// [`CephError::Missing`] when it is gone, [`CephError::Busy`] when it is used or something
    /// is made of it.
    pub async fn remove(&self, at: &Place) -> Done<()> {
        let id = at.id();
        let verb: &[&str] = if at.snap.is_some() { &["snap", "rm"] } else { &["rm"] };
        self.rbd(&[verb, &[id.as_str(), "--no-progress"]].concat()).await.map(drop)
    }

    /// Makes an image larger.
    ///
    /// # Errors
    ///
    /// [`CephError::Busy`] while somebody has it for himself alone.
    pub async fn resize(&self, at: &Place, bytes: i64) -> Done<()> {
        let (id, size) = (at.id(), mebibytes(bytes));
        self.rbd(&["resize", &id, "--size", &size, "--no-progress"]).await.map(drop)
    }

    /// The snapshots of an image.
    ///
    /// # Errors
    ///
    /// [`CephError::Missing`] when there is no image.
    pub async fn snaps(&self, at: &Place) -> Done<Vec<Snap>> {
        self.json("rbd", &["snap", "ls", &at.whole().id()]).await
    }

    /// Makes a snapshot.
    ///
    /// # Errors
    ///
    /// [`CephError::Exists`] when there is one of that name.
    pub async fn snap(&self, at: &Place) -> Done<()> {
        self.rbd(&["snap", "create", &at.id(), "--no-progress"]).await.map(drop)
    }

    /// Makes an image that starts as a copy of a snapshot.
    ///
    /// # Errors
    ///
    /// [`CephError::Exists`] when there is an image of that name.
    pub async fn copy(&self, from: &Place, to: &Place) -> Done<()> {
        let (from, to) = (from.id(), to.id());
        // The second format needs no protected snapshot, and lets it be deleted before the copy.
        let verb = ["--rbd-default-clone-format", "2", "clone", &from, &to];
        self.rbd(&[&verb[..], &FEATURES].concat()).await.map(drop)
    }

    /// Who watches an image or holds its lock: addresses with nonces.
    ///
    /// # Errors
    ///
    /// When the cluster does not say.
    pub async fn clients(&self, at: &Place) -> Done<BTreeSet<String>> {
        let image = at.whole().id();
        let status = ["status", image.as_str()];
        let locks = ["lock", "ls", image.as_str()];
        let (status, locks) =
            tokio::join!(self.json::<Value>("rbd", &status), self.json::<Value>("rbd", &locks));
        Ok(addresses(&status?).chain(addresses(&locks?)).collect())
    }

    /// Forbids a client to write; returns when the monitors have agreed.
    ///
    /// # Errors
    ///
    /// When they have not: then nothing may be built on it.
    pub async fn fence(&self, client: &str, seconds: u32) -> Done<()> {
        let seconds = seconds.to_string();
        self.run("ceph", &["osd", "blocklist", "add", client, &seconds]).await.map(drop)
    }

    /// Takes a fence back; that there is none is no failure.
    ///
    /// # Errors
    ///
    /// [`CephError::Denied`] for users that may only fence.
    pub async fn unfence(&self, client: &str) -> Done<()> {
        match self.run("ceph", &["osd", "blocklist", "rm", client]).await {
            Err(CephError::Missing(_)) => Ok(()),
            done => done.map(drop),
        }
    }

    async fn rbd(&self, arguments: &[&str]) -> Done<Vec<u8>> {
        self.run("rbd", arguments).await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        program: &'static str,
        arguments: &[&str],
    ) -> Done<T> {
        let printed = self.run(program, &[arguments, &["--format", "json"]].concat()).await?;
        let failed = |err: serde_json::Error| CephError::Refused { program, said: err.to_string() };
        serde_json::from_slice(&printed).map_err(failed)
    }

    async fn run(&self, program: &'static str, arguments: &[&str]) -> Done<Vec<u8>> {
        let mut command = Command::new(program);
        match &self.conf {
            Some(conf) => _ = command.arg("--conf").arg(conf),
            None if !self.monitors.is_empty() => _ = command.args(["--conf", "/dev/null"]),
            None => {}
        }
        if !self.monitors.is_empty() {
            command.args(["-m", &monitors(&self.monitors)]);
        }
        if let Some(user) = &self.user {
            command.args(["--id", user]);
        }
        if program == "ceph" {
            command.args(["--connect-timeout", CONNECT_SECONDS]);
        }
        if let Some(key) = &self.key {
            // Arguments are seen by everyone on the machine, the environment only by its owner.
            command.env("CEPH_ARGS", format!("--key={}", key.trim()));
        }
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, command.output()).await;
        let output = output.map_err(|_| CephError::Slow { program })?;
        let failed = |err: std::io::Error| CephError::Program { program, why: err.to_string() };
        judge(program, output.map_err(failed)?)
    }
}

/// What the end of a program means: its exit code is an error number of the system's.
fn judge(program: &'static str, output: Output) -> Done<Vec<u8>> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().last().unwrap_or_default().to_owned();
    Err(match output.status.code() {
        Some(1 | 13) => CephError::Denied(said),
        Some(2) => CephError::Missing(said),
        Some(16 | 30 | 39) => CephError::Busy(said),
        Some(17) => CephError::Exists(said),
        _ => CephError::Refused { program, said },
    })
}

/// The programs count in MiB.
fn mebibytes(bytes: i64) -> String {
    format!("{}M", bytes.saturating_add((1 << 20) - 1) >> 20)
}

/// The monitors as the programs take them: those of the new protocol find the old port too.
#[must_use]
pub fn monitors(given: &[String]) -> String {
    let known = given.iter().filter_map(|one| Monitor::parse(one));
    let text = |one: Monitor| match one.host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{}", one.port),
        Err(_) => format!("{}:{}", one.host, one.port),
    };
    known.map(text).collect::<Vec<_>>().join(",")
}

/// The addresses in what `rbd status` or `rbd lock ls` printed; nonces included.
fn addresses(printed: &Value) -> impl Iterator<Item = String> {
    let list = printed.get("watchers").unwrap_or(printed);
    // Older releases print a map by number or id.
    let all: Vec<&Value> = match list {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    let address = |one: &Value| Some(one.get("address")?.as_str()?.to_owned());
    all.into_iter().filter_map(address).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    #[test]
    fn ids_are_read_and_what_could_be_an_option_is_refused() {
        for id in ["rbd/csi-1", "p.x/i_2", "rbd/csi-1@snap-2"] {
            assert_eq!(Place::parse(id).unwrap().id(), id);
        }
        for id in [
            "",
            "x",
            "/x",
            "rbd/",
            "rbd/-x",
            "--conf/x",
            "rbd/a b",
            "rbd/a/b",
            "rbd/a@",
            "rbd/a@b@c",
        ] {
            assert_eq!(Place::parse(id), None, "{id}");
        }
        let place = Place::parse("rbd/a@b").unwrap();
        assert_eq!(
            (place.whole().id(), place.at("c".into()).id()),
            ("rbd/a".into(), "rbd/a@c".into())
        );
    }

    #[test]
    fn the_programs_answers_are_read() {
        let info = json!({"name":"b","id":"1","size":67108864,"objects":16,"order":22,
            "features":["layering"],"parent":{"pool":"rbd","pool_namespace":"","image":"a","id":"2",
            "snapshot":"s","trash":false,"overlap":67108864}});
        let parent = Some(Parent { image: "a".into(), snapshot: "s".into() });
        assert_eq!(serde_json::from_value::<Info>(info).unwrap(), Info { size: 64 << 20, parent });
        let snap = json!({"id":4,"name":"s","size":67108864,"protected":"false",
            "timestamp":"Sat Nov 21 10:00:00 2026"});
        let snap: Snap = serde_json::from_value(snap).unwrap();
        assert_eq!((&*snap.name, snap.size), ("s", 64 << 20));
        let row = json!({"image":"t1","id":"1013a3337b91","snapshot":"s","snapshot_id":4,
            "size":268435456,"format":2,"protected":"false"});
        let row: Row = serde_json::from_value(row).unwrap();
        assert_eq!((row.snapshot.as_deref(), row.parent), (Some("s"), None));
        let usage = json!({"stats": {"total_bytes": 10}, "pools": [{"name": "rbd", "id": 1,
            "stats": {"stored": 3, "objects": 1, "bytes_used": 9, "max_avail": 1_i64 << 40}}]});
        let usage: Usage = serde_json::from_value(usage).unwrap();
        assert_eq!((&*usage.pools[0].name, usage.pools[0].stats.max_avail), ("rbd", 1 << 40));
        assert!(serde_json::from_value::<Usage>(json!({"stats": {}})).unwrap().pools.is_empty());
        let sizes = [1, 1 << 20, 3 << 30].map(mebibytes);
        assert_eq!(sizes, ["1M", "1M", "3072M"]);
    }

    #[test]
    fn clients_are_read_as_the_programs_print_them() {
        let read = |printed: Value| addresses(&printed).collect::<Vec<_>>();
        let one = json!({"address": "10.98.1.12:0/3030", "client": 4123, "cookie": 1});
        assert_eq!(read(json!({ "watchers": [one] })), ["10.98.1.12:0/3030"]);
        assert_eq!(read(json!({"watchers": {"watcher": one}})), ["10.98.1.12:0/3030"]);
        let lock = json!([{"id": "auto 1", "locker": "client.4114", "address": "10.98.1.12:0/30"}]);
        assert_eq!(read(lock), ["10.98.1.12:0/30"]);
        assert_eq!(read(json!([])).len() + read(json!("rubbish")).len(), 0);
    }

    #[test]
    fn monitors_are_written_with_their_ports() {
        let given = ["10.0.0.1", "10.0.0.2:3300", "fd00::1"].map(str::to_owned);
        assert_eq!(monitors(&given), "10.0.0.1:6789,10.0.0.2:3300,[fd00::1]:6789");
    }

    #[test]
    fn exit_codes_are_the_systems_error_numbers() {
        let end = |code: i32| {
            let status = ExitStatus::from_raw(code << 8);
            let output = Output { status, stdout: b"out".to_vec(), stderr: b"a\nwhy".to_vec() };
            judge("rbd", output)
        };
        assert_eq!(end(0), Ok(b"out".to_vec()));
        let why = || "why".to_owned();
        assert_eq!(end(2), Err(CephError::Missing(why())));
        assert_eq!(end(17), Err(CephError::Exists(why())));
        assert_eq!(end(13), Err(CephError::Denied(why())));
        assert_eq!([16, 30, 39].map(|code| end(code).is_err()), [true; 3]);
        assert_eq!(end(39), Err(CephError::Busy(why())));
        assert_eq!(end(110), Err(CephError::Refused { program: "rbd", said: why() }));
        let secret = Cluster { key: Some("AQsecret".into()), ..Cluster::default() };
        assert!(!format!("{secret:?}").contains("AQsecret"));
    }
}
