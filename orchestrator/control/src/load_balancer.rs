//! Addresses outside the cluster for services of type `LoadBalancer`.
//!
//! An address of the operator's pools is given for as long as the service lives; one asked
//! for by `spec.loadBalancerIP` is given if it is in a pool and free. Any node answers for it;
//! announcing it is the router's business. Services of another `loadBalancerClass` are left
//! to those who serve that class.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use objects::network::Service;
use serde_json::{Value, json};

use crate::action::{Action, Note, Steps, Target};
use crate::view::{Key, View};

/// The class that is ours; no class at all is ours too.
const CLASS: &str = "muster.dev/pool";

/// Plans the address of one service.
#[must_use]
pub fn reconcile(view: &View, key: &Key, _now: Timestamp) -> Steps {
    let mut steps = Steps::none();
    let Some(service) = view.services.get(&key.namespace, &key.name) else { return steps };
    if service.metadata.is_deleting() || view.settings.load_balancer_pools.is_empty() {
        return steps;
    }
    let target = Target::of(&**service);
    let has = &service.status.load_balancer.ingress;
    if !is_ours(service) {
        // One that was ours and changed its type gives the address back.
        if service.spec.kind != "LoadBalancer" && !has.is_empty() {
            steps.push(Action::patch_status(target, json!({"loadBalancer": {"ingress": null}})));
        }
        return steps;
    }
    let kept = address(service).is_some_and(|ip| wish(service).is_none_or(|wish| wish == ip));
    if kept && !is_taken(view, service) {
        return steps;
    }
    match give(view, service) {
        Some(ip) => {
            let ingress = json!([{"ip": ip, "ipMode": "VIP"}]);
            let ensuring = Note::normal(&target, "EnsuringLoadBalancer", "Ensuring load balancer");
            steps.tell(ensuring);
            let note = Note::normal(&target, "EnsuredLoadBalancer", "Ensured load balancer");
            let step = Action::patch_status(target, json!({"loadBalancer": {"ingress": ingress}}));
            steps.push(step.telling(note));
        }
        None => {
            steps.tell(Note::warning(&target, "SyncLoadBalancerFailed", refusal(service)));
            if !has.is_empty() {
                let body = json!({"loadBalancer": {"ingress": null}});
                steps.push(Action::patch_status(target, body));
            }
        }
    }
    steps
}

/// Why a service has no address.
fn refusal(service: &Service) -> String {
    let why = match &service.spec.load_balancer_ip {
        wish if wish.is_empty() => "no address of the pools is free".to_owned(),
        wish => format!("address {wish} is taken, or in no pool"),
    };
    format!("Error syncing load balancer: failed to ensure load balancer: {why}")
}

fn is_ours(service: &Service) -> bool {
    let class = service.spec.extra.get("loadBalancerClass").and_then(Value::as_str);
    service.spec.kind == "LoadBalancer" && class.is_none_or(|class| class == CLASS)
}

/// The address a service has.
fn address(service: &Service) -> Option<IpAddr> {
    service.status.load_balancer.ingress.first()?.ip.parse().ok()
}

/// The address a service asks for.
fn wish(service: &Service) -> Option<IpAddr> {
    service.spec.load_balancer_ip.parse().ok()
}

/// Does an older service have the same address? It cannot have come about by us alone, but
/// someone may have written it.
fn is_taken(view: &View, service: &Service) -> bool {
    let age = |one: &Service| (one.metadata.creation_timestamp, one.metadata.uid.clone());
    let same = |one: &&Arc<Service>| {
        is_ours(one) && address(one).is_some() && address(one) == address(service)
    };
    view.services.iter().filter(same).any(|one| age(one) < age(service))
}

/// Chooses the address of a service.
///
/// All services that wait are given theirs in one order, so that two that are planned from
/// one view do not get the same.
fn give(view: &View, service: &Arc<Service>) -> Option<IpAddr> {
    let pools = &view.settings.load_balancer_pools;
    let ours = || view.services.iter().filter(|one| is_ours(one));
    let fits = |one: &Service| {
        wish(one).is_none_or(|wish| address(one) == Some(wish)) && !is_taken(view, one)
    };
    // Also the address of one that is no longer ours, until it has given it back.
    let mut taken: BTreeSet<IpAddr> = view.services.iter().filter_map(|one| address(one)).collect();
    // Wishes first: anyone else can take another address.
    let waiting = || ours().filter(|one| address(one).is_none() || !fits(one));
    let (wishing, any): (Vec<_>, Vec<_>) = waiting().partition(|one| wish(one).is_some());
    for one in wishing.into_iter().chain(any) {
        let ip = match wish(one) {
            Some(wish) => Some(wish).filter(|ip| pools.iter().any(|pool| pool.contains(ip))),
            None => pools.iter().flat_map(ipnet::IpNet::hosts).find(|ip| !taken.contains(ip)),
        };
        let ip = ip.filter(|ip| taken.insert(*ip));
        if one.metadata.uid == service.metadata.uid {
            return ip;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use objects::kind;

    #[test]
    fn each_service_has_an_address_of_its_own_and_keeps_it() {
        let mut world = World::default();
        world.settings.load_balancer_pools = vec!["10.9.0.0/29".parse().unwrap()];
        let service = |name: &str, spec: Value| json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec});
        let plain = || json!({"type": "LoadBalancer"});
        world.add(&kind::SERVICE, service("a", plain()));
        world.add(&kind::SERVICE, service("b", plain()));
        let wish = json!({"type": "LoadBalancer", "loadBalancerIP": "10.9.0.1"});
        world.add(&kind::SERVICE, service("c", wish));
        let far = json!({"type": "LoadBalancer", "loadBalancerIP": "10.8.0.1"});
        world.add(&kind::SERVICE, service("d", far));
        let class = json!({"type": "LoadBalancer", "loadBalancerClass": "other"});
        world.add(&kind::SERVICE, service("e", class));
        world.settle(&[]);
        let ips = |world: &World| -> Vec<String> {
            let all = world.all::<Service>();
            all.iter().map(|one| address(one).map_or(String::new(), |ip| ip.to_string())).collect()
        };
        assert_eq!(ips(&world), ["10.9.0.2", "10.9.0.3", "10.9.0.1", "", ""]);
        assert!(world.told.contains(
            &"SyncLoadBalancerFailed Error syncing load balancer: failed to ensure load balancer: \
              address 10.8.0.1 is taken, or in no pool"
                .to_owned()
        ));
        world.change(&kind::SERVICE, "n", "a", &json!({"spec": {"type": "ClusterIP"}}));
        world.add(&kind::SERVICE, service("f", plain()));
        world.settle(&[]);
        // What is being given back is not given on in the same moment.
        assert_eq!(ips(&world), ["", "10.9.0.3", "10.9.0.1", "", "", "10.9.0.4"]);
    }
}
