//! WATCH: a cursor on the store, rendered event by event.
//!
//! A watch owns a place in the store's window and no queue. An object that enters or leaves the
//! selection is told as ADDED or DELETED, because each change carries what was before it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::Form;
use api::list::{self, ListMeta};
use api::protobuf;
use api::table::render_table;
use bytes::Bytes;
use objects::Status;
use rand::Rng as _;
use serde_json::{Value, json};
use store::{Change, Compacted, Item, Query, Watch};
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval_at, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::convert;
use crate::handle::Call;
use crate::object;
use crate::read::{form_of, parse_version, selected_prefix, wait_until_fresh};
use crate::respond::{self, Answer};
use crate::server::{Server, now};

/// A watch without a time-out ends somewhere in here, so that not all clients return at once.
const DURATION_SECONDS: std::ops::Range<u64> = 1800..3600;
/// The longest time-out a client may ask for.
const DURATION_SECONDS_MAX: u64 = 24 * 3600;
/// How often a quiet watch is told how far it has come.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Events are gathered up to this size when many are ready at once.
const PIECE_BYTES: usize = 64 << 10;

/// Answers WATCH.
pub(crate) async fn answer(call: &Call<'_>) -> Result<Answer, Status> {
    let form = form_of(call)?;
    if form == Form::Yaml {
        return Err(api::accept::refused());
    }
    let options = &call.request.options;
    list::check_watch(options)?;
    let with_initial = initial_events(options);
    let version = match options.resource_version.as_str() {
        "" | "0" => None,
        version => Some(parse_version(version)?),
    };
    if options.send_initial_events == Some(true) {
        // What is there at first must not be older than what the client knows.
        wait_until_fresh(call, &options.resource_version).await?;
    }
    let mut watching = Watching::begin(call, form, with_initial, version);
    let present = std::mem::take(&mut watching.present).collect();
    watching.present = convert::items(call.server, &call.request, present).await?.into_iter();
    let stream = futures_util::stream::unfold(watching, |mut watching| async move {
        let piece = watching.next().await?;
        Some((piece, watching))
    });
    let media = match form {
        Form::Protobuf | Form::PartialProtobuf(_) => {
            "application/vnd.kubernetes.protobuf;stream=watch"
        }
        Form::Json | Form::Yaml | Form::Table(_) | Form::Partial(_) => "application/json",
    };
    Ok(respond::stream(media, stream))
}

/// Whether the watch begins with what is there already, and ends that with a bookmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Initial {
    None,
    Events,
    EventsAndBookmark,
}

fn initial_events(options: &api::Options) -> Initial {
    match options.send_initial_events {
        Some(true) if options.allow_watch_bookmarks => Initial::EventsAndBookmark,
        Some(true) => Initial::Events,
        None if matches!(options.resource_version.as_str(), "" | "0") => Initial::Events,
        Some(false) | None => Initial::None,
    }
}

struct Watching {
    server: Arc<Server>,
    request: api::Request,
    form: Form,
    watch: Watch,
    present: std::vec::IntoIter<Arc<Item>>,
    /// Set until the bookmark that ends the present is sent.
    bookmark_present: bool,
    columns: bool,
    bookmarks: tokio::time::Interval,
    /// Both live as long as the watch: making them anew for each event costs more than the event.
    deadline: Pin<Box<Sleep>>,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Set when the watch cannot begin where the client wants it to.
    lost: Option<Compacted>,
    ended: bool,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.server.metrics.watching(-1);
    }
}

impl Watching {
    fn begin(call: &Call<'_>, form: Form, initial: Initial, version: Option<u64>) -> Self {
        let (server, request) = (Arc::clone(call.server), call.request.clone());
        let shelf = server.shelf(request.kind);
        let prefix = selected_prefix(&request);
        let mut present = Vec::new();
        let newest = server.store.revision();
        let mut after = version.unwrap_or(newest);
        // Nobody can have seen what has not happened: the client knows another store's
        // revisions, and must list anew rather than wait for them to come round again.
        let lost = (after > newest).then_some(Compacted { after, floor: newest });
        if initial != Initial::None {
            let query =
                Query { shelf: &shelf, prefix: &prefix, after: None, at: None, limit: usize::MAX };
            // The present can always be read.
            if let Ok(page) = server.store.range(&query) {
                after = page.revision;
                present = page.items;
                present.retain(|item| matches(&request, Some(item)));
            }
        }
        let seconds = request
            .options
            .timeout_seconds
            .filter(|seconds| *seconds > 0)
            .unwrap_or_else(|| rand::rng().random_range(DURATION_SECONDS))
            .min(DURATION_SECONDS_MAX);
        let mut bookmarks = interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        server.metrics.watching(1);
        let stop = server.stop.clone().cancelled_owned();
        Self {
            watch: server.store.watch(&shelf, &prefix, after),
            server,
            request,
            form,
            present: present.into_iter(),
            bookmark_present: initial == Initial::EventsAndBookmark,
            columns: true,
            bookmarks,
            deadline: Box::pin(sleep_until(Instant::now() + Duration::from_secs(seconds))),
            stopped: Box::pin(stop),
            lost,
            ended: false,
        }
    }

    /// The next events; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        if let Some(lost) = self.lost.take() {
            self.expire(&mut out, lost);
            return Some(out.into());
        }
        while out.len() < PIECE_BYTES
            && let Some(item) = self.present.next()
        {
            self.event(&mut out, "ADDED", &item, item.modified());
        }
        if self.present.len() == 0 && std::mem::take(&mut self.bookmark_present) {
            self.bookmark(&mut out, true);
        }
        while out.is_empty() {
            tokio::select! { biased;
                () = &mut self.stopped => return None,
                () = &mut self.deadline => {
                    self.ended = true;
                    if self.request.options.allow_watch_bookmarks && self.drain(&mut out).await {
                        self.bookmark(&mut out, false);
                    }
                    return (!out.is_empty()).then(|| out.into());
                }
                changes = self.watch.next() => match changes {
                    Ok(changes) => self.changes(&mut out, changes).await,
                    Err(compacted) => self.expire(&mut out, compacted),
                },
                _ = self.bookmarks.tick() => {
                    if self.request.options.allow_watch_bookmarks && self.drain(&mut out).await {
                        self.bookmark(&mut out, false);
                    }
                }
            }
        }
        Some(out.into())
    }

    /// Tells what is ready; whether the watch goes on.
    async fn drain(&mut self, out: &mut Vec<u8>) -> bool {
        match self.watch.ready() {
            Ok(changes) => {
                let more = !changes.is_empty();
                self.changes(out, changes).await;
                // With changes still coming a bookmark can wait.
                !more
            }
            Err(compacted) => {
                self.expire(out, compacted);
                false
            }
        }
    }

    async fn changes(&mut self, out: &mut Vec<u8>, changes: Vec<Arc<Change>>) {
        let changes = match convert::changes(&self.server, &self.request, changes).await {
            Ok(changes) => changes,
            // Leaving events out would hide changes, so the watch ends and is begun anew.
            Err(status) => return self.fail(out, &status),
        };
        for change in &changes {
            let before = matches(&self.request, change.previous.as_ref());
            let after = matches(&self.request, change.current.as_ref());
            let (what, item) = match (before, after) {
                (true, true) => ("MODIFIED", change.current.as_ref()),
                (false, true) => ("ADDED", change.current.as_ref()),
                // The last state that was selected, at the revision that ended it.
                (true, false) => ("DELETED", change.previous.as_ref()),
                (false, false) => continue,
            };
            if let Some(item) = item {
                self.event(out, what, item, change.revision);
            }
        }
    }

    fn event(&mut self, out: &mut Vec<u8>, what: &str, item: &Item, revision: u64) {
        let as_stored = !self.request.is_alias();
        match self.form {
            Form::Json | Form::Yaml if as_stored => {
                frame(out, what, |out| object::append(out, item, revision));
            }
            Form::Partial(version) if as_stored => frame(out, what, |out| {
                object::append_partial(out, item, revision, version.api_version());
            }),
            Form::Protobuf | Form::PartialProtobuf(_) if as_stored => {
                let mut json = Vec::with_capacity(item.value().len() + 24);
                object::append(&mut json, item, revision);
                self.protobuf(out, what, &json);
            }
            _ => {
                let object = list::served(&self.request, &object::decode(item, revision));
                self.value(out, what, object, revision);
            }
        }
    }

    fn value(&mut self, out: &mut Vec<u8>, what: &str, object: Value, revision: u64) {
        let shown = match self.form {
            Form::Json | Form::Yaml => object,
            Form::Protobuf | Form::PartialProtobuf(_) => {
                let json = serde_json::to_vec(&object).unwrap_or_default();
                return self.protobuf(out, what, &json);
            }
            Form::Partial(version) => list::partial_object(&object, version),
            Form::Table(version) => {
                let meta = ListMeta { revision, ..ListMeta::default() };
                let columns = std::mem::take(&mut self.columns);
                render_table(&self.request, [&object], &meta, version, columns, now())
            }
        };
        frame(out, what, |out| put(out, &shown));
    }

    /// One frame of a protobuf watch; the object comes as JSON.
    fn protobuf(&mut self, out: &mut Vec<u8>, what: &str, json: &[u8]) {
        let mut object = Vec::with_capacity(json.len());
        let wrote = match self.form {
            Form::PartialProtobuf(version) => {
                protobuf::encode_partial(&mut object, version.api_version(), json)
            }
            _ => {
                let (version, kind) = (self.request.api_version(), self.request.kind.kind);
                protobuf::encode(&mut object, &version, kind, json)
            }
        };
        match wrote {
            Ok(()) => protobuf::encode_event(out, what, &object),
            Err(err) => {
                // Leaving an event out would hide a change, so the watch ends and is begun anew.
                tracing::warn!(err = runtime::report(&err), "an event has no protobuf form");
                self.ended = true;
            }
        }
    }

    fn bookmark(&mut self, out: &mut Vec<u8>, end_of_initial: bool) {
        let revision = self.watch.seen();
        let bookmark = list::bookmark(&self.request, revision, end_of_initial);
        if let Form::Table(version) = self.form {
            let mut table = render_table(
                &self.request,
                [],
                &ListMeta { revision, ..ListMeta::default() },
                version,
                std::mem::take(&mut self.columns),
                now(),
            );
            // The row carries the annotation that ends the initial events.
            let row = json!({"cells": [], "object": list::partial_object(&bookmark, version)});
            if let Some(rows) = table.get_mut("rows").and_then(Value::as_array_mut) {
                rows.push(row);
            }
            return frame(out, "BOOKMARK", |out| put(out, &table));
        }
        self.value(out, "BOOKMARK", bookmark, revision);
    }

    fn expire(&mut self, out: &mut Vec<u8>, compacted: Compacted) {
        let Compacted { after, floor } = compacted;
        self.fail(out, &Status::expired(format!("too old resource version: {after} ({floor})")));
    }

    /// Ends the watch with an error.
    fn fail(&mut self, out: &mut Vec<u8>, status: &Status) {
        self.ended = true;
        match self.form {
            Form::Protobuf | Form::PartialProtobuf(_) => {
                let status = serde_json::to_value(status).unwrap_or_default();
                if let Ok(bytes) = protobuf::encode_value(&status) {
                    protobuf::encode_event(out, "ERROR", &bytes);
                }
            }
            Form::Json | Form::Yaml | Form::Table(_) | Form::Partial(_) => {
                let status = serde_json::to_value(status).unwrap_or_default();
                frame(out, "ERROR", |out| put(out, &status));
            }
        }
    }
}

/// One line of a JSON watch.
fn frame(out: &mut Vec<u8>, what: &str, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(what.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    write(out);
    out.extend_from_slice(b"}\n");
}

fn matches(request: &api::Request, item: Option<&Arc<Item>>) -> bool {
    let options = &request.options;
    item.is_some_and(|item| {
        (options.label_selector.is_empty() && options.field_selector.is_empty())
            || object::known(request.kind, item)
                .matches(&options.label_selector, &options.field_selector)
    })
}

fn put(out: &mut Vec<u8>, value: &Value) {
    // Writing JSON values into memory cannot fail.
    let _written = serde_json::to_writer(out, value).is_ok();
}
