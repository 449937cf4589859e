//! A pod that keeps records in a volume, and the list of those it said are kept.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::{NEXT, NODE};
use crate::scenario::workloads::{LIMIT, Site};
use crate::wait::{Seen, await_until};

/// What a record takes on a raw disk.
const BLOCK_BYTES: u32 = 512;

/// What records are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A Ceph image without a file system.
    Raw,
    /// An NFS export.
    Nfs,
    /// A Ceph file system.
    CephFs,
}

impl Kind {
    /// Its name, and that of its claim and deployment.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Nfs => "nfs",
            Self::CephFs => "cephfs",
        }
    }

    /// The volume of a pod that shares it.
    pub(super) fn source(self) -> &'static str {
        match self {
            Self::Raw => "persistentVolumeClaim: { claimName: raw }",
            Self::Nfs => "persistentVolumeClaim: { claimName: nfs }",
            Self::CephFs => "persistentVolumeClaim: { claimName: cephfs }",
        }
    }

    fn seen(self) -> &'static str {
        match self {
            Self::Raw => "volumeDevices: [{ name: data, devicePath: /dev/data }]",
            Self::Nfs | Self::CephFs => "volumeMounts: [{ name: data, mountPath: /data }]",
        }
    }
}

/// A deployment of one pod, and what it said is kept.
pub(super) struct Keeper {
    pub(super) kind: Kind,
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) records: BTreeSet<u32>,
    next: u32,
}

impl Keeper {
    /// Makes it on the first node.
    pub(super) fn deploy(site: &Site, kind: Kind) -> Result<Self> {
        let manifest = |nodes: &str| {
            include_str!("keeper.yaml")
                .replace("@NAME@", kind.name())
                .replace("@NODES@", nodes)
                .replace("@SEEN@", kind.seen())
        };
        let mut keeper = Self {
            kind,
            pod: String::new(),
            node: String::new(),
            records: BTreeSet::new(),
            next: 0,
        };
        site.kubectl.run(&["cordon", NEXT])?;
        site.apply(kind.name(), &manifest(&format!("{NODE}, {NEXT}")))?;
        keeper.is_on(site, NODE)?;
        site.kubectl.run(&["uncordon", NEXT])?;
        Ok(keeper)
    }

    /// Waits until its pod is ready on a node.
    pub(super) fn is_on(&mut self, site: &Site, node: &str) -> Result<()> {
        let selector = format!("app={}", self.kind.name());
        let pods = site.kubectl.await_pods(&selector, 1, LIMIT, |pod| pod.node == node);
        let pods = pods.with_context(|| {
            let said = site.kubectl.run(&["describe", "pods", "-l", &selector]);
            said.unwrap_or_else(|err| format!("{err:#}"))
        })?;
        let pod = pods.into_iter().next().context("one pod")?;
        (self.pod, self.node) = (pod.name, pod.node);
        Ok(())
    }

    /// Keeps more records, each until it is acknowledged.
    pub(super) fn keep(&mut self, site: &Site, count: u32) -> Result<()> {
        let pod = self.pod.clone();
        self.keep_by(site, &pod, count)
    }

    /// The same, by another pod that has the volume.
    pub(super) fn keep_by(&mut self, site: &Site, pod: &str, count: u32) -> Result<()> {
        for _ in 0..count {
            let number = self.next;
            let command = match self.kind {
                Kind::Raw => format!(
                    "printf '%-511s\\n' {number} | dd of=/dev/data bs={BLOCK_BYTES} seek={number} \
                     conv=notrunc,fsync 2>/dev/null && echo kept"
                ),
                // Each writes a file of its own: appending from two nodes is no promise of NFS.
                Kind::Nfs | Kind::CephFs => {
                    let file = format!("/data/kept-{pod}");
                    format!(
                        "echo {number} | dd of={file} oflag=append conv=notrunc,fsync 2>/dev/null \
                         && echo kept"
                    )
                }
            };
            await_until(&format!("record {number} to be kept by {pod}"), LIMIT, || {
                let said = site.exec(pod, &["sh", "-c", &command])?;
                Ok(if said.trim() == "kept" { Seen::There(()) } else { Seen::NotYet(said) })
            })?;
            self.records.insert(number);
            self.next = number.saturating_add(1);
        }
        Ok(())
    }

    /// Every record that was acknowledged is there, at the first look that comes to see.
    pub(super) fn has_all(&self, site: &Site) -> Result<()> {
        let look = || self.missing(site, &self.pod).map(Seen::There);
        let lost = await_until("a look at the records", LIMIT, look)?;
        ensure!(lost.is_empty(), "{}: acknowledged records are lost: {lost:?}", self.pod);
        Ok(())
    }

    /// A pod comes to see every record: names of new files may take a node a moment.
    pub(super) fn await_all(&self, site: &Site, pod: &str) -> Result<()> {
        await_until(&format!("{pod} to see every record"), LIMIT, || {
            let missing = self.missing(site, pod)?;
            let all = missing.is_empty();
            Ok(if all { Seen::There(()) } else { Seen::NotYet(format!("without {missing:?}")) })
        })
    }

    fn missing(&self, site: &Site, pod: &str) -> Result<BTreeSet<u32>> {
        let command = match self.kind {
            Kind::Raw => {
                format!("dd if=/dev/data bs={BLOCK_BYTES} count={} 2>/dev/null", self.next)
            }
            Kind::Nfs | Kind::CephFs => "cat /data/kept-*".to_owned(),
        };
        let said = site.exec(pod, &["sh", "-c", &command])?;
        let there: BTreeSet<u32> =
            said.lines().filter_map(|line| line.trim().parse().ok()).collect();
        Ok(self.records.difference(&there).copied().collect())
    }
}
