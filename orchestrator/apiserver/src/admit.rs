//! What built-in admission may look at, and the quotas it charges.

use std::fmt;
use std::sync::Arc;

use api::admission::{Settings, View, quota};
use api::{Attributes, Request, User};
use objects::field::Fields as _;
use objects::{Kind, Status, field, kind};
use serde_json::Value;
use store::{Expect, Item, Write, WriteError};
use tokio::sync::MutexGuard;

use crate::object;
use crate::server::{Server, now};
use crate::storage;

/// How often a quota may change under our hands: only its controller writes it besides.
const ROUNDS_MAX: usize = 8;

impl View for Server {
    fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Value> {
        let item = self.item(kind, namespace, name)?;
        Some(object::decode(&item, item.modified()))
    }

    fn list(&self, kind: &Kind, namespace: &str) -> Vec<Value> {
        let items = self.items(kind, namespace);
        items.iter().map(|item| object::decode(item, item.modified())).collect()
    }

    fn allows(&self, user: &User, attributes: &Attributes) -> bool {
        api::decide(user, attributes, &self.roles.now(self), self).allowed
    }

    fn settings(&self) -> Settings {
        let toleration_seconds = self.toleration_seconds.map(i64::from);
        Settings { toleration_seconds, ..Settings::default() }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("port", &self.port).finish_non_exhaustive()
    }
}

/// Quotas that were charged for a write that is still to come; no other is charged meanwhile.
pub(crate) struct Charge<'a> {
    /// The quotas before and after.
    changed: Vec<(Value, Value)>,
    _guard: MutexGuard<'a, ()>,
}

impl Charge<'_> {
    /// Takes the charge back: the object was not written after all.
    ///
    /// What has changed since its controller counts anew.
    pub(crate) async fn refund(self, server: &Server) {
        for (before, after) in &self.changed {
            let now = quota_item(server, after);
            let ours =
                |item: &Arc<Item>| object::decode(item, 0).get("status") == after.get("status");
            if let Some(item) = now.filter(ours)
                && let Err(err) = store_quota(server, before, &item).await
            {
                tracing::debug!(err = runtime::report(&err), "a quota was not given back");
            }
        }
    }
}

/// Charges a write to the quotas of its namespace; `None` when none counts it.
///
/// # Errors
///
/// 403 when a quota would be exceeded, 409 when they keep changing, 500 when the store fails.
pub(crate) async fn charge<'a>(
    server: &'a Server,
    request: &Request,
    old: Option<&Arc<Item>>,
    new: &Value,
) -> Result<Option<Charge<'a>>, Status> {
    let quotas = || View::list(server, &kind::RESOURCE_QUOTA, &request.namespace);
    if !quota::is_counted(request, old.is_none()) || quotas().is_empty() {
        return Ok(None);
    }
    let old = old.map(|item| object::decode(item, item.modified()));
    let guard = server.quota_writes.lock().await;
    let mut charge = Charge { changed: Vec::new(), _guard: guard };
    for _ in 0..ROUNDS_MAX {
        let before = quotas();
        let after = quota::charge(request, &before, old.as_ref(), new)?;
        if request.options.dry_run || after.is_empty() {
            return Ok(None);
        }
        if write_all(server, &mut charge, &before, after).await? {
            return Ok(Some(charge));
        }
        // Its controller was quicker: all is taken back and counted again.
        let Charge { changed, _guard: guard } = charge;
        Charge { changed, _guard: guard }.refund(server).await;
        let guard = server.quota_writes.lock().await;
        charge = Charge { changed: Vec::new(), _guard: guard };
    }
    Err(Status::conflict(request.kind, &request.name, "its quota keeps changing"))
}

/// Writes all quotas; whether nobody was quicker.
async fn write_all(
    server: &Server,
    charge: &mut Charge<'_>,
    before: &[Value],
    after: Vec<Value>,
) -> Result<bool, Status> {
    let name = |quota: &Value| quota.field("metadata.name").cloned();
    for quota in after {
        let Some(old) = before.iter().find(|old| name(old) == name(&quota)) else { continue };
        let seen = old.field("metadata.resourceVersion").cloned();
        let Some(item) = quota_item(server, old)
            .filter(|item| seen == Some(Value::from(item.modified().to_string())))
        else {
            return Ok(false);
        };
        match store_quota(server, &quota, &item).await {
            Ok(()) => charge.changed.push((old.clone(), quota)),
            Err(WriteError::Conflict { .. }) => return Ok(false),
            Err(err) => return Err(storage::refusal(&err)),
        }
    }
    Ok(true)
}

fn quota_item(server: &Server, quota: &Value) -> Option<Arc<Item>> {
    let text = |key: &str| field::str_at(quota, key).unwrap_or("");
    server.item(&kind::RESOURCE_QUOTA, text("metadata.namespace"), text("metadata.name"))
}

async fn store_quota(server: &Server, quota: &Value, item: &Item) -> Result<(), WriteError> {
    store(server, &kind::RESOURCE_QUOTA, quota, item).await
}

/// Replaces an object if nobody was quicker.
async fn store(
    server: &Server,
    kind: &Kind,
    object: &Value,
    item: &Item,
) -> Result<(), WriteError> {
    let (value, head) = object::render_stored(kind, object);
    let write = Write {
        shelf: server.shelf(kind),
        name: item.name().into(),
        expect: Expect::Revision(item.modified()),
        value: Some(value),
        head: Some(head),
    };
    server.store.write(write).await.map(drop)
}

/// Charges an eviction to the pod's disruption budget, or refuses it.
///
/// # Errors
///
/// As [`api::decide_eviction`]; 409 when the budget keeps changing.
pub(crate) async fn charge_budget(
    server: &Server,
    request: &Request,
    pod: &Value,
) -> Result<(), Status> {
    let kind = &kind::POD_DISRUPTION_BUDGET;
    for _ in 0..ROUNDS_MAX {
        let budgets = View::list(server, kind, &request.namespace);
        let Some(charged) = api::decide_eviction(pod, &budgets, now())? else { return Ok(()) };
        if request.options.dry_run {
            return Ok(());
        }
        let text = |path: &str| field::str_at(&charged, path).unwrap_or("");
        let item = server.item(kind, &request.namespace, text("metadata.name"));
        let seen = text("metadata.resourceVersion");
        let Some(item) = item.filter(|item| item.modified().to_string() == seen) else { continue };
        match store(server, kind, &charged, &item).await {
            Ok(()) => return Ok(()),
            Err(WriteError::Conflict { .. }) => {}
            Err(err) => return Err(storage::refusal(&err)),
        }
    }
    Err(Status::conflict(request.kind, &request.name, "its disruption budget keeps changing"))
}
