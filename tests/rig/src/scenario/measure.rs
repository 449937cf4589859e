//! How long machines take, and what the least possible would be.
//!
//! The least is a *bare boot*: the same machines, firmware, loader, kernel and initramfs, by the
//! same boot server, until an init that prints one line and switches off (`muster.probe=bare` on
//! the kernel's command line). Figures go into a report; nothing fails for being slow.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::Value;

use super::kubectl::Kubectl;
use super::story::Story;
use crate::wait::{Seen, await_until};
use crate::{Power, Rig};

/// What init prints when it is all there is.
const BARE_MARK: &str = "bare init reached";
/// Emulated firmware on a busy host takes a minute or two.
const BARE_LIMIT: Duration = Duration::from_secs(600);

/// How often CPU seconds are noted.
const METER_BEAT: Duration = Duration::from_millis(200);

/// Seconds from power-on, by machine.
pub(super) type Seconds = BTreeMap<String, f64>;

/// How long machines took.
#[derive(Debug, Default)]
pub(super) struct Boots {
    /// By the clock on the wall.
    pub(super) wall: Seconds,
    /// Seconds of CPU, which do not grow when the host has other work as well.
    pub(super) cpu: Seconds,
}

/// The CPU seconds of machines, noted while they work.
#[derive(Debug, Default)]
pub(super) struct Meter {
    notes: BTreeMap<String, Vec<(Timestamp, f64)>>,
}

impl Meter {
    fn note(&mut self, rig: &Rig, machines: &[String]) {
        for machine in machines {
            if let Some(seconds) = rig.cpu_seconds(machine) {
                let notes = self.notes.entry(machine.clone()).or_default();
                notes.push((Timestamp::now(), seconds));
            }
        }
    }

    /// What a machine had used by then: the last figure noted before.
    fn at(&self, machine: &str, at: &str) -> Option<f64> {
        let at: Timestamp = at.parse().ok()?;
        let notes = self.notes.get(machine)?;
        notes.iter().take_while(|(noted, _)| *noted <= at).last().map(|(_, seconds)| *seconds)
    }
}

/// Notes the CPU seconds of machines while `work` runs.
pub(super) fn metered<T>(
    rig: &Rig,
    machines: &[String],
    work: impl FnOnce() -> T,
) -> Result<(T, Meter)> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let metering = scope.spawn(|| {
            let mut meter = Meter::default();
            while !done.load(Ordering::Relaxed) {
                meter.note(rig, machines);
                std::thread::sleep(METER_BEAT);
            }
            meter
        });
        let outcome = work();
        done.store(true, Ordering::Relaxed);
        let meter = metering.join().map_err(|_| anyhow::anyhow!("the meter broke"))?;
        Ok((outcome, meter))
    })
}

/// Boots every machine at once to the bare init and takes the site down again.
pub(super) fn bare_boot(story: &Story) -> Result<Boots> {
    let args = story.up_args(&["--append", "muster.probe=bare", "--limit", "600"])?;
    let mut up = story.start_muster(&args, &story.dir().join("bare.log"))?;
    let mut since = BTreeMap::new();
    let machines: Vec<String> = story.plan().machines.iter().map(|one| one.name.clone()).collect();
    let mut meter = Meter::default();
    let seen = await_until("every machine's bare init", BARE_LIMIT, || {
        if let Some(status) = up.try_wait().context("watching muster")? {
            let log = fs::read_to_string(story.dir().join("bare.log")).unwrap_or_default();
            bail!("muster up ended early ({status}): {}", crate::machine::tail(&log, 5));
        }
        let rig = story.rig()?;
        meter.note(&rig, &machines);
        let mut boots = Boots::default();
        for machine in &story.plan().machines {
            if let Power::On { since: at } = rig.power_state(&machine.name)? {
                since.entry(machine.name.clone()).or_insert(at);
            }
            let console = fs::read(rig.console(&machine.name)?).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            let line = console.lines().find(|line| line.contains(BARE_MARK));
            if let (Some(line), Some(since)) = (line, since.get(&machine.name)) {
                let at = line.split(' ').next().unwrap_or_default();
                boots.wall.insert(machine.name.clone(), between(since, at)?);
                boots
                    .cpu
                    .extend(meter.at(&machine.name, at).map(|cpu| (machine.name.clone(), cpu)));
            }
        }
        let all = boots.wall.len() == machines.len();
        Ok(if all { Seen::There(boots) } else { Seen::NotYet(format!("{boots:?}")) })
    });
    // It waits for nodes that will never be; the site goes down with what it started.
    up.kill().context("ending muster")?;
    up.wait().context("ending muster")?;
    if let Err(err) = &seen {
        story.say(format_args!("bare boot: {err:#}"))?;
        story.describe()?;
    }
    story.clear().context("taking the bare site down")?;
    seen
}

/// Reads from the Machine objects when each phase was reached.
pub(super) fn phases(kubectl: &Kubectl) -> Result<BTreeMap<String, Vec<(String, String)>>> {
    let list = kubectl.json(&["get", "machines"])?;
    let items = list.get("items").and_then(Value::as_array).context("a list of machines")?;
    let mut all = BTreeMap::new();
    for item in items {
        let text = |value: &Value, key: &str| {
            value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let name = item.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let phases = item.pointer("/status/phases").and_then(Value::as_array);
        let phases = phases.into_iter().flatten();
        all.insert(
            name.to_owned(),
            phases.map(|phase| (text(phase, "name"), text(phase, "at"))).collect(),
        );
    }
    Ok(all)
}

/// Renders phases and the comparison with a bare boot, as Markdown.
pub(super) fn render(
    phases: &BTreeMap<String, Vec<(String, String)>>,
    bare: Option<&Boots>,
    meter: &Meter,
) -> Result<String> {
    const NAMES: [&str; 8] =
        ["power", "dhcp", "loader", "kernel", "image", "verified", "agent", "ready"];
    let mut text = format!("\nSeconds since power-on:\n\n| machine | {} |\n", NAMES.join(" | "));
    text += &format!("|---|{}\n", "---:|".repeat(NAMES.len()));
    let mut ready = Boots::default();
    for (machine, reached) in phases {
        let at = |name: &str| reached.iter().find(|(phase, _)| phase == name).map(|(_, at)| at);
        let Some(power) = at("power") else { continue };
        let mut cells = Vec::new();
        for name in NAMES {
            cells.push(match at(name) {
                Some(at) => {
                    let seconds = between(power, at)?;
                    if name == "ready" {
                        ready.wall.insert(machine.clone(), seconds);
                        ready.cpu.extend(meter.at(machine, at).map(|cpu| (machine.clone(), cpu)));
                    }
                    format!("{seconds:.1}")
                }
                None => "-".to_owned(),
            });
        }
        text += &format!("| {machine} | {} |\n", cells.join(" | "));
    }
    let none = Boots::default();
    let bare = bare.unwrap_or(&none);
    text += "\n| machine | bare boot (s) | Ready (s) | ratio |\n|---|---:|---:|---:|\n";
    let worst = |all: &Seconds| all.values().copied().reduce(f64::max);
    text += &compare(&bare.wall, &ready.wall, ("slowest", worst));
    text += "\nAll machines are switched on at once; bare boot is the same firmware, loader, \
             kernel and initramfs up to an init that prints a line. The goal is a ratio of 3.\n";
    text += "\n| machine | bare boot (CPU s) | Ready (CPU s) | ratio |\n|---|---:|---:|---:|\n";
    let sum = |all: &Seconds| (!all.is_empty()).then(|| all.values().sum::<f64>());
    text += &compare(&bare.cpu, &ready.cpu, ("all", sum));
    text += "\nThe same in seconds of CPU that emulating each machine took.\n";
    Ok(text)
}

/// One line for each machine, and one for all.
fn compare(
    bare: &Seconds,
    ready: &Seconds,
    (name, of_all): (&str, impl Fn(&Seconds) -> Option<f64>),
) -> String {
    let row = |name: &str, bare: Option<f64>, ready: Option<f64>| {
        let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}"));
        let ratio = bare.zip(ready).filter(|(bare, _)| *bare > 0.0).map(|(bare, all)| all / bare);
        format!("| {name} | {} | {} | {} |\n", cell(bare), cell(ready), cell(ratio))
    };
    let machines = ready
        .iter()
        .map(|(machine, seconds)| row(machine, bare.get(machine).copied(), Some(*seconds)));
    machines.chain([row(name, of_all(bare), of_all(ready))]).collect()
}

/// Seconds between two RFC 3339 times.
fn between(from: &str, to: &str) -> Result<f64> {
    let read = |text: &str| -> Result<Timestamp> {
        text.parse().with_context(|| format!("{text} is no time"))
    };
    Ok(read(to)?.duration_since(read(from)?).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_compares_what_was_measured() {
        let at = |name: &str, at: &str| (name.to_owned(), format!("2026-01-01T00:00:{at}Z"));
        let phases =
            BTreeMap::from([("one".to_owned(), vec![at("power", "01"), at("ready", "31.50")])]);
        let of = |seconds| Seconds::from([("one".to_owned(), seconds)]);
        let bare = Boots { wall: of(10.0), cpu: of(5.0) };
        let noted = [("01", 0.1), ("31", 12.0), ("32", 13.0)];
        let noted = noted.map(|(when, seconds)| (at("", when).1.parse().unwrap(), seconds));
        let meter = Meter { notes: BTreeMap::from([("one".to_owned(), noted.to_vec())]) };
        let text = render(&phases, Some(&bare), &meter).unwrap();
        for line in [
            "| one | 0.0 | - | - | - | - | - | - | 30.5 |",
            "| slowest | 10.0 | 30.5 | 3.0 |",
            "| one | 5.0 | 12.0 | 2.4 |",
            "| all | 5.0 | 12.0 | 2.4 |",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        let text = render(&phases, None, &Meter::default()).unwrap();
        assert!(text.contains("| slowest | - | 30.5 | - |"), "{text}");
    }
}
