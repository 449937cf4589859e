//! What services may say.

use std::{collections::BTreeSet, net::IpAddr};

use objects::name;
use serde_json::{Value, json};

use super::{Check, items, metadata, pod, text};

const PORT_MAX: i64 = 65_535;

/// Checks a service's spec.
pub(super) fn check(check: &mut Check, spec: &Value) {
    let kind = text(spec, "type");
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    check.one_of("spec.type", spec.get("type"), &kinds);
    check.one_of("spec.sessionAffinity", spec.get("sessionAffinity"), &["ClientIP", "None"]);
    metadata::labels(check, "spec.selector", spec.get("selector"));
    let address = text(spec, "clusterIP");
    if kind == "ExternalName" {
        check.name("spec.externalName", text(spec, "externalName"), name::check_dns_subdomain);
        if !address.is_empty() {
            check.forbidden("spec.clusterIPs", "may not be set when `type` is 'ExternalName'");
        }
    } else if address == "None" && kind != "ClusterIP" {
        check.invalid(
            "spec.clusterIPs[0]",
            &json!("None"),
            "may not be set to 'None' for NodePort and LoadBalancer services",
        );
    } else if !address.is_empty() && address != "None" && address.parse::<IpAddr>().is_err() {
        check.invalid("spec.clusterIPs[0]", &json!(address), "must be a valid IP address");
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
    check_ports(check, spec, kind, address == "None");
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
