//! Which images are taken off a node's disk.
//!
//! Spec: upstream's image garbage collection: above the high mark the images that were unused
//! the longest go, until the low mark is reached; images in use, pinned ones and young ones stay.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::pressure::Reading;

/// When images are taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Above this part of the disk it begins, in percent.
    pub high_percent: i64,
    /// Down to this part it goes, in percent.
    pub low_percent: i64,
    /// Images that were detected later than this stay.
    pub age_min: SignedDuration,
}

/// An image on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The runtime's name for it.
    pub id: String,
    /// What it takes, in bytes.
    pub bytes: i64,
    /// Whether it must stay whatever happens.
    pub pinned: bool,
}

/// When images were seen and used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    images: BTreeMap<String, (Timestamp, Option<Timestamp>)>,
}

impl Default for Marks {
    /// Upstream's: 85 %, 80 %, two minutes.
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, age_min: SignedDuration::from_mins(2) }
    }
}

impl Marks {
    /// How many bytes must go so that the low mark is reached; 0 below the high mark.
    #[must_use]
    pub fn excess(&self, disk: Reading) -> i64 {
        let used = disk.capacity.saturating_sub(disk.available).max(0);
        let part = |percent: i64| {
            let product = i128::from(disk.capacity).saturating_mul(i128::from(percent));
            i64::try_from(product / 100).unwrap_or(i64::MAX)
        };
        if disk.capacity <= 0 || used < part(self.high_percent) {
            return 0;
        }
        used.saturating_sub(part(self.low_percent)).max(0)
    }
}

impl History {
    /// Takes note of the images that are there, and of those in use.
    pub fn observe(&mut self, images: &[Image], used: &BTreeSet<String>, now: Timestamp) {
        self.images.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in images {
            let entry = self.images.entry(image.id.clone()).or_insert((now, None));
            if used.contains(&image.id) {
                entry.1 = Some(now);
            }
        }
    }

    /// The images to remove to win so many bytes, in order; all that are unused when that is not
    /// enough.
    #[must_use]
    pub fn plan(
        &self,
        images: &[Image],
        used: &BTreeSet<String>,
        (bytes, age_min): (i64, SignedDuration),
        now: Timestamp,
    ) -> Vec<String> {
        let mut unused: Vec<_> = images
            .iter()
            .filter(|image| !image.pinned && !used.contains(&image.id))
            .filter_map(|image| {
                let (detected, last) = *self.images.get(&image.id)?;
                (now.duration_since(detected) >= age_min).then_some((last, detected, image))
            })
            .collect();
        // Never used goes before used, long ago before lately.
        unused.sort_by_key(|(last, detected, image)| (*last, *detected, image.id.clone()));
        let mut won: i64 = 0;
        let mut gone = Vec::new();
        for (_, _, image) in unused {
            if won >= bytes {
                break;
            }
            won = won.saturating_add(image.bytes);
            gone.push(image.id.clone());
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn image(id: &str, bytes: i64) -> Image {
        Image { id: id.to_owned(), bytes, pinned: id.starts_with('!') }
    }

    fn used(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn marks_say_how_much_must_go() {
        let check = |available: i64, expected: i64| {
            let disk = Reading { available, capacity: 1000 };
            assert_eq!(Marks::default().excess(disk), expected, "{available} of 1000 are free");
        };
        check(1000, 0);
        check(151, 0);
        check(150, 50);
        check(0, 200);
        assert_eq!(Marks::default().excess(Reading { available: 0, capacity: 0 }), 0);
    }

    #[test]
    fn the_longest_unused_goes_first_and_only_as_much_as_must() {
        let all = [image("a", 10), image("b", 10), image("!c", 10), image("d", 10), image("e", 10)];
        let mut history = History::default();
        history.observe(&all[..4], &used(&["a", "b", "d"]), at(0));
        history.observe(&all[..4], &used(&["b", "d"]), at(100));
        history.observe(&all, &used(&["d"]), at(1000));
        let age = SignedDuration::from_secs(120);
        let check = |bytes: i64, now: i64, expected: &str| {
            let plan = history.plan(&all, &used(&["d"]), (bytes, age), at(now));
            assert_eq!(plan.join(" "), expected, "{bytes} bytes at {now}");
        };
        check(0, 1050, "");
        check(1, 1050, "a");
        check(11, 1050, "a b");
        check(100, 1050, "a b");
        // The last came lately, and was never used.
        check(100, 1120, "e a b");
    }

    #[test]
    fn an_image_that_went_and_came_back_is_young_again() {
        let mut history = History::default();
        history.observe(&[image("a", 1)], &used(&[]), at(0));
        history.observe(&[], &used(&[]), at(10));
        history.observe(&[image("a", 1)], &used(&[]), at(20));
        let age = SignedDuration::from_secs(60);
        assert!(history.plan(&[image("a", 1)], &used(&[]), (1, age), at(70)).is_empty());
    }
}
