//! Every order of steps of a controller, two nodes and the world's mischief, up to a bound.

use std::collections::{BTreeMap, VecDeque};

use super::*;

const NODES: [&str; 2] = ["a", "b"];
/// How much mischief one history holds: links cut and mended, machines restarted, processes
/// killed, pods moved.
const MISCHIEF_MAX: u8 = 3;

/// One node as it really is.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Node {
    /// The client of its mapping.
    mapped: Option<Client>,
    mounted: bool,
    /// Neither the API nor the cluster hears it.
    cut: bool,
    /// The record as the agent last read it, with its version; `None` until read, or after a crash.
    read: Option<(Option<Attachment>, u8)>,
}

/// The world of one volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    wanted: Option<usize>,
    attachment: Option<Attachment>,
    version: u8,
    nodes: [Node; 2],
    /// Fences the monitors have acknowledged.
    fenced: BTreeSet<Client>,
    /// Fences the storage enforces: those known when someone last mapped.
    enforced: BTreeSet<Client>,
    /// What the controller saw when it last looked.
    read: Option<(Option<Attachment>, u8, Vec<Client>)>,
    nonce: u8,
    mischief: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    ControllerReads,
    ControllerActs,
    ControllerDies,
    /// The controller lifts fences of clients that have ended.
    ControllerLifts,
    NodeReads(usize),
    NodeActs(usize),
    AgentDies(usize),
    Cut(usize),
    Mend(usize),
    Restart(usize),
    MovePod,
}

impl World {
    fn turns() -> Vec<Turn> {
        let mut all = vec![Turn::ControllerReads, Turn::ControllerActs, Turn::ControllerLifts];
        all.extend([Turn::ControllerDies, Turn::MovePod]);
        for n in 0..NODES.len() {
            all.extend([Turn::NodeReads(n), Turn::NodeActs(n), Turn::AgentDies(n)]);
            all.extend([Turn::Cut(n), Turn::Mend(n), Turn::Restart(n)]);
        }
        all
    }

    fn alive(&self, node: &str) -> bool {
        NODES.iter().position(|name| *name == node).is_some_and(|n| !self.nodes[n].cut)
    }

    /// Changes the record when it still is the one that was read.
    fn write(&mut self, version: u8, next: Option<Attachment>) {
        if version == self.version && self.attachment != next {
            self.attachment = next;
            self.version += 1;
        }
    }

    /// Does a turn; `None` when it changes nothing or there was mischief enough.
    fn after(&self, turn: Turn) -> Option<World> {
        let mut next = self.clone();
        match turn {
            Turn::ControllerReads => {
                // A node that is cut is forgotten as a watcher after half a minute: too early for
                // us, so that only what was recorded is sure to be fenced.
                let near = self.nodes.iter().filter(|node| !node.cut);
                let watchers = near.filter_map(|node| node.mapped.clone());
                next.read = Some((self.attachment.clone(), self.version, watchers.collect()));
            }
            Turn::ControllerActs => next.control()?,
            Turn::ControllerLifts => next.lift(),
            Turn::NodeReads(n) if !self.nodes[n].cut => {
                next.nodes[n].read = Some((self.attachment.clone(), self.version));
            }
            Turn::NodeActs(n) => next.act(n)?,
            Turn::NodeReads(_) => return None,
            mischief => {
                next.mischief += 1;
                next.mischieve(mischief);
            }
        }
        (next != *self && next.mischief <= MISCHIEF_MAX).then_some(next)
    }

    fn mischieve(&mut self, turn: Turn) {
        match turn {
            Turn::ControllerDies => self.read = None,
            Turn::AgentDies(n) => self.nodes[n].read = None,
            Turn::Cut(n) => self.nodes[n].cut = true,
            Turn::Mend(n) => self.nodes[n].cut = false,
            Turn::Restart(n) => self.nodes[n] = Node { cut: self.nodes[n].cut, ..Node::default() },
            _ => self.wanted = if self.wanted == Some(0) { Some(1) } else { Some(0) },
        }
    }

    /// A node that answers says which clients it has: those that are fenced and gone may go.
    fn lift(&mut self) {
        let stays = |client: &Client| {
            let here = |node: &Node| node.cut || node.mapped.as_ref() == Some(client);
            let own = |name: &str| client.starts_with(name);
            NODES.iter().zip(&self.nodes).any(|(name, node)| own(name) && here(node))
        };
        let stay: BTreeSet<Client> = self.fenced.iter().filter(|one| stays(one)).cloned().collect();
        self.enforced.retain(|client| stay.contains(client) || !self.fenced.contains(client));
        self.fenced = stay;
    }

    fn control(&mut self) -> Option<()> {
        let (attachment, version, watchers) = self.read.take()?;
        let alive = attachment.as_ref().is_some_and(|record| self.alive(&record.node));
        let seen = Seen {
            wanted: self.wanted.map(|n| NODES[n].to_owned()),
            attachment: attachment.clone(),
            alive,
            watchers: watchers.into_iter().collect(),
            fenced: self.fenced.clone(),
        };
        match plan_move(&seen)? {
            Move::Attach(node) => {
                let fresh = Attachment { node, client: None, closing: false, released: false };
                self.write(version, Some(fresh));
            }
            Move::Close => {
                self.write(version, attachment.map(|one| Attachment { closing: true, ..one }));
            }
            Move::Fence(client) => drop(self.fenced.insert(client)),
            Move::Detach => self.write(version, None),
        }
        Some(())
    }

    fn act(&mut self, n: usize) -> Option<()> {
        let node = self.nodes[n].clone();
        let (attachment, version) = node.read.clone()?;
        let held = Held {
            node: NODES[n].to_owned(),
            wanted: self.wanted == Some(n),
            attachment: attachment.clone(),
            mapped: node.mapped.clone(),
            mounted: node.mounted,
            dead: node.mapped.as_ref().is_some_and(|one| self.enforced.contains(one)) && !node.cut,
        };
        let own = attachment.filter(|record| record.node == NODES[n]);
        match plan_node(&held)? {
            Step::Map if node.cut => return None,
            Step::Map => {
                self.nonce += 1;
                self.nodes[n].mapped = Some(format!("{}/{}", NODES[n], self.nonce));
                // Whoever maps brings the newest map of the cluster with it.
                self.enforced = self.fenced.clone();
            }
            Step::Record | Step::Release if node.cut => return None,
            Step::Record => {
                self.write(version, own.map(|one| Attachment { client: node.mapped, ..one }));
                // Yes or no, the agent knows the record only after it has read it again.
                self.nodes[n].read = None;
            }
            Step::Release => {
                self.write(version, own.map(|one| Attachment { released: true, ..one }));
                self.nodes[n].read = None;
            }
            Step::Mount => self.nodes[n].mounted = true,
            Step::Unmount => self.nodes[n].mounted = false,
            Step::Unmap => self.nodes[n].mapped = None,
        }
        Some(())
    }

    /// Clients whose writes would reach the image: a cut link may come back at any moment.
    fn writers(&self) -> Vec<&Client> {
        let mounted = self.nodes.iter().filter(|node| node.mounted);
        let clients = mounted.filter_map(|node| node.mapped.as_ref());
        clients.filter(|client| !self.enforced.contains(*client)).collect()
    }

    /// Where the world ends without more mischief: everyone reads and acts in turn.
    fn settle(&self) -> World {
        let mut world = self.clone();
        for _ in 0..40 {
            let before = world.clone();
            for turn in [Turn::ControllerReads, Turn::ControllerActs]
                .into_iter()
                .chain((0..2).flat_map(|n| [Turn::NodeReads(n), Turn::NodeActs(n)]))
            {
                world = world.after(turn).unwrap_or(world);
            }
            // What was read is no state of the world.
            let bare = |world: &World| {
                let mut bare = world.clone();
                bare.read = None;
                bare.nodes.iter_mut().for_each(|node| node.read = None);
                bare
            };
            if bare(&before) == bare(&world) {
                return world;
            }
        }
        panic!("no rest: {self:#?}\n{world:#?}");
    }
}

/// Walks all histories; `visit` sees each state once.
fn explore(mut visit: impl FnMut(&World, &dyn Fn() -> Vec<Turn>)) -> usize {
    let turns = World::turns();
    let start = World { wanted: Some(0), ..World::default() };
    let mut came: BTreeMap<World, Option<(World, Turn)>> = BTreeMap::from([(start.clone(), None)]);
    let mut open = VecDeque::from([start]);
    while let Some(world) = open.pop_front() {
        let way = || {
            let mut way = Vec::new();
            let mut at = &world;
            while let Some(Some((before, turn))) = came.get(at) {
                way.push(*turn);
                at = before;
            }
            way.reverse();
            way
        };
        visit(&world, &way);
        for turn in &turns {
            let Some(next) = world.after(*turn) else { continue };
            if !came.contains_key(&next) {
                came.insert(next.clone(), Some((world.clone(), *turn)));
                open.push_back(next);
            }
        }
    }
    came.len()
}

#[test]
fn never_two_writers_and_never_stuck_in_any_order_of_steps() {
    let mut moved = 0;
    let states = explore(|world, way| {
        assert!(world.writers().len() <= 1, "two writers after {:?}: {world:#?}", way());
        let end = world.settle();
        let wanted = &world.nodes[world.wanted.unwrap()];
        if wanted.cut {
            return;
        }
        let there = &end.nodes[end.wanted.unwrap()];
        let writes = there.mapped.as_ref().is_some_and(|one| end.writers() == [one]);
        assert!(there.mounted && writes, "stuck after {:?}: {end:#?}", way());
        moved += usize::from(!end.fenced.is_empty());
    });
    assert!(states > 5_000 && moved > 500, "the model is too small: {states}, {moved}");
}
