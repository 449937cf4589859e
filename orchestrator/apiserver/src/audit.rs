//! The audit log: a line of JSON for each thing that is to be noted.
//!
//! What is noted the policy says (`api::authority::audit`). Lines go through a bounded queue to
//! one writer; when the disk is slower than the requests, requests wait, and nothing is lost.
//!
//! Tasks: the writer, which ends when all that was noted is written.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use api::authority::audit::{
    Level, Noted, Outcome, Policy, PolicyError, Stage, Verdict, parse_body, render,
};
use api::said::{Annotation, Said};
use api::{Attributes, User};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::request::Parts;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, SizeHint};
use jiff::Timestamp;
use objects::Status;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::gate::Asker;
use crate::handle::Peer;
use crate::identity::Audit;
use crate::respond::{Answer, Body};
use crate::server::{Server, now};

/// Lines that may wait for the disk.
const QUEUE_LINES_MAX: usize = 10_000;
/// Lines written at a time.
const BATCH_LINES_MAX: usize = 512;
/// The header that carries a request's id, both ways.
const AUDIT_ID: &str = "audit-id";
/// Characters of an id that a client may choose.
const ID_CHARS_MAX: usize = 64;

/// Why the audit log cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A file cannot be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The policy means nothing.
    #[error("cannot use the audit policy")]
    Policy(#[from] PolicyError),
}

/// The policy, and the way to the writer.
#[derive(Debug)]
pub(crate) struct AuditLog {
    policy: Policy,
    lines: Mutex<Option<mpsc::Sender<String>>>,
    writer: Mutex<Option<Writer>>,
}

/// Writes lines to a file and begins a new one when it has grown.
#[derive(Debug)]
struct Writer {
    inbox: mpsc::Receiver<String>,
    log: LogFile,
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    size_bytes_max: u64,
    backups_max: usize,
    /// The time in the name of the newest backup of this run.
    rotated: Timestamp,
}

impl AuditLog {
    /// Reads the policy and opens the file.
    pub(crate) fn open(settings: &Audit) -> Result<Self, AuditError> {
        let path = &settings.policy_file;
        let text = std::fs::read_to_string(path)
            .map_err(|source| AuditError::File { path: path.clone(), source })?;
        let (lines, inbox) = mpsc::channel(QUEUE_LINES_MAX);
        let log = LogFile::open(settings)?;
        Ok(Self {
            policy: Policy::parse(&text)?,
            lines: Mutex::new(Some(lines)),
            writer: Mutex::new(Some(Writer { inbox, log })),
        })
    }

    fn sender(&self) -> Option<mpsc::Sender<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes until [`AuditLog::close`] and all that was noted before is written.
    pub(crate) async fn write(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Writer { mut inbox, mut log }) = writer else { return };
        let mut batch = Vec::new();
        while inbox.recv_many(&mut batch, BATCH_LINES_MAX).await > 0 {
            let lines = std::mem::take(&mut batch);
            let written = tokio::task::spawn_blocking(move || {
                if let Err(err) = log.append(&lines) {
                    tracing::error!(%err, path = %log.path.display(), "the audit log is not kept");
                }
                log
            });
            match written.await {
                Ok(back) => log = back,
                Err(_) => return,
            }
        }
    }

    /// Takes no more lines.
    pub(crate) fn close(&self) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl LogFile {
    fn open(settings: &Audit) -> Result<Self, AuditError> {
        let path = settings.log_path.clone();
        let failed = |source| AuditError::File { path: path.clone(), source };
        let file = open_log(&path).map_err(failed)?;
        let size_bytes = file.metadata().map_err(failed)?.len();
        let size_bytes_max = settings.megabytes_max.max(1).saturating_mul(1 << 20);
        let backups_max = settings.backups_max;
        let rotated = Timestamp::UNIX_EPOCH;
        Ok(Self { path, file, size_bytes, size_bytes_max, backups_max, rotated })
    }

    fn append(&mut self, lines: &[String]) -> std::io::Result<()> {
        let text = lines.concat();
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        if self.size_bytes > 0 && self.size_bytes.saturating_add(length) > self.size_bytes_max {
            self.rotate()?;
        }
        self.file.write_all(text.as_bytes())?;
        self.size_bytes = self.size_bytes.saturating_add(length);
        Ok(())
    }

    /// Puts the file aside under the time's name, and begins a new one.
    fn rotate(&mut self) -> std::io::Result<()> {
        // Names tell the order, even of two that are put aside in one moment.
        let step = jiff::SignedDuration::from_millis(1);
        self.rotated = now().max(self.rotated.saturating_add(step).unwrap_or(self.rotated));
        std::fs::rename(&self.path, self.backup(self.rotated))?;
        self.file = open_log(&self.path)?;
        self.size_bytes = 0;
        let mut backups = self.backups()?;
        backups.sort();
        let old = backups.len().saturating_sub(self.backups_max);
        for path in backups.into_iter().take(if self.backups_max == 0 { 0 } else { old }) {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }

    fn stem(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| {
            part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
        };
        (text(self.path.file_stem()), text(self.path.extension()))
    }

    fn backup(&self, at: Timestamp) -> PathBuf {
        let (stem, extension) = self.stem();
        let time = at.strftime("%Y-%m-%dT%H-%M-%S%.3f");
        let dot = if extension.is_empty() { "" } else { "." };
        self.path.with_file_name(format!("{stem}-{time}{dot}{extension}"))
    }

    fn backups(&self) -> std::io::Result<Vec<PathBuf>> {
        let (stem, extension) = self.stem();
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir.unwrap_or(Path::new(".")))? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let time = name
                .as_deref()
                .and_then(|name| name.strip_prefix(&format!("{stem}-"))?.strip_suffix(&extension));
            if time.is_some_and(|time| time.starts_with(|c: char| c.is_ascii_digit())) {
                found.push(path);
            }
        }
        Ok(found)
    }
}

fn open_log(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// What is caught of a request while it is answered; travels in its extensions.
#[derive(Debug, Clone)]
pub(crate) struct Caught(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    level: Level,
    sent: OnceLock<Bytes>,
    decision: OnceLock<(bool, String)>,
    annotations: Mutex<BTreeMap<String, String>>,
}

/// Catches what was sent.
pub(crate) fn catch_body(parts: &Parts, bytes: &Bytes) {
    if let Some(caught) = parts.extensions.get::<Caught>() {
        // A request has one body.
        let _first = caught.0.sent.set(bytes.clone()).is_ok();
    }
}

/// Catches whether it was allowed, and why.
pub(crate) fn catch_decision(parts: &Parts, allowed: bool, reason: &str) {
    if let Some(caught) = parts.extensions.get::<Caught>() {
        let _first = caught.0.decision.set((allowed, reason.to_owned())).is_ok();
    }
}

/// Catches what admission has for the log; the first to use a name keeps it.
pub(crate) fn catch_annotations(caught: Option<&Caught>, said: &Said) {
    let Some(Caught(inner)) = caught else { return };
    let level = inner.level;
    let mut kept = inner.annotations.lock().unwrap_or_else(PoisonError::into_inner);
    for Annotation { key, value, .. } in said.annotations.iter().filter(|one| one.level <= level) {
        kept.entry(key.clone()).or_insert_with(|| value.clone());
    }
}

/// A request that is noted.
#[derive(Debug)]
pub(crate) struct Entry {
    verdict: Verdict,
    id: String,
    uri: String,
    user: User,
    impersonated: Option<User>,
    address: String,
    agent: String,
    asked: Attributes,
    received: Timestamp,
    content_type: String,
    caught: Caught,
    lines: mpsc::Sender<String>,
}

/// Begins to note a request, if it is to be noted.
pub(crate) async fn begin(
    server: &Server,
    peer: &Peer,
    parts: &mut Parts,
    asker: &Result<Asker, Status>,
    asked: &Attributes,
) -> Option<Entry> {
    let log = server.audit.as_ref()?;
    let header = |name: &str| {
        let value = parts.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let (user, impersonated) = match asker {
        Ok(Asker { user, impersonator: Some(real) }) => (real.clone(), Some(user.clone())),
        Ok(Asker { user, impersonator: None }) => (user.clone(), None),
        Err(_) => (User::default(), None),
    };
    let verdict = log.policy.verdict(&user, asked);
    if verdict.level == Level::None {
        return None;
    }
    let chosen = header(AUDIT_ID);
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let usable = !chosen.is_empty() && chosen.len() <= ID_CHARS_MAX && chosen.chars().all(plain);
    let inner = Inner { level: verdict.level, ..Inner::default() };
    let entry = Entry {
        verdict,
        id: if usable { chosen } else { uuid::Uuid::new_v4().to_string() },
        uri: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        user,
        impersonated,
        address: peer.address.to_string(),
        agent: header(USER_AGENT.as_str()),
        asked: asked.clone(),
        received: now(),
        content_type: header(CONTENT_TYPE.as_str()),
        caught: Caught(Arc::new(inner)),
        lines: log.sender()?,
    };
    parts.extensions.insert(entry.caught.clone());
    if let Some(line) = entry.line(Stage::RequestReceived, None) {
        entry.send(line).await;
    }
    Some(entry)
}

impl Entry {
    fn line(&self, stage: Stage, outcome: Option<&Outcome>) -> Option<String> {
        let noted = Noted {
            verdict: &self.verdict,
            id: &self.id,
            uri: &self.uri,
            user: &self.user,
            impersonated: self.impersonated.as_ref(),
            address: &self.address,
            agent: &self.agent,
            asked: &self.asked,
            received: self.received,
        };
        let event = || format!("{}\n", render(&noted, stage, outcome, now()));
        self.verdict.notes(stage).then(event)
    }

    async fn send(&self, line: String) {
        // The writer outlives the requests, so that this fails only while the server ends.
        let _noted = self.lines.send(line).await.is_ok();
    }

    /// Notes how a request went; of one that goes on, when it ends.
    pub(crate) async fn end(self, mut answer: Answer) -> Answer {
        if let Ok(id) = self.id.parse() {
            answer.headers_mut().insert(AUDIT_ID, id);
        }
        let (parts, body) = answer.into_parts();
        let long = body.size_hint().exact().is_none();
        let mut outcome = Outcome { code: parts.status.as_u16(), ..self.caught() };
        if long {
            if matches!(self.asked.verb.as_str(), "watch" | "connect")
                && let Some(line) = self.line(Stage::ResponseStarted, Some(&outcome))
            {
                self.send(line).await;
            }
            let watched = Watched { body, entry: self, outcome };
            return Answer::from_parts(parts, watched.boxed_unsync());
        }
        // It is in memory already, so this does not wait.
        let bytes = match body.collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(never) => match never {},
        };
        let media = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        outcome.answered = parse_body(media.unwrap_or_default(), &bytes)
            .filter(|_| self.verdict.level == Level::RequestResponse || outcome.code >= 400);
        if let Some(line) = self.line(Stage::ResponseComplete, Some(&outcome)) {
            self.send(line).await;
        }
        Answer::from_parts(parts, http_body_util::Full::new(bytes).boxed_unsync())
    }

    fn caught(&self) -> Outcome {
        let inner = &self.caught.0;
        let sent = inner.sent.get().filter(|_| self.verdict.level >= Level::Request);
        let sent: Option<Value> = sent.and_then(|bytes| parse_body(&self.content_type, bytes));
        let annotations = inner.annotations.lock().unwrap_or_else(PoisonError::into_inner);
        Outcome {
            code: 0,
            sent,
            answered: None,
            decision: inner.decision.get().cloned(),
            annotations: annotations.clone(),
        }
    }
}

/// The body of an answer that goes on; when it ends, that is noted.
struct Watched {
    body: Body,
    entry: Entry,
    outcome: Outcome,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(line) = self.entry.line(Stage::ResponseComplete, Some(&self.outcome))
            && self.entry.lines.try_send(line).is_err()
        {
            tracing::warn!(id = self.entry.id, "the end of a long answer is not in the audit log");
        }
    }
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grown_log_is_put_aside_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Audit {
            policy_file: PathBuf::new(),
            log_path: dir.path().join("audit.log"),
            megabytes_max: 1,
            backups_max: 2,
        };
        let mut log = LogFile::open(&settings).unwrap();
        log.size_bytes_max = 10;
        for line in ["one-line\n", "two-line\n", "three\n", "four-line\n", "five-line\n"] {
            log.append(&[line.to_owned()]).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&settings.log_path).unwrap(), "five-line\n");
        let mut kept: Vec<String> = log
            .backups()
            .unwrap()
            .iter()
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect();
        kept.sort();
        assert_eq!(kept, ["four-line\n", "three\n"]);
    }
}
