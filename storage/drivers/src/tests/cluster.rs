//! A small real Ceph for tests: one monitor and one store in memory, on loopback, from Debian's
//! packages, with ports that were free a moment ago.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A quorum, or a store that comes up, on a host with other work.
const LIMIT: Duration = Duration::from_secs(180);
const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A cluster; gone when dropped.
pub(super) struct Ceph {
    dir: tempfile::TempDir,
    daemons: Vec<Child>,
}

impl Drop for Ceph {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }
}

impl Ceph {
    /// Starts a cluster with a pool `rbd`; `None` where Ceph is not installed.
    pub(super) fn start() -> Option<Self> {
        if !["ceph-mon", "ceph-osd", "rbd"].iter().all(|name| is_installed(name)) {
            return None;
        }
        let mut ceph = Self { dir: tempfile::tempdir().unwrap(), daemons: Vec::new() };
        let [new, old] = free_ports();
        let address = format!("[v2:{HOST}:{new},v1:{HOST}:{old}]");
        let fsid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().to_owned();
        let dir = ceph.dir.path().to_str().unwrap().to_owned();
        let text = CONF.replace("@DIR@", &dir).replace("@FSID@", &fsid);
        fs::write(ceph.conf(), text.replace("@MONITOR@", &address)).unwrap();
        ceph.keys();
        ceph.run(
            "monmaptool",
            &words(&format!(
                "--create --fsid {fsid} --addv a {address} --set-min-mon-release 16 \
             --enable-all-features monmap"
            )),
        );
        ceph.run("ceph-mon", &words("--mkfs -i a --monmap monmap --keyring ceph.mon.keyring"));
        ceph.spawn("ceph-mon", &["-f", "-i", "a", "--public-addrv", &address]);
        ceph.until("a quorum", |ceph| ceph.ask("ceph", &["quorum_status"]).is_ok());
        ceph.store(&fsid);
        ceph.run("ceph", &words("osd pool create rbd 8 8"));
        ceph.run("ceph", &words("osd pool set rbd size 1 --yes-i-really-mean-it"));
        ceph.run("ceph", &words("osd pool application enable rbd rbd"));
        let make = words("create rbd/first --size 8M --image-feature layering,exclusive-lock");
        ceph.until("a first image", |ceph| ceph.ask("rbd", &make).is_ok());
        Some(ceph)
    }

    pub(super) fn conf(&self) -> PathBuf {
        self.dir.path().join("ceph.conf")
    }

    /// What a program prints, or why it fails.
    pub(super) fn ask(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let done = self.command(program).args(arguments).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if done.status.success() { Ok(said(&done.stdout)) } else { Err(said(&done.stderr)) }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        if !["ceph-authtool", "monmaptool"].contains(&program) {
            command.arg("--conf").arg(self.conf());
        }
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.ask(program, arguments).unwrap_or_else(|said| panic!("{program}: {said}"))
    }

    fn spawn(&mut self, program: &str, arguments: &[&str]) {
        let mut command = self.command(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        self.daemons.push(command.spawn().unwrap());
    }

    fn until(&self, what: &str, there: impl Fn(&Self) -> bool) {
        let limit = Instant::now() + LIMIT;
        while !there(self) {
            assert!(Instant::now() < limit, "{what} never came");
        }
    }

    fn keys(&self) {
        let make = "--create-keyring ceph.mon.keyring --gen-key -n mon. --cap mon";
        self.run("ceph-authtool", &[&words(make)[..], &["allow *"]].concat());
        let make = "--create-keyring ceph.client.admin.keyring --gen-key -n client.admin";
        let rights = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"];
        self.run("ceph-authtool", &[&words(make)[..], &rights].concat());
        let join = "ceph.mon.keyring --import-keyring ceph.client.admin.keyring";
        self.run("ceph-authtool", &words(join));
        fs::create_dir(self.dir.path().join("mon.a")).unwrap();
    }

    fn store(&mut self, uuid: &str) {
        let own = self.dir.path().join("osd.0");
        fs::create_dir(&own).unwrap();
        let key = self.run("ceph-authtool", &["--gen-print-key"]).trim().to_owned();
        let secret = format!("{{\"cephx_secret\":\"{key}\"}}");
        fs::write(own.join("secret.json"), secret).unwrap();
        self.run("ceph", &words(&format!("osd new {uuid} 0 -i osd.0/secret.json")));
        let make = format!("--create-keyring osd.0/keyring --name osd.0 --add-key {key}");
        self.run("ceph-authtool", &words(&make));
        let make = format!("-i 0 --mkfs --osd-uuid {uuid} --keyring osd.0/keyring");
        self.run("ceph-osd", &words(&make));
        self.spawn("ceph-osd", &["-f", "-i", "0"]);
        self.until("the store", |ceph| {
            ceph.ask("ceph", &["osd", "stat"]).is_ok_and(|said| said.contains("1 up"))
        });
    }
}

pub(super) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| Path::new(&dir).join(program).exists())
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

fn free_ports() -> [u16; 2] {
    let held = [TcpListener::bind((HOST, 0)).unwrap(), TcpListener::bind((HOST, 0)).unwrap()];
    held.map(|one| one.local_addr().unwrap().port())
}

const CONF: &str = "\
[global]
fsid = @FSID@
mon initial members = a
mon host = @MONITOR@
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon data avail warn = 2
mon data avail crit = 1
mon warn on insecure global id reclaim = false
mon warn on insecure global id reclaim allowed = false
osd mclock skip benchmark = true
run dir = @DIR@
log file = @DIR@/$name.log
admin socket =
pid file =
keyring = @DIR@/ceph.client.admin.keyring
osd objectstore = memstore
memstore device bytes = 2147483648
osd max object name len = 256
osd max object namespace len = 64
setuser match path = @DIR@
[mon]
mon data = @DIR@/mon.$id
[osd]
osd data = @DIR@/osd.$id
keyring = @DIR@/osd.$id/keyring
";
