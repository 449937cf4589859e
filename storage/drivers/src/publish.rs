//! Which node may use a volume: noted at the image itself, so that every controller reads the same.
//!
//! A node that gives a volume back has unmapped it before. One that has not (it is gone, or cut
//! off) still holds the image's lock or watches it: then those clients are fenced, and only when
//! the monitors have agreed is the volume free for another node.

use std::collections::BTreeMap;

use ceph::{CephError, Place};
use csi::Status;
use csi::message::*;
use serde::{Deserialize, Serialize};

use crate::controller::{check_capability, told};
use crate::images::{Images, Secrets};
use crate::{Driver, required};

/// Under what name the note stands at an image.
const NOTE: &str = "muster.dev/published";
/// How the ids of nodes begin: a controller knows no list of them, but what no node of this driver
/// would say it can tell.
const NODE: &str = "node/";
/// What a node is told when the volume is to be read only.
pub(crate) const READ_ONLY: &str = "readOnly";

/// The id of a node.
pub(crate) fn node_id(name: &str) -> String {
    format!("{NODE}{name}")
}

/// How a node may use a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Use {
    mode: i32,
    read_only: bool,
}

impl Use {
    fn only_reads(&self) -> bool {
        self.read_only
            || [access::SINGLE_NODE_READER_ONLY, access::MULTI_NODE_READER_ONLY]
                .contains(&self.mode)
    }
}

type Holders = BTreeMap<String, Use>;

/// May a node use a volume so, beside those that do?
fn admit(holders: &Holders, node: &str, wanted: &Use) -> Result<(), Status> {
    match holders.get(node) {
        Some(held) if held == wanted => return Ok(()),
        Some(_) => {
            return Err(Status::already_exists("the node has the volume, to be used otherwise"));
        }
        None => {}
    }
    let shared = wanted.mode == access::MULTI_NODE_READER_ONLY;
    match holders.iter().find(|(_, held)| !(shared && held.only_reads())) {
        Some((other, _)) => {
            Err(Status::failed_precondition(format!("the volume is published to {other}")))
        }
        None => Ok(()),
    }
}

impl<I: Images> Driver<I> {
    async fn holders(&self, who: &Secrets, at: &Place) -> Result<Holders, Status> {
        let note = self.images.note(who, at, NOTE).await.map_err(told)?;
        let unread = |err| Status::internal(format!("the note at {} is unread: {err}", at.id()));
        note.map_or(Ok(Holders::new()), |text| serde_json::from_str(&text).map_err(unread))
    }

    async fn set_holders(
        &self,
        who: &Secrets,
        at: &Place,
        holders: &Holders,
    ) -> Result<(), Status> {
        let text = serde_json::to_string(holders).unwrap_or_default();
        let text = (!holders.is_empty()).then_some(&*text);
        self.images.set_note(who, at, NOTE, text).await.map_err(told)
    }

    /// The nodes that may use a volume.
    pub(crate) async fn published(&self, who: &Secrets, at: &Place) -> Result<Vec<String>, Status> {
        Ok(self.holders(who, at).await?.into_keys().collect())
    }

    pub(crate) async fn give(
        &self,
        request: ControllerPublishVolumeRequest,
    ) -> Result<ControllerPublishVolumeResponse, Status> {
        required("volume id", &request.volume_id)?;
        let node = required("node id", &request.node_id)?;
        let missing = || Status::invalid_argument("volume capability missing in request");
        let capability = request.volume_capability.as_ref().ok_or_else(missing)?;
        check_capability(capability)?;
        let _claim = self.claim(&request.volume_id)?;
        let who = &request.secrets;
        let (at, _) = self.find(who, &request.volume_id).await?;
        if node.strip_prefix(NODE).is_none_or(str::is_empty) {
            return Err(Status::not_found(format!("node {node} does not exist")));
        }
        let mode = capability.access_mode.as_ref().map_or(0, |mode| mode.mode);
        let wanted = Use { mode, read_only: request.readonly };
        let mut holders = self.holders(who, &at).await?;
        admit(&holders, node, &wanted)?;
        let read_only = wanted.only_reads();
        if holders.insert(node.to_owned(), wanted).is_none() {
            self.set_holders(who, &at, &holders).await?;
        }
        let publish_context = [(READ_ONLY.to_owned(), read_only.to_string())].into();
        Ok(ControllerPublishVolumeResponse { publish_context })
    }

    pub(crate) async fn take_back(
        &self,
        request: ControllerUnpublishVolumeRequest,
    ) -> Result<Empty, Status> {
        // An id that cannot be ours is held by nobody.
        let Some(at) = Place::parse(required("volume id", &request.volume_id)?) else {
            return Ok(Empty {});
        };
        let _claim = self.claim(&request.volume_id)?;
        let who = &request.secrets;
        match self.images.info(who, &at).await {
            Ok(_) => {}
            Err(CephError::Missing(_)) => return Ok(Empty {}),
            Err(err) => return Err(told(err)),
        }
        let mut holders = self.holders(who, &at).await?;
        // No node named means all of them.
        let named = |node: &String| request.node_id.is_empty() || *node == request.node_id;
        let leaving: Vec<String> = holders.keys().filter(|node| named(node)).cloned().collect();
        if leaving.is_empty() {
            return Ok(Empty {});
        }
        let wrote =
            leaving.iter().filter_map(|node| holders.remove(node)).any(|held| !held.only_reads());
        if wrote {
            for client in self.images.clients(who, &at).await.map_err(told)? {
                self.images.fence(who, &client).await.map_err(told)?;
                tracing::warn!(volume = request.volume_id, client, "fenced");
            }
        }
        self.set_holders(who, &at, &holders).await.map(|()| Empty {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use csi::Code;

    #[test]
    fn one_node_writes_and_many_may_read() {
        let writer = Use { mode: access::SINGLE_NODE_WRITER, read_only: false };
        let reader = Use { mode: access::MULTI_NODE_READER_ONLY, read_only: false };
        let careful = Use { mode: access::SINGLE_NODE_WRITER, read_only: true };
        let held = |held: &Use| Holders::from([("node/a".to_owned(), held.clone())]);
        let check = |held: Holders, node: &str, wanted: &Use, expected: Option<Code>| {
            let found = admit(&held, node, wanted).err().map(|status| status.code());
            assert_eq!(found, expected, "{held:?} {node} {wanted:?}");
        };
        check(Holders::new(), "node/a", &writer, None);
        check(held(&writer), "node/a", &writer, None);
        check(held(&writer), "node/a", &careful, Some(Code::AlreadyExists));
        check(held(&writer), "node/b", &writer, Some(Code::FailedPrecondition));
        check(held(&writer), "node/b", &reader, Some(Code::FailedPrecondition));
        check(held(&reader), "node/b", &writer, Some(Code::FailedPrecondition));
        check(held(&reader), "node/b", &reader, None);
        check(held(&careful), "node/b", &reader, None);
        check(held(&careful), "node/b", &careful, Some(Code::FailedPrecondition));
    }
}
