//! A database on a Ceph image: it is moved, its node is cut off, and no record it said it keeps
//! is ever lost.
//!
//! The database is a small writer of ours: numbered records, each on the disk before it is
//! acknowledged over the network.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::kubectl::{Kubectl, Pod};
use super::story::{Story, UP_LIMIT_SECONDS};
use crate::Rig;
use crate::ceph::{self, Ceph, Size};
use crate::host;
use crate::process;
use crate::wait::{Seen, await_until};

const SELECTOR: &str = "app=database";
/// The image behind the volume.
const IMAGE: &str = "rbd/records";
const SIZE: Size = Size { monitors: 1, stores: 1 };
/// Loading modules, mapping, making a file system and starting a container on an emulator.
const POD_LIMIT: Duration = Duration::from_secs(300);
/// Until a silent node counts as lost.
const MISSED_LIMIT: Duration = Duration::from_secs(240);
/// A whole boot, beside machines that work.
const RETURN_LIMIT: Duration = Duration::from_secs(600);
/// A record on the disk, on an emulator.
const PUT_LIMIT: Duration = Duration::from_secs(60);

/// Tells the story.
pub(super) fn run(story: &mut Story) -> Result<()> {
    if !story.options().resume {
        let missing = host::missing_packages(&ceph::PACKAGES);
        if !missing.is_empty() {
            story.say(format_args!("installing {}", missing.join(" ")))?;
            host::install_packages(&ceph::PACKAGES)?;
        }
        story.build_rig().context("building the racks")?;
    }
    let rig = story.rig()?;
    let dir = story.dir().join("ceph");
    let ceph = if story.options().resume {
        Ceph::resume(&rig, &dir, SIZE)?
    } else {
        let ceph = Ceph::start(&rig, &dir, SIZE).context("starting Ceph")?;
        ceph.rbd(&[
            "create",
            IMAGE,
            "--size",
            "256M",
            "--image-feature",
            "layering,exclusive-lock",
        ])?;
        story.ok("a Ceph cluster runs on the seed and makes images")?;
        story.muster(&story.up_args(&["--limit", UP_LIMIT_SECONDS, "--skip-check"])?)?;
        ceph
    };
    let site = Site { kubectl: story.kubectl()?, story, rig: &rig, ceph };
    let mut kept = Kept::default();
    let first = site.deploy()?;
    site.keep(&first, &mut kept, 20)?;
    site.story.ok(format_args!("the database on {} keeps records on a Ceph image", first.node))?;
    let second = site.moves_to_another_node(&first, &mut kept)?;
    let third = site.is_cut_off(&second, &mut kept)?;
    site.loses_power(&third, &mut kept)?;
    site.is_clean_at_the_end()
}

/// A site with storage.
struct Site<'a> {
    story: &'a Story,
    rig: &'a Rig,
    kubectl: Kubectl,
    ceph: Ceph<'a>,
}

/// Records the database said it keeps.
#[derive(Debug, Default)]
struct Kept {
    next: u32,
    records: BTreeSet<u32>,
}

impl Site<'_> {
    fn apply(&self, name: &str, text: &str) -> Result<()> {
        let path = self.story.dir().join(format!("{name}.yaml"));
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        self.kubectl.run(&["apply", "-f", path.to_str().context("a path that is no UTF-8")?])?;
        Ok(())
    }

    /// Makes the volume and the database, and waits until it serves.
    fn deploy(&self) -> Result<Pod> {
        let monitors: Vec<String> =
            self.ceph.monitors().iter().map(|one| format!("\"{one}:6789\"")).collect();
        let volume = include_str!("database/volume.yaml")
            .replace("@KEY@", &self.ceph.key()?)
            .replace("@MONITORS@", &monitors.join(", "))
            .replace("@POOL@", ceph::POOL)
            .replace("@USER@", ceph::USER);
        self.apply("volume", &volume)?;
        self.apply("database", include_str!("database/writer.yaml"))?;
        self.await_database(|_| true)
    }

    fn await_database(&self, good: impl Fn(&Pod) -> bool) -> Result<Pod> {
        let pods = self.kubectl.await_pods(SELECTOR, 1, POD_LIMIT, good);
        let pods = pods.with_context(|| self.troubles())?;
        pods.into_iter().next().context("one pod")
    }

    /// What the cluster says about the volume.
    fn troubles(&self) -> String {
        let said = |args: &[&str]| self.kubectl.run(args).unwrap_or_else(|err| format!("{err:#}"));
        let describe = said(&["describe", "pods", "-l", SELECTOR]);
        format!("{describe}\n{}", said(&["get", "volumeattachments,pv,pvc", "-o", "yaml"]))
    }

    fn ask(&self, pod: &Pod, path: &str) -> Result<String> {
        let address: Ipv4Addr =
            pod.address.parse().with_context(|| format!("{} has no address", pod.name))?;
        let answer = self.rig.ask(SocketAddrV4::new(address, 8080), path, None)?;
        ensure!(answer.status == 200, "{} answers {}: {}", pod.name, answer.status, answer.body);
        Ok(answer.body)
    }

    /// Lets the database keep more records, each asked for until it is acknowledged.
    fn keep(&self, pod: &Pod, kept: &mut Kept, count: u32) -> Result<()> {
        for number in kept.next..kept.next.saturating_add(count) {
            await_until(&format!("record {number} to be kept"), PUT_LIMIT, || {
                let said = self.ask(pod, &format!("/cgi-bin/put?{number}"))?;
                let good = said.trim() == format!("kept {number}");
                Ok(if good { Seen::There(()) } else { Seen::NotYet(said) })
            })?;
            kept.records.insert(number);
        }
        kept.next = kept.next.saturating_add(count);
        Ok(())
    }

    /// Every record that was acknowledged is there.
    fn has_all(&self, pod: &Pod, kept: &Kept) -> Result<()> {
        let all = await_until("all records", PUT_LIMIT, || {
            self.ask(pod, "/cgi-bin/all").map(Seen::There)
        })?;
        let there: BTreeSet<u32> =
            all.lines().filter_map(|line| line.trim().parse().ok()).collect();
        let lost: Vec<&u32> = kept.records.difference(&there).collect();
        ensure!(lost.is_empty(), "{} acknowledged records are lost: {lost:?}", lost.len());
        Ok(())
    }

    fn moves_to_another_node(&self, from: &Pod, kept: &mut Kept) -> Result<Pod> {
        self.kubectl.run(&["cordon", &from.node])?;
        self.kubectl.run(&["delete", "pod", &from.name, "--wait=false"])?;
        let pod = self.await_database(|pod| pod.node != from.node)?;
        self.has_all(&pod, kept)?;
        self.keep(&pod, kept, 5)?;
        self.kubectl.run(&["uncordon", &from.node])?;
        let (there, count) = (&pod.node, kept.records.len());
        self.story
            .ok(format_args!("moved to {there}, it has all {count} records and keeps more"))?;
        Ok(pod)
    }

    /// The cable of its node is pulled while it writes.
    fn is_cut_off(&self, from: &Pod, kept: &mut Kept) -> Result<Pod> {
        self.keep(from, kept, 10)?;
        let client = self.client(&from.node)?;
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
        self.lets_go(&from.node)?;
        self.has_all(&pod, kept)?;
        self.keep(&pod, kept, 5)?;
        Ok(pod)
    }

    /// Its node loses power with the volume mounted, and comes back as a new boot.
    fn loses_power(&self, from: &Pod, kept: &mut Kept) -> Result<()> {
        self.rig.power_cut(&from.node)?;
        self.story.say(format_args!("the power of {} is cut while it writes", from.node))?;
        let pod = self.goes_on_elsewhere(from, kept)?;
        self.rig.power_on(&from.node)?;
        self.kubectl
            .await_node(&from.node, "to come back", RETURN_LIMIT, |ready| ready == "True")?;
        self.lets_go(&from.node)?;
        self.story.ok(format_args!("{} came back and claims nothing", from.node))?;
        self.moves_to_another_node(&pod, kept).map(drop)
    }

    /// The database is written elsewhere, with every record it acknowledged.
    fn goes_on_elsewhere(&self, from: &Pod, kept: &mut Kept) -> Result<Pod> {
        self.kubectl
            .await_node(&from.node, "to be missed", MISSED_LIMIT, |ready| ready != "True")?;
        let missed = Instant::now();
        let pod = self.await_database(|pod| pod.node != from.node)?;
        self.keep(&pod, kept, 1)?;
        let seconds = missed.elapsed().as_secs_f64();
        self.has_all(&pod, kept)?;
        let (there, count) = (&pod.node, kept.records.len());
        self.story.ok(format_args!(
            "{seconds:.1} s after {} was missed a record is kept on {there}; all {count} are there",
            from.node
        ))?;
        Ok(pod)
    }

    /// The client a node says it writes the image with.
    fn client(&self, node: &str) -> Result<String> {
        let node = self.kubectl.json(&["get", "node", node])?;
        let path = "/metadata/annotations/storage.muster.dev~1rbd-clients";
        let text = node.pointer(path).and_then(Value::as_str).context("no clients are recorded")?;
        let all: Value = serde_json::from_str(text).context("reading the clients")?;
        let client = all.get(IMAGE).and_then(Value::as_str);
        Ok(client.with_context(|| format!("{IMAGE} is not in {text}"))?.to_owned())
    }

    /// A node says that it has nothing of the image any more.
    fn lets_go(&self, node: &str) -> Result<()> {
        await_until(&format!("{node} to unmap the image"), RETURN_LIMIT, || {
            Ok(match self.client(node) {
                Ok(client) => Seen::NotYet(format!("mapped by {client}")),
                Err(_) => Seen::There(()),
            })
        })
    }

    fn console(&self, node: &str) -> Result<String> {
        let path = self.rig.console(node)?;
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The database is stopped; what is on the image is whole.
    fn is_clean_at_the_end(&self) -> Result<()> {
        self.kubectl.run(&["scale", "deployment", "database", "--replicas=0"])?;
        await_until("the volume to be attached nowhere", POD_LIMIT, || {
            let said = self.kubectl.run(&["get", "volumeattachments", "--no-headers"])?;
            Ok(if said.trim().is_empty() { Seen::There(()) } else { Seen::NotYet(said) })
        })?;
        let copy = self.story.dir().join("records.img");
        let path = copy.to_str().context("a path that is no UTF-8")?;
        self.ceph.rbd(&["export", "--no-progress", IMAGE, path])?;
        let said =
            process::run("e2fsck", &["-f", "-n", path]).context("the file system is torn")?;
        let last = said.lines().last().unwrap_or_default().to_owned();
        fs::remove_file(&copy).context("removing the copy")?;
        self.story.ok(format_args!("the file system is whole: {last}"))
    }
}
