//! What pods may say.

use std::collections::BTreeSet;

use objects::{Cause, Quantity, name};
use serde_json::{Value, json};

use super::{Check, items, metadata, text};

const PORT_MAX: i64 = 65_535;
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// Checks a pod's spec at `path`.
pub(super) fn check_spec(check: &mut Check, path: &str, spec: &Value) {
    let volumes = check_volumes(check, &format!("{path}.volumes"), spec);
    let containers = items(spec, "containers");
    if containers.is_empty() {
        check.required(format!("{path}.containers"), "");
    }
    let mut names = BTreeSet::new();
    for list in ["initContainers", "containers"] {
        for (at, container) in items(spec, list).iter().enumerate() {
            let place = format!("{path}.{list}[{at}]");
            check_container(check, &place, container, &volumes, &mut names);
            host_network_ports(check, &place, spec, container);
        }
    }
    let at = |field: &str| format!("{path}.{field}");
    check.one_of(
        &at("restartPolicy"),
        spec.get("restartPolicy"),
        &["Always", "OnFailure", "Never"],
    );
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    check.one_of(&at("dnsPolicy"), spec.get("dnsPolicy"), &policies);
    check.not_negative(
        &at("terminationGracePeriodSeconds"),
        spec.get("terminationGracePeriodSeconds"),
    );
    check.range(
        &at("activeDeadlineSeconds"),
        spec.get("activeDeadlineSeconds"),
        1,
        i64::from(i32::MAX),
    );
    metadata::labels(check, &at("nodeSelector"), spec.get("nodeSelector"));
    for (field, rule) in [
        ("nodeName", name::check_dns_subdomain as fn(&str) -> Result<(), &'static str>),
        ("serviceAccountName", name::check_dns_subdomain),
        ("hostname", name::check_dns_label),
        ("subdomain", name::check_dns_label),
    ] {
        let said = text(spec, field);
        if !said.is_empty() {
            check.rule(&at(field), said, rule);
        }
    }
    for (number, toleration) in items(spec, "tolerations").iter().enumerate() {
        check_toleration(check, &format!("{path}.tolerations[{number}]"), toleration);
    }
    for (number, spread) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        check_spread(check, &format!("{path}.topologySpreadConstraints[{number}]"), spread);
    }
    if let Some(affinity) = spec.get("affinity") {
        check_affinity(check, &at("affinity"), affinity);
    }
    let sysctls = items(spec, "securityContext.sysctls");
    check_sysctls(check, &at("securityContext.sysctls"), sysctls);
}

/// Kernel parameters have names of words between dots or slashes, each once.
fn check_sysctls(check: &mut Check, path: &str, sysctls: &[Value]) {
    const WORDS: &str = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?([\\./][a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
    let is_word = |word: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let ends = |byte: Option<u8>| byte.is_some_and(inner);
        ends(word.bytes().next())
            && ends(word.bytes().last())
            && word.bytes().all(|byte| inner(byte) || b"-_".contains(&byte))
    };
    let mut names = BTreeSet::new();
    for (at, sysctl) in sysctls.iter().enumerate() {
        let (name, place) = (text(sysctl, "name"), format!("{path}[{at}].name"));
        if name.is_empty() {
            check.required(place, "");
        } else if name.len() > 253 || !name.split(['.', '/']).all(is_word) {
            let why = format!("must have at most 253 characters and match regex ^{WORDS}$");
            check.invalid(place, &json!(name), &why);
        } else {
            check.once(&place, name, &mut names);
        }
    }
}

/// Checks volumes and returns their names.
fn check_volumes(check: &mut Check, path: &str, spec: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, volume) in items(spec, "volumes").iter().enumerate() {
        let place = format!("{path}[{at}]");
        let said = text(volume, "name");
        check.name(&format!("{place}.name"), said, name::check_dns_label);
        check.once(&format!("{place}.name"), said, &mut names);
        let sources: Vec<&String> = volume
            .as_object()
            .into_iter()
            .flatten()
            .map(|(field, _)| field)
            .filter(|field| *field != "name")
            .collect();
        match sources.as_slice() {
            [] => check.required(place.clone(), "must specify a volume type"),
            [_] => {}
            [_, more @ ..] => {
                for field in more {
                    check.forbidden(
                        format!("{place}.{field}"),
                        "may not specify more than 1 volume type",
                    );
                }
            }
        }
        for (field, needed) in [
            ("hostPath", "path"),
            ("configMap", "name"),
            ("secret", "secretName"),
            ("persistentVolumeClaim", "claimName"),
        ] {
            if volume.get(field).is_some_and(|source| text(source, needed).is_empty()) {
                check.required(format!("{place}.{field}.{needed}"), "");
            }
        }
    }
    names
}

fn check_container(
    check: &mut Check,
    path: &str,
    container: &Value,
    volumes: &BTreeSet<String>,
    names: &mut BTreeSet<String>,
) {
    let at = |field: &str| format!("{path}.{field}");
    let said = text(container, "name");
    check.name(&at("name"), said, name::check_dns_label);
    check.once(&at("name"), said, names);
    let image = text(container, "image");
    if image.is_empty() {
        check.required(at("image"), "");
    } else if image.trim() != image {
        check.invalid(at("image"), &json!(image), "must not have leading or trailing whitespace");
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    check.one_of(&at("imagePullPolicy"), container.get("imagePullPolicy"), &policies);
    check.one_of(
        &at("terminationMessagePolicy"),
        container.get("terminationMessagePolicy"),
        &["FallbackToLogsOnError", "File"],
    );
    check_ports(check, &at("ports"), container);
    check_env(check, path, container);
    let mut mounts = BTreeSet::new();
    for (number, mount) in items(container, "volumeMounts").iter().enumerate() {
        let place = format!("{path}.volumeMounts[{number}]");
        let volume = text(mount, "name");
        if volume.is_empty() {
            check.required(format!("{place}.name"), "");
        } else if !volumes.contains(volume) {
            check.causes.push(Cause::not_found(format!("{place}.name"), &json!(volume)));
        }
        let target = text(mount, "mountPath");
        if target.is_empty() {
            check.required(format!("{place}.mountPath"), "");
        } else if !mounts.insert(target.to_owned()) {
            check.invalid(format!("{place}.mountPath"), &json!(target), "must be unique");
        }
        let below = text(mount, "subPath");
        if below.starts_with('/') || below.split('/').any(|step| step == "..") {
            let why = "must be a relative path without '..'";
            check.invalid(format!("{place}.subPath"), &json!(below), why);
        }
    }
    check_resources(check, &at("resources"), container.get("resources"));
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(value) = container.get(probe) {
            check_probe(check, &at(probe), value, probe != "readinessProbe");
        }
    }
}

fn check_ports(check: &mut Check, path: &str, container: &Value) {
    let mut names = BTreeSet::new();
    for (at, port) in items(container, "ports").iter().enumerate() {
        let place = format!("{path}[{at}]");
        let said = text(port, "name");
        if !said.is_empty() {
            check.rule(&format!("{place}.name"), said, name::check_port_name);
            check.once(&format!("{place}.name"), said, &mut names);
        }
        let number = format!("{place}.containerPort");
        match port.get("containerPort") {
            None => check.required(number, ""),
            some => check.range(&number, some, 1, PORT_MAX),
        }
        if port.get("hostPort") != Some(&json!(0)) {
            check.range(&format!("{place}.hostPort"), port.get("hostPort"), 1, PORT_MAX);
        }
        check.one_of(&format!("{place}.protocol"), port.get("protocol"), PROTOCOLS);
    }
}

fn host_network_ports(check: &mut Check, path: &str, spec: &Value, container: &Value) {
    if spec.get("hostNetwork") != Some(&Value::Bool(true)) {
        return;
    }
    for (at, port) in items(container, "ports").iter().enumerate() {
        let (inner, outer) = (port.get("containerPort"), port.get("hostPort"));
        if let (Some(inner), Some(outer)) = (inner, outer)
            && inner != outer
        {
            let place = format!("{path}.ports[{at}].containerPort");
            check.invalid(place, inner, "must match `hostPort` when `hostNetwork` is true");
        }
    }
}

fn check_env(check: &mut Check, path: &str, container: &Value) {
    for (at, variable) in items(container, "env").iter().enumerate() {
        let place = format!("{path}.env[{at}]");
        let said = text(variable, "name");
        if said.is_empty() {
            check.required(format!("{place}.name"), "");
        } else if !said.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
            let why = "a valid environment variable name must consist only of printable ASCII \
                       characters other than '='";
            check.invalid(format!("{place}.name"), &json!(said), why);
        }
        let Some(source) = variable.get("valueFrom") else { continue };
        let place = format!("{place}.valueFrom");
        match source.as_object().map_or(0, serde_json::Map::len) {
            0 => check.invalid(
                &place,
                &json!(""),
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or \
                 `secretKeyRef`",
            ),
            1 => {}
            _ => check.invalid(
                &place,
                &json!(""),
                "may not have more than one field specified at a time",
            ),
        }
        if !text(variable, "value").is_empty() {
            check.invalid(&place, &json!(""), "may not be specified when `value` is not empty");
        }
        for (field, needed) in
            [("configMapKeyRef", "key"), ("secretKeyRef", "key"), ("fieldRef", "fieldPath")]
        {
            if source.get(field).is_some_and(|one| text(one, needed).is_empty()) {
                check.required(format!("{place}.{field}.{needed}"), "");
            }
        }
    }
}

fn check_resources(check: &mut Check, path: &str, resources: Option<&Value>) {
    let amounts = |half: &str| -> Vec<(String, Quantity)> {
        resources
            .and_then(|all| all.get(half)?.as_object())
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.parse().ok()?)))
            .collect()
    };
    let limits = amounts("limits");
    for (half, all) in [("limits", limits.clone()), ("requests", amounts("requests"))] {
        for (name, amount) in all {
            let place = format!("{path}.{half}.{name}");
            if name::check_label_key(&name).is_err() {
                check.invalid(format!("{path}.{half}"), &json!(name), "must be a resource name");
            }
            if amount.is_negative() {
                check.invalid(
                    &place,
                    &json!(amount.to_string()),
                    "must be greater than or equal to 0",
                );
            }
            let limit = limits.iter().find(|(limited, _)| *limited == name);
            if let Some((_, limit)) =
                limit.filter(|(_, limit)| half == "requests" && amount > *limit)
            {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                check.invalid(format!("{path}.requests"), &json!(amount.to_string()), &why);
            }
        }
    }
}

fn check_probe(check: &mut Check, path: &str, probe: &Value, once: bool) {
    let handlers = ["exec", "httpGet", "tcpSocket", "grpc"];
    let given: Vec<&&str> = handlers.iter().filter(|name| probe.get(**name).is_some()).collect();
    match given.as_slice() {
        [] => check.required(path, "must specify a handler type"),
        [_] => {}
        [_, more @ ..] => {
            for handler in more {
                let why = "may not specify more than 1 handler type";
                check.forbidden(format!("{path}.{handler}"), why);
            }
        }
    }
    let at = |field: &str| format!("{path}.{field}");
    check.not_negative(&at("initialDelaySeconds"), probe.get("initialDelaySeconds"));
    for field in ["timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        check.range(&at(field), probe.get(field), 1, i64::MAX);
    }
    if once && probe.get("successThreshold").is_some_and(|times| times != &json!(1)) {
        check.invalid(
            at("successThreshold"),
            probe.get("successThreshold").unwrap_or(&Value::Null),
            "must be 1",
        );
    }
    if let Some(exec) = probe.get("exec")
        && items(exec, "command").is_empty()
    {
        check.required(at("exec.command"), "");
    }
    for handler in ["httpGet", "tcpSocket"] {
        if let Some(port) = probe.get(handler).and_then(|handler| handler.get("port")) {
            check_port_or_name(check, &at(&format!("{handler}.port")), port);
        }
    }
}

/// A port by number or by name.
pub(super) fn check_port_or_name(check: &mut Check, path: &str, port: &Value) {
    match port {
        Value::String(said) => check.rule(path, said, name::check_port_name),
        number => check.range(path, Some(number), 1, PORT_MAX),
    }
}

fn check_toleration(check: &mut Check, path: &str, toleration: &Value) {
    let at = |field: &str| format!("{path}.{field}");
    let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
    if !key.is_empty() {
        check.rule(&at("key"), key, name::check_label_key);
    } else if operator != "Exists" {
        check.invalid(at("operator"), &json!(operator), "must be Exists when `key` is empty");
    }
    match operator {
        "" | "Equal" => {
            check.rule(&at("value"), text(toleration, "value"), name::check_label_value);
        }
        "Exists" if !text(toleration, "value").is_empty() => check.invalid(
            at("operator"),
            toleration,
            "value must be empty when `operator` is 'Exists'",
        ),
        "Exists" => {}
        other => check.causes.push(Cause::unsupported(
            at("operator"),
            &json!(other),
            &["Equal", "Exists"],
        )),
    }
    let effect = text(toleration, "effect");
    if !effect.is_empty() {
        let effects = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
        check.one_of(&at("effect"), toleration.get("effect"), &effects);
    }
    if toleration.get("tolerationSeconds").is_some() && effect != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        check.invalid(at("effect"), &json!(effect), why);
    }
}

fn check_spread(check: &mut Check, path: &str, spread: &Value) {
    let skew = spread.get("maxSkew");
    if skew.is_none() {
        check.required(format!("{path}.maxSkew"), "");
    }
    check.range(&format!("{path}.maxSkew"), skew, 1, i64::MAX);
    if text(spread, "topologyKey").is_empty() {
        check.required(format!("{path}.topologyKey"), "can not be empty");
    }
    let place = format!("{path}.whenUnsatisfiable");
    if spread.get("whenUnsatisfiable").is_none() {
        check.required(place, "");
    } else {
        let allowed = ["DoNotSchedule", "ScheduleAnyway"];
        check.one_of(&place, spread.get("whenUnsatisfiable"), &allowed);
    }
    if let Some(selector) = spread.get("labelSelector") {
        metadata::selector(check, &format!("{path}.labelSelector"), selector);
    }
}

fn check_affinity(check: &mut Check, path: &str, affinity: &Value) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = affinity.get("nodeAffinity") {
        let place = format!("{path}.nodeAffinity");
        if let Some(required) = node.get(REQUIRED) {
            let terms = items(required, "nodeSelectorTerms");
            let terms_path = format!("{place}.{REQUIRED}.nodeSelectorTerms");
            if terms.is_empty() {
                check.required(terms_path.clone(), "must have at least one node selector term");
            }
            for (at, term) in terms.iter().enumerate() {
                check_term(check, &format!("{terms_path}[{at}]"), term);
            }
        }
        for (at, wish) in items(node, PREFERRED).iter().enumerate() {
            let wish_path = format!("{place}.{PREFERRED}[{at}]");
            check.range(&format!("{wish_path}.weight"), wish.get("weight"), 1, 100);
            if let Some(term) = wish.get("preference") {
                check_term(check, &format!("{wish_path}.preference"), term);
            }
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.get(kind) else { continue };
        for (at, term) in items(pods, REQUIRED).iter().enumerate() {
            check_pod_term(check, &format!("{path}.{kind}.{REQUIRED}[{at}]"), term);
        }
        for (at, wish) in items(pods, PREFERRED).iter().enumerate() {
            let place = format!("{path}.{kind}.{PREFERRED}[{at}]");
            check.range(&format!("{place}.weight"), wish.get("weight"), 1, 100);
            if let Some(term) = wish.get("podAffinityTerm") {
                check_pod_term(check, &format!("{place}.podAffinityTerm"), term);
            }
        }
    }
}

fn check_term(check: &mut Check, path: &str, term: &Value) {
    for (at, expression) in items(term, "matchExpressions").iter().enumerate() {
        let place = format!("{path}.matchExpressions[{at}]");
        check.name(&format!("{place}.key"), text(expression, "key"), name::check_label_key);
        let count = items(expression, "values").len();
        let (fits, why) = match text(expression, "operator") {
            "In" | "NotIn" => (count > 0, "must be specified when `operator` is 'In' or 'NotIn'"),
            "Exists" | "DoesNotExist" => {
                (count == 0, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
            }
            "Gt" | "Lt" => {
                (count == 1, "must be specified single value when `operator` is 'Lt' or 'Gt'")
            }
            other => {
                let why = "not a valid selector operator";
                check.invalid(format!("{place}.operator"), &json!(other), why);
                continue;
            }
        };
        if !fits {
            check.required(format!("{place}.values"), why);
        }
    }
}

fn check_pod_term(check: &mut Check, path: &str, term: &Value) {
    let key = text(term, "topologyKey");
    if key.is_empty() {
        check.required(format!("{path}.topologyKey"), "can not be empty");
    } else {
        check.rule(&format!("{path}.topologyKey"), key, name::check_label_key);
    }
    if let Some(selector) = term.get("labelSelector") {
        metadata::selector(check, &format!("{path}.labelSelector"), selector);
    }
}
