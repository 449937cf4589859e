//! Looks whether the node runs short of something, and makes room.
//!
//! What that means is decided in `node::pressure` and `node::images`. This task reads the
//! machine at a slow beat, tells the beat of the node which pressures there are, takes unused
//! images away, and names the pods that must end; their own workers end them.
//!
//! *Limits*: process ids are not counted per pod, so that under PID pressure priority decides.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri::CallError;
use cri::message::{
    ContainerState, ImageFsInfoRequest, ListContainersRequest, ListImagesRequest,
    RemoveContainerRequest, RemoveImageRequest,
};
use jiff::{SignedDuration, Timestamp};
use node::images::{History, Image};
use node::manifest::is_mirror;
use node::names::POD_UID;
use node::pressure::{
    Judgement, Pressure, Reading, Relief, Signal, Usage, Watch, choose, evict, is_limited,
    overdrawn,
};
use node::seen::Verdict;
use objects::pod::Pod;
use runtime::report;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{Shared, disk, facts};

/// How often the node is looked at; upstream's.
const BEAT: Duration = Duration::from_secs(10);
/// How often the disk use of pods with a limit is measured; upstream's.
const MEASURE_BEAT: Duration = Duration::from_secs(60);
/// How often images are looked at; upstream's.
const IMAGES_BEAT: Duration = Duration::from_secs(300);
/// How long a pod that was told to end is waited for before the next one is.
const END_LIMIT: Duration = Duration::from_secs(30);
/// Images that came with the node: no registry has them.
const OWN_IMAGES: &str = "muster.dev/";

/// Pods that must end, by uid, and why.
pub(crate) type Evictions = BTreeMap<String, Verdict>;

/// What this task tells the others.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// What the node runs short of.
    pub(crate) pressures: watch::Sender<BTreeSet<Pressure>>,
    /// Which pods must end.
    pub(crate) evictions: watch::Sender<Evictions>,
}

struct Housekeeper {
    shared: Arc<Shared>,
    watch: Watch,
    history: History,
    measured: Option<Instant>,
    images: Option<Instant>,
    /// The pod told to end last, and when.
    last: Option<(String, Instant)>,
}

/// Keeps room on the node until `stop`.
pub(crate) async fn run(stop: CancellationToken, shared: Arc<Shared>) {
    let mut keeper = Housekeeper {
        shared,
        watch: Watch::default(),
        history: History::default(),
        measured: None,
        images: None,
        last: None,
    };
    let work = async {
        keeper.shared.pods.wait_synced().await;
        loop {
            if let Err(err) = keeper.round().await {
                debug!(err = report(&err), "the runtime cannot be asked about room");
            }
            tokio::time::sleep(BEAT).await;
        }
    };
    tokio::select! { biased;
        () = stop.cancelled() => (),
        () = work => (),
    }
}

impl Housekeeper {
    async fn round(&mut self) -> Result<(), CallError> {
        self.forget_ended();
        let judgement = self.judge().await?;
        if let Some(relief) = judgement.relief {
            self.relieve(relief).await?;
        }
        if is_due(&mut self.measured, MEASURE_BEAT) {
            self.end_overdrawn().await;
        }
        if is_due(&mut self.images, IMAGES_BEAT) {
            self.sweep_images().await?;
        }
        Ok(())
    }

    /// Drops the verdicts of pods that have ended.
    fn forget_ended(&self) {
        let active: BTreeSet<String> =
            self.active().iter().map(|pod| pod.metadata.uid.clone()).collect();
        self.shared.told.evictions.send_if_modified(|evictions| {
            let before = evictions.len();
            evictions.retain(|uid, _| active.contains(uid));
            evictions.len() != before
        });
    }

    async fn judge(&mut self) -> Result<Judgement, CallError> {
        let readings = readings(&self.shared).await?;
        let limits = &self.shared.config.settings.limits;
        let judgement = self.watch.judge(limits, &readings, Timestamp::now());
        self.shared.told.pressures.send_if_modified(|told| {
            let changed = *told != judgement.pressures;
            if changed {
                info!(pressures = ?judgement.pressures, "what the node runs short of changed");
                told.clone_from(&judgement.pressures);
            }
            changed
        });
        Ok(judgement)
    }

    /// Collects garbage; when that was not enough, ends a pod.
    async fn relieve(&mut self, relief: Relief) -> Result<(), CallError> {
        let signal = relief.signal;
        let message = format!("Attempting to reclaim {}", signal.resource());
        self.shared.events.node("Warning", "EvictionThresholdMet", &message);
        let mut relief = relief;
        if signal.pressure() == Pressure::Disk {
            self.remove_dead().await?;
            self.remove_images(i64::MAX, SignedDuration::ZERO).await?;
            match self.judge().await?.relief {
                Some(again) if again.signal.pressure() == Pressure::Disk => relief = again,
                _ => return Ok(()),
            }
        }
        if self.is_ending().await? {
            return Ok(());
        }
        let active = self.active();
        let mut usages = Vec::new();
        for pod in &active {
            usages.push(usage(&self.shared, pod, signal.pressure() == Pressure::Disk).await);
        }
        let pods: Vec<(&Pod, &Usage)> = active.iter().map(|pod| &**pod).zip(&usages).collect();
        let Some(pod) = choose(&pods, relief.signal) else {
            warn!(signal = signal.name(), "the node runs short and no pod may be ended");
            return Ok(());
        };
        let found = pods.iter().find(|(one, _)| one.metadata.uid == pod.metadata.uid);
        if let Some((_, usage)) = found {
            self.end(pod, evict(pod, usage, relief));
        }
        Ok(())
    }

    fn end(&mut self, pod: &Pod, verdict: Verdict) {
        let uid = pod.metadata.uid.clone();
        warn!(pod = pod.metadata.name, uid, why = verdict.message, "pod is evicted");
        self.shared.events.warning(pod, None, "Evicted", &verdict.message);
        self.last = Some((uid.clone(), Instant::now()));
        self.shared.told.evictions.send_modify(|evictions| {
            evictions.insert(uid, verdict);
        });
    }

    /// Tells whether the pod told to end last still holds what it had.
    async fn is_ending(&self) -> Result<bool, CallError> {
        let Some((uid, since)) = &self.last else { return Ok(false) };
        if since.elapsed() >= END_LIMIT {
            return Ok(false);
        }
        let all = self.shared.runtime.list_containers(ListContainersRequest::default()).await?;
        let ours = |container: &cri::message::Container| {
            container.labels.get(POD_UID) == Some(uid)
                && container.state == i32::from(ContainerState::Running)
        };
        Ok(all.containers.iter().any(ours))
    }

    /// The pods that could end: neither ended nor ending.
    fn active(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.shared.pods.list();
        // A mirror only shows a pod that the node itself wants.
        pods.retain(|pod| !pod.is_finished() && !pod.metadata.is_deleting() && !is_mirror(pod));
        pods
    }

    async fn end_overdrawn(&mut self) {
        for pod in self.active().into_iter().filter(|pod| is_limited(pod)) {
            let usage = usage(&self.shared, &pod, true).await;
            if let Some(verdict) = overdrawn(&pod, &usage) {
                self.end(&pod, verdict);
            }
        }
    }

    /// Removes the containers of pods that have ended; what they said last is in the API.
    async fn remove_dead(&self) -> Result<(), CallError> {
        let pods = self.shared.pods.list();
        let ended: BTreeSet<&str> = pods
            .iter()
            .filter(|pod| pod.is_finished())
            .map(|pod| pod.metadata.uid.as_str())
            .collect();
        let all = self.shared.runtime.list_containers(ListContainersRequest::default()).await?;
        for container in all.containers {
            let owner = container.labels.get(POD_UID).map_or("", String::as_str);
            let is_dead = container.state == i32::from(ContainerState::Exited);
            if is_dead && ended.contains(owner) {
                let request = RemoveContainerRequest { container_id: container.id };
                if let Err(err) = self.shared.runtime.remove_container(request).await {
                    warn!(uid = owner, err = report(&err), "cannot remove a dead container");
                }
            }
        }
        Ok(())
    }

    /// Keeps the images below their marks.
    async fn sweep_images(&mut self) -> Result<(), CallError> {
        let marks = self.shared.config.settings.marks;
        let readings = readings(&self.shared).await?;
        let excess = readings.get(&Signal::ImageBytes).map_or(0, |disk| marks.excess(*disk));
        self.remove_images(excess, marks.age_min).await
    }

    /// Removes unused images until so many bytes are won.
    async fn remove_images(&mut self, bytes: i64, age: SignedDuration) -> Result<(), CallError> {
        let runtime = &self.shared.runtime;
        let found = runtime.list_images(ListImagesRequest::default()).await?.images;
        let containers =
            runtime.list_containers(ListContainersRequest::default()).await?.containers;
        let used: BTreeSet<String> = containers
            .into_iter()
            .flat_map(|container| {
                [container.image_ref, container.image_id, container.image.unwrap_or_default().image]
            })
            .collect();
        let is_used = |image: &cri::message::Image| {
            let names = image.repo_tags.iter().chain(&image.repo_digests);
            names.chain([&image.id]).any(|name| used.contains(name))
        };
        let in_use: BTreeSet<String> =
            found.iter().filter(|image| is_used(image)).map(|image| image.id.clone()).collect();
        let images: Vec<Image> = found
            .into_iter()
            .map(|image| Image {
                bytes: i64::try_from(image.size).unwrap_or(i64::MAX),
                pinned: image.pinned || image.repo_tags.iter().any(|t| t.starts_with(OWN_IMAGES)),
                id: image.id,
            })
            .collect();
        let now = Timestamp::now();
        self.history.observe(&images, &in_use, now);
        for id in self.history.plan(&images, &in_use, (bytes, age), now) {
            let image = Some(crate::image::spec(&id));
            match runtime.remove_image(RemoveImageRequest { image }).await {
                Ok(_) => info!(image = id, "unused image removed"),
                Err(err) => warn!(image = id, err = report(&err), "cannot remove an image"),
            }
        }
        Ok(())
    }
}

fn is_due(last: &mut Option<Instant>, beat: Duration) -> bool {
    let due = last.is_none_or(|last| last.elapsed() >= beat);
    if due {
        *last = Some(Instant::now());
    }
    due
}

/// Reads everything the node could run short of.
async fn readings(shared: &Shared) -> Result<BTreeMap<Signal, Reading>, CallError> {
    let (capacity, available) = facts::memory().await;
    let mut readings = BTreeMap::from([(Signal::Memory, Reading { available, capacity })]);
    let info = shared.runtime.image_fs_info(ImageFsInfoRequest::default()).await?;
    let images = info.image_filesystems.into_iter().find_map(|fs| fs.fs_id);
    let images = images.map(|id| PathBuf::from(id.mountpoint));
    let pods = Some(shared.config.data_dir.clone());
    for (path, bytes, inodes) in [
        (pods, Signal::DiskBytes, Signal::DiskInodes),
        (images, Signal::ImageBytes, Signal::ImageInodes),
    ] {
        let Some(path) = path else { continue };
        let (capacity, available) = facts::disk(&path);
        if capacity > 0 {
            readings.insert(bytes, Reading { available, capacity });
        }
        let (capacity, available) = facts::inodes(&path);
        // Some file systems make them as they are needed, and count none.
        if capacity > 0 {
            readings.insert(inodes, Reading { available, capacity });
        }
    }
    readings.extend(facts::pids().await.map(|reading| (Signal::Pids, reading)));
    Ok(readings)
}

/// Reads what a pod uses; its files are only counted when asked for, for that takes time.
async fn usage(shared: &Shared, pod: &Pod, with_files: bool) -> Usage {
    let mut usage = shared.figures.usage(&pod.metadata.uid);
    if !with_files {
        return usage;
    }
    let logs = disk::log_dir(shared, pod);
    for container in node::plan::containers(pod) {
        let bytes = weigh(logs.join(&container.name)).await;
        let share = usage.containers.entry(container.name.clone()).or_default();
        share.disk_bytes = share.disk_bytes.saturating_add(bytes);
    }
    for volume in &pod.spec.volumes {
        // What is in memory is counted as memory; what is the node's own is not the pod's.
        let Some(dir) = &volume.empty_dir else { continue };
        let on_disk = dir.medium.is_empty();
        if on_disk || dir.size_limit.is_some() {
            let path = disk::pod_dir(shared, &pod.metadata.uid).join("volumes").join(&volume.name);
            usage.volumes.insert(volume.name.clone(), weigh(path).await);
        }
    }
    usage
}

/// The bytes a directory takes on the disk.
async fn weigh(path: PathBuf) -> i64 {
    let counted = tokio::task::spawn_blocking(move || weigh_dir(&path)).await;
    counted.unwrap_or(0)
}

fn weigh_dir(path: &Path) -> i64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let mut sum: i64 = 0;
    for entry in entries.flatten() {
        // Links are counted as what they are, and never followed.
        let Ok(meta) = entry.metadata() else { continue };
        let blocks = i64::try_from(meta.blocks()).unwrap_or(0);
        sum = sum.saturating_add(blocks.saturating_mul(512));
        if meta.is_dir() {
            sum = sum.saturating_add(weigh_dir(&entry.path()));
        }
    }
    sum
}
