//! Makes, grows and deletes the Ceph images of volumes, and tells the API afterwards.

use control::action::{ImageWork, Note, Target};
use control::image_provisioner::PROVISIONER;
use objects::kind;
use objects::meta::Object;
use objects::storage::{PersistentVolume, StorageClass};
use runtime::client::DeleteParams;
use runtime::{ClientError, Resource, report, resource};
use serde_json::json;
use tracing::info;

use crate::apply::{Hand, StepError, overtaken};
use crate::ceph::Cluster;
use crate::hub::Pending;

/// Does one piece of work on an image; asking twice is no failure.
pub(crate) async fn carry_out(
    hand: &Hand,
    by: &'static str,
    (target, class): (&Target, &str),
    work: &ImageWork,
) -> Result<Option<Pending>, StepError> {
    let done = attempt(hand, by, (target, class), work).await;
    if let Err(err) = &done {
        let reason = match work {
            ImageWork::Make { .. } => "ProvisioningFailed",
            ImageWork::Grow { .. } => "VolumeResizeFailed",
            ImageWork::Delete => "VolumeFailedDelete",
        };
        hand.events.tell(by, &Note::warning(target, reason, report(err)));
    }
    done
}

async fn attempt(
    hand: &Hand,
    by: &'static str,
    (target, class): (&Target, &str),
    work: &ImageWork,
) -> Result<Option<Pending>, StepError> {
    let class: Option<StorageClass> =
        hand.read(&Resource::from(&kind::STORAGE_CLASS), class).await?;
    // A volume may outlive its class; then its own user must do.
    let parameters = class.map(|class| class.parameters).unwrap_or_default();
    let volume = match work {
        ImageWork::Make { volume, .. } => {
            let failed = |source| ClientError::Decode { path: target.name.clone(), source };
            PersistentVolume::decode(volume).map_err(failed)?
        }
        ImageWork::Grow { .. } | ImageWork::Delete => {
            match hand.read(&resource::PERSISTENT_VOLUMES, &target.name).await? {
                Some(volume) => volume,
                None => return Ok(None),
            }
        }
    };
    let cluster = if parameters.is_empty() {
        Cluster::of_volume(hand, &volume).await?
    } else {
        Cluster::of_class(hand, &volume, &parameters).await?
    };
    let name = volume.metadata.name.clone();
    let refused = |source| StepError::Ceph { volume: name.clone(), source };
    match work {
        ImageWork::Make { volume: object, bytes } => {
            cluster.make(*bytes).await.map_err(refused)?;
            let made = hand.client.create(&resource::PERSISTENT_VOLUMES, None, object).await;
            if overtaken(made)?.is_some() {
                info!(volume = name, bytes, "image made");
                let message = format!("Successfully provisioned volume {name} using {PROVISIONER}");
                hand.events.tell(by, &Note::normal(target, "ProvisioningSucceeded", message));
            }
            Ok(None)
        }
        ImageWork::Grow { claim, bytes } => {
            cluster.grow(*bytes).await.map_err(refused)?;
            let capacity = json!({"storage": format!("{}Mi", bytes >> 20)});
            let body = json!({"spec": {"capacity": capacity}});
            let done = hand.patch(target, None, &body).await?;
            let body = json!({"status": {"capacity": capacity}});
            hand.patch(claim, Some("status"), &body).await?;
            info!(volume = name, bytes, "image grown");
            let message = format!("Volume {name} has grown; its file system follows when mounted");
            hand.events.tell(by, &Note::normal(claim, "VolumeResizeSuccessful", message));
            Ok(done)
        }
        ImageWork::Delete => {
            cluster.delete().await.map_err(refused)?;
            let params = DeleteParams::uid(&target.uid);
            overtaken(
                hand.client
                    .delete(&resource::PERSISTENT_VOLUMES, None, &target.name, &params)
                    .await,
            )?;
            info!(volume = name, "image deleted");
            Ok(None)
        }
    }
}
