//! Shares of the network in the kernel's words: NFS exports and Ceph file systems.
//!
//! How a share is mounted, what an error number means to whoever asked for it, which server is
//! behind a mount, and how an NFS server is asked whether it is there. Nothing is sent here.
//!
//! Spec: nfs(5), mount.ceph(8), RFC 5531 (the call without arguments).

use std::net::{IpAddr, SocketAddr};

use crate::disk::Options;

/// Where NFS servers listen.
pub const NFS_PORT: u16 = 2049;
/// How long a mount of a Ceph file system may take, in seconds, unless the volume says otherwise.
const CEPH_LIMIT_SECONDS: u32 = 30;
/// NFS among the programs of remote calls.
const NFS_PROGRAM: u32 = 100_003;
/// What a mount reports when the server speaks no such version.
const NO_SUCH_VERSION: i32 = 93;

/// One way to mount a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The kernel's file system.
    pub kind: &'static str,
    /// What is mounted.
    pub source: String,
    /// The file system's own options.
    pub data: String,
}

/// The ways to mount an NFS export, to be tried one after another while [`is_other_version`].
///
/// The kernel needs the server's address, which mount.nfs would find; `own` is our address
/// towards it. Where the options name no version, the newest up to 4.1 that the server speaks is
/// used. Not 4.2, as mount.nfs does: servers that are common in clusters (NFS-Ganesha 4 and older)
/// offer it and answer its reads with zeros, and nothing tells. Who wants it names it. Version 3
/// goes without locks of the network, for no lock daemon runs on the node.
#[must_use]
pub fn plan_nfs(server: IpAddr, own: IpAddr, path: &str, given: &Options) -> Vec<Attempt> {
    let host = if server.is_ipv6() { format!("[{server}]") } else { server.to_string() };
    let asked = |word: &&String| word.starts_with("vers=") || word.starts_with("nfsvers=");
    let asked = given.data.iter().find(asked).and_then(|word| word.split('=').nth(1));
    let minor = given.data.iter().any(|word| word.starts_with("minorversion="));
    let versions = match asked {
        None => vec!["4.1", "4.0", "3"],
        Some("4") if !minor => vec!["4.1", "4.0"],
        Some(version) => vec![version],
    };
    let attempt = |version: &&str| {
        let old = version.starts_with('3');
        let mut data = vec![format!("addr={server}")];
        if old {
            data.push("nolock".to_owned());
        } else {
            data.push(format!("clientaddr={own}"));
        }
        data.push(format!("vers={version}"));
        let rest = given.data.iter().filter(|word| {
            !word.starts_with("vers=") && !word.starts_with("nfsvers=") && !data.contains(word)
        });
        let rest: Vec<String> = rest.cloned().collect();
        data.extend(rest);
        let kind = if old { "nfs" } else { "nfs4" };
        Attempt { kind, source: format!("{host}:{path}"), data: data.join(",") }
    };
    versions.iter().map(attempt).collect()
}

/// Tells whether an error of a mount says that the server speaks another version.
#[must_use]
pub fn is_other_version(errno: i32) -> bool {
    errno == NO_SUCH_VERSION
}

/// How a Ceph file system is mounted.
#[must_use]
pub fn plan_cephfs(
    monitors: &[SocketAddr],
    path: &str,
    user: &str,
    key: Option<&str>,
    given: &Options,
) -> Attempt {
    let list: Vec<String> = monitors.iter().map(ToString::to_string).collect();
    let mut data = vec![format!("name={user}")];
    data.extend(key.map(|key| format!("key={key}")));
    if !given.data.iter().any(|word| word.starts_with("mount_timeout=")) {
        data.push(format!("mount_timeout={CEPH_LIMIT_SECONDS}"));
    }
    data.extend(given.data.iter().cloned());
    let source = format!("{}:{path}", list.join(","));
    Attempt { kind: "ceph", source, data: data.join(",") }
}

/// What an error number of a mount means to whoever asked for the share.
#[must_use]
pub fn explain(kind: &str, errno: i32) -> &'static str {
    match (kind, errno) {
        ("ceph", 1 | 13) => {
            "the cluster does not let this user in: see the user, the key and its rights"
        }
        ("ceph", 2) => "there is no such directory or file system in the cluster",
        ("ceph", 110) => "no monitor answers",
        // The kernel says the same of both.
        ("ceph", 113) => {
            "no metadata server answers, or the cluster does not let this user in: see the user and its key"
        }
        ("ceph", 5) => "no metadata server answers",
        (_, 1 | 13) => "the server does not let this node in",
        (_, 2) => "the server has no such export",
        (_, 5) => "the server broke off",
        (_, 19) => "this node's kernel has no such file system",
        (_, 20) => "it is no directory",
        (_, 22) => "the kernel does not take one of the mount options",
        (_, NO_SUCH_VERSION) => "the server does not speak this version of NFS",
        (_, 101 | 113) => "there is no way to the server",
        (_, 110) => "the server does not answer",
        (_, 111) => "nothing listens there",
        (_, 116) => "the export was taken away",
        _ => "the kernel refused",
    }
}

/// Where an NFS server can be asked whether it is there; `None` where calls go another way.
#[must_use]
pub fn nfs_port(given: &Options) -> Option<u16> {
    port_in(given.data.iter().map(String::as_str))
}

fn port_in<'a>(words: impl Iterator<Item = &'a str>) -> Option<u16> {
    let mut port = NFS_PORT;
    for word in words {
        match word.split_once('=') {
            Some(("port", given)) => port = given.parse().ok().filter(|port| *port != 0)?,
            Some(("proto", given)) if !given.starts_with("tcp") => return None,
            _ if matches!(word, "udp" | "rdma") => return None,
            _ => {}
        }
    }
    Some(port)
}

/// The servers behind a mount as the kernel lists it; none where that cannot be told.
#[must_use]
pub fn servers_of(kind: &str, source: &str, options: &str) -> Vec<SocketAddr> {
    match kind {
        "nfs" | "nfs4" => {
            let host = match source.strip_prefix('[') {
                Some(rest) => rest.split_once(']').map(|(host, _)| host),
                None => source.split_once(':').map(|(host, _)| host),
            };
            let Some(Ok(host)) = host.map(str::parse::<IpAddr>) else { return Vec::new() };
            let port = port_in(options.split(','));
            port.map(|port| SocketAddr::new(host, port)).into_iter().collect()
        }
        "ceph" => {
            let list = source.split_once(":/").map_or(source, |(list, _)| list);
            list.split(',').filter_map(|one| one.parse().ok()).collect()
        }
        _ => Vec::new(),
    }
}

/// A call of NFS that asks for nothing but an answer, as it goes over TCP.
#[must_use]
pub fn null_call(id: u32) -> Vec<u8> {
    // The last fragment of 40 bytes; a call (0) of RPC 2: program, version, procedure 0, without
    // credentials and verifier.
    let words = [0x8000_0028, id, 0, 2, NFS_PROGRAM, 4, 0, 0, 0, 0, 0];
    words.into_iter().flat_map(u32::to_be_bytes).collect()
}

/// Tells whether bytes begin with an answer to the call `id`; that it speaks another version is
/// an answer too.
#[must_use]
pub fn is_answer(bytes: &[u8], id: u32) -> bool {
    bytes.get(4..8) == Some(&id.to_be_bytes()[..]) && bytes.get(8..12) == Some(&[0, 0, 0, 1][..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::split_options;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn options(words: &[&str]) -> Options {
        split_options(&words.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn exports_are_mounted_in_the_kernels_words() {
        let check = |server: &str, words: &[&str], expected: &[&str]| {
            let all = plan_nfs(address(server), address("10.0.0.9"), "/srv", &options(words));
            let all: Vec<String> =
                all.iter().map(|one| format!("{} {} {}", one.kind, one.source, one.data)).collect();
            assert_eq!(all, expected);
        };
        let four = |minor: u8| {
            format!("nfs4 10.0.0.1:/srv addr=10.0.0.1,clientaddr=10.0.0.9,vers=4.{minor}")
        };
        check(
            "10.0.0.1",
            &[],
            &[&four(1), &four(0), "nfs 10.0.0.1:/srv addr=10.0.0.1,nolock,vers=3"],
        );
        check("10.0.0.1", &["nfsvers=4"], &[&four(1), &four(0)]);
        check("10.0.0.1", &["nfsvers=4.2"], &[&four(2)]);
        check(
            "10.0.0.1",
            &["nfsvers=3", "nolock"],
            &["nfs 10.0.0.1:/srv addr=10.0.0.1,nolock,vers=3"],
        );
        check(
            "fd00::1",
            &["nfsvers=4.1", "hard"],
            &["nfs4 [fd00::1]:/srv addr=fd00::1,clientaddr=10.0.0.9,vers=4.1,hard"],
        );
    }

    #[test]
    fn ceph_file_systems_are_mounted_in_the_kernels_words() {
        let monitors = ["10.0.0.1:6789".parse().unwrap(), "[fd00::1]:6789".parse().unwrap()];
        let one = plan_cephfs(&monitors, "/a", "k8s", Some("key"), &Options::default());
        assert_eq!(one.source, "10.0.0.1:6789,[fd00::1]:6789:/a");
        assert_eq!(one.data, "name=k8s,key=key,mount_timeout=30");
        let one = plan_cephfs(&monitors, "/", "k8s", None, &options(&["mount_timeout=5"]));
        assert_eq!(one.data, "name=k8s,mount_timeout=5");
    }

    #[test]
    fn servers_are_found_behind_mounts() {
        let check = |kind: &str, source: &str, options: &str, expected: &[&str]| {
            let all: Vec<String> =
                servers_of(kind, source, options).iter().map(ToString::to_string).collect();
            assert_eq!(all, expected, "{kind} {source} {options}");
        };
        check("nfs4", "10.0.0.1:/srv", "rw,vers=4.2,proto=tcp,addr=10.0.0.1", &["10.0.0.1:2049"]);
        check("nfs", "10.0.0.1:/a:/b", "rw,port=20049,proto=tcp", &["10.0.0.1:20049"]);
        check("nfs4", "[fd00::1]:/srv", "rw,proto=tcp6", &["[fd00::1]:2049"]);
        check("nfs", "10.0.0.1:/srv", "rw,proto=udp", &[]);
        check("nfs4", "filer:/srv", "rw", &[]);
        let two = ["10.0.0.1:6789", "[fd00::2]:6789"];
        check("ceph", "10.0.0.1:6789,[fd00::2]:6789:/team", "rw,name=x", &two);
        check("ext4", "/dev/rbd0", "rw", &[]);
        assert_eq!(nfs_port(&options(&["port=12049"])), Some(12049));
        assert_eq!(nfs_port(&options(&["rdma"])), None);
    }

    #[test]
    fn one_number_means_what_its_file_system_means_by_it() {
        assert_eq!(explain("nfs4", 2), "the server has no such export");
        assert_eq!(explain("ceph", 2), "there is no such directory or file system in the cluster");
        // The kernel's client says this of a key that the monitors refuse.
        assert!(explain("ceph", 113).contains("see the user and its key"));
        assert_eq!(explain("nfs4", 113), "there is no way to the server");
    }

    #[test]
    fn an_answer_is_told_from_noise() {
        let call = null_call(0x0102_0304);
        assert_eq!(call.len(), 44);
        assert!(!is_answer(&call, 0x0102_0304), "our own call");
        let answer = [0x80, 0, 0, 24, 1, 2, 3, 4, 0, 0, 0, 1, 0, 0, 0, 0];
        assert!(is_answer(&answer, 0x0102_0304));
        assert!(!is_answer(&answer, 5));
        for cut in 0..12 {
            assert!(!is_answer(&answer[..cut], 0x0102_0304), "{cut}");
        }
    }
}
