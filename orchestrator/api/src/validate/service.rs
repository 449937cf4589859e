//! What services may say.

use std::{collections::BTreeSet, net::IpAddr};

use objects::name;
use serde_json::{Value, json};

use super::{Check, items, metadata, pod, text};
use crate::service::Family;

const PORT_MAX: i64 = 65_535;

/// Checks a service's spec.
pub(super) fn check(check: &mut Check, spec: &Value) {
    let kind = text(spec, "type");
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    check.one_of("spec.type", spec.get("type"), &kinds);
    check.one_of("spec.sessionAffinity", spec.get("sessionAffinity"), &["ClientIP", "None"]);
    metadata::labels(check, "spec.selector", spec.get("selector"));
    if kind == "ExternalName" {
        check.name("spec.externalName", text(spec, "externalName"), name::check_dns_subdomain);
        let has_address = !text(spec, "clusterIP").is_empty();
        for (field, is_set) in [
            ("clusterIPs", has_address || !items(spec, "clusterIPs").is_empty()),
            ("ipFamilies", !items(spec, "ipFamilies").is_empty()),
            ("ipFamilyPolicy", spec.get("ipFamilyPolicy").is_some()),
        ] {
            if is_set {
                let why = "may not be set when `type` is 'ExternalName'";
                check.forbidden(format!("spec.{field}"), why);
            }
        }
    } else {
        check_families(check, spec);
        check_addresses(check, spec);
    }
    let headless = text(spec, "clusterIP") == "None";
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let why = format!("may not be set to 'None' for {kind} services");
        check.invalid("spec.clusterIPs[0]", &json!("None"), &why);
    }
    for (at, outside) in items(spec, "externalIPs").iter().enumerate() {
        if outside.as_str().is_none_or(|text| text.parse::<IpAddr>().is_err()) {
            let path = format!("spec.externalIPs[{at}]");
            check.invalid(path, outside, "must be a valid IP address");
        }
    }
    check.one_of(
        "spec.externalTrafficPolicy",
        spec.get("externalTrafficPolicy"),
        &["Cluster", "Local"],
    );
    check.one_of(
        "spec.internalTrafficPolicy",
        spec.get("internalTrafficPolicy"),
        &["Cluster", "Local"],
    );
    check_ports(check, spec, kind, headless);
}

fn check_families(check: &mut Check, spec: &Value) {
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    check.one_of("spec.ipFamilyPolicy", spec.get("ipFamilyPolicy"), &policies);
    let mut seen = BTreeSet::new();
    for (at, family) in items(spec, "ipFamilies").iter().enumerate() {
        let path = format!("spec.ipFamilies[{at}]");
        check.one_of(&path, Some(family), &["IPv4", "IPv6"]);
        check.once(&path, family.as_str().unwrap_or_default(), &mut seen);
    }
}

/// Checks a service's one address and the list of them, which begins with that one.
fn check_addresses(check: &mut Check, spec: &Value) {
    const LIST: &str = "spec.clusterIPs";
    let one = text(spec, "clusterIP");
    let all = items(spec, "clusterIPs");
    let shown = json!(all);
    match all.first().and_then(Value::as_str) {
        None if !one.is_empty() => check.required(LIST, ""),
        Some(_) if one.is_empty() => {
            check.invalid(LIST, &shown, "must be empty when `clusterIP` is not specified");
        }
        Some(first) if first != one => {
            check.invalid(LIST, &shown, "first value must match `clusterIP`");
        }
        None | Some(_) => {}
    }
    let headless = all.first().is_some_and(|first| first == "None");
    if headless && all.len() > 1 {
        check.invalid(LIST, &shown, "'None' must be the first and only value");
    }
    let mut families = Vec::new();
    for (at, address) in all.iter().enumerate().skip(usize::from(headless)) {
        match address.as_str().and_then(|text| text.parse::<IpAddr>().ok()) {
            Some(address) => families.push(Family::of(address)),
            None => {
                let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                check.invalid(format!("{LIST}[{at}]"), address, why);
            }
        }
    }
    if all.len() > 2 {
        check.invalid(LIST, &shown, "may only hold up to 2 values");
    }
    if headless || families.len() < all.len() {
        return;
    }
    if families.len() > 1 && (families.len() > 2 || families.first() == families.last()) {
        let why = "may specify no more than one IP for each IP family";
        check.invalid(LIST, &shown, why);
    }
    let wanted = items(spec, "ipFamilies").iter().map(|family| family.as_str().unwrap_or_default());
    for (at, (family, wanted)) in families.iter().zip(wanted).enumerate() {
        if Family::named(wanted).is_some_and(|wanted| wanted != *family) {
            let why = format!("expected an {wanted} value as indicated by `ipFamilies[{at}]`");
            let address = all.get(at).unwrap_or(&Value::Null);
            check.invalid(format!("{LIST}[{at}]"), address, &why);
        }
    }
}

fn check_ports(check: &mut Check, spec: &Value, kind: &str, headless: bool) {
    let ports = items(spec, "ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        check.required("spec.ports", "");
    }
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    for (at, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        let said = text(port, "name");
        if said.is_empty() && ports.len() > 1 {
            check.required(format!("{path}.name"), "");
        } else if !said.is_empty() {
            check.rule(&format!("{path}.name"), said, name::check_dns_label);
            check.once(&format!("{path}.name"), said, &mut names);
        }
        let number = format!("{path}.port");
        match port.get("port") {
            None => check.required(number, ""),
            some => check.range(&number, some, 1, PORT_MAX),
        }
        let protocols = ["SCTP", "TCP", "UDP"];
        check.one_of(&format!("{path}.protocol"), port.get("protocol"), &protocols);
        if let Some(target) = port.get("targetPort") {
            pod::check_port_or_name(check, &format!("{path}.targetPort"), target);
        }
        let node_port = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0);
        if node_port != 0 && !matches!(kind, "NodePort" | "LoadBalancer") {
            let why = "may not be used when `type` is 'ClusterIP'";
            check.forbidden(format!("{path}.nodePort"), why);
        }
        let identity =
            format!("{} {}", port.get("port").unwrap_or(&Value::Null), text(port, "protocol"));
        if !numbers.insert(identity) {
            let shown = json!({"port": port.get("port"), "protocol": port.get("protocol")});
            check.duplicate(path, &shown);
        }
    }
}
