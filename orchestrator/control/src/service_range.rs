//! Ranges that addresses of services come from: when they may be used, and when they may go.
//!
//! Spec: upstream's `ServiceCIDR` controller. A range is ready from the moment it is seen. One
//! that is deleted stays, not ready, as long as it is the only one that contains the address of
//! some service; and long enough for every API server to hear of its end.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use objects::Condition;
use objects::condition::{find_condition, set_condition};
use objects::network::ServiceCidr;
use serde_json::json;

use crate::action::{Action, Steps, Target};
use crate::view::{Key, View};

/// Keeps a range that is in use.
const IN_USE: &str = "networking.k8s.io/service-cidr-finalizer";
/// Label of addresses: who gave them away.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// The API server's part that gives addresses to services.
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// How long API servers may take to hear that a range is going.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

/// Plans the steps for one range.
#[must_use]
pub fn reconcile(view: &View, key: &Key, now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(range) = view.service_cidrs.get("", &key.name) else { return steps };
    let meta = &range.metadata;
    let has = meta.finalizers.iter().any(|one| one == IN_USE);
    let Some(deleted) = meta.deletion_timestamp else {
        if !has {
            let all: Vec<&str> =
                meta.finalizers.iter().map(String::as_str).chain([IN_USE]).collect();
            let body = json!({"metadata": {"finalizers": all}});
            steps.push(Action::patch(Target::of(&**range), body));
        } else if find_condition(&range.status.conditions, "Ready").is_none_or(|one| !one.is_true())
        {
            let ready = Condition::new("Ready", true, "", "Kubernetes Service CIDR is ready");
            steps.push(say(range, ready, now));
        }
        return steps;
    };
    if !has {
        return steps;
    }
    if is_needed(view, range) {
        let message = "There are still IPAddresses referencing the ServiceCIDR, please remove \
                       them or create a new ServiceCIDR";
        let ready = Condition::new("Ready", false, "Terminating", message);
        if find_condition(&range.status.conditions, "Ready").is_none_or(|one| one.is_true()) {
            steps.push(say(range, ready, now));
        }
        return steps;
    }
    let free_at = deleted.0.saturating_add(GRACE).unwrap_or(deleted.0);
    if now < free_at {
        steps.look_again(free_at);
        return steps;
    }
    let rest: Vec<&str> =
        meta.finalizers.iter().map(String::as_str).filter(|one| *one != IN_USE).collect();
    let body = json!({"metadata": {"finalizers": rest}});
    steps.push(Action::patch(Target::of(&**range), body));
    steps
}

fn say(range: &Arc<ServiceCidr>, condition: Condition, now: Timestamp) -> Action {
    let mut conditions = range.status.conditions.clone();
    set_condition(&mut conditions, condition, now);
    Action::patch_status(Target::of(&**range), json!({ "conditions": conditions }))
}

/// The networks of a range.
fn networks(range: &ServiceCidr) -> impl Iterator<Item = IpNet> + '_ {
    range.spec.cidrs.iter().filter_map(|cidr| cidr.parse().ok())
}

/// Would an address of a service lie in no range without this one?
fn is_needed(view: &View, range: &ServiceCidr) -> bool {
    let others = || view.service_cidrs.iter().filter(|one| one.metadata.uid != range.metadata.uid);
    let covered =
        |network: IpNet| others().flat_map(|one| networks(one)).any(|one| one.contains(&network));
    if networks(range).all(covered) {
        return false;
    }
    let given = view
        .addresses
        .iter()
        .filter(|one| one.metadata.labels.get(MANAGED_BY).is_some_and(|label| label == ALLOCATOR));
    let mut given = given.filter_map(|one| one.metadata.name.parse::<IpAddr>().ok());
    given.any(|address| {
        let holds = |one: &ServiceCidr| networks(one).any(|network| network.contains(&address));
        holds(range) && !others().any(|one| holds(one))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{CONTROLLERS, Controller};
    use crate::world::World;
    use objects::kind;
    use serde_json::Value;

    fn controller() -> &'static Controller {
        CONTROLLERS.iter().find(|one| one.name == "service-cidrs-controller").unwrap()
    }

    fn range(world: &mut World, name: &str, cidr: &str) {
        let object = json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}});
        world.add(&kind::SERVICE_CIDR, object);
    }

    fn address(world: &mut World, address: &str, manager: &str) {
        let metadata = json!({"name": address, "labels": {MANAGED_BY: manager}});
        world.add(&kind::IP_ADDRESS, json!({"metadata": metadata}));
    }

    /// Is it ready, and is it held? Or `gone`.
    #[track_caller]
    fn check(world: &mut World, name: &str, expected: (&str, bool)) {
        while world.round(controller()) {}
        let all = world.all::<ServiceCidr>();
        let Some(range) = all.iter().find(|one| one.metadata.name == name) else {
            return assert_eq!(("gone", false), expected);
        };
        let ready = find_condition(&range.status.conditions, "Ready").unwrap();
        let held = range.metadata.finalizers.iter().any(|one| one == IN_USE);
        assert_eq!((ready.status.as_str(), held), expected);
    }

    fn delete(world: &mut World, name: &str) {
        let at = objects::Time::from(world.now);
        let body: Value = json!({"metadata": {"deletionTimestamp": at}});
        world.change(&kind::SERVICE_CIDR, "", name, &body);
    }

    #[test]
    fn a_range_is_ready_and_goes_when_no_service_needs_it() {
        let mut world = World::default();
        range(&mut world, "kubernetes", "10.0.0.0/24");
        range(&mut world, "more", "10.0.1.0/24");
        check(&mut world, "kubernetes", ("True", true));
        check(&mut world, "more", ("True", true));
        address(&mut world, "10.0.1.7", ALLOCATOR);
        delete(&mut world, "more");
        check(&mut world, "more", ("False", true));
        world.pass(60, &[]);
        check(&mut world, "more", ("False", true));
        world.remove(&kind::IP_ADDRESS, "", "10.0.1.7");
        check(&mut world, "more", ("gone", false));
    }

    #[test]
    fn a_larger_range_frees_a_smaller_one_after_a_while() {
        let mut world = World::default();
        range(&mut world, "small", "10.0.0.0/28");
        address(&mut world, "10.0.0.3", ALLOCATOR);
        check(&mut world, "small", ("True", true));
        range(&mut world, "large", "10.0.0.0/16");
        delete(&mut world, "small");
        check(&mut world, "small", ("True", true));
        world.pass(15, &[]);
        check(&mut world, "small", ("gone", false));
    }

    #[test]
    fn what_others_claim_holds_no_range() {
        let mut world = World::default();
        range(&mut world, "more", "10.0.1.0/24");
        address(&mut world, "10.0.1.9", "gateway.example.com");
        check(&mut world, "more", ("True", true));
        delete(&mut world, "more");
        world.pass(15, &[]);
        check(&mut world, "more", ("gone", false));
    }
}
