//! Documents that are no objects: discovery, OpenAPI, the version.

use objects::{Status, kind::KINDS};

use crate::request::DocumentPath;

/// A document and how to send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The `Content-Type`.
    pub content_type: &'static str,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The `ETag`, quotes included; a matching `If-None-Match` is answered with 304.
    pub etag: String,
    /// May the client keep it for ever (its URL carries the hash)?
    pub immutable: bool,
}

/// Renders a document in a form the `Accept` header names. `query` is the URL's query,
/// `server_address` the `host:port` clients reach this server by.
///
/// # Errors
///
/// 404 for groups that are not served, 406 for forms that are not.
pub fn render_document(
    path: &DocumentPath,
    accept: &str,
    query: &str,
    server_address: &str,
) -> Result<Document, Status> {
    let _ = (path, accept, query, server_address);
    Err(Status::no_such_path())
}

/// The versions a group is served in, newest first.
pub(crate) fn versions(group: &str) -> impl Iterator<Item = &'static str> {
    KINDS.iter().filter(move |kind| kind.group == group).map(|kind| kind.version)
}

/// Are there reviews in this group-version?
pub(crate) fn has_reviews(_group: &str, _version: &str) -> bool {
    false
}

/// Is this the resource name of a review?
pub(crate) fn is_review(_group: &str, _version: &str, _plural: &str) -> bool {
    false
}
