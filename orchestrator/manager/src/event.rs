//! Writes events for people to read.
//!
//! Telling must never hold up doing: notes go through a bounded queue to one task, and are
//! dropped when it is full. The same note again raises a count instead of making a new event.

use std::collections::BTreeMap;

use control::action::{Note, Severity};
use jiff::Timestamp;
use objects::event::{Event, EventSource};
use objects::meta::ObjectMeta;
use objects::time::Time;
use runtime::client::Patch;
use runtime::resource::EVENTS;
use runtime::{Client, report};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Notes that may wait.
const QUEUE: usize = 1024;
/// Notes remembered in order to count repetitions.
const MEMORY: usize = 1024;

/// The telling side; cheap to clone.
#[derive(Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<(&'static str, Note)>,
}

impl Events {
    /// Tells, unless too much is waiting already.
    pub(crate) fn tell(&self, by: &'static str, note: &Note) {
        if self.queue.try_send((by, note.clone())).is_err() {
            debug!(reason = note.reason, "event dropped: too many wait");
        }
    }
}

/// The writing side.
pub(crate) struct Recorder {
    client: Client,
    queue: mpsc::Receiver<(&'static str, Note)>,
    written: BTreeMap<(String, &'static str, String), (String, i64)>,
}

/// Makes both sides.
pub(crate) fn channel(client: Client) -> (Events, Recorder) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let client = client.briefly();
    (Events { queue: sender }, Recorder { client, queue, written: BTreeMap::new() })
}

impl Recorder {
    /// Writes until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let next = tokio::select! { biased;
                () = stop.cancelled() => return,
                next = self.queue.recv() => next,
            };
            let Some((by, note)) = next else { return };
            self.write(by, note).await;
        }
    }

    async fn write(&mut self, by: &'static str, note: Note) {
        let now = Timestamp::now();
        let namespace = if note.about.namespace.is_empty() {
            "default".to_owned()
        } else {
            note.about.namespace.clone()
        };
        let same = (note.about.uid.clone(), note.reason, note.message.clone());
        if let Some((name, count)) = self.written.get_mut(&same) {
            *count += 1;
            let body = json!({"count": *count, "lastTimestamp": Time::from(now)});
            let done =
                self.client.patch(&EVENTS, Some(&namespace), name, &Patch::merge(body)).await;
            match done {
                Ok(_) => return,
                // It has expired; begin a new one.
                Err(_) => self.written.remove(&same),
            };
        }
        let event = render(by, note, &namespace, now);
        let name = event.metadata.name.clone();
        match self.client.create(&EVENTS, Some(&namespace), &json!(event)).await {
            Ok(_) => {
                if self.written.len() >= MEMORY {
                    self.written.pop_first();
                }
                self.written.insert(same, (name, 1));
            }
            Err(err) => debug!(err = report(&err), "event not written"),
        }
    }
}

fn render(by: &'static str, note: Note, namespace: &str, now: Timestamp) -> Event {
    let name = format!("{}.{:016x}", note.about.name, now.as_nanosecond());
    let at = Some(Time::from(now));
    let severity = match note.severity {
        Severity::Normal => "Normal",
        Severity::Warning => "Warning",
    };
    Event {
        metadata: ObjectMeta::in_namespace(namespace, &name),
        involved_object: note.about,
        reason: note.reason.to_owned(),
        message: note.message,
        source: EventSource { component: by.to_owned(), ..EventSource::default() },
        first_timestamp: at,
        last_timestamp: at,
        count: 1,
        severity: severity.to_owned(),
        reporting_component: by.to_owned(),
        ..Event::blank()
    }
}
