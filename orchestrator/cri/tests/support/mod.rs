//! A private containerd with its own directories, a toy network plug-in and two tiny images.
//!
//! Needs root, `containerd`, `runc`, `ctr` and `busybox` on the host; [`Containerd::start`] gives
//! `None` when one is absent. Nothing of the host's own containerd is touched.

#![allow(dead_code, reason = "each test program that includes this file uses a part of it")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest, Sha256};

/// The sandbox image of the tests.
pub(crate) const PAUSE: &str = "muster.dev/pause:1";
/// The image of the tests' containers.
pub(crate) const BUSYBOX: &str = "muster.dev/busybox:1";

/// A running containerd; stopped, with all its containers, when dropped.
pub(crate) struct Containerd {
    dir: tempfile::TempDir,
    process: Child,
}

impl Containerd {
    /// Starts one and imports the images; `None` when this host cannot.
    pub(crate) fn start() -> Option<Self> {
        let dir = Self::prepare()?;
        let process = spawn(dir.path());
        let this = Self { dir, process };
        this.await_socket();
        for (name, command) in [(PAUSE, &["/bin/sleep", "2147483647"][..]), (BUSYBOX, &["/bin/sh"])]
        {
            let archive = this.dir.path().join("image.tar");
            fs::write(&archive, image(name, command)).unwrap();
            this.import(&archive);
        }
        Some(this)
    }

    /// Makes the directories and the configuration, without starting anything.
    fn prepare() -> Option<tempfile::TempDir> {
        let is_root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
        let missing: Vec<&str> = ["containerd", "runc", "ctr", "busybox", "nsenter"]
            .into_iter()
            .filter(|program| which(program).is_none())
            .collect();
        if !is_root || !missing.is_empty() {
            println!("skipped: needs root (have it: {is_root}) and these programs: {missing:?}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        for name in ["root", "state", "cni", "net.d"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        fs::write(path.join("config.toml"), config(path)).unwrap();
        fs::write(path.join("cni/toy"), PLUGIN).unwrap();
        // The runtime itself calls for `loopback` first; the toy serves as both.
        fs::set_permissions(path.join("cni/toy"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("toy", path.join("cni/loopback")).unwrap();
        let conflist = json!({"cniVersion": "0.3.1", "name": "toy", "plugins": [{"type": "toy", "dir": path.join("net.d")}]});
        fs::write(path.join("net.d/10-toy.conflist"), conflist.to_string()).unwrap();
        Some(dir)
    }

    /// The runtime's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("s.sock")
    }

    /// The directory everything is in; free for the test's own files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Kills containerd the hard way and starts it again; containers live on.
    pub(crate) fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = spawn(self.dir.path());
        self.await_socket();
    }

    /// Imports an image archive.
    pub(crate) fn import(&self, archive: &Path) {
        let (socket, archive) = (self.socket(), archive.to_owned());
        // A thread of its own, for tests may be asynchronous.
        let work = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                cri::Runtime::at(&socket).unwrap().import_archive(&archive).await.unwrap()
            })
        });
        assert!(!work.join().unwrap().is_empty(), "no image in the archive");
    }

    fn await_socket(&self) {
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            let out =
                Command::new("ctr").arg("-a").arg(self.socket()).arg("version").output().unwrap();
            if out.status.success() {
                return;
            }
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < limit, "containerd does not answer; its log:\n{log}");
        }
    }

    fn ctr(&self, args: &[&str]) -> String {
        let out = Command::new("ctr")
            .arg("-a")
            .arg(self.socket())
            .args(["-n", "k8s.io"])
            .args(args)
            .output();
        out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Through the interface first: only it gives the pods' network namespaces back.
        let socket = self.socket();
        drop(std::thread::spawn(move || remove_pods(&socket)).join());
        for task in self.ctr(&["tasks", "ls", "-q"]).lines() {
            self.ctr(&["tasks", "rm", "-f", task]);
        }
        for container in self.ctr(&["containers", "ls", "-q"]).lines() {
            self.ctr(&["containers", "rm", container]);
        }
        drop(self.process.kill());
        drop(self.process.wait());
        // What a container had mounted would keep the directory from being removed.
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let ours = self.dir.path().to_string_lossy().into_owned();
        for line in mounts.lines().rev() {
            if let Some(point) = line.split(' ').nth(1).filter(|point| point.starts_with(&ours)) {
                drop(Command::new("umount").arg("-l").arg(point).output());
            }
        }
    }
}

/// Stops and removes every pod; for a thread of its own, for tests may be asynchronous.
fn remove_pods(socket: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let runtime = cri::Runtime::at(socket).unwrap();
        let request = cri::message::ListPodSandboxRequest::default();
        for sandbox in runtime.list_pod_sandbox(request).await.unwrap_or_default().items {
            let pod_sandbox_id = sandbox.id.clone();
            let stop = cri::message::StopPodSandboxRequest { pod_sandbox_id };
            drop(runtime.stop_pod_sandbox(stop).await);
            let remove = cri::message::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id };
            drop(runtime.remove_pod_sandbox(remove).await);
        }
    });
}

fn spawn(dir: &Path) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
    Command::new("containerd")
        .arg("-c")
        .arg(dir.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let more = "/usr/sbin:/sbin";
    path.split(':')
        .chain(more.split(':'))
        .map(|dir| Path::new(dir).join(program))
        .find(|p| p.exists())
}

fn config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{dir}/s.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{dir}/cni"
    conf_dir = "{dir}/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{dir}/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#
    )
}

/// A network plug-in that only brings `lo` up and gives an address out of a hat.
const PLUGIN: &str = r#"#!/bin/sh
config=$(cat)
dir=$(printf '%s' "$config" | sed -n 's/.*"dir":"\([^"]*\)".*/\1/p')
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"0.3.1","supportedVersions":["0.3.1"]}' ;;
ADD)
  nsenter --net="$CNI_NETNS" ip link set lo up
  [ -n "$dir" ] || { echo '{"cniVersion":"0.3.1","interfaces":[{"name":"lo","sandbox":"'$CNI_NETNS'"}],"ips":[{"version":"4","interface":0,"address":"127.0.0.1/8"}]}'; exit 0; }
  n=$(( $(cat "$dir/count" 2>/dev/null || echo 0) + 1 )); echo $n > "$dir/count"
  echo '{"cniVersion":"0.3.1","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}],"ips":[{"version":"4","interface":0,"address":"10.99.0.'$n'/32"}]}' ;;
esac
"#;

/// Builds an OCI archive with one layer: busybox under its usual names.
pub(crate) fn image(name: &str, command: &[&str]) -> Vec<u8> {
    let layer = layer();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": command, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(&layer), "size": layer.len()}],
    })
    .to_string()
    .into_bytes();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest), "size": manifest.len(),
            "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}}],
    });
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644);
    add(&mut tar, "index.json", index.to_string().as_bytes(), 0o644);
    for blob in [&layer, &config, &manifest] {
        let path = format!("blobs/{}", digest(blob).replace(':', "/"));
        add(&mut tar, &path, blob, 0o644);
    }
    tar.into_inner().unwrap()
}

fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, "bin/busybox", &fs::read(which("busybox").unwrap()).unwrap(), 0o755);
    for applet in [
        "sh", "sleep", "cat", "echo", "ls", "wget", "httpd", "touch", "rm", "true", "env", "id",
        "hostname", "seq", "kill", "test", "mkdir", "tar", "wc", "stty", "tty", "printf", "head",
        "tail", "dd", "nc", "ps", "stat", "date", "grep", "sort", "chmod", "df", "find",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    add(&mut tar, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", 0o644);
    for dir in ["proc", "sys", "dev", "tmp"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o755);
        tar.append_data(&mut header, dir, std::io::empty()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, path, bytes).unwrap();
    tar.get_mut().flush().unwrap();
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
