//! Options that say how fast nodes that are not ready lose their pods; upstream's, by its names.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args as ClapArgs;

/// How fast nodes that are not ready lose their pods; zones are their labels of region and zone.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub(crate) struct ZoneArgs {
    /// Nodes of a zone that lose their pods in a second, while most of it is well; 0 is never
    #[arg(long, value_name = "RATE", default_value = "0.1", value_parser = parse_rate)]
    pub node_eviction_rate: f64,
    /// The same in a large zone in which most nodes fail
    #[arg(long, value_name = "RATE", default_value = "0.01", value_parser = parse_rate)]
    pub secondary_node_eviction_rate: f64,
    /// Zones with more nodes are large; in smaller ones in which most fail no node loses its pods
    #[arg(long, value_name = "NODES", default_value_t = 50)]
    pub large_cluster_size_threshold: usize,
    /// The part of a zone's nodes, three at least, that makes it one in which most fail
    #[arg(long, value_name = "PART", default_value = "0.55", value_parser = parse_part)]
    pub unhealthy_zone_threshold: u32,
}

impl ZoneArgs {
    /// What the controllers are told.
    pub(crate) fn rules(self) -> manager::ZoneRules {
        // So slow a rate that its interval cannot be told is never.
        let interval = |rate: f64| Duration::try_from_secs_f64(1.0 / rate).ok();
        manager::ZoneRules {
            eviction_interval: interval(self.node_eviction_rate),
            secondary_eviction_interval: interval(self.secondary_node_eviction_rate),
            large_zone_nodes: self.large_cluster_size_threshold,
            unhealthy_per_mille: self.unhealthy_zone_threshold,
        }
    }
}

fn parse_rate(text: &str) -> Result<f64> {
    let rate: f64 = text.parse()?;
    ensure!(rate.is_finite() && rate >= 0.0, "a rate is 0 or more");
    Ok(rate)
}

/// Reads a part of one, to the thousandth.
fn parse_part(text: &str) -> Result<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = !part.contains(|one: char| !one.is_ascii_digit()) && part.len() <= 3;
    let thousandths = format!("{whole}{part:0<3}").parse::<u32>().ok();
    let number = thousandths.filter(|number| digits && !whole.is_empty() && *number <= 1000);
    number.context("a part is a number from 0 to 1, to the thousandth")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_to_the_thousandth() {
        for (text, part) in [
            ("0.55", Some(550)),
            ("0", Some(0)),
            ("1", Some(1000)),
            ("1.0", Some(1000)),
            ("0.005", Some(5)),
            ("1.001", None),
            ("0.5555", None),
            (".5", None),
            ("-0.5", None),
            ("0.-5", None),
            ("", None),
            ("half", None),
        ] {
            assert_eq!(parse_part(text).ok(), part, "{text}");
        }
    }

    #[test]
    fn upstreams_rates_are_ours_and_a_rate_of_none_is_never() {
        let args = ZoneArgs {
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            large_cluster_size_threshold: 50,
            unhealthy_zone_threshold: 550,
        };
        assert_eq!(args.rules(), manager::ZoneRules::default());
        let rate = |text| ZoneArgs { node_eviction_rate: parse_rate(text).unwrap(), ..args };
        assert_eq!(rate("0").rules().eviction_interval, None);
        assert_eq!(rate("4").rules().eviction_interval, Some(Duration::from_millis(250)));
        for wrong in ["-1", "NaN", "inf", "slow"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }
}
