//! Removes what is not meant to last: events, enrolments that are over, and claims without a
//! service.
//!
//! Nobody owns these objects, and without an end they would fill the store: every boot of a
//! machine makes a signing request, every failed start of a pod an event.
//!
//! Tasks: one round at a slow beat, for as long as the server runs.

use std::time::Duration;

use jiff::Timestamp;
use objects::{Kind, field, kind, time};
use serde_json::Value;
use store::{Expect, Write};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::claim;
use crate::enroll;
use crate::object;
use crate::server::{Server, now};

/// How often everything is looked at.
const BEAT: Duration = Duration::from_secs(300);
/// How long an event is kept after it was last seen; upstream's hour.
const EVENT_SECONDS: i64 = 3600;

/// Sweeps until `stop`.
pub(crate) async fn run(stop: CancellationToken, server: &Server) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! { biased;
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        remove(server, &kind::EVENT, is_old_event).await;
        requests(server).await;
        claim::repair(server, false).await;
    }
}

/// Removes enrolments nobody waits for any more.
pub(crate) async fn requests(server: &Server) {
    remove(server, &kind::CERTIFICATE_SIGNING_REQUEST, enroll::is_over).await;
}

async fn remove(server: &Server, kind: &Kind, is_over: impl Fn(&Value, Timestamp) -> bool) {
    let now = now();
    let mut removed = 0_usize;
    for item in server.items(kind, "") {
        if !is_over(&object::decode(&item, 0), now) {
            continue;
        }
        let removal = Write {
            shelf: server.shelf(kind),
            name: item.name().into(),
            expect: Expect::Revision(item.modified()),
            value: None,
            head: None,
        };
        // One that changed just now is not over after all.
        removed += usize::from(server.store.write(removal).await.is_ok());
    }
    if removed > 0 {
        tracing::debug!(kind = kind.kind, removed, "swept");
    }
}

fn is_old_event(event: &Value, now: Timestamp) -> bool {
    let seen =
        ["series.lastObservedTime", "lastTimestamp", "eventTime", "metadata.creationTimestamp"];
    let last = seen.iter().filter_map(|path| time::parse_time(field::str_at(event, path)?)).max();
    last.is_some_and(|last| time::seconds_between(last, now) > EVENT_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_kept_an_hour_after_it_was_last_seen() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let check = |event: Value, old: bool| assert_eq!(is_old_event(&event, now), old, "{event}");
        let created = |at: &str| json!({"metadata": {"creationTimestamp": at}});
        check(created("2026-11-21T11:30:00Z"), false);
        check(created("2026-11-21T10:30:00Z"), true);
        let mut again = created("2026-11-21T10:30:00Z");
        again["lastTimestamp"] = json!("2026-11-21T11:59:00Z");
        check(again, false);
        check(json!({}), false);
    }
}
