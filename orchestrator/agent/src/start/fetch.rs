//! Fetches what a pod's volumes and variables are made of; what the API answers comes side by side.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::try_join_all;
use node::env::Sources;
use objects::pod::Pod;
use objects::storage::{PersistentVolume, PersistentVolumeClaim};
use runtime::{ClientError, resource};
use serde::de::DeserializeOwned;
use volumes::{Problem, Source};

use crate::Shared;

/// Follows the claims of the pod's volumes to what they have.
pub(super) async fn claims(
    shared: &Shared,
    pod: &Pod,
) -> Result<BTreeMap<String, Result<Source, Problem>>, ClientError> {
    let mut found = BTreeMap::new();
    for wanted in volumes::claim::wanted(pod) {
        let namespace = &pod.metadata.namespace;
        let claim: Option<PersistentVolumeClaim> =
            get(shared, &resource::PERSISTENT_VOLUME_CLAIMS, namespace, &wanted.claim).await?;
        let source = match volumes::claim::bound_to(pod, &wanted, claim.as_ref()) {
            Err(problem) => Err(problem),
            Ok(name) => {
                let volume: Option<PersistentVolume> =
                    get(shared, &resource::PERSISTENT_VOLUMES, "", &name).await?;
                let claim = claim.unwrap_or_default();
                volumes::claim::source_of(&wanted, &claim, volume.as_ref())
            }
        };
        found.insert(wanted.volume, source);
    }
    Ok(found)
}

/// Fetches every config map and secret the pod refers to; one that is absent is left out.
pub(super) async fn fetch(shared: &Shared, pod: &Pod) -> Result<Sources, ClientError> {
    let (files, env) = (volumes::references(pod), node::env::references(pod));
    let namespace = &pod.metadata.namespace;
    let kinds = (resource::CONFIG_MAPS, resource::SECRETS);
    let (config_maps, secrets) = tokio::try_join!(
        get_all(shared, &kinds.0, namespace, &files.config_maps | &env.config_maps),
        get_all(shared, &kinds.1, namespace, &files.secrets | &env.secrets),
    )?;
    Ok(Sources { config_maps, secrets })
}

/// Fetches objects side by side; one that is absent is left out.
async fn get_all<T: DeserializeOwned>(
    shared: &Shared,
    resource: &resource::Resource,
    namespace: &str,
    names: BTreeSet<String>,
) -> Result<BTreeMap<String, T>, ClientError> {
    let one = |name: String| async move {
        let found: Option<T> = get(shared, resource, namespace, &name).await?;
        Ok::<_, ClientError>((name, found))
    };
    let found = try_join_all(names.into_iter().map(one)).await?;
    Ok(found.into_iter().filter_map(|(name, found)| Some((name, found?))).collect())
}

async fn get<T: DeserializeOwned>(
    shared: &Shared,
    resource: &resource::Resource,
    namespace: &str,
    name: &str,
) -> Result<Option<T>, ClientError> {
    match shared.client.get(resource, Some(namespace), name).await {
        Ok(value) => {
            let path = format!("{namespace}/{name}");
            let decoded = serde_json::from_value(value);
            decoded.map(Some).map_err(|source| ClientError::Decode { path, source })
        }
        Err(err) if err.is_not_found() => Ok(None),
        Err(err) => Err(err),
    }
}
