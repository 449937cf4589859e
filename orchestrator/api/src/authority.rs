//! Who may do what: identities, and the decision whether a request may be made.
//!
//! [`User`] is who asks and [`Attributes`] what is asked; [`decide`] answers from three sources:
//! `system:masters` may do everything, a node what the node authorizer grants it ([`Facts`]), and
//! everybody what roles and bindings say ([`rbac::Rbac`]).
//!
//! It does not know how a user proved who it is, nor where roles are kept.

pub mod audit;
pub mod encryption;
pub mod flow;
pub mod grant;
pub mod policy;
pub mod rbac;
pub mod review;
pub mod token;

mod node;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use objects::{FieldSelector, Status, kind, status::Details};

pub(crate) use node::check_write as check_node_write;

use self::rbac::Rbac;
use crate::request::{Request, Verb};

/// The group that may do everything.
pub const MASTERS: &str = "system:masters";
/// The group of everybody who has said who it is.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of everybody who has not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The name of everybody who has not said who it is.
pub const ANONYMOUS: &str = "system:anonymous";

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// The name: a certificate's common name, or what a token says.
    pub name: String,
    /// Tells users of one name apart over time; empty where nothing does.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// What else the proof says, such as the pod a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What is asked, in the words of roles.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `create`, `impersonate` …
    pub verb: String,
    /// The API group; empty for core.
    pub group: String,
    /// The version.
    pub version: String,
    /// The plural; empty when a path is asked for that is no resource.
    pub resource: String,
    /// The part of the object; empty for the object itself.
    pub subresource: String,
    /// The namespace; empty for all, or for kinds without.
    pub namespace: String,
    /// The object; empty for all.
    pub name: String,
    /// The path, when no resource is asked for.
    pub path: String,
    /// Which objects of a collection by field.
    pub fields: FieldSelector,
}

/// What a decision about a node's request depends on besides the request.
pub trait Facts {
    /// The node a pod is bound to; `None` when there is no such pod or it is not bound.
    fn pod_node(&self, namespace: &str, pod: &str) -> Option<String>;

    /// Does a pod bound to `node` name this object (`secrets`, `configmaps`, …)?
    fn node_needs(&self, node: &str, plural: &str, namespace: &str, name: &str) -> bool;

    /// Is there any NetworkPolicy? They speak of pods on any node, so nodes must know those.
    fn has_network_policies(&self) -> bool;
}

/// A decision and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// May it be done?
    pub allowed: bool,
    /// The binding that allows it, or what is wrong; often empty.
    pub reason: String,
}

impl User {
    /// A user of this name and nothing else.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Who has not said who it is.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { groups: vec![UNAUTHENTICATED.to_owned()], ..Self::named(ANONYMOUS) }
    }

    /// Is this nobody in particular?
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }

    /// Is the user in this group?
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|have| have == group)
    }

    /// The node's name when the user is a node.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        if self.is_in("system:nodes") { self.name.strip_prefix("system:node:") } else { None }
    }

    /// The same in one more group.
    #[must_use]
    pub fn with_group(mut self, group: &str) -> Self {
        if !self.is_in(group) {
            self.groups.push(group.to_owned());
        }
        self
    }
}

impl Attributes {
    /// What a request to a resource asks.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        // Roles of a namespace speak about the namespace itself too.
        let namespace = if *request.kind == kind::NAMESPACE && !request.name.is_empty() {
            &request.name
        } else {
            &request.namespace
        };
        // A list or watch of one object by name is about that object.
        let fields = &request.options.field_selector;
        let name = match request.verb {
            Verb::List | Verb::Watch | Verb::DeleteCollection if request.name.is_empty() => {
                fields.required("metadata.name").unwrap_or("")
            }
            _ => &request.name,
        };
        Self {
            verb: request.verb.as_str().to_owned(),
            group: request.served.group.to_owned(),
            version: request.served.version.to_owned(),
            resource: request.kind.plural.to_owned(),
            subresource: request.subresource.clone(),
            namespace: namespace.clone(),
            name: name.to_owned(),
            path: String::new(),
            fields: fields.clone(),
        }
    }

    /// What a request to a path asks that is no resource; `method` as HTTP has it.
    #[must_use]
    pub fn of_path(method: &str, path: &str) -> Self {
        let verb = method.to_ascii_lowercase();
        Self { verb, path: path.to_owned(), ..Self::default() }
    }

    /// An action on a resource of the whole cluster.
    #[must_use]
    pub fn on(verb: &str, group: &str, resource: &str, name: &str) -> Self {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Self {
            verb: verb.to_owned(),
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// The same in a namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Is it about a resource, and not about some other path?
    #[must_use]
    pub fn is_resource(&self) -> bool {
        self.path.is_empty()
    }

    /// `pods` or `pods/log`.
    #[must_use]
    pub fn qualified_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// 403 as upstream words it; `reason` may be empty.
    #[must_use]
    pub fn refusal(&self, user: &User, reason: &str) -> Status {
        let end = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        if !self.is_resource() {
            let mut status = Status::forbidden_path(&user.name, &self.verb, &self.path);
            status.message.push_str(&end);
            return status;
        }
        let place = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", self.namespace)
        };
        let why = format!(
            "User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {place}{end}",
            user.name,
            self.verb,
            self.qualified_resource(),
            self.group,
        );
        self.forbidden(&why)
    }

    /// 403 about this resource for a reason of its own.
    #[must_use]
    pub fn forbidden(&self, why: &str) -> Status {
        let plural = if self.group.is_empty() {
            self.resource.clone()
        } else {
            format!("{}.{}", self.resource, self.group)
        };
        let message = if self.name.is_empty() {
            format!("{plural} is forbidden: {why}")
        } else {
            format!("{plural} \"{}\" is forbidden: {why}", self.name)
        };
        Status::failure(403, "Forbidden", message).with(Details {
            name: self.name.clone(),
            group: self.group.clone(),
            kind: self.resource.clone(),
            ..Details::default()
        })
    }
}

/// Decides whether `user` may do what is asked.
#[must_use]
pub fn decide(user: &User, asked: &Attributes, rbac: &Rbac, facts: &dyn Facts) -> Decision {
    if user.is_in(MASTERS) {
        return Decision { allowed: true, reason: String::new() };
    }
    let mut reasons = Vec::new();
    if let Some(node) = user.node() {
        let (allowed, reason) = node::decide(node, asked, facts);
        if allowed {
            return Decision { allowed, reason: String::new() };
        }
        reasons.push(reason);
    }
    let (allowed, reason) = rbac.decide(user, asked);
    if allowed {
        return Decision { allowed, reason };
    }
    reasons.push(reason);
    reasons.retain(|reason| !reason.is_empty());
    Decision { allowed: false, reason: reasons.join(", ") }
}

/// Decides whether `user` may do what is asked, as an answer to the client.
///
/// # Errors
///
/// 403, worded as upstream words it.
pub fn authorize(
    user: &User,
    asked: &Attributes,
    rbac: &Rbac,
    facts: &dyn Facts,
) -> Result<Decision, Status> {
    let decision = decide(user, asked, rbac, facts);
    if decision.allowed { Ok(decision) } else { Err(asked.refusal(user, &decision.reason)) }
}
