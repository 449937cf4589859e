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

/// What a server's health is made of, as its checks are called.
const CHECKS: &[&str] = &["ping", "log", "store"];

/// Answers `/healthz`, `/livez` and `/readyz`, and single checks below them.
///
/// `?verbose` lists the checks, `?exclude=NAME` leaves one out.
pub(crate) fn health(store: &Store, path: &str, query: &str) -> Answer {
    let mut words = path.trim_matches('/').split('/');
    let kind = words.next().unwrap_or_default();
    let single = words.next().filter(|word| !word.is_empty());
    if single.is_some_and(|single| !CHECKS.contains(&single)) {
        return respond::text(404, "404 page not found\n");
    }
    let options: Vec<(&str, &str)> =
        query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    let verbose = options.iter().any(|(key, _)| *key == "verbose");
    // A server that can be read is alive, though not ready: killing it would mend nothing.
    let trouble = store.trouble().filter(|trouble| kind == "readyz" || *trouble == Trouble::Failed);
    let mut lines = String::new();
    let mut failed = false;
    let excluded = |check: &str| options.contains(&("exclude", check));
    for check in CHECKS.iter().filter(|check| single.is_none_or(|single| single == **check)) {
        lines += &match &trouble {
            _ if excluded(check) => format!("[+]{check} excluded: ok\n"),
            Some(trouble) if *check == "store" => {
                failed = true;
                format!("[-]{check} failed: {trouble}\n")
            }
            _ => format!("[+]{check} ok\n"),
        };
    }
    match (failed, verbose) {
        (true, _) => respond::text(500, format!("{lines}{kind} check failed\n")),
        (false, true) => respond::text(200, format!("{lines}{kind} check passed\n")),
        (false, false) => respond::text(200, "ok"),
    }
}
