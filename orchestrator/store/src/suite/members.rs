//! An etcd cluster of real processes for tests: started, killed and started again.
//!
//! The members listen on Unix sockets in their directory, so no port can be taken.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::EtcdOptions;

/// The processes; dropping them kills them.
#[derive(Debug)]
pub struct Members {
    dir: PathBuf,
    running: Vec<Option<Child>>,
    more: Vec<String>,
}

impl Members {
    /// Starts a cluster in a directory; `more` are further arguments of every member.
    ///
    /// # Errors
    ///
    /// When the program is missing: `cargo xtask deps` fetches it.
    pub fn start(dir: &Path, count: usize, more: &[&str]) -> io::Result<Self> {
        let more = more.iter().map(|&argument| argument.to_owned()).collect();
        let mut members = Self { dir: dir.to_owned(), running: Vec::new(), more };
        members.running.resize_with(count, || None);
        for n in 0..count {
            members.start_one(n)?;
        }
        Ok(members)
    }

    /// How many members the cluster has, running or not.
    #[must_use]
    pub fn count(&self) -> usize {
        self.running.len()
    }

    /// How the cluster is reached.
    #[must_use]
    pub fn options(&self) -> EtcdOptions {
        let endpoint = |n| format!("unix://{}", self.dir.join(format!("c:{n}")).display());
        EtcdOptions::plain((0..self.count()).map(endpoint).collect())
    }

    /// Starts a member that is not running.
    ///
    /// # Errors
    ///
    /// When the program is missing.
    pub fn start_one(&mut self, n: usize) -> io::Result<()> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../target/tools/etcd-3.5/usr/bin/etcd")
            .canonicalize()
            .map_err(|err| io::Error::new(err.kind(), "etcd 3.5 is missing: cargo xtask deps"))?;
        let cluster: Vec<_> = (0..self.count()).map(|n| format!("m{n}=unix://p:{n}")).collect();
        for socket in [format!("c:{n}"), format!("p:{n}")] {
            // Left behind by a kill, or not there at all.
            let _removed = std::fs::remove_file(self.dir.join(socket)).is_ok();
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("m{n}.log")))?;
        let child = Command::new(program)
            .current_dir(&self.dir)
            .arg(format!("--name=m{n}"))
            .arg(format!("--data-dir=m{n}"))
            .arg(format!("--listen-client-urls=unix://c:{n}"))
            .arg(format!("--advertise-client-urls=unix://c:{n}"))
            .arg(format!("--listen-peer-urls=unix://p:{n}"))
            .arg(format!("--initial-advertise-peer-urls=unix://p:{n}"))
            .arg(format!("--initial-cluster={}", cluster.join(",")))
            // A kill of the process takes nothing from the kernel that was written.
            .args(["--unsafe-no-fsync", "--log-level=warn"])
            .args(["--heartbeat-interval=50", "--election-timeout=500"])
            .args(&self.more)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        if let Some(place) = self.running.get_mut(n) {
            *place = Some(child);
        }
        Ok(())
    }

    /// Kills a member as `kill -9` does.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn kill(&mut self, n: usize) -> io::Result<()> {
        if let Some(mut child) = self.running.get_mut(n).and_then(Option::take) {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for n in 0..self.count() {
            // One that cannot be killed is gone already.
            let _killed = self.kill(n).is_ok();
        }
    }
}
