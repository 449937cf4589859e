//! Deletes what belongs to nobody any more.
//!
//! Spec: upstream's garbage collector: background (owners are gone), foreground (an owner
//! waits with the finalizer `foregroundDeletion` for those that block it), orphan (finalizer
//! `orphan`: dependents are let go). The graph holds every object by uid and, by the uid of
//! an owner that may not be there at all, who names it. Whether an owner that the graph does
//! not hold is really gone is asked of the server before anything is deleted, because one
//! kind's view may be older than another's; an owner whose end we saw needs no asking.
//!
//! A key of this controller is a uid.

mod graph;

use jiff::{SignedDuration, Timestamp};
use objects::meta::{ObjectMeta, OwnerReference};
use serde_json::json;

use crate::action::{Action, Note, Propagation, Steps, Target};
use crate::view::{Key, View};

pub use graph::Graph;
use graph::Member;

/// Finalizer of an owner that waits for its dependents.
const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner that leaves its dependents behind.
const ORPHAN: &str = "orphan";
/// When to ask again about an owner that the graph does not hold but the server may.
const DOUBT: SignedDuration = SignedDuration::from_secs(30);

/// Every object, by uid.
#[must_use]
pub fn keys(view: &View) -> Vec<Key> {
    view.graph.uids().map(|uid| Key::new("", uid)).collect()
}

/// Plans the steps for one object; the key's name is its uid.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let graph = &*view.graph;
    let Some(member) = graph.get(&key.name) else { return steps };
    let meta = member.meta();
    if meta.is_deleting() {
        if has(meta, ORPHAN) {
            let_go(graph, &member, &mut steps);
            return steps;
        }
        if has(meta, FOREGROUND) {
            wait_for(graph, &member, &mut steps);
        }
        return steps;
    }
    if !meta.owner_references.is_empty() {
        collect(graph, &member, now, &mut steps);
    }
    steps
}

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().any(|one| one == finalizer)
}

fn target(one: &Member) -> Target {
    Target::of_kind(one.kind, one.meta())
}

/// What is known of one owner.
enum Standing {
    /// There, and it stays.
    Solid,
    /// There, and it waits for its dependents to go first.
    Waiting,
    /// We saw it go.
    Gone,
    /// Not in the graph.
    Absent,
}

fn standing(graph: &Graph, one: &ObjectMeta, owner: &OwnerReference) -> Standing {
    let Some(found) = graph.get(&owner.uid) else {
        return if graph.is_gone(&owner.uid) { Standing::Gone } else { Standing::Absent };
    };
    let meta = found.meta();
    // An owner in another namespace, or one that the reference names wrongly, is no owner;
    // upstream asks the server by the coordinates of the reference, and finds nothing.
    let near = meta.namespace.is_empty() || meta.namespace == one.namespace;
    if !near || meta.name != owner.name || found.kind.kind != owner.kind {
        return Standing::Absent;
    }
    if meta.is_deleting() && has(meta, FOREGROUND) { Standing::Waiting } else { Standing::Solid }
}

/// Decides about an object by its owners.
fn collect(graph: &Graph, one: &Member, now: Timestamp, steps: &mut Steps) {
    let meta = one.meta();
    let (mut solid, mut absent) = (Vec::new(), Vec::new());
    let (mut waiting, mut blocks) = (0, false);
    for owner in &meta.owner_references {
        match standing(graph, meta, owner) {
            Standing::Solid => solid.push(owner),
            Standing::Waiting => {
                waiting += 1;
                blocks |= owner.block_owner_deletion == Some(true);
            }
            Standing::Gone => (),
            Standing::Absent => absent.push(owner.clone()),
        }
    }
    // What belongs to the whole cluster cannot be owned from inside a namespace: such a
    // reference cannot be resolved, and the object is left alone.
    let unresolvable = meta.namespace.is_empty()
        && absent.iter().any(|owner| {
            objects::kind::by_gvk(&owner.api_version, &owner.kind)
                .is_some_and(|kind| kind.namespaced)
        });
    if unresolvable {
        for owner in &absent {
            tell_unresolvable(one, owner, steps);
        }
        return;
    }
    if !absent.is_empty() || solid.len() < meta.owner_references.len() {
        // The server may still know an owner, or a newer version of this object: then its coming
        // into view wakes us, or this.
        steps.look_again(now.saturating_add(DOUBT).unwrap_or(now));
    }
    if !solid.is_empty() {
        if solid.len() < meta.owner_references.len() {
            let body = Box::new(json!({"metadata": {"ownerReferences": solid}}));
            let (target, subresource) = (target(one), None);
            steps.push(Action::Release { target, absent, subresource, body });
        }
        return;
    }
    let propagation = if waiting > 0 && graph.has_dependents(&meta.uid) {
        if blocks && graph.dependents(&meta.uid).any(|other| is_waiting(other.meta())) {
            unblock(one, steps);
            return;
        }
        // Its own dependents must go before it, in the same way.
        Propagation::Foreground
    } else if has(meta, ORPHAN) {
        Propagation::Orphan
    } else if has(meta, FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    steps.push(Action::Collect { target: target(one), absent, propagation });
}

/// Says that an owner cannot be where its dependent looks for it.
fn tell_unresolvable(one: &Member, owner: &OwnerReference, steps: &mut Steps) {
    let OwnerReference { api_version, kind, name, uid, .. } = owner;
    let namespace = &one.meta().namespace;
    let message = format!(
        "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}] does \
         not exist in namespace \"{namespace}\""
    );
    steps.tell(Note::warning(&target(one), "OwnerRefInvalidNamespace", message));
}

fn is_waiting(meta: &ObjectMeta) -> bool {
    meta.is_deleting() && has(meta, FOREGROUND)
}

/// Breaks a circle of owners that all wait: this one blocks nobody any more.
fn unblock(one: &Member, steps: &mut Steps) {
    let mut owners = one.meta().owner_references.clone();
    for owner in &mut owners {
        owner.block_owner_deletion = Some(false);
    }
    steps.push(Action::patch(target(one), json!({"metadata": {"ownerReferences": owners}})));
}

/// Orphan: takes the reference out of every dependent, then the finalizer off the owner.
fn let_go(graph: &Graph, owner: &Member, steps: &mut Steps) {
    let uid = &owner.meta().uid;
    let mut any = false;
    for one in graph.dependents(uid) {
        any = true;
        let kept = one.meta().owner_references.iter();
        let kept: Vec<_> = kept.filter(|other| other.uid != *uid).collect();
        let body = json!({"metadata": {"ownerReferences": kept}});
        steps.push(Action::patch(target(&one), body));
    }
    if !any {
        steps.push(without(owner, ORPHAN));
    }
}

/// Foreground: lets the owner go once no dependent blocks it; those look after themselves.
fn wait_for(graph: &Graph, owner: &Member, steps: &mut Steps) {
    let uid = &owner.meta().uid;
    let blocks = |one: &Member| {
        one.meta()
            .owner_references
            .iter()
            .any(|reference| reference.uid == *uid && reference.block_owner_deletion == Some(true))
    };
    if !graph.dependents(uid).any(|one| blocks(&one)) {
        steps.push(without(owner, FOREGROUND));
    }
}

fn without(one: &Member, finalizer: &str) -> Action {
    let kept: Vec<_> = one.meta().finalizers.iter().filter(|other| *other != finalizer).collect();
    Action::patch(target(one), json!({"metadata": {"finalizers": kept}}))
}

#[cfg(test)]
mod tests;
