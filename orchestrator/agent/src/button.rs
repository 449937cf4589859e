//! Switches the machine off when its power button is pressed, or a BMC asks as if it were.
//!
//! A node has nobody else for it: there is no logind. Where there is one, the button is its. The
//! machine's own manager is asked to end everything in order, so pods end and volumes are given
//! back first. One task; it waits for the kernel's input events.
//!
//! Spec: Linux Documentation/input/input.rst (`struct input_event`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use kernel::module::Modules;
use nix::fcntl::OFlag;
use runtime::report;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::Shared;

/// What shows the button, and what lets programs read it.
const MODULES: [&str; 2] = ["button", "evdev"];
/// Where the modules of each kernel are.
const TREES: &str = "/usr/lib/modules";
/// Where the kernel lists what can be pressed, and what it calls this button.
const INPUTS: &str = "/sys/class/input";
const BUTTON: &str = "Power Button";
/// There while logind runs.
const LOGIND: &str = "/run/systemd/seats";
/// linux/input-event-codes.h.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;
/// A `struct input_event` of a 64-bit kernel, and its time, which comes first.
const EVENT_BYTES: usize = 24;
const TIME_BYTES: usize = 16;

/// Waits for the button until `stop`.
pub(crate) async fn run(stop: CancellationToken, shared: Arc<Shared>) {
    if Path::new(LOGIND).exists() {
        return stop.cancelled().await;
    }
    let found = tokio::task::spawn_blocking(|| {
        load();
        buttons(Path::new(INPUTS), Path::new("/dev/input"))
    });
    let all = found.await.unwrap_or_default();
    let mut waiting = JoinSet::new();
    for file in all {
        // A device of events is read as a pipe is: it blocks nobody and says when there is more.
        if let Ok(events) = Receiver::from_file_unchecked(file) {
            waiting.spawn(pressed(events));
        }
    }
    tokio::select! { biased;
        () = stop.cancelled() => return,
        Some(Ok(Ok(()))) = waiting.join_next() => {}
        else => return stop.cancelled().await,
    }
    info!("the power button is pressed; the machine goes off");
    let asked = Command::new(&shared.config.machine_state).arg("poweroff").output().await;
    if let Err(err) = asked {
        warn!(err = report(&err), "cannot ask the machine to go off");
    }
    stop.cancelled().await;
}

fn load() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let Ok(mut modules) = Modules::open_names(&Path::new(TREES).join(release.trim())) else {
        return;
    };
    for name in MODULES {
        if let Err(err) = modules.load(name) {
            debug!(name, err = report(&err), "the power button may not be heard");
        }
    }
}

/// The devices of power buttons; a machine may have two, by different ways to the same one.
fn buttons(inputs: &Path, devices: &Path) -> Vec<File> {
    let Ok(entries) = fs::read_dir(inputs) else { return Vec::new() };
    let open = |entry: fs::DirEntry| {
        let name = fs::read_to_string(entry.path().join("device/name")).ok()?;
        let is_event = entry.file_name().to_string_lossy().starts_with("event");
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let open = || options.open(devices.join(entry.file_name())).ok();
        (is_event && name.trim() == BUTTON).then(open).flatten()
    };
    entries.flatten().filter_map(open).collect()
}

async fn pressed(mut events: Receiver) -> io::Result<()> {
    let mut bytes = [0; EVENT_BYTES * 16];
    loop {
        let read = events.read(&mut bytes).await?;
        if is_press(bytes.get(..read).unwrap_or_default()) {
            return Ok(());
        }
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Is the button pressed in one of these events?
fn is_press(events: &[u8]) -> bool {
    events.chunks_exact(EVENT_BYTES).any(|event| match event.get(TIME_BYTES..) {
        Some(&[k0, k1, c0, c1, v0, v1, v2, v3]) => {
            u16::from_ne_bytes([k0, k1]) == EV_KEY
                && u16::from_ne_bytes([c0, c1]) == KEY_POWER
                && i32::from_ne_bytes([v0, v1, v2, v3]) == PRESSED
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let parts = [&[7; TIME_BYTES][..], &kind.to_ne_bytes(), &code.to_ne_bytes()];
        [&parts.concat()[..], &value.to_ne_bytes()].concat()
    }

    #[test]
    fn only_a_press_of_the_power_button_counts() {
        let (press, release) = (event(EV_KEY, KEY_POWER, PRESSED), event(EV_KEY, KEY_POWER, 0));
        let sync = event(0, 0, 0);
        assert!(is_press(&press) && is_press(&[&sync[..], &press].concat()));
        for other in [&release[..], &sync, &event(EV_KEY, 30, 1), &press[..EVENT_BYTES - 1], &[]] {
            assert!(!is_press(other), "{other:?}");
        }
    }

    #[test]
    fn buttons_are_found_by_their_name() {
        let dir = tempfile::tempdir().unwrap();
        let (inputs, devices) = (dir.path().join("input"), dir.path().join("dev"));
        fs::create_dir(&devices).unwrap();
        for (name, is) in [("event0", BUTTON), ("event1", "Sleep Button"), ("input2", BUTTON)] {
            fs::create_dir_all(inputs.join(name).join("device")).unwrap();
            fs::write(inputs.join(name).join("device/name"), format!("{is}\n")).unwrap();
            fs::write(devices.join(name), "").unwrap();
        }
        assert_eq!(buttons(&inputs, &devices).len(), 1);
        assert!(buttons(&dir.path().join("none"), &devices).is_empty());
    }
}
