//! Plugins about amounts: does a pod fit, and how full or lopsided is its node then?

use serde_json::Value;

use crate::scheduler::framework::{BEST, Change, Cycle, Interest, Plugin, Point, Reason, Refusal};
use crate::scheduler::resource::{CPU, MEMORY, ResourceId};
use crate::scheduler::snapshot::{Kind, Snapshot};
use crate::scheduler::topology::NodeId;

/// A resource by name and what it weighs.
type Weights = Vec<(String, i64)>;
/// Millionths, in which shares are counted.
const WHOLE: i64 = 1_000_000;

fn weights(args: &Value) -> Option<Weights> {
    let all = args.get("resources")?.as_array()?;
    let each = all.iter().filter_map(|one| {
        let weight = one.get("weight").and_then(Value::as_i64).unwrap_or(1);
        Some((one.get("name")?.as_str()?.to_owned(), weight.max(1)))
    });
    Some(each.collect())
}

fn default_weights() -> Weights {
    vec![("cpu".to_owned(), 1), ("memory".to_owned(), 1)]
}

/// How a node's fullness is judged.
#[derive(Debug)]
enum Strategy {
    /// Emptier is better.
    LeastAllocated,
    /// Fuller is better: pods are packed.
    MostAllocated,
    /// By a line through points of use and score, both 0 to 100.
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

impl Strategy {
    fn read(strategy: &Value) -> Self {
        match strategy.get("type").and_then(Value::as_str) {
            Some("MostAllocated") => Self::MostAllocated,
            Some("RequestedToCapacityRatio") => {
                let shape = strategy.pointer("/requestedToCapacityRatio/shape");
                let points = shape.and_then(Value::as_array).into_iter().flatten();
                let number = |point: &Value, name: &str| point.get(name).and_then(Value::as_i64);
                // Scores are written 0 to 10, as upstream writes them.
                let points = points.filter_map(|point| {
                    let score = number(point, "score").unwrap_or(0);
                    Some((number(point, "utilization")?, score * (BEST / 10)))
                });
                Self::RequestedToCapacityRatio(points.collect())
            }
            _ => Self::LeastAllocated,
        }
    }

    fn judge(&self, asked: i64, capacity: i64) -> i64 {
        match self {
            Self::LeastAllocated if asked > capacity => 0,
            Self::LeastAllocated => (capacity - asked).saturating_mul(BEST) / capacity,
            Self::MostAllocated => asked.min(capacity).saturating_mul(BEST) / capacity,
            Self::RequestedToCapacityRatio(points) => {
                let full = asked > capacity;
                let used = if full { BEST } else { asked.saturating_mul(BEST) / capacity };
                along(points, used)
            }
        }
    }
}

/// The height of a broken line at a place; level beyond its ends.
fn along(points: &[(i64, i64)], at: i64) -> i64 {
    let mut before: Option<(i64, i64)> = None;
    for (x, y) in points {
        if at <= *x {
            return match before {
                Some((x0, y0)) if *x > x0 => y0 + (y - y0) * (at - x0) / (x - x0),
                _ => *y,
            };
        }
        before = Some((*x, *y));
    }
    before.map_or(0, |(_, y)| y)
}

/// Keeps pods off nodes that are too full, and prefers nodes by how full they are.
#[derive(Debug)]
pub(super) struct NodeResourcesFit {
    strategy: Strategy,
    weights: Weights,
    ignored: Vec<String>,
    ignored_groups: Vec<String>,
}

fn texts(args: &Value, field: &str) -> Vec<String> {
    let all = args.get(field).and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

impl NodeResourcesFit {
    /// Reads `scoringStrategy`, `ignoredResources` and `ignoredResourceGroups`.
    pub(super) fn new(args: &Value) -> Self {
        let strategy = args.get("scoringStrategy").cloned().unwrap_or_default();
        Self {
            weights: weights(&strategy).unwrap_or_else(default_weights),
            strategy: Strategy::read(&strategy),
            ignored: texts(args, "ignoredResources"),
            ignored_groups: texts(args, "ignoredResourceGroups"),
        }
    }

    fn ignores(&self, name: &str) -> bool {
        // Only resources with a group can be ignored: never CPU or memory.
        let Some((group, _)) = name.split_once('/') else { return false };
        self.ignored.iter().any(|one| one == name)
            || self.ignored_groups.iter().any(|one| one == group)
    }
}

/// What a pod asks of a resource, for scoring.
fn asked(cycle: &Cycle<'_>, resource: ResourceId) -> i64 {
    let needs = &cycle.kind.needs;
    match resource {
        CPU => needs.load.0,
        MEMORY => needs.load.1,
        _ => needs.asks(resource),
    }
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn filter(&self, cycle: &Cycle<'_>, node: NodeId) -> Result<(), Refusal> {
        let table = &cycle.snapshot.table;
        let here = i64::try_from(table.pods(node).len()).unwrap_or(i64::MAX);
        let crowded = here >= table.pods_max(node);
        let mut reasons = Vec::new();
        let mut curable = true;
        if crowded {
            reasons.push("Too many pods".to_owned());
        }
        for (resource, amount) in &cycle.kind.needs.requests {
            let capacity = table.capacity(node, *resource);
            if amount.saturating_add(table.used(node, *resource)) <= capacity {
                continue;
            }
            let name = cycle.snapshot.names.name(*resource);
            if self.ignores(name) {
                continue;
            }
            reasons.push(format!("Insufficient {name}"));
            // What the node never had, nobody's going away will give.
            curable &= *amount <= capacity;
        }
        if reasons.is_empty() {
            return Ok(());
        }
        Err(Refusal { plugin: self.name(), reason: Reason::Told(reasons), curable })
    }

    fn score(&self, cycle: &Cycle<'_>, node: NodeId) -> i64 {
        let table = &cycle.snapshot.table;
        let (mut sum, mut all) = (0, 0);
        for (name, weight) in &self.weights {
            let Some(resource) = cycle.snapshot.names.find(name) else { continue };
            let capacity = table.capacity(node, resource);
            let asked = asked(cycle, resource);
            if capacity == 0 || (resource > MEMORY && asked == 0) {
                continue;
            }
            let load = table.load(node, resource).saturating_add(asked);
            sum += weight * self.strategy.judge(load, capacity);
            all += weight;
        }
        if all == 0 { 0 } else { sum / all }
    }

    fn may_help(&self, snapshot: &Snapshot, kind: &Kind, change: &Change) -> bool {
        match change {
            Change::PodGone(_) => true,
            Change::NodeAdded(node) | Change::NodeChanged(node) => {
                let mut asks = kind.needs.requests.iter();
                asks.all(|(resource, amount)| snapshot.table.capacity(*node, *resource) >= *amount)
            }
            Change::PodPlaced(_) | Change::Namespace | Change::Storage => false,
        }
    }
}

/// Prefers nodes whose resources are used in equal parts.
#[derive(Debug)]
pub(super) struct NodeResourcesBalancedAllocation {
    weights: Weights,
}

impl NodeResourcesBalancedAllocation {
    /// Reads `resources`.
    pub(super) fn new(args: &Value) -> Self {
        Self { weights: weights(args).unwrap_or_else(default_weights) }
    }
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreScore, Point::Score]
    }

    fn pre_score(&self, cycle: &mut Cycle<'_>, _feasible: &[NodeId]) -> Interest {
        // A pod that asks for nothing cannot unbalance a node.
        let asks = self.weights.iter().any(|(name, _)| {
            cycle.snapshot.names.find(name).is_some_and(|id| cycle.kind.needs.asks(id) > 0)
        });
        if asks { Interest::Ask } else { Interest::Skip }
    }

    fn score(&self, cycle: &Cycle<'_>, node: NodeId) -> i64 {
        let table = &cycle.snapshot.table;
        let shares = self.weights.iter().filter_map(|(name, _)| {
            let resource = cycle.snapshot.names.find(name)?;
            let capacity = table.capacity(node, resource);
            let used = table.used(node, resource).saturating_add(cycle.kind.needs.asks(resource));
            (capacity > 0).then(|| (used.min(capacity).saturating_mul(WHOLE) / capacity).min(WHOLE))
        });
        let shares: Vec<i64> = shares.collect();
        (WHOLE - deviation(&shares)) * BEST / WHOLE
    }
}

/// The standard deviation of shares.
fn deviation(shares: &[i64]) -> i64 {
    match shares {
        [] | [_] => 0,
        [one, other] => (one - other).abs() / 2,
        all => {
            let count = i64::try_from(all.len()).unwrap_or(1);
            let mean = all.iter().sum::<i64>() / count;
            let square = all.iter().map(|one| (one - mean) * (one - mean)).sum::<i64>() / count;
            square.isqrt()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_judge_as_upstream_does() {
        assert_eq!(Strategy::LeastAllocated.judge(250, 1000), 75);
        assert_eq!(Strategy::LeastAllocated.judge(1001, 1000), 0);
        assert_eq!(Strategy::MostAllocated.judge(250, 1000), 25);
        let shape = Strategy::RequestedToCapacityRatio(vec![(0, 0), (50, 80), (100, 100)]);
        assert_eq!(shape.judge(250, 1000), 40);
        assert_eq!(shape.judge(750, 1000), 90);
        assert_eq!(shape.judge(2000, 1000), 100);
        assert_eq!(along(&[], 3), 0);
    }

    #[test]
    fn deviation_is_that_of_the_whole() {
        assert_eq!(deviation(&[500_000]), 0);
        assert_eq!(deviation(&[500_000, 300_000]), 100_000);
        assert_eq!(deviation(&[0, 500_000, 1_000_000]), 408_248);
    }
}
