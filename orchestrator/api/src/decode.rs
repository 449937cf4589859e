//! Bodies to values: JSON or YAML, then held against the schema.
//!
//! Reading remembers fields that stand twice; the walk drops what the schema does not know, writes
//! quantities and times in their one form, and turns down values of the wrong type as upstream
//! does: with 400, for such a body never was an object of the kind.

mod tree;
mod walk;

use objects::{Cause, Status, field::str_at, kind, status::Details};
use serde_json::{Value, json};

pub(crate) use crate::prepare::Decoded;
use crate::{
    custom::CustomVersion,
    prepare::Body,
    protobuf,
    request::{FieldValidation, Request},
    schema,
};

/// The type of metadata in the built-in table.
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Where in a value we are; written out only when somebody must be told.
#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    /// The value itself; the name, when there is one, stands before everything.
    Root(&'a str),
    Field(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl Place<'_> {
    const ROOT: Self = Place::Root("");
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root(name) => f.write_str(name),
            Self::Field(Self::Root(""), name) => f.write_str(name),
            Self::Field(outer, name) => write!(f, "{outer}.{name}"),
            Self::Item(outer, at) => write!(f, "{outer}[{at}]"),
        }
    }
}

/// Decodes an object of the request's kind, and holds it against the schema.
pub(crate) fn decode_object(request: &Request, body: &Body<'_>) -> Result<Decoded, Status> {
    let (value, doubled) = read(body)?;
    conform(request, value, &doubled)
}

/// Decodes an apply configuration. What a custom kind's schema does not know cannot be owned, so it
/// is refused whatever the client says about unknown fields.
pub(crate) fn decode_applied(request: &Request, body: &Body<'_>) -> Result<Decoded, Status> {
    let (mut value, doubled) = read(body)?;
    let (found, expected) =
        (str_at(&value, "apiVersion").unwrap_or("").to_owned(), request.api_version());
    if found != expected && request.is_main() {
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {found}, \
             expected: {expected}"
        )));
    }
    if let Some(custom) = &request.custom {
        let unknown = custom_fields(custom, &mut value).map_err(|why| unreadable(request, &why))?;
        if !unknown.is_empty() {
            let list: Vec<String> = unknown
                .iter()
                .map(|path| format!(".{path}: field not declared in schema"))
                .collect();
            let list = match list.as_slice() {
                [one] => one.clone(),
                many => format!("errors:\n  {}", many.join("\n  ")),
            };
            let why = format!(
                "failed to create typed patch object ({}/{}; {}, Kind={}): {list}",
                request.namespace,
                request.name,
                request.api_version(),
                request.kind.kind
            );
            return Err(Status::failure(500, "", why));
        }
    }
    conform(request, value, &doubled)
}

/// Decodes JSON or YAML as it is.
pub(crate) fn decode_any(body: &Body<'_>) -> Result<Value, Status> {
    read(body).map(|(value, _)| value)
}

/// Decodes JSON or YAML as it is; also the paths of fields that stand twice.
pub(crate) fn decode_doubled(body: &Body<'_>) -> Result<(Value, Vec<String>), Status> {
    read(body)
}

/// Holds a patched object against the schema. What strict reading finds is the patch's mistake.
pub(crate) fn conform_patched(
    request: &Request,
    value: Value,
    doubled: &[String],
    patch: &[u8],
) -> Result<Decoded, Status> {
    let (value, strict) = hold(request, value, doubled)?;
    judge(request, value, strict, |all| {
        let patch = String::from_utf8_lossy(patch);
        let cause = Cause::invalid("patch", &json!(patch), all);
        let why = format!(" \"\" is invalid: patch: {}", cause.message);
        let details = Details { causes: vec![cause], ..Details::default() };
        Status::failure(422, "Invalid", why).with(details)
    })
}

/// Reads a body; also the paths of fields that stand twice.
fn read(body: &Body<'_>) -> Result<(Value, Vec<String>), Status> {
    match body.media_type() {
        "application/json"
        | "application/merge-patch+json"
        | "application/json-patch+json"
        | "application/strategic-merge-patch+json" => tree::parse_json(body.bytes)
            .map_err(|err| Status::bad_request(format!("the body is not JSON: {err}"))),
        "application/yaml" | "application/apply-patch+yaml" => tree::parse_yaml(body.bytes)
            .map_err(|err| Status::bad_request(format!("error decoding YAML: {err}"))),
        protobuf::MEDIA_TYPE => protobuf::decode(body.bytes).map(|value| (value, Vec::new())),
        _ => Err(Status::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// Checks a value's kind and holds it against the schema.
pub(crate) fn conform(
    request: &Request,
    value: Value,
    doubled: &[String],
) -> Result<Decoded, Status> {
    let (value, strict) = hold(request, value, doubled)?;
    judge(request, value, strict, |all| unreadable(request, all))
}

/// Takes from a value what its schema does not know; all that strict reading finds wrong.
fn hold(
    request: &Request,
    mut value: Value,
    doubled: &[String],
) -> Result<(Value, Vec<String>), Status> {
    check_type(request, &mut value)?;
    let kind = request.kind.kind;
    let mut strict: Vec<String> =
        doubled.iter().map(|path| format!("duplicate field \"{path}\"")).collect();
    let root = schema::builtin().root(request.served.group, request.served.version, kind);
    if let Some(custom) = &request.custom {
        let found = custom_fields(custom, &mut value).map_err(|why| unreadable(request, &why))?;
        strict.splice(..0, found.iter().map(|path| format!("unknown field \"{path}\"")));
    } else if let Some(root) = root {
        let found = walk::walk(schema::builtin(), root, &mut value)
            .map_err(|wrong| unreadable(request, &wrong.to_string()))?;
        strict.extend(found.iter().map(|path| format!("unknown field \"{path}\"")));
    }
    Ok((value, strict))
}

/// What becomes of an object that strict reading finds something wrong with.
fn judge(
    request: &Request,
    value: Value,
    strict: Vec<String>,
    refuse: impl FnOnce(&str) -> Status,
) -> Result<Decoded, Status> {
    let warnings = match request.options.field_validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn => strict,
        FieldValidation::Strict if strict.is_empty() => strict,
        FieldValidation::Strict => {
            let all = format!("strict decoding error: {}", strict.join(", "));
            return Err(refuse(&all));
        }
    };
    Ok(Decoded { value, warnings })
}

/// Holds a custom object against its schema: what is unknown goes, its metadata is everyone's.
fn custom_fields(custom: &CustomVersion, value: &mut Value) -> Result<Vec<String>, String> {
    let table = schema::builtin();
    let root = table.named(OBJECT_META).and_then(|id| table.get(id));
    let mut unknown = Vec::new();
    let mut parts = Vec::new();
    let pruned = crate::custom::prune(&custom.structural, value);
    crate::custom::embedded(&custom.structural, value, "", &mut parts);
    let own = parts;
    for (path, metadata) in own {
        if let Some(root) = root {
            let found = walk::walk(table, root, metadata).map_err(|wrong| wrong.to_string())?;
            unknown.extend(found.iter().map(|inner| format!("{path}.{inner}")));
        }
    }
    if let (Some(root), Some(metadata)) = (root, value.get_mut("metadata")) {
        let found = walk::walk(table, root, metadata).map_err(|wrong| wrong.to_string())?;
        unknown.extend(found.iter().map(|inner| format!("metadata.{inner}")));
    }
    unknown.extend(pruned);
    Ok(unknown)
}

fn unreadable(request: &Request, why: &str) -> Status {
    let (kind, version) = (request.kind.kind, request.served.version);
    Status::bad_request(format!(
        "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
    ))
}

/// The body must be of the kind that its path says; a body that does not say is.
fn check_type(request: &Request, value: &mut Value) -> Result<(), Status> {
    let expected = request.api_version();
    let api_version = str_at(value, "apiVersion").unwrap_or("").to_owned();
    let found = str_at(value, "kind").unwrap_or("").to_owned();
    let Some(fields) = value.as_object_mut() else {
        return Err(unreadable(request, "the body is not an object"));
    };
    let other_version = !api_version.is_empty() && api_version != expected;
    let other_kind = !found.is_empty() && found != request.kind.kind;
    if other_version && kind::by_gvk(&api_version, &found) == Some(request.kind) {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version \
             ({expected})"
        )));
    }
    if other_version || other_kind {
        return Err(Status::bad_request(format!(
            "the object provided is {api_version}, Kind={found}, but {expected}, Kind={} is expected",
            request.kind.kind
        )));
    }
    fields.insert("apiVersion".to_owned(), json!(expected));
    fields.insert("kind".to_owned(), json!(request.kind.kind));
    Ok(())
}

#[cfg(test)]
mod tests;
