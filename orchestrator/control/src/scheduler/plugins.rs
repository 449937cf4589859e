//! The plugins, in the order upstream asks them.

mod binding;
mod fit;
mod locality;
mod neighbours;
mod node;
mod preemption;
mod spread;
mod volumes;

use std::sync::Arc;

use serde_json::Value;

use super::framework::Plugin;

pub(super) use spread::DEFAULTS as SPREAD_DEFAULTS;

/// A plugin with its usual weight.
pub(super) type Weighted = (Arc<dyn Plugin>, i64);

/// Makes every plugin in its usual order; `args` finds a plugin's own part of the configuration.
pub(super) fn all(args: impl Fn(&str) -> Value) -> Vec<Weighted> {
    vec![
        (Arc::new(binding::PrioritySort), 0),
        (Arc::new(node::NodeUnschedulable), 0),
        (Arc::new(node::NodeName), 0),
        (Arc::new(node::TaintToleration), 3),
        (Arc::new(node::NodeAffinity::new(&args("NodeAffinity"))), 2),
        (Arc::new(node::NodePorts), 0),
        (Arc::new(fit::NodeResourcesFit::new(&args("NodeResourcesFit"))), 1),
        (Arc::new(volumes::VolumeRestrictions), 0),
        (Arc::new(volumes::NodeVolumeLimits), 0),
        (Arc::new(volumes::VolumeBinding), 0),
        (Arc::new(volumes::VolumeZone), 0),
        (Arc::new(spread::PodTopologySpread), 2),
        (Arc::new(neighbours::InterPodAffinity::new(&args("InterPodAffinity"))), 2),
        (Arc::new(preemption::DefaultPreemption), 0),
        (
            Arc::new(fit::NodeResourcesBalancedAllocation::new(&args(
                "NodeResourcesBalancedAllocation",
            ))),
            1,
        ),
        (Arc::new(locality::ImageLocality), 1),
        (Arc::new(locality::RackSpread), 2),
        (Arc::new(locality::DataLocality), 2),
        (Arc::new(binding::DefaultBinder), 0),
    ]
}
