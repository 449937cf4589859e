//! Where objects are kept, and what the state of that place means for clients: how fresh an
//! answer is, whether the server is ready, and why a write was refused.

use api::{Request, Verb};
use objects::Status;
use store::{EtcdOptions, Store, SyncError, Trouble, WriteError};

use crate::respond::{self, Answer};
use crate::{Config, RunError};

/// Where the objects are kept.
#[derive(Debug, Clone, Default)]
pub enum Storage {
    /// In a file of the data directory; for a single server.
    #[default]
    Embedded,
    /// In an etcd cluster, which several servers may share.
    Etcd(EtcdOptions),
}

pub(crate) async fn open(config: &Config) -> Result<Store, RunError> {
    match &config.storage {
        Storage::Embedded => {
            Ok(Store::open(&store::Options { dir: config.data_dir.join("store") })?)
        }
        Storage::Etcd(options) => Ok(Store::connect(options).await?),
    }
}

/// Makes sure that a request meets all that its client can have seen, on whichever server.
///
/// # Errors
///
/// When the store does not say in time what is newest.
pub(crate) async fn freshen(store: &Store, request: &Request) -> Result<(), Status> {
    let reads = matches!(request.verb, Verb::Get | Verb::List | Verb::Watch);
    let version = request.options.resource_version.as_str();
    // A version that is no number is refused by who reads it.
    let ahead = version.parse::<u64>().is_ok_and(|version| version > store.revision());
    if !reads || version.is_empty() || ahead {
        store.sync().await.map_err(|err| stale(&err))?;
    }
    Ok(())
}

fn stale(err: &SyncError) -> Status {
    Status::timeout(runtime::report(err), 1)
}

/// What a client is told whose write the store did not take.
pub(crate) fn refusal(err: &WriteError) -> Status {
    let said = runtime::report(err);
    match err {
        WriteError::Full(_) => Status::failure(507, "InsufficientStorage", said),
        WriteError::TooLarge(_) => Status::too_large(said),
        // It may have happened or not, and so the client must look.
        WriteError::Storage(_) => Status::timeout(said, 1),
        WriteError::Conflict { .. } | WriteError::Closed => Status::internal(said),
    }
}

/// Answers `/healthz`, `/livez` and `/readyz`.
pub(crate) fn health(store: &Store, path: &str) -> Answer {
    let kind = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    // A server that can be read is alive, though not ready: killing it would mend nothing.
    let trouble = store.trouble().filter(|trouble| kind == "readyz" || *trouble == Trouble::Failed);
    match trouble {
        None => respond::text(200, "ok"),
        Some(trouble) => {
            let text = format!("[+]ping ok\n[-]store failed: {trouble}\n{kind} check failed\n");
            respond::text(500, text)
        }
    }
}
