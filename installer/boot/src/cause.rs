//! Why a machine hangs, in words an operator can act on.
//!
//! The text changes only at steps of silence (30 s, 1 min, …), so that whoever writes it into a
//! status writes seldom.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::machine::Machine;
use crate::{Firmware, Moment, Phase, Standing};

/// Silence shorter than the first step is no cause: firmware waits that long between tries.
const STEPS_S: [u64; 7] = [30, 60, 120, 300, 600, 1800, 3600];

/// The last thing that was seen of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Activity {
    Offered,
    Refused,
    Acknowledged,
    Declined(Ipv4Addr),
    LoaderAsked,
    LoaderSent,
    LoaderBroken(String),
    ScriptSent,
    KernelAsked,
    InitrdAsked,
    ImageAsked,
}

/// Names the cause of a hang; `None` while the machine moves, or is done, or is off.
pub(crate) fn cause(machine: &Machine, standing: &Standing, now: Moment) -> Option<String> {
    match standing {
        Standing::Quarantined(reason) => return Some(format!("quarantined: {reason}")),
        Standing::Discovered => return Some("held: not in the plan".to_owned()),
        Standing::Planned => {}
    }
    if let Some(detail) = &machine.failure {
        return Some(format!("the machine says: {detail}"));
    }
    let (phase, reached) = machine.phase()?;
    if phase == Phase::Ready {
        return None;
    }
    let activity = machine.activity.as_ref();
    // What it did with us later matters more.
    let listened = machine.rival.filter(|(_, at)| activity.is_none_or(|(_, last)| last <= at));
    if let (Some((server, _)), true) = (listened, phase <= Phase::Dhcp) {
        return Some(format!("another DHCP server, {server}, answered the machine"));
    }
    let last = activity.map_or(reached, |(_, at)| (*at).max(reached));
    let silence = step(now.since(last))?;
    // The activity of a phase before says nothing of the phase now.
    let activity = activity.filter(|(_, at)| *at >= reached).map(|(activity, _)| activity);
    Some(describe(phase, activity, machine.firmware, &silence))
}

fn describe(
    phase: Phase,
    activity: Option<&Activity>,
    firmware: Option<Firmware>,
    silence: &str,
) -> String {
    if let (Some(Firmware::Unsupported { architecture }), true) = (firmware, phase <= Phase::Dhcp) {
        return format!("there is no loader for firmware of architecture {architecture}");
    }
    let next = match firmware {
        Some(Firmware::HttpEfi) => "HTTP request",
        Some(Firmware::Ipxe) => "script request",
        _ => "TFTP request",
    };
    match (phase, activity) {
        (_, Some(Activity::Declined(address))) => {
            format!("address {address} is in use by another machine")
        }
        (_, Some(Activity::LoaderBroken(why))) => {
            format!("loader transfer broke ({why}), nothing more for {silence}")
        }
        (Phase::Power, _) => format!("powered on, no DHCP request for {silence}"),
        (_, Some(Activity::Offered)) => format!("DHCP offer sent, no DHCP request for {silence}"),
        (_, Some(Activity::Refused)) => format!("DHCP request refused, no new one for {silence}"),
        (Phase::Dhcp, Some(Activity::Acknowledged)) => {
            format!("DHCP offer sent and accepted, no {next} for {silence}")
        }
        (Phase::Dhcp, _) => format!("DHCP offer sent, no {next} for {silence}"),
        (Phase::Loader, Some(Activity::LoaderAsked)) => {
            format!("loader transfer without end for {silence}")
        }
        (Phase::Loader, Some(Activity::LoaderSent)) => {
            format!("loader sent, no sign of it for {silence}")
        }
        (Phase::Loader, Some(Activity::ScriptSent)) => {
            format!("boot script sent, no kernel request for {silence}")
        }
        (Phase::Loader, _) => format!("loader runs, no kernel request for {silence}"),
        (Phase::Kernel, Some(Activity::Acknowledged)) => {
            format!("node has its address, no image request for {silence}")
        }
        (Phase::Kernel, _) => format!("kernel sent, no sign of the node for {silence}"),
        (Phase::Image, _) => format!("image asked for, not verified for {silence}"),
        (Phase::Verified, _) => format!("image verified, no agent for {silence}"),
        (Phase::Agent | Phase::Ready, _) => format!("agent runs, node not Ready for {silence}"),
    }
}

fn step(silence: Duration) -> Option<String> {
    let reached = STEPS_S.iter().rev().find(|step| silence.as_secs() >= **step)?;
    Some(if *reached < 60 { format!("{reached} s") } else { format!("{} min", reached / 60) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mac;

    const START: Moment = Moment::from_unix_ms(1_000_000);

    #[track_caller]
    fn check(marks: &[Phase], activity: Option<Activity>, firmware: Firmware, expected: &str) {
        let mut machine = Machine::new(Mac::new([2; 6]));
        marks.iter().for_each(|phase| machine.mark(*phase, START));
        machine.firmware = Some(firmware);
        machine.activity = activity.map(|activity| (activity, START));
        let found =
            |seconds| cause(&machine, &Standing::Planned, START.plus(Duration::from_secs(seconds)));
        assert_eq!(found(29), None);
        assert_eq!(found(31).as_deref().unwrap_or("-"), expected);
        assert_eq!(found(31), found(59), "the text must not change between steps");
    }

    #[test]
    fn a_hang_has_a_name() {
        use Activity::{Acknowledged, LoaderAsked, LoaderSent, Offered, ScriptSent};
        use Firmware::{HttpEfi, Init, Ipxe, PxeBios, PxeEfi};
        use Phase::{Agent, Dhcp, Image, Kernel, Loader, Power, Ready, Verified};
        check(&[Power], None, PxeBios, "powered on, no DHCP request for 30 s");
        check(&[Dhcp], Some(Offered), PxeBios, "DHCP offer sent, no DHCP request for 30 s");
        check(&[Dhcp], None, PxeEfi, "DHCP offer sent, no TFTP request for 30 s");
        let accepted = "DHCP offer sent and accepted, no TFTP request for 30 s";
        check(&[Power, Dhcp], Some(Acknowledged), PxeEfi, accepted);
        let http = "DHCP offer sent and accepted, no HTTP request for 30 s";
        check(&[Dhcp], Some(Acknowledged), HttpEfi, http);
        let script = "DHCP offer sent and accepted, no script request for 30 s";
        check(&[Dhcp], Some(Acknowledged), Ipxe, script);
        let arm = Firmware::Unsupported { architecture: 11 };
        check(&[Dhcp], Some(Offered), arm, "there is no loader for firmware of architecture 11");
        check(&[Loader], Some(LoaderAsked), PxeBios, "loader transfer without end for 30 s");
        check(&[Loader], Some(LoaderSent), PxeBios, "loader sent, no sign of it for 30 s");
        let sent = "boot script sent, no kernel request for 30 s";
        check(&[Loader], Some(ScriptSent), Ipxe, sent);
        check(&[Kernel], None, Init, "kernel sent, no sign of the node for 30 s");
        let address = "node has its address, no image request for 30 s";
        check(&[Kernel], Some(Acknowledged), Init, address);
        check(&[Image], None, Init, "image asked for, not verified for 30 s");
        check(&[Verified], None, Init, "image verified, no agent for 30 s");
        check(&[Agent], None, Init, "agent runs, node not Ready for 30 s");
        check(&[Agent, Ready], None, Init, "-");
    }

    #[test]
    fn silence_is_told_in_steps() {
        let found = |seconds| step(Duration::from_secs(seconds));
        assert_eq!(found(29), None);
        assert_eq!(found(119).as_deref(), Some("1 min"));
        assert_eq!(found(100_000).as_deref(), Some("60 min"));
    }
}
