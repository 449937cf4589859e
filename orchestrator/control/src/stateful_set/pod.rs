//! The pods of a stateful set: name, identity, volumes.

use std::sync::Arc;

use jiff::SignedDuration;
use objects::kind;
use objects::pod::{Pod, Volume};
use objects::workload::StatefulSet;
use serde_json::{Value, json};

use super::{Crew, claim};
use crate::action::{Action, Note, Steps, Target, encode};
use crate::family::{self, REVISION_LABEL};

/// Label with a pod's own name.
const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// Label with a pod's number.
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// When to look again whether a name that somebody else has is free.
const TAKEN: SignedDuration = SignedDuration::from_secs(15);

/// The number at the end of a pod's name; `None` when it is not one of this set.
pub(super) fn number(set: &StatefulSet, name: &str) -> Option<i64> {
    let text = name.strip_prefix(&set.metadata.name)?.strip_prefix('-')?;
    let number: i64 = text.parse().ok()?;
    (number >= 0 && number.to_string() == text).then_some(number)
}

impl Crew<'_> {
    /// Asks for a pod and its claims; `false` when it must wait: for an old claim, or for its name.
    pub(super) fn make(&self, number: i64, steps: &mut Steps) -> bool {
        let set = self.set;
        let revision = self.revision_of(number);
        let of_update = revision == self.history.update;
        let known = if of_update { None } else { self.history.template(revision) };
        let mut template = known.unwrap_or_else(|| set.spec.template.clone());
        let name = format!("{}-{number}", set.metadata.name);
        if self.view.pods.get(&set.metadata.namespace, &name).is_some() {
            // Somebody else's: of an earlier set of this name that is still being collected, or a
            // stranger's. Its end wakes us in the first case.
            steps.look_again(self.now.saturating_add(TAKEN).unwrap_or(self.now));
            return false;
        }
        if !claim::make(self.view, set, number, steps) {
            return false;
        }
        template.spec.volumes.retain(|volume| !claim::is_templated(set, &volume.name));
        for one in &set.spec.volume_claim_templates {
            let volume = &one.metadata.name;
            template.spec.volumes.push(Volume {
                name: volume.clone(),
                persistent_volume_claim: Some(json!({"claimName": format!("{volume}-{name}")})),
                ..Volume::default()
            });
        }
        template.spec.hostname.clone_from(&name);
        template.spec.subdomain.clone_from(&set.spec.service_name);
        let labels = &mut template.metadata.labels;
        labels.insert(NAME_LABEL.to_owned(), name.clone());
        labels.insert(INDEX_LABEL.to_owned(), number.to_string());
        labels.insert(REVISION_LABEL.to_owned(), revision.to_owned());
        let mut object = family::pod_of(&template, &set.metadata, &kind::STATEFUL_SET);
        if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.insert("name".to_owned(), json!(name));
        }
        let message = format!("create Pod {name} in StatefulSet {} successful", set.metadata.name);
        let note = Note::normal(&Target::of(set), "SuccessfulCreate", message);
        steps.push(Action::create(&kind::POD, &set.metadata.namespace, object).telling(note));
        true
    }

    /// Puts back the labels by which a pod is found, and claims that someone deleted.
    pub(super) fn keep_identity(&self, number: i64, pod: &Arc<Pod>, steps: &mut Steps) {
        if pod.metadata.is_deleting() {
            return;
        }
        let wanted = [(NAME_LABEL, pod.metadata.name.clone()), (INDEX_LABEL, number.to_string())];
        let mut labels = pod.metadata.labels.clone();
        labels.extend(wanted.map(|(name, value)| (name.to_owned(), value)));
        if labels != pod.metadata.labels {
            let body = json!({"metadata": {"labels": encode(&labels)}});
            steps.push(Action::patch(Target::of(&**pod), body));
        }
        // A pod that nobody has looked at yet may have no phase.
        if matches!(pod.status.phase.as_str(), "" | "Pending") {
            // Without its claim it would wait for ever.
            claim::make(self.view, self.set, number, steps);
        }
    }
}
