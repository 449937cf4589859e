//! Which pool a volume is made in, when pools are not reachable from everywhere.
//!
//! A class says in `topologyConstrainedPools` which pool serves which part of the site, as
//! ceph-csi reads it: `[{"poolName": "a", "domainSegments": [{"domainLabel": "rack", "value":
//! "a"}]}]`. Labels get this driver's name in front, as nodes report theirs.

use std::collections::BTreeMap;

use csi::Status;
use csi::message::{Topology, TopologyRequirement};
use serde::Deserialize;

use crate::NAME;

/// A pool and where it is reached from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reach {
    pool_name: String,
    #[serde(default)]
    domain_segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Segment {
    domain_label: String,
    value: String,
}

impl Reach {
    fn topology(&self) -> Topology {
        let all = self.domain_segments.iter();
        Topology {
            segments: all.map(|one| (label(&one.domain_label), one.value.clone())).collect(),
        }
    }
}

/// A label of this driver's.
pub(crate) fn label(domain: &str) -> String {
    format!("topology.{NAME}/{domain}")
}

/// The pool to make a volume in and where it is reached from, when a class says so; `None` when it
/// does not.
pub(crate) fn choose(
    parameters: &BTreeMap<String, String>,
    wanted: Option<&TopologyRequirement>,
) -> Result<Option<(String, Vec<Topology>)>, Status> {
    let Some(text) = parameters.get("topologyConstrainedPools") else { return Ok(None) };
    let bad = |err| Status::invalid_argument(format!("topologyConstrainedPools: {err}"));
    let all: Vec<Reach> = serde_json::from_str(text).map_err(bad)?;
    let wanted = wanted.cloned().unwrap_or_default();
    let serves = |place: &Topology| {
        let within = |one: &&Reach| {
            one.topology()
                .segments
                .iter()
                .all(|(key, value)| place.segments.get(key) == Some(value))
        };
        all.iter().find(within)
    };
    let found = if wanted.preferred.is_empty() && wanted.requisite.is_empty() {
        all.first()
    } else {
        wanted.preferred.iter().chain(&wanted.requisite).find_map(serves)
    };
    let nowhere = || Status::resource_exhausted("no pool is reached from where the volume must be");
    let found = found.ok_or_else(nowhere)?;
    Ok(Some((found.pool_name.clone(), vec![found.topology()])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use csi::Code;

    #[test]
    fn a_volume_is_made_in_the_pool_of_its_rack() {
        let pools = r#"[
            {"poolName": "pa", "domainSegments": [{"domainLabel": "rack", "value": "a"}]},
            {"poolName": "pb", "domainSegments": [{"domainLabel": "rack", "value": "b"}]}]"#;
        let class = BTreeMap::from([("topologyConstrainedPools".to_owned(), pools.to_owned())]);
        let rack = |name: &str| Topology {
            segments: [(label("rack"), name.to_owned()), ("host".to_owned(), "x".to_owned())]
                .into(),
        };
        let check = |preferred: &[&str], requisite: &[&str], expected: Result<&str, Code>| {
            let wanted = TopologyRequirement {
                preferred: preferred.iter().map(|name| rack(name)).collect(),
                requisite: requisite.iter().map(|name| rack(name)).collect(),
            };
            let found = choose(&class, Some(&wanted)).map(|found| found.unwrap().0);
            let expected = expected.map(str::to_owned);
            assert_eq!(found.map_err(|err| err.code()), expected, "{preferred:?} {requisite:?}");
        };
        check(&[], &[], Ok("pa"));
        check(&[], &["b"], Ok("pb"));
        check(&["b", "a"], &["a", "b"], Ok("pb"));
        check(&["c"], &["c", "b"], Ok("pb"));
        check(&["c"], &["c"], Err(Code::ResourceExhausted));
        assert_eq!(choose(&BTreeMap::new(), None).unwrap(), None);
        let bad = BTreeMap::from([("topologyConstrainedPools".to_owned(), "{".to_owned())]);
        assert_eq!(choose(&bad, None).unwrap_err().code(), Code::InvalidArgument);
        let (_, reach) = choose(&class, None).unwrap().unwrap();
        assert_eq!(reach[0].segments, BTreeMap::from([(label("rack"), "a".to_owned())]));
    }
}
