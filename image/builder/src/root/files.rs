//! Our own files in the root: units, configurations, links.

use crate::BuildConfig;
use crate::rules::HOT_MODULES;
use crate::tree::Tree;

/// Path and content of every text file of ours.
const TEXTS: [(&str, &str); 12] = [
    ("etc/bird/bird.conf", include_str!("files/bird.conf")),
    ("etc/containerd/config.toml", include_str!("files/containerd.toml")),
    // containerd copies it into every pod and refuses to start one without.
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/systemd/journald.conf", include_str!("files/journald.conf")),
    ("etc/systemd/system.conf", include_str!("files/system.conf")),
    ("usr/lib/modprobe.d/muster.conf", include_str!("files/modprobe.conf")),
    ("usr/lib/modules-load.d/muster.conf", HOT_MODULES),
    ("usr/lib/systemd/system/bird.service", include_str!("files/bird.service")),
    ("usr/lib/systemd/system/containerd.service", include_str!("files/containerd.service")),
    ("usr/lib/systemd/system/muster-agent.service", include_str!("files/muster-agent.service")),
    ("usr/lib/systemd/system/muster.target", include_str!("files/muster.target")),
    (
        "usr/lib/systemd/system/systemd-journald.service.d/muster.conf",
        include_str!("files/journald-late.conf"),
    ),
];

/// Directories that are mount points, or that programs expect.
const DIRECTORIES: [(&str, u32); 14] = [
    ("dev", 0o755),
    ("etc/cni/net.d", 0o755),
    ("etc/containerd/certs.d", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt/cni/bin", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr/share/muster/images", 0o755),
    ("var", 0o755),
];

/// Link and target.
const LINKS: [(&str, &str); 5] = [
    ("opt/cni/bin/loopback", "muster-cni"),
    ("usr/bin/init", "/usr/lib/systemd/systemd"),
    ("usr/lib/systemd/system/default.target", "muster.target"),
    ("usr/sbin/poweroff", "../bin/systemctl"),
    ("usr/sbin/reboot", "../bin/systemctl"),
];

/// Everything here that may change, for the cache's key.
pub(crate) fn digest_input(config: &BuildConfig) -> String {
    format!("{TEXTS:?}{DIRECTORIES:?}{LINKS:?}{}", config.version)
}

/// Adds our files to the tree.
pub(crate) fn add(tree: &mut Tree, config: &BuildConfig, muster: Vec<u8>, plugin: Vec<u8>) {
    for (path, mode) in DIRECTORIES {
        tree.directory(path, mode);
    }
    for (path, text) in TEXTS {
        tree.text(path, text);
    }
    for (path, target) in LINKS {
        tree.link(path, target);
    }
    tree.file("usr/bin/muster", 0o755, muster);
    // Started twice for every pod: `muster` would do, and take longer to start than to work.
    tree.file("opt/cni/bin/muster-cni", 0o755, plugin);
    tree.text("etc/machine-id", "");
    tree.text("etc/fstab", "");
    let release =
        tree.bytes("usr/lib/os-release").map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let release = release.unwrap_or_default();
    let version = &config.version;
    tree.text(
        "usr/lib/os-release",
        &format!(
            "{release}VARIANT=Muster\nVARIANT_ID=muster\nIMAGE_ID=muster\nIMAGE_VERSION={version}\n"
        ),
    );
}
