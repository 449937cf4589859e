//! Events for people: what the agent did to a pod, as `kubectl describe` shows it.

use objects::event::{Event, EventSource};
use objects::meta::ObjectReference;
use objects::pod::Pod;
use runtime::Client;
use runtime::recorder::{self, Recorder};

/// Events waiting to be written; more are dropped.
const QUEUE: usize = 256;

/// The end that tells.
#[derive(Debug, Clone)]
pub(crate) struct Teller {
    node: String,
    queue: recorder::Teller,
}

impl Teller {
    /// Both ends.
    pub(crate) fn new(client: Client, node: &str) -> (Self, Recorder) {
        let (queue, recorder) = recorder::channel(client, QUEUE);
        (Self { node: node.to_owned(), queue }, recorder)
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
        self.queue.tell(Event {
            involved_object: object,
            reason: reason.to_owned(),
            message: message.to_owned(),
            source: EventSource {
                component: "kubelet".to_owned(),
                host: self.node.clone(),
                ..EventSource::default()
            },
            severity: severity.to_owned(),
            reporting_component: "kubelet".to_owned(),
            reporting_instance: self.node.clone(),
            ..Event::blank()
        });
    }
}
