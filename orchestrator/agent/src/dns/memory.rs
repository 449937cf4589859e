//! Answers to messages that were seen before, while the zone is the same.
//!
//! Clients ask the same few questions over and over; all but the id of such a message is equal.
//! Of an answer with several records, so many are remembered, each beginning with another one, and
//! have their turn. Turns are counted for each question: who always asks for addresses of both
//! families, one after the other, would by one count for all meet every second record alone.

use std::collections::HashMap;

/// How much is remembered; then everything is forgotten.
const BYTES_MAX: usize = 4 << 20;
/// Messages longer than this are not remembered.
const MESSAGE_BYTES_MAX: usize = 256;
/// So many answers of one question have their turn.
const TURNS_MAX: usize = 8;

/// What was answered.
#[derive(Default)]
pub(super) struct Memory {
    /// Of which edition of the zone.
    edition: u64,
    answers: HashMap<Box<[u8]>, Turns>,
    bytes: usize,
}

/// The answers to one question.
struct Turns {
    answers: Vec<Box<[u8]>>,
    /// How many there are to be.
    wanted: usize,
    next: usize,
}

/// What is known of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Recalled<'a> {
    /// Its id, and the rest of its answer.
    Answer(&'a [u8], &'a [u8]),
    /// Nothing yet; with which record its answer is to begin.
    Turn(usize),
}

impl Memory {
    /// Forgets everything when the zone is another one.
    pub(super) fn is_of(&mut self, edition: u64) {
        if self.edition != edition {
            self.forget();
            self.edition = edition;
        }
    }

    fn forget(&mut self) {
        self.answers.clear();
        self.bytes = 0;
    }

    /// Looks whether a message was answered before.
    pub(super) fn recall<'a>(&'a mut self, message: &'a [u8]) -> Recalled<'a> {
        let Some((id, rest)) = message.split_at_checked(2) else { return Recalled::Turn(0) };
        let Some(turns) = self.answers.get_mut(rest) else { return Recalled::Turn(0) };
        if turns.answers.len() < turns.wanted {
            return Recalled::Turn(turns.answers.len());
        }
        turns.next = if turns.next + 1 < turns.wanted { turns.next + 1 } else { 0 };
        match turns.answers.get(turns.next) {
            Some(answer) => Recalled::Answer(id, answer),
            None => Recalled::Turn(0),
        }
    }

    /// Remembers an answer with so many records.
    pub(super) fn keep(&mut self, message: &[u8], records: usize, answer: &[u8]) {
        let (Some(rest), Some(answer)) = (message.get(2..), answer.get(2..)) else { return };
        if message.len() > MESSAGE_BYTES_MAX {
            return;
        }
        if self.bytes > BYTES_MAX {
            self.forget();
        }
        let turns = self.answers.entry(rest.into()).or_insert_with(|| {
            self.bytes += rest.len();
            Turns { answers: Vec::new(), wanted: records.clamp(1, TURNS_MAX), next: 0 }
        });
        turns.answers.push(answer.into());
        self.bytes += answer.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_question_has_turns_of_its_own() {
        let mut memory = Memory::default();
        memory.is_of(1);
        let (four, six) = (b"01 four?", b"02 six?");
        assert_eq!(memory.recall(four), Recalled::Turn(0));
        memory.keep(four, 2, b"01 red, blue");
        assert_eq!(memory.recall(six), Recalled::Turn(0));
        memory.keep(six, 0, b"02 none");
        assert_eq!(memory.recall(four), Recalled::Turn(1));
        memory.keep(four, 2, b"01 blue, red");
        // Asked in pairs, and still both come first in turn.
        for wanted in [b" blue, red".as_slice(), b" red, blue", b" blue, red"] {
            assert_eq!(memory.recall(b"77 four?"), Recalled::Answer(b"77", wanted));
            assert_eq!(memory.recall(six), Recalled::Answer(b"02", b" none"));
        }
        memory.is_of(2);
        assert_eq!(memory.recall(six), Recalled::Turn(0), "names have changed");
        for short in [b"".as_slice(), b"1"] {
            assert_eq!(memory.recall(short), Recalled::Turn(0));
            memory.keep(short, 1, b"x");
        }
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let mut memory = Memory::default();
        let long = [b'x'; MESSAGE_BYTES_MAX + 1];
        memory.keep(&long, 1, b"01 no");
        assert_eq!(memory.recall(&long), Recalled::Turn(0));
        for number in 0..40_000_u32 {
            memory.keep(format!("01 {number}").as_bytes(), 1, &[1; 200]);
            assert!(memory.bytes <= BYTES_MAX + 1000);
        }
        assert!(memory.answers.len() < 40_000);
        assert!(matches!(memory.recall(b"02 39999"), Recalled::Answer(b"02", _)));
    }
}
