//! What must hold of a history.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::{Attempt, Event, History, Told, Wish};

/// Checks everything, and that there was enough to check.
pub(crate) fn all(history: &History) {
    let events = watches_agree(history);
    writes_are_ordered(history);
    changes_follow_each_other(history, &events);
    nothing_is_invented(history, &events);
    nothing_is_lost(history, &events);
    reads_are_fresh(history, &events);
    let done = history.attempts.iter().filter(|a| matches!(a.told, Told::Done(_))).count();
    assert!(done > 500 && history.reads.len() > 1000, "{done}, {}", history.reads.len());
    assert!(events.len() > 300, "only {} events were seen", events.len());
}

/// Each watcher's events are in order, each once and never from the past; and what one saw,
/// every other saw who was watching. Returns all events.
fn watches_agree(history: &History) -> BTreeMap<u64, Event> {
    let mut events: BTreeMap<u64, Event> = BTreeMap::new();
    for stretches in &history.watched {
        let mut newest = 0;
        for stretch in stretches {
            assert!(stretch.from >= newest, "a list is older than what the watcher had seen");
            newest = stretch.from;
            for event in &stretch.events {
                assert!(event.revision > newest, "{event:?} after {newest}");
                newest = event.revision;
                let known = events.entry(event.revision).or_insert_with(|| event.clone());
                assert_eq!(known, event, "two watchers saw different things");
            }
            newest = newest.max(stretch.to);
        }
    }
    for stretch in history.watched.iter().flatten() {
        let within = (Bound::Excluded(stretch.from), Bound::Included(stretch.to));
        let complete = events.range(within).map(|(_, event)| event);
        assert!(complete.eq(&stretch.events), "a watcher missed something");
    }
    events
}

/// Who wrote after another had been answered got the greater revision.
fn writes_are_ordered(history: &History) {
    let mut writes: Vec<(u64, &Attempt)> = Vec::new();
    for attempt in &history.attempts {
        if let Told::Done(Some(revision)) = attempt.told {
            writes.push((revision, attempt));
        }
    }
    writes.sort_by_key(|(revision, _)| *revision);
    assert!(writes.windows(2).all(|pair| pair[0].0 != pair[1].0), "a revision was given twice");
    let mut first_end = None;
    for (revision, attempt) in writes.iter().rev() {
        if let Some((end, later)) = first_end {
            assert!(attempt.begun <= end, "{revision} began after {later} had ended");
        }
        if first_end.is_none_or(|(end, _)| attempt.ended < end) {
            first_end = Some((attempt.ended, *revision));
        }
    }
}

/// What a write was conditional on is what was there before it.
fn changes_follow_each_other(history: &History, events: &BTreeMap<u64, Event>) {
    let known_from = |revision: u64| {
        // The event before is known for certain when one watcher saw both without a gap.
        let mut stretches = history.watched.iter().flatten();
        move |before: u64| stretches.any(|s| s.from < before && revision <= s.to)
    };
    for attempt in &history.attempts {
        let (Told::Done(Some(revision)), Wish::Put(expected, _)) = (attempt.told, &attempt.wish)
        else {
            continue;
        };
        let before = events.range(..revision).rev().find(|(_, e)| e.name == attempt.name);
        match (before, expected) {
            (Some((at, event)), Some(expected)) if known_from(revision)(*expected) => {
                assert!(event.value.is_some() && at == expected, "{attempt:?} after {event:?}");
            }
            (Some((at, event)), None) if known_from(revision)(*at) => {
                assert!(event.value.is_none(), "{attempt:?} after {event:?}");
            }
            _ => {}
        }
    }
}

/// Every value that was seen was once asked for, in vain by nobody, and came about once.
fn nothing_is_invented(history: &History, events: &BTreeMap<u64, Event>) {
    let mut asked: BTreeMap<&str, &Attempt> = BTreeMap::new();
    for attempt in &history.attempts {
        if let Wish::Put(_, value) = &attempt.wish {
            assert!(asked.insert(value, attempt).is_none());
        }
    }
    let mut came = BTreeSet::new();
    for event in events.values() {
        let Some(value) = &event.value else { continue };
        let attempt = asked.get(value.as_str()).unwrap_or_else(|| panic!("{event:?}"));
        assert_eq!(attempt.name, event.name);
        assert!(came.insert(value), "{value} came about twice");
        match attempt.told {
            Told::Refused => panic!("{attempt:?} was refused and happened: {event:?}"),
            Told::Done(at) => assert_eq!(at, Some(event.revision)),
            Told::Unknown => {}
        }
    }
    for read in &history.reads {
        let Some((revision, value)) = &read.seen else { continue };
        let attempt = asked.get(value.as_str()).unwrap_or_else(|| panic!("{read:?}"));
        assert!(attempt.told != Told::Refused && attempt.begun <= read.ended, "{read:?}");
        if let Told::Done(at) = attempt.told {
            assert_eq!(at, Some(*revision), "{read:?}");
        }
    }
}

/// What was acknowledged came about for everybody who was watching then.
fn nothing_is_lost(history: &History, events: &BTreeMap<u64, Event>) {
    for attempt in &history.attempts {
        match (attempt.told, &attempt.wish) {
            (Told::Done(Some(revision)), Wish::Put(_, value)) => {
                let mut stretches = history.watched.iter().flatten();
                if stretches.any(|s| s.from < revision && revision <= s.to) {
                    let event = events.get(&revision);
                    assert_eq!(event.and_then(|e| e.value.as_ref()), Some(value), "{attempt:?}");
                }
            }
            (Told::Done(None), Wish::Delete(expected)) => {
                let next = events.range(expected + 1..).find(|(_, e)| e.name == attempt.name);
                let Some((at, event)) = next else { continue };
                let mut stretches = history.watched.iter().flatten();
                if stretches.any(|s| s.from <= *expected && *at <= s.to) {
                    assert_eq!(event.value, None, "{attempt:?}");
                }
            }
            _ => {}
        }
    }
}

/// A read shows nothing older than what was acknowledged, or read, before it began.
fn reads_are_fresh(history: &History, events: &BTreeMap<u64, Event>) {
    // Per object: when something was certain, and the revision it had reached then.
    let mut certain: BTreeMap<&str, Vec<(std::time::Instant, u64)>> = BTreeMap::new();
    for attempt in &history.attempts {
        if let Told::Done(Some(revision)) = attempt.told {
            certain.entry(&attempt.name).or_default().push((attempt.ended, revision));
        }
    }
    for read in &history.reads {
        if let Some((revision, _)) = &read.seen {
            certain.entry(&read.name).or_default().push((read.ended, *revision));
        }
    }
    for known in certain.values_mut() {
        known.sort_unstable();
        let mut newest = 0;
        for (_, revision) in known {
            newest = newest.max(*revision);
            *revision = newest;
        }
    }
    let deletions: BTreeSet<(&str, u64)> = history
        .attempts
        .iter()
        .filter(|attempt| attempt.told != Told::Refused)
        .filter_map(|attempt| match attempt.wish {
            Wish::Delete(revision) => Some((attempt.name.as_str(), revision)),
            Wish::Put(..) => None,
        })
        .collect();
    for read in &history.reads {
        let Some(known) = certain.get(read.name.as_str()) else { continue };
        let before = known.partition_point(|(at, _)| *at < read.begun);
        let Some((_, floor)) = before.checked_sub(1).and_then(|at| known.get(at)) else { continue };
        match &read.seen {
            Some((revision, _)) => assert!(revision >= floor, "{read:?} is older than {floor}"),
            // Gone since: somebody must have asked for that, of this version or of a later one.
            None => assert!(
                deletions
                    .range((read.name.as_str(), *floor)..)
                    .next()
                    .is_some_and(|d| d.0 == read.name),
                "{read:?}: nobody deleted what was there at {floor}; {:?}",
                events.range(floor..).find(|(_, event)| event.name == read.name)
            ),
        }
    }
}
