//! What the chores need on a Debian host, and how it is installed.

use std::path::Path;

use anyhow::{Context, Result};

use crate::shell;

/// The target of every shipped binary: static, so that one file runs on host and node.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";

/// Debian packages: image build, firmware and emulator, routers, and programs under test.
const PACKAGES: &[&str] = &[
    "ansible-core",
    "bird2",
    "busybox-static",
    "ceph-common",
    "ceph-mon",
    "ceph-osd",
    "containerd",
    "debian-archive-keyring",
    "dnsmasq-base",
    "dpkg",
    "e2fsprogs",
    "frr",
    "ipxe-qemu",
    "iproute2",
    "iputils-ping",
    "isc-dhcp-relay",
    "kmod",
    "mount",
    "musl-tools",
    "nftables",
    "openssl",
    "ovmf",
    "procps",
    "python3-venv",
    "qemu-system-x86",
    "rbd-fuse",
    "runc",
    "sbsigntool",
    "squashfs-tools",
    "tcpdump",
    "util-linux",
    "xz-utils",
];

/// Programs that tests run in a release the host may not have: folder below `target/tools`, file
/// in it, Debian suite, package.
const PROGRAMS: &[(&str, &str, &str, &str)] = &[
    ("kubectl-1.20", "kubectl", "bookworm", "kubernetes-client"),
    ("kubectl-1.32", "kubectl", "trixie", "kubectl"),
    ("kubectl-1.36", "kubectl", "sid", "kubectl"),
    ("etcd-3.5", "etcd", "trixie", "etcd-server"),
];

/// The client of Python programs, from PyPI: folder below `target/tools`, what pip is asked for.
const PYTHON_CLIENT: (&str, &str) = ("python-kubernetes", "kubernetes==37.0.2");

/// Installs missing Debian packages and the Rust target.
pub(crate) fn install() -> Result<()> {
    let missing = missing_packages();
    if !missing.is_empty() {
        shell::run_as_root("apt-get", &["update", "-q"])?;
        let mut args = vec!["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y"];
        args.push("--no-install-recommends");
        args.extend(missing);
        shell::run_as_root("env", &args)?;
        // The packages' daemons would take ports and addresses that racks use.
        for service in ["bird", "frr", "isc-dhcp-relay", "containerd"] {
            drop(shell::run_as_root("systemctl", &["disable", "--now", service]));
        }
    }
    if !shell::read("rustup", &["target", "list", "--installed"])?.contains(TARGET) {
        shell::run("rustup", &["target", "add", TARGET])?;
    }
    Ok(())
}

/// Installs cargo-deny from source when it is not there.
pub(crate) fn install_cargo_deny() -> Result<()> {
    if shell::read("cargo", &["deny", "--version"]).is_err() {
        shell::run("cargo", &["install", "--quiet", "--locked", "cargo-deny"])?;
    }
    Ok(())
}

/// Fetches [`PROGRAMS`] and [`PYTHON_CLIENT`] into `target/tools`.
pub(crate) fn fetch_programs() -> Result<()> {
    fetch_python_client()?;
    for (folder, file, suite, package) in PROGRAMS {
        let home = shell::root().join("target/tools").join(folder);
        if !home.join("usr/bin").join(file).exists() {
            download(&home, suite, package)
                .with_context(|| format!("{package} from Debian {suite}"))?;
        }
    }
    Ok(())
}

/// Makes an environment of its own for the client of Python programs.
fn fetch_python_client() -> Result<()> {
    let (folder, wanted) = PYTHON_CLIENT;
    let home = shell::root().join("target/tools").join(folder);
    let done = home.join("done");
    if done.exists() {
        return Ok(());
    }
    // Debian's Python, whose version is known; a half-made environment is made anew.
    shell::run("/usr/bin/python3", &["-m", "venv", "--clear", &home.to_string_lossy()])?;
    let pip = home.join("bin/pip");
    shell::run(&pip.to_string_lossy(), &["install", "--quiet", "--only-binary=:all:", wanted])
        .with_context(|| format!("{wanted} from PyPI"))?;
    std::fs::write(done, wanted)?;
    Ok(())
}

/// Downloads one package with apt, in a state of its own: the host's suites stay as they are.
fn download(home: &Path, suite: &str, package: &str) -> Result<()> {
    let apt = home.join("apt");
    for dir in ["lists/partial", "archives/partial", "download"] {
        std::fs::create_dir_all(apt.join(dir))?;
    }
    let list = apt.join("sources.list");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let source = format!("deb [signed-by={keyring}] http://deb.debian.org/debian {suite} main\n");
    std::fs::write(&list, source)?;
    let options = [
        format!("Dir::Etc::sourcelist={}", list.display()),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", apt.join("lists").display()),
        format!("Dir::Cache::archives={}", apt.join("archives").display()),
        format!("Dir::Cache::pkgcache={}", apt.join("pkgcache.bin").display()),
        format!("Dir::Cache::srcpkgcache={}", apt.join("srcpkgcache.bin").display()),
        // What the host has installed must not matter.
        "Dir::State::status=/dev/null".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
        // A mirror that stands still is as good: the signature says whose it is.
        "Acquire::Check-Valid-Until=false".to_owned(),
    ];
    let options: Vec<&str> =
        options.iter().flat_map(|option| ["-o", option.as_str()]).chain(["-q"]).collect();
    let update: Vec<&str> = options.iter().copied().chain(["update"]).collect();
    let fetch: Vec<&str> = options.iter().copied().chain(["download", package]).collect();
    let downloads = apt.join("download");
    shell::run_in(&downloads, "apt-get", &update)?;
    shell::run_in(&downloads, "apt-get", &fetch)?;
    let archive = std::fs::read_dir(&downloads)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get downloaded no {package}"))?;
    shell::run("dpkg-deb", &["-x", &archive.to_string_lossy(), &home.to_string_lossy()])
}

fn missing_packages() -> Vec<&'static str> {
    PACKAGES.iter().copied().filter(|package| !is_installed(package)).collect()
}

fn is_installed(package: &str) -> bool {
    shell::read("dpkg-query", &["-W", "-f", "${db:Status-Status}", package])
        .is_ok_and(|status| status.trim() == "installed")
}
