//! How the scheduler is set up: profiles, plugins, weights, arguments.
//!
//! A subset of upstream's `KubeSchedulerConfiguration` (`kubescheduler.config.k8s.io/v1`):
//! `profiles` with `schedulerName`, `plugins` (`enabled`, `disabled`, weights, per point or
//! `multiPoint`) and `pluginConfig`, and the pods' back-off times. What concerns upstream's
//! process (client connection, leader election) is read over, as is `percentageOfNodesToScore`:
//! every node is looked at, always. Extenders are refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use super::framework::{POINTS, Plugin, Point};
use super::needs::{Needs, SpreadRule, Who};
use super::plugins::{self, SPREAD_DEFAULTS};
use super::queue::Waits;

/// The name of the scheduler of pods that name none.
pub const DEFAULT_NAME: &str = "default-scheduler";

/// The configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{path}: {problem}")]
pub struct ConfigError {
    /// Where.
    pub path: String,
    /// What is wrong there.
    pub problem: String,
}

/// A whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub(super) profiles: Vec<Arc<Profile>>,
    pub(super) waits: Waits,
}

/// A plugin at one point.
#[derive(Debug, Clone)]
pub(super) struct Enabled {
    pub(super) plugin: Arc<dyn Plugin>,
    pub(super) weight: i64,
}

/// One way of scheduling, for the pods that name it.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) name: String,
    points: BTreeMap<Point, Vec<Enabled>>,
    /// Spread constraints of pods that have none.
    spread: SpreadDefaults,
}

#[derive(Debug)]
enum SpreadDefaults {
    /// Upstream's wishes.
    System,
    /// What the configuration says.
    List(Vec<objects::pod::TopologySpreadConstraint>),
}

impl Default for Config {
    fn default() -> Self {
        Self::named(DEFAULT_NAME)
    }
}

fn wrong(path: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError { path: path.into(), problem: problem.into() }
}

impl Config {
    /// One profile of this name, with everything at its default.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let profile = Profile::read(name, &Value::Null, "profiles[0]");
        Self {
            // Nothing is configured, so nothing can be wrong with it.
            profiles: profile.into_iter().map(Arc::new).collect(),
            waits: Waits { initial: Duration::from_secs(1), max: Duration::from_secs(10) },
        }
    }

    /// Reads a `KubeSchedulerConfiguration`.
    ///
    /// # Errors
    ///
    /// When it names what there is not, or is of another kind.
    pub fn read(value: &Value) -> Result<Self, ConfigError> {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        if text("kind") != Some("KubeSchedulerConfiguration") {
            return Err(wrong("kind", "want KubeSchedulerConfiguration"));
        }
        if text("apiVersion") != Some("kubescheduler.config.k8s.io/v1") {
            return Err(wrong("apiVersion", "want kubescheduler.config.k8s.io/v1"));
        }
        if value.get("extenders").and_then(Value::as_array).is_some_and(|all| !all.is_empty()) {
            return Err(wrong("extenders", "extenders are not supported"));
        }
        let mut config = Self::default();
        let seconds = |name: &str, default: Duration| match value.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(found) => found
                .as_u64()
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs)
                .ok_or_else(|| wrong(name, "want a number of seconds greater than 0")),
        };
        config.waits.initial = seconds("podInitialBackoffSeconds", config.waits.initial)?;
        config.waits.max = seconds("podMaxBackoffSeconds", config.waits.max)?;
        if config.waits.max < config.waits.initial {
            return Err(wrong(
                "podMaxBackoffSeconds",
                "must not be below podInitialBackoffSeconds",
            ));
        }
        let profiles = value.get("profiles").and_then(Value::as_array);
        if let Some(all) = profiles.filter(|all| !all.is_empty()) {
            config.profiles.clear();
            for (at, profile) in all.iter().enumerate() {
                let path = format!("profiles[{at}]");
                let name = profile.get("schedulerName").and_then(Value::as_str);
                let name = name.unwrap_or(DEFAULT_NAME);
                if config.profiles.iter().any(|other| other.name == name) {
                    let path = format!("{path}.schedulerName");
                    return Err(wrong(path, format!("two profiles are called {name:?}")));
                }
                config.profiles.push(Arc::new(Profile::read(name, profile, &path)?));
            }
        }
        Ok(config)
    }

    /// The plugin that orders the queue, which all profiles share: the first one's.
    pub(super) fn queue_sort(&self) -> Option<Arc<dyn Plugin>> {
        let first = self.profiles.first()?;
        first.at(Point::QueueSort).first().map(|one| Arc::clone(&one.plugin))
    }

    /// The profile of a pod; `None` when it belongs to another scheduler.
    pub(super) fn profile(&self, scheduler_name: &str) -> Option<usize> {
        let name = if scheduler_name.is_empty() { DEFAULT_NAME } else { scheduler_name };
        self.profiles.iter().position(|profile| profile.name == name)
    }
}

/// One entry of `enabled` or `disabled`.
struct Choice<'a> {
    name: &'a str,
    weight: Option<i64>,
}

fn choices<'a>(
    set: &'a Value,
    list: &str,
    path: &str,
    known: &[plugins::Weighted],
) -> Result<Vec<Choice<'a>>, ConfigError> {
    let all = set.get(list).and_then(Value::as_array);
    let each = all.into_iter().flatten().enumerate().map(|(at, one)| {
        let path = format!("{path}.{list}[{at}]");
        let name = one.get("name").and_then(Value::as_str).unwrap_or_default();
        let exists = known.iter().any(|(plugin, _)| plugin.name() == name);
        // What there is not may well be off: a file written for upstream may say so.
        if !exists && list != "disabled" {
            return Err(wrong(path, format!("there is no plugin {name:?}")));
        }
        let weight = one.get("weight").and_then(Value::as_i64).filter(|weight| *weight > 0);
        Ok(Choice { name, weight })
    });
    each.collect()
}

impl Profile {
    fn read(name: &str, value: &Value, path: &str) -> Result<Self, ConfigError> {
        let args = |plugin: &str| {
            let all = value.get("pluginConfig").and_then(Value::as_array).into_iter().flatten();
            let mut own = all.filter(|one| one.get("name").and_then(Value::as_str) == Some(plugin));
            own.next().and_then(|one| one.get("args")).cloned().unwrap_or_default()
        };
        let all = plugins::all(args);
        let mut points: BTreeMap<Point, Vec<Enabled>> = BTreeMap::new();
        for (plugin, weight) in &all {
            for point in plugin.points() {
                let enabled = Enabled { plugin: Arc::clone(plugin), weight: *weight };
                points.entry(*point).or_default().push(enabled);
            }
        }
        let empty = Value::Null;
        let sets = value.get("plugins").unwrap_or(&empty);
        let multi = std::iter::once(("multiPoint", None));
        let single = POINTS.iter().map(|(name, point)| (*name, Some(*point)));
        for (set_name, only) in multi.chain(single) {
            let Some(set) = sets.get(set_name) else { continue };
            let path = format!("{path}.plugins.{set_name}");
            for (point, list) in &mut points {
                if only.is_none_or(|only| only == *point) {
                    let disabled = choices(set, "disabled", &path, &all)?;
                    let enabled = choices(set, "enabled", &path, &all)?;
                    change(*point, list, &disabled, &enabled, &all);
                }
            }
        }
        if points.get(&Point::Bind).is_none_or(Vec::is_empty) {
            return Err(wrong(format!("{path}.plugins.bind"), "at least one plugin must bind"));
        }
        let spread = Self::spread_defaults(&args("PodTopologySpread"), path)?;
        Ok(Self { name: name.to_owned(), points, spread })
    }

    fn spread_defaults(args: &Value, path: &str) -> Result<SpreadDefaults, ConfigError> {
        let constraints = args.get("defaultConstraints").cloned().unwrap_or_default();
        if args.get("defaultingType").and_then(Value::as_str) != Some("List") {
            let empty = constraints.as_array().is_none_or(Vec::is_empty);
            return if empty {
                Ok(SpreadDefaults::System)
            } else {
                let path = format!("{path}.pluginConfig.PodTopologySpread.defaultConstraints");
                Err(wrong(path, "needs defaultingType: List"))
            };
        }
        if constraints.is_null() {
            return Ok(SpreadDefaults::List(Vec::new()));
        }
        let path = format!("{path}.pluginConfig.PodTopologySpread.defaultConstraints");
        serde_json::from_value(constraints)
            .map(SpreadDefaults::List)
            .map_err(|err| wrong(path, err.to_string()))
    }

    /// The plugins at a point, in order.
    pub(super) fn at(&self, point: Point) -> &[Enabled] {
        self.points.get(&point).map_or(&[], Vec::as_slice)
    }

    /// Is a plugin asked at a point?
    pub(super) fn has(&self, point: Point, name: &str) -> bool {
        self.at(point).iter().any(|one| one.plugin.name() == name)
    }

    /// The spread constraints of a pod: its own, or the defaults for what has a controller.
    pub(super) fn spread_of(&self, needs: &Needs) -> Vec<SpreadRule> {
        let asked = self.has(Point::Filter, "PodTopologySpread")
            || self.has(Point::Score, "PodTopologySpread");
        if !asked {
            return Vec::new();
        }
        if !needs.spread.is_empty() || needs.controller.is_empty() {
            return needs.spread.clone();
        }
        let rule = |key: &str, max_skew: i64, hard: bool, min_domains: Option<i64>| SpreadRule {
            key: key.to_owned(),
            max_skew,
            min_domains,
            hard,
            who: Who {
                namespaces: [needs.namespace.clone()].into(),
                selector: Some(objects::Selector::default()),
                controller: Some(needs.controller.clone()),
                lasting: true,
                ..Who::default()
            },
            own: true,
            honor_affinity: true,
            honor_taints: false,
        };
        match &self.spread {
            SpreadDefaults::System => {
                SPREAD_DEFAULTS.iter().map(|(key, skew)| rule(key, *skew, false, None)).collect()
            }
            SpreadDefaults::List(all) => {
                let each = all.iter().map(|one| {
                    let hard = one.when_unsatisfiable != "ScheduleAnyway";
                    rule(&one.topology_key, one.max_skew.max(1), hard, one.min_domains)
                });
                each.collect()
            }
        }
    }
}

/// Takes plugins out of a point and puts others in, or gives those there another weight.
fn change(
    point: Point,
    list: &mut Vec<Enabled>,
    disabled: &[Choice<'_>],
    enabled: &[Choice<'_>],
    all: &[plugins::Weighted],
) {
    let usual = std::mem::take(list);
    let gone = |name: &str| disabled.iter().any(|one| one.name == "*" || one.name == name);
    list.extend(usual.into_iter().filter(|one| !gone(one.plugin.name())));
    for choice in enabled {
        let there = list.iter_mut().find(|one| one.plugin.name() == choice.name);
        match (there, choice.weight) {
            (Some(there), Some(weight)) => there.weight = weight,
            (Some(_), None) => (),
            (None, weight) => {
                let found = all.iter().find(|(plugin, _)| plugin.name() == choice.name);
                let able = found.filter(|(plugin, _)| plugin.points().contains(&point));
                list.extend(able.map(|(plugin, usual)| Enabled {
                    plugin: Arc::clone(plugin),
                    weight: weight.unwrap_or(*usual),
                }));
            }
        }
    }
}
