//! A site of one rack that speaks OSPF instead of BGP, its seed in the rack's own subnet: no relay
//! between boot server and machines, no AS numbers, and pods reach each other all the same.

use anyhow::{Context, Result, ensure};

use super::light;
use super::story::{Story, UP_LIMIT_SECONDS};
use crate::Place;

/// Tells the story.
pub(super) fn run(story: &mut Story) -> Result<()> {
    story.muster(&story.up_args(&["--limit", UP_LIMIT_SECONDS])?)?;
    let kubectl = story.kubectl()?;
    let rig = story.rig()?;
    let pods = light::deploy(story, &kubectl)?;
    light::everyone_reaches_everyone(story, &rig, &pods)?;
    light::everyone_reaches_the_service(story, &rig, &kubectl, &pods)?;

    let rack = story.plan().racks.first().context("a rack")?;
    let mut routes = crate::process::command("ip");
    routes.args(["route", "show", "proto", "bird"]);
    let routes = rig.exec(Place::Tor(&rack.name), &routes)?;
    let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
    for machine in &story.plan().machines {
        let line = format!("{} via {}", machine.pod_cidr, machine.address);
        ensure!(routes.contains(&line), "the router lacks {line}:\n{routes}");
    }
    story.ok("the router learnt every pod network by OSPF from the node that owns it")
}
