//! Sets of indexes as text: `1,3-5,7`.

use std::collections::BTreeSet;

use objects::pod::Pod;

/// Annotation and label: which index a pod works on.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Reads a list of indexes below `most`; what does not read is left out.
pub(super) fn parse(text: &str, most: i64) -> BTreeSet<i64> {
    let mut all = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i64>(), last.parse::<i64>()) {
            all.extend(first.max(0)..=last.min(most - 1));
        }
    }
    all
}

/// Writes indexes, three or more in a row as a range; two in a row are a range too.
pub(super) fn render(all: &BTreeSet<i64>) -> String {
    let mut parts: Vec<(i64, i64)> = Vec::new();
    for one in all {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *one => *last = *one,
            _ => parts.push((*one, *one)),
        }
    }
    let text = |(first, last): (i64, i64)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    parts.into_iter().map(text).collect::<Vec<_>>().join(",")
}

/// The index of a pod.
pub(super) fn of(pod: &Pod) -> Option<i64> {
    pod.metadata.annotation(INDEX).or_else(|| pod.metadata.label(INDEX))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_written() {
        for text in ["", "0", "0-1", "1,3-5,7", "0-9"] {
            assert_eq!(render(&parse(text, 10)), text);
        }
        assert_eq!(render(&parse("3-99,x,-4,2-1", 6)), "3-5");
        assert_eq!(parse("0-99999999999", 4).len(), 4);
    }
}
