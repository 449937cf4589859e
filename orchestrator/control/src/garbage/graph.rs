//! Who belongs to whom.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use objects::kind::Kind;
use objects::meta::ObjectMeta;

use crate::wake::{Seen, Touch};

/// Ends remembered, so that the server need not be asked about each dependent.
const ENDS: usize = 10_000;

/// One object of the graph.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its kind.
    pub kind: &'static Kind,
    object: Arc<dyn Seen>,
}

impl Member {
    /// Its metadata.
    #[must_use]
    pub fn meta(&self) -> &ObjectMeta {
        self.object.meta()
    }
}

/// Every object by uid, and who names whom as owner.
#[derive(Debug, Default, Clone)]
pub struct Graph {
    members: BTreeMap<String, Member>,
    /// Dependents by the uid of the owner, which may be absent.
    dependents: BTreeMap<String, BTreeSet<String>>,
    gone: BTreeSet<String>,
    order: VecDeque<String>,
}

impl Graph {
    /// Takes account of a change and returns the uids it concerns.
    pub fn note(&mut self, touch: &Touch) -> Vec<String> {
        let mut woken = Vec::new();
        if let Some(before) = &touch.before {
            let stays =
                touch.after.as_ref().is_some_and(|after| after.meta().uid == before.meta().uid);
            if !stays {
                self.remove(before.meta(), &mut woken);
            }
        }
        if let Some(after) = &touch.after {
            self.insert(touch.kind, after, &mut woken);
        }
        woken
    }

    /// Forgets every object of a kind that is not in `kept`: those went while nobody looked.
    pub fn retain(&mut self, kind: &Kind, kept: &BTreeSet<String>) -> Vec<String> {
        let lost: Vec<Member> = self
            .members
            .values()
            .filter(|one| one.kind == kind && !kept.contains(&one.meta().uid))
            .cloned()
            .collect();
        let mut woken = Vec::new();
        for one in lost {
            self.remove(one.meta(), &mut woken);
        }
        woken
    }

    /// Takes every object of a kind out, without saying that it is gone.
    pub fn forget(&mut self, kind: &Kind) {
        let lost: Vec<Member> =
            self.members.values().filter(|one| one.kind == kind).cloned().collect();
        for one in lost {
            let meta = one.meta();
            self.members.remove(&meta.uid);
            for owner in &meta.owner_references {
                self.unlink(&owner.uid, &meta.uid);
            }
        }
    }

    fn insert(&mut self, kind: &'static Kind, object: &Arc<dyn Seen>, woken: &mut Vec<String>) {
        let meta = object.meta();
        let had =
            self.members.insert(meta.uid.clone(), Member { kind, object: Arc::clone(object) });
        let owners = |meta: &ObjectMeta| -> BTreeSet<String> {
            meta.owner_references.iter().map(|owner| owner.uid.clone()).collect()
        };
        let wanted = owners(meta);
        let mut left = BTreeSet::new();
        let (mut state, mut moved) = (true, true);
        if let Some(had) = had {
            let before = had.meta();
            left = owners(before).difference(&wanted).cloned().collect();
            state =
                before.is_deleting() != meta.is_deleting() || before.finalizers != meta.finalizers;
            moved = before.owner_references != meta.owner_references;
        }
        for owner in &left {
            self.unlink(owner, &meta.uid);
            woken.push(owner.clone());
        }
        for owner in &wanted {
            self.dependents.entry(owner.clone()).or_default().insert(meta.uid.clone());
        }
        // What an owner was found gone of may have been judged by the version before this one.
        let lost = wanted.iter().any(|owner| !self.members.contains_key(owner));
        // A heartbeat changes neither, and there are many of those.
        if state || moved || lost {
            woken.push(meta.uid.clone());
            woken.extend(wanted);
        }
        if state {
            woken.extend(self.dependents.get(&meta.uid).into_iter().flatten().cloned());
        }
    }

    fn remove(&mut self, meta: &ObjectMeta, woken: &mut Vec<String>) {
        self.members.remove(&meta.uid);
        for owner in &meta.owner_references {
            self.unlink(&owner.uid, &meta.uid);
            woken.push(owner.uid.clone());
        }
        if let Some(dependents) = self.dependents.get(&meta.uid) {
            woken.extend(dependents.iter().cloned());
            if self.gone.insert(meta.uid.clone()) {
                self.order.push_back(meta.uid.clone());
            }
            if self.order.len() > ENDS
                && let Some(oldest) = self.order.pop_front()
            {
                self.gone.remove(&oldest);
            }
        }
    }

    fn unlink(&mut self, owner: &str, uid: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(uid);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// Finds an object.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Member> {
        self.members.get(uid).cloned()
    }

    /// Did we see this object go? A uid never comes back.
    #[must_use]
    pub fn is_gone(&self, uid: &str) -> bool {
        self.gone.contains(uid)
    }

    /// Every uid.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Does anything name this object as an owner?
    #[must_use]
    pub fn has_dependents(&self, uid: &str) -> bool {
        self.dependents.contains_key(uid)
    }

    /// Those that name this object as an owner.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = Member> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.get(uid))
    }
}
