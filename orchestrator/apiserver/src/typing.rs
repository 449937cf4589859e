//! Keeps up what the status of admission policies says of their expressions.
//!
//! Tasks: one watch on the shelf of policies, for as long as the server runs.

use std::time::Duration;

use api::policy::plan_typing;
use objects::kind;
use tokio_util::sync::CancellationToken;

use crate::object;
use crate::server::Server;
use crate::write::replace_own;

/// The user recorded for what the server writes by itself.
const USER: &str = "system:apiserver";
/// How often policies are looked at even when nothing tells of a change.
const BEAT: Duration = Duration::from_secs(60);

/// Follows the shelf of policies until `stop`.
pub(crate) async fn run(stop: CancellationToken, server: &Server) {
    let shelf = server.shelf(&kind::VALIDATING_ADMISSION_POLICY);
    let mut watch = server.store.watch(&shelf, "", server.store.revision());
    loop {
        settle(server).await;
        tokio::select! { biased;
            () = stop.cancelled() => return,
            changes = watch.next() => if changes.is_err() {
                watch = server.store.watch(&shelf, "", server.store.revision());
            },
            () = tokio::time::sleep(BEAT) => {}
        }
    }
}

/// Writes the status of policies that have changed since it was written.
///
/// Cancel safe: what is missing is done by the next call.
async fn settle(server: &Server) {
    let registry = server.customs.registry();
    for item in server.items(&kind::VALIDATING_ADMISSION_POLICY, "") {
        let policy = object::decode(&item, item.modified());
        let Some(planned) = plan_typing(&policy, &registry) else { continue };
        let path = kind::VALIDATING_ADMISSION_POLICY.path(None, Some(item.name()));
        // Someone was quicker, or the disk is full: the watch will wake us again.
        if let Err(status) = replace_own(server, USER, &format!("{path}/status"), &planned).await {
            tracing::debug!(%status, name = item.name(), "a policy's status was not written");
        }
    }
}
