//! Which node may have a volume with one writer, and how it moves: never two writers, never
//! stuck.
//!
//! Two sides work on one record, the attachment, which the API keeps and changes only for a
//! writer that has seen its latest version. The *controller* ([`plan_move`]) gives the volume to
//! a node and takes it back. The *node* ([`plan_node`]) maps, records the kernel client it
//! mapped with, and only then mounts. A node that answers gives the volume back by itself. One
//! that is silent is fenced: every client that is recorded, and every one that watches the image
//! now, is blocklisted, and only after the cluster has acknowledged that does the record go.
//!
//! Why that is enough: a client writes only after it was recorded; a record leaves only after
//! its client ended or was fenced; and whoever maps after the acknowledgement makes the storage
//! know of the fence before it is served. A client that mapped but is not yet recorded never
//! writes: its record is refused, because the record it knew is gone or being closed.
//!
//! The tests walk through every order of the steps of controller and nodes, with crashes, lost
//! links and restarts between any two of them.

use std::collections::BTreeSet;

/// A kernel client as the cluster knows it: address and nonce.
pub type Client = String;

/// The record of who has a volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The node that may map it.
    pub node: String,
    /// The client it mapped with; written by the node before it mounts.
    pub client: Option<Client>,
    /// The volume is to leave the node; nothing may be recorded any more.
    pub closing: bool,
    /// The node has unmapped it; written by the node.
    pub released: bool,
}

/// What the controller sees of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The node whose pods want it.
    pub wanted: Option<String>,
    /// The record.
    pub attachment: Option<Attachment>,
    /// The node of the record has a live lease.
    pub alive: bool,
    /// Clients that watch the image now.
    pub watchers: BTreeSet<Client>,
    /// Clients whose fence the cluster has acknowledged.
    pub fenced: BTreeSet<Client>,
}

/// A step of the controller.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Move {
    /// Makes the record for a node.
    Attach(String),
    /// Marks the record as closing.
    Close,
    /// Fences a client and waits for the acknowledgement.
    Fence(Client),
    /// Deletes the record.
    Detach,
}

/// Plans the controller's next step for one volume; `None` when there is nothing to do but wait.
///
/// Every change of the record must be refused by the API when the record is not the one seen.
#[must_use]
pub fn plan_move(seen: &Seen) -> Option<Move> {
    let Some(attachment) = &seen.attachment else {
        return seen.wanted.clone().map(Move::Attach);
    };
    if !attachment.closing {
        let stays = seen.wanted.as_ref() == Some(&attachment.node);
        return (!stays).then_some(Move::Close);
    }
    if attachment.released {
        return Some(Move::Detach);
    }
    if seen.alive {
        return None;
    }
    let clients = attachment.client.iter().chain(&seen.watchers);
    let open = clients.into_iter().find(|client| !seen.fenced.contains(*client));
    Some(open.map_or(Move::Detach, |client| Move::Fence(client.clone())))
}

/// What a node sees of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// This node.
    pub node: String,
    /// A pod here wants it.
    pub wanted: bool,
    /// The record as last read from the API.
    pub attachment: Option<Attachment>,
    /// The client of the mapping that is here.
    pub mapped: Option<Client>,
    /// The mapping's file system is mounted, or its device given to a pod.
    pub mounted: bool,
    /// The mapping's client is known to be fenced: its writes fail.
    pub dead: bool,
}

/// A step of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Maps the image.
    Map,
    /// Writes the mapping's client into the record; when refused, nothing was done.
    Record,
    /// Mounts it for pods.
    Mount,
    /// Stops its pods and takes the mount away.
    Unmount,
    /// Ends the mapping.
    Unmap,
    /// Writes into the record that nothing is mapped here any more.
    Release,
}

/// Plans a node's next step for one volume; `None` when there is nothing to do but wait.
#[must_use]
pub fn plan_node(held: &Held) -> Option<Step> {
    let own = held.attachment.as_ref().filter(|record| record.node == held.node);
    let open = own.filter(|record| !record.closing);
    let keep = held.wanted && open.is_some() && !held.dead;
    match (&held.mapped, held.mounted) {
        (Some(_), true) if keep && open.is_some_and(|record| record.client == held.mapped) => None,
        (_, true) => Some(Step::Unmount),
        (Some(_), false) if !keep => Some(Step::Unmap),
        (Some(_), false) if open.is_some_and(|record| record.client == held.mapped) => {
            Some(Step::Mount)
        }
        (Some(_), false) => Some(Step::Record),
        (None, false) if keep => Some(Step::Map),
        (None, false) => own.filter(|one| one.closing && !one.released).map(|_| Step::Release),
    }
}

#[cfg(test)]
mod tests;
