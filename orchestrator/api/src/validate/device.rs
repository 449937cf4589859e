//! Objects of dynamic resource allocation: classes, claims and what drivers offer.
//!
//! *Limits*: what opaque configurations and capacities say is not checked beyond its shape.
//!
//! Spec: upstream's resource.k8s.io/v1.

use std::collections::{BTreeMap, BTreeSet};

use objects::field::Fields as _;
use objects::name;
use serde_json::{Value, json};

use super::{Check, items, text};
use crate::cel::{Program, Sort};

/// As many requests a claim may have, and as many selectors one of them.
const ENTRIES_MAX: usize = 32;
/// As many devices a slice may list.
const DEVICES_MAX: usize = 128;

/// Checks a class.
pub(super) fn check_class(check: &mut Check, spec: &Value) {
    check_selectors(check, "spec.selectors", items(spec, "selectors"));
}

/// Checks the spec of a claim, or of a claim's template, at a path.
pub(super) fn check_claim(check: &mut Check, path: &str, spec: &Value) {
    let path = format!("{path}.devices.requests");
    let requests = items(spec, "devices.requests");
    too_many(check, &path, requests.len(), ENTRIES_MAX);
    let mut seen = BTreeSet::new();
    for (at, request) in requests.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let said = text(request, "name");
        check.name(&format!("{path}.name"), said, name::check_dns_label);
        check.once(&format!("{path}.name"), said, &mut seen);
        let first = items(request, "firstAvailable");
        match (request.get("exactly"), first.is_empty()) {
            (None, true) => {
                check.required(path, "exactly one of `exactly` or `firstAvailable` is required");
            }
            (Some(_), false) => {
                let why = "exactly one of `exactly` or `firstAvailable` must be specified";
                check.invalid(path, &Value::Null, why);
            }
            (Some(exactly), true) => check_wish(check, &format!("{path}.exactly"), exactly),
            (None, false) => {
                for (at, one) in first.iter().enumerate() {
                    let path = format!("{path}.firstAvailable[{at}]");
                    check.name(&format!("{path}.name"), text(one, "name"), name::check_dns_label);
                    check_wish(check, &path, one);
                }
            }
        }
    }
}

/// Checks which devices are wanted, and how many.
fn check_wish(check: &mut Check, path: &str, wish: &Value) {
    let class = text(wish, "deviceClassName");
    check.name(&format!("{path}.deviceClassName"), class, name::check_dns_subdomain);
    check_selectors(check, &format!("{path}.selectors"), items(wish, "selectors"));
    let place = format!("{path}.allocationMode");
    check.one_of(&place, wish.get("allocationMode"), &["All", "ExactCount"]);
    let count = wish.get("count").and_then(Value::as_i64).unwrap_or(0);
    match text(wish, "allocationMode") {
        "ExactCount" if count < 1 => {
            check.invalid(format!("{path}.count"), &json!(count), "must be greater than zero");
        }
        "All" if count != 0 => {
            let why = "must not be specified when allocationMode is 'All'";
            check.invalid(format!("{path}.count"), &json!(count), why);
        }
        _ => {}
    }
}

fn check_selectors(check: &mut Check, path: &str, selectors: &[Value]) {
    too_many(check, path, selectors.len(), ENTRIES_MAX);
    let names = BTreeMap::from([("device".to_owned(), Sort::Dyn)]);
    for (at, selector) in selectors.iter().enumerate() {
        let Some(cel) = selector.get("cel") else {
            check.required(format!("{path}[{at}].cel"), "");
            continue;
        };
        let (place, source) = (format!("{path}[{at}].cel.expression"), text(cel, "expression"));
        match Program::compile(source, &names) {
            Ok((_, Sort::Dyn | Sort::Scalar("bool"))) => {}
            Ok(_) => check.invalid(place, &json!(source), "must evaluate to bool"),
            Err(err) => {
                check.invalid(place, &json!(source), &format!("compilation failed: {err}"));
            }
        }
    }
}

/// Checks what a driver offers.
pub(super) fn check_slice(check: &mut Check, spec: &Value) {
    check.name("spec.driver", text(spec, "driver"), name::check_dns_subdomain);
    if text(spec, "pool.name").is_empty() {
        check.required("spec.pool.name", "");
    }
    let count = spec.field("pool.resourceSliceCount").and_then(Value::as_i64).unwrap_or(0);
    if count <= 0 {
        let why = "must be greater than zero";
        check.invalid("spec.pool.resourceSliceCount", &json!(count), why);
    }
    check.not_negative("spec.pool.generation", spec.field("pool.generation"));
    let places = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    let said: Vec<&str> = places
        .into_iter()
        .filter(|place| match spec.get(*place) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(_) => true,
        })
        .collect();
    let listed = "`nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection`";
    match said.len() {
        0 => check.required("spec", &format!("exactly one of {listed} is required")),
        1 => {}
        _ => {
            let why = format!("exactly one of {listed} is required, but multiple fields are set");
            check.invalid("spec", &json!(format!("{{{}}}", said.join(", "))), &why);
        }
    }
    let devices = items(spec, "devices");
    too_many(check, "spec.devices", devices.len(), DEVICES_MAX);
    let mut seen = BTreeSet::new();
    for (at, device) in devices.iter().enumerate() {
        let path = format!("spec.devices[{at}].name");
        let said = text(device, "name");
        check.name(&path, said, name::check_dns_label);
        check.once(&path, said, &mut seen);
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
