//! Which cluster is behind a volume, and as whom it may be asked.
//!
//! A volume names a user for nodes, who may write and fence; its class names an administrator,
//! who may also delete and lift fences. Where there is no class the volume's user must do.

use std::collections::BTreeMap;

use ::ceph::{CephError, Cluster, Place};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use objects::config::Secret;
use objects::meta::Object as _;
use objects::storage::{PersistentVolume, StorageClass};
use runtime::{Resource, report, resource};
use serde_json::Value;
use thiserror::Error;
use volumes::rbd::parse_rbd;
use volumes::remote::SecretName;

use crate::apply::{Hand, StepError};

/// How long a fenced client stays fenced: longer than any machine is forgotten and found again.
pub(crate) const FENCE_SECONDS: u32 = 365 * 24 * 3600;

/// Why a cluster did not do what was asked.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// The volume says too little about its cluster.
    #[error("volume {volume} names no cluster that can be asked: {why}")]
    Unclear {
        /// Which.
        volume: String,
        /// What is wrong with it.
        why: String,
    },
    /// The cluster or its program refuses.
    #[error("the cluster refuses")]
    Cluster(#[from] CephError),
}

/// An image, with the cluster it is in as somebody who may ask for it.
pub(crate) struct Backing {
    /// The cluster.
    pub(crate) cluster: Cluster,
    /// The image.
    pub(crate) place: Place,
}

/// What is behind a volume, as the user the volume names.
pub(crate) async fn of_volume(
    hand: &Hand,
    volume: &PersistentVolume,
) -> Result<Backing, StepError> {
    let name = &volume.metadata.name;
    let source = volume.spec.rbd.as_ref().unwrap_or(&Value::Null);
    let image = parse_rbd(source).map_err(|err| unclear(name, report(&err)))?;
    let own = volume.spec.claim_ref.as_ref().map(|claim| claim.namespace.as_str());
    let key = key(hand, name, image.secret.as_ref(), own.unwrap_or_default()).await?;
    let (monitors, user) = (image.monitors, Some(image.user));
    let place = Place { pool: image.pool, image: image.image, snap: None };
    Ok(Backing { cluster: Cluster { conf: None, monitors, user, key }, place })
}

/// The same, as the administrator whom the volume's class names, if there is one.
pub(crate) async fn of_class(
    hand: &Hand,
    volume: &PersistentVolume,
    class: &str,
) -> Result<Backing, StepError> {
    let parameters = parameters(hand, class).await?;
    if parameters.is_empty() {
        return of_volume(hand, volume).await;
    }
    let name = &volume.metadata.name;
    let source = volume.spec.rbd.as_ref().unwrap_or(&Value::Null);
    let image = parse_rbd(source).map_err(|err| unclear(name, report(&err)))?;
    let place = Place { pool: image.pool, image: image.image, snap: None };
    let cluster = administrator(hand, name, &parameters, image.monitors).await?;
    Ok(Backing { cluster, place })
}

/// The cluster of a snapshot: that of its class, or else of the volume it is of.
pub(crate) async fn of_snapshot(
    hand: &Hand,
    class: &str,
    volume: &str,
) -> Result<Cluster, StepError> {
    let parameters = parameters(hand, class).await?;
    let monitors = parameters.get("monitors").map(String::as_str).unwrap_or_default();
    let monitors: Vec<String> = monitors.split(',').map(|one| one.trim().to_owned()).collect();
    if monitors.iter().any(|one| !one.is_empty()) {
        return administrator(hand, volume, &parameters, monitors).await;
    }
    let found: Option<PersistentVolume> = hand.read(&resource::PERSISTENT_VOLUMES, volume).await?;
    let gone = || unclear(volume, "neither it nor a class that names monitors is there".to_owned());
    of_volume(hand, &found.ok_or_else(gone)?).await.map(|backing| backing.cluster)
}

/// The parameters of a class; none where there is no such class.
async fn parameters(hand: &Hand, class: &str) -> Result<BTreeMap<String, String>, StepError> {
    if class.is_empty() {
        return Ok(BTreeMap::new());
    }
    let found: Option<StorageClass> = hand.read(&Resource::from(StorageClass::KIND), class).await?;
    Ok(found.map(|class| class.parameters).unwrap_or_default())
}

async fn administrator(
    hand: &Hand,
    volume: &str,
    parameters: &BTreeMap<String, String>,
    monitors: Vec<String>,
) -> Result<Cluster, StepError> {
    let given = |name: &str| parameters.get(name).filter(|value| !value.is_empty());
    let secret = given("adminSecretName").map(|name| SecretName {
        namespace: given("adminSecretNamespace").map_or("default", String::as_str).to_owned(),
        name: name.clone(),
    });
    let key = key(hand, volume, secret.as_ref(), "default").await?;
    let user = Some(given("adminId").map_or("admin", String::as_str).to_owned());
    Ok(Cluster { conf: None, monitors, user, key })
}

fn unclear(volume: &str, why: String) -> StepError {
    let source = AskError::Unclear { volume: volume.to_owned(), why };
    StepError::Ceph { volume: volume.to_owned(), source }
}

/// The key in a secret, as text; `None` when none is named.
async fn key(
    hand: &Hand,
    volume: &str,
    secret: Option<&SecretName>,
    own: &str,
) -> Result<Option<String>, StepError> {
    let Some(SecretName { namespace, name }) = secret else { return Ok(None) };
    let namespace = if namespace.is_empty() { own } else { namespace };
    let found = hand.client.get(&resource::SECRETS, Some(namespace), name).await?;
    let found: Secret =
        serde_json::from_value(found).map_err(|err| unclear(volume, report(&err)))?;
    let value = found.data.get("key").or_else(|| found.data.values().next_back());
    let text = value.and_then(|value| STANDARD.decode(value).ok());
    let text = text.and_then(|text| String::from_utf8(text).ok());
    let text = text.ok_or_else(|| unclear(volume, format!("secret {name} holds no key")))?;
    Ok(Some(text.trim().to_owned()))
}
