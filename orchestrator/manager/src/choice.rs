//! Which controllers run: `all`, `none`, or names; `-name` takes one away.

use std::collections::BTreeSet;

use control::controller::CONTROLLERS;
use thiserror::Error;

/// The scheduler's name in the list.
pub(crate) const SCHEDULER: &str = "scheduler";

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
}
