//! Which keys a change of an object concerns.
//!
//! A controller is not told what happened, only which of its keys to look at again; a wake-up
//! too many costs a look, one too few waits for the slow beat.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use objects::kind::Kind;
use objects::meta::{Object, ObjectMeta};
use objects::node::Node;
use objects::pod::Pod;

use crate::view::{Key, View};

/// Any object, as far as a change of it can be told.
pub trait Seen: Any + Send + Sync + std::fmt::Debug {
    /// Its metadata.
    fn meta(&self) -> &ObjectMeta;
    /// Itself, to be asked for its type.
    fn as_any(&self) -> &dyn Any;
}

impl<T: Object + std::fmt::Debug> Seen for T {
    fn meta(&self) -> &ObjectMeta {
        Object::meta(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// One object before and after a change.
#[derive(Debug, Clone)]
pub struct Touch {
    /// Its kind.
    pub kind: &'static Kind,
    /// Its namespace and name.
    pub key: Key,
    /// What it was; `None` when it is new, or when that is not known any more.
    pub before: Option<Arc<dyn Seen>>,
    /// What it is; `None` when it is gone.
    pub after: Option<Arc<dyn Seen>>,
}

impl Touch {
    /// What it was and what it is, as far as they are.
    pub fn sides(&self) -> impl Iterator<Item = &dyn Seen> {
        self.before.iter().chain(&self.after).map(|side| &**side)
    }

    /// The sides, if the object is of this type.
    pub fn typed<T: 'static>(&self) -> impl Iterator<Item = &T> {
        self.sides().filter_map(|side| side.as_any().downcast_ref::<T>())
    }

    /// Is an object there that was not, or one gone that was? One that took the other's name
    /// between two looks is both.
    #[must_use]
    pub fn came_or_went(&self) -> bool {
        let before = self.before.as_ref().map(|one| &one.meta().uid);
        before != self.after.as_ref().map(|one| &one.meta().uid)
    }
}

/// How a change of one kind wakes a controller.
#[derive(Clone, Copy)]
pub enum Wake {
    /// Not at all: the kind is only looked at.
    Never,
    /// The object is itself the key.
    Own,
    /// Its controller of this kind; every key of the namespace when nobody controls it.
    Owner(&'static Kind),
    /// Every key of the object's namespace.
    Namespace,
    /// Every key.
    Every,
    /// What the function says.
    By(fn(&View, &Touch) -> Vec<Key>),
}

/// Which keys a change concerns.
#[derive(Debug, PartialEq, Eq)]
pub enum Woken {
    /// These.
    These(Vec<Key>),
    /// Every key in this namespace.
    Inside(String),
    /// Every key.
    All,
}

impl Wake {
    /// Says whom a change wakes.
    #[must_use]
    pub fn keys(&self, view: &View, touch: &Touch) -> Woken {
        match self {
            Self::Never => Woken::These(Vec::new()),
            Self::Own => Woken::These(vec![touch.key.clone()]),
            Self::Namespace => Woken::Inside(touch.key.namespace.clone()),
            Self::Every => Woken::All,
            Self::By(who) => Woken::These(who(view, touch)),
            Self::Owner(kind) => owners(kind, touch),
        }
    }
}

fn owners(kind: &Kind, touch: &Touch) -> Woken {
    let mut keys = Vec::new();
    for side in touch.sides() {
        match side.meta().controller() {
            Some(owner) if owner.kind == kind.kind => {
                keys.push(Key::new(&touch.key.namespace, &owner.name));
            }
            Some(_) => (),
            None => return Woken::Inside(touch.key.namespace.clone()),
        }
    }
    keys.dedup();
    Woken::These(keys)
}

/// The nodes a pod is or was on.
#[must_use]
pub fn nodes_of_pod(_view: &View, touch: &Touch) -> Vec<Key> {
    let bound = touch.typed::<Pod>().filter(|pod| pod.is_bound());
    let mut keys: Vec<Key> = bound.map(|pod| Key::new("", &pod.spec.node_name)).collect();
    keys.dedup();
    keys
}

/// The key of the same name without a namespace: the node of a lease, the node of a machine.
#[must_use]
pub fn same_name(_view: &View, touch: &Touch) -> Vec<Key> {
    vec![Key::new("", &touch.key.name)]
}

/// Did something about a node change that decides which pods belong there? Heartbeats do not.
#[must_use]
pub fn node_matters(touch: &Touch) -> bool {
    let mut sides = touch.typed::<Node>();
    let (Some(before), Some(after)) = (sides.next(), sides.next()) else { return true };
    let states = |node: &Node| -> BTreeMap<String, String> {
        let all = node.status.conditions.iter();
        all.map(|one| (one.kind.clone(), one.status.clone())).collect()
    };
    before.metadata.labels != after.metadata.labels
        || before.spec != after.spec
        || before.metadata.deletion_timestamp != after.metadata.deletion_timestamp
        || before.status.allocatable != after.status.allocatable
        || states(before) != states(after)
}
