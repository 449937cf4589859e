//! What goes wrong in a site's life: programs are killed, strangers are plugged in, an image rots.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster::plan::BootMethod;
use serde_json::Value;

use super::kubectl::{Kubectl, Pod};
use super::light::{self, POD_LIMIT, REPLICAS, SELECTOR};
use super::story::{Story, UP_LIMIT_SECONDS};
use crate::process::{self, Process};
use crate::topology::stable_uuid;
use crate::wait::{Seen, await_until};
use crate::{Place, Rig, Stranger};

/// The machine whose UUID somebody else has, too.
const ORIGINAL: &str = "b-worker";
const TWIN: &str = "twin";
const TWIN_MAC: &str = "52:54:00:00:0f:02";
const STRANGER: &str = "stranger";
const STRANGER_MAC: &str = "52:54:00:00:0f:01";
/// The machine that meets a damaged image.
const VICTIM: &str = "a-worker";
/// From power-on to a machine's first request, on an emulator.
const HEARD_LIMIT: Duration = Duration::from_secs(180);
/// A whole boot, beside machines that work.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// Tells the story.
pub(super) fn run(story: &mut Story) -> Result<()> {
    let image = story.copy_image().context("copying the image, to damage it later")?;
    let rig = story.build_rig_with(strangers(story)).context("building the racks")?;
    story.muster(&story.up_args(&["--limit", UP_LIMIT_SECONDS, "--skip-check"])?)?;
    let kubectl = story.kubectl()?;
    let pods = light::deploy(story, &kubectl)?;

    control_plane_is_killed(story, &rig, &kubectl, &pods)?;
    boot_server_is_killed(story, &rig)?;
    stranger_is_held(story, &rig)?;
    damaged_image_is_refused(story, &rig, &kubectl, &image)?;
    twins_are_quarantined(story, &rig)
}

fn strangers(story: &Story) -> Vec<Stranger> {
    let stranger = |name: &str, mac: &str, uuid: Option<String>, boot| Stranger {
        name: name.to_owned(),
        rack: "b".to_owned(),
        mac: mac.to_owned(),
        uuid,
        boot,
    };
    let uuid = stable_uuid(&story.plan().site, ORIGINAL);
    vec![
        stranger(STRANGER, STRANGER_MAC, None, BootMethod::Bios),
        stranger(TWIN, TWIN_MAC, Some(uuid), BootMethod::UefiHttp),
    ]
}

/// Kills `muster WHAT` on the seed the hard way.
fn kill(rig: &Rig, what: &str) -> Result<()> {
    let is_meant = |process: &Process| {
        let words = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        let program = words.next().unwrap_or_default();
        program.ends_with(b"muster") && words.next() == Some(what.as_bytes())
    };
    let all = process::in_namespace(rig.namespace(Place::Seed)?);
    let meant: Vec<Process> = all.into_iter().filter(is_meant).collect();
    ensure!(!meant.is_empty(), "no muster {what} runs on the seed");
    for process in &meant {
        process.kill();
    }
    await_until(&format!("the end of muster {what}"), HEARD_LIMIT, || {
        let left = meant.iter().filter(|process| process.is_alive()).count();
        Ok(if left == 0 { Seen::There(()) } else { Seen::NotYet(format!("{left} left")) })
    })
}

fn control_plane_is_killed(
    story: &Story,
    rig: &Rig,
    kubectl: &Kubectl,
    pods: &[Pod],
) -> Result<()> {
    kill(rig, "master")?;
    light::everyone_reaches_everyone(story, rig, pods)?;
    light::everyone_knows_the_name(story, rig, pods)?;
    story.ok("with the master killed, pods and names go on")?;
    story.muster(&story.up_args(&["--limit", UP_LIMIT_SECONDS, "--skip-check"])?)?;
    let mut again = kubectl.await_pods(SELECTOR, REPLICAS, POD_LIMIT, |_| true)?;
    let mut before = pods.to_vec();
    before.sort();
    again.sort();
    ensure!(before == again, "pods changed over a restart: {before:?}, then {again:?}");
    for machine in &story.plan().machines {
        let back = |ready: &str| ready == "True";
        kubectl.await_node(&machine.name, "to be Ready", BOOT_LIMIT, back)?;
    }
    story.ok("muster up starts it again; nodes and pods are the same as before")
}

fn boot_server_is_killed(story: &Story, rig: &Rig) -> Result<()> {
    let phases = |machines: &[Value]| -> Vec<String> {
        machines
            .iter()
            .map(|one| format!("{:?} {:?}", one.get("name"), one.get("phases")))
            .collect()
    };
    let before = machines(rig)?;
    kill(rig, "boot")?;
    story.muster(&story.up_args(&["--limit", UP_LIMIT_SECONDS, "--skip-check"])?)?;
    let after = await_until("the boot server", HEARD_LIMIT, || machines(rig).map(Seen::There))?;
    let (before, after) = (phases(&before), phases(&after));
    ensure!(before == after, "the boot server forgot: {before:?}, then {after:?}");
    story.ok("the boot server, killed and started again, remembers every machine")
}

fn stranger_is_held(story: &Story, rig: &Rig) -> Result<()> {
    rig.power_on(STRANGER)?;
    await_until("a discovered machine", HEARD_LIMIT, || {
        let found = machine(rig, STRANGER_MAC)?;
        let is_held = text(&found, "/standing") == "discovered" && reached(&found, "loader");
        Ok(if is_held { Seen::There(()) } else { Seen::NotYet(found.to_string()) })
    })?;
    let console = console(rig, STRANGER)?;
    let found = machine(rig, STRANGER_MAC)?;
    for phase in ["kernel", "image", "verified"] {
        ensure!(!reached(&found, phase), "a machine nobody planned reached {phase}: {console}");
    }
    rig.power_cut(STRANGER)?;
    story.ok("an unknown machine is listed as discovered, and gets no image")
}

fn damaged_image_is_refused(
    story: &Story,
    rig: &Rig,
    kubectl: &Kubectl,
    image: &Path,
) -> Result<()> {
    let root = image.join("root.img");
    flip_byte(&root)?;
    rig.power_cut(VICTIM)?;
    let seen = console(rig, VICTIM)?.len();
    rig.power_on(VICTIM)?;
    let line = await_until("init to refuse the image", BOOT_LIMIT, || {
        let console = console(rig, VICTIM)?;
        let fresh = console.get(seen..).unwrap_or_default();
        let refusal = fresh.lines().find(|line| line.contains("FAILED"));
        Ok(match refusal {
            Some(line) => Seen::There(line.to_owned()),
            None => Seen::NotYet(crate::machine::tail(fresh, 3)),
        })
    })?;
    story.ok(format_args!("a damaged image is refused: {line}"))?;
    flip_byte(&root)?;
    // The node object may still say Ready from the boot before; the boot server knows better.
    let mac = &story.plan().machine(VICTIM).context("the plan's machine")?.mac;
    await_until("a whole boot of the victim", BOOT_LIMIT, || {
        let found = machine(rig, mac)?;
        let booted = reached(&found, "agent");
        Ok(if booted { Seen::There(()) } else { Seen::NotYet(found.to_string()) })
    })?;
    kubectl.await_node(VICTIM, "to come back", BOOT_LIMIT, |ready| ready == "True")?;
    story.ok("once the image is whole again, the machine comes up by itself")
}

fn twins_are_quarantined(story: &Story, rig: &Rig) -> Result<()> {
    rig.power_on(TWIN)?;
    let original = story.plan().machine(ORIGINAL).context("the plan's machine")?;
    for (mac, other) in [(TWIN_MAC, original.mac.as_str()), (original.mac.as_str(), TWIN_MAC)] {
        await_until(&format!("{mac} to be quarantined"), HEARD_LIMIT, || {
            let found = machine(rig, mac)?;
            let cause = text(&found, "/cause");
            let is_named = cause.contains(other) || cause.contains(ORIGINAL);
            let held = text(&found, "/standing") == "quarantined" && is_named;
            Ok(if held { Seen::There(()) } else { Seen::NotYet(found.to_string()) })
        })?;
    }
    rig.power_cut(TWIN)?;
    story.ok("two machines with one UUID are both quarantined, each with the other's name")
}

/// Turns one byte in the middle of a file over; done twice, nothing has happened.
fn flip_byte(path: &Path) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    let middle = SeekFrom::Start(file.metadata()?.len() / 2);
    let mut byte = [0];
    file.seek(middle)?;
    file.read_exact(&mut byte)?;
    file.seek(middle)?;
    file.write_all(&byte.map(|byte| !byte)).with_context(|| format!("writing {}", path.display()))
}

fn console(rig: &Rig, name: &str) -> Result<String> {
    let path: PathBuf = rig.console(name)?;
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn machines(rig: &Rig) -> Result<Vec<Value>> {
    let answer = rig.ask_boot_server("/machines", None)?;
    let view: Value = serde_json::from_str(&answer.body).context("reading /machines")?;
    let machines = view.get("machines").and_then(Value::as_array);
    Ok(machines.context("/machines lists no machines")?.clone())
}

fn machine(rig: &Rig, mac: &str) -> Result<Value> {
    let all = machines(rig)?;
    let found = all.into_iter().find(|one| text(one, "/evidence/mac") == mac);
    found.with_context(|| format!("the boot server knows no machine {mac}"))
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn reached(machine: &Value, phase: &str) -> bool {
    let phases = machine.get("phases").and_then(Value::as_array);
    phases.is_some_and(|phases| phases.iter().any(|one| text(one, "/name") == phase))
}
