//! How long machines take, and what the least possible would be.
//!
//! The least is a *bare boot*: the same machines, firmware, loader, kernel and initramfs, by the
//! same boot server, until an init that prints one line and switches off (`muster.probe=bare` on
//! the kernel's command line). Figures go into a report; nothing fails for being slow.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::Value;

use super::kubectl::Kubectl;
use super::story::Story;
use crate::Power;
use crate::wait::{Seen, await_until};

/// What init prints when it is all there is.
const BARE_MARK: &str = "bare init reached";
/// Emulated firmware on a busy host takes a minute or two.
const BARE_LIMIT: Duration = Duration::from_secs(600);

/// Seconds from power-on, by machine.
pub(super) type Seconds = BTreeMap<String, f64>;

/// Boots every machine at once to the bare init and takes the site down again.
pub(super) fn bare_boot(story: &Story) -> Result<Seconds> {
    let args = story.up_args(&["--append", "muster.probe=bare", "--limit", "600"])?;
    let mut up = story.start_muster(&args, &story.dir().join("bare.log"))?;
    let mut since = BTreeMap::new();
    let seen = await_until("every machine's bare init", BARE_LIMIT, || {
        if let Some(status) = up.try_wait().context("watching muster")? {
            let log = fs::read_to_string(story.dir().join("bare.log")).unwrap_or_default();
            bail!("muster up ended early ({status}): {}", crate::machine::tail(&log, 5));
        }
        let rig = story.rig()?;
        let mut seconds = Seconds::new();
        for machine in &story.plan().machines {
            if let Power::On { since: at } = rig.power_state(&machine.name)? {
                since.entry(machine.name.clone()).or_insert(at);
            }
            let console = fs::read(rig.console(&machine.name)?).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            let line = console.lines().find(|line| line.contains(BARE_MARK));
            if let (Some(line), Some(since)) = (line, since.get(&machine.name)) {
                let at = line.split(' ').next().unwrap_or_default();
                seconds.insert(machine.name.clone(), between(since, at)?);
            }
        }
        let all = seconds.len() == story.plan().machines.len();
        Ok(if all { Seen::There(seconds) } else { Seen::NotYet(format!("{seconds:?}")) })
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
    bare: Option<&Seconds>,
) -> Result<String> {
    const NAMES: [&str; 8] =
        ["power", "dhcp", "loader", "kernel", "image", "verified", "agent", "ready"];
    let mut text = format!("\nSeconds since power-on:\n\n| machine | {} |\n", NAMES.join(" | "));
    text += &format!("|---|{}\n", "---:|".repeat(NAMES.len()));
    let mut ready = Seconds::new();
    for (machine, reached) in phases {
        let at = |name: &str| reached.iter().find(|(phase, _)| phase == name).map(|(_, at)| at);
        let Some(power) = at("power") else { continue };
        let mut cells = Vec::new();
        for name in NAMES {
            cells.push(match at(name) {
                Some(at) => {
                    let seconds = between(power, at)?;
                    if name == "ready" {
                        ready.insert(machine.clone(), seconds);
                    }
                    format!("{seconds:.1}")
                }
                None => "-".to_owned(),
            });
        }
        text += &format!("| {machine} | {} |\n", cells.join(" | "));
    }
    text += "\n| machine | bare boot (s) | Ready (s) | ratio |\n|---|---:|---:|---:|\n";
    let worst = |all: &Seconds| all.values().copied().fold(0.0, f64::max);
    let mut row = |name: &str, bare: Option<f64>, ready: Option<f64>| {
        let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}"));
        let ratio = bare.zip(ready).filter(|(bare, _)| *bare > 0.0).map(|(bare, all)| all / bare);
        text += &format!("| {name} | {} | {} | {} |\n", cell(bare), cell(ready), cell(ratio));
    };
    for (machine, seconds) in &ready {
        row(machine, bare.and_then(|bare| bare.get(machine)).copied(), Some(*seconds));
    }
    row("slowest", bare.map(worst), Some(worst(&ready)));
    text += "\nAll machines are switched on at once; bare boot is the same firmware, loader, \
             kernel and initramfs up to an init that prints a line. The goal is a ratio of 3.\n";
    Ok(text)
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
        let bare = Seconds::from([("one".to_owned(), 10.0)]);
        let text = render(&phases, Some(&bare)).unwrap();
        assert!(text.contains("| one | 0.0 | - | - | - | - | - | - | 30.5 |"), "{text}");
        assert!(text.contains("| slowest | 10.0 | 30.5 | 3.0 |"), "{text}");
    }
}
