//! The site of the story, with the hands that use it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Rig;
use crate::ceph::{self, Ceph};
use crate::scenario::kubectl::{Kubectl, Pod};
use crate::scenario::story::Story;
use crate::wait::{Seen, await_until};

const SELECTOR: &str = "app=database";
/// Where the front end listens.
const FRONT_PORT: u16 = 8080;
/// Fetching an image, mapping, making a file system and a database, on an emulator.
pub(super) const POD_LIMIT: Duration = Duration::from_secs(600);
/// A whole boot, beside machines that work.
pub(super) const RETURN_LIMIT: Duration = Duration::from_secs(600);
/// A record on the disk, on an emulator.
const PUT_LIMIT: Duration = Duration::from_secs(120);

/// A site with storage.
pub(super) struct Site<'a> {
    pub(super) story: &'a Story,
    pub(super) rig: &'a Rig,
    pub(super) kubectl: Kubectl,
    pub(super) ceph: Ceph<'a>,
}

/// Records the front end said are kept.
#[derive(Debug, Default)]
pub(super) struct Kept {
    next: u32,
    pub(super) records: BTreeSet<u32>,
}

/// The manifest of a database.
pub(super) fn database(name: &str, claim: &str) -> String {
    include_str!("database.yaml").replace("@NAME@", name).replace("@CLAIM@", claim)
}

impl Site<'_> {
    pub(super) fn apply(&self, name: &str, text: &str) -> Result<()> {
        let path = self.story.dir().join(format!("{name}.yaml"));
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        self.kubectl.run(&["apply", "-f", path.to_str().context("a path that is no UTF-8")?])?;
        Ok(())
    }

    /// Makes volume, database and front end, and waits until they serve.
    pub(super) fn deploy(&self) -> Result<Pod> {
        let monitors: Vec<String> =
            self.ceph.monitors().iter().map(|one| format!("{one}:6789")).collect();
        let volume = include_str!("volume.yaml")
            .replace("@KEY@", &self.ceph.key()?)
            .replace("@ADMIN_KEY@", &self.ceph.admin_key()?)
            .replace("@MONITORS@", &monitors.join(","))
            .replace("@POOL@", ceph::POOL)
            .replace("@USER@", ceph::USER);
        self.apply("volume", &volume)?;
        self.apply("database", &database("database", "records"))?;
        self.apply("front", include_str!("front.yaml"))?;
        let pod = self.await_database(|_| true)?;
        let count = self.story.plan().machines.len();
        self.kubectl
            .await_pods("app=front", count, POD_LIMIT, |_| true)
            .with_context(|| self.troubles("app=front"))?;
        Ok(pod)
    }

    pub(super) fn await_database(&self, good: impl Fn(&Pod) -> bool) -> Result<Pod> {
        let pods = self.kubectl.await_pods(SELECTOR, 1, POD_LIMIT, good);
        let pods = pods.with_context(|| self.troubles(SELECTOR))?;
        pods.into_iter().next().context("one pod")
    }

    /// What the cluster says about pods and volumes.
    fn troubles(&self, selector: &str) -> String {
        let said = |args: &[&str]| self.kubectl.run(args).unwrap_or_else(|err| format!("{err:#}"));
        let describe = said(&["describe", "pods", "-l", selector]);
        let log = said(&["logs", "-l", selector, "--tail=20"]);
        let volumes = said(&["get", "volumeattachments,pv,pvc", "-o", "yaml"]);
        format!("{describe}\n{log}\n{volumes}")
    }

    /// The image behind a claim.
    pub(super) fn image(&self, claim: &str) -> Result<String> {
        let claim = self.kubectl.json(&["get", "pvc", claim])?;
        let volume = claim.pointer("/spec/volumeName").and_then(Value::as_str);
        let volume = self.kubectl.json(&["get", "pv", volume.context("a bound claim")?])?;
        let image = volume.pointer("/spec/rbd/image").and_then(Value::as_str);
        Ok(format!("{}/{}", ceph::POOL, image.context("an image")?))
    }

    /// Asks a front end that does not run on `lost`.
    fn ask(&self, path: &str, lost: Option<&str>) -> Result<String> {
        let all = self.kubectl.pods("app=front")?;
        let pod = all.into_iter().find(|pod| pod.is_ready && Some(pod.node.as_str()) != lost);
        let pod = pod.context("no front end is ready")?;
        let address: Ipv4Addr =
            pod.address.parse().with_context(|| format!("{} has no address", pod.name))?;
        let answer = self.rig.ask(SocketAddrV4::new(address, FRONT_PORT), path, None)?;
        ensure!(answer.status == 200, "{} answers {}: {}", pod.name, answer.status, answer.body);
        Ok(answer.body)
    }

    /// Lets the database keep more records, each asked for until it is acknowledged; gives how
    /// long the slowest took.
    pub(super) fn keep(&self, kept: &mut Kept, count: u32, lost: Option<&str>) -> Result<Duration> {
        let mut longest = Duration::ZERO;
        for number in kept.next..kept.next.saturating_add(count) {
            let start = Instant::now();
            await_until(&format!("record {number} to be kept"), PUT_LIMIT, || {
                let said = self.ask(&format!("/put?{number}"), lost)?;
                let good = said.trim() == format!("kept {number}");
                Ok(if good { Seen::There(()) } else { Seen::NotYet(said) })
            })?;
            longest = longest.max(start.elapsed());
            kept.records.insert(number);
        }
        kept.next = kept.next.saturating_add(count);
        Ok(longest)
    }

    /// The records of a database.
    pub(super) fn records(&self, path: &str, lost: Option<&str>) -> Result<BTreeSet<u32>> {
        let all = await_until("all records", PUT_LIMIT, || self.ask(path, lost).map(Seen::There))?;
        Ok(all.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    /// Every record that was acknowledged is there.
    pub(super) fn has_all(&self, kept: &Kept, lost: Option<&str>) -> Result<()> {
        let there = self.records("/all", lost)?;
        let gone: Vec<&u32> = kept.records.difference(&there).collect();
        ensure!(gone.is_empty(), "{} acknowledged records are lost: {gone:?}", gone.len());
        Ok(())
    }

    /// The client a node says it writes the image with.
    pub(super) fn client(&self, node: &str, image: &str) -> Result<String> {
        let node = self.kubectl.json(&["get", "node", node])?;
        let path = "/metadata/annotations/storage.muster.dev~1rbd-clients";
        let text = node.pointer(path).and_then(Value::as_str).context("no clients are recorded")?;
        let all: Value = serde_json::from_str(text).context("reading the clients")?;
        let client = all.get(image).and_then(Value::as_str);
        Ok(client.with_context(|| format!("{image} is not in {text}"))?.to_owned())
    }

    /// A node says that it has nothing of the image any more.
    pub(super) fn lets_go(&self, node: &str, image: &str) -> Result<()> {
        await_until(&format!("{node} to unmap the image"), RETURN_LIMIT, || {
            Ok(match self.client(node, image) {
                Ok(client) => Seen::NotYet(format!("mapped by {client}")),
                Err(_) => Seen::There(()),
            })
        })
    }

    pub(super) fn console(&self, node: &str) -> Result<String> {
        let path = self.rig.console(node)?;
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
