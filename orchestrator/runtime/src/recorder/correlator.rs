//! Which events are worth a write.
//!
//! Spec: client-go's correlator with its own numbers, so that a rack full of crash loops, or a
//! deployment of a thousand, costs the API as little as with upstream's components.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use objects::event::Event;

/// Different messages of one reason that an object gets told before they become one event.
const ALIKE_MAX: usize = 10;
/// How long events count as alike after the last of them.
const ALIKE_FOR: SignedDuration = SignedDuration::from_secs(600);
/// Writes that an object may cause at once, by one teller.
const BURST: u32 = 25;
/// How soon it may cause one more.
const REFILL: SignedDuration = SignedDuration::from_secs(300);
/// Objects and events that are remembered; forgetting them only makes more lines.
const REMEMBERED_MAX: usize = 4096;
/// How upstream names what stands for many.
const COMBINED: &str = "(combined from similar events): ";

/// An event worth writing.
#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    /// It is made.
    New(Event),
    /// It is there under this name, and count, time and message are newer.
    Again(Event),
}

/// Remembers what was told, and finds out what an event adds to it.
#[derive(Debug, Default)]
pub struct Correlator {
    alike: BTreeMap<Reason, Alike>,
    /// By reason, part of the object, and message; neither of these when many are told as one.
    told: BTreeMap<(Reason, Option<[String; 2]>), Told>,
    budgets: BTreeMap<About, Budget>,
}

/// Who tells of what: component and host; kind, namespace, name and uid of the object.
type About = [String; 6];

/// What the teller says of it: severity and reason.
type Reason = (About, [String; 2]);

#[derive(Debug)]
struct Alike {
    messages: BTreeSet<String>,
    last: Timestamp,
}

#[derive(Debug)]
struct Told {
    /// The first event's; the rest follows from the newest one.
    first: Event,
    count: i64,
}

#[derive(Debug)]
struct Budget {
    left: u32,
    /// Since when the next write is being waited for; of no meaning while all are left.
    since: Timestamp,
}

impl Correlator {
    /// Takes notice of an event; `None` when it is not worth a write. It counts all the same, and
    /// the next one that is worth it tells the number.
    pub fn hear(&mut self, event: Event, now: Timestamp) -> Option<Word> {
        self.forget(now);
        let about = about(&event);
        let reason = (about.clone(), [event.severity.clone(), event.reason.clone()]);
        let combined = self.is_one_too_many(&reason, &event.message, now);
        let part = [&event.involved_object.field_path, &event.message].map(Clone::clone);
        let key = (reason, (!combined).then_some(part));
        let text =
            if combined { format!("{COMBINED}{}", event.message) } else { event.message.clone() };
        let known = self.told.get_mut(&key);
        let again = known.is_some();
        let word = match known {
            Some(told) => {
                told.count = told.count.saturating_add(event.count.max(1));
                let last_timestamp = event.last_timestamp;
                Event { last_timestamp, message: text, count: told.count, ..told.first.clone() }
            }
            None => {
                let first = Event { message: text, ..event };
                let told = Told { first: first.clone(), count: first.count };
                self.told.insert(key, told);
                first
            }
        };
        if !self.may_write(about, now) {
            return None;
        }
        Some(if again { Word::Again(word) } else { Word::New(word) })
    }

    /// Has the object been told so much for this reason that the rest is told as one?
    fn is_one_too_many(&mut self, reason: &Reason, message: &str, now: Timestamp) -> bool {
        let alike = self.alike.entry(reason.clone());
        let alike = alike.or_insert_with(|| Alike { messages: BTreeSet::new(), last: now });
        if now.duration_since(alike.last) > ALIKE_FOR {
            alike.messages.clear();
        }
        alike.last = now;
        if alike.messages.contains(message) {
            return false;
        }
        if alike.messages.len() + 1 >= ALIKE_MAX {
            return true;
        }
        alike.messages.insert(message.to_owned());
        false
    }

    /// Takes a write from the object's budget.
    fn may_write(&mut self, about: About, now: Timestamp) -> bool {
        let budget = self.budgets.entry(about).or_insert(Budget { left: BURST, since: now });
        while budget.left < BURST && now.duration_since(budget.since) >= REFILL {
            budget.left += 1;
            budget.since = budget.since.saturating_add(REFILL).unwrap_or(now);
        }
        if budget.left == BURST {
            budget.since = now;
        }
        let may = budget.left > 0;
        budget.left = budget.left.saturating_sub(1);
        may
    }

    /// Keeps the memory bounded: what was quiet for long goes first, then everything.
    fn forget(&mut self, now: Timestamp) {
        if self.alike.len() > REMEMBERED_MAX {
            self.alike.retain(|_, one| now.duration_since(one.last) <= ALIKE_FOR);
        }
        if self.alike.len() > REMEMBERED_MAX {
            self.alike.clear();
        }
        if self.told.len() > REMEMBERED_MAX {
            self.told.clear();
        }
        if self.budgets.len() > REMEMBERED_MAX {
            self.budgets.retain(|_, one| one.left == 0 && now.duration_since(one.since) < REFILL);
        }
        if self.budgets.len() > REMEMBERED_MAX {
            self.budgets.clear();
        }
    }
}

fn about(event: &Event) -> About {
    let (object, source) = (&event.involved_object, &event.source);
    [&source.component, &source.host, &object.kind, &object.namespace, &object.name, &object.uid]
        .map(Clone::clone)
}

#[cfg(test)]
mod tests {
    use objects::ObjectMeta;
    use objects::event::EventSource;
    use objects::meta::ObjectReference;

    use super::*;

    /// A teller with a clock.
    struct Desk {
        correlator: Correlator,
        now: Timestamp,
        number: u32,
    }

    impl Desk {
        fn new() -> Self {
            Self { correlator: Correlator::default(), now: Timestamp::UNIX_EPOCH, number: 0 }
        }

        fn pass(&mut self, seconds: i64) {
            self.now = self.now.saturating_add(SignedDuration::from_secs(seconds)).unwrap();
        }

        /// What is written: the event's name, its count and its message.
        fn tell(
            &mut self,
            object: &str,
            reason: &str,
            message: &str,
        ) -> Option<(String, i64, String)> {
            self.number += 1;
            let event = Event {
                metadata: ObjectMeta::in_namespace("a", &format!("e{}", self.number)),
                involved_object: ObjectReference {
                    uid: object.to_owned(),
                    ..ObjectReference::default()
                },
                reason: reason.to_owned(),
                message: message.to_owned(),
                source: EventSource { component: "desk".to_owned(), ..EventSource::default() },
                count: 1,
                ..Event::blank()
            };
            let word = self.correlator.hear(event, self.now)?;
            let (kind, event) = match word {
                Word::New(event) => ("new", event),
                Word::Again(event) => ("again", event),
            };
            let name = format!("{kind} {}", event.metadata.name);
            Some((name, event.count, event.message))
        }
    }

    #[track_caller]
    fn check(told: Option<(String, i64, String)>, name: &str, count: i64, message: &str) {
        assert_eq!(told, Some((name.to_owned(), count, message.to_owned())));
    }

    #[test]
    fn what_was_told_is_counted() {
        let mut desk = Desk::new();
        check(desk.tell("x", "BackOff", "again"), "new e1", 1, "again");
        check(desk.tell("y", "BackOff", "again"), "new e2", 1, "again");
        check(desk.tell("x", "BackOff", "again"), "again e1", 2, "again");
        check(desk.tell("x", "Pulled", "again"), "new e4", 1, "again");
        desk.pass(3600);
        check(desk.tell("x", "BackOff", "again"), "again e1", 3, "again");
    }

    #[test]
    fn many_alike_become_one_until_it_has_been_quiet() {
        let mut desk = Desk::new();
        for n in 1..10 {
            let message = format!("Created pod: {n}");
            check(desk.tell("set", "Made", &message), &format!("new e{n}"), 1, &message);
        }
        let told = desk.tell("set", "Made", "Created pod: 10");
        check(told, "new e10", 1, "(combined from similar events): Created pod: 10");
        let told = desk.tell("set", "Made", "Created pod: 11");
        check(told, "again e10", 2, "(combined from similar events): Created pod: 11");
        // One of the first is still one of the first, and another reason is none of this.
        check(desk.tell("set", "Made", "Created pod: 3"), "again e3", 2, "Created pod: 3");
        check(desk.tell("set", "Failed", "no room"), "new e13", 1, "no room");
        desk.pass(601);
        check(desk.tell("set", "Made", "Created pod: 14"), "new e14", 1, "Created pod: 14");
    }

    #[test]
    fn what_happens_all_the_time_is_told_now_and_then() {
        let mut desk = Desk::new();
        let told = (0..1000).filter(|_| desk.tell("x", "Unhealthy", "no answer").is_some());
        assert_eq!(told.count(), 25);
        assert!(desk.tell("other", "Unhealthy", "no answer").is_some(), "each object by itself");
        desk.pass(299);
        assert_eq!(desk.tell("x", "Unhealthy", "no answer"), None);
        desk.pass(1);
        // The number tells of those that were not written, too.
        check(desk.tell("x", "Unhealthy", "no answer"), "again e1", 1002, "no answer");
        assert_eq!(desk.tell("x", "Unhealthy", "no answer"), None);
        desk.pass(600);
        let told = (0..9).filter(|_| desk.tell("x", "Unhealthy", "no answer").is_some());
        assert_eq!(told.count(), 2);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut desk = Desk::new();
        for n in 0..3 * REMEMBERED_MAX {
            assert!(desk.tell(&n.to_string(), "Scheduled", "to a node").is_some());
        }
        let Correlator { alike, told, budgets } = &desk.correlator;
        assert!([alike.len(), told.len(), budgets.len()].iter().all(|n| *n <= REMEMBERED_MAX + 1));
    }
}
