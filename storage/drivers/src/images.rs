//! Images of a Ceph cluster, by the cluster's own `rbd` program.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::process::Command;

/// Limit of one command: deleting a large image removes every object of it.
const LIMIT: Duration = Duration::from_secs(100);

/// Why the cluster did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ImageError {
    /// There is no such image, snapshot or pool.
    #[error("not found: {0}")]
    Missing(String),
    /// There is one already.
    #[error("exists already: {0}")]
    Exists(String),
    /// Someone uses it, or something is made of it.
    #[error("in use: {0}")]
    Busy(String),
    /// Anything else.
    #[error("rbd: {0}")]
    Failed(String),
}

/// An image or snapshot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) pool: String,
    pub(crate) image: String,
    pub(crate) snap: Option<String>,
}

impl Place {
    /// Reads an id; `None` when it cannot be one of ours.
    pub(crate) fn parse(id: &str) -> Option<Self> {
        let (pool, rest) = id.split_once('/')?;
        let (image, snap) = match rest.split_once('@') {
            Some((image, snap)) => (image, Some(snap)),
            None => (rest, None),
        };
        // They become arguments of a program and words of the kernel's line.
        let plain = |word: &str| {
            let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !word.is_empty() && !word.starts_with(['-', '.']) && word.chars().all(good)
        };
        let good = plain(pool) && plain(image) && snap.is_none_or(plain);
        let snap = snap.map(str::to_owned);
        good.then(|| Self { pool: pool.to_owned(), image: image.to_owned(), snap })
    }

    pub(crate) fn id(&self) -> String {
        match &self.snap {
            Some(snap) => format!("{}/{}@{snap}", self.pool, self.image),
            None => format!("{}/{}", self.pool, self.image),
        }
    }

    /// The image itself.
    pub(crate) fn whole(&self) -> Self {
        Self { snap: None, ..self.clone() }
    }
}

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Info {
    pub(crate) size: i64,
    #[serde(default)]
    pub(crate) parent: Option<Parent>,
}

/// What an image is a clone of.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Parent {
    pub(crate) image: String,
    pub(crate) snapshot: String,
}

/// A snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Snap {
    pub(crate) name: String,
    pub(crate) size: i64,
    #[serde(default)]
    pub(crate) timestamp: String,
}

/// Who asks: secrets of a request.
pub(crate) type Secrets = BTreeMap<String, String>;

type Done<T> = Result<T, ImageError>;

/// A way to make and look at images.
pub(crate) trait Images: Send + Sync + 'static {
    fn create(&self, who: &Secrets, at: &Place, size: i64)
    -> impl Future<Output = Done<()>> + Send;
    fn info(&self, who: &Secrets, at: &Place) -> impl Future<Output = Done<Info>> + Send;
    fn list(&self, who: &Secrets, pool: &str) -> impl Future<Output = Done<Vec<String>>> + Send;
    fn remove(&self, who: &Secrets, at: &Place) -> impl Future<Output = Done<()>> + Send;
    fn resize(&self, who: &Secrets, at: &Place, size: i64)
    -> impl Future<Output = Done<()>> + Send;
    fn snaps(&self, who: &Secrets, at: &Place) -> impl Future<Output = Done<Vec<Snap>>> + Send;
    fn snap(&self, who: &Secrets, at: &Place) -> impl Future<Output = Done<()>> + Send;
    fn clone_of(
        &self,
        who: &Secrets,
        from: &Place,
        to: &Place,
    ) -> impl Future<Output = Done<()>> + Send;
}

/// The `rbd` program.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) conf: Option<PathBuf>,
    pub(crate) monitors: Vec<String>,
}

impl Program {
    async fn run(&self, who: &Secrets, arguments: &[&str]) -> Done<Vec<u8>> {
        let failed = |err: std::io::Error| ImageError::Failed(err.to_string());
        let mut command = Command::new("rbd");
        if let Some(conf) = &self.conf {
            command.arg("--conf").arg(conf);
        }
        if !self.monitors.is_empty() {
            command.arg("-m").arg(self.monitors.join(","));
        }
        if let Some(user) = who.get("userID") {
            command.arg("--id").arg(user);
        }
        // A key among the arguments would be seen by everyone on the machine.
        let key_file = match who.get("userKey") {
            Some(key) => {
                let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
                file.write_all(key.as_bytes()).map_err(failed)?;
                command.arg("--keyfile").arg(file.path());
                Some(file)
            }
            None => None,
        };
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, command.output()).await;
        drop(key_file);
        let slow = || ImageError::Failed(format!("no answer within {} s", LIMIT.as_secs()));
        let output = output.map_err(|_| slow())?.map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().last().unwrap_or_default().to_owned();
        Err(match output.status.code() {
            Some(2) => ImageError::Missing(said),
            Some(17) => ImageError::Exists(said),
            Some(16 | 30 | 39) => ImageError::Busy(said),
            _ => ImageError::Failed(said),
        })
    }

    async fn json<T: DeserializeOwned>(&self, who: &Secrets, arguments: &[&str]) -> Done<T> {
        let mut all = arguments.to_vec();
        all.extend(["--format", "json"]);
        parse(&self.run(who, &all).await?)
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Done<T> {
    serde_json::from_slice(bytes).map_err(|err| ImageError::Failed(err.to_string()))
}

/// The program counts in MiB.
fn mebibytes(size: i64) -> String {
    format!("{}M", size.saturating_add((1 << 20) - 1) >> 20)
}

impl Images for Program {
    async fn create(&self, who: &Secrets, at: &Place, size: i64) -> Done<()> {
        let (id, size) = (at.id(), mebibytes(size));
        let features = "layering,exclusive-lock";
        let arguments = ["create", &id, "--size", &size, "--image-feature", features];
        self.run(who, &arguments).await.map(drop)
    }

    async fn info(&self, who: &Secrets, at: &Place) -> Done<Info> {
        self.json(who, &["info", &at.id()]).await
    }

    async fn list(&self, who: &Secrets, pool: &str) -> Done<Vec<String>> {
        self.json(who, &["ls", pool]).await
    }

    async fn remove(&self, who: &Secrets, at: &Place) -> Done<()> {
        let id = at.id();
        let verb: &[&str] = if at.snap.is_some() { &["snap", "rm"] } else { &["rm"] };
        let mut arguments = verb.to_vec();
        arguments.extend([id.as_str(), "--no-progress"]);
        self.run(who, &arguments).await.map(drop)
    }

    async fn resize(&self, who: &Secrets, at: &Place, size: i64) -> Done<()> {
        let (id, size) = (at.id(), mebibytes(size));
        self.run(who, &["resize", &id, "--size", &size, "--no-progress"]).await.map(drop)
    }

    async fn snaps(&self, who: &Secrets, at: &Place) -> Done<Vec<Snap>> {
        self.json(who, &["snap", "ls", &at.whole().id()]).await
    }

    async fn snap(&self, who: &Secrets, at: &Place) -> Done<()> {
        self.run(who, &["snap", "create", &at.id(), "--no-progress"]).await.map(drop)
    }

    async fn clone_of(&self, who: &Secrets, from: &Place, to: &Place) -> Done<()> {
        let (from, to) = (from.id(), to.id());
        let features = "layering,exclusive-lock";
        // The second format needs no protected snapshot, and lets it be deleted before the clone.
        let arguments =
            ["--rbd-default-clone-format", "2", "clone", &from, &to, "--image-feature", features];
        self.run(who, &arguments).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }

    #[test]
    fn the_programs_answers_are_read() {
        let info = br#"{"name":"b","id":"1","size":67108864,"objects":16,"order":22,
            "features":["layering"],"parent":{"pool":"rbd","pool_namespace":"","image":"a","id":"2",
            "snapshot":"s","trash":false,"overlap":67108864}}"#;
        let parent = Some(Parent { image: "a".into(), snapshot: "s".into() });
        assert_eq!(parse(info), Ok(Info { size: 64 << 20, parent }));
        let snaps: Vec<Snap> = parse(
            br#"[{"id":4,"name":"s","size":67108864,"protected":"false","timestamp":"Sat Nov 21 10:00:00 2026"}]"#,
        )
        .unwrap();
        assert_eq!((&*snaps[0].name, snaps[0].size), ("s", 64 << 20));
        assert_eq!(
            (&*mebibytes(1), &*mebibytes(1 << 20), &*mebibytes(3 << 30)),
            ("1M", "1M", "3072M")
        );
    }
}
