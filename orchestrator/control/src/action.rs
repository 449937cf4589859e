//! What controllers ask for.
//!
//! Every action is safe to carry out twice: writes name the version they were decided on,
//! deletes name the uid.

use jiff::Timestamp;
use objects::kind::{self, Kind};
use objects::meta::{Object, ObjectReference, OwnerReference};
use objects::pod::Pod;
use serde_json::{Value, json};

/// One object, as it was when the decision was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Its kind.
    pub kind: &'static Kind,
    /// Its namespace; empty for cluster-wide objects.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: not another object of the same name.
    pub uid: String,
    /// Its version, for compare-and-set.
    pub resource_version: String,
}

impl Target {
    /// The object as we see it now.
    #[must_use]
    pub fn of<T: Object>(object: &T) -> Self {
        Self::of_kind(T::KIND, object.meta())
    }

    /// An object of a kind that is not told by its view.
    #[must_use]
    pub fn of_kind(kind: &'static Kind, meta: &objects::ObjectMeta) -> Self {
        Self {
            kind,
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
        }
    }

    /// The reference by which events name the object.
    #[must_use]
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: self.kind.api_version(),
            kind: self.kind.kind.to_owned(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            resource_version: self.resource_version.clone(),
            ..ObjectReference::default()
        }
    }
}

/// Whether an event is good news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Normal,
    /// Someone may want to look.
    Warning,
}

/// Something to tell people about an object: becomes an Event.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// Whom it is about.
    pub about: ObjectReference,
    /// Good or bad.
    pub severity: Severity,
    /// One word, `SuccessfulCreate`.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

impl Note {
    /// Good news.
    pub fn normal(about: &Target, reason: &'static str, message: impl Into<String>) -> Self {
        let about = about.reference();
        Self { about, severity: Severity::Normal, reason, message: message.into() }
    }

    /// Bad news.
    pub fn warning(about: &Target, reason: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::normal(about, reason, message) }
    }
}

/// What becomes of an object's dependents when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// They follow it.
    Background,
    /// They go first.
    Foreground,
    /// They stay.
    Orphan,
}

impl Propagation {
    /// The word in `propagationPolicy`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
            Self::Orphan => "Orphan",
        }
    }
}

/// What is to be done with a Ceph image.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageWork {
    /// Make it, then the volume.
    Make {
        /// The volume.
        volume: Box<Value>,
        /// Its size.
        bytes: i64,
        /// What it is a copy of: `POOL/IMAGE`, or `POOL/IMAGE@SNAPSHOT`.
        from: Option<String>,
    },
    /// Grow it, then tell the volume.
    Grow {
        /// The claim that has the volume.
        claim: Target,
        /// Its new size.
        bytes: i64,
    },
    /// Delete it, then the volume.
    Delete,
    /// Make a snapshot of it, or find one, then tell its object.
    Snapshot {
        /// `POOL/IMAGE@SNAPSHOT`.
        handle: String,
        /// The volume it is of; of help where no class says who may do it.
        volume: String,
        /// It is there already.
        exists: bool,
    },
    /// Delete a snapshot, then let its object go.
    DeleteSnapshot {
        /// `POOL/IMAGE@SNAPSHOT`.
        handle: String,
        /// The volume it is of.
        volume: String,
    },
}

/// A fence to be lifted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The annotation of the node that tells of it.
    pub key: String,
    /// The client.
    pub client: String,
    /// A volume whose cluster knows the client.
    pub volume: String,
}

/// One step towards what is wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make an object; that it exists already is no failure.
    Create {
        /// Its kind.
        kind: &'static Kind,
        /// Its namespace.
        namespace: String,
        /// The whole object.
        object: Box<Value>,
        /// What to tell once it is made; its name is appended to the message.
        note: Option<Box<Note>>,
    },
    /// Merge fields into an object of exactly this version.
    Patch {
        /// The object.
        target: Target,
        /// `status`, or the object itself.
        subresource: Option<&'static str>,
        /// An RFC 7396 patch without the version.
        body: Box<Value>,
        /// What to tell once it is written.
        note: Option<Box<Note>>,
    },
    /// Put an object, of exactly this version, back changed.
    Replace {
        /// The object.
        target: Target,
        /// `approval`, `finalize`, or the object itself.
        subresource: Option<&'static str>,
        /// The whole object.
        object: Box<Value>,
    },
    /// Delete exactly this object.
    Delete {
        /// The object.
        target: Target,
        /// Grace; `None` leaves it to the object, 0 does not wait for the node.
        grace_seconds: Option<u32>,
        /// What to tell once it is deleted.
        note: Option<Box<Note>>,
    },
    /// Delete exactly this object if all of `absent` are really gone, asked of the server
    /// itself: our view may lag behind.
    DeleteIfGone {
        /// The object.
        target: Target,
        /// Whose absence is the reason; an empty uid means any object of that name.
        absent: Vec<OwnerReference>,
        /// Grace, as above.
        grace_seconds: Option<u32>,
    },
    /// Delete an object of exactly this version with none but these owners, if all of them are
    /// really gone.
    Collect {
        /// The object.
        target: Target,
        /// Owners to ask the server about; those that are surely gone are not among them.
        absent: Vec<OwnerReference>,
        /// What becomes of its own dependents.
        propagation: Propagation,
    },
    /// Merge fields into an object of exactly this version, if all of `absent` are really gone.
    Release {
        /// The object.
        target: Target,
        /// Owners to ask the server about.
        absent: Vec<OwnerReference>,
        /// `status`, or the object itself.
        subresource: Option<&'static str>,
        /// An RFC 7396 patch without the version.
        body: Box<Value>,
    },
    /// Give a pod its node.
    Bind {
        /// The pod.
        target: Target,
        /// The node.
        node: String,
    },
    /// Ask for a pod's end; its disruption budgets may refuse.
    Evict {
        /// The pod.
        target: Target,
        /// What to tell once it is granted.
        note: Option<Box<Note>>,
    },
    /// Delete everything in a namespace that is going away, then let it go.
    Empty {
        /// The namespace.
        target: Target,
    },
    /// Take a volume from a node that let go of it or does not answer: fence what may still
    /// write, then let the attachment go.
    Detach {
        /// The attachment, which is being deleted already.
        target: Target,
        /// The node it names.
        node: String,
        /// The persistent volume.
        volume: String,
    },
    /// Make, grow or delete a Ceph image.
    Image {
        /// The claim it is made for, or the volume it is behind.
        target: Target,
        /// The class that says who may do it.
        class: String,
        /// What is to be done.
        work: ImageWork,
    },
    /// Let clients of a node write again that ended since they were fenced, then forget them.
    Unfence {
        /// The node.
        target: Target,
        /// The fences.
        fences: Vec<Fence>,
    },
    /// Sign an approved request and write the certificate to its status.
    Sign {
        /// The request.
        target: Target,
    },
}

impl Action {
    /// The object this step writes to; `None` for what is new or only told.
    #[must_use]
    pub const fn target(&self) -> Option<&Target> {
        match self {
            Self::Patch { target, .. }
            | Self::Replace { target, .. }
            | Self::Delete { target, .. }
            | Self::DeleteIfGone { target, .. }
            | Self::Collect { target, .. }
            | Self::Release { target, .. }
            | Self::Bind { target, .. }
            | Self::Evict { target, .. }
            | Self::Empty { target }
            | Self::Detach { target, .. }
            | Self::Image { target, .. }
            | Self::Unfence { target, .. }
            | Self::Sign { target } => Some(target),
            Self::Create { .. } => None,
        }
    }

    /// May the server refuse the step, or do a part of it, without any change to be seen? Then
    /// its key is looked at again when it asks for that, not at once.
    #[must_use]
    pub const fn may_be_refused(&self) -> bool {
        matches!(
            self,
            Self::Evict { .. }
                | Self::Empty { .. }
                | Self::Detach { .. }
                | Self::Image { .. }
                | Self::Unfence { .. }
                | Self::DeleteIfGone { .. }
                | Self::Collect { .. }
                | Self::Release { .. }
        )
    }

    /// A change of an object itself.
    #[must_use]
    pub fn patch(target: Target, body: Value) -> Self {
        Self::Patch { target, subresource: None, body: Box::new(body), note: None }
    }

    /// A change of an object's status.
    #[must_use]
    pub fn patch_status(target: Target, status: Value) -> Self {
        let body = Box::new(json!({ "status": status }));
        Self::Patch { target, subresource: Some("status"), body, note: None }
    }

    /// The same step, telling this once it is done; only patches, creates and deletes tell.
    #[must_use]
    pub fn telling(mut self, told: Note) -> Self {
        if let Self::Patch { note, .. } | Self::Create { note, .. } | Self::Delete { note, .. } =
            &mut self
        {
            *note = Some(Box::new(told));
        }
        self
    }

    /// A new object.
    #[must_use]
    pub fn create(kind: &'static Kind, namespace: &str, object: Value) -> Self {
        let (namespace, object) = (namespace.to_owned(), Box::new(object));
        Self::Create { kind, namespace, object, note: None }
    }

    /// An object put back whole.
    #[must_use]
    pub fn replace<T: Object>(target: Target, object: &T) -> Self {
        Self::Replace { target, subresource: None, object: Box::new(encode(object)) }
    }

    /// An object's status put back whole, for what a merge cannot take away.
    #[must_use]
    pub fn replace_status<T: Object>(target: Target, object: &T) -> Self {
        Self::Replace { target, subresource: Some("status"), object: Box::new(encode(object)) }
    }

    /// A plain delete.
    #[must_use]
    pub const fn delete(target: Target) -> Self {
        Self::Delete { target, grace_seconds: None, note: None }
    }

    /// A delete that does not wait for the node.
    #[must_use]
    pub fn remove_pod(pod: &Pod) -> Self {
        Self::Delete { target: Target::of(pod), grace_seconds: Some(0), note: None }
    }
}

/// What to do about a key, and when to look again.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Steps {
    /// The steps, each on its own object.
    pub actions: Vec<Action>,
    /// What is true now and worth telling without any step: told when it becomes true, not at
    /// every look.
    pub notes: Vec<Note>,
    /// When time alone may change the answer.
    pub again_at: Option<Timestamp>,
}

impl Steps {
    /// Nothing to do.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a step.
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Says what is true now.
    pub fn tell(&mut self, note: Note) {
        self.notes.push(note);
    }

    /// Asks to be called again at `at` or earlier.
    pub fn look_again(&mut self, at: Timestamp) {
        self.again_at = Some(self.again_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Adds the steps of another key.
    pub fn extend(&mut self, other: Self) {
        self.actions.extend(other.actions);
        self.notes.extend(other.notes);
        if let Some(at) = other.again_at {
            self.look_again(at);
        }
    }
}

impl From<Vec<Action>> for Steps {
    fn from(actions: Vec<Action>) -> Self {
        Self { actions, ..Self::none() }
    }
}

/// The JSON of a view; views always encode, so the empty object never stands in for one.
pub(crate) fn encode<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_else(|_| json!({}))
}

/// The reference to a node by name alone.
pub(crate) fn node_reference(name: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: kind::NODE.kind.to_owned(),
        name: name.to_owned(),
        ..OwnerReference::default()
    }
}
