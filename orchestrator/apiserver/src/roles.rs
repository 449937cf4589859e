//! The compiled roles and bindings, as fresh as the store.
//!
//! Who writes a binding may use it with the next request: every change of a role marks what is
//! compiled as old, and the first decision after it compiles anew.
//!
//! Tasks: one that hears of changes which other servers of the same store made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use api::authority::rbac::Rbac;
use objects::{Kind, kind};
use tokio_util::sync::CancellationToken;

use crate::fair;
use crate::object;
use crate::server::Server;

/// The kinds that decide.
const KINDS: [&Kind; 4] =
    [&kind::CLUSTER_ROLE, &kind::CLUSTER_ROLE_BINDING, &kind::ROLE, &kind::ROLE_BINDING];

/// What is compiled, and whether it is out of date.
#[derive(Debug)]
pub(crate) struct Roles {
    old: AtomicBool,
    compiled: RwLock<Arc<Rbac>>,
}

impl Default for Roles {
    fn default() -> Self {
        Self { old: AtomicBool::new(true), compiled: RwLock::default() }
    }
}

impl Roles {
    /// Notes that an object of this kind was written.
    pub(crate) fn written(&self, kind: &Kind) {
        if KINDS.contains(&kind) {
            self.old.store(true, Ordering::Release);
        }
    }

    /// The roles as they are now.
    pub(crate) fn now(&self, server: &Server) -> Arc<Rbac> {
        if self.old.load(Ordering::Acquire) {
            let mut compiled = self.compiled.write().unwrap_or_else(PoisonError::into_inner);
            // Whoever comes second waits for the lock and finds it done.
            if self.old.swap(false, Ordering::AcqRel) {
                *compiled = Arc::new(compile(server));
            }
        }
        Arc::clone(&self.compiled.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn compile(server: &Server) -> Rbac {
    let objects: Vec<_> = KINDS
        .iter()
        .flat_map(|kind| server.items(kind, ""))
        .map(|item| object::decode(&item, item.modified()))
        .collect();
    Rbac::compile(&objects)
}

/// Marks roles, flows and levels as old when anybody writes one, until `stop`.
pub(crate) async fn follow(stop: CancellationToken, server: &Server) {
    let kinds = KINDS.into_iter().chain(fair::KINDS);
    let following = futures_util::future::join_all(kinds.map(|kind| async move {
        loop {
            let shelf = server.shelf(kind);
            let mut watch = server.store.watch(&shelf, "", server.store.revision());
            // What was written before the watch began is marked too.
            server.written(kind);
            while watch.next().await.is_ok() {
                server.written(kind);
            }
        }
    }));
    let _stopped = stop.run_until_cancelled(following).await;
}
