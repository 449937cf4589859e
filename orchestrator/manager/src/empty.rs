//! Empties a namespace that is going away, and lets it go.
//!
//! Spec: upstream's namespace controller: pods go before what they may still need; what is left,
//! and whose finalizers hold it, stands in the namespace's conditions. Differs: a kind that cannot
//! be listed does not keep the others from going.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream;
use jiff::Timestamp;
use objects::condition::{Condition, set_condition};
use objects::kind::{self, Kind};
use objects::meta::Object;
use objects::namespace::Namespace;
use runtime::client::{DeleteParams, ListParams};
use runtime::{ClientError, Resource, report};
use serde_json::{Value, json};

use crate::apply::{AT_ONCE, Hand, StepError, overtaken};
use crate::custom;
use crate::hub::Pending;
use control::action::Target;

/// Looks in one go: most objects are gone as soon as that is asked for.
const LOOKS: usize = 4;

/// What is in a namespace, as far as it could be seen.
#[derive(Debug, Default)]
struct Contents {
    /// How many of a resource, `pods.` or `deployments.apps`.
    remaining: BTreeMap<String, usize>,
    /// How many objects a finalizer holds.
    finalizers: BTreeMap<String, usize>,
    /// What the server said when it was asked to list or delete.
    failures: Vec<String>,
}

impl Contents {
    /// Nothing there, and nothing that could not be seen?
    fn is_empty(&self) -> bool {
        self.remaining.is_empty() && self.failures.is_empty()
    }

    fn note(&mut self, kind: &Kind, item: &Value) {
        *self.remaining.entry(format!("{}.{}", kind.plural, kind.group)).or_default() += 1;
        let all = item.pointer("/metadata/finalizers").and_then(Value::as_array);
        for name in all.into_iter().flatten().filter_map(Value::as_str) {
            *self.finalizers.entry(name.to_owned()).or_default() += 1;
        }
    }

    /// Upstream's five conditions.
    fn conditions(&self) -> [Condition; 5] {
        let told = |kind: &str, bad: bool, reasons: (&str, &str), messages: (&str, String)| {
            let (reason, message) =
                if bad { (reasons.1, messages.1.as_str()) } else { (reasons.0, messages.0) };
            Condition::new(kind, bad, reason, message)
        };
        let list = |all: &BTreeMap<String, usize>, word: &str| {
            let each =
                all.iter().map(|(name, count)| format!("{name} {word} {count} resource instances"));
            each.collect::<Vec<_>>().join(", ")
        };
        [
            told(
                "NamespaceDeletionDiscoveryFailure",
                false,
                ("ResourcesDiscovered", "DiscoveryFailed"),
                ("All resources successfully discovered", String::new()),
            ),
            told(
                "NamespaceDeletionGroupVersionParsingFailure",
                false,
                ("ParsedGroupVersions", "GroupVersionParsingFailed"),
                ("All legacy kube types successfully parsed", String::new()),
            ),
            told(
                "NamespaceDeletionContentFailure",
                !self.failures.is_empty(),
                ("ContentDeleted", "ContentDeletionFailed"),
                (
                    "All content successfully deleted, may be waiting on finalization",
                    format!(
                        "Failed to delete all resource types, {} remaining: {}",
                        self.failures.len(),
                        self.failures.join(", ")
                    ),
                ),
            ),
            told(
                "NamespaceContentRemaining",
                !self.remaining.is_empty(),
                ("ContentRemoved", "SomeResourcesRemain"),
                (
                    "All content successfully removed",
                    format!("Some resources are remaining: {}", list(&self.remaining, "has")),
                ),
            ),
            told(
                "NamespaceFinalizersRemaining",
                !self.finalizers.is_empty(),
                ("ContentHasNoFinalizers", "SomeFinalizersRemain"),
                (
                    "All content-preserving finalizers finished",
                    format!(
                        "Some content in the namespace has finalizers remaining: {}",
                        list(&self.finalizers, "in")
                    ),
                ),
            ),
        ]
    }
}

/// Deletes what is in a namespace; lets the namespace go once nothing is left.
///
/// # Errors
///
/// When the namespace itself cannot be read or written.
pub(crate) async fn carry_out(hand: &Hand, target: &Target) -> Result<Option<Pending>, StepError> {
    let name = &target.name;
    let mut contents = Contents::default();
    for _ in 0..LOOKS {
        let before = contents.remaining;
        contents = sweep(hand, name, vec![&kind::POD]).await;
        if contents.is_empty() {
            let rest = hand.hub.inside().into_iter().filter(|kind| **kind != kind::POD);
            contents = sweep(hand, name, rest.collect()).await;
        }
        if contents.is_empty() || contents.remaining == before {
            break;
        }
    }
    if contents.is_empty() {
        contents = sweep_new(hand, name).await;
    }
    let resource = Resource::from(target.kind);
    let found = overtaken(hand.client.get(&resource, None, name).await)?;
    let Some(found) = found.filter(|one| one.pointer("/metadata/uid") == Some(&json!(target.uid)))
    else {
        return Ok(None);
    };
    if contents.is_empty() {
        return finalize(hand, &resource, target, found).await;
    }
    tell(hand, target, &found, &contents).await
}

/// Kinds of definitions that came while nobody looked.
async fn sweep_new(hand: &Hand, namespace: &str) -> Contents {
    let known = hand.hub.inside();
    let found = custom::ask(&hand.client).await.unwrap_or_default().kinds.into_iter();
    let new = found.filter(|kind| kind.namespaced && !known.contains(kind));
    sweep(hand, namespace, new.collect()).await
}

/// Deletes everything of these kinds, and says what was there.
async fn sweep(hand: &Hand, namespace: &str, kinds: Vec<&'static Kind>) -> Contents {
    let mut lists = Vec::with_capacity(kinds.len());
    for kind in kinds {
        lists.push(sweep_kind(hand, namespace, kind));
    }
    let all: Vec<Contents> = stream::iter(lists).buffered(AT_ONCE).collect().await;
    let mut sum = Contents::default();
    for one in all {
        sum.failures.extend(one.failures);
        sum.remaining.extend(one.remaining);
        for (name, count) in one.finalizers {
            *sum.finalizers.entry(name).or_default() += count;
        }
    }
    sum
}

async fn sweep_kind(hand: &Hand, namespace: &str, kind: &'static Kind) -> Contents {
    let mut contents = Contents::default();
    let resource = Resource::from(kind);
    let list = match hand.client.list(&resource, Some(namespace), &ListParams::default()).await {
        Ok(list) => list,
        // A definition went, and its objects with it; or nothing of this kind can be listed.
        Err(err) if is_not_served(&err) => return contents,
        Err(err) => {
            contents.failures.push(report(&err));
            return contents;
        }
    };
    let mut deletes = Vec::new();
    for item in &list.items {
        contents.note(kind, item);
        deletes.push(delete(hand, &resource, namespace, item));
    }
    let done: Vec<_> = stream::iter(deletes).buffered(AT_ONCE).collect().await;
    for one in done {
        if let Err(err) = overtaken(one) {
            contents.failures.push(report(&err));
        }
    }
    contents
}

fn is_not_served(err: &ClientError) -> bool {
    err.is_not_found() || err.status().is_some_and(|status| status.code == 405)
}

/// Deletes one listed object, unless it is going already.
async fn delete(
    hand: &Hand,
    resource: &Resource,
    namespace: &str,
    item: &Value,
) -> Result<Value, ClientError> {
    let text = |pointer| item.pointer(pointer).and_then(Value::as_str);
    if text("/metadata/deletionTimestamp").is_some() {
        return Ok(Value::Null);
    }
    let name = text("/metadata/name").unwrap_or_default();
    let params = DeleteParams::uid(text("/metadata/uid").unwrap_or_default());
    hand.client.delete(resource, Some(namespace), name, &params).await
}

/// Takes our finalizer off.
async fn finalize(
    hand: &Hand,
    resource: &Resource,
    target: &Target,
    mut namespace: Value,
) -> Result<Option<Pending>, StepError> {
    let held = namespace.pointer_mut("/spec/finalizers").and_then(Value::as_array_mut);
    if let Some(held) = held {
        held.retain(|one| one.as_str() != Some("kubernetes"));
    }
    let (name, sub) = (&target.name, "finalize");
    let done = hand.client.update_subresource(resource, None, name, sub, &namespace).await;
    overtaken(done)?;
    Ok(None)
}

/// Writes what is left into the namespace's conditions, when that changed.
async fn tell(
    hand: &Hand,
    target: &Target,
    found: &Value,
    contents: &Contents,
) -> Result<Option<Pending>, StepError> {
    let Ok(namespace) = Namespace::decode(found) else { return Ok(None) };
    let before = namespace.status.conditions;
    let mut conditions = before.clone();
    for condition in contents.conditions() {
        set_condition(&mut conditions, condition, Timestamp::now());
    }
    if conditions == before {
        return Ok(None);
    }
    let target =
        Target { resource_version: namespace.metadata.resource_version.clone(), ..target.clone() };
    let body = json!({"status": {"conditions": conditions}});
    hand.patch(&target, Some("status"), &body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_in_upstreams_words() {
        let mut contents = Contents::default();
        let held = json!({"metadata": {"finalizers": ["example.com/hold"]}});
        contents.note(&kind::POD, &json!({}));
        contents.note(&kind::DEPLOYMENT, &held);
        contents.note(&kind::DEPLOYMENT, &held);
        let told: Vec<String> = contents
            .conditions()
            .iter()
            .filter(|one| one.is_true())
            .map(|one| format!("{} {}: {}", one.kind, one.reason, one.message))
            .collect();
        assert_eq!(
            told,
            [
                "NamespaceContentRemaining SomeResourcesRemain: Some resources are remaining: \
                 deployments.apps has 2 resource instances, pods. has 1 resource instances",
                "NamespaceFinalizersRemaining SomeFinalizersRemain: Some content in the namespace \
                 has finalizers remaining: example.com/hold in 2 resource instances",
            ]
        );
        assert!(!contents.is_empty());
    }
}
