//! Writes events for people to read.
//!
//! Telling must never hold up doing: events go through a bounded queue to one task, and are
//! dropped when it is full or the API is away. They are news, not state. What was told before is
//! counted up, what is alike is told as one, and what happens to one object all the time is told
//! now and then, see [`Correlator`].

mod correlator;

pub use correlator::{Correlator, Word};

use jiff::Timestamp;
use objects::event::Event;
use objects::meta::Object as _;
use objects::{ObjectMeta, Time};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::client::{Client, ClientError, Patch};
use crate::report;
use crate::resource::EVENTS;

/// The API takes no longer messages.
const MESSAGE_CHARS_MAX: usize = 1024;

/// The end that tells; cheap to clone.
#[derive(Debug, Clone)]
pub struct Teller {
    queue: mpsc::Sender<Event>,
}

/// The end that writes.
#[derive(Debug)]
pub struct Recorder {
    client: Client,
    queue: mpsc::Receiver<Event>,
    correlator: Correlator,
}

/// Makes both ends; at most `waiting` events wait to be written.
#[must_use]
pub fn channel(client: Client, waiting: usize) -> (Teller, Recorder) {
    let (sender, queue) = mpsc::channel(waiting.max(1));
    let correlator = Correlator::default();
    (Teller { queue: sender }, Recorder { client: client.briefly(), queue, correlator })
}

impl Teller {
    /// Tells that something happened just now, unless too much is waiting already. Whoever calls
    /// says what happened to what, how grave it is, and who tells; name, place and time are given
    /// here.
    pub fn tell(&self, mut event: Event) {
        let now = Time::from(Timestamp::now());
        let about = &event.involved_object;
        let namespace = if about.namespace.is_empty() { "default" } else { &about.namespace };
        let name = format!("{}.{:016x}", about.name, rand::random::<u64>());
        event.metadata = ObjectMeta::in_namespace(namespace, &name);
        if event.message.len() > MESSAGE_CHARS_MAX {
            event.message = event.message.chars().take(MESSAGE_CHARS_MAX).collect();
        }
        event.first_timestamp = Some(now);
        event.last_timestamp = Some(now);
        event.count = 1;
        if let Err(refused) = self.queue.try_send(event) {
            let reason = refused.into_inner().reason;
            debug!(reason, "event dropped: too many wait");
        }
    }
}

impl Recorder {
    /// Writes until `stop`, or until nobody is left who tells.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let event = tokio::select! { biased;
                () = stop.cancelled() => return,
                event = self.queue.recv() => event,
            };
            let Some(event) = event else { return };
            if let Err(err) = self.write(event).await {
                debug!(err = report(&err), "event not written");
            }
        }
    }

    async fn write(&mut self, event: Event) -> Result<(), ClientError> {
        let Some(word) = self.correlator.hear(event, Timestamp::now()) else { return Ok(()) };
        let event = match word {
            Word::New(event) => event,
            Word::Again(event) => {
                let meta = &event.metadata;
                let body = json!({
                    "count": event.count, "lastTimestamp": event.last_timestamp,
                    "message": event.message,
                });
                let (namespace, patch) = (Some(meta.namespace.as_str()), Patch::merge(body));
                match self.client.patch(&EVENTS, namespace, &meta.name, &patch).await {
                    // It has expired, or was never written: it is told anew.
                    Err(err) if err.is_not_found() => event,
                    other => return other.map(drop),
                }
            }
        };
        let value = event.encode().map_err(|source| ClientError::Encode { source })?;
        self.client.create(&EVENTS, Some(&event.metadata.namespace), &value).await.map(drop)
    }
}
