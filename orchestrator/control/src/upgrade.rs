//! Brings every node to a release of the node image, a few at a time.
//!
//! A [`NodeImage`] whose spec has a `rollout` is to run on the nodes that the rollout selects; the
//! youngest such image is the one that counts. A node that runs another one is emptied (`drain`),
//! asked to restart, and given back once it is ready with the right image. Workers go first, then
//! masters one by one; together no more nodes are missing than the rollout allows, those that are
//! missing for other reasons included. The first node that comes back with the wrong image, or not
//! at all, stops the rollout until a person has looked.
//!
//! What a node runs is read from its own status: `Muster VERSION` at the beginning of `osImage`,
//! and `kubeletVersion` where the image names its agent. *Limits*: which image a machine gets when
//! it boots is the boot server's business.

mod status;

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::condition::find_condition;
use objects::machine::NodeImage;
use objects::node::Node;
use objects::selector::Selector;
use objects::{LabelSelector, Time};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::action::{Action, Note, Steps, Target};
use crate::drain;
use crate::view::{Key, View};
use crate::wake::{Touch, node_matters};

/// Annotation of nodes that are being brought to an image: its name.
pub const UPGRADE: &str = "muster.dev/upgrade";
/// Annotation of such nodes: since when.
const SINCE: &str = "muster.dev/upgrade-since";
/// Annotation by which a node is asked to restart: the id of the boot that shall end, so that
/// nobody restarts twice.
pub const RESTART: &str = "muster.dev/restart";
/// Labels of nodes that carry the control plane.
const MASTER: [&str; 2] =
    ["node-role.kubernetes.io/master", "node-role.kubernetes.io/control-plane"];
/// How long a node may take from its draining to its return.
const DEADLINE: i64 = 1800;

/// What is read of an image's spec.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Release {
    version: String,
    agent_version: String,
    rollout: Option<Rollout>,
}

/// How an image is brought to the nodes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Rollout {
    /// No further node begins.
    paused: bool,
    /// Nodes that may be missing at a time: a number, or a share of all such as `10%`; 1 unless said.
    max_unavailable: Value,
    /// Which nodes; all unless said.
    selector: Option<LabelSelector>,
    /// Are pods ended that nobody will make anew?
    force: bool,
    /// How long a node must be ready before the next may go.
    min_ready_seconds: i64,
    /// How long one node may take; half an hour unless said.
    node_deadline_seconds: Option<i64>,
}

/// The only key: nodes are shared between all images.
fn site() -> Key {
    Key::new("", "")
}

/// The key, if there is any image or anything left of one.
#[must_use]
pub fn keys(view: &View) -> Vec<Key> {
    let marked = |node: &Arc<Node>| node.metadata.annotation(UPGRADE).is_some();
    let any = !view.node_images.is_empty() || view.nodes.iter().any(marked);
    if any { vec![site()] } else { Vec::new() }
}

/// The key, when an image changed.
#[must_use]
pub fn of_image(_view: &View, _touch: &Touch) -> Vec<Key> {
    vec![site()]
}

/// The key, when anything about a node changed but its heartbeat.
#[must_use]
pub fn of_node(view: &View, touch: &Touch) -> Vec<Key> {
    let mut sides = touch.typed::<Node>();
    let (before, after) = (sides.next(), sides.next());
    let same = before.zip(after).is_some_and(|(before, after)| {
        before.metadata.annotations == after.metadata.annotations
            && before.status.node_info == after.status.node_info
    });
    if same && !node_matters(touch) { Vec::new() } else { keys(view) }
}

/// How far a node is on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// Runs the image.
    Updated,
    /// Runs another one, and nothing is done about it yet.
    Outdated,
    /// On its way.
    Updating,
    /// Something went wrong on the way; what, in words.
    Stuck(String),
}

/// A node under the image that counts.
struct Guest<'a> {
    node: &'a Arc<Node>,
    stage: Stage,
}

/// Plans the steps for all nodes and images.
#[must_use]
pub fn reconcile(view: &View, _key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let wanted = wanted(view);
    let name = wanted.as_ref().map(|(image, ..)| image.metadata.name.as_str());
    for node in view.nodes.iter().filter(|node| !node.metadata.is_deleting()) {
        let mark = node.metadata.annotation(UPGRADE);
        if mark.is_some() && name.is_none() {
            steps.push(give_back(node));
        } else if mark.is_some() && mark != name {
            // Another image takes over: the node stays empty, and restarts once more.
            let notes = json!({UPGRADE: name, SINCE: Time::from(now), RESTART: null});
            let body = json!({"metadata": {"annotations": notes}});
            steps.push(Action::patch(Target::of(&**node), body));
        }
    }
    if let Some((image, release, rollout)) = &wanted {
        let site = Site { view, image, release, rollout, now };
        let guests = site.guests(&mut steps);
        if steps.actions.is_empty() {
            site.begin(&guests, &mut steps);
        }
        status::tell(&site, &guests, &mut steps);
    }
    status::tell_others(view, name, now, &mut steps);
    steps
}

/// The image that nodes shall run.
fn wanted(view: &View) -> Option<(&Arc<NodeImage>, Release, Rollout)> {
    let mut found: Option<(&Arc<NodeImage>, Release, Rollout)> = None;
    for image in view.node_images.iter().filter(|one| !one.metadata.is_deleting()) {
        let Some(release) = release(image) else { continue };
        let Some(rollout) = release.rollout.clone().filter(|_| !release.version.is_empty()) else {
            continue;
        };
        let age = |one: &NodeImage| (one.metadata.creation_timestamp, one.metadata.name.clone());
        if found.as_ref().is_none_or(|(other, ..)| age(other) < age(image)) {
            found = Some((image, release, rollout));
        }
    }
    found
}

fn release(image: &NodeImage) -> Option<Release> {
    serde_json::from_value(image.spec.clone()).ok()
}

/// Takes a node out of the rollout; draining ends with it.
fn give_back(node: &Node) -> Action {
    let notes = json!({UPGRADE: null, SINCE: null, RESTART: null, drain::WANTED: null});
    Action::patch(Target::of(node), json!({"metadata": {"annotations": notes}}))
}

/// Everything there is to decide by.
struct Site<'a> {
    view: &'a View,
    image: &'a Arc<NodeImage>,
    release: &'a Release,
    rollout: &'a Rollout,
    now: Timestamp,
}

impl<'a> Site<'a> {
    /// Does a node run the image?
    fn runs(&self, node: &Node) -> bool {
        let info = &node.status.node_info;
        let os = info.os_image.as_deref().and_then(|text| text.strip_prefix("Muster "));
        let version = os.and_then(|rest| rest.split(' ').next());
        let agent = info.kubelet_version.as_deref().unwrap_or_default();
        version == Some(self.release.version.as_str())
            && (self.release.agent_version.is_empty() || self.release.agent_version == agent)
    }

    /// The nodes the rollout is about, with steps for those on their way.
    fn guests(&self, steps: &mut Steps) -> Vec<Guest<'a>> {
        let selector = match &self.rollout.selector {
            None => Some(Selector::default()),
            Some(selector) => selector.compile(),
        };
        // The image says so in its status.
        let Some(selector) = selector else { return Vec::new() };
        let mut guests = Vec::new();
        for node in self.view.nodes.iter() {
            let marked =
                node.metadata.annotation(UPGRADE) == Some(self.image.metadata.name.as_str());
            if node.metadata.is_deleting() || (!marked && !selector.matches(&node.metadata.labels))
            {
                continue;
            }
            let stage = match (marked, self.runs(node)) {
                (true, runs) => self.advance(node, runs, steps),
                (false, true) => Stage::Updated,
                (false, false) => Stage::Outdated,
            };
            guests.push(Guest { node, stage });
        }
        guests
    }

    /// One step of a node on its way.
    fn advance(&self, node: &Arc<Node>, runs: bool, steps: &mut Steps) -> Stage {
        let name = &node.metadata.name;
        if runs && node.is_ready() && self.is_settled(node, steps) {
            let message = format!("Node {name} runs Muster {}", self.release.version);
            let note = Note::normal(&Target::of(&**node), "Upgraded", message);
            steps.push(give_back(node).telling(note));
            return Stage::Updating;
        }
        if !runs && node.metadata.annotation(drain::WANTED).is_none() {
            // Somebody gave it back; it is not done.
            let body = json!({"metadata": {"annotations": {drain::WANTED: self.how()}}});
            steps.push(Action::patch(Target::of(&**node), body));
            return Stage::Updating;
        }
        let boot = node.status.node_info.boot_id.as_deref().unwrap_or_default();
        let asked = node.metadata.annotation(RESTART);
        let came_back = asked.is_some_and(|asked| asked != boot) && node.is_ready();
        if came_back && !runs {
            let has = node.status.node_info.os_image.as_deref().unwrap_or("an unknown image");
            return Stage::Stuck(format!("node {name} came back with {has}"));
        }
        let limit = self.rollout.node_deadline_seconds.unwrap_or(DEADLINE);
        let since = node.metadata.annotation(SINCE).and_then(|text| text.parse().ok());
        let due = since.unwrap_or(self.now).saturating_add(SignedDuration::from_secs(limit));
        let due = due.unwrap_or(Timestamp::MAX);
        let state = node.metadata.annotation(drain::STATE);
        if !runs && asked.is_none() && state == Some("ready") && !boot.is_empty() {
            let body = json!({"metadata": {"annotations": {RESTART: boot}}});
            let message = format!("Node {name} is empty and restarts into its new image");
            let note = Note::normal(&Target::of(&**node), "RestartWanted", message);
            steps.push(Action::patch(Target::of(&**node), body).telling(note));
        }
        if self.now < due {
            steps.look_again(due);
            return Stage::Updating;
        }
        Stage::Stuck(match (asked, state) {
            (Some(_), _) => format!("node {name} does not come back"),
            (None, Some("blocked")) => {
                format!("node {name} has pods that nobody would make anew")
            }
            (None, _) => format!("node {name} does not get empty"),
        })
    }

    /// Has the node been ready for long enough?
    fn is_settled(&self, node: &Node, steps: &mut Steps) -> bool {
        let ready = find_condition(&node.status.conditions, "Ready");
        let since = ready.and_then(|one| one.last_transition_time).map(|at| at.0);
        let wait = SignedDuration::from_secs(self.rollout.min_ready_seconds.max(0));
        let due = since.and_then(|since| since.saturating_add(wait).ok());
        match due.filter(|due| self.now < *due) {
            Some(due) => {
                steps.look_again(due);
                false
            }
            None => true,
        }
    }

    /// Begins with as many further nodes as may be missing.
    fn begin(&self, guests: &[Guest<'_>], steps: &mut Steps) {
        if self.rollout.paused || guests.iter().any(|one| matches!(one.stage, Stage::Stuck(_))) {
            return;
        }
        let nodes = self.view.nodes.iter().filter(|node| !node.metadata.is_deleting());
        let nodes: Vec<&Arc<Node>> = nodes.collect();
        let most = most(&self.rollout.max_unavailable, nodes.len());
        let missing: Vec<&Arc<Node>> = nodes.into_iter().filter(|node| is_missing(node)).collect();
        let mut room = most.saturating_sub(missing.len());
        let free = |one: &&Guest<'_>| one.stage == Stage::Outdated && !is_missing(one.node);
        let mut next: Vec<&Arc<Node>> = guests.iter().filter(free).map(|one| one.node).collect();
        let rack = |node: &Node| {
            node.metadata.label(crate::membership::ZONE).unwrap_or_default().to_owned()
        };
        next.sort_by_key(|node| (is_master(node), rack(node), node.metadata.name.clone()));
        let workers = next.iter().any(|node| !is_master(node));
        // Who keeps the cluster's memory goes alone.
        let mut masters = usize::from(!workers && !missing.iter().any(|node| is_master(node)));
        for node in next {
            if room == 0 || (is_master(node) && masters == 0) {
                return;
            }
            room -= 1;
            masters -= usize::from(is_master(node));
            steps.push(self.mark(node));
        }
    }

    /// How a node is emptied.
    const fn how(&self) -> &'static str {
        if self.rollout.force { "force" } else { "drain" }
    }

    fn mark(&self, node: &Node) -> Action {
        let (name, since) = (&self.image.metadata.name, Time::from(self.now));
        let notes = json!({UPGRADE: name, SINCE: since, drain::WANTED: self.how()});
        let target = Target::of(node);
        let (name, version) = (&node.metadata.name, &self.release.version);
        let message = format!("Node {name} is being brought to Muster {version}");
        let note = Note::normal(&target, "Upgrading", message);
        Action::patch(target, json!({"metadata": {"annotations": notes}})).telling(note)
    }
}

fn is_master(node: &Node) -> bool {
    MASTER.iter().any(|label| node.metadata.labels.contains_key(*label))
}

/// Does a node not do its work, for whatever reason?
fn is_missing(node: &Node) -> bool {
    !node.is_ready()
        || node.spec.unschedulable
        || node.metadata.annotation(drain::WANTED).is_some()
        || node.metadata.annotation(UPGRADE).is_some()
}

/// How many nodes may be missing: at least one.
fn most(said: &Value, nodes: usize) -> usize {
    let share = said.as_str().and_then(|text| text.strip_suffix('%')?.parse::<usize>().ok());
    let number = said.as_u64().and_then(|number| usize::try_from(number).ok());
    share.map(|share| nodes.saturating_mul(share) / 100).or(number).unwrap_or(1).max(1)
}

/// Names of nodes, for people: the first few.
fn names(nodes: &BTreeSet<&str>) -> String {
    let mut text: Vec<&str> = nodes.iter().copied().take(5).collect();
    if nodes.len() > text.len() {
        text.push("…");
    }
    text.join(", ")
}

#[cfg(test)]
mod tests;
