//! Reviews: posted, answered, never stored. They say who one is and what one may do.

use api::authority::review as words;
use api::{Attributes, Decision, ReviewPath, User};
use bytes::Bytes;
use objects::{Cause, Status, field};
use serde_json::{Map, Value, json};

use crate::respond::{self, Answer};
use crate::server::{Server, now};
use crate::token;

/// Answers a review.
///
/// # Errors
///
/// 403 when the user may not ask, 400, 415 and 422 for what cannot be read.
pub(crate) async fn answer(
    server: &Server,
    user: &User,
    path: &ReviewPath,
    content_type: &str,
    bytes: &Bytes,
) -> Result<Answer, Status> {
    let asked = read(content_type, bytes)?;
    let spec = asked.get("spec").cloned().unwrap_or_else(|| json!({}));
    let status = match path.kind {
        "SelfSubjectReview" => json!({ "userInfo": words::user_info(user) }),
        "SelfSubjectRulesReview" => rules(server, user, &spec)?,
        "TokenReview" => prove(server, &spec).await?,
        kind => access(server, user, path, kind, &spec)?,
    };
    let mut review = Map::new();
    review.insert("kind".to_owned(), json!(path.kind));
    review.insert("apiVersion".to_owned(), json!(format!("{}/v1", path.group)));
    let mut metadata = json!({"creationTimestamp": objects::Time::from(now())});
    if let (false, Some(fields)) = (path.namespace.is_empty(), metadata.as_object_mut()) {
        fields.insert("namespace".to_owned(), json!(path.namespace));
    }
    review.insert("metadata".to_owned(), metadata);
    if path.kind != "SelfSubjectReview" {
        review.insert("spec".to_owned(), spec);
    }
    review.insert("status".to_owned(), status);
    Ok(respond::json(201, &Value::Object(review)))
}

/// What posting a review asks of roles.
pub(crate) fn attributes(path: &ReviewPath) -> Attributes {
    Attributes::on("create", &path.group, &path.resource, "").in_namespace(&path.namespace)
}

fn read(content_type: &str, bytes: &Bytes) -> Result<Value, Status> {
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => serde_json::from_slice(bytes)
            .map_err(|err| Status::bad_request(format!("the review cannot be read: {err}"))),
        api::protobuf::MEDIA_TYPE => api::protobuf::decode(bytes),
        _ => Err(Status::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json, application/vnd.kubernetes.protobuf",
        )),
    }
}

fn access(
    server: &Server,
    user: &User,
    path: &ReviewPath,
    kind: &str,
    spec: &Value,
) -> Result<Value, Status> {
    let asked = words::parse_attributes(kind, spec)?;
    let subject = match kind {
        "SelfSubjectAccessReview" => user.clone(),
        _ => words::parse_subject(kind, spec)?,
    };
    if kind == "LocalSubjectAccessReview" && asked.namespace != path.namespace {
        let field = if asked.is_resource() {
            "spec.resourceAttributes.namespace"
        } else {
            "spec.nonResourceAttributes"
        };
        let why = format!("must match metadata.namespace: {}", path.namespace);
        return Err(words::invalid(kind, Cause::invalid(field, &json!(asked.namespace), &why)));
    }
    let decision: Decision = api::decide(&subject, &asked, &server.roles.now(server), server);
    Ok(words::access_status(&decision))
}

fn rules(server: &Server, user: &User, spec: &Value) -> Result<Value, Status> {
    let namespace = field::str_at(spec, "namespace").unwrap_or("");
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (rules, broken) = server.roles.now(server).rules_for(user, namespace);
    Ok(words::rules_status(&rules, &broken, user.node().is_some()))
}

async fn prove(server: &Server, spec: &Value) -> Result<Value, Status> {
    let token = field::str_at(spec, "token").unwrap_or("");
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let named = spec.get("audiences").and_then(Value::as_array);
    let named: Vec<String> =
        named.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let wanted = if named.is_empty() { server.site.tokens.audiences() } else { &named };
    Ok(match token::authenticate(server, token, wanted).await {
        Ok(proven) => json!({
            "authenticated": true, "user": words::user_info(&proven.user),
            "audiences": proven.audiences,
        }),
        Err(err) => json!({"authenticated": false, "user": {}, "error": err.to_string()}),
    })
}
