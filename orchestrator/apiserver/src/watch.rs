//! WATCH: a cursor on the store, rendered event by event.
//!
//! A watch owns a place in the store's window and no queue. An object that enters or leaves the
//! selection is told as ADDED or DELETED, because each change carries what was before it.

use std::sync::Arc;
use std::time::Duration;

use api::Form;
use api::list::{self, ListMeta};
use api::table::render_table;
use bytes::Bytes;
use http::header::ACCEPT;
use objects::Status;
use rand::Rng as _;
use serde_json::{Value, json};
use store::{Change, Compacted, Item, Query, Watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use crate::handle::Call;
use crate::object;
use crate::read::{parse_version, selected_prefix};
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
pub(crate) fn answer(call: &Call<'_>) -> Result<Answer, Status> {
    let form = api::negotiate(call.header(ACCEPT))?;
    let options = &call.request.options;
    let with_initial = initial_events(call)?;
    let version = match options.resource_version.as_str() {
        "" | "0" => None,
        version => Some(parse_version(version)?),
    };
    let watching = Watching::begin(call, form, with_initial, version);
    let stream = futures_util::stream::unfold(watching, |mut watching| async move {
        let piece = watching.next().await?;
        Some((piece, watching))
    });
    Ok(respond::stream("application/json", stream))
}

/// Whether the watch begins with what is there already, and ends that with a bookmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Initial {
    None,
    Events,
    EventsAndBookmark,
}

fn initial_events(call: &Call<'_>) -> Result<Initial, Status> {
    let options = &call.request.options;
    let forbidden = |field: &str, why: &str| {
        let cause = objects::Cause::forbidden(field, why);
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {why}");
        let details = objects::status::Details { causes: vec![cause], ..Default::default() };
        Status::failure(422, "Invalid", message).with(details)
    };
    let matching = options.resource_version_match.as_str();
    match options.send_initial_events {
        Some(_) if matching != "NotOlderThan" => Err(forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )),
        None if !matching.is_empty() => Err(forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
        Some(true) if options.allow_watch_bookmarks => Ok(Initial::EventsAndBookmark),
        Some(true) => Ok(Initial::Events),
        None if matches!(options.resource_version.as_str(), "" | "0") => Ok(Initial::Events),
        Some(false) | None => Ok(Initial::None),
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
    deadline: Instant,
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
        Self {
            watch: server.store.watch(&shelf, &prefix, after),
            server,
            request,
            form,
            present: present.into_iter(),
            bookmark_present: initial == Initial::EventsAndBookmark,
            columns: true,
            bookmarks,
            deadline: Instant::now() + Duration::from_secs(seconds),
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
            let stop = self.server.stop.clone();
            tokio::select! { biased;
                () = stop.cancelled() => return None,
                () = sleep_until(self.deadline) => {
                    self.ended = true;
                    if self.request.options.allow_watch_bookmarks && self.drain(&mut out) {
                        self.bookmark(&mut out, false);
                    }
                    return (!out.is_empty()).then(|| out.into());
                }
                changes = self.watch.next() => match changes {
                    Ok(changes) => self.changes(&mut out, &changes),
                    Err(compacted) => self.expire(&mut out, compacted),
                },
                _ = self.bookmarks.tick() => {
                    if self.request.options.allow_watch_bookmarks && self.drain(&mut out) {
                        self.bookmark(&mut out, false);
                    }
                }
            }
        }
        Some(out.into())
    }

    /// Tells what is ready; whether the watch goes on.
    fn drain(&mut self, out: &mut Vec<u8>) -> bool {
        match self.watch.ready() {
            Ok(changes) => {
                let more = !changes.is_empty();
                self.changes(out, &changes);
                // With changes still coming a bookmark can wait.
                !more
            }
            Err(compacted) => {
                self.expire(out, compacted);
                false
            }
        }
    }

    fn changes(&mut self, out: &mut Vec<u8>, changes: &[Arc<Change>]) {
        for change in changes {
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
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(what.as_bytes());
        out.extend_from_slice(b"\",\"object\":");
        if self.form == Form::Json && !self.request.is_alias() {
            object::append(out, item, revision);
        } else {
            let object = list::served(&self.request, &object::decode(item, revision));
            self.value(out, &object, revision);
        }
        out.extend_from_slice(b"}\n");
    }

    fn value(&mut self, out: &mut Vec<u8>, object: &Value, revision: u64) {
        let shown = match self.form {
            Form::Json => None,
            Form::Partial(version) => Some(list::partial_object(object, version)),
            Form::Table(version) => {
                let meta = ListMeta { revision, ..ListMeta::default() };
                let columns = std::mem::take(&mut self.columns);
                Some(render_table(&self.request, [object], &meta, version, columns, now()))
            }
        };
        put(out, shown.as_ref().unwrap_or(object));
    }

    fn bookmark(&mut self, out: &mut Vec<u8>, end_of_initial: bool) {
        let revision = self.watch.seen();
        let bookmark = list::bookmark(&self.request, revision, end_of_initial);
        out.extend_from_slice(b"{\"type\":\"BOOKMARK\",\"object\":");
        match self.form {
            Form::Json => put(out, &bookmark),
            Form::Partial(version) => {
                put(out, &list::partial_object(&bookmark, version));
            }
            Form::Table(version) => {
                let meta = ListMeta { revision, ..ListMeta::default() };
                put(out, &render_table(&self.request, [], &meta, version, false, now()));
            }
        }
        out.extend_from_slice(b"}\n");
    }

    fn expire(&mut self, out: &mut Vec<u8>, compacted: Compacted) {
        self.ended = true;
        let Compacted { after, floor } = compacted;
        let status = Status::expired(format!("too old resource version: {after} ({floor})"));
        put(out, &json!({"type": "ERROR", "object": status}));
        out.push(b'\n');
    }
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
