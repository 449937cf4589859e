//! Log files on the disk: finding, reading from the end, following, and keeping them short.

use std::convert::Infallible;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cri::message::{
    ContainerFilter, ContainerState, ContainerStateValue, ContainerStatusRequest,
    ListContainersRequest, ReopenContainerLogRequest,
};
use hyper::body::Frame;
use node::log::{Printer, Query, tail_start};
use objects::pod::{ContainerStatus, Pod};
use runtime::report;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{Shared, disk};

/// Bytes read at once.
const BLOCK: usize = 32 << 10;
/// How often a followed file is looked at.
const FOLLOW_BEAT: Duration = Duration::from_millis(200);
/// How often log sizes are looked at.
const ROTATE_BEAT: Duration = Duration::from_secs(30);

/// A container's logs, one file per life.
#[derive(Debug, Clone)]
pub(super) struct Log {
    dir: PathBuf,
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    attempt: u32,
}

impl Log {
    /// The logs of one container.
    pub(super) fn new(shared: &Shared, pod: &Pod, container: &str) -> Self {
        Self {
            dir: disk::log_dir(shared, pod).join(container),
            namespace: pod.metadata.namespace.clone(),
            pod: pod.metadata.name.clone(),
            uid: node::manifest::local_uid(pod).to_owned(),
            container: container.to_owned(),
            attempt: 0,
        }
    }

    /// The lives that have a file, oldest first.
    pub(super) async fn attempts(&self) -> Vec<u32> {
        let mut found = Vec::new();
        let Ok(mut entries) = tokio::fs::read_dir(&self.dir).await else { return found };
        while let Ok(Some(entry)) = entries.next_entry().await {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.extend(name.strip_suffix(".log").and_then(|n| n.parse::<u32>().ok()));
        }
        found.sort_unstable();
        found
    }

    /// The log of one life.
    pub(super) fn at(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Tells whether the container is between two lives.
    pub(super) fn is_waiting(&self, pod: &Pod) -> bool {
        self.status(pod).is_some_and(|status| status.state.waiting.is_some())
    }

    fn path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.attempt))
    }

    fn status<'a>(&self, pod: &'a Pod) -> Option<&'a ContainerStatus> {
        let all = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
        all.into_iter().find(|status| status.name == self.container)
    }

    /// Tells whether more may be written, as far as the API knows.
    fn is_live(&self, shared: &Shared) -> bool {
        let pod = shared.pods.get(&self.namespace, &self.pod);
        pod.filter(|pod| pod.metadata.uid == self.uid).is_some_and(|pod| {
            self.status(&pod).is_none_or(|status| {
                let count = status.restart_count.unwrap_or(0);
                // The status may be a moment behind the file, never ahead of its end.
                count <= i64::from(self.attempt)
                    && status.state.terminated.is_none()
                    && !(status.state.waiting.is_some() && status.last_state.terminated.is_some())
            })
        })
    }
}

type Sender = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// Sends what was asked for; ends when all is sent, the reader is gone, or the container ended.
pub(super) async fn read(shared: Arc<Shared>, log: Log, query: Query, sender: Sender) {
    if let Err(err) = try_read(&shared, &log, &query, &sender).await {
        debug!(path = %log.path().display(), err = report(&err), "cannot read a log");
    }
}

async fn try_read(shared: &Shared, log: &Log, query: &Query, sender: &Sender) -> io::Result<()> {
    let mut file = File::open(log.path()).await?;
    if let Some(lines) = query.tail {
        seek_tail(&mut file, lines).await?;
    }
    let mut printer = Printer::new(query);
    let mut buffer = vec![0; BLOCK];
    let mut ended = false;
    loop {
        let length = file.read(&mut buffer).await?;
        if length > 0 {
            let mut out = Vec::new();
            printer.feed(buffer.get(..length).unwrap_or_default(), &mut out);
            if !out.is_empty() && sender.send(Ok(Frame::data(out.into()))).await.is_err() {
                return Ok(());
            }
            if printer.is_full() {
                return Ok(());
            }
            continue;
        }
        if let Some(fresh) = rotated(&file, &log.path()).await {
            file = fresh;
            continue;
        }
        if !query.follow || ended {
            return Ok(());
        }
        // The end is read once more after the container is known to have ended.
        ended = !log.is_live(shared);
        tokio::select! {
            () = sender.closed() => return Ok(()),
            () = tokio::time::sleep(FOLLOW_BEAT) => {}
        }
    }
}

/// The new file, when the path no longer names the open one.
async fn rotated(open: &File, path: &Path) -> Option<File> {
    use std::os::unix::fs::MetadataExt;
    let have = open.metadata().await.ok()?.ino();
    let there = tokio::fs::metadata(path).await.ok()?.ino();
    if have == there {
        return None;
    }
    File::open(path).await.ok()
}

/// Seeks to where the last lines of a file begin.
async fn seek_tail(file: &mut File, lines: u64) -> io::Result<()> {
    let mut end = file.metadata().await?.len();
    let mut left = lines;
    let mut last = true;
    let block = u64::try_from(BLOCK).unwrap_or(u64::MAX);
    if lines == 0 {
        file.seek(SeekFrom::Start(end)).await?;
        return Ok(());
    }
    while end > 0 {
        let start = end.saturating_sub(block);
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(start)).unwrap_or(0)];
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(&mut bytes).await?;
        let (offset, found) = tail_start(&bytes, left, last);
        if found == left {
            let offset = u64::try_from(offset).unwrap_or(0);
            file.seek(SeekFrom::Start(start.saturating_add(offset))).await?;
            return Ok(());
        }
        left = left.saturating_sub(found);
        end = start;
        last = false;
    }
    file.seek(SeekFrom::Start(0)).await?;
    Ok(())
}

/// Keeps logs short until `stop`: one that is too long is moved away and begun anew.
pub(crate) async fn rotate(stop: CancellationToken, shared: Arc<Shared>) {
    loop {
        tokio::select! { biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ROTATE_BEAT) => {}
        }
        if let Err(err) = rotate_all(&shared).await {
            warn!(err = report(&err), "cannot look at the logs of containers");
        }
    }
}

async fn rotate_all(shared: &Shared) -> Result<(), cri::CallError> {
    let running = ContainerStateValue { state: i32::from(ContainerState::Running) };
    let filter = ContainerFilter { state: Some(running), ..ContainerFilter::default() };
    let request = ListContainersRequest { filter: Some(filter) };
    for found in shared.runtime.list_containers(request).await?.containers {
        let request = ContainerStatusRequest { container_id: found.id.clone(), verbose: false };
        let Ok(answer) = shared.runtime.container_status(request).await else { continue };
        let path = PathBuf::from(answer.status.unwrap_or_default().log_path);
        let length = tokio::fs::metadata(&path).await.map_or(0, |meta| meta.len());
        if length < shared.config.settings.log_bytes_max {
            continue;
        }
        // Its name cannot be taken for a life's log, and tells its age.
        let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
        let old = path.with_extension(format!("log.{stamp}"));
        if let Err(err) = tokio::fs::rename(&path, &old).await {
            warn!(path = %path.display(), err = report(&err), "cannot move a log away");
            continue;
        }
        let request = ReopenContainerLogRequest { container_id: found.id };
        if let Err(err) = shared.runtime.reopen_container_log(request).await {
            warn!(path = %path.display(), err = report(&err), "the runtime did not reopen a log");
        }
        // The one that is written counts too.
        let kept = shared.config.settings.log_files_max.saturating_sub(1);
        if let Err(err) = remove_old(&path, kept).await {
            warn!(path = %path.display(), err = report(&err), "cannot remove an old log");
        }
    }
    Ok(())
}

/// Removes all but the newest files that a log was moved to.
async fn remove_old(path: &Path, kept: usize) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut old = Vec::new();
    let mut entries = tokio::fs::read_dir(dir).await?;
    while let Some(entry) = entries.next_entry().await? {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            old.push(entry.path());
        }
    }
    old.sort();
    let gone = old.len().saturating_sub(kept);
    for path in old.into_iter().take(gone) {
        tokio::fs::remove_file(path).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_old_logs_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "0.log",
            "1.log",
            "0.log.20260101-000001",
            "0.log.20260101-000003",
            "0.log.20260101-000002",
            "10.log.20260101-000000",
        ] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        remove_old(&dir.path().join("0.log"), 2).await.unwrap();
        let mut left: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "0.log",
                "0.log.20260101-000002",
                "0.log.20260101-000003",
                "1.log",
                "10.log.20260101-000000"
            ]
        );
    }

    #[tokio::test]
    async fn the_tail_of_a_long_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let text: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, &text).unwrap();
        for lines in [0_u64, 1, 2, 9_999, 20_000, 30_000] {
            let mut file = File::open(&path).await.unwrap();
            seek_tail(&mut file, lines).await.unwrap();
            let mut rest = String::new();
            file.read_to_string(&mut rest).await.unwrap();
            let found = u64::try_from(rest.lines().count()).unwrap();
            assert_eq!(found, lines.min(20_000));
            assert!(text.ends_with(&rest));
        }
    }
}
