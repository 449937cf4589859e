//! Network namespaces for tests, without touching the host: the test runs itself again inside
//! user, network, mount and process namespaces of its own, so root is not needed and nothing is
//! left behind.
//!
//! Included by path from the tests of several crates.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests: clippy's leave for tests does not reach them"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kernel::netns::Namespace;

const INSIDE: &str = "MUSTER_TEST_INSIDE";

/// Runs `body` with the machine to itself, or says why it cannot.
pub(crate) fn alone(test: &str, programs: &[&str], body: impl FnOnce()) {
    alone_in(&["--user", "--map-root-user"], test, programs, body);
}

/// As [`alone`], for programs that change to users of their own: needs to be root.
pub(crate) fn alone_with_users(test: &str, programs: &[&str], body: impl FnOnce()) {
    alone_in(&[], test, programs, body);
}

fn alone_in(users: &[&str], test: &str, programs: &[&str], body: impl FnOnce()) {
    if std::env::var(INSIDE).as_deref() == Ok(test) {
        shell(
            "mount -t tmpfs tmpfs /run && mkdir -p /run/netns && { mount -t proc proc /proc || true; } && ip link set lo up",
        );
        body();
        return;
    }
    for program in programs {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
        if !found.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: {program} is not installed here");
            return;
        }
    }
    let namespaces: Vec<&str> =
        users.iter().copied().chain(["--net", "--mount", "--pid", "--fork"]).collect();
    let possible = Command::new("unshare").args(&namespaces).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no namespaces of our own here");
        return;
    }
    let status = Command::new("unshare")
        .args(&namespaces)
        .arg("--kill-child")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, test)
        .status()
        .unwrap();
    assert!(status.success(), "the test failed inside its namespaces: {status}");
}

/// Runs a shell line that must succeed.
#[track_caller]
pub(crate) fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The path of a namespace made by `ip netns add`.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Makes a namespace with its loopback link up.
pub(crate) fn namespace(name: &str) -> Namespace {
    shell(&format!("ip netns add {name} && nsenter --net=/run/netns/{name} ip link set lo up"));
    Namespace::open(&path(name)).unwrap()
}

/// Runs a shell line inside a namespace.
#[track_caller]
pub(crate) fn shell_in(name: &str, line: &str) -> String {
    shell(&format!("nsenter --net=/run/netns/{name} sh -ec '{line}'"))
}

/// Waits until `state` is true; on a miss prints what was seen last.
#[track_caller]
pub(crate) fn await_until(
    what: &str,
    limit: Duration,
    mut state: impl FnMut() -> Result<(), String>,
) -> Duration {
    let start = Instant::now();
    loop {
        match state() {
            Ok(()) => return start.elapsed(),
            Err(last) if start.elapsed() > limit => panic!("{what} after {limit:?}: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A process that ends with its owner.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    /// As a power cut: no goodbye.
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Connects from one namespace to a listener in another; the listener sees this address.
pub(crate) fn connects(
    from: &Namespace,
    to: &Namespace,
    address: Ipv4Addr,
) -> Result<Ipv4Addr, String> {
    match connects_any(from, to, address.into())? {
        IpAddr::V4(peer) => Ok(peer),
        IpAddr::V6(peer) => Err(format!("unexpected peer {peer}")),
    }
}

/// The same for either family.
pub(crate) fn connects_any(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
) -> Result<IpAddr, String> {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let listener = to
        .run(|| TcpListener::bind((any, 0)))
        .map_err(|err| err.to_string())?
        .map_err(|err| format!("listen: {err}"))?;
    let port = listener.local_addr().map_err(|err| err.to_string())?.port();
    let target = SocketAddr::from((address, port));
    let stream = from
        .run(|| TcpStream::connect_timeout(&target, Duration::from_millis(700)))
        .map_err(|err| err.to_string())?
        .map_err(|err| format!("connect {target}: {err}"))?;
    let (_, peer) = listener.accept().map_err(|err| err.to_string())?;
    drop(stream);
    Ok(peer.ip())
}
