//! Definitions of kinds that controllers here look after and that the server does not bring
//! along: snapshots of volumes.
//!
//! A definition that is there already stays as it is, whoever brought it.
//!
//! Spec: `snapshot.storage.k8s.io/v1` as upstream's drivers and tools know it.

use std::time::Duration;

use objects::kind;
use runtime::backoff::Backoff;
use runtime::{Client, ClientError, Resource, report};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The definitions, one document each.
const DEFINITIONS: &str = include_str!("definition/snapshot.yaml");
/// The group that is served once they are in force.
const GROUP: &str = "/apis/snapshot.storage.k8s.io/v1";
/// How long it may take until they are; without them snapshots are not looked after.
const LIMIT: Duration = Duration::from_secs(30);

/// Puts the definitions on the server and waits until it serves them; until `stop` at most.
pub(crate) async fn publish(stop: &CancellationToken, client: &Client) {
    let work = async {
        for definition in definitions() {
            put(client, &definition).await;
        }
        let (end, mut backoff) = (Instant::now() + LIMIT, Backoff::default());
        while !is_served(client).await && Instant::now() < end {
            tokio::time::sleep(backoff.step()).await;
        }
    };
    tokio::select! { biased;
        () = stop.cancelled() => (),
        () = work => (),
    }
}

fn definitions() -> Vec<Value> {
    let documents = DEFINITIONS.split("\n---\n");
    documents.filter_map(|text| serde_saphyr::from_str(text).ok()).collect()
}

/// Creates a definition; asks again as long as nobody answers.
async fn put(client: &Client, definition: &Value) {
    let resource = Resource::from(&kind::CUSTOM_RESOURCE_DEFINITION);
    let name = definition.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let mut backoff = Backoff::default();
    loop {
        match client.create(&resource, None, definition).await {
            Ok(_) => {
                info!(name, "definition published");
                return;
            }
            Err(err) if err.status().is_some_and(|said| said.code == 409) => return,
            // A server that does not let us will not let us later.
            Err(err) if err.status().is_some_and(|said| said.code < 500 && said.code != 429) => {
                warn!(name, err = report(&err), "a definition is not taken");
                return;
            }
            Err(_) => tokio::time::sleep(backoff.step()).await,
        }
    }
}

async fn is_served(client: &Client) -> bool {
    let asked: Result<_, ClientError> = client.raw_get(GROUP).await;
    let Ok(answer) = asked else { return false };
    let list: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let all = list.get("resources").and_then(Value::as_array);
    let served = |kind: &objects::Kind| {
        let name = Some(kind.plural);
        all.into_iter().flatten().any(|one| one.get("name").and_then(Value::as_str) == name)
    };
    kind::CUSTOM_KINDS.iter().all(|kind| served(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_we_know_has_its_definition() {
        let all = definitions();
        for kind in kind::CUSTOM_KINDS {
            let one = all.iter().find(|one| one["spec"]["names"]["kind"] == kind.kind).unwrap();
            assert_eq!(one["metadata"]["name"], format!("{}.{}", kind.plural, kind.group));
            assert_eq!(one["spec"]["group"], kind.group);
            assert_eq!(one["spec"]["names"]["plural"], kind.plural);
            assert_eq!(one["spec"]["names"]["singular"], kind.singular);
            let scope = if kind.namespaced { "Namespaced" } else { "Cluster" };
            assert_eq!(one["spec"]["scope"], scope);
            let version = &one["spec"]["versions"][0];
            assert_eq!(version["name"], kind.version);
            assert_eq!(version["subresources"]["status"].is_object(), kind.has_status);
        }
        assert_eq!(all.len(), kind::CUSTOM_KINDS.len());
    }
}
