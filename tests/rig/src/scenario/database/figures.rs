//! The time to a mounted image on a node, beside the bare kernel's, measured by `rbdbench` there.

use std::fs;

use anyhow::{Context, Result};
use serde_json::json;

use super::site::{POD_LIMIT, Site};
use crate::ceph::{POOL, USER};
use crate::scenario::archive;
use crate::wait::{Seen, await_until};

const NAME: &str = "lab.example/rbdbench:1";
/// Its own image, which no volume is made of.
const IMAGE: &str = "bench";

/// Runs the bench on a node, when it was built beside muster; the figures are reported.
pub(super) fn measure(site: &Site<'_>) -> Result<()> {
    let program = site.story.options().muster.with_file_name("rbdbench");
    if !program.exists() {
        return site.story.say(format_args!("no rbdbench beside muster: nothing is measured"));
    }
    let (image, dir) = (site.story.dir().join("rbdbench.tar"), site.story.dir());
    let text = |path: &std::path::Path| path.to_str().map(str::to_owned).context("a path");
    let mut layer = tar::Builder::new(Vec::new());
    archive::add(&mut layer, "rbdbench", &fs::read(&program)?)?;
    archive::write(&image, NAME, &layer.into_inner()?, &json!({"Cmd": ["/rbdbench"]}))?;
    site.story.muster_output(&["images", "add", &text(&image)?, "--dir", &text(dir)?])?;
    let size = ["--size", "64M", "--image-feature", "layering,exclusive-lock"];
    let name = format!("{POOL}/{IMAGE}");
    site.ceph.rbd(&[&["create", name.as_str()][..], &size].concat())?;
    let monitors: Vec<String> =
        site.ceph.monitors().iter().map(|one| format!("\"--monitor={one}:6789\"")).collect();
    let manifest = include_str!("figures.yaml")
        .replace("@KEY@", &site.ceph.key()?)
        .replace("@USER@", USER)
        .replace("@IMAGE@", IMAGE)
        .replace("@MONITORS@", &monitors.join(", "));
    site.apply("figures", &manifest)?;
    let said = await_until("the figures", POD_LIMIT, || {
        let said = site.kubectl.run(&["logs", "rbdbench", "-c", "bench"])?;
        Ok(if said.contains("ratio:") { Seen::There(said) } else { Seen::NotYet(said) })
    })?;
    site.kubectl.run(&["delete", "pod", "rbdbench", "--wait=false"])?;
    for line in said.lines() {
        site.story.say(line)?;
    }
    Ok(())
}
