//! Ceph images as block devices of the kernel, without a Ceph program on the node.
//!
//! From the in-tree `rbd` volume (pod or persistent volume form) to the line for
//! `/sys/bus/rbd/add_single_major`, from what sysfs shows back to the device, and from an error
//! number to a sentence with the cause. Nothing here opens a file.
//!
//! Spec: upstream's in-tree rbd plugin (fields, defaults, paths); Linux
//! Documentation/ABI/testing/sysfs-bus-rbd. A volume that may be written is mapped `exclusive`,
//! and the kernel refuses a second writer by itself; unless an attachment and its fence already
//! keep others away. Then the kernel lends its lock to whoever grows or snapshots the image.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use crate::remote::{SecretName, text, texts};
use crate::source::Problem;

/// The port of monitors for the protocol the kernel speaks unless told otherwise.
pub const MONITOR_PORT: u16 = 6789;
/// How long the kernel looks for a monitor, in seconds; its own default is a minute.
pub const MAP_SECONDS_MAX: u32 = 10;
/// Below the plugins' directory: where images are mounted once for all pods of a node.
const PLUGIN: &str = "kubernetes.io/rbd";

/// An image in a Ceph cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rbd {
    /// Addresses or names of monitors, each perhaps with a port.
    pub monitors: Vec<String>,
    /// The pool.
    pub pool: String,
    /// The image.
    pub image: String,
    /// Who asks, without `client.`.
    pub user: String,
    /// Where the user's key is; `None`: the cluster asks for none.
    pub secret: Option<SecretName>,
    /// The file system; made when the image is blank.
    pub fs_type: String,
}

/// Parses the `rbd` source of a pod's volume or of a persistent volume.
///
/// # Errors
///
/// When monitors or image are missing, or a name cannot stand in the kernel's line.
pub fn parse_rbd(given: &Value) -> Result<Rbd, Problem> {
    let or = |name: &str, default: &str| {
        let found = text(given, name);
        if found.is_empty() { default.to_owned() } else { found }
    };
    let rbd = Rbd {
        monitors: texts(given, "monitors"),
        pool: or("pool", "rbd"),
        image: text(given, "image"),
        user: or("user", "admin"),
        secret: SecretName::parse(given.get("secretRef")),
        fs_type: or("fsType", "ext4"),
    };
    let wrong =
        |field: &'static str, value: &str| Problem::Value { field, value: value.to_owned() };
    if rbd.monitors.is_empty() {
        return Err(Problem::Missing { field: "rbd.monitors" });
    }
    if rbd.image.is_empty() {
        return Err(Problem::Missing { field: "rbd.image" });
    }
    for (field, value) in
        [("rbd.pool", &rbd.pool), ("rbd.image", &rbd.image), ("rbd.user", &rbd.user)]
    {
        if !is_word(value) {
            return Err(wrong(field, value));
        }
    }
    for monitor in &rbd.monitors {
        Monitor::parse(monitor).ok_or_else(|| wrong("rbd.monitors", monitor))?;
    }
    Ok(rbd)
}

/// May this be a word of the kernel's line, and a part of a path?
fn is_word(name: &str) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !"/,@=".contains(c);
    !name.is_empty() && name != "-" && !name.starts_with('.') && name.chars().all(plain)
}

/// A monitor as people write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    /// Its address or name.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Monitor {
    /// Reads `host`, `host:port`, `[v6]:port` or a bare IPv6 address.
    #[must_use]
    pub fn parse(given: &str) -> Option<Self> {
        if let Ok(address) = given.parse::<IpAddr>() {
            return Some(Self { host: address.to_string(), port: MONITOR_PORT });
        }
        if let Ok(address) = given.parse::<SocketAddr>() {
            return Some(Self { host: address.ip().to_string(), port: address.port() });
        }
        if let Some(inner) = given.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let host = inner.parse::<IpAddr>().ok()?.to_string();
            return Some(Self { host, port: MONITOR_PORT });
        }
        let (host, port) = match given.split_once(':') {
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0)?),
            None => (given, MONITOR_PORT),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let good = !host.is_empty() && !host.starts_with('-') && host.chars().all(plain);
        good.then(|| Self { host: host.to_owned(), port })
    }
}

impl Rbd {
    /// Where the image is mounted once for all pods of the node, below the plugins' directory.
    #[must_use]
    pub fn mount_dir(&self) -> String {
        format!("{PLUGIN}/mounts/{}-image-{}", self.pool, self.image)
    }

    /// Where the raw device is linked for pods that want it so, below the plugins' directory.
    #[must_use]
    pub fn device_dir(&self) -> String {
        format!("{PLUGIN}/volumeDevices/{}-image-{}", self.pool, self.image)
    }

    /// The description under which the user's key is in the kernel's keyring.
    ///
    /// It names the image: a mapper of another cluster on the same node may have a user of the
    /// same name with another key.
    #[must_use]
    pub fn key_name(&self) -> String {
        format!("client.{}.{}.{}", self.user, self.pool, self.image)
    }
}

/// What a mapping is allowed and asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grip {
    /// It reads.
    Reader,
    /// It alone writes; the kernel refuses others, also those that would grow the image.
    Writer,
    /// It writes, and an attachment says that no other node does.
    Attached,
}

/// Renders the line that maps an image.
///
/// `key` is the description of a key in the keyring; the key itself never stands in the line,
/// for sysfs would show it to everyone.
#[must_use]
pub fn render_add(rbd: &Rbd, monitors: &[SocketAddr], key: Option<&str>, grip: Grip) -> String {
    let monitors: Vec<String> = monitors.iter().map(ToString::to_string).collect();
    let mut options = vec![format!("name={}", rbd.user)];
    options.extend(key.map(|key| format!("key={key}")));
    options.push(format!("mount_timeout={MAP_SECONDS_MAX}"));
    // The messenger's port tells the protocol: the old one does not listen on the new port.
    if monitors.iter().all(|monitor| monitor.ends_with(":3300")) {
        options.push("ms_mode=prefer-crc".to_owned());
    }
    match grip {
        Grip::Reader => options.push("ro".to_owned()),
        Grip::Writer => options.push("exclusive".to_owned()),
        Grip::Attached => {}
    }
    format!("{} {} {} {} -", monitors.join(","), options.join(","), rbd.pool, rbd.image)
}

/// Renders the line that ends a mapping; a device in use is refused by the kernel.
#[must_use]
pub fn render_remove(id: u32) -> String {
    id.to_string()
}

/// A mapping as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// The number in `/dev/rbdN`; used again after an unmap, so never kept across one.
    pub id: u32,
    /// The pool.
    pub pool: String,
    /// The namespace in the pool; empty for the default.
    pub namespace: String,
    /// The image.
    pub image: String,
    /// The snapshot; `-` for none.
    pub snap: String,
    /// The kernel client's address and nonce, exactly what a fence takes.
    pub client: String,
    /// The cluster.
    pub cluster: String,
    /// The monitors and options it was mapped with, as written.
    pub config: String,
}

impl Mapped {
    /// The device's file.
    #[must_use]
    pub fn device(&self) -> String {
        format!("/dev/rbd{}", self.id)
    }

    /// Can it be written?
    #[must_use]
    pub fn is_writer(&self) -> bool {
        !self.config.split([' ', ',']).any(|option| option == "ro" || option == "read_only")
    }
}

/// Finds the mapping of an image made through one of these monitors.
///
/// Two clusters may have pools and images of equal names; the monitors tell them apart.
#[must_use]
pub fn find<'a>(all: &'a [Mapped], rbd: &Rbd, monitors: &[SocketAddr]) -> Option<&'a Mapped> {
    let same_cluster = |mapped: &Mapped| {
        let list = mapped.config.split(' ').next().unwrap_or_default();
        let known: Vec<SocketAddr> = list.split(',').filter_map(|one| one.parse().ok()).collect();
        known.is_empty() || known.iter().any(|one| monitors.contains(one))
    };
    all.iter().find(|mapped| {
        mapped.pool == rbd.pool
            && mapped.image == rbd.image
            && mapped.namespace.is_empty()
            && mapped.snap == "-"
            && same_cluster(mapped)
    })
}

/// Says what an error number of the kernel means for a mapping.
#[must_use]
pub fn explain(errno: i32) -> &'static str {
    match errno {
        1 | 13 => "the cluster refuses the user: a wrong key, or rights that are too small",
        2 => "there is no such image or pool",
        6 => "the image has a feature that the kernel does not know",
        16 => "the device is in use",
        30 => "another client writes to the image and does not let go",
        108 => "the cluster has fenced this node",
        110 => "no monitor answers: a wrong address, port or protocol",
        126 => "the user's key is not in the kernel's keyring",
        _ => "the kernel refuses",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn image() -> Rbd {
        parse_rbd(&json!({"monitors": ["10.38.2.1", "10.38.2.2:6790"], "image": "db"})).unwrap()
    }

    #[test]
    fn the_old_shape_is_read_with_its_defaults() {
        let rbd = image();
        assert_eq!((&*rbd.pool, &*rbd.user, &*rbd.fs_type), ("rbd", "admin", "ext4"));
        assert_eq!(rbd.mount_dir(), "kubernetes.io/rbd/mounts/rbd-image-db");
        assert_eq!(rbd.device_dir(), "kubernetes.io/rbd/volumeDevices/rbd-image-db");
        let given = json!({"monitors": ["a"], "image": "i", "pool": "p", "user": "u", "fsType": "xfs",
            "secretRef": {"name": "s", "namespace": "n"}, "readOnly": true});
        let rbd = parse_rbd(&given).unwrap();
        assert_eq!(rbd.secret.unwrap(), SecretName { namespace: "n".into(), name: "s".into() });
        assert_eq!((&*rbd.pool, &*rbd.user, &*rbd.fs_type), ("p", "u", "xfs"));
    }

    #[test]
    fn what_the_kernels_line_cannot_hold_is_refused() {
        let check = |given: Value, expected: &str| {
            assert_eq!(parse_rbd(&given).unwrap_err().to_string(), expected);
        };
        check(json!({"image": "i"}), "rbd.monitors: Required value");
        check(json!({"monitors": ["a"]}), "rbd.image: Required value");
        let rule = "is not a name that can be used here";
        for name in ["a b", "a,ro", "../x", "a\nb", "a/b", "-", "x@snap"] {
            let given = json!({"monitors": ["a"], "image": name});
            check(given, &format!("rbd.image: {name:?} {rule}"));
        }
        let given = json!({"monitors": ["a"], "image": "i", "user": "u,secret=x"});
        check(given, &format!("rbd.user: \"u,secret=x\" {rule}"));
        for monitor in ["a b", "a,b", "h:x", "h:0", "[::1", "", "-x"] {
            let given = json!({"monitors": [monitor], "image": "i"});
            check(given, &format!("rbd.monitors: {monitor:?} {rule}"));
        }
    }

    #[test]
    fn monitors_are_read_as_people_write_them() {
        let check = |given: &str, host: &str, port: u16| {
            assert_eq!(Monitor::parse(given), Some(Monitor { host: host.to_owned(), port }));
        };
        check("10.0.0.1", "10.0.0.1", 6789);
        check("10.0.0.1:3300", "10.0.0.1", 3300);
        check("mon-a.site:6790", "mon-a.site", 6790);
        check("fd00::1", "fd00::1", 6789);
        check("[fd00::1]", "fd00::1", 6789);
        check("[fd00::1]:3300", "fd00::1", 3300);
    }

    #[test]
    fn lines_are_as_the_kernel_reads_them() {
        let two: [SocketAddr; 2] =
            ["10.38.2.1:6789".parse().unwrap(), "[fd00::1]:6789".parse().unwrap()];
        assert_eq!(
            render_add(&image(), &two, Some("client.admin.rbd.db"), Grip::Writer),
            "10.38.2.1:6789,[fd00::1]:6789 \
             name=admin,key=client.admin.rbd.db,mount_timeout=10,exclusive rbd db -"
        );
        let new = ["10.38.2.1:3300".parse().unwrap()];
        assert_eq!(
            render_add(&image(), &new, None, Grip::Reader),
            "10.38.2.1:3300 name=admin,mount_timeout=10,ms_mode=prefer-crc,ro rbd db -"
        );
        assert_eq!(render_remove(7), "7");
    }

    #[test]
    fn the_device_is_found_by_image_and_cluster_never_by_number() {
        let mapped = |id, image: &str, snap: &str, config: &str| Mapped {
            id,
            pool: "rbd".into(),
            namespace: String::new(),
            image: image.into(),
            snap: snap.into(),
            client: "10.38.2.9:0/77".into(),
            cluster: "c".into(),
            config: config.into(),
        };
        let all = [
            mapped(0, "other", "-", "10.38.2.1:6789 name=admin"),
            mapped(1, "db", "backup", "10.38.2.1:6789 name=admin,ro"),
            mapped(2, "db", "-", "10.99.0.1:6789 name=admin"),
            mapped(3, "db", "-", "10.38.2.2:6789,10.38.2.1:6789 name=admin,ro rbd db -"),
        ];
        let ours = ["10.38.2.1:6789".parse().unwrap()];
        let found = find(&all, &image(), &ours).unwrap();
        assert_eq!((found.id, found.device()), (3, "/dev/rbd3".to_owned()));
        assert!(!found.is_writer() && all[2].is_writer());
        assert_eq!(find(&all[..2], &image(), &ours), None);
    }
}
