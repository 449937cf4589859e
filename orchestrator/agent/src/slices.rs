//! Control groups of pods: made, kept as planned, and taken away.
//!
//! What they are is decided in `node::slices`. Only the unified hierarchy (cgroup v2) is known; on
//! a machine without it the runtime puts containers where it likes, as if this were not here.
//! Groups outlive the agent with what runs in them; started again, it writes them anew.
//!
//! *Limits*: only the `cgroupfs` driver; with systemd as the runtime's driver this has to be
//! switched off (`cgroupsPerQOS: false`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use node::ledger;
use node::resources::qos_class;
use node::slices::{HOMES, PODS, Room, Slice, class_slices, pod_path, pod_paths, pod_slice};
use objects::pod::Pod;
use runtime::report;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Config, Shared, disk, facts};

/// What groups are to count and limit.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];
/// How often the groups of all pods are written anew; upstream's.
const BEAT: Duration = Duration::from_secs(60);

/// The control groups of this node.
#[derive(Debug, Default)]
pub(crate) struct Manager {
    /// The group of all pods in the file system, and as the runtime is told it.
    place: Option<(PathBuf, String)>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What pods of the middle class ask for, in thousandths of a CPU, by uid.
    burstable: BTreeMap<String, i64>,
    /// What was written last, by the group's path.
    written: BTreeMap<String, Slice>,
}

/// Whether a group is to have what is planned, or whatever is more of that and what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Planned,
    AtLeastPlanned,
}

impl Manager {
    /// The groups of this machine; none are made yet.
    pub(crate) fn find(config: &Config) -> Self {
        let root = config.settings.cgroup_root.trim_matches('/');
        let unified = config.cgroups.join("cgroup.controllers").is_file();
        if !config.settings.slices || !unified {
            info!(unified, "pods have no control groups of their own");
            return Self::default();
        }
        let place = config.cgroups.join(root).join(PODS);
        let told = Path::new("/").join(root).join(PODS).to_string_lossy().into_owned();
        Self { place: Some((place, told)), state: Mutex::default() }
    }

    /// What the runtime is told to put a pod's containers into; empty for what it likes.
    pub(crate) fn parent(&self, pod: &Pod) -> String {
        let Some((_, told)) = &self.place else { return String::new() };
        let uid = node::manifest::local_uid(pod);
        format!("{told}/{}", pod_path(uid, qos_class(&pod.spec)))
    }

    /// Makes the group of a pod, or makes it as it is to be now.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; worth a try later.
    pub(crate) fn apply(&self, shared: &Shared, pod: &Pod, size: Size) -> io::Result<()> {
        let Some((place, _)) = &self.place else { return Ok(()) };
        let slice = pod_slice(pod, shared.config.settings.pod_pids_max);
        let mut state = self.lock();
        if qos_class(&pod.spec) == "Burstable" {
            let milli = ledger::asked(&pod.spec).get("cpu").copied().unwrap_or(0);
            let uid = node::manifest::local_uid(pod).to_owned();
            state.burstable.insert(uid, milli);
        }
        state.write_classes(place)?;
        let slice = match state.written.get(&slice.path) {
            Some(written) if size == Size::AtLeastPlanned => slice.or_more(written),
            _ => slice,
        };
        state.write(place, slice)
    }

    /// Takes the group of a pod away, with whatever is still in it.
    pub(crate) async fn remove(&self, uid: &str) -> io::Result<()> {
        let Some((place, _)) = &self.place else { return Ok(()) };
        let paths = pod_paths(uid);
        {
            let mut state = self.lock();
            state.burstable.remove(uid);
            state.written.retain(|path, _| !paths.contains(path));
        }
        let dirs = paths.map(|path| place.join(path));
        disk::blocking(move || dirs.iter().try_for_each(|dir| remove_tree(dir))).await
    }

    /// Takes away the groups of pods that nobody knows and in which nothing runs.
    pub(crate) async fn sweep(&self, known: &(dyn Fn(&str) -> bool + Sync)) {
        let Some((place, _)) = &self.place else { return };
        let mut uids = BTreeSet::new();
        for home in HOMES {
            let names = fs::read_dir(place.join(home)).into_iter().flatten().flatten();
            let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
            uids.extend(names.filter_map(|name| Some(name.strip_prefix("pod")?.to_owned())));
        }
        for uid in uids.iter().filter(|uid| !known(uid)) {
            if pod_paths(uid).iter().any(|path| is_populated(&place.join(path))) {
                continue;
            }
            match self.remove(uid).await {
                Ok(()) => info!(uid, "the control group of a pod that is gone was removed"),
                Err(err) => warn!(uid, err = report(&err), "cannot remove a control group"),
            }
        }
    }

    /// How often the kernel killed something of a pod because memory ran out; `None` when that
    /// cannot be known here.
    pub(crate) fn kills(&self, uid: &str) -> Option<u64> {
        let (place, _) = self.place.as_ref()?;
        let read = |path: &String| fs::read_to_string(place.join(path).join("memory.events")).ok();
        let paths = pod_paths(uid);
        let Some(events) = paths.iter().find_map(read) else {
            // In a pod without a group nothing was killed; a group may lack the controller.
            return (!paths.iter().any(|path| place.join(path).is_dir())).then_some(0);
        };
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
        count.trim().parse().ok()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock still guards a whole value.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write_classes(&mut self, place: &Path) -> io::Result<()> {
        let milli = self.burstable.values().fold(0_i64, |sum, milli| sum.saturating_add(*milli));
        class_slices(milli).into_iter().try_for_each(|slice| self.write(place, slice))
    }

    /// Writes what differs from what was written.
    fn write(&mut self, place: &Path, slice: Slice) -> io::Result<()> {
        let dir = place.join(&slice.path);
        if self.written.get(&slice.path) == Some(&slice) && dir.is_dir() {
            return Ok(());
        }
        make(&dir)?;
        for (name, value) in &slice.files {
            match put(&dir.join(name), value) {
                // A kernel without this controller has no such file.
                Err(err) if err.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
        }
        self.written.insert(slice.path.clone(), slice);
        Ok(())
    }
}

/// Keeps the group of all pods, and those that the operator set aside, as they are to be.
pub(crate) async fn run(stop: CancellationToken, shared: Arc<Shared>) {
    let Some((place, _)) = shared.slices.place.clone() else { return };
    loop {
        if let Err(err) = write_top(&shared, &place).await {
            warn!(place = %place.display(), err = report(&err), "cannot write control groups; retrying");
        }
        tokio::select! { biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(BEAT) => {}
        }
    }
}

async fn write_top(shared: &Shared, place: &Path) -> io::Result<()> {
    let settings = &shared.config.settings;
    let (memory_bytes, _) = facts::memory().await;
    let left = |all: i64, held: i64| all.saturating_sub(held).max(0);
    let cpu_milli = left(facts::cpus().saturating_mul(1000), settings.reserved.cpu_milli);
    let memory = left(memory_bytes, settings.reserved.memory_bytes);
    let memory_bytes_max = settings.enforce_pods.then_some(memory);
    let room = Room { cpu_milli, memory_bytes_max, ..Room::default() };
    let mut state = shared.slices.lock();
    state.write(place, Slice::new("", room))?;
    state.write_classes(place)?;
    drop(state);
    for (group, held) in &settings.enforced {
        let room = Room {
            cpu_milli: held.cpu_milli,
            memory_bytes_max: (held.memory_bytes > 0).then_some(held.memory_bytes),
            ..Room::default()
        };
        let dir = shared.config.cgroups.join(group.trim_matches('/'));
        // Whoever owns the group makes it.
        let files = Slice::new("", room).files.into_iter();
        for (name, value) in files.filter(|(name, _)| matches!(*name, "cpu.weight" | "memory.max"))
        {
            put(&dir.join(name), &value)?;
        }
    }
    Ok(())
}

/// Makes a group and those above it, and lets each count for those in it.
fn make(dir: &Path) -> io::Result<()> {
    if !dir.is_dir() {
        if let Some(above) = dir.parent() {
            make(above)?;
        }
        match fs::create_dir(dir) {
            Err(err) if err.kind() == ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    let words = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let (offered, given) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    for name in CONTROLLERS.into_iter().filter(|name| has(&offered, name) && !has(&given, name)) {
        if let Err(err) = put(&dir.join("cgroup.subtree_control"), &format!("+{name}")) {
            warn!(dir = %dir.display(), name, err = report(&err), "a control group lacks a controller");
        }
    }
    Ok(())
}

/// Writes to a file of the kernel's, which is there or is not.
fn put(path: &Path, value: &str) -> io::Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn is_populated(dir: &Path) -> bool {
    let events = fs::read_to_string(dir.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// Removes a group and those in it; what still runs there belongs to nobody any more.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if is_populated(dir) {
        put(&dir.join("cgroup.kill"), "1")?;
    }
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    // The kernel's own files go with it.
    match fs::remove_dir(dir) {
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_written_once_and_again_when_they_change_or_are_gone() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join(PODS);
        let mut state = State::default();
        let room = |cpu_milli| Room { cpu_milli, ..Room::default() };
        let weight = place.join("podu/cpu.weight");
        fs::create_dir_all(place.join("podu")).unwrap();
        fs::write(&weight, "___").unwrap();
        state.write(&place, Slice::new("podu", room(1000))).unwrap();
        assert_eq!(fs::read_to_string(&weight).unwrap(), "100");
        // What others wrote meanwhile is theirs.
        fs::write(&weight, "___").unwrap();
        state.write(&place, Slice::new("podu", room(1000))).unwrap();
        assert_eq!(fs::read_to_string(&weight).unwrap(), "___");
        state.write(&place, Slice::new("podu", room(2000))).unwrap();
        assert_eq!(fs::read_to_string(&weight).unwrap(), "174");
        fs::remove_dir_all(&place).unwrap();
        state.write(&place, Slice::new("podu", room(2000))).unwrap();
        assert!(place.join("podu").is_dir());
    }

    #[test]
    fn controllers_are_passed_on_where_they_are_offered() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(root.path().join(name), text).unwrap();
        put("cgroup.controllers", "cpu io memory misc\n");
        put("cgroup.subtree_control", "memory\n");
        make(&root.path().join("a/b")).unwrap();
        let said = fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap();
        // The kernel adds words, a plain file keeps the last ones.
        assert!(said.starts_with("+io"), "{said}");
        assert!(root.path().join("a/b").is_dir());
        remove_tree(&root.path().join("a")).unwrap();
        assert!(!root.path().join("a").exists());
        remove_tree(&root.path().join("a")).unwrap();
    }
}
