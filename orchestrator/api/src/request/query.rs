//! Query parameters of requests to resources.

use objects::{Cause, FieldSelector, Kind, Selector, Status, kind};
use serde_json::json;

use super::{FieldValidation, Options, Verb};
use crate::list::refuse_options;

/// Splits and decodes a query.
pub(super) fn parse(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true), decode(value, true))
        })
        .collect()
}

/// Undoes percent-encoding; `+` is a space in queries only. What is no encoding stays as it is.
pub(super) fn decode(text: &str, in_query: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'+' if in_query => bytes.push(b' '),
            b'%' => match tail.split_at_checked(2) {
                Some((digits, after)) => match hex(digits) {
                    Some(byte) => {
                        bytes.push(byte);
                        rest = after;
                    }
                    None => bytes.push(b'%'),
                },
                None => bytes.push(b'%'),
            },
            other => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digits: &[u8]) -> Option<u8> {
    let text = str::from_utf8(digits).ok()?;
    text.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(text, 16).ok())?
}

/// The last value of a parameter.
fn get<'a>(raw: &'a [(String, String)], key: &str) -> &'a str {
    raw.iter().rev().find(|(name, _)| name == key).map_or("", |(_, value)| value)
}

/// A yes-or-no parameter. An empty value is absent, as in upstream.
pub(super) fn flag(raw: &[(String, String)], key: &str) -> Result<Option<bool>, Status> {
    match get(raw, key) {
        "" => Ok(None),
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(Some(true)),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(Some(false)),
        other => Err(Status::bad_request(format!("invalid value for {key}: {other:?}"))),
    }
}

fn number<T: std::str::FromStr>(raw: &[(String, String)], key: &str) -> Result<Option<T>, Status> {
    match get(raw, key) {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            Status::bad_request(format!("invalid value for {key}: {text:?} is not a number"))
        }),
    }
}

/// Events are stored as the core group has them; the names of the other group mean the same.
fn event_fields(text: &str) -> String {
    let renamed = text.split(',').map(|term| {
        for (newer, stored) in
            [("regarding.", "involvedObject."), ("reportingController", "reportingComponent")]
        {
            if let Some(rest) = term.strip_prefix(newer) {
                return format!("{stored}{rest}");
            }
        }
        term.to_owned()
    });
    renamed.collect::<Vec<_>>().join(",")
}

/// Refuses a write for a parameter; reads do not have those that writes have.
fn refuse_write(verb: Verb, cause: Cause) -> Result<(), Status> {
    let kind = match verb {
        Verb::Get | Verb::List | Verb::Watch => return Ok(()),
        Verb::Create => "CreateOptions",
        Verb::Update => "UpdateOptions",
        Verb::Patch => "PatchOptions",
        Verb::Delete | Verb::DeleteCollection => "DeleteOptions",
    };
    refuse_options(kind, vec![cause])
}

/// Reads every parameter the API machinery knows.
pub(super) fn options(
    kind: &Kind,
    verb: Verb,
    raw: Vec<(String, String)>,
) -> Result<Options, Status> {
    let label_selector = Selector::parse(get(&raw, "labelSelector"))
        .map_err(|err| Status::bad_request(err.to_string()))?;
    let fields = get(&raw, "fieldSelector");
    let fields = if *kind == kind::EVENT { event_fields(fields) } else { fields.to_owned() };
    let field_selector =
        FieldSelector::parse(&fields).map_err(|err| Status::bad_request(err.to_string()))?;
    for term in field_selector.terms() {
        let known = matches!(term.path.as_str(), "metadata.name" | "metadata.namespace")
            || kind.selectable.contains(&term.path.as_str());
        if !known {
            let path = &term.path;
            return Err(Status::bad_request(format!("field label not supported: {path}")));
        }
    }
    let field_validation = match get(&raw, "fieldValidation") {
        "" | "Warn" => FieldValidation::Warn,
        "Ignore" => FieldValidation::Ignore,
        "Strict" => FieldValidation::Strict,
        other => {
            let known = ["Ignore", "Strict", "Warn"];
            let cause = Cause::unsupported("fieldValidation", &json!(other), &known);
            refuse_write(verb, cause)?;
            FieldValidation::Warn
        }
    };
    let dry_run = match get(&raw, "dryRun") {
        "" => false,
        "All" => true,
        other => {
            refuse_write(verb, Cause::unsupported("dryRun", &json!([other]), &["All"]))?;
            false
        }
    };
    Ok(Options {
        label_selector,
        field_selector,
        resource_version: get(&raw, "resourceVersion").to_owned(),
        resource_version_match: get(&raw, "resourceVersionMatch").to_owned(),
        limit: number(&raw, "limit")?.filter(|limit| *limit > 0),
        continue_token: get(&raw, "continue").to_owned(),
        allow_watch_bookmarks: flag(&raw, "allowWatchBookmarks")?.unwrap_or(false),
        send_initial_events: flag(&raw, "sendInitialEvents")?,
        timeout_seconds: number(&raw, "timeoutSeconds")?.filter(|seconds| *seconds > 0),
        dry_run,
        field_manager: get(&raw, "fieldManager").to_owned(),
        field_validation,
        force: flag(&raw, "force")?.unwrap_or(false),
        pretty: flag(&raw, "pretty")?.unwrap_or(false),
        include_object: get(&raw, "includeObject").to_owned(),
        grace_period_seconds: number(&raw, "gracePeriodSeconds")?,
        propagation_policy: get(&raw, "propagationPolicy").to_owned(),
        raw,
    })
}
