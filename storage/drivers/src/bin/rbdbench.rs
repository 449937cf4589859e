//! What our way to a mounted image costs beside the bare kernel's.
//!
//! `rbdbench --monitor A --image I --key-file F [--rounds N]` maps and mounts one image again and
//! again, in turn by the line and the system call alone (the key in the line, the device the
//! newest there is, nothing looked at) and as the node does it (key in the keyring, what is mapped
//! already, what is on the disk, the device found by image and cluster). Printed are the median
//! times of both and their ratio.
//!
//! It runs on a machine whose kernel knows Ceph images, as root, on an image nobody else has; the
//! rig's story `database` runs it on a node.
//!
//! *Limits*: both make a new client of the cluster each time; on a node with volumes there is one.

#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use kernel::disk::{mount_disk, unmount_now};
use kernel::rbd;
use nix::mount::{MsFlags, mount, umount};
use volumes::disk::Options;
use volumes::rbd::{Grip, Rbd};

/// Where the kernel takes lines.
const BUS: &str = "/sys/bus/rbd";
const FS_TYPE: &str = "ext4";

#[derive(Parser)]
struct Arguments {
    /// A monitor; may be given several times.
    #[arg(long = "monitor", required_unless_present = "install")]
    monitors: Vec<SocketAddr>,
    /// The pool.
    #[arg(long, default_value = "rbd")]
    pool: String,
    /// The image: a file system is made on it when it is blank.
    #[arg(long, default_value = "bench")]
    image: String,
    /// The user.
    #[arg(long, default_value = "admin")]
    user: String,
    /// A file with the user's key.
    #[arg(long, default_value = "/run/rbdbench.key")]
    key_file: PathBuf,
    /// How often each way is taken.
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Where the image is mounted.
    #[arg(long, default_value = "/run/rbdbench.mount")]
    dir: PathBuf,
    /// Copies itself there and does nothing else: an image of it has no other program.
    #[arg(long, value_name = "PATH")]
    install: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.install {
        fs::copy(std::env::current_exe()?, path).context("copying itself")?;
        return Ok(());
    }
    let key = fs::read_to_string(&arguments.key_file).context("reading the key")?;
    let key = key.trim().to_owned();
    fs::create_dir_all(&arguments.dir).context("making the mount's directory")?;
    // The first loads modules and makes the file system.
    ours(&arguments, &key)?;
    let (mut bare_times, mut our_times) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        bare_times.push(bare(&arguments, &key)?);
        our_times.push(ours(&arguments, &key)?);
    }
    let (bare, ours) = (median(&mut bare_times), median(&mut our_times));
    let mut out = std::io::stdout();
    writeln!(out, "bare sysfs write and mount: {:.1} ms", bare.as_secs_f64() * 1e3)?;
    writeln!(out, "map and mount as the node does: {:.1} ms", ours.as_secs_f64() * 1e3)?;
    writeln!(out, "ratio: {:.2}", ours.as_secs_f64() / bare.as_secs_f64())?;
    Ok(())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn image(arguments: &Arguments) -> Rbd {
    Rbd {
        monitors: Vec::new(),
        pool: arguments.pool.clone(),
        image: arguments.image.clone(),
        user: arguments.user.clone(),
        secret: None,
        fs_type: FS_TYPE.to_owned(),
    }
}

/// The way of the node.
fn ours(arguments: &Arguments, key: &str) -> Result<Duration> {
    let secret = STANDARD.decode(key).context("the key")?;
    let (image, dir) = (image(arguments), &arguments.dir);
    let start = Instant::now();
    let mapped = rbd::map(&image, &arguments.monitors, Some(&secret), Grip::Attached)?;
    mount_disk(Path::new(&mapped.device()), dir, FS_TYPE, &Options::default())?;
    let took = start.elapsed();
    unmount_now(dir)?;
    rbd::unmap(&mapped)?;
    Ok(took)
}

/// The line and the call alone.
fn bare(arguments: &Arguments, key: &str) -> Result<Duration> {
    let Arguments { monitors, pool, image, user, dir, .. } = arguments;
    let monitors: Vec<String> = monitors.iter().map(ToString::to_string).collect();
    let line = format!("{} name={user},secret={key} {pool} {image} -", monitors.join(","));
    let start = Instant::now();
    fs::write(format!("{BUS}/add_single_major"), line).context("mapping")?;
    let id = newest()?;
    let device = PathBuf::from(format!("/dev/rbd{id}"));
    mount(Some(&device), dir, Some(FS_TYPE), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting {}", device.display()))?;
    let took = start.elapsed();
    umount(dir).context("unmounting")?;
    fs::write(format!("{BUS}/remove_single_major"), id.to_string()).context("unmapping")?;
    Ok(took)
}

/// The mapping with the highest number, which is the newest as long as nobody else maps.
fn newest() -> Result<u32> {
    let all = fs::read_dir(format!("{BUS}/devices")).context("reading what is mapped")?;
    let ids = all.flatten().filter_map(|one| one.file_name().to_str()?.parse().ok());
    let id: Option<u32> = ids.max();
    ensure!(id.is_some(), "nothing is mapped");
    id.context("a mapping")
}
