//! Watches: one JSON object a line, for as long as the server likes.

use std::time::Duration;

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::Value;

use super::error::{ApiStatus, ClientError};
use super::lean;
use super::params::Query;

/// Largest line: the API refuses objects of more than 3 MiB, `old` and framing come on top.
const LINE_BYTES_MAX: usize = 16 << 20;
/// How long the server should hold a watch unless told.
const HOLD_SECONDS: u32 = 300;
/// How much longer than promised we wait before we call the watch dead.
const SLACK: Duration = Duration::from_secs(30);

/// What to watch.
#[derive(Debug, Clone, Default)]
pub struct WatchParams {
    /// Label selector; empty for all.
    pub label_selector: String,
    /// Field selector; empty for all.
    pub field_selector: String,
    /// Revision to start after: a list's `resource_version`. `None` begins with what exists.
    pub resource_version: Option<String>,
    /// Seconds until the server ends the watch; `None` means five minutes.
    pub timeout_seconds: Option<u32>,
}

impl WatchParams {
    fn hold_seconds(&self) -> u32 {
        self.timeout_seconds.unwrap_or(HOLD_SECONDS)
    }

    pub(super) fn idle_limit(&self) -> Duration {
        Duration::from_secs(u64::from(self.hold_seconds())) + SLACK
    }

    pub(super) fn render_onto(&self, path: String) -> String {
        let mut query = Query::new(path);
        query.text("watch", "true");
        query.text("allowWatchBookmarks", "true");
        query.text("labelSelector", &self.label_selector);
        query.text("fieldSelector", &self.field_selector);
        query.text("resourceVersion", self.resource_version.as_deref().unwrap_or_default());
        query.text("timeoutSeconds", &self.hold_seconds().to_string());
        query.path
    }
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    /// An object came into view.
    Added(Value),
    /// An object changed.
    Modified(Value),
    /// An object left the view; its last state, at the revision of the deletion.
    Deleted(Value),
    /// Everything up to this revision has been told.
    Bookmark(String),
    /// The server gives up; with code 410 list again.
    Error(ApiStatus),
}

/// An open watch.
#[derive(Debug)]
pub struct WatchStream {
    path: String,
    body: Incoming,
    buffer: BytesMut,
    /// Bytes of `buffer` already searched for a line end.
    searched: usize,
    idle_limit: Duration,
    /// Is what no cache wants left out?
    lean: bool,
}

impl WatchStream {
    pub(super) fn new(path: String, body: Incoming, idle_limit: Duration) -> Self {
        Self { path, body, buffer: BytesMut::new(), searched: 0, idle_limit, lean: false }
    }

    /// The same watch without owners of fields and members that are null.
    pub(crate) fn leave_out(self) -> Self {
        Self { lean: true, ..self }
    }

    /// Returns the next event; `None` when the server has ended the watch, which is normal.
    ///
    /// Cancel safety: safe, what was read is kept.
    ///
    /// # Errors
    ///
    /// When the stream breaks off or is not JSON; open a new watch at the last revision.
    pub async fn next(&mut self) -> Option<Result<WatchEvent, ClientError>> {
        loop {
            if let Some(line) = self.take_line() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Some(decode_event(&self.path, &line, self.lean));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                let path = self.path.clone();
                return Some(Err(ClientError::TooLarge { path, limit_bytes: LINE_BYTES_MAX }));
            }
            match tokio::time::timeout(self.idle_limit, self.body.frame()).await {
                Err(_) => {
                    let (path, limit) = (&self.path, self.idle_limit);
                    return Some(Err(ClientError::timeout(&http::Method::GET, path, limit)));
                }
                Ok(None) => return None,
                Ok(Some(Err(source))) => {
                    return Some(Err(ClientError::Body { path: self.path.clone(), source }));
                }
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }

    fn take_line(&mut self) -> Option<BytesMut> {
        let fresh = self.buffer.get(self.searched..)?;
        if let Some(offset) = fresh.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(self.searched + offset + 1);
            self.searched = 0;
            return Some(line);
        }
        self.searched = self.buffer.len();
        None
    }
}

#[derive(Deserialize)]
struct Line {
    r#type: String,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize)]
struct LeanLine {
    r#type: String,
    #[serde(default, deserialize_with = "lean::read")]
    object: Value,
}

fn decode_event(path: &str, line: &[u8], lean: bool) -> Result<WatchEvent, ClientError> {
    let decode = |source| ClientError::Decode { path: path.to_owned(), source };
    let line: Line = if lean {
        let LeanLine { r#type, object } = serde_json::from_slice(line).map_err(decode)?;
        Line { r#type, object }
    } else {
        serde_json::from_slice(line).map_err(decode)?
    };
    Ok(match line.r#type.as_str() {
        "ADDED" => WatchEvent::Added(line.object),
        "MODIFIED" => WatchEvent::Modified(line.object),
        "DELETED" => WatchEvent::Deleted(line.object),
        "BOOKMARK" => {
            let revision = line.object.pointer("/metadata/resourceVersion");
            WatchEvent::Bookmark(revision.and_then(Value::as_str).unwrap_or_default().to_owned())
        }
        _ => WatchEvent::Error(serde_json::from_value(line.object).map_err(decode)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_apart() {
        let decode = |line: &str| decode_event("/x", line.as_bytes(), true);
        assert!(matches!(decode(r#"{"type":"ADDED","object":{}}"#), Ok(WatchEvent::Added(_))));
        let mark = decode(r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#);
        assert!(matches!(mark, Ok(WatchEvent::Bookmark(revision)) if revision == "9"));
        let gone = decode(r#"{"type":"ERROR","object":{"code":410,"reason":"Expired"}}"#);
        assert!(matches!(gone, Ok(WatchEvent::Error(status)) if status.code == 410));
        assert!(decode("{").is_err());
    }
}
