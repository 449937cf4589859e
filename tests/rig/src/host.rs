//! What the host must have: Debian packages, installed when missing.

use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::process;

/// Debian packages the rig runs, the same names in Debian 12 and 13.
pub const PACKAGES: [&str; 11] = [
    "bird2",
    "busybox-static",
    "iproute2",
    "ipxe-qemu",
    "isc-dhcp-relay",
    "kubernetes-client",
    "ovmf",
    "procps",
    "qemu-system-x86",
    "tcpdump",
    "util-linux",
];

/// While this says 101, packages start no daemons: ours run inside the rig only.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Names those of `packages` that are not installed.
#[must_use]
pub fn missing_packages(packages: &[&str]) -> Vec<String> {
    let installed = |package: &str| {
        process::run("dpkg-query", &["-W", "-f=${db:Status-Status}", package])
            .is_ok_and(|status| status == "installed")
    };
    packages.iter().filter(|package| !installed(package)).map(|&name| name.to_owned()).collect()
}

/// Installs what is missing of `packages`, as root or by sudo; nothing when all is there.
///
/// # Errors
///
/// When neither root nor sudo is at hand, or apt fails.
pub fn install_packages(packages: &[&str]) -> Result<Vec<String>> {
    let missing = missing_packages(packages);
    if missing.is_empty() {
        return Ok(missing);
    }
    // Held only while apt runs, and only if nobody else made one.
    let held = !std::path::Path::new(POLICY).exists();
    if held {
        as_root(&[
            "sh",
            "-c",
            &format!("printf '#!/bin/sh\\nexit 101\\n' >{POLICY} && chmod +x {POLICY}"),
        ])?;
    }
    let names = missing.iter().map(String::as_str);
    let mut install = vec![
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "-y",
        "-q",
        "--no-install-recommends",
    ];
    install.extend(names);
    let mut done = as_root(&install);
    if done.is_err() {
        // Lists may be missing or old; only then is it worth a minute to fetch them.
        done = as_root(&["apt-get", "update", "-q"]).and_then(|()| as_root(&install));
    }
    if held {
        as_root(&["rm", "-f", POLICY])?;
    }
    done?;
    Ok(missing)
}

fn as_root(words: &[&str]) -> Result<()> {
    let root = nix::unistd::Uid::effective().is_root();
    let mut words = words.iter();
    let mut command = if root {
        process::command(words.next().context("a command has a first word")?)
    } else {
        process::command("sudo")
    };
    command.args(words).stdin(Stdio::inherit());
    let status = command.status();
    let status = status.context("installing packages needs root, or sudo")?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}

/// Checks that the kernel lets us build racks.
///
/// # Errors
///
/// With what is missing and what to do.
pub fn check_kernel() -> Result<()> {
    process::require_root()?;
    if !std::path::Path::new("/dev/net/tun").exists() {
        bail!("/dev/net/tun is missing: load the module tun, or give the container the device");
    }
    let name = format!("muster-trial-{}", std::process::id());
    process::run("ip", &["netns", "add", &name]).context("network namespaces do not work here")?;
    let tap = process::run("ip", &["-n", &name, "tuntap", "add", "t0", "mode", "tap"]);
    let bridge = process::run("ip", &["-n", &name, "link", "add", "b0", "type", "bridge"]);
    process::run("ip", &["netns", "del", &name])?;
    tap.context("taps do not work here")?;
    bridge.context("bridges do not work here")?;
    Ok(())
}
