//! Places for requests: who may be worked on now, who waits, who is sent away.
//!
//! What is decided here `api::authority::flow` decides; this keeps the waiting futures and the
//! clock. Flow schemas and priority levels count from the next request on.
//!
//! Tasks: one watch on the shelves of both, for as long as the server runs, that keeps up what the
//! schemas' status says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::authority::flow::{Arrival, Class, Flows, Ticket, plan_condition};
use api::{Attributes, User};
use objects::{Kind, Status, Time, field, kind};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::object;
use crate::respond::Answer;
use crate::server::{Server, now};
use crate::write::replace_own;

/// The kinds that decide.
pub(crate) const KINDS: [&Kind; 2] = [&kind::FLOW_SCHEMA, &kind::PRIORITY_LEVEL_CONFIGURATION];
/// How long a request may wait for its turn: a quarter of what clients wait for an answer.
const WAIT_LIMIT: Duration = Duration::from_secs(15);

/// The user recorded for what the server writes by itself.
const USER: &str = "system:apiserver";
/// How often schemas are looked at even when nothing tells of a change.
const BEAT: Duration = Duration::from_secs(60);

/// All places.
#[derive(Debug)]
pub(crate) struct Fair {
    state: Mutex<State>,
    seats: u64,
    tickets: AtomicU64,
    old: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    flows: Flows,
    waiting: BTreeMap<Ticket, oneshot::Sender<()>>,
}

impl State {
    fn call(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            if let Some(sender) = self.waiting.remove(ticket) {
                // Who waits no longer gives its seat back by itself.
                let _heard = sender.send(()).is_ok();
            }
        }
    }
}

/// Keeps up what flow schemas say of their levels, until `stop`.
pub(crate) async fn run(stop: CancellationToken, server: &Server) {
    let watch = |kind: &Kind, from: u64| server.store.watch(&server.shelf(kind), "", from);
    let start = server.store.revision();
    let [mut schemas, mut levels] = KINDS.map(|kind| watch(kind, start));
    loop {
        settle(server).await;
        let told = tokio::select! { biased;
            () = stop.cancelled() => return,
            changes = schemas.next() => changes.is_ok(),
            changes = levels.next() => changes.is_ok(),
            () = tokio::time::sleep(BEAT) => true,
        };
        if !told {
            let start = server.store.revision();
            [schemas, levels] = KINDS.map(|kind| watch(kind, start));
        }
    }
}

/// Writes the status of schemas that say something else than what is so.
///
/// Cancel safe: what is missing is done by the next call.
pub(crate) async fn settle(server: &Server) {
    let levels = server.items(&kind::PRIORITY_LEVEL_CONFIGURATION, "");
    let levels: BTreeSet<&str> = levels.iter().map(|item| item.name()).collect();
    // Side by side, so that those of a new cluster go to disk as one.
    let writes = server.items(&kind::FLOW_SCHEMA, "").into_iter().filter_map(|item| {
        let schema = object::decode(&item, item.modified());
        let level = field::str_at(&schema, "spec.priorityLevelConfiguration.name");
        let exists = level.is_some_and(|level| levels.contains(level));
        let planned = plan_condition(&schema, exists, Time::from(now()))?;
        let path = format!("{}/status", kind::FLOW_SCHEMA.path(None, Some(item.name())));
        Some(async move {
            // Someone was quicker, or the disk is full: the watch will wake us again.
            if let Err(status) = replace_own(server, USER, &path, &planned).await {
                tracing::debug!(%status, path, "a schema's status was not written");
            }
        })
    });
    futures_util::future::join_all(writes).await;
}

/// A request's place, given back when dropped.
pub(crate) struct Seat {
    server: Arc<Server>,
    class: Class,
    /// The ticket while it waits.
    ticket: Option<Ticket>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.class.exempt {
            return;
        }
        let mut state = self.server.fair.lock();
        if let Some(ticket) = self.ticket {
            state.waiting.remove(&ticket);
            if state.flows.give_up(&self.class, ticket) {
                return;
            }
            // It was called in this very moment, and so it has a seat.
        }
        let called = state.flows.leave(&self.class);
        state.call(&called);
    }
}

impl Fair {
    /// Places for so many requests at a time.
    pub(crate) fn new(seats: u64) -> Self {
        Self {
            state: Mutex::default(),
            seats,
            tickets: AtomicU64::new(0),
            old: AtomicBool::new(true),
        }
    }

    /// Notes that an object of this kind was written.
    pub(crate) fn written(&self, kind: &Kind) {
        if KINDS.contains(&kind) {
            self.old.store(true, Ordering::Release);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self, server: &Server) -> std::sync::MutexGuard<'_, State> {
        let mut state = self.lock();
        if self.old.swap(false, Ordering::AcqRel) {
            let objects: Vec<_> = KINDS
                .iter()
                .flat_map(|kind| server.items(kind, ""))
                .map(|item| object::decode(&item, item.modified()))
                .collect();
            state.flows.configure(&objects, self.seats);
        }
        state
    }

    /// How many requests run and wait in each level, for `/metrics`.
    pub(crate) fn render(&self) -> String {
        let state = self.lock();
        let (mut runs, mut waits) = (String::new(), String::new());
        for (level, running, waiting) in state.flows.usage() {
            let label = format!("{{priority_level=\"{level}\"}}");
            runs += &format!("apiserver_flowcontrol_current_executing_requests{label} {running}\n");
            waits += &format!("apiserver_flowcontrol_current_inqueue_requests{label} {waiting}\n");
        }
        format!(
            "# TYPE apiserver_flowcontrol_current_executing_requests gauge\n{runs}\
             # TYPE apiserver_flowcontrol_current_inqueue_requests gauge\n{waits}"
        )
    }
}

/// Waits until it is this request's turn.
///
/// # Errors
///
/// 429 when there are too many, or it took too long.
pub(crate) async fn seat(
    server: &Arc<Server>,
    user: &User,
    asked: &Attributes,
) -> Result<Seat, Status> {
    let ticket = server.fair.tickets.fetch_add(1, Ordering::Relaxed);
    let (mut seat, turn) = {
        let mut state = server.fair.current(server);
        let class = state.flows.classify(user, asked);
        let mut seat = Seat { server: Arc::clone(server), class, ticket: None };
        if seat.class.exempt {
            return Ok(seat);
        }
        match state.flows.arrive(&seat.class, ticket) {
            Arrival::Runs => return Ok(seat),
            Arrival::Waits => {
                let (call, turn) = oneshot::channel();
                state.waiting.insert(ticket, call);
                seat.ticket = Some(ticket);
                (seat, turn)
            }
            Arrival::Refused => {
                // It has no seat that dropping could give back.
                seat.class.exempt = true;
                return Err(refusal());
            }
        }
    };
    match tokio::time::timeout(WAIT_LIMIT, turn).await {
        Ok(Ok(())) => {
            seat.ticket = None;
            Ok(seat)
        }
        _ => Err(refusal()),
    }
}

fn refusal() -> Status {
    Status::too_many_requests("Too many requests, please try again later.", 1)
}

impl Seat {
    /// Says in an answer where the request belonged.
    pub(crate) fn tell(&self, answer: &mut Answer) {
        for (name, uid) in [
            ("x-kubernetes-pf-flowschema-uid", &self.class.schema.1),
            ("x-kubernetes-pf-prioritylevel-uid", &self.class.level.1),
        ] {
            if let (false, Ok(value)) = (uid.is_empty(), uid.parse()) {
                answer.headers_mut().insert(name, value);
            }
        }
    }
}
