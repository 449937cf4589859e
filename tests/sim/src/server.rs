//! A model of the API server: compare-and-set, generations, finalizers, graceful deletion,
//! evictions under budgets.
//!
//! It keeps the history of every object, so that views may lag behind and go back, and holds
//! every write against the hard rules (`rule`).

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

use crate::rule;

/// A typed object, as views and as wake-ups want it.
pub(crate) type Typed = (Arc<dyn Any + Send + Sync>, Arc<dyn Seen>);

/// What an object was after one write.
pub(crate) struct Written {
    pub(crate) kind: &'static Kind,
    pub(crate) key: Key,
    /// The typed view; `None` when the object went.
    pub(crate) object: Option<Typed>,
}

/// The revision a view must show before its owner plans for that key again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pending {
    pub(crate) kind: &'static Kind,
    pub(crate) revision: usize,
}

/// Plural, namespace, name.
pub(crate) type Place = (&'static str, String, String);

/// One object.
pub(crate) struct Held {
    pub(crate) kind: &'static Kind,
    pub(crate) value: Value,
}

/// The server.
pub(crate) struct Server {
    pub(crate) objects: BTreeMap<Place, Held>,
    /// Every write; the revision of a write is its place, counted from one.
    pub(crate) log: Vec<Written>,
    /// The revisions of each kind.
    pub(crate) revisions: BTreeMap<&'static str, Vec<usize>>,
    serial: u64,
    pub(crate) now: Timestamp,
    /// Who writes.
    pub(crate) who: &'static str,
    /// What happened, line by line, if anyone wants to know.
    pub(crate) trace: Option<Vec<String>>,
    /// A number that two runs of one seed must share.
    pub(crate) digest: u64,
    pub(crate) rules: rule::Rules,
}

fn decode(kind: &'static Kind, value: &Value) -> Option<Typed> {
    macro_rules! by_kind {
        ($($field:ident: $type:ty,)*) => {
            $(if <$type as Object>::KIND.plural == kind.plural {
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

/// A text in an object; empty when it is not there.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A number in an object.
pub(crate) fn number(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

fn set(object: &mut Value, section: &str, name: &str, value: Value) {
    if let Some(fields) = object.get_mut(section).and_then(Value::as_object_mut) {
        fields.insert(name.to_owned(), value);
    }
}

/// Is the object on its way out?
pub(crate) fn is_deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

/// Has the pod ended?
pub(crate) fn has_ended(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

fn finalizers(object: &Value) -> Vec<String> {
    let all = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    all.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The target of an object at any version.
pub(crate) fn target(kind: &'static Kind, object: &Value) -> Target {
    Target {
        kind,
        namespace: text(object, "/metadata/namespace").to_owned(),
        name: text(object, "/metadata/name").to_owned(),
        uid: text(object, "/metadata/uid").to_owned(),
        resource_version: String::new(),
    }
}

impl Server {
    pub(crate) fn new(now: Timestamp, rules: rule::Rules, traced: bool) -> Self {
        Self {
            objects: BTreeMap::new(),
            log: Vec::new(),
            revisions: BTreeMap::new(),
            serial: 0,
            now,
            who: "operator",
            trace: traced.then(Vec::new),
            digest: 0,
            rules,
        }
    }

    /// The newest revision.
    pub(crate) fn head(&self) -> usize {
        self.log.len()
    }

    /// Notes a line for those who replay.
    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{} {:<40} {}", self.now, self.who, line()));
        }
    }

    /// All objects of a kind.
    pub(crate) fn all(&self, kind: &Kind) -> impl Iterator<Item = &Value> {
        let from = (kind.plural, String::new(), String::new());
        let plural = kind.plural;
        self.objects
            .range(from..)
            .take_while(move |((one, _, _), _)| *one == plural)
            .map(|(_, held)| &held.value)
    }

    /// One object.
    pub(crate) fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Option<&Value> {
        let place = (kind.plural, namespace.to_owned(), name.to_owned());
        self.objects.get(&place).map(|held| &held.value)
    }

    /// Writes an object down and into the history.
    fn write(&mut self, kind: &'static Kind, place: Place, object: Option<Value>) -> Pending {
        let revision = self.log.len() + 1;
        let object = object.map(|mut object| {
            set(&mut object, "metadata", "resourceVersion", json!(revision.to_string()));
            object
        });
        let seen = object.as_ref().and_then(|object| decode(kind, object));
        if object.is_some() && seen.is_none() {
            self.rules.broken.push(format!("{place:?} does not read"));
        }
        let before = self.objects.get(&place).map(|held| &held.value);
        rule::on_write(&mut self.rules, kind, before, object.as_ref());
        let what = match (before.is_some(), &object) {
            (_, None) => "gone",
            (false, Some(_)) => "made",
            (true, Some(_)) => "written",
        };
        for byte in place.1.bytes().chain(place.2.bytes()).chain(what.bytes()) {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let (plural, ns, name) = &place;
        let line = format!("#{revision} {what} {plural} {ns}/{name}");
        let whole = object.as_ref().filter(|_| self.trace.is_some()).map(brief);
        self.say(|| format!("{line} {}", whole.unwrap_or_default()));
        self.log.push(Written { kind, key: Key::new(&place.1, &place.2), object: seen });
        self.revisions.entry(kind.plural).or_default().push(revision);
        match object {
            Some(value) => _ = self.objects.insert(place, Held { kind, value }),
            None => _ = self.objects.remove(&place),
        }
        rule::on_state(self, kind);
        Pending { kind, revision }
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
        let place = (kind.plural, namespace.clone(), text(&object, "/metadata/name").to_owned());
        if self.objects.contains_key(&place) {
            return None;
        }
        let home = self.get(&kind::NAMESPACE, "", &namespace);
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
        rule::on_create(self, kind, &object);
        Some(self.write(kind, place, Some(object)))
    }

    fn place(target: &Target) -> Place {
        (target.kind.plural, target.namespace.clone(), target.name.clone())
    }

    /// The object, if it is still the one that was decided on.
    fn same(&self, target: &Target) -> Option<Value> {
        let object = self.get(target.kind, &target.namespace, &target.name)?;
        (text(object, "/metadata/uid") == target.uid).then(|| object.clone())
    }

    /// The same at the very version that was decided on.
    fn held(&self, target: &Target) -> Option<Value> {
        self.same(target)
            .filter(|object| text(object, "/metadata/resourceVersion") == target.resource_version)
    }

    /// Puts a changed object back, as a write of anyone.
    pub(crate) fn put(
        &mut self,
        kind: &'static Kind,
        place: Place,
        mut object: Value,
    ) -> Option<Pending> {
        let had = &self.objects.get(&place)?.value;
        if *had == object {
            return None;
        }
        if had.get("spec") != object.get("spec") {
            let generation = number(had, "/metadata/generation").unwrap_or(0) + 1;
            set(&mut object, "metadata", "generation", json!(generation));
        }
        let lives_on = *kind == kind::POD
            && !text(&object, "/spec/nodeName").is_empty()
            && !has_ended(&object);
        if is_deleting(&object) && finalizers(&object).is_empty() && !lives_on {
            return Some(self.write(kind, place, None));
        }
        Some(self.write(kind, place, Some(object)))
    }

    /// Merges into an object, as a user or a node would.
    pub(crate) fn change(&mut self, kind: &'static Kind, ns: &str, name: &str, patch: &Value) {
        let place = (kind.plural, ns.to_owned(), name.to_owned());
        if let Some(mut object) = self.objects.get(&place).map(|held| held.value.clone()) {
            merge(&mut object, patch);
            self.put(kind, place, object);
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
        self.put(target.kind, Self::place(target), object)
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
        let waits = *target.kind == kind::POD
            && !text(&object, "/spec/nodeName").is_empty()
            && !has_ended(&object)
            && !now;
        if held.is_empty() && !waits {
            return Some(self.write(target.kind, Self::place(target), None));
        }
        if is_deleting(&object) && held == finalizers(&object) {
            return None;
        }
        let end = self.now.saturating_add(SignedDuration::from_secs(30)).unwrap_or(self.now);
        if !is_deleting(&object) {
            set(&mut object, "metadata", "deletionTimestamp", json!(objects::Time::from(end)));
        }
        set(&mut object, "metadata", "finalizers", json!(held));
        self.put(target.kind, Self::place(target), object)
    }

    fn are_gone(&self, target: &Target, owners: &[OwnerReference]) -> bool {
        owners.iter().all(|owner| {
            let Some(kind) = by_gvk(&owner.api_version, &owner.kind) else { return false };
            let namespace = if kind.namespaced { target.namespace.as_str() } else { "" };
            let found = self.get(kind, namespace, &owner.name);
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
                self.put(target.kind, Self::place(target), object)
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
                (gone && self.held(target).is_some())
                    .then(|| self.delete(target, false, *propagation))?
            }
            Action::Release { target, absent, subresource, body } => {
                let gone = self.are_gone(target, absent);
                gone.then(|| self.patch(target, *subresource, body))?
            }
            Action::Bind { target, node } => self.bind(target, node),
            Action::Evict { target, .. } => self.evict(target),
            Action::Empty { target } => self.empty(target),
            // Nothing stores anything here that could still be written.
            Action::Detach { target, .. } => {
                self.patch(target, None, &json!({"metadata": {"finalizers": null}}))
            }
            Action::Image { .. } | Action::Unfence { .. } | Action::Sign { .. } => None,
        }
    }

    fn bind(&mut self, target: &Target, node: &str) -> Option<Pending> {
        let mut pod = self.same(target)?;
        rule::on_bind(self, &pod, node);
        if !text(&pod, "/spec/nodeName").is_empty() || is_deleting(&pod) {
            return None;
        }
        set(&mut pod, "spec", "nodeName", json!(node));
        self.put(&kind::POD, Self::place(target), pod)
    }

    /// Deletes a pod if every budget that covers it allows.
    fn evict(&mut self, target: &Target) -> Option<Pending> {
        let pod = self.same(target)?;
        let app = text(&pod, "/metadata/labels/app");
        let covering = self.all(&kind::POD_DISRUPTION_BUDGET).find(|one| {
            text(one, "/metadata/namespace") == target.namespace
                && text(one, "/spec/selector/matchLabels/app") == app
        });
        if let Some(mut budget) = covering.cloned()
            && !has_ended(&pod)
        {
            let fresh = number(&budget, "/status/observedGeneration")
                == number(&budget, "/metadata/generation");
            let allowed = number(&budget, "/status/disruptionsAllowed").unwrap_or(0);
            if !fresh || allowed < 1 {
                return None;
            }
            let left = json!({"status": {
                "disruptionsAllowed": allowed - 1,
                "disruptedPods": {target.name.clone(): objects::Time::from(self.now)},
            }});
            merge(&mut budget, &left);
            let name = text(&budget, "/metadata/name").to_owned();
            let kind = &kind::POD_DISRUPTION_BUDGET;
            self.put(kind, (kind.plural, target.namespace.clone(), name), budget);
        }
        self.delete(target, false, Propagation::Background)
    }

    fn empty(&mut self, wanted: &Target) -> Option<Pending> {
        let mut namespace = self.same(wanted)?;
        let inside: Vec<Target> = self
            .objects
            .iter()
            .filter(|((_, ns, _), held)| held.kind.namespaced && *ns == wanted.name)
            .map(|(_, held)| target(held.kind, &held.value))
            .collect();
        for one in &inside {
            self.delete(one, false, Propagation::Background);
        }
        let mut left = self.objects.iter();
        if left.any(|((_, ns, _), held)| held.kind.namespaced && *ns == wanted.name) {
            return None;
        }
        set(&mut namespace, "metadata", "finalizers", json!([]));
        self.put(wanted.kind, Self::place(wanted), namespace)
    }
}

/// What one wants to know of an object at a glance.
fn brief(object: &Value) -> String {
    let mut words = Vec::new();
    for (name, pointer) in [
        ("node", "/spec/nodeName"),
        ("phase", "/status/phase"),
        ("deleting", "/metadata/deletionTimestamp"),
        ("owner", "/metadata/ownerReferences/0/name"),
        ("cidr", "/spec/podCIDR"),
        ("ip", "/status/loadBalancer/ingress/0/ip"),
    ] {
        if !text(object, pointer).is_empty() {
            words.push(format!("{name}={}", text(object, pointer)));
        }
    }
    for (name, pointer) in [
        ("replicas", "/spec/replicas"),
        ("ready", "/status/readyReplicas"),
        ("gen", "/metadata/generation"),
    ] {
        if let Some(number) = number(object, pointer) {
            words.push(format!("{name}={number}"));
        }
    }
    let held = finalizers(object);
    if !held.is_empty() {
        words.push(format!("finalizers={}", held.join(",")));
    }
    words.join(" ")
}
