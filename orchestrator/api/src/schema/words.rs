//! What upstream's kinds and their fields mean, in words of our own, for `kubectl explain`.
//!
//! The text is read when a document that shows it is first asked for. A type begins with
//! `= NAME DESCRIPTION`, a field reads `NAME DESCRIPTION`; the fields of the type `*` mean the same
//! in every type that does not tell its own.
//!
//! *Limits*: every kind is described, and the fields that manifests are made of; of the others
//! `kubectl explain` shows types alone.

use std::{collections::BTreeMap, sync::LazyLock};

const TEXT: &str = include_str!("../../schema/descriptions.txt");

/// Descriptions by type and field; the field of a type itself is empty.
static WORDS: LazyLock<BTreeMap<(&str, &str), &str>> = LazyLock::new(|| {
    let mut words = BTreeMap::new();
    let mut current = "";
    for line in TEXT.lines().filter(|line| !line.starts_with('#')) {
        let (name, said, field) = match line.strip_prefix("= ") {
            Some(line) => {
                let (name, said) = line.split_once(' ').unwrap_or((line, ""));
                current = name;
                (name, said, "")
            }
            None => {
                let (field, said) = line.split_once(' ').unwrap_or((line, ""));
                (current, said, field)
            }
        };
        words.insert((name, field), said);
    }
    words
});

/// What a field of a type means, or the type itself when `field` is empty; empty when nothing is
/// told of it.
pub(crate) fn about(name: &str, field: &str) -> &'static str {
    let own = WORDS.get(&(name, field));
    let said = if field.is_empty() { own } else { own.or_else(|| WORDS.get(&("*", field))) };
    said.copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;

    #[test]
    fn every_kind_of_upstream_is_described() {
        let kinds = builtin().types().iter().filter(|one| {
            one.name.starts_with("io.k8s.")
                && !one.gvks.is_empty()
                && !one.name.ends_with("List")
                && about(one.name, "").is_empty()
        });
        assert_eq!(kinds.map(|one| one.name).collect::<Vec<_>>(), Vec::<&str>::new());
        let replicas = about("io.k8s.api.apps.v1.DeploymentSpec", "replicas");
        assert!(replicas.starts_with("How many pods are wanted"), "{replicas}");
        assert_eq!(about("io.k8s.api.apps.v1.DeploymentSpec", "size"), "");
    }

    #[test]
    fn every_word_is_of_a_type_and_field_there_is() {
        let types = builtin().types();
        let unknown = WORDS.keys().filter(|(name, field)| {
            let mut fields = types
                .iter()
                .filter(|one| *name == "*" || one.name == *name)
                .map(|one| field.is_empty() || one.fields.iter().any(|own| own.name == *field));
            !(fields.any(|known| known) || (*name == "*" && field.is_empty()))
        });
        assert_eq!(unknown.collect::<Vec<_>>(), Vec::<&(&str, &str)>::new());
    }
}
