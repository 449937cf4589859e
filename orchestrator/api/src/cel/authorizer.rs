//! The door through which expressions ask what a user may do.

use super::value::Question;

/// Answers what the requester, or a service account, may do.
pub trait Authorizer {
    /// Whether it is allowed, and why (not). `question` says what, `verb` what is to be done.
    fn ask(&self, question: &Asked<'_>) -> (bool, String);
}

/// A question to the authorizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked<'a> {
    /// What is to be done.
    pub verb: &'a str,
    /// A path that is no resource; `None` for resources.
    pub path: Option<&'a str>,
    /// The resource's API group.
    pub group: &'a str,
    /// The resource.
    pub resource: &'a str,
    /// The part of it.
    pub subresource: &'a str,
    /// The namespace.
    pub namespace: &'a str,
    /// The object's name.
    pub name: &'a str,
    /// Namespace and name of the service account that is asked about; `None` = the requester.
    pub account: Option<(&'a str, &'a str)>,
}

impl Question {
    /// The question with its verb.
    pub(crate) fn asked<'a>(&'a self, verb: &'a str) -> Asked<'a> {
        Asked {
            verb,
            path: self.path.as_deref(),
            group: &self.group,
            resource: &self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            account: self.account.as_ref().map(|(space, name)| (space.as_str(), name.as_str())),
        }
    }
}
