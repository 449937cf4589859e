//! Which controllers run: `all`, `none`, or names; `-name` takes one away.

use std::collections::BTreeSet;

use control::controller::CONTROLLERS;
use objects::kind::{self, CUSTOM_RESOURCE_DEFINITION, KINDS, Kind};
use thiserror::Error;

use crate::leader;

/// The scheduler's name in the list.
pub(crate) const SCHEDULER: &str = "scheduler";

/// What the scheduler looks at.
const SCHEDULED: [&Kind; 9] = [
    &kind::POD,
    &kind::NODE,
    &kind::NAMESPACE,
    &kind::PERSISTENT_VOLUME_CLAIM,
    &kind::PERSISTENT_VOLUME,
    &kind::STORAGE_CLASS,
    &kind::CSI_NODE,
    &kind::POD_DISRUPTION_BUDGET,
    &kind::CONFIG_MAP,
];

/// The controllers that run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice(BTreeSet<&'static str>);

/// A name that no controller has.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no controller is called {name}; there are {}", names().join(", "))]
pub struct UnknownController {
    /// What was written.
    pub name: String,
}

/// Every name that may be chosen.
#[must_use]
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = CONTROLLERS.iter().map(|one| one.name).collect();
    names.push(SCHEDULER);
    names
}

impl Default for Choice {
    fn default() -> Self {
        Self(names().into_iter().collect())
    }
}

impl Choice {
    /// No controller at all: another manager does it.
    #[must_use]
    pub const fn none() -> Self {
        Self(BTreeSet::new())
    }

    /// The scheduler alone.
    pub(crate) fn scheduler() -> Self {
        Self([SCHEDULER].into())
    }

    /// Reads `all`, `none`, or a list of names with commas between; `*` or `all` in it means
    /// everyone, and `-name` all but that one.
    ///
    /// # Errors
    ///
    /// When a name is not known.
    pub fn parse(text: &str) -> Result<Self, UnknownController> {
        let parts: Vec<&str> =
            text.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
        let only_less = !parts.is_empty() && parts.iter().all(|one| one.starts_with('-'));
        let mut chosen = if only_less { Self::default() } else { Self::none() };
        for part in parts {
            let (less, name) = part.strip_prefix('-').map_or((false, part), |name| (true, name));
            match name {
                "all" | "*" => chosen = if less { Self::none() } else { Self::default() },
                "none" => chosen = Self::none(),
                name => {
                    let known = names().into_iter().find(|one| *one == name);
                    let known = known.ok_or_else(|| UnknownController { name: name.to_owned() })?;
                    if less {
                        chosen.0.remove(known);
                    } else {
                        chosen.0.insert(known);
                    }
                }
            }
        }
        Ok(chosen)
    }

    /// Does this one run?
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Does any controller run?
    pub(crate) fn any_controller(&self) -> bool {
        self.0.iter().any(|name| *name != SCHEDULER)
    }

    /// The lease of whoever runs these controllers; `None` when none runs.
    pub(crate) fn lease(&self) -> Option<&'static str> {
        let all = CONTROLLERS.iter().all(|one| self.has(one.name));
        let name = if all { leader::CONTROLLERS } else { leader::SOME_CONTROLLERS };
        self.any_controller().then_some(name)
    }

    /// The kinds that those who run look at.
    pub(crate) fn kinds(&self) -> BTreeSet<&'static Kind> {
        let mut kinds = BTreeSet::new();
        for controller in CONTROLLERS.iter().filter(|one| self.has(one.name)) {
            match controller.needs {
                // Everything, which is to say its metadata.
                [] => kinds.extend(KINDS.iter().copied()),
                needs => kinds.extend(needs.iter().map(|(kind, _)| *kind)),
            }
        }
        if self.any_controller() {
            kinds.insert(&CUSTOM_RESOURCE_DEFINITION);
        }
        if self.has(SCHEDULER) {
            kinds.extend(SCHEDULED);
        }
        kinds
    }

    /// Does none run?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::str::FromStr for Choice {
    type Err = UnknownController;

    fn from_str(text: &str) -> Result<Self, UnknownController> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_chosen_by_name() {
        let count = |text: &str| Choice::parse(text).map(|one| one.0.len());
        let all = names().len();
        assert_eq!(count("all"), Ok(all));
        assert_eq!(count("*"), Ok(all));
        assert_eq!(count("none"), Ok(0));
        assert_eq!(count("-scheduler"), Ok(all - 1));
        assert_eq!(count("all,-scheduler,-garbage-collector"), Ok(all - 2));
        assert_eq!(count("scheduler, node-controller"), Ok(2));
        assert_eq!(count("cook").unwrap_err().name, "cook");
    }

    #[test]
    fn who_runs_part_of_it_stands_in_for_that_part_alone() {
        let of = |text: &str| Choice::parse(text).unwrap();
        assert_eq!(of("all").lease(), Some("kube-controller-manager"));
        assert_eq!(of("-scheduler").lease(), Some("kube-controller-manager"));
        assert_eq!(of("-namespace-controller").lease(), Some("muster-manager"));
        assert_eq!(of("scheduler").lease(), None);
        let looks = |text: &str, kind: &'static Kind| of(text).kinds().contains(kind);
        assert!(looks("scheduler", &kind::CSI_NODE) && !looks("scheduler", &kind::SECRET));
        assert!(looks("garbage-collector", &kind::SECRET));
        assert!(!looks("deployment-controller", &kind::SECRET));
    }
}
