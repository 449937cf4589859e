//! User namespaces: which ids of the node the users of a pod are.
//!
//! A pod that says `hostUsers: false` gets a range of ids that no other pod of the node has and
//! nobody else on it, so that its root is nobody outside. A range stays with a pod until nothing
//! of it is left: files may belong to its users.
//!
//! Spec: upstream's `kubelet` user namespaces: ranges of 65,536 ids, the first one left to the
//! node itself; the file that a pod's range is kept in.

use std::collections::BTreeMap;

use objects::pod::Pod;
use serde_json::{Value, json};

/// Ids of each pod.
pub const IDS: u32 = 65_536;
/// Ranges there are at most; the last one ends below the ids that mean nobody.
const RANGES_MAX: u32 = 65_534;

/// Ranges and whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    max: u32,
    /// The owner's uid by the number of the range, from 1.
    owners: BTreeMap<u32, String>,
}

impl Ranges {
    /// As many ranges as the node takes pods.
    #[must_use]
    pub fn new(pods_max: i64) -> Self {
        let max = u32::try_from(pods_max).unwrap_or(RANGES_MAX).min(RANGES_MAX);
        Self { max, owners: BTreeMap::new() }
    }

    /// The first id of a pod's range, which is given now if the pod has none; `None` when there
    /// is none left.
    pub fn give(&mut self, uid: &str) -> Option<u32> {
        if let Some(first) = self.of(uid) {
            return Some(first);
        }
        let free = (1..=self.max).find(|number| !self.owners.contains_key(number))?;
        self.owners.insert(free, uid.to_owned());
        Some(first_of(free))
    }

    /// The first id of the range that a pod has.
    #[must_use]
    pub fn of(&self, uid: &str) -> Option<u32> {
        self.owners.iter().find(|(_, owner)| *owner == uid).map(|(number, _)| first_of(*number))
    }

    /// Takes note of a range given earlier; tells whether it is the pod's alone.
    pub fn recall(&mut self, uid: &str, first: u32) -> bool {
        let number = first / IDS;
        if number == 0 || !first.is_multiple_of(IDS) {
            return false;
        }
        self.owners.entry(number).or_insert_with(|| uid.to_owned()) == uid
    }

    /// Takes a pod's range back.
    pub fn release(&mut self, uid: &str) {
        self.owners.retain(|_, owner| owner != uid);
    }
}

/// What a pod says about the node's users; `None` when it says nothing.
#[must_use]
pub fn host_users(pod: &Pod) -> Option<bool> {
    pod.spec.extra.get("hostUsers").and_then(Value::as_bool)
}

/// A range as it is kept in the pod's directory.
#[must_use]
pub fn encode(first: u32) -> Value {
    let range = json!([{"hostId": first, "containerId": 0, "length": IDS}]);
    json!({"uidMappings": range, "gidMappings": range})
}

/// Reads what [`encode`] wrote; `None` when it is something else.
#[must_use]
pub fn decode(value: &Value) -> Option<u32> {
    let first = value.pointer("/uidMappings/0/hostId")?.as_u64()?;
    let first = u32::try_from(first).ok()?;
    (*value == encode(first)).then_some(first)
}

fn first_of(number: u32) -> u32 {
    number.saturating_mul(IDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pods_share_an_id() {
        let mut ranges = Ranges::new(2);
        assert_eq!(ranges.give("a"), Some(65_536));
        assert_eq!(ranges.give("b"), Some(131_072));
        assert_eq!(ranges.give("a"), Some(65_536));
        assert_eq!(ranges.give("c"), None);
        ranges.release("a");
        assert_eq!((ranges.of("a"), ranges.give("c")), (None, Some(65_536)));
    }

    #[test]
    fn a_range_is_kept_over_a_restart() {
        let mut ranges = Ranges::new(10);
        let kept = decode(&encode(131_072)).unwrap();
        assert!(ranges.recall("a", kept) && ranges.recall("a", kept));
        assert!(!ranges.recall("b", kept) && !ranges.recall("b", 5) && !ranges.recall("b", 0));
        assert_eq!((ranges.give("b"), ranges.give("c")), (Some(65_536), Some(196_608)));
        for bad in [json!(null), json!({}), json!({"uidMappings": [{"hostId": 65_536}]})] {
            assert_eq!(decode(&bad), None);
        }
    }
}
