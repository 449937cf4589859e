//! What all makers of pods share: whose pods are whose, pods from a template, history.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::condition::find_condition;
use objects::kind::{self, Kind};
use objects::meta::{ObjectMeta, OwnerReference};
use objects::pod::{Pod, PodTemplateSpec};
use objects::selector::Selector;
use objects::workload::ControllerRevision;
use serde_json::{Value, json};

use crate::action::{Action, Steps, Target, encode};
use crate::hash;
use crate::view::View;

/// Label of pods: which revision of its maker a pod was made from.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";

/// The reference by which `kind`'s pods name their maker.
pub(crate) fn owner_reference(meta: &ObjectMeta, kind: &Kind) -> OwnerReference {
    OwnerReference {
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
        ..OwnerReference::default()
    }
}

/// The pods of a maker, by name; adopts those that match and are free, lets go of those that
/// no longer match. `fits` may refuse a free pod although its labels match.
pub(crate) fn claim<'a>(
    view: &'a View,
    owner: &ObjectMeta,
    kind: &Kind,
    selector: &Selector,
    fits: impl Fn(&Pod) -> bool,
    steps: &mut Steps,
) -> Vec<&'a Arc<Pod>> {
    let mut members = Vec::new();
    for pod in view.pods_of(&owner.uid) {
        if pod.metadata.namespace != owner.namespace {
            continue;
        }
        if selector.matches(&pod.metadata.labels) {
            members.push(pod);
        } else if !pod.metadata.is_deleting() {
            let kept = pod.metadata.owner_references.iter();
            let kept: Vec<_> = kept.filter(|one| one.uid != owner.uid).collect();
            let body = json!({"metadata": {"ownerReferences": kept}});
            steps.push(Action::patch(Target::of(&**pod), body));
        }
    }
    if owner.is_deleting() {
        return members;
    }
    for pod in view.orphans(&owner.namespace) {
        let free = !pod.metadata.is_deleting();
        if free && selector.matches(&pod.metadata.labels) && fits(pod) {
            let mut owners = pod.metadata.owner_references.clone();
            owners.push(owner_reference(owner, kind));
            let body = json!({"metadata": {"ownerReferences": owners}});
            steps.push(Action::patch(Target::of(&**pod), body));
            members.push(pod);
        }
    }
    members
}

/// The JSON of a pod made from a template; the caller gives it its name.
pub(crate) fn pod_of(template: &PodTemplateSpec, owner: &ObjectMeta, kind: &Kind) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": owner.namespace,
            "labels": template.metadata.labels,
            "annotations": template.metadata.annotations,
            "finalizers": template.metadata.finalizers,
            "ownerReferences": [owner_reference(owner, kind)],
        },
        "spec": encode(&template.spec),
    })
}

/// The compiled selector of a maker; `None` when it is broken or would match everything.
pub(crate) fn selector(selector: Option<&objects::LabelSelector>) -> Option<Selector> {
    selector.and_then(objects::LabelSelector::compile).filter(|one| !one.is_empty())
}

/// Since when a pod is ready.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = find_condition(&pod.status.conditions, "Ready").filter(|one| one.is_true())?;
    ready.last_transition_time.map(|at| at.0)
}

/// When a pod counts, or will count, as available; `None` while it is not ready.
pub(crate) fn available_from(pod: &Pod, min_ready_seconds: i64) -> Option<Timestamp> {
    if !pod.is_ready() {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Timestamp::MIN);
    }
    ready_since(pod)?.checked_add(SignedDuration::from_secs(min_ready_seconds)).ok()
}

/// Is a pod available now? If it only will be, asks to look again then.
pub(crate) fn is_available(
    pod: &Pod,
    min_ready_seconds: i64,
    now: Timestamp,
    steps: &mut Steps,
) -> bool {
    match available_from(pod, min_ready_seconds) {
        Some(at) if at <= now => true,
        Some(at) => {
            steps.look_again(at);
            false
        }
        None => false,
    }
}

/// What a maker was at several times, oldest first.
pub(crate) struct History {
    /// The revisions that are its own.
    pub(crate) all: Vec<Arc<ControllerRevision>>,
    /// The hash of what it is now; it is among them unless it was asked for in this round.
    pub(crate) update: String,
}

impl History {
    /// Reads the history; asks for the revision of the current template if there is none.
    pub(crate) fn of(
        view: &View,
        owner: &ObjectMeta,
        kind: &'static Kind,
        template: &PodTemplateSpec,
        steps: &mut Steps,
    ) -> Self {
        let mut all: Vec<Arc<ControllerRevision>> = view
            .revisions
            .inside(&owner.namespace)
            .filter(|one| one.metadata.is_controlled_by(&owner.uid))
            .cloned()
            .collect();
        all.sort_by_key(|one| (one.revision, one.metadata.name.clone()));
        let data = data(template);
        let newest = all.last().map_or(0, |one| one.revision);
        // The newest that says the same: an older twin is left to be forgotten.
        if let Some(same) = all.iter().rev().find(|one| one.data == data) {
            let update = hash_of(same);
            if same.revision < newest {
                let body = json!({"revision": newest + 1});
                steps.push(Action::patch(Target::of(&**same), body));
            }
            return Self { all, update };
        }
        let bytes = serde_json::to_vec(&data).unwrap_or_default();
        let name = |hash: &String| format!("{}-{hash}", owner.name);
        let free = |hash: &String| view.revisions.get(&owner.namespace, &name(hash)).is_none();
        let hashes = (0..100).map(|salt| hash::short(&bytes, salt));
        let update = hashes.into_iter().find(free).unwrap_or_default();
        let mut labels = template.metadata.labels.clone();
        labels.insert(REVISION_LABEL.to_owned(), update.clone());
        let object = json!({
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": name(&update),
                "namespace": owner.namespace,
                "labels": labels,
                "ownerReferences": [owner_reference(owner, kind)],
            },
            "data": data,
            "revision": newest + 1,
        });
        steps.push(Action::create(&kind::CONTROLLER_REVISION, &owner.namespace, object));
        Self { all, update }
    }

    /// The template of a revision, by its hash.
    pub(crate) fn template(&self, hash: &str) -> Option<PodTemplateSpec> {
        let found = self.all.iter().find(|one| hash_of(one) == hash)?;
        serde_json::from_value(found.data.pointer("/spec/template")?.clone()).ok()
    }

    /// Deletes the oldest revisions that no pod is of, beyond those to keep.
    pub(crate) fn forget(&self, keep: i64, live: &[&str], steps: &mut Steps) {
        let idle: Vec<_> = self
            .all
            .iter()
            .filter(|one| {
                let hash = hash_of(one);
                hash != self.update && !live.contains(&hash.as_str())
            })
            .collect();
        let surplus = idle.len().saturating_sub(usize::try_from(keep).unwrap_or(0));
        for one in idle.into_iter().take(surplus).filter(|one| !one.metadata.is_deleting()) {
            steps.push(Action::delete(Target::of(&**one)));
        }
    }
}

/// What `kubectl rollout undo` merges back: the template, in place of the one that is there.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = encode(template);
    if let Some(fields) = template.as_object_mut() {
        fields.insert("$patch".to_owned(), json!("replace"));
    }
    json!({"spec": {"template": template}})
}

/// The hash that pods of a revision carry.
fn hash_of(revision: &ControllerRevision) -> String {
    let label = revision.metadata.label(REVISION_LABEL);
    label.map_or_else(|| revision.metadata.name.clone(), str::to_owned)
}

/// Labels of a map with one more.
pub(crate) fn with_label(
    labels: &BTreeMap<String, String>,
    name: &str,
    value: &str,
) -> BTreeMap<String, String> {
    let mut labels = labels.clone();
    labels.insert(name.to_owned(), value.to_owned());
    labels
}
