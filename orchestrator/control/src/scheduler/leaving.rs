//! Pods that were asked to leave, and for whom.

use std::collections::BTreeMap;

/// Who leaves for whom, by uid; asked for every pod that goes, so both ways are kept.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    whom: BTreeMap<String, String>,
    /// How many leave for a pod.
    awaited: BTreeMap<String, usize>,
}

impl Leaving {
    /// Notes that a pod leaves for another's sake, and for no one else's any more.
    pub(super) fn note(&mut self, uid: &str, whom: &str) {
        if let Some(before) = self.whom.insert(uid.to_owned(), whom.to_owned()) {
            self.count_off(&before);
        }
        *self.awaited.entry(whom.to_owned()).or_default() += 1;
    }

    /// A pod has left; says for whom, when that was the last one awaited.
    pub(super) fn left(&mut self, uid: &str) -> Option<String> {
        let whom = self.whom.remove(uid)?;
        self.count_off(&whom);
        (!self.is_awaiting(&whom)).then_some(whom)
    }

    /// Does a pod wait for others to leave?
    pub(super) fn is_awaiting(&self, whom: &str) -> bool {
        self.awaited.contains_key(whom)
    }

    fn count_off(&mut self, whom: &str) {
        if let Some(count) = self.awaited.get_mut(whom) {
            *count -= 1;
            if *count == 0 {
                self.awaited.remove(whom);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_to_leave_is_the_one_that_counts() {
        let mut leaving = Leaving::default();
        for (uid, whom) in [("a", "x"), ("b", "x"), ("c", "y"), ("a", "x"), ("b", "y")] {
            leaving.note(uid, whom);
        }
        assert_eq!(leaving.left("c"), None);
        assert!(leaving.is_awaiting("y"));
        assert_eq!(leaving.left("a").as_deref(), Some("x"));
        assert!(!leaving.is_awaiting("x"));
        assert_eq!(leaving.left("a"), None);
        assert_eq!(leaving.left("b").as_deref(), Some("y"));
        assert!(!leaving.is_awaiting("y"));
    }
}
