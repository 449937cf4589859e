//! The agent's files of a pod: volumes, hosts file, last words; made and removed as planned.
//!
//! Everything of a pod is below `DATA/pods/UID`; logs are below `LOGS/NAMESPACE_NAME_UID`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use cri::message::ContainerStatus;
use kernel::mount::{Access, MountError, mount, unmount};
use node::names::{TERMINATION_POLICY, log_directory, log_file};
use objects::pod::Pod;
use runtime::report;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tracing::warn;
use volumes::layout::{DATA, Existing, Step, plan_update};
use volumes::{File, FileSet, HostPathKind, Mount, Problem, Source, SubPath, Volume};

use crate::Shared;
use crate::remote::{self, RemoteError};

/// The longest last words taken, in bytes; upstream's.
const WORDS_BYTES_MAX: u64 = 4096;
/// The end of a log in which the lines that stand in for last words are found.
const LOG_BYTES_MAX: u64 = 32 << 10;
/// The longest name of a link to a log, without its ending.
const LINK_BYTES_MAX: usize = 251;
/// What a file system for secrets holds at most, in bytes.
const SECRET_BYTES_MAX: i64 = 16 << 20;

/// Where volumes are that are outside the pod's own directories, by the name in the pod.
pub(crate) type Places = BTreeMap<String, PathBuf>;

/// Why a pod's files could not be made.
#[derive(Debug, Error)]
pub(crate) enum DiskError {
    /// The volume cannot be had.
    #[error("MountVolume.SetUp failed for volume \"{volume}\"")]
    Volume {
        /// Its name.
        volume: String,
        /// Why.
        #[source]
        source: Problem,
    },
    /// What is at a path of the node is not what the pod asks for.
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    HostPath {
        /// The path.
        path: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// A file or directory could not be made.
    #[error("cannot make {path}")]
    File {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a mount.
    #[error("cannot mount memory for a volume")]
    Mount(#[source] MountError),
    /// A volume outside the node's own directories.
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// Everything of one pod.
pub(crate) fn pod_dir(shared: &Shared, uid: &str) -> PathBuf {
    shared.config.data_dir.join("pods").join(uid)
}

/// The hosts file of a pod.
pub(crate) fn hosts_path(shared: &Shared, uid: &str) -> PathBuf {
    pod_dir(shared, uid).join("etc-hosts")
}

/// The file of a container's last words.
pub(crate) fn words_path(shared: &Shared, uid: &str, container: &str, attempt: u32) -> PathBuf {
    pod_dir(shared, uid).join("containers").join(container).join(attempt.to_string())
}

/// The directory of a pod's logs.
pub(crate) fn log_dir(shared: &Shared, pod: &Pod) -> PathBuf {
    let meta = &pod.metadata;
    let uid = node::manifest::local_uid(pod);
    shared.config.log_dir.join(log_directory(&meta.namespace, &meta.name, uid))
}

/// Links a container's log under the name by which collectors of logs find it.
///
/// Spec: upstream's `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log`. A link that cannot be
/// made is only told: the log itself is there.
pub(crate) fn link_log(shared: &Shared, pod: &Pod, (name, attempt): (&str, u32), id: &str) {
    let meta = &pod.metadata;
    let mut link = format!("{}_{}_{name}-{id}", meta.name, meta.namespace);
    link.truncate(LINK_BYTES_MAX);
    let link = links_dir(shared).join(format!("{link}.log"));
    let target = log_dir(shared, pod).join(log_file(name, attempt));
    let made = fs::create_dir_all(links_dir(shared)).and_then(|()| symlink(target, &link));
    if let Err(err) = made {
        warn!(link = %link.display(), err = report(&err), "cannot link a log");
    }
}

fn links_dir(shared: &Shared) -> PathBuf {
    shared.config.log_dir.with_file_name("containers")
}

/// Removes links to logs that are gone.
fn sweep_links(dir: &Path) {
    for name in names(dir) {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_ok_and(|meta| meta.is_symlink())
            && !link.exists()
            && let Err(err) = fs::remove_file(&link)
        {
            warn!(link = %link.display(), err = report(&err), "cannot remove a dead link");
        }
    }
}

/// Makes the volumes of a pod; may be done again at any time, and then refreshes their files.
///
/// Gives the places of those that are outside the pod's own directories, by name.
pub(crate) async fn prepare(
    shared: &Shared,
    pod: &Pod,
    volumes: Vec<Volume>,
) -> Result<Places, DiskError> {
    let suits = volumes::check_modes(pod, &volumes);
    suits.map_err(|source| DiskError::Volume { volume: pod.metadata.name.clone(), source })?;
    let mut places = Places::new();
    for volume in &volumes {
        let place = match &volume.source {
            Ok(Source::Remote(found)) => remote::set_up(shared, pod, found).await?,
            // A claim may lead to a path of the node.
            Ok(Source::HostPath { path, .. }) => PathBuf::from(path),
            _ => continue,
        };
        places.insert(volume.name.clone(), place);
    }
    let dir = pod_dir(shared, &pod.metadata.uid);
    let logs = log_dir(shared, pod);
    let group = pod.spec.security_context.as_ref().and_then(|context| context.fs_group);
    let group = group.and_then(|group| u32::try_from(group).ok());
    blocking(move || {
        make_dir(&dir, 0o750)?;
        make_dir(&logs, 0o755)?;
        for volume in volumes {
            let source = volume
                .source
                .map_err(|source| DiskError::Volume { volume: volume.name.clone(), source })?;
            apply(&dir.join("volumes").join(&volume.name), &source, group)?;
        }
        Ok(places)
    })
    .await
}

/// Where a volume that lives in the pod's own directories is.
pub(crate) fn volume_path(shared: &Shared, pod: &Pod, volume: &str) -> PathBuf {
    pod_dir(shared, &pod.metadata.uid).join("volumes").join(volume)
}

/// Where a mount of a container is on the node; `index` tells the container's mounts apart.
///
/// A part of a volume gets a mount of its own, made safely: a container may have put a link to
/// elsewhere in its place.
pub(crate) async fn mount_path(
    shared: &Shared,
    pod: &Pod,
    places: &Places,
    (container, index, mount): (&str, usize, &Mount),
) -> Result<PathBuf, DiskError> {
    let dir = pod_dir(shared, &pod.metadata.uid);
    let own = || volume_path(shared, pod, &mount.volume);
    let base = places.get(&mount.volume).cloned().unwrap_or_else(own);
    let SubPath::Part(part) = &mount.sub_path else { return Ok(base) };
    let target =
        dir.join("volume-subpaths").join(&mount.volume).join(container).join(index.to_string());
    remote::show_part(base, part.clone(), target.clone()).await?;
    Ok(target)
}

/// Writes a small file and the directories above it.
pub(crate) async fn write(path: PathBuf, text: String, mode: u32) -> Result<(), DiskError> {
    blocking(move || {
        if let Some(parent) = path.parent() {
            make_dir(parent, 0o755)?;
        }
        fs::write(&path, text).map_err(|source| DiskError::File { path: path.clone(), source })?;
        set_mode(&path, mode)
    })
    .await
}

/// Writes a file of the agent's own in one step: whoever reads it sees all of it or what was.
///
/// # Errors
///
/// When the directory cannot be written.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&beside, text)?;
    fs::File::open(&beside)?.sync_all()?;
    fs::rename(&beside, path)
}

/// Removes everything of a pod, the mounts first.
pub(crate) async fn remove(shared: &Shared, uid: &str) -> Result<(), DiskError> {
    remote::release(shared, uid).await?;
    let dir = pod_dir(shared, uid);
    let logs = shared.config.log_dir.clone();
    let suffix = format!("_{uid}");
    blocking(move || {
        remove_tree(&dir)?;
        for name in names(&logs) {
            if name.ends_with(&suffix) {
                remove_tree(&logs.join(name))?;
            }
        }
        Ok(())
    })
    .await
}

/// Removes what belongs to pods that nobody knows.
pub(crate) async fn sweep(shared: &Shared, known: &(dyn Fn(&str) -> bool + Sync)) {
    let mut uids: BTreeSet<String> =
        names(&shared.config.data_dir.join("pods")).into_iter().collect();
    let logs = names(&shared.config.log_dir);
    uids.extend(logs.iter().filter_map(|name| Some(name.rsplit_once('_')?.1.to_owned())));
    for uid in uids.iter().filter(|uid| !known(uid)) {
        if let Err(err) = remove(shared, uid).await {
            warn!(uid, err = report(&err), "cannot remove the files of a pod that is gone");
        }
    }
    let links = links_dir(shared);
    blocking(move || sweep_links(&links)).await;
    if let Err(err) = remote::collect(shared).await {
        warn!(err = report(&err), "cannot take a disk away that no pod sees");
    }
}

/// What a container said last: its termination file, or the end of its log if it may stand in.
pub(crate) async fn last_words(
    shared: &Shared,
    uid: &str,
    container: &str,
    attempt: u32,
    status: &ContainerStatus,
) -> Option<String> {
    let path = words_path(shared, uid, container, attempt);
    let words = read_end(&path, WORDS_BYTES_MAX).await.unwrap_or_default();
    if !words.is_empty() {
        return Some(words);
    }
    let policy = status.annotations.get(TERMINATION_POLICY).map(String::as_str);
    if policy != Some("FallbackToLogsOnError") || status.exit_code == 0 {
        return None;
    }
    let log = read_end(Path::new(&status.log_path), LOG_BYTES_MAX).await.unwrap_or_default();
    Some(node::log::last_lines(&log)).filter(|text| !text.is_empty())
}

async fn read_end(path: &Path, max: u64) -> io::Result<String> {
    let mut file = tokio::fs::File::open(path).await?;
    let length = file.metadata().await?.len();
    file.seek(io::SeekFrom::Start(length.saturating_sub(max))).await?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs file work off the async threads; a panic in it is one of ours and goes on up.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(err) => std::panic::resume_unwind(err.into_panic()),
    }
}

fn apply(path: &Path, source: &Source, group: Option<u32>) -> Result<(), DiskError> {
    match source {
        Source::EmptyDir { memory, size_bytes_max } => {
            let fresh = !path.exists();
            if *memory {
                mount_memory(path, *size_bytes_max)?;
            } else {
                make_dir(path, 0o777)?;
            }
            if fresh {
                give_to(path, group)?;
            }
            Ok(())
        }
        Source::HostPath { path, kind } => check_host_path(path, *kind),
        Source::Files { files, memory } => {
            if *memory {
                mount_memory(path, Some(SECRET_BYTES_MAX))?;
            }
            make_dir(path, 0o755)?;
            match group {
                Some(_) => update(path, &files.readable_by_group(), group),
                None => update(path, files, group),
            }
        }
        // Done before, for it may ask the API.
        Source::Remote(_) => Ok(()),
    }
}

fn give_to(path: &Path, group: Option<u32>) -> Result<(), DiskError> {
    let failed = |source| DiskError::File { path: path.to_owned(), source };
    match group {
        Some(group) => {
            chown(path, None, Some(group)).map_err(failed)?;
            set_mode(path, 0o2777)
        }
        None => set_mode(path, 0o777),
    }
}

fn mount_memory(path: &Path, size_bytes_max: Option<i64>) -> Result<(), DiskError> {
    if is_mount_point(path) {
        return Ok(());
    }
    make_dir(path, 0o777)?;
    let size = size_bytes_max.map(|size| format!("size={size}")).unwrap_or_default();
    mount("tmpfs", "tmpfs", path, Access::ReadWrite, &size).map_err(DiskError::Mount)
}

fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::dev(&m));
    let Some(parent) = path.parent() else { return false };
    matches!((device(path), device(parent)), (Ok(own), Ok(above)) if own != above)
}

fn check_host_path(path: &str, kind: HostPathKind) -> Result<(), DiskError> {
    let meta = fs::metadata(path);
    let is = |test: &dyn Fn(&fs::Metadata) -> bool| meta.as_ref().is_ok_and(test);
    let (good, wanted) = match kind {
        HostPathKind::Unchecked => (true, ""),
        HostPathKind::DirectoryOrCreate if meta.is_err() => {
            return make_dir(Path::new(path), 0o755);
        }
        HostPathKind::FileOrCreate if meta.is_err() => {
            let failed = |source| DiskError::File { path: path.into(), source };
            fs::write(path, "").map_err(failed)?;
            return set_mode(Path::new(path), 0o644);
        }
        HostPathKind::Directory | HostPathKind::DirectoryOrCreate => {
            (is(&fs::Metadata::is_dir), "directory")
        }
        HostPathKind::File | HostPathKind::FileOrCreate => (is(&fs::Metadata::is_file), "file"),
        HostPathKind::Socket => (is(&|m| m.file_type().is_socket()), "socket"),
        HostPathKind::CharDevice => (is(&|m| m.file_type().is_char_device()), "character device"),
        HostPathKind::BlockDevice => (is(&|m| m.file_type().is_block_device()), "block device"),
    };
    if good { Ok(()) } else { Err(DiskError::HostPath { path: path.to_owned(), wanted }) }
}

fn update(path: &Path, wanted: &FileSet, group: Option<u32>) -> Result<(), DiskError> {
    let stamp = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S_%f").to_string();
    for step in plan_update(&observe(path), wanted, &stamp) {
        apply_step(path, &step, group)?;
    }
    Ok(())
}

fn observe(path: &Path) -> Existing {
    let target = fs::read_link(path.join(DATA)).ok();
    let mut existing = Existing {
        data: target.as_ref().map(|target| target.to_string_lossy().into_owned()),
        ..Existing::default()
    };
    existing.names = names(path).into_iter().filter(|name| name != DATA).collect();
    if let Some(target) = target {
        let base = path.join(target);
        observe_files(&base, &base, &mut existing);
    }
    existing
}

fn observe_files(base: &Path, dir: &Path, existing: &mut Existing) {
    for name in names(dir) {
        let path = dir.join(&name);
        if path.is_dir() {
            observe_files(base, &path, existing);
            continue;
        }
        let Ok(relative) = path.strip_prefix(base) else { continue };
        let mode = fs::metadata(&path).map_or(0, |meta| meta.permissions().mode() & 0o777);
        let bytes = fs::read(&path).unwrap_or_default();
        existing.add(&relative.to_string_lossy(), File { bytes, mode });
    }
}

fn apply_step(base: &Path, step: &Step, group: Option<u32>) -> Result<(), DiskError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DiskError::File { path, source }
    };
    match step {
        Step::MakeDir { path } => make_dir(&base.join(path), 0o755),
        Step::Write { path, file } => {
            let path = base.join(path);
            fs::write(&path, &file.bytes).map_err(failed(&path))?;
            set_mode(&path, file.mode)?;
            if let Some(group) = group {
                chown(&path, None, Some(group)).map_err(failed(&path))?;
            }
            Ok(())
        }
        Step::Link { path, target } => {
            let path = base.join(path);
            match fs::remove_file(&path) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(&path)(err));
                }
                _ => {}
            }
            symlink(target, &path).map_err(failed(&path))
        }
        Step::Rename { from, to } => {
            let to = base.join(to);
            fs::rename(base.join(from), &to).map_err(failed(&to))
        }
        Step::Remove { path } => remove_tree(&base.join(path)),
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), DiskError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(|source| DiskError::File { path: path.to_owned(), source })?;
    set_mode(path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), DiskError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|source| DiskError::File { path: path.to_owned(), source })
}

/// Removes a file, link or directory; mounts below it are taken away first, so that nothing of
/// the node's own is reached through them.
fn remove_tree(path: &Path) -> Result<(), DiskError> {
    let failed = |source| DiskError::File { path: path.to_owned(), source };
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(failed(err)),
    };
    if !meta.is_dir() {
        return fs::remove_file(path).map_err(failed);
    }
    for point in mounts_below(path) {
        unmount(&point).map_err(DiskError::Mount)?;
    }
    fs::remove_dir_all(path).map_err(failed)
}

/// Mount points below a path, the deepest first.
fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(path)).collect();
    below.sort();
    below.reverse();
    below
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_refreshed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        make_dir(&path, 0o755).unwrap();
        let set = |text: &str| {
            let mut existing = Existing::default();
            existing.add("a/b", File { bytes: text.into(), mode: 0o400 });
            existing.files
        };
        update(&path, &set("one"), None).unwrap();
        assert_eq!(fs::read_to_string(path.join("a/b")).unwrap(), "one");
        let before = fs::read_link(path.join(DATA)).unwrap();
        update(&path, &set("one"), None).unwrap();
        assert_eq!(fs::read_link(path.join(DATA)).unwrap(), before);
        update(&path, &set("two"), None).unwrap();
        assert_eq!(fs::read_to_string(path.join("a/b")).unwrap(), "two");
        assert_eq!(names(&path).len(), 3, "{:?}", names(&path));
        remove_tree(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn links_to_logs_that_are_gone_go_too() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        fs::write(&log, "").unwrap();
        symlink(&log, dir.path().join("a.log")).unwrap();
        symlink(dir.path().join("gone"), dir.path().join("b.log")).unwrap();
        sweep_links(dir.path());
        let mut left = names(dir.path());
        left.sort();
        assert_eq!(left, ["0.log", "a.log"]);
    }

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        assert!(check_host_path(&path("none"), HostPathKind::Unchecked).is_ok());
        assert!(check_host_path(&path("none"), HostPathKind::Directory).is_err());
        assert!(check_host_path(&path("made"), HostPathKind::DirectoryOrCreate).is_ok());
        assert!(check_host_path(&path("made"), HostPathKind::Directory).is_ok());
        assert!(check_host_path(&path("made"), HostPathKind::File).is_err());
        assert!(check_host_path(&path("file"), HostPathKind::FileOrCreate).is_ok());
        assert!(check_host_path(&path("file"), HostPathKind::File).is_ok());
    }
}
