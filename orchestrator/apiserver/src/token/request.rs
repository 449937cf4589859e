//! Tokens on request: the `token` part of a ServiceAccount, and tokens kept in secrets.

use api::authority::token::{Account, Reference, legacy_claims};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use jiff::ToSpan as _;
use objects::field::Fields as _;
use objects::{Status, Time, field, kind};
use serde_json::{Value, json};

use super::{live, words};
use crate::handle::Call;
use crate::object;
use crate::respond::{self, Answer};
use crate::server::{Server, now};

/// The type of secrets that keep a token.
const KEEPS_TOKEN: &str = "kubernetes.io/service-account-token";

/// Answers POST to the `token` part of a ServiceAccount.
pub(crate) fn answer(call: &Call<'_>, bytes: &Bytes) -> Result<Answer, Status> {
    let (server, request) = (call.server, &call.request);
    let body: Value = match call.header(CONTENT_TYPE).split(';').next().unwrap_or("").trim() {
        api::protobuf::MEDIA_TYPE => api::protobuf::decode(bytes)?,
        _ => serde_json::from_slice(bytes).map_err(|err| {
            Status::bad_request(format!("the token request cannot be read: {err}"))
        })?,
    };
    let item = server.item(&kind::SERVICE_ACCOUNT, &request.namespace, &request.name);
    let item = item.ok_or_else(|| Status::not_found(&kind::SERVICE_ACCOUNT, &request.name))?;
    let own = object::decode(&item, item.modified());
    let wanted = words::parse_request(&body, server.site.tokens.audiences())?;
    let bound = match &wanted.bound {
        Some(bound) => bind(call, bound)?,
        None => Vec::new(),
    };
    check_node(call, &wanted, &bound)?;
    let account = Account {
        namespace: request.namespace.clone(),
        name: request.name.clone(),
        uid: field::str_at(&own, "metadata.uid").unwrap_or_default().to_owned(),
        bound,
        legacy: false,
    };
    let (from, id) = (now(), uuid::Uuid::new_v4().to_string());
    let to = from.saturating_add(wanted.seconds.seconds()).unwrap_or(from);
    let claims =
        words::claims(&server.site.tokens.issuer, &account, &wanted.audiences, (from, to), &id);
    let token =
        server.site.tokens.sign(&claims).map_err(|err| Status::internal(err.to_string()))?;
    let mut spec = body.get("spec").cloned().unwrap_or_else(|| json!({}));
    if let Some(fields) = spec.as_object_mut() {
        fields.insert("audiences".to_owned(), json!(wanted.audiences));
        fields.insert("expirationSeconds".to_owned(), json!(wanted.seconds));
        fields.entry("boundObjectRef").or_insert(Value::Null);
    }
    let token = if request.options.dry_run { String::new() } else { token };
    Ok(respond::json(
        201,
        &json!({
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {
                "name": request.name, "namespace": request.namespace,
                "creationTimestamp": Time::from(from),
            },
            "spec": spec,
            "status": {"token": token, "expirationTimestamp": Time::from(to)},
        }),
    ))
}

/// Finds what a token is to be bound to, and the node of a pod.
fn bind(call: &Call<'_>, wanted: &Reference) -> Result<Vec<Reference>, Status> {
    let (server, request) = (call.server, &call.request);
    let Some((kind, namespace)) = super::place(wanted, &request.namespace) else {
        let why = format!("cannot bind token to object of type {}", wanted.kind);
        return Err(Status::bad_request(why));
    };
    let item = server.item(kind, namespace, &wanted.name);
    let found = item.ok_or_else(|| Status::not_found(kind, &wanted.name))?;
    let found = object::decode(&found, 0);
    let uid = field::str_at(&found, "metadata.uid").unwrap_or_default().to_owned();
    if !wanted.uid.is_empty() && wanted.uid != uid {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The \
             object might have been deleted and then recreated",
            wanted.uid
        );
        return Err(Status::conflict(kind, &wanted.name, &why));
    }
    let mut bound = vec![Reference { uid, ..wanted.clone() }];
    if wanted.kind == "Pod" {
        let runs_as = field::str_at(&found, "spec.serviceAccountName").unwrap_or("default");
        if runs_as != request.name {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount \"{}\" to pod running with different \
                 serviceaccount name.",
                request.name
            )));
        }
        let node = field::str_at(&found, "spec.nodeName").unwrap_or_default();
        if let Some(item) = server.item(&kind::NODE, "", node) {
            let uid = field::str_at(&object::decode(&item, 0), "metadata.uid").map(str::to_owned);
            bound.push(Reference {
                kind: "Node".to_owned(),
                name: node.to_owned(),
                uid: uid.unwrap_or_default(),
            });
        }
    }
    Ok(bound)
}

/// A node gets tokens for the pods it runs, and for nothing else.
fn check_node(
    call: &Call<'_>,
    wanted: &words::TokenRequest,
    bound: &[Reference],
) -> Result<(), Status> {
    let Some(node) = call.user.node() else { return Ok(()) };
    let refuse = |why: &str| Err(Status::forbidden(call.request.kind, &call.request.name, why));
    match &wanted.bound {
        Some(pod) if pod.kind == "Pod" && pod.uid.is_empty() => {
            refuse("node requested token with a pod binding without a uid")
        }
        Some(pod) if pod.kind == "Pod" => {
            if bound.iter().any(|one| one.kind == "Node" && one.name == node) {
                Ok(())
            } else {
                refuse("node requested token bound to a pod scheduled on a different node")
            }
        }
        _ => refuse("node requested token not bound to a pod"),
    }
}

/// Puts the token into a new secret that is to keep one.
///
/// # Errors
///
/// When the key cannot sign.
pub(crate) fn fill_secret(server: &Server, secret: &mut Value) -> Result<(), Status> {
    if field::str_at(secret, "type") != Some(KEEPS_TOKEN) {
        return Ok(());
    }
    let text = |path: &str| field::str_at(secret, path).unwrap_or_default().to_owned();
    let (namespace, name) = (text("metadata.namespace"), text("metadata.name"));
    let annotations = secret.field("metadata.annotations");
    let noted = |key: &str| {
        let found = annotations.and_then(|all| all.get(format!("kubernetes.io/{key}")));
        found.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (account, uid) = (noted("service-account.name"), noted("service-account.uid"));
    // A secret of an account that is not there stays empty.
    let Some(own) = live(server, &kind::SERVICE_ACCOUNT, &namespace, &account, &uid) else {
        return Ok(());
    };
    let account = Account {
        namespace: namespace.clone(),
        name: account,
        uid: field::str_at(&own, "metadata.uid").unwrap_or_default().to_owned(),
        bound: Vec::new(),
        legacy: true,
    };
    let signed = server.site.tokens.sign(&legacy_claims(&account, &name));
    let token = signed.map_err(|err| Status::internal(err.to_string()))?;
    let ca = &server.site.ca_pem;
    let entries = [("token", &token), ("ca.crt", ca), ("namespace", &namespace)];
    if let Some(fields) = secret.as_object_mut() {
        let data = fields.entry("data").or_insert_with(|| json!({}));
        for (key, text) in entries {
            if let Some(data) = data.as_object_mut() {
                data.entry(key).or_insert_with(|| json!(STANDARD.encode(text)));
            }
        }
    }
    if let Some(Value::Object(annotations)) = secret.field_mut("metadata.annotations") {
        annotations.insert("kubernetes.io/service-account.uid".to_owned(), json!(account.uid));
    }
    Ok(())
}
