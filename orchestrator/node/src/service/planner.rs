//! What the API says of services, what follows from it, and what a change of it changes.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::behind::{Behind, Name};

use super::element::{Data, Element, Key, LOCAL_SLOTS, Set, choices, elements};
use super::plan::{Claim, Plan, Slots};
use super::table::{render_chains, render_flush, render_removal, render_tables, spares};
use super::{Backend, Choice, Family, Flow, Frontend, Health, Site, Skipped, Target, Transport};

/// All services as one node serves them.
///
/// Total: an object that makes no sense is reported, and of two services that claim one frontend
/// the first by namespace and name has it. But for the slots of endpoints it does not matter in
/// which order things were told.
#[derive(Debug)]
pub struct Planner {
    site: Site,
    behind: Behind,
    plans: BTreeMap<Name, Plan>,
    /// Who claims each frontend, sorted; the first has it.
    claimants: BTreeMap<Frontend, Vec<Name>>,
    /// How many services have each cluster address.
    addresses: BTreeMap<IpAddr, u32>,
    /// How many slots lead to each pod.
    pods: BTreeMap<IpAddr, u32>,
    health: BTreeMap<u16, Health>,
    /// The chains that are there. One that nobody uses any more stays: it costs nothing.
    chains: BTreeSet<(Family, Choice)>,
    /// The slots that an earlier planner gave; of use until everything is planned once.
    remembered: BTreeMap<Frontend, Slots>,
}

/// What makes the tables serve what was told last, in one transaction but for the chains, which
/// come first and harm nobody.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Chains that are missing, as a script for nft; empty when none is.
    pub chains: String,
    /// What is taken out first.
    pub removed: Vec<Element>,
    /// What is put in then.
    pub added: Vec<Element>,
    /// Whether tracked flows of UDP may lead nowhere now ([`Planner::is_stale`]).
    pub strands_flows: bool,
    /// What of the changed services cannot be served, and why.
    pub skipped: Vec<Skipped>,
}

impl Change {
    /// Whether the tables stay as they are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.removed.is_empty() && self.added.is_empty()
    }
}

/// A frontend's state, for comparison.
type State = Option<(Target, Option<Arc<[IpNet]>>)>;

impl Planner {
    /// Knows of no service yet.
    #[must_use]
    pub fn new(site: Site) -> Self {
        Self {
            site,
            behind: Behind::default(),
            plans: BTreeMap::new(),
            claimants: BTreeMap::new(),
            addresses: BTreeMap::new(),
            pods: BTreeMap::new(),
            health: BTreeMap::new(),
            chains: BTreeSet::new(),
            remembered: BTreeMap::new(),
        }
    }

    /// Keeps the slots of an earlier planner, of which the kernel still knows, so that clients
    /// with affinity stay where they are. To be said before anything is planned.
    pub fn remember(&mut self, held: impl IntoIterator<Item = (Frontend, u32, Backend)>) {
        let mut slots: BTreeMap<Frontend, BTreeMap<u32, Backend>> = BTreeMap::new();
        for (frontend, slot, backend) in held {
            slots.entry(frontend).or_default().insert(slot, backend);
        }
        let split = |(frontend, mut all): (Frontend, BTreeMap<u32, Backend>)| {
            let local = all.split_off(&LOCAL_SLOTS);
            let list = |slots: BTreeMap<u32, Backend>| slots.into_values().collect();
            (frontend, Slots { all: list(all), local: list(local) })
        };
        self.remembered = slots.into_iter().map(split).collect();
    }

    /// Where to tell what the API says; planned at the next [`Self::change`].
    pub fn behind(&mut self) -> &mut Behind {
        &mut self.behind
    }

    /// What the tables are made for.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Makes tables for another site; the whole of them has to be loaded then. Returns whether it
    /// is another one.
    pub fn set_site(&mut self, site: Site) -> bool {
        if self.site == site {
            return false;
        }
        self.site = site;
        self.behind.touch_all();
        true
    }

    /// Plans what was told since the last time, and says what that changes in tables that hold
    /// what was planned before.
    pub fn change(&mut self) -> Change {
        let mut change = Change::default();
        let mut before: BTreeMap<Frontend, State> = BTreeMap::new();
        let mut fresh = Vec::new();
        for name in self.behind.take_changed() {
            let old = self.plans.get(&name);
            let slots = |frontend: &Frontend| match old {
                Some(old) => old.claim(frontend).map(|claim| Slots::of(&claim.target)),
                None => self.remembered.get(frontend).cloned(),
            };
            let plan = match self.behind.service(&name) {
                Some(service) => Plan::of(&self.site, service, &self.behind.slices(&name), &slots),
                None => Plan::default(),
            };
            for claim in old.iter().flat_map(|old| &old.claims).chain(&plan.claims) {
                before.entry(claim.frontend).or_insert_with(|| self.state(&claim.frontend));
            }
            fresh.push((name, plan));
        }
        self.remembered.clear();
        for (name, plan) in fresh {
            self.adopt(&name, plan, &mut change);
        }
        let mut pods: BTreeMap<IpAddr, i64> = BTreeMap::new();
        let mut missing = BTreeSet::new();
        for (frontend, was) in before {
            let is = self.state(&frontend);
            if was != is {
                self.compare(frontend, &was, &is, &mut change, &mut pods, &mut missing);
            }
        }
        for (pod, difference) in pods {
            let twice = Element { set: Set::OwnPods, key: Key::Twice(pod), data: Data::None };
            count(&mut self.pods, pod, difference, twice, &mut change);
        }
        if !missing.is_empty() {
            change.chains = render_chains(&self.site, &missing);
            self.chains.extend(missing);
        }
        change
    }

    /// Renders the script that puts whole tables in the place of those before, in one
    /// transaction: no packet sees a half state. What was told and not planned yet is in it.
    pub fn render_whole(&mut self) -> String {
        self.need_chains();
        render_removal(&self.site) + &render_tables(&self.site, self.elements(), &self.chains)
    }

    /// Renders the script that makes tables with every rule and chain that is needed, whatever was
    /// there before. Elements that are there stay; they are to be replaced by [`Self::elements`].
    /// Fails on tables whose sets have other types.
    pub fn render_structure(&mut self) -> String {
        self.need_chains();
        render_flush(&self.site) + &render_tables(&self.site, Vec::new(), &self.chains)
    }

    /// Renders the script that removes the tables, whether or not they are there.
    #[must_use]
    pub fn render_removal(&self) -> String {
        render_removal(&self.site)
    }

    /// Plans what was told, and which chains there must be.
    fn need_chains(&mut self) {
        let _within = self.change();
        let needed = self.targets().flat_map(|(frontend, target)| {
            choices(target).map(move |choice| (frontend.family(), choice))
        });
        let needed: BTreeSet<(Family, Choice)> = needed.collect();
        self.chains = needed.into_iter().flat_map(with_spares).collect();
    }

    /// Everything that the tables hold.
    #[must_use]
    pub fn elements(&self) -> Vec<Element> {
        let element = |set, key| Element { set, key, data: Data::None };
        let frontends = self.frontends();
        let mut all: Vec<Element> = frontends
            .flat_map(|(frontend, claim)| {
                elements(*frontend, &claim.target, claim.sources.as_deref())
            })
            .collect();
        all.extend(self.addresses.keys().map(|one| element(Set::Addresses, Key::Address(*one))));
        all.extend(self.pods.keys().map(|one| element(Set::OwnPods, Key::Twice(*one))));
        all
    }

    /// What becomes of a frontend's connections; `None` when no service has it.
    #[must_use]
    pub fn target(&self, frontend: &Frontend) -> Option<&Target> {
        self.claim(frontend).map(|claim| &claim.target)
    }

    /// What becomes of every frontend's connections.
    pub fn targets(&self) -> impl Iterator<Item = (&Frontend, &Target)> {
        self.frontends().map(|(frontend, claim)| (frontend, &claim.target))
    }

    /// Ports at which this node says whether it has endpoints of a service.
    #[must_use]
    pub fn health(&self) -> &BTreeMap<u16, Health> {
        &self.health
    }

    /// Whether a flow leads where no service leads any more.
    ///
    /// A client that goes on sending keeps its flow, and with it an endpoint that is gone, for
    /// ever; upstream learnt this from name servers. Flows of others, such as a pod's own traffic
    /// to a port that happens to be a node port, are left alone.
    #[must_use]
    pub fn is_stale(&self, flow: &Flow) -> bool {
        let (address, port) = flow.destination;
        let family = Family::of(address);
        let ranges = self.site.ranges(family);
        let astray = |target: &Target| !target.backends().any(|one| *one == flow.answering);
        let translated = flow.answering.address != address;
        if !translated && ranges.is_some_and(|ranges| ranges.dns == Some(address)) {
            return false;
        }
        if let Some(target) = self.target(&Frontend::Address(address, Transport::Udp, port)) {
            return astray(target);
        }
        if ranges.is_some_and(|ranges| ranges.services.contains(&address)) {
            return true;
        }
        let by_node_port = self.target(&Frontend::NodePort(family, Transport::Udp, port));
        translated && by_node_port.is_some_and(astray)
    }

    /// The chains besides the fixed ones.
    #[cfg(test)]
    pub(super) fn chains(&self) -> usize {
        self.chains.len()
    }

    fn claim(&self, frontend: &Frontend) -> Option<&Claim> {
        let owner = self.claimants.get(frontend)?.first()?;
        self.plans.get(owner)?.claim(frontend)
    }

    fn frontends(&self) -> impl Iterator<Item = (&Frontend, &Claim)> {
        self.claimants.keys().filter_map(|frontend| Some((frontend, self.claim(frontend)?)))
    }

    fn state(&self, frontend: &Frontend) -> State {
        self.claim(frontend).map(|claim| (claim.target.clone(), claim.sources.clone()))
    }

    /// Takes a service's new plan for the old one.
    fn adopt(&mut self, name: &Name, plan: Plan, change: &mut Change) {
        let old = self.plans.remove(name).unwrap_or_default();
        for claim in &old.claims {
            if let Entry::Occupied(mut claimants) = self.claimants.entry(claim.frontend) {
                claimants.get_mut().retain(|one| one != name);
                if claimants.get().is_empty() {
                    claimants.remove();
                }
            }
        }
        for claim in &plan.claims {
            let claimants = self.claimants.entry(claim.frontend).or_default();
            let at = claimants.partition_point(|one| one < name);
            claimants.insert(at, Arc::clone(name));
            if at > 0 {
                let service = format!("{}/{}", name.0, name.1);
                let reason = format!("{:?} belongs to another service", claim.frontend);
                change.skipped.push(Skipped { service, reason });
            }
        }
        change.skipped.extend(plan.skipped.iter().cloned());
        let mut addresses: BTreeMap<IpAddr, i64> = BTreeMap::new();
        for address in &old.addresses {
            *addresses.entry(*address).or_default() -= 1;
        }
        for address in &plan.addresses {
            *addresses.entry(*address).or_default() += 1;
        }
        for (address, difference) in addresses {
            let key = Key::Address(address);
            let element = Element { set: Set::Addresses, key, data: Data::None };
            count(&mut self.addresses, address, difference, element, change);
        }
        // Another service may have the port by now.
        let ours = |health: &Health| health.namespace == *name.0 && health.name == *name.1;
        if let Some((port, _)) = &old.health
            && self.health.get(port).is_some_and(ours)
        {
            self.health.remove(port);
        }
        if let Some((port, health)) = &plan.health {
            self.health.insert(*port, health.clone());
        }
        if self.behind.service(name).is_some() {
            self.plans.insert(Arc::clone(name), plan);
        }
        self.behind.forget_if_gone(name);
    }

    /// Notes what differs between two states of a frontend.
    fn compare(
        &self,
        frontend: Frontend,
        was: &State,
        is: &State,
        change: &mut Change,
        pods: &mut BTreeMap<IpAddr, i64>,
        missing: &mut BTreeSet<(Family, Choice)>,
    ) {
        let all = |state: &State| -> BTreeSet<Element> {
            let state = state.iter();
            let lists =
                state.map(|(target, sources)| elements(frontend, target, sources.as_deref()));
            lists.flatten().collect()
        };
        let (old, new) = (all(was), all(is));
        change.removed.extend(old.difference(&new));
        change.added.extend(new.difference(&old));
        let backends = |state: &State| {
            let targets = state.iter().flat_map(|(target, _)| target.backends());
            targets.copied().collect::<Vec<_>>()
        };
        let (old, new) = (backends(was), backends(is));
        for backend in &old {
            *pods.entry(backend.address).or_default() -= 1;
        }
        for backend in &new {
            *pods.entry(backend.address).or_default() += 1;
        }
        if frontend.is_udp() {
            let stays: BTreeSet<_> = new.iter().collect();
            change.strands_flows |= old.is_empty() || old.iter().any(|one| !stays.contains(one));
        }
        for choice in is.iter().flat_map(|(target, _)| choices(target)) {
            let chain = (frontend.family(), choice);
            if !self.chains.contains(&chain) {
                missing.extend(with_spares(chain).filter(|one| !self.chains.contains(one)));
            }
        }
    }
}

fn with_spares((family, choice): (Family, Choice)) -> impl Iterator<Item = (Family, Choice)> {
    spares(choice).map(move |choice| (family, choice))
}

/// Counts users of an element, which is there while there is one.
fn count(
    users: &mut BTreeMap<IpAddr, u32>,
    address: IpAddr,
    difference: i64,
    element: Element,
    change: &mut Change,
) {
    let old = users.get(&address).copied().unwrap_or_default();
    let new = u32::try_from(i64::from(old).saturating_add(difference)).unwrap_or_default();
    if new == 0 {
        users.remove(&address);
    } else {
        users.insert(address, new);
    }
    match (old, new) {
        (0, 1..) => change.added.push(element),
        (1.., 0) => change.removed.push(element),
        _ => {}
    }
}
