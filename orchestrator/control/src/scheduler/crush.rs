//! Where the data of a storage pool lies, as the CRUSH map says.
//!
//! A config map carries what `ceph osd crush dump` and `ceph osd pool ls detail` print as JSON,
//! under the keys `crush.json` and `pools.json`. Of these only weights below each pool's rule
//! are read: which share of the pool a host or rack holds.

use std::collections::BTreeMap;

use objects::config::ConfigMap;
use serde::Deserialize;

/// Namespace and name of the config map.
pub const CRUSH_MAP: (&str, &str) = ("kube-system", "ceph-crush-map");
/// Depth below which a map is taken for broken.
const DEPTH_MAX: usize = 16;

#[derive(Deserialize)]
struct Dump {
    #[serde(default)]
    buckets: Vec<Bucket>,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Bucket {
    id: i64,
    name: String,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    id: i64,
    #[serde(default)]
    weight: i64,
}

#[derive(Deserialize)]
struct Rule {
    rule_id: i64,
    #[serde(default)]
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    op: String,
    #[serde(default)]
    item: Option<i64>,
}

#[derive(Deserialize)]
struct Pool {
    pool_name: String,
    #[serde(default)]
    crush_rule: i64,
}

/// Shares of pools by the names of hosts, racks and whatever else the map has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CrushMap {
    /// Millionths of each pool's weight.
    shares: BTreeMap<String, BTreeMap<String, i64>>,
}

impl CrushMap {
    /// Reads the config map; `None` when it does not carry a map.
    pub(super) fn read(map: &ConfigMap) -> Option<Self> {
        let dump: Dump = serde_json::from_str(map.data.get("crush.json")?).ok()?;
        let pools: Vec<Pool> = serde_json::from_str(map.data.get("pools.json")?).ok()?;
        let buckets: BTreeMap<i64, &Bucket> =
            dump.buckets.iter().map(|bucket| (bucket.id, bucket)).collect();
        let mut shares = BTreeMap::new();
        for pool in pools {
            let rule = dump.rules.iter().find(|rule| rule.rule_id == pool.crush_rule);
            let roots = rule.into_iter().flat_map(|rule| &rule.steps);
            let roots: Vec<i64> =
                roots.filter(|step| step.op == "take").filter_map(|step| step.item).collect();
            let mut weights = BTreeMap::new();
            let mut total = 0_i64;
            for root in roots {
                total = total.saturating_add(weigh(&buckets, root, &mut weights, 0));
            }
            if total > 0 {
                let share = |weight: i64| weight.saturating_mul(1_000_000) / total;
                let all = weights.into_iter().map(|(name, weight)| (name, share(weight)));
                shares.insert(pool.pool_name, all.collect());
            }
        }
        Some(Self { shares })
    }

    /// The share of a pool that lies below a bucket, in millionths.
    pub(super) fn share(&self, pool: &str, bucket: &str) -> i64 {
        self.shares.get(pool).and_then(|pool| pool.get(bucket)).copied().unwrap_or(0)
    }
}

/// Adds up weights below a bucket; devices have none of their own but that in their bucket.
fn weigh(
    buckets: &BTreeMap<i64, &Bucket>,
    id: i64,
    weights: &mut BTreeMap<String, i64>,
    depth: usize,
) -> i64 {
    let Some(bucket) = buckets.get(&id).filter(|_| depth < DEPTH_MAX) else { return 0 };
    let each = bucket.items.iter().map(|item| {
        if item.id < 0 { weigh(buckets, item.id, weights, depth + 1) } else { item.weight }
    });
    let sum = each.fold(0_i64, i64::saturating_add);
    let had = weights.entry(bucket.name.clone()).or_default();
    *had = had.saturating_add(sum);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shares_follow_the_weights_below_a_pools_rule() {
        let crush = json!({
            "buckets": [
                {"id": -1, "name": "default", "items": [{"id": -2}, {"id": -3}]},
                {"id": -2, "name": "rack-a", "items": [{"id": -4}]},
                {"id": -3, "name": "rack-b", "items": [{"id": -5}]},
                {"id": -4, "name": "a1", "items": [{"id": 0, "weight": 300}]},
                {"id": -5, "name": "b1", "items": [{"id": 1, "weight": 100}]},
            ],
            "rules": [
                {"rule_id": 0, "steps": [{"op": "take", "item": -1}, {"op": "emit"}]},
                {"rule_id": 1, "steps": [{"op": "take", "item": -3}, {"op": "emit"}]},
            ],
        });
        let pools = json!([
            {"pool_name": "all", "crush_rule": 0}, {"pool_name": "b-only", "crush_rule": 1},
        ]);
        let data = [("crush.json", crush), ("pools.json", pools)];
        let map = ConfigMap {
            data: data.map(|(name, value)| (name.to_owned(), value.to_string())).into(),
            ..ConfigMap::default()
        };
        let read = CrushMap::read(&map).unwrap();
        assert_eq!(read.share("all", "a1"), 750_000);
        assert_eq!(read.share("all", "rack-b"), 250_000);
        assert_eq!(read.share("b-only", "rack-b"), 1_000_000);
        assert_eq!(read.share("b-only", "a1"), 0);
        assert_eq!(CrushMap::read(&ConfigMap::default()), None);
    }

    #[test]
    fn no_map_takes_for_ever() {
        bolero::check!().with_iterations(2_000).for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let data = [("crush.json", text.clone()), ("pools.json", text)];
            let map = ConfigMap {
                data: data.map(|(name, value)| (name.to_owned(), value)).into(),
                ..ConfigMap::default()
            };
            let _read = CrushMap::read(&map);
        });
        let looped = json!({"buckets": [{"id": -1, "name": "x", "items": [{"id": -1}, {"id": -1}]}],
            "rules": [{"rule_id": 0, "steps": [{"op": "take", "item": -1}]}]});
        let data = [
            ("crush.json", looped.to_string()),
            ("pools.json", json!([{"pool_name": "p"}]).to_string()),
        ];
        let map = ConfigMap {
            data: data.map(|(name, value)| (name.to_owned(), value)).into(),
            ..ConfigMap::default()
        };
        assert!(CrushMap::read(&map).is_some());
    }
}
