//! A site like the one this project comes from: one rack that speaks OSPF instead of BGP, its seed
//! in the rack's own subnet. There is no relay between boot server and machines, there are no AS
//! numbers, and pods reach each other all the same.

use anyhow::{Context, Result, ensure};
use cluster::plan::Machine;

use super::light::{self, REACH_LIMIT};
use super::story::{Story, UP_LIMIT_SECONDS};
use crate::Place;
use crate::wait::{Seen, await_until};

/// Tells the story.
pub(super) fn run(story: &mut Story) -> Result<()> {
    story.muster(&story.up_args(&["--limit", UP_LIMIT_SECONDS])?)?;
    let kubectl = story.kubectl()?;
    let rig = story.rig()?;
    let pods = light::deploy(story, &kubectl)?;
    light::everyone_reaches_everyone(story, &rig, &pods)?;
    light::everyone_reaches_the_service(story, &rig, &kubectl, &pods)?;

    let rack = story.plan().racks.first().context("a rack")?;
    await_until("the router's routes", REACH_LIMIT, || {
        let mut ip = crate::process::command("ip");
        ip.args(["route", "show", "proto", "bird"]);
        let routes = rig.exec(Place::Tor(&rack.name), &ip)?;
        let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
        let line = |one: &Machine| format!("{} via {}", one.pod_cidr, one.address);
        let all = story.plan().machines.iter().all(|one| routes.contains(&line(one)));
        Ok(if all { Seen::There(()) } else { Seen::NotYet(routes) })
    })?;
    story.ok("the router learnt every pod network by OSPF from the node that owns it")?;

    for (question, state) in [("show ospf neighbors", "Full"), ("show bfd sessions", "Up")] {
        await_until(&format!("{state} in {question}"), REACH_LIMIT, || {
            let said = rig.ask_router(&rack.name, question)?;
            let is_so = |one: &Machine| {
                let own = one.address.to_string();
                let mut lines = said.lines().map(|line| line.split_whitespace());
                lines.any(|words| {
                    let words: Vec<&str> = words.collect();
                    words.contains(&own.as_str())
                        && words.iter().any(|word| word.starts_with(state))
                })
            };
            let all = story.plan().machines.iter().all(is_so);
            Ok(if all { Seen::There(()) } else { Seen::NotYet(said) })
        })?;
    }
    let areas = rig.ask_router(&rack.name, "show ospf")?;
    ensure!(areas.contains("Area: 0.0.0.0 (0) [BACKBONE]"), "not area 0:\n{areas}");
    story.ok("the nodes are its neighbours in area 0, each watched by BFD")
}
