//! Answers of other name servers, kept for a while.
//!
//! Spec: RFC 1035 §7.4 and RFC 2308; lifetimes are cut as CoreDNS's `cache 30` cuts them.

use std::collections::BTreeMap;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};

/// How long an answer is kept at most.
const POSITIVE_MAX: Duration = Duration::from_secs(30);
/// How long it is believed at most that a name is not there.
const NEGATIVE_MAX: Duration = Duration::from_secs(5);
/// Questions remembered; beyond, the oldest half by expiry goes.
const QUESTIONS_MAX: usize = 10_000;

/// What makes two questions the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    name: Vec<u8>,
    kind: RecordType,
    class: DNSClass,
    wants_signatures: bool,
}

#[derive(Debug, Clone)]
struct Kept {
    message: Message,
    since: Duration,
    until: Duration,
}

/// Kept answers; time is what the caller says it is, from any fixed point on.
#[derive(Debug, Default)]
pub struct Cache {
    kept: BTreeMap<Key, Kept>,
}

impl Cache {
    /// The kept answer to `query`, its lifetimes counted down; its id is not the question's.
    #[must_use]
    pub fn get(&self, query: &Query, wants_signatures: bool, now: Duration) -> Option<Message> {
        let kept = self.kept.get(&Key::of(query, wants_signatures))?;
        if now >= kept.until {
            return None;
        }
        let age = u32::try_from(now.saturating_sub(kept.since).as_secs()).unwrap_or(u32::MAX);
        let mut message = kept.message.clone();
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    /// Keeps an answer, if it is one that may be kept.
    pub fn put(&mut self, message: &Message, wants_signatures: bool, now: Duration) {
        let (Some(query), Some(lifetime)) = (message.queries.first(), lifetime(message)) else {
            return;
        };
        if self.kept.len() >= QUESTIONS_MAX {
            self.make_room(now);
        }
        let kept = Kept { message: message.clone(), since: now, until: now + lifetime };
        self.kept.insert(Key::of(query, wants_signatures), kept);
    }

    fn make_room(&mut self, now: Duration) {
        self.kept.retain(|_, kept| kept.until > now);
        if self.kept.len() < QUESTIONS_MAX {
            return;
        }
        let mut ends: Vec<Duration> = self.kept.values().map(|kept| kept.until).collect();
        ends.sort_unstable();
        let Some(middle) = ends.get(ends.len() / 2).copied() else { return };
        self.kept.retain(|_, kept| kept.until > middle);
    }
}

impl Key {
    fn of(query: &Query, wants_signatures: bool) -> Self {
        let mut name = Vec::with_capacity(query.name().len());
        for label in query.name() {
            name.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
            name.extend(label.iter().map(u8::to_ascii_lowercase));
        }
        Self { name, kind: query.query_type(), class: query.query_class(), wants_signatures }
    }
}

/// How long an answer may be kept; `None` when not at all.
fn lifetime(message: &Message) -> Option<Duration> {
    if message.metadata.truncation {
        return None;
    }
    let shortest = |records: &[Record]| records.iter().map(|record| record.ttl).min();
    let (seconds, limit) = match message.metadata.response_code {
        ResponseCode::NoError if !message.answers.is_empty() => {
            (shortest(&message.answers)?, POSITIVE_MAX)
        }
        // The SOA says how long nothing is nothing; without one, nobody does.
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = message.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
                _ => None,
            });
            (soa?, NEGATIVE_MAX)
        }
        _ => return None,
    };
    let lifetime = Duration::from_secs(u64::from(seconds)).min(limit);
    (!lifetime.is_zero()).then_some(lifetime)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{MessageType, OpCode};
    use hickory_proto::rr::Name;
    use hickory_proto::rr::rdata::{A, SOA};

    use super::*;

    fn question(name: &str) -> Query {
        Query::query(Name::from_ascii(name).unwrap(), RecordType::A)
    }

    fn answer(name: &str, ttl: u32) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.add_query(question(name));
        let data = RData::A(A::new(192, 0, 2, 1));
        message.add_answer(Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, data));
        message
    }

    fn denial(name: &str, minimum: u32) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.metadata.response_code = ResponseCode::NXDomain;
        message.add_query(question(name));
        let root = Name::root();
        let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, minimum);
        message.add_authority(Record::from_rdata(root, 3600, RData::SOA(soa)));
        message
    }

    /// For how many seconds an answer is given again.
    #[track_caller]
    fn check(message: &Message, name: &str, seconds: u64) {
        let mut cache = Cache::default();
        let at = Duration::from_secs;
        cache.put(message, false, at(100));
        let is_there = |second| cache.get(&question(name), false, at(second)).is_some();
        assert_eq!((100..200).take_while(|second| is_there(*second)).count() as u64, seconds);
    }

    #[test]
    fn answers_are_kept_as_long_as_they_may_be() {
        check(&answer("a.example.", 10), "A.Example.", 10);
        check(&answer("a.example.", 3600), "a.example.", 30);
        check(&answer("a.example.", 0), "a.example.", 0);
        check(&answer("a.example.", 10), "b.example.", 0);
        check(&denial("a.example.", 3), "a.example.", 3);
        check(&denial("a.example.", 600), "a.example.", 5);
        let mut cut = answer("a.example.", 10);
        cut.metadata.truncation = true;
        check(&cut, "a.example.", 0);
        let mut failed = answer("a.example.", 10);
        failed.metadata.response_code = ResponseCode::ServFail;
        check(&failed, "a.example.", 0);
    }

    #[test]
    fn lifetimes_count_down_and_signed_answers_are_others() {
        let mut cache = Cache::default();
        cache.put(&answer("a.example.", 10), false, Duration::from_secs(5));
        let later = Duration::from_secs(9);
        let found = cache.get(&question("a.example."), false, later).unwrap();
        assert_eq!(found.answers[0].ttl, 6);
        assert!(cache.get(&question("a.example."), true, later).is_none());
    }

    #[test]
    fn a_full_cache_forgets_what_ends_first() {
        let mut cache = Cache::default();
        for number in 0..=QUESTIONS_MAX {
            let ttl = 1 + u32::from(number % 2 == 0) * 20;
            cache.put(&answer(&format!("n{number}.example."), ttl), false, Duration::ZERO);
        }
        assert!(cache.kept.len() <= QUESTIONS_MAX);
        let now = Duration::from_secs(2);
        assert!(cache.get(&question("n10000.example."), false, now).is_some());
    }
}
