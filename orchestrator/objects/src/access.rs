//! Roles, as far as controllers put them together.

use serde_json::Value;

use crate::{
    kind,
    meta::LabelSelector,
    view::{objects, views},
};

objects! {
    /// What a person may do anywhere.
    kind::CLUSTER_ROLE => pub struct ClusterRole {
        pub rules: Vec<Value>,
        pub aggregation_rule: Option<AggregationRule>,
    }
}

views! {
    /// Whose rules a role is made of.
    pub struct AggregationRule {
        pub cluster_role_selectors: Vec<LabelSelector>,
    }
}
