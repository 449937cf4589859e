//! Which silent nodes may lose their pods now: never many at once, and none while it is likely
//! that not they are broken but the way to them.
//!
//! Nodes are counted by failure zone, their labels of region and zone. A zone in which nearly all
//! is well gives up one node after the other at a steady pace; one in which most nodes fail gives
//! them up much more slowly, or not at all when it is small; and while no zone has a ready node
//! none is given up, and those that were are taken back.
//!
//! Spec: upstream's node lifecycle controller (`handleDisruption`, `ComputeZoneState`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use objects::node::Node;

use super::{Health, NOT_READY, UNREACHABLE, seconds};
use crate::view::{Key, ZoneRules};

/// Where a node stands, from the widest label to the narrowest, each with its old name.
const PLACES: [[&str; 2]; 2] = [
    ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"],
    ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"],
];
/// Nodes with this label say nothing about their zone.
const EXCLUDED: &str = "node.kubernetes.io/exclude-disruption";
/// So few unready nodes never make a zone a broken one.
const FEW: usize = 2;

/// How a zone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ZoneState {
    /// Nearly all is well.
    Normal,
    /// So many nodes fail that it may be the zone itself.
    Partial,
    /// No node is ready.
    Full,
}

/// What a zone looks like from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneFigures {
    /// Its name: region and zone.
    pub zone: String,
    /// Nodes that count.
    pub nodes: usize,
    /// Those of them that are not ready.
    pub unready: usize,
    /// Nodes given up so far.
    pub evictions: u64,
}

/// What of it those who plan must know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Nodes that may be given up.
    pub(crate) given_up: BTreeSet<String>,
    /// Nodes next in line, with when their turn comes.
    pub(crate) turns: BTreeMap<String, Timestamp>,
    /// Has no zone any ready node?
    pub(crate) all_dark: bool,
}

/// What counts of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    zone: String,
    ready: bool,
    /// Does it say anything about its zone?
    counts: bool,
    /// Has it been given up already?
    tainted: bool,
}

/// A node and its place in the line.
#[derive(Debug)]
struct Known {
    standing: Standing,
    waits_since: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct Zone {
    /// All nodes in it.
    members: usize,
    nodes: usize,
    unready: usize,
    limiter: Limiter,
    /// Nodes to be given up, by how long they have waited.
    waiting: BTreeSet<(Timestamp, String)>,
    evictions: u64,
}

/// One at once, the next after a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limiter {
    /// `None`: never.
    interval: Option<SignedDuration>,
    /// When the next may go; the first of a zone may go at once.
    free_at: Option<Timestamp>,
}

impl Default for Limiter {
    /// Free, whatever pace is set first.
    fn default() -> Self {
        Self { interval: Some(SignedDuration::ZERO), free_at: None }
    }
}

impl Limiter {
    fn is_free(self, now: Timestamp) -> bool {
        self.interval.is_some() && self.free_at.is_none_or(|at| now >= at)
    }

    fn take(&mut self, now: Timestamp) -> bool {
        let free = self.is_free(now);
        if let Some(interval) = self.interval.filter(|_| free) {
            self.free_at = Some(now.saturating_add(interval).unwrap_or(Timestamp::MAX));
        }
        free
    }

    /// Changes the pace; who had to wait before waits anew.
    fn set(&mut self, interval: Option<SignedDuration>, now: Timestamp) {
        if self.interval == interval {
            return;
        }
        let free = self.is_free(now);
        self.interval = interval;
        let later = interval.and_then(|interval| now.saturating_add(interval).ok());
        self.free_at = if free { None } else { later };
    }

    fn next(self, now: Timestamp) -> Option<Timestamp> {
        self.interval.map(|_| self.free_at.unwrap_or(now))
    }
}

/// The zones of a cluster, from look to look.
#[derive(Debug, Default)]
pub(crate) struct Zones {
    nodes: BTreeMap<String, Known>,
    zones: BTreeMap<String, Zone>,
    verdicts: Arc<Verdicts>,
}

impl Standing {
    fn of(node: &Node) -> Self {
        let labels = &node.metadata.labels;
        let place = |names: &[&str; 2]| {
            names.iter().find_map(|name| labels.get(*name).map(String::as_str)).unwrap_or("")
        };
        let [region, zone] = &PLACES;
        let (region, zone) = (place(region), place(zone));
        let name = if region.is_empty() { zone.to_owned() } else { format!("{region}/{zone}") };
        Self {
            zone: name,
            ready: Health::of(node) == Health::Ready,
            counts: !labels.contains_key(EXCLUDED),
            tainted: is_given_up(node),
        }
    }
}

/// Does the node carry one of the taints that cost its pods?
pub(super) fn is_given_up(node: &Node) -> bool {
    node.spec.taints.iter().any(|taint| {
        taint.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str())
    })
}

impl Zones {
    /// Takes note of a node, or that it is gone.
    pub(crate) fn note(&mut self, name: &str, node: Option<&Node>, now: Timestamp) {
        let standing = node.map(Standing::of);
        if self.nodes.get(name).map(|known| &known.standing) == standing.as_ref() {
            return;
        }
        let had = self.nodes.remove(name);
        if let Some(had) = &had {
            self.leave(name, had);
        }
        let wants = standing.as_ref().is_some_and(|one| !one.ready && !one.tainted);
        if !wants && self.verdicts.given_up.contains(name) {
            Arc::make_mut(&mut self.verdicts).given_up.remove(name);
        }
        let Some(standing) = standing else { return };
        let zone = self.zones.entry(standing.zone.clone()).or_default();
        zone.members += 1;
        zone.nodes += usize::from(standing.counts);
        zone.unready += usize::from(standing.counts && !standing.ready);
        let mut waits_since = None;
        if wants && !self.verdicts.given_up.contains(name) {
            // Who waited in the same zone keeps its place.
            let stayed = had.filter(|had| had.standing.zone == standing.zone);
            let since = stayed.and_then(|had| had.waits_since).unwrap_or(now);
            zone.waiting.insert((since, name.to_owned()));
            waits_since = Some(since);
        }
        self.nodes.insert(name.to_owned(), Known { standing, waits_since });
    }

    fn leave(&mut self, name: &str, had: &Known) {
        let Some(zone) = self.zones.get_mut(&had.standing.zone) else { return };
        zone.members -= 1;
        zone.nodes -= usize::from(had.standing.counts);
        zone.unready -= usize::from(had.standing.counts && !had.standing.ready);
        if let Some(since) = had.waits_since {
            zone.waiting.remove(&(since, name.to_owned()));
        }
    }

    /// Decides whose turn it is; returns the nodes for which something changed.
    pub(crate) fn turn(&mut self, rules: &ZoneRules, now: Timestamp) -> BTreeSet<Key> {
        self.zones.retain(|_, zone| zone.members > 0);
        let mut changed: BTreeSet<String> = BTreeSet::new();
        let counted = || self.zones.values().filter(|zone| zone.nodes > 0);
        let any = counted().next().is_some();
        let all_dark = any && counted().all(|zone| zone.state(rules) == ZoneState::Full);
        if all_dark != self.verdicts.all_dark {
            let concerned = |known: &Known| !known.standing.ready || known.standing.tainted;
            let unready = self.nodes.iter().filter(|(_, known)| concerned(known));
            changed.extend(unready.map(|(name, _)| name.clone()));
        }
        let mut given_up = self.verdicts.given_up.clone();
        if all_dark {
            std::mem::take(&mut given_up).iter().for_each(|name| self.take_back(name, now));
        }
        let mut turns = BTreeMap::new();
        for zone in self.zones.values_mut() {
            zone.limiter.set(if all_dark { None } else { zone.pace(rules) }, now);
            while !zone.waiting.is_empty() && zone.limiter.take(now) {
                let Some((_, name)) = zone.waiting.pop_first() else { break };
                zone.evictions += 1;
                if let Some(known) = self.nodes.get_mut(&name) {
                    known.waits_since = None;
                }
                changed.insert(name.clone());
                given_up.insert(name);
            }
            if let (Some((_, name)), Some(at)) = (zone.waiting.first(), zone.limiter.next(now)) {
                if self.verdicts.turns.get(name) != Some(&at) {
                    changed.insert(name.clone());
                }
                turns.insert(name.clone(), at);
            }
        }
        let verdicts = Verdicts { given_up, turns, all_dark };
        if *self.verdicts != verdicts {
            self.verdicts = Arc::new(verdicts);
        }
        changed.iter().map(|name| Key::new("", name)).collect()
    }

    /// A node that was to be given up waits again, behind those who wait already.
    fn take_back(&mut self, name: &str, now: Timestamp) {
        let Some(known) = self.nodes.get_mut(name) else { return };
        let Some(zone) = self.zones.get_mut(&known.standing.zone) else { return };
        known.waits_since = Some(now);
        zone.waiting.insert((now, name.to_owned()));
    }

    /// What was decided last.
    pub(crate) fn verdicts(&self) -> Arc<Verdicts> {
        Arc::clone(&self.verdicts)
    }

    /// Every zone in numbers.
    pub(crate) fn figures(&self) -> Vec<ZoneFigures> {
        let figures = |(name, zone): (&String, &Zone)| ZoneFigures {
            zone: name.clone(),
            nodes: zone.nodes,
            unready: zone.unready,
            evictions: zone.evictions,
        };
        self.zones.iter().map(figures).collect()
    }
}

impl Zone {
    fn state(&self, rules: &ZoneRules) -> ZoneState {
        let per_mille = usize::try_from(rules.unhealthy_per_mille).unwrap_or(usize::MAX);
        let broken = self.unready.saturating_mul(1000) >= per_mille.saturating_mul(self.nodes);
        if self.unready > 0 && self.unready == self.nodes {
            ZoneState::Full
        } else if self.unready > FEW && broken {
            ZoneState::Partial
        } else {
            ZoneState::Normal
        }
    }

    /// The time between two nodes that are given up.
    ///
    /// A whole zone that is silent goes at the normal pace as long as another zone answers: then
    /// it is surely not us.
    fn pace(&self, rules: &ZoneRules) -> Option<SignedDuration> {
        let interval = match self.state(rules) {
            ZoneState::Normal | ZoneState::Full => rules.eviction_interval,
            ZoneState::Partial if self.nodes > rules.large_zone_nodes => {
                rules.secondary_eviction_interval
            }
            ZoneState::Partial => None,
        };
        interval.map(seconds)
    }
}

#[cfg(test)]
mod tests;
