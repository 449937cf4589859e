//! Racks with two routers each: one loses its power, its cable is cut, its cable drops everything.
//! Pods keep answering, and everything is spread over both again when it is mended. A node that
//! announces what is another's is not believed by either.

mod probe;
mod rogue;

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;
use serde_json::Value;

use self::probe::Outage;
use super::kubectl::{Kubectl, Pod};
use super::light;
use super::story::Story;
use crate::wait::{Seen, await_until};
use crate::{Place, Rig};

/// Routers of a rig notice silence after five seconds; then routes change, on a busy host.
const HEAL_LIMIT: Duration = Duration::from_secs(90);
/// How often routers that are fast are tried, and how long each trial lasts: a multiple of what is
/// expected.
const HASTY_TRIALS: usize = 3;
const HASTY_LOOK: Duration = Duration::from_secs(4);

/// Tells the story.
pub(super) fn run(story: &mut Story) -> Result<()> {
    story.come_up()?;
    let kubectl = story.kubectl()?;
    let rig = story.rig()?;
    let pods = light::deploy(story, &kubectl)?;
    light::everyone_reaches_everyone(story, &rig, &pods)?;
    ways(story, &rig, &kubectl, 2)?;
    story.ok("both routers of each rack are in use, there and back")?;
    rogue::is_not_believed(story, &rig, &kubectl, &pods)?;

    for trouble in TROUBLES {
        befalls(story, &rig, &kubectl, &pods, trouble)?;
    }
    hasty(story, &rig, &kubectl, &pods)?;
    for machine in &story.plan().machines {
        let ready = kubectl.node_ready(&machine.name)?;
        ensure!(ready == "True", "{} was lost meanwhile: Ready={ready}", machine.name);
    }
    story.ok("no node was lost meanwhile")
}

/// Waits until the routers of rack b have so many ways to each node of rack a and to its pods, and
/// these nodes as many sessions that are up.
fn ways(story: &Story, rig: &Rig, kubectl: &Kubectl, count: usize) -> Result<()> {
    for machine in story.plan().machines.iter().filter(|machine| machine.rack == "a") {
        for (router, net) in [
            ("b", machine.pod_cidr),
            ("b2", machine.pod_cidr),
            ("b", Ipv4Net::from(machine.address)),
            ("b2", Ipv4Net::from(machine.address)),
        ] {
            let net = net.to_string();
            await_until(&format!("{count} ways from {router} to {net}"), HEAL_LIMIT, || {
                let text = routes(rig, router, &["show", &net])?;
                let found = text.split_whitespace().filter(|word| *word == "via").count();
                Ok(if found == count { Seen::There(()) } else { Seen::NotYet(text) })
            })?;
        }
        let name = &machine.name;
        await_until(&format!("{count} sessions of {name}"), HEAL_LIMIT, || {
            let survey = survey(kubectl, name)?;
            let sessions = survey.pointer("/neighbours").and_then(Value::as_array);
            let up = |one: &&Value| one.get("running").and_then(Value::as_bool) == Some(true);
            let found = sessions.context("a list of neighbours")?.iter().filter(up).count();
            Ok(if found == count { Seen::There(()) } else { Seen::NotYet(survey.to_string()) })
        })?;
    }
    Ok(())
}

/// What `ip route` says in a router.
fn routes(rig: &Rig, router: &str, args: &[&str]) -> Result<String> {
    let mut ip = crate::process::command("ip");
    ip.arg("route").args(args);
    let output = rig.exec(Place::Tor(router), &ip)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What `muster routes` shows of a node.
fn survey(kubectl: &Kubectl, node: &str) -> Result<Value> {
    let path = format!("/api/v1/nodes/{node}/proxy/muster/routes");
    let text = kubectl.run(&["get", "--raw", &path])?;
    serde_json::from_str(&text).with_context(|| format!("{node} tells no survey: {text}"))
}

/// Something that befalls router a2, and what mends it.
struct Trouble {
    what: &'static str,
    begin: fn(&Rig) -> Result<()>,
    end: fn(&Rig) -> Result<()>,
}

const TROUBLES: [Trouble; 3] = [
    Trouble {
        what: "a router without power",
        begin: |rig| rig.power_cut_router("a2"),
        end: |rig| rig.power_on_router("a2"),
    },
    Trouble {
        what: "a cable cut",
        begin: |rig| rig.set_router_cable("a2", "down"),
        end: |rig| rig.set_router_cable("a2", "up"),
    },
    SILENCE,
];
const SILENCE: Trouble = Trouble {
    what: "a cable that drops everything",
    begin: |rig| rig.silence_router("a2", true),
    end: |rig| rig.silence_router("a2", false),
};

/// One router is lost and comes back: all pods go on by the other, and by both afterwards.
fn befalls(
    story: &Story,
    rig: &Rig,
    kubectl: &Kubectl,
    pods: &[Pod],
    trouble: Trouble,
) -> Result<()> {
    let Trouble { what, begin, end } = trouble;
    let addresses = addresses(pods)?;
    let lost = probe::during(rig, &addresses, || {
        begin(rig)?;
        ways(story, rig, kubectl, 1)
    })?;
    // What is asked now goes by the other router.
    light::everyone_reaches_everyone(story, rig, pods)?;
    let back = probe::during(rig, &addresses, || {
        end(rig)?;
        ways(story, rig, kubectl, 2)
    })?;
    let seconds = lost.span.as_secs_f64();
    let Outage { lost, sent, .. } = lost;
    story.ok(format_args!(
        "{what}: traffic is restored after {seconds:.2} s ({lost} of {sent} connections lost); \
         when it was mended {} of {} were lost",
        back.lost, back.sent
    ))
}

/// The same silence with routers as they are outside of rigs. A host that emulates its machines
/// may let them pause for longer than that, so this is told, and nothing is judged by it.
fn hasty(story: &Story, rig: &Rig, kubectl: &Kubectl, pods: &[Pod]) -> Result<()> {
    rig.set_routers_hasty(true)?;
    let told = (0..HASTY_TRIALS).try_for_each(|_| {
        ways(story, rig, kubectl, 2)?;
        let lost = probe::during(rig, &addresses(pods)?, || {
            (SILENCE.begin)(rig)?;
            std::thread::sleep(HASTY_LOOK);
            Ok(())
        });
        (SILENCE.end)(rig)?;
        let Outage { span, lost, sent } = lost?;
        let seconds = span.as_secs_f64();
        story.say(format_args!(
            "figure: {}, BFD of 100 ms x 3: traffic is restored after {seconds:.2} s ({lost} of \
             {sent} connections lost)",
            SILENCE.what
        ))
    });
    rig.set_routers_hasty(false)?;
    if let Err(err) = told {
        story.say(format_args!(
            "figure: none, this host is too busy for BFD of 100 ms x 3: {err:#}"
        ))?;
    }
    ways(story, rig, kubectl, 2)
}

fn addresses(pods: &[Pod]) -> Result<Vec<Ipv4Addr>> {
    let address =
        |pod: &Pod| pod.address.parse().with_context(|| format!("{} has no address", pod.name));
    pods.iter().map(address).collect()
}
