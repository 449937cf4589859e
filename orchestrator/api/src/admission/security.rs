//! Pod security standards: what a namespace's labels let pods be.
//!
//! `pod-security.kubernetes.io/enforce` refuses pods, `warn` tells the client, `audit` the audit
//! log. Checks carry upstream's names, order and words.
//!
//! *Limits*: the versions of the standards differ in little; all are judged as the latest.

use objects::field::Fields as _;
use objects::{Status, field::str_at, kind};
use serde_json::{Value, json};

use super::{Admission, View, restricted};
use crate::{authority::audit::Level, request::Request, said::Said};

/// What the labels begin with.
const PREFIX: &str = "pod-security.kubernetes.io/";
/// Capabilities every runtime gives.
const BASELINE_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
const SELINUX_TYPES: &[&str] =
    &["", "container_engine_t", "container_init_t", "container_kvm_t", "container_t"];

/// One check that failed: what is wrong, and where.
pub(super) type Fault = (String, String);

/// Judges pods, and warns of templates whose pods would be refused.
pub(super) fn check(
    admission: &Admission<'_>,
    object: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let judged = Judged::of(admission.view(), admission.request, admission.old, object);
    let Some(judged) = judged else { return Ok(()) };
    if admission.request.kind.kind == "Pod"
        && let Some((policy, why)) = judged.verdict("enforce")
    {
        return Err(admission.forbid(object, &format!("violates PodSecurity \"{policy}\": {why}")));
    }
    if let Some((policy, why)) = judged.verdict("warn") {
        warnings.push(format!("would violate PodSecurity \"{policy}\": {why}"));
    }
    Ok(())
}

/// Tells the audit log what pods are judged by, and what they do that is only noted.
pub fn annotate(
    view: &dyn View,
    request: &Request,
    old: Option<&Value>,
    object: &Value,
    said: &mut Said,
) {
    let Some(judged) = Judged::of(view, request, old, object) else { return };
    if request.kind.kind == "Pod" {
        said.annotate(Level::Metadata, format!("{PREFIX}enforce-policy"), judged.policy("enforce"));
    }
    if let Some((policy, why)) = judged.verdict("audit") {
        let text = format!("would violate PodSecurity \"{policy}\": {why}");
        said.annotate(Level::Metadata, format!("{PREFIX}audit-violations"), text);
    }
}

/// A pod's spec, or that of a template's pods, with the namespace whose labels say what it may be.
struct Judged<'a> {
    spec: &'a Value,
    namespace: Value,
}

impl<'a> Judged<'a> {
    /// `None` when there is nothing to judge: no pod, or nothing new about it.
    fn of(
        view: &dyn View,
        request: &Request,
        old: Option<&Value>,
        object: &'a Value,
    ) -> Option<Self> {
        let parts = matches!(request.subresource.as_str(), "" | "ephemeralcontainers" | "resize");
        let path = spec_path(request.kind.kind).filter(|_| parts && request.kind.namespaced)?;
        if old.is_some_and(|old| old.pointer(path) == object.pointer(path)) {
            return None;
        }
        let spec = object.pointer(path)?;
        let namespace = view.get(&kind::NAMESPACE, "", &request.namespace)?;
        Some(Self { spec, namespace })
    }

    fn label(&self, mode: &str) -> Option<&str> {
        let labels = self.namespace.field("metadata.labels");
        labels?.get(format!("{PREFIX}{mode}"))?.as_str().filter(|said| !said.is_empty())
    }

    /// Level and version of a mode.
    fn policy(&self, mode: &str) -> String {
        let level = self.label(mode).unwrap_or("privileged");
        format!("{level}:{}", self.label(&format!("{mode}-version")).unwrap_or("latest"))
    }

    /// What does not fit a mode, behind the policy that it does not fit.
    fn verdict(&self, mode: &str) -> Option<(String, String)> {
        let faults = judge(self.label(mode).unwrap_or(""), self.spec);
        let words = faults.iter().map(|(what, place)| {
            if place.is_empty() { what.clone() } else { format!("{what} ({place})") }
        });
        let words: Vec<String> = words.collect();
        (!words.is_empty()).then(|| (self.policy(mode), words.join(", ")))
    }
}

/// Where a kind's objects carry the spec of pods.
fn spec_path(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "Pod" => "/spec",
        "PodTemplate" => "/template/spec",
        "Deployment"
        | "ReplicaSet"
        | "ReplicationController"
        | "StatefulSet"
        | "DaemonSet"
        | "Job" => "/spec/template/spec",
        "CronJob" => "/spec/jobTemplate/spec/template/spec",
        _ => return None,
    })
}

/// What a pod does that a level does not allow, in upstream's order.
pub(super) fn judge(level: &str, spec: &Value) -> Vec<Fault> {
    let strict = match level {
        "restricted" => true,
        "baseline" => false,
        _ => return Vec::new(),
    };
    let mut faults = Vec::new();
    app_armor(spec, &mut faults);
    if !strict {
        capabilities(spec, &mut faults);
    }
    host_namespaces(spec, &mut faults);
    if !strict {
        host_paths(spec, &mut faults);
    }
    host_ports(spec, &mut faults);
    privileged(spec, &mut faults);
    proc_mount(spec, &mut faults);
    selinux(spec, &mut faults);
    if !strict {
        seccomp(spec, &mut faults);
    }
    sysctls(spec, &mut faults);
    host_process(spec, &mut faults);
    if strict {
        restricted::judge(spec, &mut faults);
    }
    faults
}

/// All containers of a pod, the passing ones included.
pub(super) fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .filter_map(|list| spec.get(list)?.as_array())
        .flatten()
}

/// `container "a"`, `containers "a", "b"`.
pub(super) fn named(word: &str, names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let many = if names.len() > 1 { "s" } else { "" };
    format!("{word}{many} {}", quoted.join(", "))
}

/// The names of containers of which something holds.
pub(super) fn which(spec: &Value, holds: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(spec)
        .filter(|container| holds(container))
        .map(|container| str_at(container, "name").unwrap_or(""))
        .collect()
}

/// Capabilities that containers add beyond what is allowed, in order and once.
pub(super) fn added(container: &Value, allowed: &[&str]) -> Vec<String> {
    let list = container.field("securityContext.capabilities.add").and_then(Value::as_array);
    let all = list.into_iter().flatten().filter_map(Value::as_str);
    all.filter(|one| !allowed.contains(one)).map(str::to_owned).collect()
}

fn app_armor(spec: &Value, faults: &mut Vec<Fault>) {
    let bad = |holder: &Value| {
        str_at(holder, "securityContext.appArmorProfile.type") == Some("Unconfined")
    };
    let mut places = Vec::new();
    if bad(spec) {
        places.push("pod must not set AppArmor profile type to \"Unconfined\"".to_owned());
    }
    let names = which(spec, bad);
    if !names.is_empty() {
        let who = named("container", &names);
        places.push(format!("{who} must not set AppArmor profile type to \"Unconfined\""));
    }
    if !places.is_empty() {
        let what = if places.len() > 1 { "profiles" } else { "profile" };
        faults.push((format!("forbidden AppArmor {what}"), places.join(", ")));
    }
}

fn capabilities(spec: &Value, faults: &mut Vec<Fault>) {
    let bad = |container: &Value| !added(container, BASELINE_CAPABILITIES).is_empty();
    let names = which(spec, bad);
    if names.is_empty() {
        return;
    }
    let mut all: Vec<String> =
        containers(spec).flat_map(|one| added(one, BASELINE_CAPABILITIES)).collect();
    all.sort();
    all.dedup();
    let quoted: Vec<String> = all.iter().map(|one| format!("\"{one}\"")).collect();
    let place = format!(
        "{} must not include {} in securityContext.capabilities.add",
        named("container", &names),
        quoted.join(", ")
    );
    faults.push(("non-default capabilities".to_owned(), place));
}

fn host_namespaces(spec: &Value, faults: &mut Vec<Fault>) {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| spec.get(**field) == Some(&json!(true)))
        .map(|field| format!("{field}=true"))
        .collect();
    if !set.is_empty() {
        faults.push(("host namespaces".to_owned(), set.join(", ")));
    }
}

fn host_paths(spec: &Value, faults: &mut Vec<Fault>) {
    let volumes = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let names: Vec<&str> = volumes
        .filter(|volume| volume.get("hostPath").is_some())
        .filter_map(|volume| str_at(volume, "name"))
        .collect();
    if !names.is_empty() {
        faults.push(("hostPath volumes".to_owned(), named("volume", &names)));
    }
}

fn host_ports(spec: &Value, faults: &mut Vec<Fault>) {
    let ports = |container: &Value| -> Vec<i64> {
        let list = container.get("ports").and_then(Value::as_array).into_iter().flatten();
        list.filter_map(|port| port.get("hostPort")?.as_i64()).filter(|port| *port != 0).collect()
    };
    let names = which(spec, |container| !ports(container).is_empty());
    if names.is_empty() {
        return;
    }
    let mut all: Vec<i64> = containers(spec).flat_map(ports).collect();
    all.sort_unstable();
    all.dedup();
    let many = if all.len() > 1 { "s" } else { "" };
    let uses = if names.len() > 1 { "use" } else { "uses" };
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    let place = format!("{} {uses} hostPort{many} {}", named("container", &names), all.join(", "));
    faults.push(("hostPort".to_owned(), place));
}

fn privileged(spec: &Value, faults: &mut Vec<Fault>) {
    let names = which(spec, |container| {
        container.field("securityContext.privileged") == Some(&json!(true))
    });
    if !names.is_empty() {
        let who = named("container", &names);
        let place = format!("{who} must not set securityContext.privileged=true");
        faults.push(("privileged".to_owned(), place));
    }
}

fn proc_mount(spec: &Value, faults: &mut Vec<Fault>) {
    let names = which(spec, |container| {
        !matches!(str_at(container, "securityContext.procMount"), None | Some("" | "Default"))
    });
    if !names.is_empty() {
        let who = named("container", &names);
        let place = format!("{who} must not set securityContext.procMount to \"Unmasked\"");
        faults.push(("procMount".to_owned(), place));
    }
}

fn selinux(spec: &Value, faults: &mut Vec<Fault>) {
    let mut kinds = Vec::new();
    let mut fields = Vec::new();
    let mut bad = |holder: &Value| -> bool {
        let text = |field: &str| {
            str_at(holder, &format!("securityContext.seLinuxOptions.{field}")).unwrap_or("")
        };
        let mut wrong = false;
        if !SELINUX_TYPES.contains(&text("type")) {
            kinds.push(format!("\"{}\"", text("type")));
            wrong = true;
        }
        for field in ["user", "role"] {
            if !text(field).is_empty() {
                fields.push(format!("{field} may not be set"));
                wrong = true;
            }
        }
        wrong
    };
    let mut who = Vec::new();
    if bad(spec) {
        who.push("pod".to_owned());
    }
    let mut names = Vec::new();
    for container in containers(spec) {
        if bad(container) {
            names.push(str_at(container, "name").unwrap_or(""));
        }
    }
    if !names.is_empty() {
        who.push(named("container", &names));
    }
    if who.is_empty() {
        return;
    }
    kinds.sort();
    kinds.dedup();
    fields.sort();
    fields.dedup();
    let mut said = Vec::new();
    if !kinds.is_empty() {
        let many = if kinds.len() > 1 { "s" } else { "" };
        said.push(format!("type{many} {}", kinds.join(", ")));
    }
    said.extend(fields);
    let place = format!(
        "{} set forbidden securityContext.seLinuxOptions: {}",
        who.join(" and "),
        said.join("; ")
    );
    faults.push(("seLinuxOptions".to_owned(), place));
}

fn seccomp(spec: &Value, faults: &mut Vec<Fault>) {
    let bad = |holder: &Value| {
        str_at(holder, "securityContext.seccompProfile.type") == Some("Unconfined")
    };
    let rest = "must not set securityContext.seccompProfile.type to \"Unconfined\"";
    let mut who = Vec::new();
    if bad(spec) {
        who.push("pod".to_owned());
    }
    let names = which(spec, bad);
    if !names.is_empty() {
        who.push(named("container", &names));
    }
    if !who.is_empty() {
        faults.push(("seccompProfile".to_owned(), format!("{} {rest}", who.join(" and "))));
    }
}

fn sysctls(spec: &Value, faults: &mut Vec<Fault>) {
    let list = spec.field("securityContext.sysctls").and_then(Value::as_array);
    let names: Vec<&str> = list
        .into_iter()
        .flatten()
        .filter_map(|one| str_at(one, "name"))
        .filter(|name| !SAFE_SYSCTLS.contains(name))
        .collect();
    if !names.is_empty() {
        faults.push(("forbidden sysctls".to_owned(), names.join(", ")));
    }
}

fn host_process(spec: &Value, faults: &mut Vec<Fault>) {
    let bad = |holder: &Value| {
        holder.field("securityContext.windowsOptions.hostProcess") == Some(&json!(true))
    };
    let mut who = Vec::new();
    if bad(spec) {
        who.push("pod".to_owned());
    }
    let names = which(spec, bad);
    if !names.is_empty() {
        who.push(named("container", &names));
    }
    if !who.is_empty() {
        let rest = "must not set securityContext.windowsOptions.hostProcess=true";
        faults.push(("hostProcess".to_owned(), format!("{} {rest}", who.join(" and "))));
    }
}
