//! Fairness: which requests wait for which, so that no client starves the others.
//!
//! A request is classified by the first flow schema that matches it: that gives its priority
//! level and its flow. Each level may have some requests under way at a time (seats); the others
//! wait in queues. A flow is dealt a hand of queues and takes the shortest, and queues are served
//! in turn by the work they have had, so that a flow that asks for much waits behind those that
//! ask for little. A level that is idle lends part of its seats.
//!
//! The caller keeps the clock: it gives up a ticket that has waited too long.
//!
//! *Limits*: every request counts as one seat, however much it asks for; seats are lent from
//! moment to moment and not smoothed over time as upstream does.
//!
//! Spec: flowcontrol.apiserver.k8s.io/v1; upstream's API Priority and Fairness.

mod condition;
mod defaults;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use objects::field::{int_at, str_at};
use serde_json::Value;

pub use condition::plan_condition;
pub use defaults::default_objects;

use super::{Attributes, User};

/// The level of what nothing matches.
const CATCH_ALL: &str = "catch-all";
/// What one request counts as in a queue's account.
const WORK: u64 = 1;

/// A request that waits.
pub type Ticket = u64;

/// Where a request belongs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Class {
    /// The flow schema's name and uid.
    pub schema: (String, String),
    /// The priority level's name and uid.
    pub level: (String, String),
    /// What tells its flow from others of the schema: the user, the namespace, or nothing.
    pub distinguisher: String,
    /// Is it never made to wait?
    pub exempt: bool,
}

/// What becomes of a request that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It has a seat.
    Runs,
    /// It waits until its ticket is called.
    Waits,
    /// There are too many already.
    Refused,
}

/// All schemas and levels, with what is under way.
#[derive(Debug, Default)]
pub struct Flows {
    schemas: Vec<Schema>,
    levels: BTreeMap<String, Level>,
    seats: u64,
}

#[derive(Debug)]
struct Schema {
    precedence: i64,
    name: String,
    uid: String,
    level: String,
    /// `ByUser`, `ByNamespace` or empty.
    by: String,
    rules: Vec<Rule>,
}

/// Who and what a schema is about.
#[derive(Debug)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

/// A name may be `*`, which is every one.
#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
    /// Namespace and name.
    Account(String, String),
}

#[derive(Debug)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster_scope: bool,
}

#[derive(Debug)]
struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

#[derive(Debug, Default)]
struct Level {
    uid: String,
    exempt: bool,
    shares: u64,
    lendable_percent: u64,
    /// How many seats it may borrow, in percent of its own; `None` = any number.
    borrowing_percent: Option<u64>,
    seats: u64,
    lendable: u64,
    running: u64,
    hand: usize,
    length_max: usize,
    queues: Vec<Queue>,
    waiting: usize,
    /// The account of the queue that was served last.
    clock: u64,
    /// Is it still configured? One that is not goes when nothing runs in it.
    listed: bool,
}

#[derive(Debug, Default)]
struct Queue {
    tickets: VecDeque<Ticket>,
    account: u64,
}

impl Flows {
    /// Takes over schemas and levels as they are now; what runs or waits goes on.
    ///
    /// `seats` is how many requests the server works on at a time.
    pub fn configure<'a>(&mut self, objects: impl IntoIterator<Item = &'a Value>, seats: u64) {
        self.seats = seats;
        self.schemas.clear();
        for level in self.levels.values_mut() {
            level.listed = false;
        }
        for object in objects {
            match str_at(object, "kind") {
                Some("FlowSchema") => self.schemas.push(Schema::of(object)),
                Some("PriorityLevelConfiguration") => {
                    let name = str_at(object, "metadata.name").unwrap_or("").to_owned();
                    self.levels.entry(name).or_default().configure(object);
                }
                _ => {}
            }
        }
        self.schemas.sort_by(|one, other| {
            (one.precedence, &one.name).cmp(&(other.precedence, &other.name))
        });
        self.levels.retain(|_, level| level.listed || level.running > 0 || level.waiting > 0);
        let shares: u64 = self.levels.values().map(|level| level.shares).sum();
        for level in self.levels.values_mut() {
            level.seats = (seats * level.shares).div_ceil(shares.max(1)).max(1);
            level.lendable = level.seats * level.lendable_percent / 100;
        }
    }

    /// Finds where a request belongs.
    #[must_use]
    pub fn classify(&self, user: &User, asked: &Attributes) -> Class {
        let resource = asked.qualified_resource();
        let found = self.schemas.iter().find(|schema| {
            // A schema of a level that is not there decides nothing.
            self.levels.contains_key(&schema.level) && schema.matches(user, asked, &resource)
        });
        let Some(schema) = found else {
            // Without schemas at all, as before the first ones are made, nothing is held up.
            let exempt = !self.levels.contains_key(CATCH_ALL);
            return Class {
                exempt,
                level: (CATCH_ALL.to_owned(), String::new()),
                ..Class::default()
            };
        };
        let level = self.levels.get(&schema.level);
        Class {
            schema: (schema.name.clone(), schema.uid.clone()),
            level: (schema.level.clone(), level.map(|level| level.uid.clone()).unwrap_or_default()),
            distinguisher: match schema.by.as_str() {
                "ByUser" => user.name.clone(),
                "ByNamespace" => asked.namespace.clone(),
                _ => String::new(),
            },
            exempt: level.is_none_or(|level| level.exempt),
        }
    }

    /// Seats a request, lets it wait, or refuses it.
    ///
    /// `ticket` is unique to it. A request that runs must be ended with [`Flows::leave`].
    pub fn arrive(&mut self, class: &Class, ticket: Ticket) -> Arrival {
        let free = self.has_seat(&class.level.0);
        let Some(level) = self.levels.get_mut(&class.level.0) else { return Arrival::Refused };
        if level.exempt || (free && level.waiting == 0) {
            level.running += 1;
            return Arrival::Runs;
        }
        let arrival = level.enqueue(&class.schema.0, &class.distinguisher, ticket);
        // An idle seat goes to whoever's turn it is.
        if arrival == Arrival::Waits && free && level.waiting == 1 {
            level.next();
            level.running += 1;
            return Arrival::Runs;
        }
        arrival
    }

    /// Ends a request that ran, and says whose turn it is now.
    pub fn leave(&mut self, class: &Class) -> Vec<Ticket> {
        if let Some(level) = self.levels.get_mut(&class.level.0) {
            level.running = level.running.saturating_sub(1);
        }
        self.call()
    }

    /// Takes back a ticket whose holder waits no longer; whether it was still waiting.
    pub fn give_up(&mut self, class: &Class, ticket: Ticket) -> bool {
        let Some(level) = self.levels.get_mut(&class.level.0) else { return false };
        for queue in &mut level.queues {
            let before = queue.tickets.len();
            queue.tickets.retain(|one| *one != ticket);
            if queue.tickets.len() < before {
                level.waiting -= 1;
                return true;
            }
        }
        false
    }

    /// How many requests run and wait in each level, for those who watch.
    pub fn usage(&self) -> impl Iterator<Item = (&str, u64, usize)> {
        self.levels.iter().map(|(name, level)| (name.as_str(), level.running, level.waiting))
    }

    /// Seats those who wait, as long as there are seats.
    fn call(&mut self) -> Vec<Ticket> {
        let mut called = Vec::new();
        let names: Vec<String> = self
            .levels
            .iter()
            .filter(|(_, level)| level.waiting > 0)
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            while self.has_seat(&name)
                && let Some(level) = self.levels.get_mut(&name)
                && let Some(ticket) = level.next()
            {
                level.running += 1;
                called.push(ticket);
            }
        }
        called
    }

    /// Has a level a seat of its own left, or one that another level lends?
    fn has_seat(&self, name: &str) -> bool {
        let Some(level) = self.levels.get(name) else { return false };
        if level.exempt || level.running < level.seats {
            return true;
        }
        let borrowed = level.running.saturating_sub(level.seats);
        if level.borrowing_percent.is_some_and(|part| borrowed >= level.seats * part / 100) {
            return false;
        }
        let others = self.levels.iter().filter(|(other, level)| *other != name && !level.exempt);
        let lent: u64 = others
            .map(|(_, other)| other.lendable.min(other.seats.saturating_sub(other.running)))
            .sum();
        let limited = self.levels.values().filter(|level| !level.exempt);
        let all: u64 = limited.map(|level| level.running.saturating_sub(level.seats)).sum();
        all < lent
    }
}

impl Schema {
    fn of(object: &Value) -> Self {
        let text = |path: &str| str_at(object, path).unwrap_or("").to_owned();
        let rules = object.pointer("/spec/rules").and_then(Value::as_array);
        Self {
            precedence: int_at(object, "spec.matchingPrecedence").unwrap_or(1000),
            name: text("metadata.name"),
            uid: text("metadata.uid"),
            level: text("spec.priorityLevelConfiguration.name"),
            by: text("spec.distinguisherMethod.type"),
            rules: rules.into_iter().flatten().map(Rule::of).collect(),
        }
    }

    fn matches(&self, user: &User, asked: &Attributes, resource: &str) -> bool {
        self.rules.iter().any(|rule| {
            rule.subjects.iter().any(|one| one.is(user))
                && if asked.is_resource() {
                    rule.resources.iter().any(|one| one.matches(asked, resource))
                } else {
                    rule.paths.iter().any(|one| one.matches(asked))
                }
        })
    }
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn texts(value: &Value, key: &str) -> Vec<String> {
    items(value, key).filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|have| have == "*" || have == wanted)
}

impl Rule {
    fn of(rule: &Value) -> Self {
        let resource = |one: &Value| ResourceRule {
            verbs: texts(one, "verbs"),
            groups: texts(one, "apiGroups"),
            resources: texts(one, "resources"),
            namespaces: texts(one, "namespaces"),
            cluster_scope: one.get("clusterScope").and_then(Value::as_bool).unwrap_or(false),
        };
        let path = |one: &Value| PathRule {
            verbs: texts(one, "verbs"),
            paths: texts(one, "nonResourceURLs"),
        };
        Self {
            subjects: items(rule, "subjects").filter_map(Subject::of).collect(),
            resources: items(rule, "resourceRules").map(resource).collect(),
            paths: items(rule, "nonResourceRules").map(path).collect(),
        }
    }
}

impl Subject {
    fn of(subject: &Value) -> Option<Self> {
        let text = |path: &str| str_at(subject, path).map(str::to_owned);
        Some(match str_at(subject, "kind")? {
            "User" => Self::User(text("user.name")?),
            "Group" => Self::Group(text("group.name")?),
            "ServiceAccount" => {
                Self::Account(text("serviceAccount.namespace")?, text("serviceAccount.name")?)
            }
            _ => return None,
        })
    }

    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => name == "*" || *name == user.name,
            Self::Group(group) => group == "*" || user.is_in(group),
            Self::Account(namespace, name) => {
                let rest = user.name.strip_prefix("system:serviceaccount:");
                rest.and_then(|rest| rest.split_once(':'))
                    .is_some_and(|(home, own)| namespace == home && (name == "*" || name == own))
            }
        }
    }
}

impl ResourceRule {
    fn matches(&self, asked: &Attributes, resource: &str) -> bool {
        let placed = if asked.namespace.is_empty() {
            self.cluster_scope
        } else {
            has(&self.namespaces, &asked.namespace)
        };
        placed
            && has(&self.verbs, &asked.verb)
            && has(&self.groups, &asked.group)
            && has(&self.resources, resource)
    }
}

impl PathRule {
    fn matches(&self, asked: &Attributes) -> bool {
        has(&self.verbs, &asked.verb)
            && self.paths.iter().any(|path| {
                path == "*"
                    || *path == asked.path
                    || path.strip_suffix("/*").is_some_and(|start| {
                        asked.path.strip_prefix(start).is_some_and(|rest| rest.starts_with('/'))
                    })
            })
    }
}

impl Level {
    fn configure(&mut self, object: &Value) {
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let text = |path: &str| str_at(object, path).unwrap_or("");
        text("metadata.uid").clone_into(&mut self.uid);
        self.listed = true;
        self.exempt = text("spec.type") == "Exempt";
        let part = if self.exempt { "exempt" } else { "limited" };
        let number = |path: &str| {
            let found = int_at(spec, &format!("{part}.{path}"));
            found.and_then(|number| u64::try_from(number).ok())
        };
        self.shares =
            number("nominalConcurrencyShares").unwrap_or(if self.exempt { 0 } else { 30 });
        self.lendable_percent = number("lendablePercent").unwrap_or(0).min(100);
        self.borrowing_percent = number("borrowingLimitPercent");
        let size = |path: &str, usual: usize| {
            let found = number(&format!("limitResponse.queuing.{path}"));
            found.and_then(|number| usize::try_from(number).ok()).unwrap_or(usual)
        };
        let queues = text("spec.limited.limitResponse.type") == "Queue";
        let count = if queues { size("queues", 64).clamp(1, 10_000) } else { 0 };
        self.hand = size("handSize", 8).clamp(1, 32);
        self.length_max = size("queueLengthLimit", 50);
        // Queues that are no longer wanted go when they are empty; those before them stay.
        while self.queues.len() > count
            && self.queues.last().is_some_and(|queue| queue.tickets.is_empty())
        {
            self.queues.pop();
        }
        while self.queues.len() < count {
            self.queues.push(Queue::default());
        }
    }

    /// Puts a ticket into the shortest queue of its flow's hand.
    fn enqueue(&mut self, schema: &str, flow: &str, ticket: Ticket) -> Arrival {
        let hand = deal(hash(schema, flow), self.queues.len(), self.hand);
        let shortest = hand
            .into_iter()
            .filter_map(|at| self.queues.get(at).map(|queue| (queue.tickets.len(), at)))
            .min();
        let Some((length, at)) = shortest else { return Arrival::Refused };
        if length >= self.length_max {
            return Arrival::Refused;
        }
        let clock = self.clock;
        if let Some(queue) = self.queues.get_mut(at) {
            if queue.tickets.is_empty() {
                // Who was idle does not get the past back.
                queue.account = queue.account.max(clock);
            }
            queue.tickets.push_back(ticket);
            self.waiting += 1;
        }
        Arrival::Waits
    }

    /// The ticket whose turn it is: of the queue that has had the least.
    fn next(&mut self) -> Option<Ticket> {
        let queues = self.queues.iter_mut().filter(|queue| !queue.tickets.is_empty());
        let queue = queues.min_by_key(|queue| queue.account)?;
        let ticket = queue.tickets.pop_front()?;
        self.clock = queue.account;
        queue.account += WORK;
        self.waiting -= 1;
        Some(ticket)
    }
}

/// FNV-1a of a flow.
fn hash(schema: &str, flow: &str) -> u64 {
    let bytes = schema.bytes().chain([0]).chain(flow.bytes());
    let mixed = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The low bits decide, so the high ones are folded in.
    mixed ^ (mixed >> 32)
}

/// Deals a flow its hand of queues, all different: two heavy flows seldom share all of theirs.
fn deal(mut hash: u64, queues: usize, hand: usize) -> Vec<usize> {
    let mut dealt: Vec<usize> = Vec::new();
    for left in (0..queues).rev().take(hand) {
        let size = u64::try_from(left).unwrap_or(u64::MAX).saturating_add(1);
        let mut card = usize::try_from(hash % size).unwrap_or(0);
        hash = (hash / size) ^ hash.rotate_left(21);
        // The n-th of those not dealt yet.
        let mut taken = dealt.clone();
        taken.sort_unstable();
        for one in taken {
            if card >= one {
                card += 1;
            }
        }
        dealt.push(card);
    }
    dealt
}
