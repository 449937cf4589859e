//! What this node says about the kernel clients it writes images with, and what the cluster says
//! about images it may write.
//!
//! The order is what keeps a second writer away: the image is attached to this node → it is
//! mapped → its client stands in the node's annotation → it is *still* attached → it is mounted.
//! Whoever takes the attachment away reads the annotation after that, so it knows every client
//! that can ever write.

use std::collections::BTreeMap;
use std::time::Duration;

use kernel::rbd;
use objects::meta::Object;
use objects::storage::{RBD_CLIENTS, VolumeAttachment};
use runtime::client::Patch;
use runtime::{ClientError, resource};
use serde_json::json;
use tokio::time::{Instant, sleep};
use volumes::rbd::Mapped;

use super::RemoteError;
use crate::Shared;

/// How long one try waits for an attachment; the next try comes with back-off.
const ATTACH_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked for meanwhile.
const ATTACH_PACE: Duration = Duration::from_millis(300);

/// Waits until a volume is attached to this node, and gives the attachment's uid.
pub(super) async fn await_attached(shared: &Shared, volume: &str) -> Result<String, RemoteError> {
    let end = Instant::now() + ATTACH_LIMIT;
    loop {
        match attached(shared, volume).await? {
            Ok(uid) => return Ok(uid),
            Err(why) if Instant::now() >= end => {
                return Err(RemoteError::Unattached { name: volume.to_owned(), why });
            }
            Err(_) => sleep(ATTACH_PACE).await,
        }
    }
}

/// Is a volume still attached to this node, by the very attachment that was seen before?
pub(super) async fn check_attached(
    shared: &Shared,
    volume: &str,
    uid: &str,
) -> Result<(), RemoteError> {
    let found = attached(shared, volume).await?;
    let same = |now: String| if now == uid { Ok(()) } else { Err("it was attached anew") };
    found.and_then(same).map_err(|why| RemoteError::Unattached { name: volume.to_owned(), why })
}

/// The uid of the attachment, or why there is none to use.
async fn attached(
    shared: &Shared,
    volume: &str,
) -> Result<Result<String, &'static str>, RemoteError> {
    let failed = |source| RemoteError::Record { name: volume.to_owned(), source };
    let name = VolumeAttachment::name_of_image(volume);
    let found = match shared.client.get(&resource::VOLUME_ATTACHMENTS, None, &name).await {
        Ok(found) => found,
        // A node may read only its own.
        Err(err) if err.is_not_found() || err.status().is_some_and(|said| said.code == 403) => {
            return Ok(Err("it is not attached to this node yet"));
        }
        Err(err) => return Err(failed(err)),
    };
    let found = VolumeAttachment::decode(&found)
        .map_err(|source| failed(ClientError::Decode { path: name, source }))?;
    if found.spec.node_name != shared.node.name {
        return Ok(Err("it is attached to another node"));
    }
    if found.metadata.is_deleting() {
        return Ok(Err("it is being taken away from this node"));
    }
    Ok(Ok(found.metadata.uid))
}

/// Writes into the node's object which client an image is mapped with; asks the API only when
/// that is news.
pub(super) async fn record(shared: &Shared, mapped: &Mapped) -> Result<(), ClientError> {
    tell(shared, Some(mapped)).await
}

/// Tells which images are mapped for writing now, when that is not what was told last.
pub(crate) async fn tell_now(shared: &Shared) -> Result<(), ClientError> {
    tell(shared, None).await
}

async fn tell(shared: &Shared, newest: Option<&Mapped>) -> Result<(), ClientError> {
    // Held until the API has it: a later word must not be overtaken by an earlier one.
    let mut told = shared.disks.told.lock().await;
    let all = rbd::list().into_iter().filter(Mapped::is_writer);
    let mut now: BTreeMap<String, String> = all.map(|one| (image(&one), one.client)).collect();
    if let Some(mapped) = newest {
        now.insert(image(mapped), mapped.client.clone());
    }
    if told.as_ref() == Some(&now) {
        return Ok(());
    }
    let text = serde_json::to_string(&now).map_err(|source| ClientError::Encode { source })?;
    let word = if now.is_empty() { json!(null) } else { json!(text) };
    let patch = Patch::merge(json!({"metadata": {"annotations": {RBD_CLIENTS: word}}}));
    match shared.client.patch(&resource::NODES, None, &shared.node.name, &patch).await {
        // A node that is not registered yet has said nothing that could be wrong.
        Err(err) if err.is_not_found() && newest.is_none() => return Ok(()),
        done => drop(done?),
    }
    *told = Some(now);
    Ok(())
}

fn image(mapped: &Mapped) -> String {
    format!("{}/{}", mapped.pool, mapped.image)
}
