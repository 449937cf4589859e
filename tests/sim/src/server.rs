//! A model of the API server: compare-and-set, generations, finalizers, graceful deletion.
//!
//! It keeps the history of every object, so that views may lag behind and go back.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use control::action::{Action, Propagation, Target};
use control::view::Key;
use control::view_kinds;
use control::wake::Seen;
use jiff::{SignedDuration, Timestamp};
use objects::Kind;
use objects::kind::{self, by_gvk};
use objects::meta::{Object, OwnerReference};
use serde_json::{Value, json};

/// What an object was after one write.
#[derive(Clone)]
pub(crate) struct Written {
    pub(crate) kind: &'static Kind,
    pub(crate) key: Key,
    /// The typed view; `None` when the object went.
    pub(crate) object: Option<(Arc<dyn Any + Send + Sync>, Arc<dyn Seen>)>,
}

/// What a view must show before its owner plans for that key again.
#[derive(Debug, Clone)]
pub(crate) struct Pending(pub(crate) usize);

type Place = (&'static Kind, String, String);

/// The server.
pub(crate) struct Server {
    pub(crate) objects: BTreeMap<Place, Value>,
    /// Every write; the revision of a write is its place, counted from one.
    pub(crate) log: Vec<Written>,
    serial: u64,
    pub(crate) now: Timestamp,
    /// Hard rules that were broken.
    pub(crate) broken: Vec<String>,
}

fn decode(
    kind: &'static Kind,
    value: &Value,
) -> Option<(Arc<dyn Any + Send + Sync>, Arc<dyn Seen>)> {
    macro_rules! by_kind {
        ($($field:ident: $type:ty,)*) => {
            $(if <$type as Object>::KIND == kind {
                let typed = Arc::new(<$type as Object>::decode(value).ok()?);
                let any: Arc<dyn Any + Send + Sync> = Arc::clone(&typed) as _;
                let seen: Arc<dyn Seen> = typed;
                return Some((any, seen));
            })*
        };
    }
    view_kinds!(by_kind);
    None
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(all) = target.as_object_mut() else { return };
    for (name, value) in fields {
        if value.is_null() {
            all.remove(name);
        } else {
            merge(all.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn set(object: &mut Value, section: &str, name: &str, value: Value) {
    if let Some(fields) = object.get_mut(section).and_then(Value::as_object_mut) {
        fields.insert(name.to_owned(), value);
    }
}

fn is_deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

fn finalizers(object: &Value) -> Vec<String> {
    let all = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    all.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Server {
    pub(crate) fn new(now: Timestamp) -> Self {
        let (objects, log) = (BTreeMap::new(), Vec::new());
        Self { objects, log, serial: 0, now, broken: Vec::new() }
    }

    /// Writes an object down and into the history.
    fn write(&mut self, place: Place, object: Option<Value>) -> Pending {
        let (kind, key) = (place.0, Key::new(&place.1, &place.2));
        let revision = self.log.len() + 1;
        let object = object.map(|mut object| {
            set(&mut object, "metadata", "resourceVersion", json!(revision.to_string()));
            object
        });
        let seen = object.as_ref().and_then(|object| decode(kind, object));
        if object.is_some() && seen.is_none() {
            self.broken.push(format!("{kind:?} {key:?} does not read"));
        }
        self.log.push(Written { kind, key, object: seen });
        match object {
            Some(object) => self.objects.insert(place, object),
            None => self.objects.remove(&place),
        };
        Pending(revision)
    }

    /// Creates an object; `None` when it exists already.
    pub(crate) fn create(&mut self, kind: &'static Kind, mut object: Value) -> Option<Pending> {
        self.serial += 1;
        let serial = self.serial;
        let stem = text(&object, "/metadata/generateName").to_owned();
        if !stem.is_empty() && text(&object, "/metadata/name").is_empty() {
            set(&mut object, "metadata", "name", json!(format!("{stem}{serial:06}")));
        }
        let namespace = text(&object, "/metadata/namespace").to_owned();
        let place = (kind, namespace.clone(), text(&object, "/metadata/name").to_owned());
        if self.objects.contains_key(&place) {
            return None;
        }
        let home = self.objects.get(&(&kind::NAMESPACE, String::new(), namespace.clone()));
        if !namespace.is_empty() && home.is_none_or(is_deleting) {
            return None;
        }
        let uid = format!("uid-{serial}");
        set(&mut object, "metadata", "creationTimestamp", json!(objects::Time::from(self.now)));
        set(&mut object, "metadata", "generation", json!(1));
        if *kind == kind::JOB && object.pointer("/spec/selector").is_none() {
            let labels = json!({"controller-uid": uid});
            set(&mut object, "spec", "selector", json!({"matchLabels": labels}));
            merge(&mut object, &json!({"spec": {"template": {"metadata": {"labels": labels}}}}));
        }
        set(&mut object, "metadata", "uid", json!(uid));
        Some(self.write(place, Some(object)))
    }

    fn place(target: &Target) -> Place {
        (target.kind, target.namespace.clone(), target.name.clone())
    }

    /// The object, if it is still the one that was decided on.
    fn same(&self, target: &Target) -> Option<Value> {
        let object = self.objects.get(&Self::place(target))?;
        (text(object, "/metadata/uid") == target.uid).then(|| object.clone())
    }

    /// The same at the very version that was decided on.
    fn held(&self, target: &Target) -> Option<Value> {
        self.same(target)
            .filter(|object| text(object, "/metadata/resourceVersion") == target.resource_version)
    }

    /// Puts a changed object back, as a write of anyone.
    pub(crate) fn put(&mut self, place: Place, mut object: Value) -> Option<Pending> {
        let had = self.objects.get(&place)?;
        if *had == object {
            return None;
        }
        if had.get("spec") != object.get("spec") {
            let bound = text(had, "/spec/nodeName").to_owned();
            if *place.0 == kind::POD
                && !bound.is_empty()
                && bound != text(&object, "/spec/nodeName")
            {
                self.broken.push(format!("pod {} moved from {bound}", place.2));
            }
            let generation = had.pointer("/metadata/generation").and_then(Value::as_i64);
            set(&mut object, "metadata", "generation", json!(generation.unwrap_or(0) + 1));
        }
        let lives_on = *place.0 == kind::POD
            && !text(&object, "/spec/nodeName").is_empty()
            && !matches!(text(&object, "/status/phase"), "Succeeded" | "Failed");
        if is_deleting(&object) && finalizers(&object).is_empty() && !lives_on {
            return Some(self.write(place, None));
        }
        Some(self.write(place, Some(object)))
    }

    /// Merges into an object, as a user or a node would.
    pub(crate) fn change(&mut self, kind: &'static Kind, ns: &str, name: &str, patch: &Value) {
        let place = (kind, ns.to_owned(), name.to_owned());
        if let Some(mut object) = self.objects.get(&place).cloned() {
            merge(&mut object, patch);
            self.put(place, object);
        }
    }

    fn patch(
        &mut self,
        target: &Target,
        subresource: Option<&str>,
        body: &Value,
    ) -> Option<Pending> {
        let mut object = self.held(target)?;
        let mut body = body.clone();
        if let Some(fields) = body.as_object_mut() {
            if subresource == Some("status") {
                fields.retain(|name, _| name == "status");
            } else {
                fields.remove("status");
            }
        }
        merge(&mut object, &body);
        self.put(Self::place(target), object)
    }

    /// Deletes an object: at once, or by asking for it.
    pub(crate) fn delete(
        &mut self,
        target: &Target,
        now: bool,
        propagation: Propagation,
    ) -> Option<Pending> {
        let mut object = self.same(target)?;
        let mut held = finalizers(&object);
        let wanted = match propagation {
            Propagation::Foreground => Some("foregroundDeletion"),
            Propagation::Orphan => Some("orphan"),
            Propagation::Background => None,
        };
        if let Some(wanted) = wanted.filter(|one| !held.iter().any(|had| had == one)) {
            held.push(wanted.to_owned());
        }
        if *target.kind == kind::NAMESPACE && !is_deleting(&object) {
            held.push("kubernetes".to_owned());
        }
        let ended = matches!(text(&object, "/status/phase"), "Succeeded" | "Failed");
        let waits = *target.kind == kind::POD
            && !text(&object, "/spec/nodeName").is_empty()
            && !ended
            && !now;
        if held.is_empty() && !waits {
            return Some(self.write(Self::place(target), None));
        }
        if is_deleting(&object) && held == finalizers(&object) {
            return None;
        }
        let end = self.now.saturating_add(SignedDuration::from_secs(30)).unwrap_or(self.now);
        if !is_deleting(&object) {
            set(&mut object, "metadata", "deletionTimestamp", json!(objects::Time::from(end)));
        }
        set(&mut object, "metadata", "finalizers", json!(held));
        self.put(Self::place(target), object)
    }

    fn are_gone(&self, target: &Target, owners: &[OwnerReference]) -> bool {
        owners.iter().all(|owner| {
            let Some(kind) = by_gvk(&owner.api_version, &owner.kind) else { return false };
            let namespace = if kind.namespaced { target.namespace.clone() } else { String::new() };
            let found = self.objects.get(&(kind, namespace, owner.name.clone()));
            found.is_none_or(|one| !owner.uid.is_empty() && text(one, "/metadata/uid") != owner.uid)
        })
    }

    /// Carries out one step as the manager would; `None` when it came too late.
    pub(crate) fn carry_out(&mut self, action: &Action) -> Option<Pending> {
        match action {
            Action::Create { kind, object, .. } => self.create(kind, Value::clone(object)),
            Action::Patch { target, subresource, body, .. } => {
                self.patch(target, *subresource, body)
            }
            Action::Replace { target, object, .. } => {
                let had = self.held(target)?;
                let mut object = Value::clone(object);
                for name in ["uid", "generation", "creationTimestamp"] {
                    if let Some(value) = had.pointer(&format!("/metadata/{name}")) {
                        set(&mut object, "metadata", name, value.clone());
                    }
                }
                self.put(Self::place(target), object)
            }
            Action::Delete { target, grace_seconds, .. } => {
                self.delete(target, *grace_seconds == Some(0), Propagation::Background)
            }
            Action::DeleteIfGone { target, absent, grace_seconds } => {
                let gone = self.are_gone(target, absent);
                gone.then(|| {
                    self.delete(target, *grace_seconds == Some(0), Propagation::Background)
                })?
            }
            Action::Collect { target, absent, propagation } => {
                let gone = self.are_gone(target, absent);
                gone.then(|| self.delete(target, false, *propagation))?
            }
            Action::Release { target, absent, body } => {
                let gone = self.are_gone(target, absent);
                gone.then(|| self.patch(target, None, body))?
            }
            Action::Bind { target, node } => {
                let mut pod = self.same(target)?;
                if !text(&pod, "/spec/nodeName").is_empty() || is_deleting(&pod) {
                    return None;
                }
                set(&mut pod, "spec", "nodeName", json!(node));
                self.put(Self::place(target), pod)
            }
            Action::Empty { target } => self.empty(target),
            Action::Sign { .. } => None,
        }
    }

    fn empty(&mut self, target: &Target) -> Option<Pending> {
        let namespace = self.same(target)?;
        let inside: Vec<Target> = self
            .objects
            .iter()
            .filter(|((kind, ns, _), _)| kind.namespaced && *ns == target.name)
            .map(|((kind, ns, name), object)| Target {
                kind,
                namespace: ns.clone(),
                name: name.clone(),
                uid: text(object, "/metadata/uid").to_owned(),
                resource_version: String::new(),
            })
            .collect();
        for one in &inside {
            self.delete(one, false, Propagation::Background);
        }
        let left = self.objects.keys().any(|(kind, ns, _)| kind.namespaced && *ns == target.name);
        if left {
            return None;
        }
        let mut namespace = namespace;
        set(&mut namespace, "metadata", "finalizers", json!([]));
        self.put(Self::place(target), namespace)
    }
}
