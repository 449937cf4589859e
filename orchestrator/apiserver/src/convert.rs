//! Objects of definitions with a conversion webhook: from the version they lie in on the disk to
//! the one a client speaks, and back.
//!
//! *Limits*: each call is a connection of its own, and every event of a watch is converted for
//! every watcher.

use std::sync::Arc;
use std::time::Duration;

use api::Request;
use api::custom::{Conversion, conversion};
use objects::{Status, field};
use serde_json::Value;
use store::{Change, Item};

use crate::object;
use crate::server::Server;
use crate::webhook;

/// How long a webhook may take; upstream's.
const LIMIT: Duration = Duration::from_secs(30);

/// The webhook of the kind a request is about.
fn hook(request: &Request) -> Option<&Value> {
    match &request.custom.as_ref()?.conversion {
        Conversion::Webhook(webhook) => Some(webhook),
        Conversion::None => None,
    }
}

/// Stored items as the client's version has them.
///
/// # Errors
///
/// 500 when the webhook fails.
pub(crate) async fn items(
    server: &Server,
    request: &Request,
    items: Vec<Arc<Item>>,
) -> Result<Vec<Arc<Item>>, Status> {
    if hook(request).is_none() {
        return Ok(items);
    }
    let objects = items.iter().map(|item| object::decode(item, item.modified())).collect();
    let converted = values(server, request, objects, &request.api_version()).await?;
    let made = items.iter().zip(&converted).map(|(item, converted)| {
        let (value, head) = object::render_stored(request.kind, converted);
        Arc::new(Item::detached(item.name(), value, item.modified(), Some(head)))
    });
    Ok(made.collect())
}

/// A stored item as the client's version has it.
///
/// # Errors
///
/// As [`items`].
pub(crate) async fn item(
    server: &Server,
    request: &Request,
    item: Arc<Item>,
) -> Result<Arc<Item>, Status> {
    let all = items(server, request, vec![Arc::clone(&item)]).await?;
    Ok(all.into_iter().next().unwrap_or(item))
}

/// An object as the client's version has it.
///
/// # Errors
///
/// As [`items`].
pub(crate) async fn to_served(
    server: &Server,
    request: &Request,
    object: Value,
) -> Result<Value, Status> {
    one(server, request, object, &request.api_version()).await
}

/// An object that came in the client's version, as it is stored.
///
/// # Errors
///
/// As [`items`].
pub(crate) async fn to_stored(
    server: &Server,
    request: &Request,
    mut object: Value,
) -> Result<Value, Status> {
    if hook(request).is_some()
        && let Some(fields) = object.as_object_mut()
    {
        fields.insert("apiVersion".to_owned(), Value::from(request.api_version()));
    }
    one(server, request, object, &request.kind.api_version()).await
}

async fn one(
    server: &Server,
    request: &Request,
    object: Value,
    desired: &str,
) -> Result<Value, Status> {
    let all = values(server, request, vec![object], desired).await?;
    Ok(all.into_iter().next().unwrap_or_default())
}

/// What changed, as the client's version has it.
///
/// # Errors
///
/// As [`items`].
pub(crate) async fn changes(
    server: &Server,
    request: &Request,
    changes: Vec<Arc<Change>>,
) -> Result<Vec<Arc<Change>>, Status> {
    if hook(request).is_none() {
        return Ok(changes);
    }
    let mut made = Vec::with_capacity(changes.len());
    for change in changes {
        let known: Vec<_> = change.current.iter().chain(&change.previous).cloned().collect();
        let mut converted = items(server, request, known).await?.into_iter();
        let current = change.current.as_ref().and_then(|_| converted.next());
        let previous = change.previous.as_ref().and_then(|_| converted.next());
        made.push(Arc::new(Change { revision: change.revision, current, previous }));
    }
    Ok(made)
}

async fn values(
    server: &Server,
    request: &Request,
    mut objects: Vec<Value>,
    desired: &str,
) -> Result<Vec<Value>, Status> {
    let Some(webhook) = hook(request) else { return Ok(objects) };
    let other = |one: &Value| field::str_at(one, "apiVersion") != Some(desired);
    let others: Vec<&Value> = objects.iter().filter(|one| other(one)).collect();
    let Some(first) = others.first() else { return Ok(objects) };
    let uid = uuid::Uuid::new_v4().to_string();
    let review = conversion::review(webhook, &others, desired, &uid);
    let null = Value::Null;
    let client = webhook.get("clientConfig").unwrap_or(&null);
    let asked = webhook::post(server, client, &review, LIMIT).await;
    let converted = match asked {
        Ok(answer) => conversion::verdict(&others, desired, &uid, &answer),
        Err(why) => {
            let why = why.strip_prefix("failed to call webhook: ").unwrap_or(&why);
            Err(format!("conversion webhook for {} failed: {why}", conversion::title(first)))
        }
    };
    let mut converted = converted.map_err(|why| Status::failure(500, "", &why))?.into_iter();
    for one in objects.iter_mut().filter(|one| other(one)) {
        if let Some(made) = converted.next() {
            *one = made;
        }
    }
    Ok(objects)
}
