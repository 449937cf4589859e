//! Carries out what controllers plan.
//!
//! A write that comes too late (the object changed, is gone, or exists already) is no
//! failure: the change that overtook it wakes the loop again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use control::action::{Action, Note, Propagation, Severity, Target};
use control::controller::{Controller, Remembers};
use control::scaling::Observed;
use control::view::View;
use futures_util::StreamExt;
use futures_util::stream;
use objects::meta::{Object, OwnerReference};
use runtime::client::{DeleteParams, Patch, Preconditions};
use runtime::{Client, ClientError, Resource, report};
use serde_json::{Value, json};
use thiserror::Error;
use tracing::{debug, warn};

use crate::ceph::AskError;
use crate::event::Events;
use crate::hub::{Hub, Pending};
use crate::signer::{Signer, SignerError};
use crate::{empty, fence, image, usage};

/// Writes of one round under way at a time: enough for the server to commit them in groups.
pub(crate) const AT_ONCE: usize = 96;

/// Why a step failed.
#[derive(Debug, Error)]
pub(crate) enum StepError {
    /// The server said no, or nothing.
    #[error("the API did not take the step")]
    Api(#[from] ClientError),
    /// The cluster of a volume did not do what was asked.
    #[error("cannot change what volume {volume} is made of")]
    Ceph {
        /// The volume.
        volume: String,
        /// Why.
        #[source]
        source: AskError,
    },
    /// The certificate could not be made.
    #[error("cannot sign {name}")]
    Sign {
        /// The request.
        name: String,
        /// Why.
        #[source]
        source: SignerError,
    },
}

/// The means to act on the cluster.
pub(crate) struct Hand {
    pub(crate) client: Client,
    pub(crate) hub: Arc<Hub>,
    pub(crate) events: Events,
    /// `None` where the authority is not ours.
    pub(crate) signer: Option<Signer>,
    pub(crate) gone: Gone,
}

/// Uids that the server no longer knows: they never come back, so one question is enough for
/// any number of dependents.
#[derive(Default)]
pub(crate) struct Gone(Mutex<VecDeque<String>>);

/// Uids remembered.
const GONE: usize = 256;

impl Gone {
    fn has(&self, uid: &str) -> bool {
        let uids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !uid.is_empty() && uids.iter().any(|one| one == uid)
    }

    fn note(&self, uid: &str) {
        let mut uids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if uids.len() == GONE {
            uids.pop_front();
        }
        uids.push_back(uid.to_owned());
    }
}

impl Hand {
    /// Adds to a view what is no object: what pods use, for those who scale by it.
    pub(crate) async fn look_around(&self, controller: &Controller, view: &mut View) {
        if !view.quotas.is_empty() {
            self.count(view);
        }
        if controller.remembers != Remembers::Scaling || view.autoscalers.is_empty() {
            return;
        }
        // Without metrics autoscalers say so themselves.
        let usage = usage::observe(&self.client).await.unwrap_or_default();
        view.observed = Arc::new(Observed { usage, ..Observed::default() });
    }

    /// Adds how many there are of what quotas count and no view holds whole.
    fn count(&self, view: &mut View) {
        let mut counted = BTreeMap::new();
        for quota in view.quotas.iter() {
            let namespace = &quota.metadata.namespace;
            for name in quota.spec.hard.keys() {
                let resource = name.strip_prefix("count/").unwrap_or(name);
                if let Some(count) = self.hub.count(resource, namespace) {
                    counted.insert((namespace.clone(), resource.to_owned()), count);
                }
            }
        }
        view.counted = counted;
    }

    /// Carries out the steps of a round side by side; failures are reported here, and what the
    /// server said when it refused one comes back.
    pub(crate) async fn carry_out_all(
        &self,
        by: &'static str,
        actions: &[Action],
    ) -> Vec<Result<Option<Pending>, Option<String>>> {
        // A plain vector: closures over borrowed steps do not make `Send` streams.
        let mut steps = Vec::with_capacity(actions.len());
        for action in actions {
            steps.push(self.carry_out_or_report(by, action));
        }
        stream::iter(steps).buffered(AT_ONCE).collect().await
    }

    async fn carry_out_or_report(
        &self,
        by: &'static str,
        action: &Action,
    ) -> Result<Option<Pending>, Option<String>> {
        self.carry_out(by, action).await.map_err(|err| {
            let target = action.target().map(|target| target.name.as_str());
            let text = report(&err);
            warn!(
                controller = by,
                name = target,
                err = text,
                "step failed; the next round retries"
            );
            match err {
                StepError::Api(err) => err.status().map(|status| status.message.clone()),
                StepError::Ceph { .. } | StepError::Sign { .. } => None,
            }
        })
    }

    /// Carries out one step and says what the view will show when it has seen it.
    pub(crate) async fn carry_out(
        &self,
        by: &'static str,
        action: &Action,
    ) -> Result<Option<Pending>, StepError> {
        match action {
            Action::Create { kind, namespace, object, note } => {
                self.create(by, kind, namespace, object, note.as_deref()).await
            }
            Action::Patch { target, subresource, body, note } => {
                let done = self.patch(target, *subresource, body).await?;
                if let (Some(_), Some(note)) = (&done, note) {
                    self.events.tell(by, note);
                }
                Ok(done)
            }
            Action::Replace { target, subresource, object } => {
                self.replace(target, *subresource, object).await
            }
            Action::Delete { target, grace_seconds, note } => {
                let done = self.delete(target, *grace_seconds).await?;
                if let (Some(_), Some(note)) = (&done, note) {
                    self.events.tell(by, note);
                }
                Ok(done)
            }
            Action::DeleteIfGone { target, absent, grace_seconds } => {
                if !self.are_gone(target, absent).await? {
                    return Ok(None);
                }
                self.delete(target, *grace_seconds).await
            }
            Action::Collect { target, absent, propagation } => {
                if !self.are_gone(target, absent).await? {
                    return Ok(None);
                }
                self.delete_with(target, collected(target, *propagation)).await
            }
            Action::Release { target, absent, subresource, body } => {
                if !self.are_gone(target, absent).await? {
                    return Ok(None);
                }
                self.patch(target, *subresource, body).await
            }
            Action::Bind { target, node } => self.bind(target, node).await,
            Action::Evict { target, note } => {
                let done = self.evict(target).await?;
                if let (Some(_), Some(note)) = (&done, note) {
                    self.events.tell(by, note);
                }
                Ok(done)
            }
            Action::Empty { target } => empty::carry_out(self, target).await,
            Action::Sign { target } => self.sign(target).await,
            Action::Image { target, class, work } => {
                image::carry_out(self, by, (target, class), work).await
            }
            Action::Unfence { target, fences } => fence::lift(self, by, target, fences).await,
            Action::Detach { target, node, volume } => {
                fence::detach(self, by, target, (node, volume)).await
            }
        }
    }

    /// What the view will show when it has seen an object as it is now; `None` when it is gone.
    pub(crate) async fn stand(&self, target: &Target) -> Result<Option<Pending>, StepError> {
        let (resource, namespace) = (Resource::from(target.kind), Some(&*target.namespace));
        let namespace = namespace.filter(|name| !name.is_empty());
        match self.client.get(&resource, namespace, &target.name).await {
            Ok(found) => Ok(pending(target.kind, &found)),
            Err(err) if err.is_not_found() => Ok(None),
            Err(err) => Err(err.into()),
        }
    }

    /// An object of no namespace as it is now; `None` when there is none.
    pub(crate) async fn read<T: Object>(
        &self,
        resource: &Resource,
        name: &str,
    ) -> Result<Option<T>, StepError> {
        match self.client.get(resource, None, name).await {
            Ok(found) => {
                let failed = |source| ClientError::Decode { path: name.to_owned(), source };
                Ok(Some(T::decode(&found).map_err(failed)?))
            }
            Err(err) if err.is_not_found() => Ok(None),
            Err(err) => Err(err.into()),
        }
    }

    /// Makes an object and tells of it; of a refusal too.
    async fn create(
        &self,
        by: &'static str,
        kind: &'static objects::Kind,
        namespace: &str,
        object: &Value,
        note: Option<&Note>,
    ) -> Result<Option<Pending>, StepError> {
        let client = self.client.briefly();
        let made = client.create(&Resource::from(kind), Some(namespace), object).await;
        let made = overtaken(made).inspect_err(|err| {
            if let (Some(note), Some(status)) = (note, err.status()) {
                self.events.tell(by, &not_created(note, &status.message));
            }
        })?;
        let Some(made) = made else { return Ok(None) };
        if let Some(note) = note {
            let name = made.pointer("/metadata/name").and_then(Value::as_str);
            let message = note.message.trim_end_matches(": ");
            let message = match name {
                Some(name) if note.message.ends_with("Created pod: ") => {
                    format!("{message}: {name}")
                }
                _ => message.to_owned(),
            };
            self.events.tell(by, &Note { message, ..note.clone() });
        }
        Ok(pending(kind, &made))
    }

    /// Merges into an object of exactly the target's version.
    pub(crate) async fn patch(
        &self,
        target: &Target,
        subresource: Option<&'static str>,
        body: &Value,
    ) -> Result<Option<Pending>, StepError> {
        let mut body = body.clone();
        // The version makes the patch a compare-and-set.
        if let Some(fields) = body.as_object_mut() {
            let meta = fields.entry("metadata").or_insert_with(|| json!({}));
            if let Some(meta) = meta.as_object_mut() {
                meta.insert("resourceVersion".to_owned(), json!(target.resource_version));
                meta.insert("uid".to_owned(), json!(target.uid));
            }
        }
        let mut patch = Patch::merge(body);
        patch.subresource = subresource.map(str::to_owned);
        let (resource, namespace) = (Resource::from(target.kind), Some(&*target.namespace));
        let done = self.client.briefly().patch(&resource, namespace, &target.name, &patch).await;
        Ok(overtaken(done)?.and_then(|object| pending(target.kind, &object)))
    }

    async fn replace(
        &self,
        target: &Target,
        subresource: Option<&'static str>,
        object: &Value,
    ) -> Result<Option<Pending>, StepError> {
        let (resource, namespace) = (Resource::from(target.kind), Some(&*target.namespace));
        let (client, name) = (self.client.briefly(), &target.name);
        let done = match subresource {
            Some(sub) => client.update_subresource(&resource, namespace, name, sub, object).await,
            None => client.update(&resource, namespace, name, object).await,
        };
        Ok(overtaken(done)?.and_then(|object| pending(target.kind, &object)))
    }

    async fn delete(
        &self,
        target: &Target,
        grace_seconds: Option<u32>,
    ) -> Result<Option<Pending>, StepError> {
        let params =
            DeleteParams { grace_period_seconds: grace_seconds, ..DeleteParams::uid(&target.uid) };
        self.delete_with(target, params).await
    }

    async fn delete_with(
        &self,
        target: &Target,
        params: DeleteParams,
    ) -> Result<Option<Pending>, StepError> {
        let (resource, namespace) = (Resource::from(target.kind), Some(&*target.namespace));
        let done = self.client.briefly().delete(&resource, namespace, &target.name, &params).await;
        Ok(overtaken(done)?.map(|_| gone(target)))
    }

    /// Asks the server itself whether all of these owners are gone.
    async fn are_gone(
        &self,
        target: &Target,
        owners: &[OwnerReference],
    ) -> Result<bool, StepError> {
        for owner in owners {
            if self.gone.has(&owner.uid) {
                continue;
            }
            if !self.is_gone(target, owner).await? {
                return Ok(false);
            }
            self.gone.note(&owner.uid);
        }
        Ok(true)
    }

    /// Asks the server itself whether an owner is gone.
    async fn is_gone(&self, target: &Target, owner: &OwnerReference) -> Result<bool, StepError> {
        let Some(kind) = self.hub.by_gvk(&owner.api_version, &owner.kind) else {
            // We cannot know, so it may be there.
            debug!(kind = owner.kind, name = target.name, "owner of a kind we do not know");
            return Ok(false);
        };
        if kind.namespaced && target.namespace.is_empty() {
            // Nobody can say in which namespace it should be.
            return Ok(false);
        }
        let (resource, namespace) = (Resource::from(kind), Some(&*target.namespace));
        match self.client.get(&resource, namespace, &owner.name).await {
            Ok(found) => {
                let uid = found.pointer("/metadata/uid").and_then(Value::as_str);
                Ok(!owner.uid.is_empty() && uid != Some(&owner.uid))
            }
            Err(err) if err.is_not_found() => Ok(true),
            Err(err) => Err(err.into()),
        }
    }

    async fn bind(&self, target: &Target, node: &str) -> Result<Option<Pending>, StepError> {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {
                "name": target.name, "namespace": target.namespace, "uid": target.uid,
            },
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let (resource, namespace) = (Resource::from(target.kind), Some(&*target.namespace));
        let done = self
            .client
            .create_subresource(&resource, namespace, &target.name, "binding", &binding)
            .await;
        // A pod that went away in between is no failure of ours, but no success either.
        match done {
            Err(err) if !err.is_not_found() => Err(err.into()),
            _ => Ok(None),
        }
    }

    /// Asks for a pod's end; a budget that refuses is asked again later.
    async fn evict(&self, target: &Target) -> Result<Option<Pending>, StepError> {
        let eviction = json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": target.name, "namespace": target.namespace},
            "deleteOptions": {"preconditions": {"uid": target.uid}},
        });
        let (resource, namespace) = (Resource::from(target.kind), Some(&*target.namespace));
        let name = &target.name;
        let done =
            self.client.create_subresource(&resource, namespace, name, "eviction", &eviction).await;
        match done {
            Err(err) if err.status().is_some_and(|status| status.code == 429) => {
                debug!(name, err = report(&err), "eviction refused");
                Ok(None)
            }
            done => Ok(overtaken(done)?.map(|_| gone(target))),
        }
    }

    /// Signs an approved request; one that cannot be signed is marked so and left.
    async fn sign(&self, target: &Target) -> Result<Option<Pending>, StepError> {
        let Some(request) = self.hub.request(&target.name) else { return Ok(None) };
        let Some(signer) = &self.signer else { return Ok(None) };
        let status = match signer.sign(&request) {
            Ok(certificate) => json!({ "certificate": certificate }),
            Err(source) => {
                let failed = objects::Condition {
                    last_update_time: Some(jiff::Timestamp::now().into()),
                    ..objects::Condition::new("Failed", true, "SignerError", &report(&source))
                };
                let conditions: Vec<_> =
                    request.status.conditions.iter().cloned().chain([failed]).collect();
                let name = target.name.clone();
                warn!(
                    name,
                    err = report(&StepError::Sign { name: name.clone(), source }),
                    "cannot sign"
                );
                json!({ "conditions": conditions })
            }
        };
        self.patch(target, Some("status"), &json!({ "status": status })).await
    }
}

/// What to tell when the server refused to make what `note` would have told of: a quota or an
/// admission webhook, most often. The words are upstream's.
fn not_created(note: &Note, why: &str) -> Note {
    let begun =
        |end: &str| note.message.strip_suffix(end).filter(|_| note.message.starts_with("create"));
    let message = match begun(" successful").or_else(|| begun(" success")) {
        Some(begun) => format!("{begun} failed error: {why}"),
        None if note.message.starts_with("Created job") => format!("Error creating job: {why}"),
        None => format!("Error creating: {why}"),
    };
    Note { severity: Severity::Warning, reason: "FailedCreate", message, ..note.clone() }
}

/// Of this version only: a newer one may have got another owner.
fn collected(target: &Target, propagation: Propagation) -> DeleteParams {
    let preconditions = Preconditions {
        uid: Some(target.uid.clone()),
        resource_version: Some(target.resource_version.clone()),
    };
    DeleteParams { preconditions, propagation: Some(propagation.word()), ..DeleteParams::default() }
}

/// Takes "too late" for an answer: `None`.
pub(crate) fn overtaken(answer: Result<Value, ClientError>) -> Result<Option<Value>, ClientError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(err) if err.is_conflict() || err.is_not_found() || err.is_already_exists() => {
            debug!(err = report(&err), "overtaken");
            Ok(None)
        }
        Err(err) if ends_with_its_namespace(&err) => Ok(None),
        Err(err) => Err(err),
    }
}

/// Nothing new may begin in a namespace that is going away.
fn ends_with_its_namespace(err: &ClientError) -> bool {
    err.status().is_some_and(|status| {
        status.code == 403 && status.message.contains("because it is being terminated")
    })
}

/// What the view must reach to have seen the end of an object begin.
fn gone(target: &Target) -> Pending {
    Pending::Gone {
        kind: target.kind,
        namespace: target.namespace.clone(),
        name: target.name.clone(),
        uid: target.uid.clone(),
    }
}

/// What the view must reach to have seen an answer.
fn pending(kind: &'static objects::Kind, answer: &Value) -> Option<Pending> {
    let revision = answer.pointer("/metadata/resourceVersion").and_then(Value::as_str)?;
    revision.parse().ok().map(|revision| Pending::Revision(kind, revision))
}

#[cfg(test)]
mod tests {
    use super::*;
    use objects::meta::ObjectReference;

    #[track_caller]
    fn check(told: &str, expected: &str) {
        let note = Note {
            about: ObjectReference::default(),
            severity: Severity::Normal,
            reason: "SuccessfulCreate",
            message: told.to_owned(),
        };
        let failed = not_created(&note, "exceeded quota");
        assert_eq!((failed.reason, failed.message.as_str()), ("FailedCreate", expected));
        assert_eq!(failed.severity, Severity::Warning);
    }

    #[test]
    fn what_the_server_refuses_to_make_is_told_in_upstreams_words() {
        check("Created pod: ", "Error creating: exceeded quota");
        check("Created job tick-1", "Error creating job: exceeded quota");
        check(
            "create Pod db-0 in StatefulSet db successful",
            "create Pod db-0 in StatefulSet db failed error: exceeded quota",
        );
        check(
            "create Claim c-db-0 Pod db-0 in StatefulSet db success",
            "create Claim c-db-0 Pod db-0 in StatefulSet db failed error: exceeded quota",
        );
    }
}
