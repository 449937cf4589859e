//! Deletes old events, which nothing else would ever do.
//!
//! Upstream gives events a time to live in the store; ours has none, so this task reads them
//! page by page now and then.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use objects::event::Event;
use objects::meta::Object;
use runtime::client::{DeleteParams, ListParams};
use runtime::resource::EVENTS;
use runtime::{Client, ClientError, report};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How long an event is kept after it last happened; upstream's.
const KEEP: SignedDuration = SignedDuration::from_hours(1);
/// How often we look; an event lives that much longer at most.
const PACE: Duration = Duration::from_secs(600);
/// Events per page.
const PAGE: u32 = 500;

/// Deletes events past their time until `stop`.
pub(crate) async fn run(stop: CancellationToken, client: Client) {
    loop {
        tokio::select! { biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PACE) => (),
        }
        if let Err(err) = sweep(&client).await {
            debug!(err = report(&err), "cannot expire events; the next round retries");
        }
    }
}

async fn sweep(client: &Client) -> Result<(), ClientError> {
    let mut params = ListParams { limit: Some(PAGE), ..ListParams::default() };
    loop {
        let list = client.list(&EVENTS, None, &params).await?;
        let now = Timestamp::now();
        for event in list.items.iter().filter_map(|item| Event::decode(item).ok()) {
            if !is_past(&event, now) {
                continue;
            }
            let meta = &event.metadata;
            let only = DeleteParams::uid(&meta.uid);
            match client.delete(&EVENTS, Some(&meta.namespace), &meta.name, &only).await {
                Err(err) if !err.is_not_found() && !err.is_conflict() => return Err(err),
                _ => (),
            }
        }
        if list.continue_token.is_none() {
            return Ok(());
        }
        params.continue_token = list.continue_token;
    }
}

/// Did the event last happen too long ago? One without any time is judged by its creation.
fn is_past(event: &Event, now: Timestamp) -> bool {
    let last = event.last_timestamp.map(|at| at.0).or(event.event_time.map(|at| at.0));
    let last = last.or(event.metadata.creation_timestamp.map(|at| at.0));
    last.and_then(|at| at.checked_add(KEEP).ok()).is_some_and(|end| end < now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_time_an_event_happened_counts() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-01-01T03:00:00Z");
        let mut event = Event::blank();
        assert!(!is_past(&event, now), "without any time it stays");
        event.metadata.creation_timestamp = Some(at("2026-01-01T01:00:00Z").into());
        assert!(is_past(&event, now));
        event.last_timestamp = Some(at("2026-01-01T02:30:00Z").into());
        assert!(!is_past(&event, now));
    }
}
