//! A real NFS server on the seed: Debian's NFS-Ganesha, which runs outside the kernel, exporting a
//! directory of the scenario.
//!
//! *Limits*: version 4 only, for nobody maps ports on the seed.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait::{Seen, await_until};
use crate::{Place, Rig, process};

/// Debian packages of the server, installed when a story needs one.
pub const PACKAGES: [&str; 2] = ["nfs-ganesha", "nfs-ganesha-vfs"];
/// The exported path.
pub const EXPORT: &str = "/share";
const DAEMON: &str = "ganesha";
/// A start on a host with other work.
const LIMIT: Duration = Duration::from_secs(60);

/// A server that runs on a rig's seed.
#[derive(Debug)]
pub struct Ganesha<'a> {
    rig: &'a Rig,
    dir: PathBuf,
}

impl<'a> Ganesha<'a> {
    /// Starts a server with its files in `dir` and waits until it listens.
    ///
    /// # Errors
    ///
    /// When the program is missing or does not come up.
    pub fn start(rig: &'a Rig, dir: &Path) -> Result<Self> {
        let server = Self::resume(rig, dir)?;
        for part in ["export", "recovery"] {
            let part = server.dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("making {}", part.display()))?;
        }
        let text = include_str!("ganesha.conf")
            .replace("@DIR@", server.dir.to_str().context("a path that is no UTF-8")?)
            .replace("@EXPORT@", EXPORT);
        fs::write(server.dir.join("ganesha.conf"), text).context("writing ganesha.conf")?;
        server.restart()?;
        Ok(server)
    }

    /// The server that an earlier run left on this rig.
    ///
    /// # Errors
    ///
    /// When the directory has no whole path.
    pub fn resume(rig: &'a Rig, dir: &Path) -> Result<Self> {
        Ok(Self { rig, dir: crate::rig::absolute(dir)? })
    }

    /// Where it is reached.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.rig.plan().seed.address
    }

    /// Kills it as a crash would.
    pub fn kill(&self) {
        self.rig.kill_daemon(DAEMON);
    }

    /// Starts it, again or for the first time.
    ///
    /// # Errors
    ///
    /// When it does not come to listen.
    pub fn restart(&self) -> Result<()> {
        let mut command = process::command("ganesha.nfsd");
        command.args(["-F", "-f"]).arg(self.dir.join("ganesha.conf"));
        command.arg("-p").arg(self.dir.join("pid")).arg("-L").arg(self.dir.join("log"));
        command.current_dir(&self.dir).stdin(Stdio::null());
        self.rig.spawn_daemon_in_seed(DAEMON, &command)?;
        await_until("the NFS server to listen", LIMIT, || {
            let mut look = process::command("ss");
            look.args(["-Hltn", "sport = :2049"]);
            let said = self.rig.exec(Place::Seed, &look)?;
            ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
            let listens = !said.stdout.is_empty();
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            let last = || log.lines().last().unwrap_or_default().to_owned();
            Ok(if listens { Seen::There(()) } else { Seen::NotYet(last()) })
        })
    }
}
