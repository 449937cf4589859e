//! Deletes what belongs to nobody any more.
//!
//! Spec: upstream's garbage collector: background (owners are gone), foreground (an owner
//! waits with the finalizer `foregroundDeletion` for those that block it), orphan (finalizer
//! `orphan`: dependents are let go). Whether owners are really gone is asked of the server
//! before anything is deleted, because one kind's view may be older than another's.

use std::collections::BTreeMap;

use jiff::Timestamp;
use objects::meta::ObjectMeta;
use serde_json::json;

use crate::action::{Action, Steps, Target};
use crate::view::{Key, Reference, View};

/// Finalizer of an owner that waits for its dependents.
const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner that leaves its dependents behind.
const ORPHAN: &str = "orphan";

/// Plans the steps for the whole graph; the key is not looked at.
#[must_use]
pub fn reconcile(view: &View, _key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let mut owners: BTreeMap<&str, &Reference> = BTreeMap::new();
    for one in &view.references {
        owners.insert(&one.meta.uid, one);
    }
    let mut dependents: BTreeMap<&str, Vec<&Reference>> = BTreeMap::new();
    for one in &view.references {
        for owner in &one.meta.owner_references {
            dependents.entry(&owner.uid).or_default().push(one);
        }
        if !one.meta.owner_references.is_empty() && !one.meta.is_deleting() {
            collect(one, &owners, &mut steps);
        }
    }
    for one in view.references.iter().filter(|one| one.meta.is_deleting()) {
        let mine = dependents.get(one.meta.uid.as_str()).map_or(&[][..], Vec::as_slice);
        if has(&one.meta, ORPHAN) {
            let_go(one, mine, &mut steps);
        } else if has(&one.meta, FOREGROUND) {
            wait_for(one, mine, &dependents, &mut steps);
        }
    }
    steps
}

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().any(|one| one == finalizer)
}

fn target(one: &Reference) -> Target {
    Target::of_kind(one.kind, &one.meta)
}

/// Background: plans the delete of an object none of whose owners is there.
fn collect(one: &Reference, owners: &BTreeMap<&str, &Reference>, steps: &mut Steps) {
    // A cluster-wide object cannot belong to something in a namespace; such an owner counts
    // as absent, as upstream.
    let present = one.meta.owner_references.iter().any(|owner| {
        owners.get(owner.uid.as_str()).is_some_and(|found| {
            found.meta.namespace.is_empty() || found.meta.namespace == one.meta.namespace
        })
    });
    if !present {
        let absent = one.meta.owner_references.clone();
        steps.push(Action::DeleteIfGone { target: target(one), absent, grace_seconds: None });
    }
}

/// Orphan: takes the reference out of every dependent, then the finalizer off the owner.
fn let_go(owner: &Reference, dependents: &[&Reference], steps: &mut Steps) {
    for one in dependents {
        let kept = one.meta.owner_references.iter();
        let kept: Vec<_> = kept.filter(|other| other.uid != owner.meta.uid).collect();
        let body = json!({"metadata": {"ownerReferences": kept}});
        steps.push(Action::patch(target(one), body));
    }
    if dependents.is_empty() {
        steps.push(without(owner, ORPHAN));
    }
}

/// Foreground: deletes the dependents, then lets the owner go once none blocks it.
fn wait_for(
    owner: &Reference,
    dependents: &[&Reference],
    all: &BTreeMap<&str, Vec<&Reference>>,
    steps: &mut Steps,
) {
    let mut blocked = false;
    for one in dependents {
        // Another owner keeps it, and then it holds up nobody; as upstream.
        if one.meta.owner_references.len() > 1 {
            continue;
        }
        blocked |= one.meta.owner_references.iter().any(|reference| {
            reference.uid == owner.meta.uid && reference.block_owner_deletion == Some(true)
        });
        if one.meta.is_deleting() {
            continue;
        }
        if all.contains_key(one.meta.uid.as_str()) && !has(&one.meta, FOREGROUND) {
            // Its own dependents must go before it, in the same way.
            let mut finalizers = one.meta.finalizers.clone();
            finalizers.push(FOREGROUND.to_owned());
            let body = json!({"metadata": {"finalizers": finalizers}});
            steps.push(Action::patch(target(one), body));
        } else {
            steps.push(Action::delete(target(one)));
        }
    }
    if !blocked {
        steps.push(without(owner, FOREGROUND));
    }
}

fn without(one: &Reference, finalizer: &str) -> Action {
    let kept: Vec<_> = one.meta.finalizers.iter().filter(|other| *other != finalizer).collect();
    Action::patch(target(one), json!({"metadata": {"finalizers": kept}}))
}

#[cfg(test)]
mod tests;
