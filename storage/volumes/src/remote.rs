//! Volumes that are outside the node's own directories: disks and shares of the network, disks
//! of the node, and those of drivers.
//!
//! The same sources stand in pods and in persistent volumes; [`parse_remote`] reads both.
//!
//! Spec: upstream's rbd, cephfs, nfs, iscsi, local and csi sources; local only in persistent
//! volumes, as upstream has it.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use serde_json::{Map, Value};

use crate::rbd::{Monitor, Rbd, parse_rbd};
use crate::source::Problem;

/// The port of iSCSI portals.
const ISCSI_PORT: u16 = 3260;

/// The name of a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretName {
    /// Its namespace; empty for the pod's.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl SecretName {
    pub(crate) fn parse(given: Option<&Value>) -> Option<Self> {
        let given = given?;
        let name = text(given, "name");
        (!name.is_empty()).then(|| Self { namespace: text(given, "namespace"), name })
    }
}

/// A volume outside the node's own directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Its name in paths: that of the persistent volume, else the pod's own.
    pub name: String,
    /// What it is.
    pub kind: RemoteKind,
    /// Nobody here writes.
    pub read_only: bool,
    /// How containers see it.
    pub mode: Mode,
    /// More options for the mount.
    pub mount_options: Vec<String>,
    /// Pods of several nodes may write to it; it is then nobody's to own.
    pub shared: bool,
    /// A persistent volume that one node at a time may write: it is attached before it is used.
    pub attached: bool,
    /// Its claim has less than the volume: the node is to take up the difference.
    pub growth: Option<Growth>,
}

/// A volume that has become larger than its claim knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// The claim's namespace.
    pub namespace: String,
    /// The claim's name.
    pub claim: String,
    /// The volume's size.
    pub bytes: i64,
    /// The same, as the volume writes it.
    pub capacity: String,
}

/// How containers see a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As a directory.
    Filesystem,
    /// As a block device.
    Block,
}

/// What a volume outside the node's own directories is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteKind {
    /// A Ceph image.
    Rbd(Rbd),
    /// A Ceph file system.
    CephFs(CephFs),
    /// An NFS export.
    Nfs(Nfs),
    /// An iSCSI disk.
    Iscsi(Iscsi),
    /// A directory or disk of this node.
    Local(Local),
    /// A volume of a driver.
    Csi(Csi),
}

/// A Ceph file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CephFs {
    /// Monitors.
    pub monitors: Vec<String>,
    /// The directory in it.
    pub path: String,
    /// Who asks, without `client.`.
    pub user: String,
    /// Where the user's key is.
    pub secret: Option<SecretName>,
}

/// An NFS export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nfs {
    /// The server's name or address.
    pub server: String,
    /// The exported path.
    pub path: String,
}

/// An iSCSI disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iscsi {
    /// The first portal and the others, each with its port.
    pub portals: Vec<String>,
    /// The target's name.
    pub iqn: String,
    /// The unit.
    pub lun: u32,
    /// The initiator's interface.
    pub interface: String,
    /// The file system.
    pub fs_type: String,
}

/// A directory or disk of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Its path.
    pub path: String,
    /// The file system, when it is a disk.
    pub fs_type: String,
}

/// A volume of a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csi {
    /// The driver.
    pub driver: String,
    /// The driver's name of the volume; empty for one that lives in the pod alone.
    pub handle: String,
    /// What the driver keeps with it.
    pub attributes: BTreeMap<String, String>,
    /// The file system; empty leaves it to the driver.
    pub fs_type: String,
    /// For bringing it to the node.
    pub stage_secret: Option<SecretName>,
    /// For bringing it to the pod.
    pub publish_secret: Option<SecretName>,
    /// For letting it grow.
    pub expand_secret: Option<SecretName>,
    /// Modes the volume was made for.
    pub access_modes: Vec<String>,
}

impl Remote {
    /// Upstream's directory of this kind below a pod's `volumes`.
    #[must_use]
    pub fn plugin(&self) -> &'static str {
        match self.kind {
            RemoteKind::Rbd(_) => "kubernetes.io~rbd",
            RemoteKind::CephFs(_) => "kubernetes.io~cephfs",
            RemoteKind::Nfs(_) => "kubernetes.io~nfs",
            RemoteKind::Iscsi(_) => "kubernetes.io~iscsi",
            RemoteKind::Local(_) => "kubernetes.io~local-volume",
            RemoteKind::Csi(_) => "kubernetes.io~csi",
        }
    }

    /// The secrets that mounting it takes.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        let (first, second) = match &self.kind {
            RemoteKind::Rbd(rbd) => (rbd.secret.as_ref(), None),
            RemoteKind::CephFs(share) => (share.secret.as_ref(), None),
            RemoteKind::Csi(csi) => (csi.stage_secret.as_ref(), csi.publish_secret.as_ref()),
            RemoteKind::Nfs(_) | RemoteKind::Iscsi(_) | RemoteKind::Local(_) => (None, None),
        };
        first.into_iter().chain(second)
    }
}

/// Parses the remote source among the fields of a volume; `None` when there is none.
///
/// # Errors
///
/// When a field is missing or has a value that cannot be used.
pub fn parse_remote(fields: &Map<String, Value>, name: &str) -> Option<Result<Remote, Problem>> {
    const KINDS: [&str; 6] = ["rbd", "cephfs", "nfs", "iscsi", "local", "csi"];
    let (kind, given) = KINDS.iter().find_map(|kind| Some((*kind, fields.get(*kind)?)))?;
    let parsed = match kind {
        "rbd" => parse_rbd(given).map(RemoteKind::Rbd),
        "cephfs" => parse_cephfs(given).map(RemoteKind::CephFs),
        "nfs" => parse_nfs(given).map(RemoteKind::Nfs),
        "iscsi" => parse_iscsi(given).map(RemoteKind::Iscsi),
        "local" => parse_local(given).map(RemoteKind::Local),
        _ => parse_csi(given).map(RemoteKind::Csi),
    };
    Some(parsed.map(|kind| Remote {
        name: name.to_owned(),
        kind,
        read_only: given.get("readOnly").and_then(Value::as_bool).unwrap_or_default(),
        mode: Mode::Filesystem,
        mount_options: Vec::new(),
        shared: false,
        attached: false,
        growth: None,
    }))
}

fn parse_cephfs(given: &Value) -> Result<CephFs, Problem> {
    let or = |name: &str, default: &str| {
        let found = text(given, name);
        if found.is_empty() { default.to_owned() } else { found }
    };
    let share = CephFs {
        monitors: texts(given, "monitors"),
        path: or("path", "/"),
        user: or("user", "admin"),
        secret: SecretName::parse(given.get("secretRef")),
    };
    if share.monitors.is_empty() {
        return Err(Problem::Missing { field: "cephfs.monitors" });
    }
    for monitor in &share.monitors {
        let wrong = || Problem::Value { field: "cephfs.monitors", value: monitor.clone() };
        Monitor::parse(monitor).ok_or_else(wrong)?;
    }
    absolute("cephfs.path", &share.path)?;
    option_word("cephfs.user", &share.user)?;
    Ok(share)
}

fn parse_nfs(given: &Value) -> Result<Nfs, Problem> {
    let nfs = Nfs { server: text(given, "server"), path: text(given, "path") };
    if nfs.server.is_empty() {
        return Err(Problem::Missing { field: "nfs.server" });
    }
    option_word("nfs.server", &nfs.server)?;
    absolute("nfs.path", &nfs.path)?;
    Ok(nfs)
}

fn parse_iscsi(given: &Value) -> Result<Iscsi, Problem> {
    let first = text(given, "targetPortal");
    let iqn = text(given, "iqn");
    if first.is_empty() {
        return Err(Problem::Missing { field: "iscsi.targetPortal" });
    }
    let named = ["iqn.", "eui.", "naa."].iter().any(|start| iqn.starts_with(start));
    if !named || iqn.contains(|c: char| c.is_whitespace() || c == '/') {
        return Err(Problem::Value { field: "iscsi.iqn", value: iqn });
    }
    let lun = given.get("lun").and_then(Value::as_u64).unwrap_or_default();
    let lun = u32::try_from(lun).ok().filter(|lun| *lun <= 255);
    let lun = lun.ok_or(Problem::Missing { field: "iscsi.lun" })?;
    let mut portals = vec![first];
    portals.extend(texts(given, "portals"));
    for portal in &mut portals {
        option_word("iscsi.targetPortal", portal)?;
        let has_port = portal.rsplit_once(':').is_some_and(|(host, port)| {
            (!host.contains(':') || host.ends_with(']')) && port.parse::<u16>().is_ok()
        });
        if portal.parse::<Ipv6Addr>().is_ok() {
            *portal = format!("[{portal}]:{ISCSI_PORT}");
        } else if !has_port {
            portal.push_str(&format!(":{ISCSI_PORT}"));
        }
    }
    let interface = Some(text(given, "iscsiInterface")).filter(|name| !name.is_empty());
    let fs_type = Some(text(given, "fsType")).filter(|name| !name.is_empty());
    Ok(Iscsi {
        portals,
        iqn,
        lun,
        interface: interface.unwrap_or_else(|| "default".to_owned()),
        fs_type: fs_type.unwrap_or_else(|| "ext4".to_owned()),
    })
}

fn parse_local(given: &Value) -> Result<Local, Problem> {
    let path = text(given, "path");
    absolute("local.path", &path)?;
    let fs_type = Some(text(given, "fsType")).filter(|name| !name.is_empty());
    Ok(Local { path, fs_type: fs_type.unwrap_or_else(|| "ext4".to_owned()) })
}

fn parse_csi(given: &Value) -> Result<Csi, Problem> {
    let driver = text(given, "driver");
    if driver.is_empty() {
        return Err(Problem::Missing { field: "csi.driver" });
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
    if !driver.chars().all(plain) || driver.starts_with('.') {
        return Err(Problem::Value { field: "csi.driver", value: driver });
    }
    let pairs = given.get("volumeAttributes").and_then(Value::as_object);
    let attributes = pairs.into_iter().flatten();
    let attributes = attributes
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    Ok(Csi {
        driver,
        handle: text(given, "volumeHandle"),
        attributes,
        fs_type: text(given, "fsType"),
        stage_secret: SecretName::parse(given.get("nodeStageSecretRef")),
        publish_secret: SecretName::parse(given.get("nodePublishSecretRef")),
        expand_secret: SecretName::parse(given.get("nodeExpandSecretRef")),
        access_modes: Vec::new(),
    })
}

/// A path from the root without a way back up.
fn absolute(field: &'static str, path: &str) -> Result<(), Problem> {
    let good =
        path.starts_with('/') && !path.split('/').any(|step| step == "..") && !path.contains('\0');
    if good { Ok(()) } else { Err(Problem::Value { field, value: path.to_owned() }) }
}

/// A word that cannot add another option to a mount.
fn option_word(field: &'static str, word: &str) -> Result<(), Problem> {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != ',' && c != '\0';
    if word.chars().all(plain) {
        return Ok(());
    }
    Err(Problem::Value { field, value: word.to_owned() })
}

pub(crate) fn text(given: &Value, name: &str) -> String {
    given.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

pub(crate) fn texts(given: &Value, name: &str) -> Vec<String> {
    let list = given.get(name).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|one| Some(one.as_str()?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(given: &Value) -> Result<Remote, String> {
        parse_remote(given.as_object().unwrap(), "v").unwrap().map_err(|err| err.to_string())
    }

    #[test]
    fn shares_and_disks_are_read() {
        let share =
            parse(&json!({"nfs": {"server": "10.0.0.1", "path": "/srv", "readOnly": true}}));
        let share = share.unwrap();
        assert!(share.read_only);
        assert_eq!(share.plugin(), "kubernetes.io~nfs");
        let disk = json!({"iscsi": {"targetPortal": "10.0.0.1", "portals": ["[fd00::1]:3261", "fd00::2"],
            "iqn": "iqn.2001-04.com.example:storage", "lun": 3}});
        let RemoteKind::Iscsi(iscsi) = parse(&disk).unwrap().kind else { panic!() };
        assert_eq!(iscsi.portals, ["10.0.0.1:3260", "[fd00::1]:3261", "[fd00::2]:3260"]);
        assert_eq!((iscsi.lun, &*iscsi.interface, &*iscsi.fs_type), (3, "default", "ext4"));
        let csi = json!({"csi": {"driver": "d.example", "volumeHandle": "h", "volumeAttributes": {"a": "b"},
            "nodeStageSecretRef": {"name": "s", "namespace": "n"}}});
        assert_eq!(parse(&csi).unwrap().secrets().next().unwrap().name, "s");
        let share =
            parse(&json!({"cephfs": {"monitors": ["m"], "secretRef": {"name": "s"}}})).unwrap();
        assert_eq!(share.secrets().count(), 1);
        assert!(parse_remote(json!({"emptyDir": {}}).as_object().unwrap(), "v").is_none());
    }

    #[test]
    fn what_could_smuggle_an_option_is_refused() {
        let rule = "is not a name that can be used here";
        let check = |given: Value, expected: &str| {
            assert_eq!(parse(&given).unwrap_err(), expected);
        };
        let nfs = |server: &str, path: &str| json!({"nfs": {"server": server, "path": path}});
        check(nfs("a,suid", "/"), &format!("nfs.server: \"a,suid\" {rule}"));
        check(nfs("a", "../etc"), &format!("nfs.path: \"../etc\" {rule}"));
        check(nfs("", "/"), "nfs.server: Required value");
        check(
            json!({"cephfs": {"monitors": ["m"], "user": "u,secret=x"}}),
            &format!("cephfs.user: \"u,secret=x\" {rule}"),
        );
        check(json!({"csi": {"driver": "../x"}}), &format!("csi.driver: \"../x\" {rule}"));
        check(json!({"local": {"path": "x"}}), &format!("local.path: \"x\" {rule}"));
        check(
            json!({"iscsi": {"targetPortal": "h", "iqn": "x"}}),
            &format!("iscsi.iqn: \"x\" {rule}"),
        );
    }
}
