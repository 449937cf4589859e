//! The waterfall: how long each machine took from phase to phase, and what holds it up.
//!
//! Pure: machines as the API shows them in, a table or JSON out.

use comfy_table::{Table, presets};
use objects::machine::Machine;
use serde_json::{Value, json};

/// The phases of a machine's road, in order.
pub(crate) const PHASES: &[&str] =
    &["power", "dhcp", "loader", "kernel", "image", "verified", "agent", "ready"];

/// How far one machine is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Progress {
    /// The machine.
    pub name: String,
    /// The last phase reached; empty before power-on.
    pub phase: String,
    /// What holds it up; empty while it moves.
    pub cause: String,
    /// Seconds from the first phase to each one reached, in the order of [`PHASES`].
    pub reached: Vec<Option<f64>>,
}

impl Progress {
    /// Reads one `Machine` object.
    pub(crate) fn new(machine: &Machine) -> Self {
        let status = &machine.status;
        let at = |phase: &str| {
            let time = status.phases.iter().find(|mark| mark.name == phase)?.at?;
            Some(time.0.as_microsecond())
        };
        let first = PHASES.iter().find_map(|phase| at(phase));
        let since = |phase: &&str| Some(seconds(at(phase)? - first?));
        Self {
            name: machine.metadata.name.clone(),
            phase: status.phase.clone(),
            cause: status.cause.clone(),
            reached: PHASES.iter().map(since).collect(),
        }
    }

    /// Whether the node is Ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.phase == "ready"
    }

    /// Seconds from power-on to Ready.
    pub(crate) fn total(&self) -> Option<f64> {
        self.reached.last().copied().flatten()
    }

    /// Seconds spent before each phase was reached, since the reached one before it.
    fn steps(&self) -> Vec<Option<f64>> {
        let mut last = 0.0;
        let step = |reached: &Option<f64>| {
            reached.map(|seconds| {
                let step = seconds - last;
                last = seconds;
                step
            })
        };
        self.reached.iter().map(step).collect()
    }
}

fn seconds(microseconds: i64) -> f64 {
    // Boots last minutes: milliseconds are exact enough and fit a u32 without loss.
    let milliseconds = u32::try_from((microseconds / 1000).max(0)).unwrap_or(u32::MAX);
    f64::from(milliseconds) / 1000.0
}

/// Renders the table for people.
pub(crate) fn render_table(machines: &[Progress]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let titles = PHASES.iter().map(|phase| phase.to_uppercase());
    let header = std::iter::once("MACHINE".to_owned()).chain(titles);
    table.set_header(header.chain(["TOTAL".to_owned(), "STATE".to_owned()]));
    for machine in machines {
        let cell = |seconds: Option<f64>| seconds.map_or("-".to_owned(), |s| format!("+{s:.1}s"));
        let total = machine.total().map_or("-".to_owned(), |s| format!("{s:.1}s"));
        let state = match (machine.is_ready(), machine.cause.is_empty()) {
            (true, _) => "Ready".to_owned(),
            (false, false) => machine.cause.clone(),
            (false, true) if machine.phase.is_empty() => "not powered on yet".to_owned(),
            (false, true) => format!("on its way, {} reached", machine.phase),
        };
        let steps = machine.steps().into_iter().map(cell);
        table.add_row(std::iter::once(machine.name.clone()).chain(steps).chain([total, state]));
    }
    let lines = table.to_string();
    let lines = lines.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end());
    lines.collect::<Vec<_>>().join("\n")
}

/// Renders the same for machines.
pub(crate) fn render_json(machines: &[Progress]) -> Value {
    let one = |machine: &Progress| {
        let phases: serde_json::Map<String, Value> = PHASES
            .iter()
            .zip(&machine.reached)
            .filter_map(|(phase, reached)| Some(((*phase).to_owned(), json!((*reached)?))))
            .collect();
        json!({
            "name": machine.name,
            "phase": machine.phase,
            "ready": machine.is_ready(),
            "cause": machine.cause,
            "secondsSincePower": phases,
        })
    };
    json!({ "machines": machines.iter().map(one).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(machine: Value, expected: &Expect) {
        let machine: Machine = serde_json::from_value(machine).unwrap();
        expected.assert_eq(&render_table(&[Progress::new(&machine)]));
    }

    #[test]
    fn each_phase_shows_what_it_added() {
        let at = |s: &str| format!("2026-01-01T00:00:{s}Z");
        check(
            json!({"metadata": {"name": "a"}, "status": {"phase": "ready", "phases": [
                {"name": "power", "at": at("00.000000")}, {"name": "dhcp", "at": at("01.500000")},
                {"name": "loader", "at": at("02.000000")}, {"name": "ready", "at": at("30.250000")},
            ]}}),
            &expect![[r#"
                 MACHINE  POWER  DHCP   LOADER  KERNEL  IMAGE  VERIFIED  AGENT  READY   TOTAL  STATE
                 a        +0.0s  +1.5s  +0.5s   -       -      -         -      +28.2s  30.2s  Ready"#]],
        );
    }

    #[test]
    fn a_hanging_machine_shows_its_cause() {
        check(
            json!({"metadata": {"name": "a"}, "status": {"phase": "dhcp", "cause": "no TFTP request for 30 s",
                "phases": [{"name": "power", "at": "2026-01-01T00:00:00Z"}]}}),
            &expect![[r#"
                 MACHINE  POWER  DHCP  LOADER  KERNEL  IMAGE  VERIFIED  AGENT  READY  TOTAL  STATE
                 a        +0.0s  -     -       -       -      -         -      -      -      no TFTP request for 30 s"#]],
        );
    }
}
