//! `Status`: what the API answers when there is no object to answer with.
//!
//! Clients decide by `reason` and `code`, so both follow upstream to the letter; kubectl prints
//! `message`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::kind::Kind;

/// The answer to a request that failed, or that removed something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Always `Status`.
    #[serde(default)]
    pub kind: String,
    /// Always `v1`.
    #[serde(default)]
    pub api_version: String,
    /// Always empty.
    #[serde(default)]
    pub metadata: StatusMeta,
    /// `Success` or `Failure`.
    #[serde(default)]
    pub status: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// For programs: `NotFound`, `Conflict`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    /// The HTTP status code.
    #[serde(default)]
    pub code: u16,
}

/// List metadata of a `Status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusMeta {
    /// Where an expired list may go on in the present.
    #[serde(default, rename = "continue", skip_serializing_if = "String::is_empty")]
    pub continue_token: String,
}

/// What a [`Status`] is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// The object's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The group of its resource.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Its resource name, or its kind where upstream says the kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The uid, when it was deleted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Each single mistake.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// When to try again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

/// One mistake in an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// `FieldValueRequired`, `FieldValueInvalid`, …
    #[serde(default)]
    pub reason: String,
    /// For people.
    #[serde(default)]
    pub message: String,
    /// The field's path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Status {
    /// A failure with this code, reason and message.
    #[must_use]
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            kind: "Status".to_owned(),
            api_version: "v1".to_owned(),
            metadata: StatusMeta::default(),
            status: "Failure".to_owned(),
            message: message.into(),
            reason: reason.to_owned(),
            details: None,
            code,
        }
    }

    /// The answer to a deletion that has nothing else to show.
    #[must_use]
    pub fn deleted(kind: &Kind, name: &str, uid: &str) -> Self {
        let mut details = about(kind, name);
        uid.clone_into(&mut details.uid);
        Self { status: "Success".to_owned(), details: Some(details), ..Self::failure(200, "", "") }
    }

    /// 404: there is no such object.
    #[must_use]
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", kind.qualified_plural());
        Self::failure(404, "NotFound", message).with(about(kind, name))
    }

    /// 404: there is no such path.
    #[must_use]
    pub fn no_such_path() -> Self {
        Self::failure(404, "NotFound", "the server could not find the requested resource")
            .with(Details::default())
    }

    /// 409: the name is taken.
    #[must_use]
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", kind.qualified_plural());
        Self::failure(409, "AlreadyExists", message).with(about(kind, name))
    }

    /// 409: someone else was quicker, or a precondition does not hold.
    #[must_use]
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            kind.qualified_plural()
        );
        Self::failure(409, "Conflict", message).with(about(kind, name))
    }

    /// 409: the object has changed since the client read it.
    #[must_use]
    pub fn stale(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and \
             try again",
        )
    }

    /// 422: the object breaks rules; `causes` says each.
    #[must_use]
    pub fn invalid(kind: &Kind, name: &str, causes: Vec<Cause>) -> Self {
        let shown: Vec<String> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let list = match shown.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let title = if kind.group.is_empty() {
            kind.kind.to_owned()
        } else {
            format!("{}.{}", kind.kind, kind.group)
        };
        let mut details = about(kind, name);
        kind.kind.clone_into(&mut details.kind);
        details.causes = causes;
        Self::failure(422, "Invalid", format!("{title} \"{name}\" is invalid: {list}"))
            .with(details)
    }

    /// 400: the request makes no sense.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message)
    }

    /// 401: the client has not said who it is.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    /// 403: the client may not do this.
    #[must_use]
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let plural = kind.qualified_plural();
        let message = if name.is_empty() {
            format!("{plural} is forbidden: {why}")
        } else {
            format!("{plural} \"{name}\" is forbidden: {why}")
        };
        Self::failure(403, "Forbidden", message).with(about(kind, name))
    }

    /// 403 on a path that is no resource.
    #[must_use]
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        let why = format!("forbidden: User \"{user}\" cannot {verb} path \"{path}\"");
        Self::failure(403, "Forbidden", why).with(Details::default())
    }

    /// 405: the resource does not do this.
    #[must_use]
    pub fn method_not_allowed(message: impl Into<String>) -> Self {
        Self::failure(405, "MethodNotAllowed", message).with(Details::default())
    }

    /// 406: none of the accepted forms is served.
    #[must_use]
    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::failure(406, "NotAcceptable", message)
    }

    /// 410: the version asked for is no longer known; list again.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, "Expired", message)
    }

    /// 413: the body is too large.
    #[must_use]
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::failure(413, "RequestEntityTooLarge", message)
    }

    /// 415: the body's form is not understood.
    #[must_use]
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::failure(415, "UnsupportedMediaType", message)
    }

    /// 429: too many requests; try again after some seconds.
    #[must_use]
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds, ..Details::default() };
        Self::failure(429, "TooManyRequests", message).with(details)
    }

    /// 500: a fault of ours.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        let cause = Cause { reason: String::new(), message: message.clone(), field: String::new() };
        let details = Details { causes: vec![cause], ..Details::default() };
        let said = format!("Internal error occurred: {message}");
        Self::failure(500, "InternalError", said).with(details)
    }

    /// 503: not now.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, "ServiceUnavailable", message)
    }

    /// 504: it took too long; it may have happened or not.
    #[must_use]
    pub fn timeout(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds, ..Details::default() };
        Self::failure(504, "Timeout", message).with(details)
    }

    /// The same with these details.
    #[must_use]
    pub fn with(mut self, details: Details) -> Self {
        self.details = Some(details);
        self
    }

    /// Is this the given reason?
    #[must_use]
    pub fn is(&self, reason: &str) -> bool {
        self.reason == reason
    }
}

impl Cause {
    /// A field that must be there is not.
    #[must_use]
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let message = if why.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {why}")
        };
        Self { reason: "FieldValueRequired".to_owned(), message, field: field.into() }
    }

    /// A value breaks a rule. `value` is shown as JSON.
    #[must_use]
    pub fn invalid(field: impl Into<String>, value: &serde_json::Value, why: &str) -> Self {
        Self {
            reason: "FieldValueInvalid".to_owned(),
            message: format!("Invalid value: {value}: {why}"),
            field: field.into(),
        }
    }

    /// A value is none of the allowed ones.
    #[must_use]
    pub fn unsupported(
        field: impl Into<String>,
        value: &serde_json::Value,
        allowed: &[&str],
    ) -> Self {
        let allowed: Vec<String> = allowed.iter().map(|one| format!("\"{one}\"")).collect();
        Self {
            reason: "FieldValueNotSupported".to_owned(),
            message: format!(
                "Unsupported value: {value}: supported values: {}",
                allowed.join(", ")
            ),
            field: field.into(),
        }
    }

    /// A value stands twice where it may stand once.
    #[must_use]
    pub fn duplicate(field: impl Into<String>, value: &serde_json::Value) -> Self {
        Self {
            reason: "FieldValueDuplicate".to_owned(),
            message: format!("Duplicate value: {value}"),
            field: field.into(),
        }
    }

    /// A field may not be set here.
    #[must_use]
    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self {
            reason: "FieldValueForbidden".to_owned(),
            message: format!("Forbidden: {why}"),
            field: field.into(),
        }
    }

    /// What the field names does not exist.
    #[must_use]
    pub fn not_found(field: impl Into<String>, value: &serde_json::Value) -> Self {
        Self {
            reason: "FieldValueNotFound".to_owned(),
            message: format!("Not found: {value}"),
            field: field.into(),
        }
    }
}

fn about(kind: &Kind, name: &str) -> Details {
    Details {
        name: name.to_owned(),
        group: kind.group.to_owned(),
        kind: kind.plural.to_owned(),
        ..Details::default()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.message.is_empty() { &self.reason } else { &self.message })
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind;

    #[test]
    fn statuses_read_as_upstream_writes_them() {
        let missing = Status::not_found(&kind::DEPLOYMENT, "web");
        assert_eq!(missing.message, "deployments.apps \"web\" not found");
        assert_eq!((missing.code, missing.reason.as_str()), (404, "NotFound"));
        let broken = Status::invalid(&kind::POD, "a", vec![Cause::required("spec.containers", "")]);
        assert_eq!(broken.message, "Pod \"a\" is invalid: spec.containers: Required value");
        let json = serde_json::to_value(&broken).unwrap();
        assert_eq!(json["details"]["causes"][0]["reason"], "FieldValueRequired");
        assert_eq!(json["details"]["kind"], "Pod");
        let again: Status = serde_json::from_value(json).unwrap();
        assert_eq!(again, broken);
    }
}
