//! A small real Ceph cluster on the seed: monitors and object stores in memory, and a metadata
//! server for stories that share files, from Debian's packages, in the scenario's own directory.
//!
//! Each monitor has an address of its own in the seed's subnet, so that machines reach it
//! through their racks' routers as they would reach any other server. There is no manager
//! daemon: nothing here needs one, and it is larger than all the rest together.
//!
//! *Limits*: an object store keeps its objects in memory; one that was killed comes back empty,
//! and is filled again by the others.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::topology::{SEED_UPLINK, stable_uuid};
use crate::wait::{Seen, await_until};
use crate::{Place, Rig, process};

/// Debian packages of the cluster, installed when a story needs one.
pub const PACKAGES: [&str; 3] = ["ceph-common", "ceph-mon", "ceph-osd"];
/// The package of a cluster's file systems, for stories that have one.
pub const FILES_PACKAGES: [&str; 1] = ["ceph-mds"];
/// The pool of images.
pub const POOL: &str = "rbd";
/// The file system.
pub const FILES: &str = "shares";
/// The user of nodes and controllers.
pub const USER: &str = "muster";
/// The first monitor's address in the seed's subnet; hosts of a plan are numbered below.
const FIRST_ADDRESS: u32 = 201;
/// A quorum, or a store that comes up, on a host with other work.
const LIMIT: Duration = Duration::from_secs(180);
/// The release in the monitors' first map, by the first word of `ceph --version`'s number.
const OLDEST_RELEASE: u32 = 16;

/// How large a cluster is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Monitors.
    pub monitors: u32,
    /// Object stores; each object is on all of them, up to three.
    pub stores: u32,
}

/// A cluster that runs on a rig's seed.
#[derive(Debug)]
pub struct Ceph<'a> {
    rig: &'a Rig,
    dir: PathBuf,
    size: Size,
}

impl<'a> Ceph<'a> {
    /// Starts a cluster in `dir` and waits until it can make an image.
    ///
    /// # Errors
    ///
    /// When a program is missing, fails, or the cluster does not come up.
    pub fn start(rig: &'a Rig, dir: &Path, size: Size) -> Result<Self> {
        let ceph = Self { rig, dir: crate::rig::absolute(dir)?, size };
        fs::create_dir_all(&ceph.dir).with_context(|| format!("making {}", dir.display()))?;
        ceph.write_config()?;
        ceph.make_keys()?;
        ceph.start_monitors()?;
        await_until("a quorum of monitors", LIMIT, || {
            ceph.ask(&["quorum_status"]).map(Seen::There)
        })?;
        for store in 0..size.stores {
            ceph.make_store(store)?;
        }
        ceph.await_stores()?;
        ceph.make_pool()?;
        Ok(ceph)
    }

    /// The cluster that an earlier run left on this rig.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn resume(rig: &'a Rig, dir: &Path, size: Size) -> Result<Self> {
        let dir = crate::rig::absolute(dir)?;
        ensure!(dir.join("ceph.conf").exists(), "no cluster in {}", dir.display());
        Ok(Self { rig, dir, size })
    }

    /// The monitors' addresses.
    #[must_use]
    pub fn monitors(&self) -> Vec<Ipv4Addr> {
        let network = u32::from(self.rig.plan().seed.subnet.network());
        let address = |n| Ipv4Addr::from(network.saturating_add(FIRST_ADDRESS).saturating_add(n));
        (0..self.size.monitors).map(address).collect()
    }

    /// Runs a command of `ceph` as its administrator and gives what it printed.
    ///
    /// # Errors
    ///
    /// When it fails; the error has its words.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        self.run("ceph", arguments)
    }

    /// The same, as JSON.
    ///
    /// # Errors
    ///
    /// When it fails or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.ask(&[arguments, &["--format", "json"]].concat())?;
        // Some answers are followed by another, empty one: the fenced clients by fenced ranges.
        let mut all = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        let first = all.next().with_context(|| format!("ceph {arguments:?} said nothing"))?;
        first.with_context(|| format!("ceph {arguments:?} said {text}"))
    }

    /// Runs a command of `rbd` as the administrator and gives what it printed.
    ///
    /// # Errors
    ///
    /// When it fails; the error has its words.
    pub fn rbd(&self, arguments: &[&str]) -> Result<String> {
        self.run("rbd", arguments)
    }

    /// The key of [`USER`], made when it is not there.
    ///
    /// # Errors
    ///
    /// When the cluster does not answer.
    pub fn key(&self) -> Result<String> {
        let name = format!("client.{USER}");
        let rights = format!("profile rbd pool={POOL}");
        self.ask(&["auth", "get-or-create", &name, "mon", "profile rbd", "osd", &rights])?;
        Ok(self.ask(&["auth", "get-key", &name])?.trim().to_owned())
    }

    /// The administrator's key.
    ///
    /// # Errors
    ///
    /// When the cluster does not answer.
    pub fn admin_key(&self) -> Result<String> {
        Ok(self.ask(&["auth", "get-key", "client.admin"])?.trim().to_owned())
    }

    /// Starts a file system, and waits until its metadata server is active.
    ///
    /// # Errors
    ///
    /// When a program is missing, fails, or the server does not come up.
    pub fn start_files(&self) -> Result<()> {
        let (metadata, data) = (format!("{FILES}-metadata"), format!("{FILES}-data"));
        for pool in [&metadata, &data] {
            self.ask(&["osd", "pool", "create", pool, "8", "8"])?;
            if self.size.stores == 1 {
                self.ask(&["osd", "pool", "set", pool, "size", "1", "--yes-i-really-mean-it"])?;
            }
        }
        self.ask(&["fs", "new", FILES, &metadata, &data])?;
        let rights = ["mon", "allow profile mds", "osd", "allow rwx", "mds", "allow"];
        let keyring = self.ask(&[&["auth", "get-or-create", "mds.a"][..], &rights].concat())?;
        fs::create_dir_all(self.dir.join("mds.a"))?;
        fs::write(self.dir.join("mds.a/keyring"), keyring).context("writing a key")?;
        self.restart("mds.a")?;
        await_until("the metadata server", LIMIT, || {
            let said = self.ask(&["mds", "stat"])?;
            let active = said.contains("up:active");
            Ok(if active { Seen::There(()) } else { Seen::NotYet(said) })
        })
    }

    /// The key of a user who may read and write below one directory of the file system.
    ///
    /// # Errors
    ///
    /// When the cluster does not answer.
    pub fn files_key(&self, user: &str, path: &str) -> Result<String> {
        let name = format!("client.{user}");
        self.ask(&["fs", "authorize", FILES, &name, path, "rw"])?;
        Ok(self.ask(&["auth", "get-key", &name])?.trim().to_owned())
    }

    /// The clients that are fenced.
    ///
    /// # Errors
    ///
    /// When the cluster does not answer.
    pub fn fenced(&self) -> Result<Vec<String>> {
        let list = self.json(&["osd", "blocklist", "ls"])?;
        let list = list.as_array().context("a list of fenced clients")?.iter();
        Ok(list.filter_map(|one| Some(one.get("addr")?.as_str()?.to_owned())).collect())
    }

    /// Kills a daemon as a crash would: `mon.m1`, `osd.0`.
    pub fn kill(&self, daemon: &str) {
        self.rig.kill_daemon(&format!("ceph-{daemon}"));
    }

    /// Waits until every object store is up.
    ///
    /// # Errors
    ///
    /// When one stays down.
    pub fn await_stores(&self) -> Result<()> {
        let wanted = u64::from(self.size.stores);
        await_until("the object stores", LIMIT, || {
            let said = self.json(&["osd", "stat"])?;
            let up = said.get("num_up_osds").and_then(Value::as_u64);
            Ok(if up == Some(wanted) { Seen::There(()) } else { Seen::NotYet(said.to_string()) })
        })
    }

    /// Starts a daemon that was killed: `mon.m1`, `osd.0`.
    ///
    /// # Errors
    ///
    /// When it is none of this cluster's, or cannot be started.
    pub fn restart(&self, daemon: &str) -> Result<()> {
        let (kind, id) = daemon.split_once('.').context("a daemon is KIND.ID")?;
        let named = self.names().into_iter().zip(self.monitors());
        let ports = named.filter(|(name, _)| name == id).map(|(_, one)| both_ports(one)).next();
        let serve = match (kind, &ports) {
            ("mon", Some(ports)) => {
                self.command("ceph-mon", &["-f", "-i", id, "--public-addrv", ports])
            }
            ("mds", _) => self.command("ceph-mds", &["-f", "-i", id]),
            _ => self.command("ceph-osd", &["-f", "-i", id]),
        };
        self.rig.spawn_daemon_in_seed(&format!("ceph-{daemon}"), &serve)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = process::command(program);
        command.arg("--conf").arg(self.dir.join("ceph.conf")).args(arguments);
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let namespace = self.rig.namespace(Place::Seed)?;
        let mut command = process::inside(namespace, &self.command(program, arguments));
        let output = process::output(&mut command)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn write_config(&self) -> Result<()> {
        let addresses: Vec<String> = self.monitors().into_iter().map(both_ports).collect();
        let copies = self.size.stores.min(3);
        let text = include_str!("ceph.conf")
            .replace("@DIR@", self.dir.to_str().context("a path that is no UTF-8")?)
            .replace("@FSID@", &stable_uuid(&self.rig.plan().site, "ceph"))
            .replace("@NAMES@", &self.names().join(","))
            .replace("@MONITORS@", &addresses.join(","))
            .replace("@NETWORK@", &self.rig.plan().seed.subnet.to_string())
            .replace("@COPIES@", &copies.to_string())
            .replace("@LEAST@", &copies.saturating_sub(1).max(1).to_string());
        fs::write(self.dir.join("ceph.conf"), text).context("writing ceph.conf")
    }

    fn names(&self) -> Vec<String> {
        (1..=self.size.monitors).map(|number| format!("m{number}")).collect()
    }

    fn make_keys(&self) -> Result<()> {
        let all = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mds", "allow *"];
        let make = ["--create-keyring", "ceph.mon.keyring", "--gen-key", "-n", "mon."];
        self.run("ceph-authtool", &[&make[..], &["--cap", "mon", "allow *"]].concat())?;
        let admin = "ceph.client.admin.keyring";
        let make = ["--create-keyring", admin, "--gen-key", "-n", "client.admin"];
        self.run("ceph-authtool", &[&make[..], &all].concat())?;
        self.run("ceph-authtool", &["ceph.mon.keyring", "--import-keyring", admin]).map(drop)
    }

    fn start_monitors(&self) -> Result<()> {
        let addresses = self.monitors();
        let prefix = self.rig.plan().seed.subnet.prefix_len();
        let fsid = stable_uuid(&self.rig.plan().site, "ceph");
        let release = OLDEST_RELEASE.to_string();
        let mut map = vec!["--create", "--clobber", "--fsid", &fsid];
        let named: Vec<(String, String)> =
            self.names().into_iter().zip(addresses.iter().map(|one| both_ports(*one))).collect();
        for (name, ports) in &named {
            map.extend(["--addv", name, ports]);
        }
        map.extend(["--set-min-mon-release", &release, "--enable-all-features", "monmap"]);
        self.run("monmaptool", &map)?;
        for ((name, _), address) in named.iter().zip(&addresses) {
            let mut add = process::command("ip");
            add.args(["addr", "replace", &format!("{address}/{prefix}"), "dev", SEED_UPLINK]);
            let added = self.rig.exec(Place::Seed, &add)?;
            ensure!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
            fs::create_dir_all(self.dir.join(format!("mon.{name}")))?;
            let make =
                ["--mkfs", "-i", name, "--monmap", "monmap", "--keyring", "ceph.mon.keyring"];
            self.run("ceph-mon", &make)?;
            self.restart(&format!("mon.{name}"))?;
        }
        Ok(())
    }

    fn make_store(&self, number: u32) -> Result<()> {
        let (id, dir) = (number.to_string(), format!("osd.{number}"));
        fs::create_dir_all(self.dir.join(&dir))?;
        let uuid = stable_uuid(&self.rig.plan().site, &dir);
        let key = self.run("ceph-authtool", &["--gen-print-key"])?.trim().to_owned();
        let secrets = self.dir.join(format!("{dir}/secrets.json"));
        fs::write(&secrets, format!("{{\"cephx_secret\":\"{key}\"}}")).context("writing a key")?;
        let secrets = secrets.to_str().context("a path that is no UTF-8")?.to_owned();
        self.ask(&["osd", "new", &uuid, &id, "-i", &secrets])?;
        let keyring = format!("{dir}/keyring");
        let make = ["--create-keyring", &keyring, "--name", &dir, "--add-key", &key];
        self.run("ceph-authtool", &make)?;
        let make = ["-i", &id, "--mkfs", "--osd-uuid", &uuid, "--keyring", &keyring];
        self.run("ceph-osd", &make)?;
        self.restart(&dir)
    }

    fn make_pool(&self) -> Result<()> {
        self.ask(&["osd", "pool", "create", POOL, "8", "8"])?;
        if self.size.stores == 1 {
            self.ask(&["osd", "pool", "set", POOL, "size", "1", "--yes-i-really-mean-it"])?;
        }
        self.ask(&["osd", "pool", "application", "enable", POOL, "rbd"])?;
        // Health says nothing so early; that an image can be made says all.
        await_until("a first image", LIMIT, || {
            let first = format!("{POOL}/first");
            let features = "layering,exclusive-lock";
            let make = ["create", &first, "--size", "16M", "--image-feature", features];
            self.rbd(&make)?;
            self.rbd(&["rm", "--no-progress", &first]).map(Seen::There)
        })
        .map(drop)
    }
}

/// A monitor's address as its map writes it.
fn both_ports(address: Ipv4Addr) -> String {
    format!("[v2:{address}:3300,v1:{address}:6789]")
}
