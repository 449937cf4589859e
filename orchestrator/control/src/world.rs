//! A cluster in memory for tests: applies what controllers plan, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::kind::{self, Kind};
use objects::meta::Object;
use serde_json::{Value, json};

use crate::action::{Action, Propagation, Target};
use crate::controller::{CONTROLLERS, Controller};
use crate::garbage::Graph;
use crate::lifecycle::Heartbeats;
use crate::scaling::Observed;
use crate::scheduler;
use crate::view::{Set, View};
use crate::wake::{Seen, Touch};

/// RFC 7396.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut target[name.as_str()], value);
        }
    }
}

/// Any object, as far as garbage collection looks at it.
#[derive(Debug)]
struct Loose {
    metadata: objects::ObjectMeta,
}

impl Seen for Loose {
    fn meta(&self) -> &objects::ObjectMeta {
        &self.metadata
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

fn decode<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

type Key = (&'static str, String, String);

/// The cluster.
#[derive(Default)]
pub(crate) struct World {
    objects: BTreeMap<Key, (&'static Kind, Value)>,
    serial: u64,
    /// Raised by everything that changes any object.
    version: u64,
    /// The view of a version and a time; most rounds change nothing.
    seen: Option<(u64, Timestamp, Arc<View>)>,
    pub(crate) heartbeats: Heartbeats,
    pub(crate) settings: crate::view::Settings,
    pub(crate) now: Timestamp,
    pub(crate) observed: Arc<Observed>,
    /// Every event told, as `reason message`.
    pub(crate) told: Vec<String>,
    /// Clients of storage that were fenced.
    pub(crate) fenced: Vec<String>,
    /// What was done with images.
    pub(crate) images: Vec<String>,
    /// Every step taken, for failures to show.
    done: Vec<String>,
}

impl World {
    /// Adds an object, giving it uid, version and age.
    pub(crate) fn add(&mut self, kind: &'static Kind, mut object: Value) {
        self.serial += 1;
        self.version += 1;
        let meta = object["metadata"].as_object_mut().unwrap();
        if let Some(stem) = meta.remove("generateName") {
            let name = format!("{}{:05}", stem.as_str().unwrap(), self.serial);
            meta.insert("name".to_owned(), json!(name));
        }
        meta.insert("uid".to_owned(), json!(format!("uid-{}", self.serial)));
        meta.insert("resourceVersion".to_owned(), json!(self.serial.to_string()));
        meta.insert("creationTimestamp".to_owned(), json!(objects::Time::from(self.now)));
        meta.insert("generation".to_owned(), json!(1));
        let text = |name: &str| meta.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        let key = (kind.plural, text("namespace"), text("name"));
        assert!(self.objects.insert(key, (kind, object)).is_none(), "created twice");
    }

    /// Merges into an object, as a user or a node would.
    pub(crate) fn change(&mut self, kind: &'static Kind, ns: &str, name: &str, patch: &Value) {
        self.serial += 1;
        self.version += 1;
        let serial = self.serial;
        let (_, object) = self.objects.get_mut(&(kind.plural, ns.into(), name.into())).unwrap();
        let before = object["spec"].clone();
        merge(object, patch);
        object["metadata"]["resourceVersion"] = json!(serial.to_string());
        if object["spec"] != before {
            let generation = object["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            object["metadata"]["generation"] = json!(generation);
        }
    }

    /// Removes an object.
    pub(crate) fn remove(&mut self, kind: &'static Kind, ns: &str, name: &str) {
        self.version += 1;
        self.objects.remove(&(kind.plural, ns.to_owned(), name.to_owned()));
    }

    /// All objects of a kind.
    pub(crate) fn all<T: Object>(&self) -> Vec<T> {
        let of_kind = self.objects.values().filter(|(kind, _)| kind.kind == T::KIND.kind);
        of_kind.map(|(_, object)| T::decode(object).unwrap()).collect()
    }

    fn set<T: Object + std::fmt::Debug>(&self) -> Set<T> {
        self.all::<T>().into_iter().map(Arc::new).collect()
    }

    /// What controllers see now.
    pub(crate) fn view(&mut self) -> Arc<View> {
        if let Some((version, now, view)) = &self.seen
            && (*version, *now) == (self.version, self.now)
            && view.settings == self.settings
            && Arc::ptr_eq(&view.observed, &self.observed)
        {
            return Arc::clone(view);
        }
        let view = Arc::new(self.look());
        self.seen = Some((self.version, self.now, Arc::clone(&view)));
        view
    }

    fn look(&mut self) -> View {
        let mut graph = Graph::default();
        for (kind, object) in self.objects.values() {
            let after = Loose { metadata: decode(&object["metadata"]) };
            let key = crate::view::Key::of(&after.metadata);
            graph.note(&Touch { kind, key, before: None, after: Some(Arc::new(after)) });
        }
        macro_rules! filled {
            ($($field:ident: $kind:ty,)*) => { View {
                $($field: self.set::<$kind>(),)*
                graph: Arc::new(graph),
                settings: self.settings.clone(),
                observed: Arc::clone(&self.observed),
                ..View::default()
            } };
        }
        let mut view = crate::view_kinds!(filled);
        self.heartbeats.observe(&mut view, None, self.now);
        view
    }

    /// One round of one controller; `false` when it planned nothing.
    pub(crate) fn round(&mut self, controller: &Controller) -> bool {
        let view = self.view();
        let mut any = false;
        for key in (controller.keys)(&view) {
            let steps = controller.plan(&view, &key, self.now);
            for note in steps.notes {
                let told = format!("{} {}", note.reason, note.message);
                if !self.told.contains(&told) {
                    self.told.push(told);
                }
            }
            for action in steps.actions {
                any = true;
                self.apply(action);
            }
        }
        any
    }

    fn schedule(&mut self) -> bool {
        let view = self.view();
        let actions = scheduler::plan(&view, self.now).actions;
        let any = !actions.is_empty();
        actions.into_iter().for_each(|action| self.apply(action));
        any
    }

    /// Plays the agents: bound pods run and are ready; deleted ones stop. Silent nodes do not.
    fn run_pods(&mut self, silent: &[&str]) -> bool {
        let mut any = false;
        for pod in self.all::<objects::pod::Pod>() {
            let (ns, name) = (&pod.metadata.namespace, &pod.metadata.name);
            if !pod.is_bound() || silent.contains(&pod.spec.node_name.as_str()) {
                continue;
            }
            if pod.metadata.is_deleting() {
                if pod.metadata.finalizers.is_empty() {
                    self.remove(&kind::POD, ns, name);
                } else if !pod.is_finished() {
                    self.change(&kind::POD, ns, name, &json!({"status": {"phase": "Failed"}}));
                } else {
                    continue;
                }
                any = true;
            } else if !pod.is_ready() && !pod.is_finished() {
                let ready = objects::Condition::new("Ready", true, "", "");
                let address = format!("172.20.0.{}", self.serial % 250);
                let status = json!({"phase": "Running", "podIP": address, "conditions": [ready]});
                self.change(&kind::POD, ns, name, &json!({"status": status}));
                any = true;
            }
        }
        any
    }

    /// Rounds of everything until nobody plans anything; panics when that never comes.
    #[track_caller]
    pub(crate) fn settle(&mut self, silent: &[&str]) {
        for _ in 0..200 {
            let mut any = false;
            for controller in CONTROLLERS {
                any |= self.round(controller);
            }
            any |= self.step(silent);
            if !any {
                return;
            }
        }
        let last: Vec<&String> = self.done.iter().rev().take(12).collect();
        panic!("does not converge; the last steps, latest first: {last:#?}");
    }

    /// One round of the scheduler and of the agents.
    pub(crate) fn step(&mut self, silent: &[&str]) -> bool {
        let scheduled = self.schedule();
        self.run_pods(silent) || scheduled
    }

    /// Lets time pass; nodes that are not silent renew their leases every five seconds.
    pub(crate) fn pass(&mut self, seconds: i64, silent: &[&str]) {
        for _ in 0..seconds / 5 {
            self.now = self.now.saturating_add(SignedDuration::from_secs(5)).unwrap();
            for node in self.all::<objects::node::Node>() {
                let name = &node.metadata.name;
                if silent.contains(&name.as_str()) {
                    continue;
                }
                let status = json!({"status": {"conditions": [{
                    "type": "Ready", "status": "True",
                    "lastHeartbeatTime": objects::Time::from(self.now),
                }]}});
                self.change(&kind::NODE, "", name, &status);
            }
            self.settle(silent);
        }
    }

    /// A ready node with four CPUs.
    pub(crate) fn add_node(&mut self, name: &str, rack: &str) {
        let resources = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
        let now = objects::Time::from(self.now);
        self.add(
            &kind::NODE,
            json!({
                "metadata": {"name": name, "labels": {
                    "topology.kubernetes.io/zone": rack, "kubernetes.io/hostname": name,
                }},
                "spec": {},
                "status": {
                    "allocatable": resources,
                    "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": now}],
                },
            }),
        );
    }

    fn holds(&self, target: &Target) -> bool {
        let key = (target.kind.plural, target.namespace.clone(), target.name.clone());
        self.objects.get(&key).is_some_and(|(_, object)| {
            object["metadata"]["uid"] == json!(target.uid)
                && object["metadata"]["resourceVersion"] == json!(target.resource_version)
        })
    }

    fn apply(&mut self, action: Action) {
        self.done.push(format!("{action:?}"));
        match action {
            Action::Create { kind, object, note, .. } => {
                self.add(kind, *object);
                self.told.extend(note.map(|note| format!("{} {}", note.reason, note.message)));
            }
            Action::Patch { target, body, note, .. } => {
                self.told.extend(note.map(|note| format!("{} {}", note.reason, note.message)));
                assert!(self.holds(&target), "stale patch of {target:?}");
                self.change(target.kind, &target.namespace, &target.name, &body);
                self.finish(&target);
            }
            Action::Replace { target, object, .. } => {
                assert!(self.holds(&target), "stale write of {target:?}");
                // A PUT takes away what it does not name: clear, then merge.
                let key = (target.kind.plural, target.namespace.clone(), target.name.clone());
                let whole = *object;
                if let Some((_, had)) = self.objects.get_mut(&key) {
                    let generation = had["metadata"]["generation"].clone();
                    let spec = had["spec"].clone();
                    *had = whole.clone();
                    had["metadata"]["generation"] = generation;
                    had["spec"] = spec;
                }
                self.change(target.kind, &target.namespace, &target.name, &whole);
            }
            Action::Delete { target, grace_seconds, note } => {
                self.told.extend(note.map(|note| format!("{} {}", note.reason, note.message)));
                self.delete(&target, grace_seconds);
            }
            Action::DeleteIfGone { target, grace_seconds, .. } => {
                self.delete(&target, grace_seconds);
            }
            Action::Collect { target, absent, propagation } => {
                if self.are_gone(&target, &absent) {
                    self.propagate(&target, propagation);
                    self.delete(&target, None);
                }
            }
            Action::Release { target, absent, body, .. } => {
                if self.are_gone(&target, &absent) {
                    assert!(self.holds(&target), "stale patch of {target:?}");
                    self.change(target.kind, &target.namespace, &target.name, &body);
                }
            }
            Action::Bind { target, node } => {
                let patch = json!({"spec": {"nodeName": node}});
                self.change(&kind::POD, &target.namespace, &target.name, &patch);
            }
            Action::Evict { target, note } => {
                self.told.extend(note.map(|note| format!("{} {}", note.reason, note.message)));
                self.delete(&target, None);
            }
            Action::Image { target, work, .. } => self.work(&target, work),
            Action::Unfence { target, fences } => self.unfence(&target, &fences),
            Action::Detach { target, .. } => self.detach(&target),
            Action::Empty { .. } | Action::Sign { .. } => (),
        }
    }

    fn unfence(&mut self, target: &Target, fences: &[crate::action::Fence]) {
        for fence in fences {
            self.fenced.retain(|one| *one != fence.client);
            let patch = json!({"metadata": {"annotations": {fence.key.as_str(): null}}});
            self.change(target.kind, "", &target.name, &patch);
        }
    }

    /// The cluster is told of the client the attachment knows.
    fn detach(&mut self, target: &Target) {
        use crate::attachment::image::{Fenced, is_silent};
        let (_, object) = &self.objects[&(target.kind.plural, String::new(), target.name.clone())];
        let node = object["spec"]["nodeName"].as_str().unwrap();
        let nodes = self.all::<objects::node::Node>();
        let node = nodes.iter().find(|one| one.metadata.name == node);
        if is_silent(node) {
            let client = object["status"]["attachmentMetadata"]["client"].as_str();
            let client = client.map(str::to_owned);
            self.fenced.extend(client.clone());
            if let (Some(node), Some(client)) = (node, client) {
                let (volume, boot) = ("v".to_owned(), String::new());
                let one = Fenced { client, volume, boot, named: true };
                let text = serde_json::to_string(&one).unwrap();
                let patch = json!({"metadata": {"annotations": {one.key().as_str(): text}}});
                self.change(&kind::NODE, "", &node.metadata.name, &patch);
            }
        }
        let patch = json!({"metadata": {"finalizers": []}});
        self.change(target.kind, "", &target.name, &patch);
        self.finish(target);
    }

    fn work(&mut self, target: &Target, work: crate::action::ImageWork) {
        use crate::action::ImageWork::{Delete, DeleteSnapshot, Grow, Make, Snapshot};
        match work {
            Make { volume, bytes, from } => {
                let from = from.map(|from| format!(" from {from}")).unwrap_or_default();
                self.images.push(format!("make {bytes}{from}"));
                self.add(&kind::PERSISTENT_VOLUME, *volume);
            }
            Grow { bytes, .. } => {
                self.images.push(format!("grow {bytes}"));
                let capacity = json!({"storage": bytes.to_string()});
                let patch = json!({"spec": {"capacity": capacity}});
                self.change(target.kind, "", &target.name, &patch);
            }
            Snapshot { handle, exists, .. } => {
                let verb = if exists { "find" } else { "snapshot" };
                self.images.push(format!("{verb} {handle}"));
                let status = json!({"snapshotHandle": handle, "creationTime": 1_000_000_000,
                    "restoreSize": 1 << 20, "readyToUse": true});
                self.change(target.kind, "", &target.name, &json!({"status": status}));
            }
            DeleteSnapshot { handle, .. } => {
                self.images.push(format!("delete {handle}"));
                let patch = json!({"metadata": {"finalizers": []}});
                self.change(target.kind, "", &target.name, &patch);
                self.finish(target);
            }
            Delete => {
                self.images.push("delete".to_owned());
                self.delete(target, None);
            }
        }
    }

    /// What the server says of owners: gone, unless there under their name and uid.
    fn are_gone(&self, target: &Target, owners: &[objects::OwnerReference]) -> bool {
        owners.iter().all(|owner| {
            let there = |(kind, object): &(&'static Kind, Value)| {
                kind.kind == owner.kind
                    && object["metadata"]["name"] == json!(owner.name)
                    && object["metadata"]["uid"] == json!(owner.uid)
                    && (!kind.namespaced
                        || object["metadata"]["namespace"] == json!(target.namespace))
            };
            !self.objects.values().any(there)
        })
    }

    /// Writes the finalizer by which a deleted object treats its dependents.
    fn propagate(&mut self, target: &Target, propagation: Propagation) {
        let finalizer = match propagation {
            Propagation::Foreground => "foregroundDeletion",
            Propagation::Orphan => "orphan",
            Propagation::Background => return,
        };
        let key = (target.kind.plural, target.namespace.clone(), target.name.clone());
        let Some((_, object)) = self.objects.get(&key) else { return };
        let mut all = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        if !all.contains(&json!(finalizer)) {
            all.push(json!(finalizer));
            let patch = json!({"metadata": {"finalizers": all}});
            self.change(target.kind, &target.namespace, &target.name, &patch);
        }
    }

    /// Deletes an object as the server does: at once, or when its finalizers are gone.
    pub(crate) fn delete(&mut self, target: &Target, grace_seconds: Option<u32>) {
        let key = (target.kind.plural, target.namespace.clone(), target.name.clone());
        let Some((_, object)) = self.objects.get(&key) else { return };
        if object["metadata"]["uid"] != json!(target.uid) {
            return;
        }
        let bound = target.kind.kind == "Pod"
            && object["spec"]["nodeName"].as_str().is_some_and(|name| !name.is_empty());
        let waits = object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
        let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if waits || (bound && !ended && grace_seconds != Some(0)) {
            let ends = self.now.saturating_add(SignedDuration::from_secs(30)).unwrap();
            let patch = json!({"metadata": {"deletionTimestamp": objects::Time::from(ends)}});
            self.change(target.kind, &target.namespace, &target.name, &patch);
        } else {
            self.version += 1;
            self.objects.remove(&key);
        }
    }

    /// An object whose last finalizer went goes too.
    fn finish(&mut self, target: &Target) {
        let key = (target.kind.plural, target.namespace.clone(), target.name.clone());
        let Some((_, object)) = self.objects.get(&key) else { return };
        let meta = &object["metadata"];
        let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let bound = object["spec"]["nodeName"].as_str().is_some_and(|name| !name.is_empty());
        let pod = target.kind.kind == "Pod" && bound && !ended;
        let waits = meta["finalizers"].as_array().is_some_and(|all| !all.is_empty());
        if !meta["deletionTimestamp"].is_null() && !waits && !pod {
            self.version += 1;
            self.objects.remove(&key);
        }
    }
}

mod tests;
mod volumes;
