//! Lists, watch events and partial objects.

use objects::{Cause, Kind, Status, kind, status::Details};
use serde_json::{Value, json};

use crate::{
    accept::MetaVersion,
    json::put,
    request::{Options, Request},
};

/// The metadata of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListMeta {
    /// The store's revision at the read.
    pub revision: u64,
    /// The token to go on with; empty at the end.
    pub continue_token: String,
    /// How many more there are, when that is known.
    pub remaining: Option<u64>,
}

impl ListMeta {
    /// The `metadata` of a list.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.revision.to_string()});
        if !self.continue_token.is_empty() {
            put(&mut meta, "continue", json!(self.continue_token));
            if let Some(remaining) = self.remaining {
                put(&mut meta, "remainingItemCount", json!(remaining));
            }
        }
        meta
    }
}

/// The `kind` of a list of this kind.
#[must_use]
pub fn list_kind(kind: &Kind) -> String {
    format!("{}List", kind.kind)
}

/// What stands before the items of a JSON list; after them comes `]}`.
///
/// Items are written as they are stored, with a comma between.
#[must_use]
pub fn list_head(request: &Request, meta: &ListMeta) -> String {
    format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
        request.custom.as_ref().map_or_else(|| list_kind(request.kind), |it| it.list_kind.clone()),
        request.api_version(),
        meta.to_value()
    )
}

/// Do the options of a list go together?
///
/// # Errors
///
/// 422 with every rule that is broken.
pub fn check_list(options: &Options) -> Result<(), Status> {
    let mut causes = Vec::new();
    let matching = options.resource_version_match.as_str();
    let mut forbid = |field: &str, why: &str| causes.push(Cause::forbidden(field, why));
    if !matching.is_empty() {
        if options.resource_version.is_empty() {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            forbid("resourceVersionMatch", why);
        }
        if !options.continue_token.is_empty() {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            forbid("resourceVersionMatch", why);
        }
        if matching == "Exact" && options.resource_version == "0" {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            forbid("resourceVersionMatch", why);
        }
    }
    if options.send_initial_events.is_some() {
        forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
    if !matches!(matching, "" | "Exact" | "NotOlderThan") {
        causes.push(unknown_match(matching, "\"Exact\", \"NotOlderThan\", \"\""));
    }
    refuse_options("ListOptions", causes)
}

/// Do the options of a watch go together?
///
/// # Errors
///
/// 422 with every rule that is broken.
pub fn check_watch(options: &Options) -> Result<(), Status> {
    let mut causes = Vec::new();
    let matching = options.resource_version_match.as_str();
    if options.send_initial_events.is_some() {
        if matching != "NotOlderThan" {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            causes.push(Cause::forbidden("resourceVersionMatch", why));
        }
    } else if !matching.is_empty() {
        let why =
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        causes.push(Cause::forbidden("resourceVersionMatch", why));
    }
    if !matches!(matching, "" | "NotOlderThan") {
        causes.push(unknown_match(matching, "\"NotOlderThan\", \"\""));
    }
    refuse_options("ListOptions", causes)
}

fn unknown_match(found: &str, known: &str) -> Cause {
    Cause {
        reason: "FieldValueNotSupported".to_owned(),
        message: format!("Unsupported value: {found:?}: supported values: {known}"),
        field: "resourceVersionMatch".to_owned(),
    }
}

/// Refuses a request for what its parameters say, if there is anything; `kind` is upstream's for
/// all parameters of such requests.
pub(crate) fn refuse_options(kind: &str, causes: Vec<Cause>) -> Result<(), Status> {
    let shown: Vec<String> =
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    let list = match shown.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    let message = format!("{kind}.meta.k8s.io \"\" is invalid: {list}");
    let details = Details {
        group: "meta.k8s.io".to_owned(),
        kind: kind.to_owned(),
        causes,
        ..Details::default()
    };
    Err(Status::failure(422, "Invalid", message).with(details))
}

/// 504: a revision that no server of this cluster has reached.
#[must_use]
pub fn too_new(wanted: u64, newest: u64) -> Status {
    let cause = Cause {
        reason: "ResourceVersionTooLarge".to_owned(),
        message: "Too large resource version".to_owned(),
        field: String::new(),
    };
    let why = format!("Timeout: Too large resource version: {wanted}, current: {newest}");
    let details = Details { causes: vec![cause], retry_after_seconds: 1, ..Details::default() };
    Status::failure(504, "Timeout", why).with(details)
}

/// An object reduced to its metadata.
#[must_use]
pub fn partial_object(object: &Value, version: MetaVersion) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": version.api_version(),
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// What stands before the items of a list of objects reduced to their metadata; see [`list_head`].
#[must_use]
pub fn partial_list_head(meta: &ListMeta, version: MetaVersion) -> String {
    format!(
        "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
        version.api_version(),
        meta.to_value()
    )
}

/// A bookmark: how far a watch has come. `end_of_initial_events` ends the objects that were
/// there before.
#[must_use]
pub fn bookmark(request: &Request, revision: u64, end_of_initial_events: bool) -> Value {
    let mut meta = json!({"resourceVersion": revision.to_string()});
    if end_of_initial_events {
        put(&mut meta, "annotations", json!({"k8s.io/initial-events-end": "true"}));
    }
    json!({"kind": request.kind.kind, "apiVersion": request.api_version(), "metadata": meta})
}

/// An object in the version the client speaks.
#[must_use]
pub fn served(request: &Request, object: &Value) -> Value {
    crate::convert::to_served(request, object)
}

/// Does the object match the request's selectors, name and namespace?
#[must_use]
pub fn selects(request: &Request, object: &Value) -> bool {
    let text = |path: &str| objects::field::str_at(object, path).unwrap_or("");
    let options = &request.options;
    (request.namespace.is_empty() || text("metadata.namespace") == request.namespace)
        && (request.name.is_empty() || text("metadata.name") == request.name)
        && options.label_selector.matches_object(object)
        && fields_match(request, object)
}

fn fields_match(request: &Request, object: &Value) -> bool {
    if request.kind == &kind::EVENT && request.options.field_selector.required("source").is_some() {
        // `source` is short for the component's name.
        return request.options.field_selector.terms().iter().all(|term| {
            let path = if term.path == "source" { "source.component" } else { &term.path };
            let have = objects::field::text_at(object, path).unwrap_or_default();
            (have == term.value) == term.equal
        });
    }
    if request.kind == &kind::NODE {
        // An absent `spec.unschedulable` reads as false.
        return request.options.field_selector.terms().iter().all(|term| {
            let have = objects::field::text_at(object, &term.path).unwrap_or_else(|| {
                if term.path == "spec.unschedulable" { "false".to_owned() } else { String::new() }
            });
            (have == term.value) == term.equal
        });
    }
    request.options.field_selector.matches_object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn causes(query: &str, check: fn(&Options) -> Result<(), Status>) -> Vec<String> {
        let Ok(crate::Route::Resource(request)) =
            crate::parse_request("GET", "/api/v1/pods", query)
        else {
            panic!("{query}");
        };
        match check(&request.options) {
            Ok(()) => Vec::new(),
            Err(status) => {
                assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
                let causes = status.details.unwrap().causes;
                causes.into_iter().map(|cause| cause.message).collect()
            }
        }
    }

    #[test]
    fn options_of_lists_must_go_together() {
        let none: &[&str] = &[];
        for (query, expected) in [
            ("", none),
            ("resourceVersion=0", none),
            ("resourceVersion=0&resourceVersionMatch=NotOlderThan", none),
            ("resourceVersion=7&resourceVersionMatch=Exact&limit=3", none),
            (
                "resourceVersionMatch=Exact",
                &[
                    "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
                ],
            ),
            (
                "resourceVersion=0&resourceVersionMatch=Exact",
                &["Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \
                     \"0\""],
            ),
            (
                "resourceVersion=7&resourceVersionMatch=Later",
                &[
                    "Unsupported value: \"Later\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
                ],
            ),
            ("sendInitialEvents=true", &["Forbidden: sendInitialEvents is forbidden for list"]),
        ] {
            assert_eq!(causes(query, check_list), expected, "{query}");
        }
    }

    #[test]
    fn options_of_watches_must_go_together() {
        let none: &[&str] = &[];
        for (query, expected) in [
            ("watch=1", none),
            ("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", none),
            (
                "watch=1&sendInitialEvents=true",
                &["Forbidden: sendInitialEvents requires setting resourceVersionMatch to \
                     NotOlderThan"],
            ),
            (
                "watch=1&resourceVersionMatch=NotOlderThan",
                &["Forbidden: resourceVersionMatch is forbidden for watch unless \
                     sendInitialEvents is provided"],
            ),
        ] {
            assert_eq!(causes(query, check_watch), expected, "{query}");
        }
    }
}
