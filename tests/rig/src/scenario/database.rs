//! MariaDB and a web front end on a real Ceph: the volume moves, its node is cut off, a monitor
//! and a store die, it grows, is snapshotted and restored, and no record is ever lost.
//!
//! Database and front end are Debian's packages in container images made here ([`image`]). A
//! record counts as kept when the front end says so, and it says so when the database has it on
//! its disk, which is an image in Ceph.

mod figures;
mod hundred;
mod image;
mod site;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use self::site::{Kept, POD_LIMIT, RETURN_LIMIT, Site};
use super::kubectl::Pod;
use super::story::{Story, UP_LIMIT_SECONDS};
use crate::ceph::{self, Ceph, Size};
use crate::host;
use crate::process;
use crate::wait::{Seen, await_until};

const SIZE: Size = Size { monitors: 3, stores: 3 };
/// Until a silent node counts as lost.
const MISSED_LIMIT: Duration = Duration::from_secs(240);
/// Until a machine with pods and volumes is off: services have a minute and a half to end.
const OFF_LIMIT: Duration = Duration::from_secs(300);
/// What the claim asks for in the end.
const GROWN: &str = "512Mi";
/// More blocks of 1 KiB than the file system had before it grew.
const GROWN_BLOCKS: u64 = 400_000;

/// Tells the story.
pub(super) fn run(story: &mut Story) -> Result<()> {
    let resume = story.options().resume;
    if !resume {
        let missing = host::missing_packages(&ceph::PACKAGES);
        if !missing.is_empty() {
            story.say(format_args!("installing {}", missing.join(" ")))?;
            host::install_packages(&ceph::PACKAGES)?;
        }
        story.build_rig().context("building the racks")?;
    }
    let rig = story.rig()?;
    let dir = story.dir().join("ceph");
    let ceph = if resume {
        Ceph::resume(&rig, &dir, SIZE)?
    } else {
        let ceph = Ceph::start(&rig, &dir, SIZE).context("starting Ceph")?;
        story.ok("a Ceph of three monitors and three stores runs on the seed and makes images")?;
        story.muster(&story.up_args(&["--limit", UP_LIMIT_SECONDS, "--skip-check"])?)?;
        for recipe in [image::DATABASE, image::FRONT] {
            image::bring(story, &recipe).with_context(|| format!("making {}", recipe.name))?;
        }
        story.ok("MariaDB and PHP of Debian are images on the master")?;
        ceph
    };
    let site = Site { kubectl: story.kubectl()?, story, rig: &rig, ceph };
    let mut kept = Kept::default();
    let first = site.deploy()?;
    site.keep(&mut kept, 20, None)?;
    let image = site.image("records")?;
    site.story.ok(format_args!("the database on {} keeps records in {image}", first.node))?;
    let second = site.moves_to_another_node(&first, &mut kept)?;
    let third = site.is_cut_off(&second, &image, &mut kept)?;
    let fourth = site.loses_power(&third, &image, &mut kept)?;
    let fifth = site.is_restarted(&fourth, &mut kept)?;
    site.loses_monitor_and_store(&mut kept)?;
    site.grows(&fifth, &mut kept)?;
    site.goes_back_in_time(&mut kept)?;
    figures::measure(&site)?;
    hundred::at_once(&site)?;
    site.is_clean_at_the_end(&image)
}

impl Site<'_> {
    fn moves_to_another_node(&self, from: &Pod, kept: &mut Kept) -> Result<Pod> {
        self.kubectl.run(&["cordon", &from.node])?;
        self.kubectl.run(&["delete", "pod", &from.name, "--wait=false"])?;
        let pod = self.await_database(|pod| pod.node != from.node)?;
        self.has_all(kept, None)?;
        self.keep(kept, 5, None)?;
        self.kubectl.run(&["uncordon", &from.node])?;
        let (there, count) = (&pod.node, kept.records.len());
        self.story
            .ok(format_args!("moved to {there}, it has all {count} records and keeps more"))?;
        Ok(pod)
    }

    /// The cable of its node is pulled while it writes.
    fn is_cut_off(&self, from: &Pod, image: &str, kept: &mut Kept) -> Result<Pod> {
        self.keep(kept, 10, None)?;
        let client = self.client(&from.node, image)?;
        self.rig.cut_cable(&from.node)?;
        self.story.say(format_args!("the cable of {} is cut while it writes", from.node))?;
        let pod = self.goes_on_elsewhere(from, kept)?;
        let fenced = self.ceph.fenced()?;
        ensure!(fenced.contains(&client), "{client} is not fenced, only {fenced:?}");
        self.story.ok(format_args!("the old node's client {client} is fenced"))?;

        let before = self.console(&from.node)?.len();
        self.rig.mend_cable(&from.node)?;
        self.kubectl
            .await_node(&from.node, "to come back", RETURN_LIMIT, |ready| ready == "True")?;
        let refused = await_until("the old node's late writes to fail", RETURN_LIMIT, || {
            let console = self.console(&from.node)?;
            let fresh = console.get(before..).unwrap_or_default();
            let line = fresh.lines().find(|line| line.contains("rbd") && line.contains("rror"));
            Ok(match line {
                Some(line) => Seen::There(line.to_owned()),
                None => Seen::NotYet(crate::machine::tail(fresh, 3)),
            })
        })?;
        self.story.ok(format_args!("back again, its late writes fail: {refused}"))?;
        self.lets_go(&from.node, image)?;
        self.has_all(kept, None)?;
        self.keep(kept, 5, None)?;
        Ok(pod)
    }

    /// Its node loses power with the volume mounted, and comes back as a new boot.
    fn loses_power(&self, from: &Pod, image: &str, kept: &mut Kept) -> Result<Pod> {
        let client = self.client(&from.node, image)?;
        self.rig.power_cut(&from.node)?;
        self.story.say(format_args!("the power of {} is cut while it writes", from.node))?;
        let pod = self.goes_on_elsewhere(from, kept)?;
        self.rig.power_on(&from.node)?;
        self.kubectl
            .await_node(&from.node, "to come back", RETURN_LIMIT, |ready| ready == "True")?;
        self.lets_go(&from.node, image)?;
        await_until("the fence of a client that is gone to be lifted", RETURN_LIMIT, || {
            let fenced = self.ceph.fenced()?;
            let there = fenced.contains(&client);
            Ok(if there { Seen::NotYet(format!("{fenced:?}")) } else { Seen::There(()) })
        })?;
        self.story.ok(format_args!(
            "{} came back and claims nothing; its old client's fence is lifted",
            from.node
        ))?;
        Ok(pod)
    }

    /// Its node is switched off at the button, with the volume mounted, and on again.
    fn is_restarted(&self, from: &Pod, kept: &mut Kept) -> Result<Pod> {
        let before = self.console(&from.node)?.len();
        let start = Instant::now();
        let off = self.rig.press_power(&from.node, OFF_LIMIT)?;
        let seconds = start.elapsed().as_secs();
        if !off {
            let console = self.console(&from.node)?;
            let fresh = crate::machine::tail(console.get(before..).unwrap_or_default(), 20);
            bail!("{} does not go off by itself in {seconds} s:\n{fresh}", from.node);
        }
        self.story.ok(format_args!(
            "{} with the volume mounted goes off by itself in {seconds} s",
            from.node
        ))?;
        self.rig.power_on(&from.node)?;
        self.kubectl
            .await_node(&from.node, "to come back", RETURN_LIMIT, |ready| ready == "True")?;
        let pod = self.await_database(|_| true)?;
        self.has_all(kept, None)?;
        self.keep(kept, 5, None)?;
        self.story
            .ok(format_args!("after the restart it runs on {} with all records", pod.node))?;
        Ok(pod)
    }

    /// The database is written elsewhere, with every record it acknowledged.
    fn goes_on_elsewhere(&self, from: &Pod, kept: &mut Kept) -> Result<Pod> {
        self.kubectl
            .await_node(&from.node, "to be missed", MISSED_LIMIT, |ready| ready != "True")?;
        let missed = Instant::now();
        let pod = self.await_database(|pod| pod.node != from.node)?;
        self.keep(kept, 1, Some(&from.node))?;
        let seconds = missed.elapsed().as_secs_f64();
        self.has_all(kept, Some(&from.node))?;
        let (there, count) = (&pod.node, kept.records.len());
        self.story.ok(format_args!(
            "{seconds:.1} s after {} was missed a record is kept on {there}; all {count} are there",
            from.node
        ))?;
        Ok(pod)
    }

    /// The cluster loses one of everything under the database's writes, and gets it back.
    fn loses_monitor_and_store(&self, kept: &mut Kept) -> Result<()> {
        let usual = self.keep(kept, 10, None)?;
        self.ceph.kill("mon.m1");
        let monitor = self.keep(kept, 10, None)?;
        self.ceph.kill("osd.0");
        let store = self.keep(kept, 10, None)?;
        self.story.ok(format_args!(
            "a monitor and a store are killed while it writes: the longest record took {:.1} s \
             and {:.1} s, {:.1} s before",
            monitor.as_secs_f64(),
            store.as_secs_f64(),
            usual.as_secs_f64()
        ))?;
        self.ceph.restart("mon.m1")?;
        self.ceph.restart("osd.0")?;
        self.ceph.await_stores()?;
        self.keep(kept, 5, None)?;
        self.has_all(kept, None)?;
        self.story.ok("both are back, and every record is there")
    }

    /// The volume grows under the running database.
    fn grows(&self, pod: &Pod, kept: &mut Kept) -> Result<()> {
        let patch =
            format!("{{\"spec\":{{\"resources\":{{\"requests\":{{\"storage\":\"{GROWN}\"}}}}}}}}");
        self.kubectl.run(&["patch", "pvc", "records", "--type=merge", "-p", &patch])?;
        await_until("the claim to have what it asks for", POD_LIMIT, || {
            let claim = self.kubectl.json(&["get", "pvc", "records"])?;
            let has = claim.pointer("/status/capacity/storage").and_then(|one| one.as_str());
            let pending = claim
                .pointer("/status/conditions")
                .is_some_and(|all| all != &serde_json::json!([]));
            let done = has == Some(GROWN) && !pending;
            Ok(if done { Seen::There(()) } else { Seen::NotYet(claim.to_string()) })
        })?;
        let name = self.await_database(|one| one.node == pod.node)?.name;
        ensure!(name == pod.name, "growing took {} and made {name}", pod.name);
        let df = self.kubectl.run(&["exec", &name, "--", "df", "-k", "/data"])?;
        let blocks = df.lines().last().and_then(|line| line.split_whitespace().nth(1));
        let blocks: u64 = blocks.and_then(|one| one.parse().ok()).context("df says nothing")?;
        ensure!(blocks > GROWN_BLOCKS, "the file system did not grow: {df}");
        self.keep(kept, 5, None)?;
        self.story.ok(format_args!("the volume grew to {GROWN} under the running database"))
    }

    /// A snapshot is taken under the running database; a second database starts from it.
    fn goes_back_in_time(&self, kept: &mut Kept) -> Result<()> {
        self.apply("snapshot", include_str!("database/snapshot.yaml"))?;
        await_until("the snapshot to be ready", POD_LIMIT, || {
            let one = self.kubectl.json(&["get", "volumesnapshot", "records"])?;
            let ready = one.pointer("/status/readyToUse") == Some(&serde_json::json!(true));
            Ok(if ready { Seen::There(()) } else { Seen::NotYet(one.to_string()) })
        })?;
        let then = kept.records.clone();
        self.keep(kept, 5, None)?;
        self.apply("restored-claim", include_str!("database/restored.yaml"))?;
        self.apply("restored", &site::database("restored", "restored"))?;
        self.kubectl.await_pods("app=restored", 1, POD_LIMIT, |_| true)?;
        let there = self.records("/at/restored/all", None)?;
        ensure!(there == then, "the snapshot has {there:?}, at its time there were {then:?}");
        self.has_all(kept, None)?;
        let (count, now) = (then.len(), kept.records.len());
        self.story.ok(format_args!(
            "a second database, restored from a snapshot, has the {count} records of that time; \
             the first has {now}"
        ))
    }

    /// The database is stopped; what is on the image is whole.
    fn is_clean_at_the_end(&self, image: &str) -> Result<()> {
        for name in ["database", "restored"] {
            self.kubectl.run(&["scale", "deployment", name, "--replicas=0"])?;
        }
        await_until("the volume to be attached nowhere", POD_LIMIT, || {
            let said = self.kubectl.run(&["get", "volumeattachments", "--no-headers"])?;
            Ok(if said.trim().is_empty() { Seen::There(()) } else { Seen::NotYet(said) })
        })?;
        let copy = self.story.dir().join("records.img");
        let path = copy.to_str().context("a path that is no UTF-8")?;
        self.ceph.rbd(&["export", "--no-progress", image, path])?;
        let said =
            process::run("e2fsck", &["-f", "-n", path]).context("the file system is torn")?;
        let last = said.lines().last().unwrap_or_default().to_owned();
        fs::remove_file(&copy).context("removing the copy")?;
        self.story.ok(format_args!("the file system is whole: {last}"))
    }
}
