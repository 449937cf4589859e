//! Custom resource definitions at work: their status, the registry that serves them, their end.
//!
//! A write of a definition is settled before it is answered, so that what it adds can be used at
//! once; definitions that other servers write are settled when the watch on the shelf tells. A
//! definition that goes takes its objects with it: they are deleted as a client would, so that
//! finalizers are honoured, and the definition goes when none is left.
//!
//! Tasks: one watch on the shelf of definitions, for as long as the server runs.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use api::Registry;
use api::custom::{Definition, FINALIZER, plan_status};
use api::remote::Remote;
use objects::field::Fields as _;
use objects::{Time, kind};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::object;
use crate::server::{Server, now};
use crate::write::{delete_own, replace_own};

/// The user recorded for what the server writes by itself.
const USER: &str = "system:apiserver";
/// How often the objects of a definition that goes are looked at.
const CLEANUP_EVERY: Duration = Duration::from_millis(250);
/// How often everything is looked at even when nothing tells of a change.
const BEAT: Duration = Duration::from_secs(30);

/// The definitions that are served, and the lock under which they are settled.
#[derive(Debug, Default)]
pub(crate) struct Customs {
    registry: RwLock<Arc<Registry>>,
    /// What other servers serve.
    remotes: RwLock<Vec<Arc<Remote>>>,
    /// Definitions by name, with the revision they were read at.
    read: tokio::sync::Mutex<BTreeMap<String, (u64, Arc<Definition>)>>,
}

impl Customs {
    /// The snapshot that is served now.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.registry.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes note of what other servers serve; whether that is news.
    pub(crate) fn lay_beside(&self, remotes: Vec<Arc<Remote>>) -> bool {
        let mut known = self.remotes.write().unwrap_or_else(PoisonError::into_inner);
        let news = *known != remotes;
        *known = remotes;
        news
    }
}

/// Writes the status of definitions that changed and serves those that are established.
///
/// Cancel safe: what is missing is done by the next call.
pub(crate) async fn settle(server: &Server) {
    let mut read = server.customs.read.lock().await;
    let kind = &kind::CUSTOM_RESOURCE_DEFINITION;
    let mut objects = decode_all(server);
    let mut served: Vec<Arc<Definition>> = Vec::new();
    let mut known = BTreeMap::new();
    for at in 0..objects.len() {
        let Some(object) = objects.get(at) else { continue };
        let planned = plan_status(object, &objects, Time::from(now()));
        let name = name_of(object).to_owned();
        let going = object.field("metadata.deletionTimestamp").is_some();
        if let Some(status) = planned.status.filter(|_| !going)
            && let Some(object) = objects.get_mut(at)
        {
            if let Some(fields) = object.as_object_mut() {
                fields.insert("status".to_owned(), status);
            }
            let path = format!("{}/status", kind.path(None, Some(&name)));
            // Someone was quicker, or the disk is full: the watch will wake us again.
            if let Err(status) = replace_own(server, USER, &path, object).await {
                tracing::debug!(%status, name, "the status of a definition was not written");
            }
        }
        let Some(item) = server.item(kind, "", &name).filter(|_| planned.established) else {
            continue;
        };
        let kept = read.remove(&name).filter(|(revision, _)| *revision == item.modified());
        let definition = match kept {
            Some((_, definition)) => Some(definition),
            None => Definition::read(&object::decode(&item, item.modified())),
        };
        if let Some(definition) = definition {
            known.insert(name, (item.modified(), Arc::clone(&definition)));
            served.push(definition);
        }
    }
    *read = known;
    let remotes = server.customs.remotes.read().unwrap_or_else(PoisonError::into_inner).clone();
    let registry = Arc::new(Registry::new(&served).beside(&remotes));
    let versions = |registry: &Registry| registry.custom_versions();
    if versions(&registry) != versions(&server.customs.registry()) {
        server.aggregates.wake();
    }
    *server.customs.registry.write().unwrap_or_else(PoisonError::into_inner) = registry;
}

fn decode_all(server: &Server) -> Vec<Value> {
    let items = server.items(&kind::CUSTOM_RESOURCE_DEFINITION, "");
    items.iter().map(|item| object::decode(item, item.modified())).collect()
}

fn name_of(object: &Value) -> &str {
    object.field("metadata.name").and_then(Value::as_str).unwrap_or_default()
}

/// Follows the shelf of definitions until `stop`.
pub(crate) async fn run(stop: CancellationToken, server: &Arc<Server>) {
    let shelf = server.shelf(&kind::CUSTOM_RESOURCE_DEFINITION);
    let mut watch = server.store.watch(&shelf, "", server.store.revision());
    loop {
        settle(server).await;
        let going = clean_up(server).await;
        let pause = if going { CLEANUP_EVERY } else { BEAT };
        tokio::select! { biased;
            () = stop.cancelled() => return,
            changes = watch.next() => if changes.is_err() {
                watch = server.store.watch(&shelf, "", server.store.revision());
            },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Deletes the objects of definitions that go; whether any such definition is left.
async fn clean_up(server: &Arc<Server>) -> bool {
    let mut left = false;
    for mut definition in decode_all(server) {
        let finalizers = definition.field("metadata.finalizers").and_then(Value::as_array);
        let held = finalizers.is_some_and(|all| all.iter().any(|one| one == FINALIZER));
        if definition.field("metadata.deletionTimestamp").is_none() || !held {
            continue;
        }
        let name = name_of(&definition).to_owned();
        if empty(server, &name).await {
            let finalizers = definition.field_mut("metadata.finalizers");
            if let Some(all) = finalizers.and_then(Value::as_array_mut) {
                all.retain(|one| one != FINALIZER);
            }
            let path = kind::CUSTOM_RESOURCE_DEFINITION.path(None, Some(&name));
            match replace_own(server, USER, &path, &definition).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(status) => tracing::debug!(%status, name, "a definition was not let go"),
            }
        }
        left = true;
    }
    left
}

/// Deletes the objects of a definition; whether none is left.
async fn empty(server: &Arc<Server>, name: &str) -> bool {
    let registry = server.customs.registry();
    let Some(custom) = registry.customs().find(|one| one.definition == name) else { return true };
    for item in server.items(custom.kind, "") {
        let known = object::known(custom.kind, &item);
        let namespace = known.field("metadata.namespace").unwrap_or_default().to_owned();
        let path = format!(
            "/apis/{}/{}{}/{}/{}",
            custom.kind.group,
            custom.version,
            if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") },
            custom.kind.plural,
            known.field("metadata.name").unwrap_or_default(),
        );
        if let Err(status) = delete_own(server, USER, &path, &json!({})).await {
            tracing::debug!(%status, path, "an object of a definition that goes was not deleted");
        }
    }
    server.items(custom.kind, "").is_empty()
}
