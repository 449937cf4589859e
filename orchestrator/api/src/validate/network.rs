//! Ingresses, network policies, ranges of addresses.

use std::net::IpAddr;

use objects::name;
use serde_json::{Value, json};

use super::{Check, items, metadata, pod, text};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// Bounds of a slice of endpoints.
const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;

/// An address and a prefix length; the network's own address when that is wanted.
fn parse_cidr(said: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = said.split_once('/')?;
    let (address, length): (IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
    let most = if address.is_ipv4() { 32 } else { 128 };
    (length <= most).then_some((address, length))
}

/// The address as a number of 128 bits, v4 at the top.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn network(address: IpAddr, length: u8) -> u128 {
    let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0);
    bits(address) & mask
}

/// Checks an ingress.
pub(super) fn check_ingress(check: &mut Check, spec: &Value) {
    let rules = items(spec, "rules");
    if rules.is_empty() && spec.get("defaultBackend").is_none() {
        check.invalid("spec", spec, "either `defaultBackend` or `rules` must be specified");
    }
    if let Some(backend) = spec.get("defaultBackend") {
        check_backend(check, "spec.defaultBackend", backend);
    }
    let class = text(spec, "ingressClassName");
    if !class.is_empty() {
        check.rule("spec.ingressClassName", class, name::check_dns_subdomain);
    }
    for (at, rule) in rules.iter().enumerate() {
        let path = format!("spec.rules[{at}]");
        check_host(check, &format!("{path}.host"), text(rule, "host"));
        let Some(http) = rule.get("http") else { continue };
        let paths = items(http, "paths");
        if paths.is_empty() {
            check.required(format!("{path}.http.paths"), "");
        }
        for (number, one) in paths.iter().enumerate() {
            let place = format!("{path}.http.paths[{number}]");
            match text(one, "pathType") {
                "" => check.required(format!("{place}.pathType"), "pathType must be specified"),
                _ => check.one_of(
                    &format!("{place}.pathType"),
                    one.get("pathType"),
                    &["Exact", "ImplementationSpecific", "Prefix"],
                ),
            }
            let said = text(one, "path");
            let must = matches!(text(one, "pathType"), "Exact" | "Prefix");
            if (must || !said.is_empty()) && !said.starts_with('/') {
                check.invalid(format!("{place}.path"), &json!(said), "must be an absolute path");
            }
            let backend = one.get("backend").unwrap_or(&Value::Null);
            check_backend(check, &format!("{place}.backend"), backend);
        }
    }
    for (at, tls) in items(spec, "tls").iter().enumerate() {
        for (number, host) in items(tls, "hosts").iter().enumerate() {
            let path = format!("spec.tls[{at}].hosts[{number}]");
            check_host(check, &path, host.as_str().unwrap_or(""));
        }
    }
}

fn check_host(check: &mut Check, path: &str, host: &str) {
    if host.is_empty() {
        return;
    }
    if host.parse::<IpAddr>().is_ok() {
        check.invalid(path, &json!(host), "must be a DNS name, not an IP address");
    } else if let Some(rest) = host.strip_prefix("*.") {
        check.rule(path, rest, name::check_dns_subdomain);
    } else {
        check.rule(path, host, name::check_dns_subdomain);
    }
}

fn check_backend(check: &mut Check, path: &str, backend: &Value) {
    match (backend.get("service"), backend.get("resource")) {
        (None, None) => check.required(path, "resource or service backend is required"),
        (Some(_), Some(_)) => {
            let why = "cannot set both resource and service backends";
            check.invalid(path, &json!(""), why);
        }
        (None, Some(resource)) => {
            for field in ["kind", "name"] {
                if text(resource, field).is_empty() {
                    check.required(format!("{path}.resource.{field}"), "");
                }
            }
        }
        (Some(service), None) => {
            let place = format!("{path}.service");
            check.name(&format!("{place}.name"), text(service, "name"), name::check_dns_1035_label);
            let port = service.get("port").unwrap_or(&Value::Null);
            match (text(port, "name"), port.get("number")) {
                ("", None) => check.required(place, "port name or number is required"),
                ("", number) => check.range(&format!("{place}.port.number"), number, 1, 65_535),
                (_, Some(_)) => {
                    check.invalid(place, &json!(""), "cannot set both port name & port number");
                }
                (said, None) => {
                    check.rule(&format!("{place}.port.name"), said, name::check_port_name);
                }
            }
        }
    }
}

/// Checks an ingress class.
pub(super) fn check_ingress_class(check: &mut Check, spec: &Value) {
    match text(spec, "controller") {
        "" => check.required("spec.controller", ""),
        said if said.len() > 250 => {
            let why = "must be no more than 250 characters";
            check.invalid("spec.controller", &json!(said), why);
        }
        said if !said.split_once('/').is_some_and(|(domain, rest)| {
            name::check_dns_subdomain(domain).is_ok() && !rest.is_empty()
        }) =>
        {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            check.invalid("spec.controller", &json!(said), why);
        }
        _ => {}
    }
}

/// Checks a network policy.
pub(super) fn check_policy(check: &mut Check, spec: &Value) {
    if let Some(selector) = spec.get("podSelector") {
        metadata::selector(check, "spec.podSelector", selector);
    }
    for (side, peers) in [("ingress", "from"), ("egress", "to")] {
        for (at, rule) in items(spec, side).iter().enumerate() {
            let path = format!("spec.{side}[{at}]");
            for (number, port) in items(rule, "ports").iter().enumerate() {
                check_policy_port(check, &format!("{path}.ports[{number}]"), port);
            }
            for (number, peer) in items(rule, peers).iter().enumerate() {
                check_peer(check, &format!("{path}.{peers}[{number}]"), peer);
            }
        }
    }
    let types = items(spec, "policyTypes");
    if types.len() > 2 {
        check.invalid(
            "spec.policyTypes",
            &json!(types),
            "may not specify more than two policyTypes",
        );
    }
    for (at, kind) in types.iter().enumerate() {
        check.one_of(&format!("spec.policyTypes[{at}]"), Some(kind), &["Egress", "Ingress"]);
    }
}

fn check_policy_port(check: &mut Check, path: &str, port: &Value) {
    check.one_of(&format!("{path}.protocol"), port.get("protocol"), PROTOCOLS);
    let Some(said) = port.get("port") else {
        if port.get("endPort").is_some() {
            let why = "may not be specified when `port` is not specified";
            check.invalid(
                format!("{path}.endPort"),
                port.get("endPort").unwrap_or(&Value::Null),
                why,
            );
        }
        return;
    };
    pod::check_port_or_name(check, &format!("{path}.port"), said);
    if let Some(end) = port.get("endPort") {
        if said.is_string() {
            let why = "may not be specified when `port` is non-numeric";
            check.invalid(format!("{path}.endPort"), end, why);
        } else if end.as_i64() < said.as_i64() {
            let why = "must be greater than or equal to `port`";
            check.invalid(format!("{path}.endPort"), end, why);
        }
    }
}

fn check_peer(check: &mut Check, path: &str, peer: &Value) {
    let selects = peer.get("podSelector").is_some() || peer.get("namespaceSelector").is_some();
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = peer.get(field) {
            metadata::selector(check, &format!("{path}.{field}"), selector);
        }
    }
    let Some(block) = peer.get("ipBlock") else {
        if !selects {
            check.required(path, "must specify a peer");
        }
        return;
    };
    if selects {
        check.forbidden(path, "may not specify both ipBlock and another peer");
    }
    let place = format!("{path}.ipBlock");
    let said = text(block, "cidr");
    let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let Some((outer, length)) = parse_cidr(said) else {
        match said {
            "" => check.required(format!("{place}.cidr"), ""),
            _ => check.invalid(format!("{place}.cidr"), &json!(said), why),
        }
        return;
    };
    for (at, except) in items(block, "except").iter().enumerate() {
        let spot = format!("{place}.except[{at}]");
        match except.as_str().and_then(parse_cidr) {
            None => check.invalid(spot, except, why),
            Some((inner, own)) => {
                let within = inner.is_ipv4() == outer.is_ipv4()
                    && own > length
                    && network(inner, length) == network(outer, length);
                if !within {
                    check.invalid(
                        spot,
                        except,
                        &format!("must be a strict subset of `cidr` {said:?}"),
                    );
                }
            }
        }
    }
}

/// Checks a range of service addresses.
pub(super) fn check_service_cidr(check: &mut Check, spec: &Value) {
    let ranges = items(spec, "cidrs");
    if ranges.is_empty() {
        check.required("spec.cidrs", "at least one CIDR required");
    }
    if ranges.len() > 2 {
        check.invalid("spec", spec, "may only hold up to 2 values");
    }
    let mut families = Vec::new();
    for (at, range) in ranges.iter().enumerate() {
        let path = format!("spec.cidrs[{at}]");
        match range.as_str().and_then(parse_cidr) {
            None => {
                let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                check.invalid(path, range, why);
            }
            Some((address, length)) => {
                families.push(address.is_ipv4());
                if network(address, length) != bits(address) {
                    check.invalid(path, range, "must be in canonical form");
                }
            }
        }
    }
    if let [first, second] = families.as_slice()
        && first == second
    {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and \
                   2001:db8::/64";
        check.invalid("spec.cidrs", &json!(ranges), why);
    }
}

/// Checks an address that is taken.
pub(super) fn check_ip_address(check: &mut Check, object: &Value, spec: &Value) {
    let said = text(object, "metadata.name");
    if said.parse::<IpAddr>().map_or(true, |address| address.to_string() != said) {
        let why = "must be a valid IP address in canonical form";
        check.invalid("metadata.name", &json!(said), why);
    }
    let Some(parent) = spec.get("parentRef") else {
        check.required("spec.parentRef", "");
        return;
    };
    for field in ["resource", "name"] {
        if text(parent, field).is_empty() {
            check.required(format!("spec.parentRef.{field}"), "");
        }
    }
}

/// Checks an address that pods and services may have, for some mean something else on every link.
///
/// Upstream refuses loopback too; here it is let through, for a site of one machine serves there.
fn check_plain_address(check: &mut Check, path: &str, address: IpAddr) {
    let special = match address {
        address if address.is_unspecified() => "may not be unspecified (0.0.0.0 or ::)",
        IpAddr::V4(four) if four.is_link_local() => {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
        }
        IpAddr::V6(six) if six.is_unicast_link_local() => {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
        }
        IpAddr::V4(four) if four.octets().starts_with(&[224, 0, 0]) => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
        }
        IpAddr::V6(six) if six.octets().starts_with(&[0xff, 2]) => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
        }
        _ => return,
    };
    check.invalid(path, &json!(address.to_string()), special);
}

/// Checks a slice of endpoints.
pub(super) fn check_slice(check: &mut Check, object: &Value) {
    let kinds = ["FQDN", "IPv4", "IPv6"];
    if text(object, "addressType").is_empty() {
        check.required("addressType", "");
    }
    check.one_of("addressType", object.get("addressType"), &kinds);
    let endpoints = items(object, "endpoints");
    too_many(check, "endpoints", endpoints.len(), ENDPOINTS_MAX);
    for (at, endpoint) in endpoints.iter().enumerate() {
        let path = format!("endpoints[{at}].addresses");
        let addresses = items(endpoint, "addresses");
        if addresses.is_empty() {
            check.required(&path, "must contain at least 1 address");
        }
        too_many(check, &path, addresses.len(), ADDRESSES_MAX);
        for (number, address) in addresses.iter().enumerate() {
            let place = format!("{path}[{number}]");
            let said = address.as_str().unwrap_or("");
            match (text(object, "addressType"), said.parse::<IpAddr>()) {
                ("IPv4", Ok(found)) if found.is_ipv4() => check_plain_address(check, &place, found),
                ("IPv6", Ok(found)) if found.is_ipv6() => check_plain_address(check, &place, found),
                ("IPv4", _) => check.invalid(place, address, "must be an IPv4 address"),
                ("IPv6", _) => check.invalid(place, address, "must be an IPv6 address"),
                ("FQDN", _) => check.rule(&place, said, name::check_dns_subdomain),
                _ => {}
            }
        }
    }
    let ports = items(object, "ports");
    too_many(check, "ports", ports.len(), PORTS_MAX);
    let mut seen = std::collections::BTreeSet::new();
    for (at, port) in ports.iter().enumerate() {
        let said = text(port, "name");
        if !said.is_empty() {
            check.rule(&format!("ports[{at}].name"), said, name::check_dns_label);
        }
        if !seen.insert(said) {
            check.duplicate(format!("ports[{at}].name"), &json!(said));
        }
        check.one_of(&format!("ports[{at}].protocol"), port.get("protocol"), PROTOCOLS);
    }
}

/// Checks the older form of endpoints.
pub(super) fn check_endpoints(check: &mut Check, object: &Value) {
    for (at, subset) in items(object, "subsets").iter().enumerate() {
        let path = format!("subsets[{at}]");
        let (ready, waiting) = (items(subset, "addresses"), items(subset, "notReadyAddresses"));
        if ready.is_empty() && waiting.is_empty() {
            check.required(path.clone(), "must specify `addresses` or `notReadyAddresses`");
        }
        for (key, all) in [("addresses", ready), ("notReadyAddresses", waiting)] {
            for (number, address) in all.iter().enumerate() {
                let place = format!("{path}.{key}[{number}].ip");
                let said = text(address, "ip");
                match said.parse() {
                    Ok(found) => check_plain_address(check, &place, found),
                    Err(_) => {
                        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                        check.invalid(place, &json!(said), why);
                    }
                }
            }
        }
        let ports = items(subset, "ports");
        for (number, port) in ports.iter().enumerate() {
            let place = format!("{path}.ports[{number}]");
            let said = text(port, "name");
            if !said.is_empty() {
                check.rule(&format!("{place}.name"), said, name::check_dns_label);
            } else if ports.len() > 1 {
                check.required(format!("{place}.name"), "");
            }
            let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
            check.range(&format!("{place}.port"), Some(&json!(number)), 1, 65_535);
            check.one_of(&format!("{place}.protocol"), port.get("protocol"), PROTOCOLS);
        }
    }
}

fn too_many(check: &mut Check, path: &str, count: usize, most: usize) {
    if count > most {
        check.causes.push(objects::Cause {
            reason: "FieldValueTooMany".to_owned(),
            message: format!("Too many: {count}: must have at most {most} items"),
            field: path.to_owned(),
        });
    }
}
