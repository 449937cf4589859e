//! The claims of a stateful set: made from templates, kept or deleted by policy.

use std::sync::Arc;

use objects::kind;
use objects::meta::OwnerReference;
use objects::storage::PersistentVolumeClaim;
use objects::workload::StatefulSet;
use serde_json::json;

use super::{Crew, pod};
use crate::action::{Action, Note, Steps, Target, encode};
use crate::family::owner_reference;
use crate::view::View;

/// Is a volume of this name made from a claim template?
pub(super) fn is_templated(set: &StatefulSet, volume: &str) -> bool {
    set.spec.volume_claim_templates.iter().any(|one| one.metadata.name == volume)
}

/// Asks for the claims of a pod that are not there; `false` while an old one is going.
pub(super) fn make(view: &View, set: &StatefulSet, number: i64, steps: &mut Steps) -> bool {
    let mut ready = true;
    for template in &set.spec.volume_claim_templates {
        let name = format!("{}-{}-{number}", template.metadata.name, set.metadata.name);
        let namespace = &set.metadata.namespace;
        if let Some(had) = view.claims.get(namespace, &name) {
            ready &= !had.metadata.is_deleting();
            continue;
        }
        let mut labels = template.metadata.labels.clone();
        if let Some(selector) = &set.spec.selector {
            labels.extend(selector.match_labels.clone());
        }
        let keeps = policy(set).0;
        let owners: Vec<OwnerReference> = if keeps {
            Vec::new()
        } else {
            vec![owner_reference(&set.metadata, &kind::STATEFUL_SET)]
        };
        let object = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": labels,
                "annotations": template.metadata.annotations,
                "ownerReferences": owners,
            },
            "spec": encode(&template.spec),
        });
        let message = format!(
            "create Claim {name} Pod {}-{number} in StatefulSet {} success",
            set.metadata.name, set.metadata.name
        );
        let note = Note::normal(&Target::of(set), "SuccessfulCreate", message);
        let step = Action::create(&kind::PERSISTENT_VOLUME_CLAIM, namespace, object);
        steps.push(step.telling(note));
    }
    ready
}

/// Are claims kept when the set is deleted, and when it shrinks?
fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let keeps = |text: &str| text != "Delete";
    policy.map_or((true, true), |one| (keeps(&one.when_deleted), keeps(&one.when_scaled)))
}

impl Crew<'_> {
    /// Gives claims the owners with which they are to go.
    pub(super) fn keep_claims(&self, steps: &mut Steps) {
        if self.set.spec.persistent_volume_claim_retention_policy.is_none() {
            return;
        }
        for template in &self.set.spec.volume_claim_templates {
            let stem = format!("{}-", template.metadata.name);
            for claim in self.view.claims.inside(&self.set.metadata.namespace) {
                let owner = claim.metadata.name.strip_prefix(&stem);
                let number = owner.and_then(|name| pod::number(self.set, name));
                if let Some(number) = number.filter(|_| !claim.metadata.is_deleting()) {
                    self.keep_claim(claim, number, steps);
                }
            }
        }
    }

    fn keep_claim(&self, claim: &Arc<PersistentVolumeClaim>, number: i64, steps: &mut Steps) {
        let (keeps_deleted, keeps_scaled) = policy(self.set);
        let surplus = !self.is_wanted(number);
        let pod = self.pods.get(&number);
        let with_pod = !keeps_scaled && surplus;
        let with_set = !keeps_deleted && !with_pod;
        let name = format!("{}-{number}", self.set.metadata.name);
        let ours = |one: &&OwnerReference| {
            one.uid == self.set.metadata.uid || (one.kind == "Pod" && one.name == name)
        };
        let mut owners: Vec<OwnerReference> =
            claim.metadata.owner_references.iter().filter(|one| !ours(one)).cloned().collect();
        if with_set {
            owners.push(owner_reference(&self.set.metadata, &kind::STATEFUL_SET));
        }
        match pod {
            Some(pod) if with_pod => owners.push(owner_reference(&pod.metadata, &kind::POD)),
            // The pod went already; its claim waits with the reference it has.
            None if with_pod => return,
            _ => (),
        }
        if owners != claim.metadata.owner_references {
            let body = json!({"metadata": {"ownerReferences": owners}});
            steps.push(Action::patch(Target::of(&**claim), body));
        }
    }
}
