//! How an image becomes a disk of this node: by the kernel's own client, or, where the kernel has
//! none, by Ceph's `rbd-fuse` and a loop device.
//!
//! The second way is for hosts that cannot load `rbd`. There, other clients may ask for the
//! image's lock and get it, so one writer is the controller's promise alone.
//! Nothing is remembered: what is there is read from the kernel each time.

use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ceph::Place;
use csi::Status;
use kernel::disk::{is_mounted, unmount_now};
use kernel::mount::Access;
use kernel::{loopback, rbd};
use runtime::report;
use volumes::rbd::{Grip, Mapped, Monitor, Rbd};

/// Ceph's program that shows images as files.
const PROGRAM: &str = "rbd-fuse";
/// How long it may look for a monitor, in seconds.
const CONNECT_SECONDS: &str = "10";
/// How long it may take to end after its files are gone: it has nothing left to write, but waits
/// half a minute for watchers that are gone themselves.
const END_LIMIT: Duration = Duration::from_secs(75);
const END_PACE: Duration = Duration::from_millis(10);

/// The way from images to disks.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    /// Where files of images are shown, if they must be.
    pub(crate) dir: PathBuf,
    /// The configuration file of Ceph's programs.
    pub(crate) conf: Option<PathBuf>,
}

/// An image that is a disk of this node.
#[derive(Debug)]
pub(crate) enum Disk {
    /// By the kernel's client.
    Mapped(Mapped),
    /// By a program's file and a loop device.
    Looped(PathBuf),
}

impl Disk {
    pub(crate) fn device(&self) -> PathBuf {
        match self {
            Self::Mapped(mapped) => PathBuf::from(mapped.device()),
            Self::Looped(device) => device.clone(),
        }
    }

    /// Makes the disk as large as the image has become.
    pub(crate) fn refresh(&self) -> Result<(), Status> {
        match self {
            Self::Mapped(mapped) => rbd::refresh(mapped).map_err(|err| internal(&err)),
            Self::Looped(device) => loopback::grow(device).map_err(|err| internal(&err)),
        }
    }
}

pub(crate) fn internal<E: std::error::Error + 'static>(err: &E) -> Status {
    Status::internal(report(err))
}

impl Door {
    /// Finds the disk of an image.
    pub(crate) fn find(&self, at: &Place) -> Option<Disk> {
        let same = |one: &Mapped| {
            one.pool == at.pool
                && one.image == at.image
                && one.snap == "-"
                && one.namespace.is_empty()
        };
        let mapped = rbd::list().into_iter().find(same).map(Disk::Mapped);
        mapped.or_else(|| loopback::attached(&self.file(at)).map(Disk::Looped))
    }

    /// Makes an image a disk, or finds it made already. `key` is base64, as secrets have it.
    pub(crate) fn bring(&self, image: &Rbd, key: Option<&str>, grip: Grip) -> Result<Disk, Status> {
        match rbd::load("rbd") {
            Err(err) if !Path::new("/sys/bus/rbd").exists() => {
                self.show(image, key, grip).map_err(|said| {
                    Status::internal(format!("{}; and {PROGRAM} {said}", report(&err)))
                })
            }
            _ => {
                let bad = |_| Status::invalid_argument("the secret's userKey is no Ceph key");
                let secret = key.map(|key| STANDARD.decode(key)).transpose().map_err(bad)?;
                let monitors = resolve(&image.monitors)?;
                let mapped = rbd::map(image, &monitors, secret.as_deref(), grip);
                mapped.map(Disk::Mapped).map_err(|err| internal(&err))
            }
        }
    }

    /// Ends what [`Self::bring`] made; what was never there is no failure.
    pub(crate) fn release(&self, at: &Place) -> Result<(), Status> {
        match self.find(at) {
            Some(Disk::Mapped(mapped)) => rbd::unmap(&mapped).map_err(|err| internal(&err))?,
            Some(Disk::Looped(device)) => {
                loopback::detach(&device).map_err(|err| internal(&err))?;
            }
            None => {}
        }
        let dir = self.file_dir(at);
        if is_mounted(&dir) {
            let server = server(&dir);
            unmount_now(&dir).map_err(|err| internal(&err))?;
            await_end(server)?;
        }
        match fs::remove_dir(&dir) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(internal(&err)),
            _ => Ok(()),
        }
    }

    fn file_dir(&self, at: &Place) -> PathBuf {
        self.dir.join(&at.pool).join(&at.image)
    }

    fn file(&self, at: &Place) -> PathBuf {
        self.file_dir(at).join(&at.image)
    }

    fn show(&self, image: &Rbd, key: Option<&str>, grip: Grip) -> Result<Disk, String> {
        let at = Place { pool: image.pool.clone(), image: image.image.clone(), snap: None };
        if let Some(found) = self.find(&at) {
            return Ok(found);
        }
        let dir = self.file_dir(&at);
        if !is_mounted(&dir) {
            fs::create_dir_all(&dir).map_err(|err| format!("has no directory: {err}"))?;
            self.run(image, key, &dir)?;
        }
        let file = self.file(&at);
        let access = if grip == Grip::Reader { Access::ReadOnly } else { Access::ReadWrite };
        let looped = if file.exists() {
            loopback::attach(&file, access)
                .map_err(|err| format!("serves no disk: {}", report(&err)))
        } else {
            Err("shows no such image".to_owned())
        };
        if looped.is_err() {
            // Nothing half-made stays; the next try begins anew.
            drop(self.release(&at));
        }
        looped.map(Disk::Looped)
    }

    fn run(&self, image: &Rbd, key: Option<&str>, dir: &Path) -> Result<(), String> {
        let mut command = Command::new(PROGRAM);
        let none = Path::new("/dev/null");
        let conf = match &self.conf {
            Some(conf) => Some(conf.as_path()),
            None => (!image.monitors.is_empty()).then_some(none),
        };
        if let Some(conf) = conf {
            command.arg("-c").arg(conf);
        }
        command.args(["-p", &image.pool, "-r", &image.image]).arg(dir);
        // What was written is in the cluster when the program says so: it may be killed.
        let mut words = vec![
            "--rbd-cache=false".to_owned(),
            format!("--client-mount-timeout={CONNECT_SECONDS}"),
            format!("--id={}", image.user),
        ];
        if !image.monitors.is_empty() {
            words.push(format!("-m {}", ceph::monitors(&image.monitors)));
        }
        // Arguments are seen by everyone on the machine, the environment only by its owner.
        words.extend(key.map(|key| format!("--key={key}")));
        command.env("CEPH_ARGS", words.join(" "));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("failed: {status}")),
            Err(err) => Err(format!("cannot be run: {err}")),
        }
    }
}

/// The process that serves the files in a directory.
fn server(dir: &Path) -> Option<PathBuf> {
    let meant = dir.as_os_str().as_encoded_bytes();
    let serves = |entry: &fs::DirEntry| {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        words.next().is_some_and(|program| program.ends_with(PROGRAM.as_bytes()))
            && words.any(|word| word == meant)
    };
    fs::read_dir("/proc").ok()?.flatten().find(serves).map(|entry| entry.path())
}

/// Waits for the end of a program that lets go of an image only then.
fn await_end(process: Option<PathBuf>) -> Result<(), Status> {
    let Some(process) = process else { return Ok(()) };
    let limit = Instant::now() + END_LIMIT;
    while process.join("exe").read_link().is_ok() {
        if Instant::now() > limit {
            return Err(Status::internal(format!("{PROGRAM} does not end")));
        }
        thread::sleep(END_PACE);
    }
    Ok(())
}

fn resolve(monitors: &[String]) -> Result<Vec<SocketAddr>, Status> {
    let known = monitors.iter().filter_map(|one| Monitor::parse(one));
    let found: Vec<SocketAddr> = known
        .filter_map(|one| (one.host.as_str(), one.port).to_socket_addrs().ok()?.next())
        .collect();
    if found.is_empty() {
        return Err(Status::invalid_argument("no monitor has an address"));
    }
    Ok(found)
}
