//! Gives the machine to the node's root: writable places, the node's identity, the change of root.
//!
//! The root image is read-only. `/etc` is an overlay, `/var` and `/tmp` are memory; all of it is
//! gone at the next boot.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kernel::mount::{Access, mount, move_mount, switch_root};
use layout::cmdline::SiteArguments;
use serde::Serialize;

use crate::machine::Identity;
use crate::network::Network;
use crate::root::SYSROOT;

const SYSTEMD: &std::ffi::CStr = c"/usr/lib/systemd/systemd";
const NODE_FILE: &str = "/run/muster/node.json";
const BIRD_CONFIG: &str = "/run/bird/bird.conf";

/// What the node agent learns from us; its side of the form is in `agent`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeFile<'a> {
    name: &'a str,
    mac: &'a str,
    uuid: &'a str,
    serial: &'a str,
    address: Ipv4Addr,
    prefix_len: u8,
    gateway: Option<Ipv4Addr>,
    interface: &'a str,
    api: &'a str,
    ca_fingerprint: &'a str,
    boot: &'a str,
}

/// Makes the places that a running node writes to.
pub(crate) fn prepare_places() -> Result<()> {
    let root = Path::new(SYSROOT);
    fs::create_dir_all("/run/overlay/etc-work")?;
    fs::create_dir_all("/run/overlay/etc")?;
    let layers =
        format!("lowerdir={SYSROOT}/etc,upperdir=/run/overlay/etc,workdir=/run/overlay/etc-work");
    mount("overlay", "etc", &root.join("etc"), Access::ReadWrite, &layers)?;
    mount("tmpfs", "var", &root.join("var"), Access::ReadWrite, "mode=755,size=60%")?;
    mount("tmpfs", "tmp", &root.join("tmp"), Access::ReadWrite, "mode=1777,size=20%")?;
    for place in ["lib", "log", "cache", "opt", "spool"] {
        fs::create_dir_all(root.join("var").join(place))?;
    }
    let var_tmp = root.join("var/tmp");
    fs::create_dir_all(&var_tmp)?;
    fs::set_permissions(&var_tmp, Permissions::from_mode(0o1777))?;
    symlink("/run", root.join("var/run"))?;
    symlink("/run/lock", root.join("var/lock"))?;
    fs::create_dir_all("/run/lock")?;
    // Where the agent will write what BIRD is to do; a unit that copied it would start a program.
    fs::create_dir_all("/run/bird")?;
    fs::copy(root.join("etc/bird/bird.conf"), BIRD_CONFIG).context("the root has no BIRD")?;
    Ok(())
}

/// Writes down who this node is, for the agent and for everything that asks for a host name.
pub(crate) fn write_identity(
    network: &Network,
    identity: &Identity,
    site: &SiteArguments,
) -> Result<()> {
    let fallback = format!("node-{}", network.mac.replace(':', ""));
    let name = network.name.as_deref().unwrap_or(&fallback);
    let node = NodeFile {
        name,
        mac: &network.mac,
        uuid: &identity.uuid,
        serial: &identity.serial,
        address: network.address,
        prefix_len: network.prefix_len,
        gateway: network.gateway,
        interface: &network.interface,
        api: &site.api,
        ca_fingerprint: &site.ca,
        boot: &site.boot,
    };
    write(Path::new(NODE_FILE), &serde_json::to_string_pretty(&node)?)?;
    let etc = Path::new(SYSROOT).join("etc");
    write(&etc.join("hostname"), &format!("{name}\n"))?;
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{} {name}\n", network.address);
    write(&etc.join("hosts"), &hosts)?;
    write(&etc.join("machine-id"), &identity.machine_id(&network.mac))?;
    write(&etc.join("resolv.conf"), &render_resolvers(network))
}

/// Leaves the initramfs for good and becomes systemd.
pub(crate) fn become_systemd() -> Result<()> {
    for place in ["dev", "proc", "sys", "run"] {
        move_mount(&Path::new("/").join(place), &Path::new(SYSROOT).join(place))?;
    }
    // Nobody will see these files again, and their memory is needed.
    let device = fs::symlink_metadata("/")?.dev();
    remove_below(Path::new("/"), device);
    switch_root(Path::new(SYSROOT))?;
    let arguments: [CString; 1] = [SYSTEMD.to_owned()];
    nix::unistd::execv(SYSTEMD, &arguments).context("cannot start systemd")?;
    Ok(())
}

fn render_resolvers(network: &Network) -> String {
    let search = network.domain.iter().map(|domain| format!("search {domain}\n"));
    let servers = network.resolvers.iter().map(|address| format!("nameserver {address}\n"));
    search.chain(servers).collect()
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // A symbolic link in the image must not lead the write elsewhere.
    if path.is_symlink() {
        fs::remove_file(path)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Deletes everything on the file system `device`, and nothing mounted on it.
fn remove_below(dir: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    for path in paths {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            remove_below(&path, device);
            drop(fs::remove_dir(&path));
        } else {
            drop(fs::remove_file(&path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_file_has_the_names_the_agent_reads() {
        let node = NodeFile {
            name: "a-worker",
            mac: "52:54:00:00:00:01",
            uuid: "u",
            serial: "s",
            address: Ipv4Addr::new(10, 0, 0, 2),
            prefix_len: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
            interface: "eth0",
            api: "https://10.0.0.1:6443",
            ca_fingerprint: "f",
            boot: "http://10.0.0.1:8080",
        };
        let text = r#"{"name":"a-worker","mac":"52:54:00:00:00:01","uuid":"u","serial":"s","address":"10.0.0.2","prefixLen":24,"gateway":"10.0.0.1","interface":"eth0","api":"https://10.0.0.1:6443","caFingerprint":"f","boot":"http://10.0.0.1:8080"}"#;
        assert_eq!(serde_json::to_string(&node).unwrap(), text);
    }
}
