//! Reviews: posted, answered, never stored. They say who one is and what one may do.

use api::{Options, Request, User, Verb};
use bytes::Bytes;
use objects::kind::{GroupVersion, KINDS};
use objects::{Status, field};
use serde_json::{Value, json};

use crate::respond::{self, Answer};
use crate::server::{Server, now};

/// Answers a review.
pub(crate) fn answer(
    server: &Server,
    user: &User,
    resource: &str,
    api_version: &str,
    content_type: &str,
    bytes: &Bytes,
) -> Result<Answer, Status> {
    let asked = read(content_type, bytes)?;
    let spec = asked.get("spec").cloned().unwrap_or_else(|| json!({}));
    let (kind, status) = match resource {
        "selfsubjectreviews" => {
            let info = json!({"username": user.name, "groups": user.groups});
            ("SelfSubjectReview", json!({ "userInfo": info }))
        }
        "selfsubjectaccessreviews" => ("SelfSubjectAccessReview", access(server, user, &spec)),
        _ => return Err(Status::no_such_path()),
    };
    let created = now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let review = json!({
        "kind": kind, "apiVersion": api_version,
        "metadata": {"creationTimestamp": created},
        "spec": spec, "status": status,
    });
    Ok(respond::json(201, &review))
}

fn read(content_type: &str, bytes: &Bytes) -> Result<Value, Status> {
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => serde_json::from_slice(bytes)
            .map_err(|err| Status::bad_request(format!("the review cannot be read: {err}"))),
        api::protobuf::MEDIA_TYPE => api::protobuf::decode(bytes),
        media => Err(Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json, application/vnd.kubernetes.protobuf; found {media:?}"
        ))),
    }
}

fn access(server: &Server, user: &User, spec: &Value) -> Value {
    let text = |path: &str| field::str_at(spec, path).unwrap_or_default();
    let verdict = if spec.get("nonResourceAttributes").is_some() {
        let (verb, path) = (text("nonResourceAttributes.verb"), text("nonResourceAttributes.path"));
        api::authorize_path(user, verb, path)
    } else {
        match request(spec) {
            Some(request) => api::authorize(user, &request, server),
            // What nobody serves, or everything at once, is for masters alone.
            None if user.is_in("system:masters") => Ok(()),
            None => Err(Status::failure(403, "Forbidden", "")),
        }
    };
    match verdict {
        Ok(()) => json!({"allowed": true}),
        Err(status) => json!({"allowed": false, "reason": status.message}),
    }
}

/// The request that the attributes describe; `None` for what is not served.
fn request(spec: &Value) -> Option<Request> {
    let attributes = spec.get("resourceAttributes")?;
    let text = |path: &str| field::str_at(attributes, path).unwrap_or_default().to_owned();
    let (group, resource) = (text("group"), text("resource"));
    let kind = *KINDS.iter().find(|kind| kind.group == group && kind.plural == resource)?;
    Some(Request {
        verb: verb(&text("verb"))?,
        kind,
        served: GroupVersion { group: kind.group, version: kind.version },
        namespace: text("namespace"),
        name: text("name"),
        subresource: text("subresource"),
        rest: String::new(),
        options: Options::default(),
    })
}

fn verb(word: &str) -> Option<Verb> {
    [
        Verb::Get,
        Verb::List,
        Verb::Watch,
        Verb::Create,
        Verb::Update,
        Verb::Patch,
        Verb::Delete,
        Verb::DeleteCollection,
    ]
    .into_iter()
    .find(|verb| verb.as_str() == word)
}
