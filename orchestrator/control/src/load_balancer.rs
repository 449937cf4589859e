//! Addresses outside the cluster for services of type `LoadBalancer`.
//!
//! A service has one of each of its families for which there is a pool, in their order.
//! An address of the operator's pools is given for as long as the service lives; one asked
//! for by `spec.loadBalancerIP` is given if it is in a pool and free. Any node answers for it;
//! announcing it is the router's business. Services of another `loadBalancerClass` are left
//! to those who serve that class.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use objects::network::Service;
use serde_json::{Value, json};

use crate::action::{Action, Note, Steps, Target};
use crate::address::Family;
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
    let given = give(view, service);
    let whole = given.len() == wanted(view, service).len() && !given.is_empty();
    let same = given.iter().copied().eq(addresses(service)) && given.len() == has.len();
    if whole && same {
        return steps;
    }
    if !whole {
        steps.tell(Note::warning(&target, "SyncLoadBalancerFailed", refusal(service)));
    }
    if given.is_empty() && !has.is_empty() {
        let body = json!({"loadBalancer": {"ingress": null}});
        steps.push(Action::patch_status(target, body));
    } else if !same {
        let ingress: Vec<Value> =
            given.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let ensuring = Note::normal(&target, "EnsuringLoadBalancer", "Ensuring load balancer");
        steps.tell(ensuring);
        let note = Note::normal(&target, "EnsuredLoadBalancer", "Ensured load balancer");
        let step = Action::patch_status(target, json!({"loadBalancer": {"ingress": ingress}}));
        steps.push(step.telling(note));
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

/// The addresses a service has.
fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> + '_ {
    service.status.load_balancer.ingress.iter().filter_map(|point| point.ip.parse().ok())
}

/// The address of a family that a service has.
fn address(service: &Service, family: Family) -> Option<IpAddr> {
    addresses(service).find(|ip| Family::of(*ip) == family)
}

/// The address of a family that a service asks for.
fn wish(service: &Service, family: Family) -> Option<IpAddr> {
    service.spec.load_balancer_ip.parse().ok().filter(|ip| Family::of(*ip) == family)
}

/// The families a service is to have an address of.
fn wanted(view: &View, service: &Service) -> Vec<Family> {
    let has_pool = |family: &Family| {
        view.settings.load_balancer_pools.iter().any(|pool| Family::of(pool.addr()) == *family)
    };
    Family::of_service(service).into_iter().filter(has_pool).collect()
}

/// Does an older service have the same address? It cannot have come about by us alone, but
/// someone may have written it.
fn is_taken(view: &View, service: &Service, ip: IpAddr) -> bool {
    let age = |one: &Service| (one.metadata.creation_timestamp, one.metadata.uid.clone());
    let same = |one: &&Arc<Service>| is_ours(one) && addresses(one).any(|other| other == ip);
    view.services.iter().filter(same).any(|one| age(one) < age(service))
}

/// The address of a family that a service has and may keep.
fn kept(view: &View, service: &Service, family: Family) -> Option<IpAddr> {
    let fits = |ip: &IpAddr| wish(service, family).is_none_or(|wish| wish == *ip);
    address(service, family).filter(|ip| fits(ip) && !is_taken(view, service, *ip))
}

/// Chooses the addresses of a service; one is missing where none is to be had.
///
/// All services that wait are given theirs in one order, so that two that are planned from
/// one view do not get the same.
fn give(view: &View, service: &Arc<Service>) -> Vec<IpAddr> {
    let pools = &view.settings.load_balancer_pools;
    let own = wanted(view, service);
    let mut given: Vec<(Family, IpAddr)> = Vec::new();
    given.extend(own.iter().filter_map(|family| Some((*family, kept(view, service, *family)?))));
    if given.len() < own.len() {
        // Also the address of one that is no longer ours, until it has given it back.
        let mut taken: BTreeSet<IpAddr> =
            view.services.iter().flat_map(|one| addresses(one).collect::<Vec<_>>()).collect();
        let ours = view.services.iter().filter(|one| is_ours(one));
        let each = ours.flat_map(|one| wanted(view, one).into_iter().map(move |kind| (one, kind)));
        // Wishes first: anyone else can take another address.
        let waiting = each.filter(|(one, family)| kept(view, one, *family).is_none());
        let (wishing, any): (Vec<_>, Vec<_>) =
            waiting.partition(|(one, family)| wish(one, *family).is_some());
        for (one, family) in wishing.into_iter().chain(any) {
            let ip = match wish(one, family) {
                Some(wish) => Some(wish).filter(|ip| pools.iter().any(|pool| pool.contains(ip))),
                None => free(pools, family, &taken),
            };
            let Some(ip) = ip.filter(|ip| taken.insert(*ip)) else { continue };
            if one.metadata.uid == service.metadata.uid {
                given.push((family, ip));
            }
        }
    }
    let of = |family| given.iter().find(|(one, _)| *one == family).map(|(_, ip)| *ip);
    own.into_iter().filter_map(of).collect()
}

/// The first address of a family's pools that nobody has.
fn free(pools: &[IpNet], family: Family, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let pools = pools.iter().filter(|pool| Family::of(pool.addr()) == family);
    // The address of a network itself means any of its routers in IPv6.
    let mut all = pools
        .flat_map(|pool| pool.hosts().filter(|ip| pool.addr().is_ipv4() || *ip != pool.network()));
    all.find(|ip| !taken.contains(ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use objects::kind;

    /// The addresses of each service, in the order of their names.
    fn ips(world: &World) -> Vec<String> {
        let of = |one: &Service| addresses(one).map(|ip| ip.to_string()).collect::<Vec<_>>();
        world.all::<Service>().iter().map(|one| of(one).join(" ")).collect()
    }

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

    #[test]
    fn a_service_has_an_address_of_each_of_its_families_that_has_a_pool() {
        let mut world = World::default();
        let pools = |all: &[&str]| all.iter().map(|pool| pool.parse().unwrap()).collect();
        world.settings.load_balancer_pools = pools(&["10.9.0.0/29"]);
        let mut add = |name: &str, families: Value, wish: &str| {
            let spec =
                json!({"type": "LoadBalancer", "ipFamilies": families, "loadBalancerIP": wish});
            let service = json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec});
            world.add(&kind::SERVICE, service);
        };
        add("both", json!(["IPv6", "IPv4"]), "");
        add("four", json!(["IPv4"]), "");
        add("six", json!(["IPv6"]), "");
        add("wish", json!(["IPv4", "IPv6"]), "fd29::7");
        let settled = |world: &mut World| {
            world.settle(&[]);
            ips(world)
        };
        assert_eq!(settled(&mut world), ["10.9.0.1", "10.9.0.2", "", "10.9.0.3"]);
        // A second pool is made use of, and nobody loses what he has.
        world.settings.load_balancer_pools = pools(&["10.9.0.0/29", "fd29::/64"]);
        let second = ["fd29::1 10.9.0.1", "10.9.0.2", "fd29::2", "10.9.0.3 fd29::7"];
        assert_eq!(settled(&mut world), second);
        let single = json!({"spec": {"ipFamilies": ["IPv6"]}});
        world.change(&kind::SERVICE, "n", "both", &single);
        assert_eq!(settled(&mut world)[0], "fd29::1");
        // A pool that is full of what others have takes nothing away.
        world.settings.load_balancer_pools = pools(&["10.9.0.0/29", "fd29::/127"]);
        world.change(
            &kind::SERVICE,
            "n",
            "four",
            &json!({"spec": {"ipFamilies": ["IPv4", "IPv6"]}}),
        );
        assert_eq!(settled(&mut world)[1], "10.9.0.2");
    }
}
