//! Carries out what the scheduler decides.
//!
//! Each decision is a task of its own, so that the server can commit many bindings at once;
//! their number is bounded, and the loop waits when it is reached.

use control::action::{Action, Target};
use control::scheduler::Decision;
use runtime::client::{DeleteParams, Patch};
use runtime::{Client, ClientError, Resource, report};
use serde_json::{Value, json};
use tracing::{debug, warn};

use super::NAME;
use crate::event::Events;

/// The means to act.
#[derive(Clone)]
pub(crate) struct Clerk {
    pub(crate) client: Client,
    /// `None` where nobody reads what is told.
    pub(crate) events: Option<Events>,
}

/// How a decision about a pod went.
pub(crate) struct Outcome {
    /// The pod that waits for the report; `None` when none does.
    pub(crate) uid: Option<String>,
    /// Is it done?
    pub(crate) success: bool,
}

impl Clerk {
    /// Carries out one decision; failures are reported here.
    pub(crate) async fn carry_out(self, decision: Decision) -> Outcome {
        match decision {
            Decision::Bind { uid, before, bind, note } => {
                let success = self.all(&before).await && self.one(&bind).await;
                if let (true, Some(note), Some(events)) = (success, &note, &self.events) {
                    events.tell(NAME, note);
                }
                Outcome { uid: Some(uid), success }
            }
            Decision::Prepare { uid, steps } => {
                let success = self.all(&steps).await;
                // Done is not bound: only failures are worth a word.
                Outcome { uid: (!success).then_some(uid), success }
            }
            Decision::Tell(steps) => {
                let success = self.all(&steps).await;
                Outcome { uid: None, success }
            }
        }
    }

    async fn all(&self, steps: &[Action]) -> bool {
        let mut success = true;
        for step in steps {
            success &= self.one(step).await;
        }
        success
    }

    async fn one(&self, step: &Action) -> bool {
        let done = match step {
            Action::Bind { target, node } => self.bind(target, node).await,
            Action::Patch { target, subresource, body, note } => {
                let done = self.patch(target, *subresource, body).await;
                if let (Ok(true), Some(note), Some(events)) = (&done, note, &self.events) {
                    events.tell(NAME, note);
                }
                // A change that overtook us is seen, and answered, by itself.
                done.map(|_| true)
            }
            Action::Delete { target, grace_seconds, note } => {
                let done = self.delete(target, *grace_seconds).await;
                if let (Ok(true), Some(note), Some(events)) = (&done, note, &self.events) {
                    events.tell(NAME, note);
                }
                done
            }
            other => {
                warn!(?other, "the scheduler asks for what is not its business");
                return false;
            }
        };
        done.unwrap_or_else(|err| {
            let name = step.target().map(|target| target.name.as_str());
            warn!(controller = NAME, name, err = report(&err), "step failed");
            false
        })
    }

    async fn bind(&self, target: &Target, node: &str) -> Result<bool, ClientError> {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": target.name, "namespace": target.namespace, "uid": target.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let (resource, namespace) = (Resource::from(target.kind), Some(&*target.namespace));
        let done = self
            .client
            .create_subresource(&resource, namespace, &target.name, "binding", &binding)
            .await;
        known(done)
    }

    async fn patch(
        &self,
        target: &Target,
        subresource: Option<&'static str>,
        body: &Value,
    ) -> Result<bool, ClientError> {
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
        let namespace = namespace.filter(|name| !name.is_empty());
        known(self.client.patch(&resource, namespace, &target.name, &patch).await)
    }

    async fn delete(
        &self,
        target: &Target,
        grace_seconds: Option<u32>,
    ) -> Result<bool, ClientError> {
        let params =
            DeleteParams { grace_period_seconds: grace_seconds, ..DeleteParams::uid(&target.uid) };
        let (resource, namespace) = (Resource::from(target.kind), Some(&*target.namespace));
        let done = self.client.delete(&resource, namespace, &target.name, &params).await;
        match known(done) {
            Ok(_) => Ok(true),
            Err(err) => Err(err),
        }
    }
}

/// Takes "too late" for an answer: not done, but no failure to shout about.
fn known(answer: Result<Value, ClientError>) -> Result<bool, ClientError> {
    match answer {
        Ok(_) => Ok(true),
        Err(err) if err.is_conflict() || err.is_not_found() => {
            debug!(err = report(&err), "overtaken");
            Ok(false)
        }
        Err(err) => Err(err),
    }
}
