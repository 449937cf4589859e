//! Waiting for a state, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks: short beside what is waited for, cheap beside a machine that boots.
const PACE: Duration = Duration::from_millis(250);

/// What a look at the world found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<T> {
    /// The state that was waited for.
    There(T),
    /// Something else, in words for whoever reads the failure.
    NotYet(String),
}

/// Looks until `what` is there, at most for `limit`.
///
/// An error of `look` ends the wait only at the limit: a server that does not answer yet is a
/// state like any other.
///
/// # Errors
///
/// At the limit, with the last state seen.
pub fn await_until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Seen<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match look() {
            Ok(Seen::There(found)) => return Ok(found),
            Ok(Seen::NotYet(state)) => state,
            Err(err) => format!("{err:#}"),
        };
        if start.elapsed() >= limit {
            bail!("waited {} s for {what}; last seen: {last}", limit.as_secs());
        }
        std::thread::sleep(PACE);
    }
}

/// Looks until `done`, at most for `limit`; tells whether it came true.
pub fn poll(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_wait_prints_the_last_state_seen() {
        let mut looks = 0;
        let err = await_until::<()>("the moon", Duration::ZERO, || {
            looks += 1;
            Ok(Seen::NotYet(format!("clouds, look {looks}")))
        })
        .unwrap_err();
        assert_eq!(err.to_string(), "waited 0 s for the moon; last seen: clouds, look 1");
    }

    #[test]
    fn an_error_is_a_state_like_any_other() {
        let mut answers = vec![Ok(Seen::There(7)), Err(anyhow::anyhow!("refused"))];
        let found = await_until("it", Duration::from_secs(60), || answers.pop().unwrap());
        assert_eq!(found.unwrap(), 7);
    }
}
