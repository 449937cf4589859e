//! Reviews: posted, answered, never stored.
//!
//! *Limits*: none is answered yet beyond what `api` offers.

use api::User;
use bytes::Bytes;
use objects::Status;

use crate::respond::Answer;
use crate::server::Server;

/// Answers a review.
pub(crate) fn answer(
    _server: &Server,
    _user: &User,
    _resource: &str,
    _api_version: &str,
    _content_type: &str,
    _bytes: &Bytes,
) -> Result<Answer, Status> {
    Err(Status::no_such_path())
}
