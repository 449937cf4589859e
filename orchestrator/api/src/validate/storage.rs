//! Volumes, claims and their classes.

use objects::field::Fields as _;
use objects::{Quantity, name};
use serde_json::{Value, json};

use super::{Check, items, text};

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// Fields of a volume's spec that are no source.
const NO_SOURCE: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// The source of a volume: what of its spec is nothing else.
pub(super) fn sources(spec: &Value) -> Vec<(&String, &Value)> {
    let fields = spec.as_object().into_iter().flatten();
    fields.filter(|(field, _)| !NO_SOURCE.contains(&field.as_str())).collect()
}

fn amount(value: Option<&Value>) -> Option<Quantity> {
    value.and_then(Value::as_str).and_then(|text| text.parse().ok())
}

fn access_modes(check: &mut Check, spec: &Value) {
    let modes = items(spec, "accessModes");
    for (at, mode) in modes.iter().enumerate() {
        check.one_of(&format!("spec.accessModes[{at}]"), Some(mode), MODES);
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        check.forbidden("spec.accessModes", why);
    }
}

/// Checks a volume.
pub(super) fn check_volume(check: &mut Check, spec: &Value) {
    if items(spec, "accessModes").is_empty() {
        check.required("spec.accessModes", "");
    }
    access_modes(check, spec);
    match spec.get("capacity").and_then(Value::as_object) {
        None => check.required("spec.capacity", ""),
        Some(all) => {
            if all.len() != 1 || !all.contains_key("storage") {
                check.causes.push(objects::Cause::unsupported(
                    "spec.capacity",
                    &json!(all),
                    &["storage"],
                ));
            }
            if amount(all.get("storage")).is_some_and(|size| size.is_negative() || size.is_zero()) {
                let size = all.get("storage").unwrap_or(&Value::Null);
                check.invalid("spec.capacity[storage]", size, "must be greater than zero");
            }
        }
    }
    match sources(spec).as_slice() {
        [] => check.required("spec", "must specify a volume type"),
        [_] => {}
        [_, more @ ..] => {
            for (field, _) in more {
                let why = "may not specify more than 1 volume type";
                check.forbidden(format!("spec.{field}"), why);
            }
        }
    }
    if spec.get("hostPath").is_some_and(|source| text(source, "path").is_empty()) {
        check.required("spec.hostPath.path", "");
    }
    if spec.get("local").is_some() && spec.get("nodeAffinity").is_none() {
        check.required("spec.nodeAffinity", "Local volume requires node affinity");
    }
    check.one_of(
        "spec.persistentVolumeReclaimPolicy",
        spec.get("persistentVolumeReclaimPolicy"),
        &["Delete", "Recycle", "Retain"],
    );
    check.one_of("spec.volumeMode", spec.get("volumeMode"), &["Block", "Filesystem"]);
    class_name(check, spec);
}

fn class_name(check: &mut Check, spec: &Value) {
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        check.rule("spec.storageClassName", class, name::check_dns_subdomain);
    }
}

/// Checks a claim.
pub(super) fn check_claim(check: &mut Check, spec: &Value) {
    if items(spec, "accessModes").is_empty() {
        check.required("spec.accessModes", "at least 1 access mode is required");
    }
    access_modes(check, spec);
    match amount(spec.field("resources.requests.storage")) {
        None => check.required("spec.resources[storage]", ""),
        Some(size) if size.is_zero() || size.is_negative() => {
            let why = "must be greater than zero";
            check.invalid("spec.resources[storage]", &json!(size.to_string()), why);
        }
        Some(_) => {}
    }
    check.one_of("spec.volumeMode", spec.get("volumeMode"), &["Block", "Filesystem"]);
    if let Some(selector) = spec.get("selector") {
        super::metadata::selector(check, "spec.selector", selector);
    }
    class_name(check, spec);
}

/// Checks a storage class.
pub(super) fn check_class(check: &mut Check, object: &Value) {
    if text(object, "provisioner").is_empty() {
        check.required("provisioner", "");
    }
    check.one_of("reclaimPolicy", object.get("reclaimPolicy"), &["Delete", "Retain"]);
    let modes = ["Immediate", "WaitForFirstConsumer"];
    check.one_of("volumeBindingMode", object.get("volumeBindingMode"), &modes);
}

/// Checks an attachment.
pub(super) fn check_attachment(check: &mut Check, spec: &Value) {
    for field in ["attacher", "nodeName"] {
        if text(spec, field).is_empty() {
            check.required(format!("spec.{field}"), "");
        }
    }
    let source = spec.get("source").unwrap_or(&Value::Null);
    let (named, inline) = (
        !text(source, "persistentVolumeName").is_empty(),
        source.get("inlineVolumeSpec").is_some(),
    );
    match (named, inline) {
        (false, false) => {
            let why = "must specify either inlineVolumeSpec and persistentVolumeName";
            check.required("spec.source", why);
        }
        (true, true) => {
            let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            check.invalid("spec.source", source, why);
        }
        _ => {}
    }
}

/// Checks the drivers of a node.
pub(super) fn check_node_drivers(check: &mut Check, spec: &Value) {
    let mut seen = std::collections::BTreeSet::new();
    for (at, driver) in items(spec, "drivers").iter().enumerate() {
        let path = format!("spec.drivers[{at}]");
        let said = text(driver, "name");
        check.name(&format!("{path}.name"), said, name::check_dns_subdomain);
        check.once(&format!("{path}.name"), said, &mut seen);
        if text(driver, "nodeID").is_empty() {
            check.required(format!("{path}.nodeID"), "");
        }
    }
}

/// Checks what a driver can do.
pub(super) fn check_driver(check: &mut Check, spec: &Value) {
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    check.one_of("spec.fsGroupPolicy", spec.get("fsGroupPolicy"), &policies);
    for (at, mode) in items(spec, "volumeLifecycleModes").iter().enumerate() {
        let path = format!("spec.volumeLifecycleModes[{at}]");
        check.one_of(&path, Some(mode), &["Ephemeral", "Persistent"]);
    }
}
