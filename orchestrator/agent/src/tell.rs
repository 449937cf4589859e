//! Events for people: what the agent did to a pod, as `kubectl describe` shows it.
//!
//! Telling never holds anything up: events go through a short queue and are dropped when it is
//! full or the API is away. They are news, not state. News that was told before is counted up
//! instead of told anew, so that a crash loop is one line with a number.

use std::collections::BTreeMap;

use jiff::Timestamp;
use objects::event::{Event, EventSource};
use objects::meta::{Object, ObjectReference};
use objects::pod::Pod;
use objects::{ObjectMeta, Time};
use runtime::client::Patch;
use runtime::{Client, ClientError, report, resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Events waiting to be written; more are dropped.
const QUEUE: usize = 256;

/// Events remembered for counting; forgetting them only makes more lines.
const TOLD_MAX: usize = 512;

/// The end that tells.
#[derive(Debug, Clone)]
pub(crate) struct Teller {
    node: String,
    queue: mpsc::Sender<Event>,
}

/// The end that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    client: Client,
    queue: mpsc::Receiver<Event>,
    /// What was told lately: the event's name and how often.
    told: BTreeMap<Told, (String, i64)>,
}

/// What makes two events the same: pod, container, reason, message.
type Told = [String; 4];

impl Teller {
    /// Both ends.
    pub(crate) fn new(client: Client, node: &str) -> (Self, Writer) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (
            Self { node: node.to_owned(), queue: sender },
            Writer { client, queue: receiver, told: BTreeMap::new() },
        )
    }

    /// Tells that something normal happened to a pod, or to a container of it.
    pub(crate) fn normal(&self, pod: &Pod, container: Option<&str>, reason: &str, message: &str) {
        self.tell(pod, container, ("Normal", reason, message));
    }

    /// Tells that something went wrong.
    pub(crate) fn warning(&self, pod: &Pod, container: Option<&str>, reason: &str, message: &str) {
        self.tell(pod, container, ("Warning", reason, message));
    }

    /// Tells what happened to the node itself.
    pub(crate) fn node(&self, severity: &str, reason: &str, message: &str) {
        let object = ObjectReference {
            kind: "Node".to_owned(),
            name: self.node.clone(),
            // Upstream's events about nodes carry the name where the uid belongs.
            uid: self.node.clone(),
            ..ObjectReference::default()
        };
        self.send(object, (severity, reason, message));
    }

    fn tell(&self, pod: &Pod, container: Option<&str>, words: (&str, &str, &str)) {
        let object = ObjectReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: container.map(|c| format!("spec.containers{{{c}}}")).unwrap_or_default(),
            ..ObjectReference::default()
        };
        self.send(object, words);
    }

    fn send(&self, object: ObjectReference, (severity, reason, message): (&str, &str, &str)) {
        let now = Timestamp::now();
        let mut event = Event::blank();
        let name = format!("{}.{:016x}", object.name, rand::random::<u64>());
        let namespace = if object.namespace.is_empty() { "default" } else { &object.namespace };
        event.metadata = ObjectMeta::in_namespace(namespace, &name);
        event.involved_object = object;
        reason.clone_into(&mut event.reason);
        event.message = message.chars().take(1024).collect();
        event.source = EventSource {
            component: "kubelet".to_owned(),
            host: self.node.clone(),
            ..EventSource::default()
        };
        event.first_timestamp = Some(Time::from(now));
        event.last_timestamp = Some(Time::from(now));
        event.count = 1;
        severity.clone_into(&mut event.severity);
        "kubelet".clone_into(&mut event.reporting_component);
        event.reporting_instance.clone_from(&self.node);
        if self.queue.try_send(event).is_err() {
            debug!(reason, "event dropped: the queue is full");
        }
    }
}

impl Writer {
    /// Writes events until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
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
        let object = &event.involved_object;
        let key =
            [&object.uid, &object.field_path, &event.reason, &event.message].map(Clone::clone);
        let namespace = Some(event.metadata.namespace.as_str());
        if let Some((name, count)) = self.told.get_mut(&key) {
            *count = count.saturating_add(1);
            let body = json!({"count": count, "lastTimestamp": event.last_timestamp});
            let patch = Patch::merge(body);
            match self.client.patch(&resource::EVENTS, namespace, name, &patch).await {
                // Swept meanwhile: it is told anew below.
                Err(err) if err.is_not_found() => {}
                other => return other.map(drop),
            }
        }
        let value = event.encode().map_err(|source| ClientError::Encode { source })?;
        self.client.create(&resource::EVENTS, namespace, &value).await?;
        if self.told.len() >= TOLD_MAX {
            self.told.clear();
        }
        self.told.insert(key, (event.metadata.name, 1));
        Ok(())
    }
}
