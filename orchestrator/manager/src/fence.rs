//! Takes Ceph images from nodes: asks everyone anew, lets `volumes::attach` decide, and tells the
//! cluster whose writes it must refuse from now on.
//!
//! The view that made somebody ask for a detachment may be old, so the attachment, the node and
//! the volume are read again from the server. What the cluster knows of clients is asked of its
//! own `ceph` and `rbd` programs, with the user and the key that the volume itself names: Ceph's
//! profile for users of images lets them fence other clients.
//!
//! Every fence is noted at the node before the attachment goes, and lifted when the client has
//! ended (`control::attachment::image` says when). Lifting takes the administrator of the volume's
//! class: users of images may only fence.
//!
//! *Limits*: the programs must be where the manager runs. A fence that may not be lifted, or whose
//! node is forgotten, ends after [`FENCE_SECONDS`].

use std::collections::BTreeSet;

use ::ceph::CephError;
use control::action::{Fence, Note, Target};
use control::attachment::image::{CLIENT, Fenced, client_of, fenced, is_silent};
use objects::node::Node;
use objects::storage::{PersistentVolume, VolumeAttachment};
use runtime::client::Patch;
use runtime::{ClientError, Resource, report, resource};
use serde_json::json;
use tracing::{info, warn};
use volumes::attach::{Attachment, Move, Seen, plan_move};

use crate::apply::{Hand, StepError};
use crate::ceph::{AskError, Backing, FENCE_SECONDS, of_class, of_volume};
use crate::hub::Pending;

/// What is known of one attachment, read anew.
struct Known {
    attachment: VolumeAttachment,
    node: Option<Node>,
    volume: Option<PersistentVolume>,
}

/// Takes an image from a node, as far as that can be done now.
pub(crate) async fn detach(
    hand: &Hand,
    by: &'static str,
    target: &Target,
    (node, volume): (&str, &str),
) -> Result<Option<Pending>, StepError> {
    let found: Option<VolumeAttachment> =
        hand.read(&Resource::from(target.kind), &target.name).await?;
    let Some(attachment) = found.filter(|one| one.metadata.uid == target.uid) else {
        return Ok(None);
    };
    let known = Known {
        attachment,
        node: hand.read(&resource::NODES, node).await?,
        volume: hand.read(&resource::PERSISTENT_VOLUMES, volume).await?,
    };
    let silent = is_silent(known.node.as_ref());
    let backing = match (&known.volume, silent) {
        (Some(volume), true) => Some(of_volume(hand, volume).await?),
        // One that answers says itself when it is done; without a volume nobody knows a cluster.
        _ => None,
    };
    let done = carry_out(&known, silent, backing.as_ref()).await;
    match done {
        Ok(Some(fenced)) => {
            for client in &fenced {
                note(hand, &known, client).await?;
                info!(node, volume, client, "fenced");
                let message = format!("Fenced client {client} of silent node {node}");
                hand.events.tell(by, &Note::warning(target, "FencedClient", message));
            }
            let patch = json!({"metadata": {"finalizers": null}});
            let current = Target::of(&known.attachment);
            hand.patch(&current, None, &patch).await
        }
        Ok(None) => Ok(None),
        Err(source) => {
            let source = AskError::Cluster(source);
            let err = StepError::Ceph { volume: volume.to_owned(), source };
            hand.events.tell(by, &Note::warning(target, "FailedDetachVolume", report(&err)));
            warn!(node, volume, err = report(&err), "cannot take an image from a silent node");
            Err(err)
        }
    }
}

/// Notes a fence at the node, if there still is one.
async fn note(hand: &Hand, known: &Known, client: &str) -> Result<(), ClientError> {
    let (Some(node), Some(volume)) = (&known.node, &known.volume) else { return Ok(()) };
    let named = known.seen(true, BTreeSet::new()).attachment.and_then(|one| one.client);
    let one = Fenced {
        client: client.to_owned(),
        volume: volume.metadata.name.clone(),
        boot: node.status.node_info.boot_id.clone().unwrap_or_default(),
        named: named.as_deref() == Some(client),
    };
    if fenced(node).contains_key(&one.key()) {
        return Ok(());
    }
    let text = serde_json::to_string(&one).map_err(|source| ClientError::Encode { source })?;
    let patch = Patch::merge(json!({"metadata": {"annotations": {one.key(): text}}}));
    match hand.client.patch(&resource::NODES, None, &node.metadata.name, &patch).await {
        Err(err) if !err.is_not_found() => Err(err),
        _ => Ok(()),
    }
}

/// Lifts fences of clients that have ended, and forgets them.
pub(crate) async fn lift(
    hand: &Hand,
    by: &'static str,
    target: &Target,
    fences: &[Fence],
) -> Result<Option<Pending>, StepError> {
    let mut gone = serde_json::Map::new();
    for fence in fences {
        let Fence { key, client, volume } = fence;
        let found: Option<PersistentVolume> =
            hand.read(&resource::PERSISTENT_VOLUMES, volume).await?;
        let lifted = match &found {
            Some(found) => {
                let class = &found.spec.storage_class_name;
                of_class(hand, found, class).await?.cluster.unfence(client).await
            }
            None => Err(CephError::Missing(format!("volume {volume}, by which it was known"))),
        };
        match lifted {
            Ok(()) => info!(node = target.name, client, "fence lifted"),
            // Asking again would change nothing: the fence ends by itself.
            Err(err @ (CephError::Denied(_) | CephError::Missing(_))) => {
                let message = format!("The fence of client {client} stays: {}", report(&err));
                hand.events.tell(by, &Note::warning(target, "FenceStays", message));
            }
            Err(source) => {
                let source = AskError::Cluster(source);
                return Err(StepError::Ceph { volume: volume.clone(), source });
            }
        }
        gone.insert(key.clone(), json!(null));
    }
    let patch = Patch::merge(json!({"metadata": {"annotations": gone}}));
    match hand.client.patch(&resource::NODES, None, &target.name, &patch).await {
        Err(err) if !err.is_not_found() => Err(err.into()),
        _ => Ok(None),
    }
}

/// Does what is planned; the clients that were fenced when the attachment may go, `None` when
/// there is something to wait for.
async fn carry_out(
    known: &Known,
    silent: bool,
    backing: Option<&Backing>,
) -> Result<Option<BTreeSet<String>>, CephError> {
    // After the attachment was closed nothing new can begin to write: once is enough.
    let watchers = match backing {
        Some(Backing { cluster, place }) => cluster.clients(place).await?,
        None => BTreeSet::new(),
    };
    let mut seen = known.seen(silent, watchers);
    loop {
        match plan_move(&seen) {
            Some(Move::Detach) => return Ok(Some(seen.fenced)),
            Some(Move::Fence(client)) => {
                let Some(Backing { cluster, .. }) = backing else { return Ok(None) };
                cluster.fence(&client, FENCE_SECONDS).await?;
                seen.fenced.insert(client);
            }
            // The controller closes and opens; here is only the way out.
            Some(Move::Close | Move::Attach(_)) | None => return Ok(None),
        }
    }
}

impl Known {
    fn seen(&self, silent: bool, watchers: BTreeSet<String>) -> Seen {
        let image = self.volume.as_ref().and_then(PersistentVolume::rbd_image);
        let said = self.node.as_ref().zip(image).and_then(|(node, image)| client_of(node, &image));
        let before = self.attachment.status.attachment_metadata.get(CLIENT).cloned();
        let attachment = Attachment {
            node: self.attachment.spec.node_name.clone(),
            client: said.clone().or(before.clone()),
            closing: self.attachment.metadata.is_deleting(),
            // It records a client before it writes and takes the record back after it unmapped.
            released: !silent && said.is_none(),
        };
        // A client that the node named once and no longer names may be one it has lost sight of.
        let watchers = watchers.into_iter().chain(before.filter(|_| silent)).collect();
        let fenced = BTreeSet::new();
        Seen { wanted: None, attachment: Some(attachment), alive: !silent, watchers, fenced }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn known(said: Option<&str>, before: Option<&str>) -> Known {
        let decode = |value: Value| serde_json::from_value(value).unwrap();
        let annotations = said.map_or(
            json!({}),
            |client| json!({objects::storage::RBD_CLIENTS: json!({"rbd/i": client}).to_string()}),
        );
        let metadata = before.map_or(json!({}), |client| json!({ CLIENT: client }));
        Known {
            attachment: decode(json!({
                "metadata": {"name": "rbd-v", "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"nodeName": "a"}, "status": {"attachmentMetadata": metadata},
            })),
            node: Some(
                serde_json::from_value(
                    json!({"metadata": {"name": "a", "annotations": annotations}}),
                )
                .unwrap(),
            ),
            volume: Some(
                serde_json::from_value(
                    json!({"metadata": {"name": "v"}, "spec": {"rbd": {"image": "i"}}}),
                )
                .unwrap(),
            ),
        }
    }

    /// What is fenced before the attachment goes; `None` when there is something to wait for.
    fn fenced(known: &Known, silent: bool, watchers: &[&str]) -> Option<Vec<String>> {
        let mut seen = known.seen(silent, watchers.iter().map(|one| (*one).to_owned()).collect());
        loop {
            match plan_move(&seen)? {
                Move::Detach => return Some(seen.fenced.into_iter().collect()),
                Move::Fence(client) => _ = seen.fenced.insert(client),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn who_answers_is_waited_for_and_who_is_silent_is_fenced() {
        let writes = known(Some("10.0.0.9:0/7"), Some("10.0.0.9:0/7"));
        assert_eq!(fenced(&writes, false, &[]), None);
        assert_eq!(fenced(&known(None, Some("10.0.0.9:0/7")), false, &[]), Some(vec![]));
        assert_eq!(fenced(&writes, true, &[]).unwrap(), ["10.0.0.9:0/7"]);
        let both = ["10.0.0.9:0/7", "10.0.0.9:0/8"];
        assert_eq!(fenced(&writes, true, &["10.0.0.9:0/8"]).unwrap(), both);
        let lost = known(Some("10.0.0.9:0/8"), Some("10.0.0.9:0/7"));
        assert_eq!(fenced(&lost, true, &[]).unwrap(), both, "its own word may be newer or older");
        let unheard = known(None, None);
        assert_eq!(fenced(&unheard, true, &["10.0.0.9:0/8"]).unwrap(), ["10.0.0.9:0/8"]);
    }
}
