//! The checks that the level `restricted` adds to `baseline`.

use objects::field::Fields as _;
use objects::field::str_at;
use serde_json::{Value, json};

use super::security::{Fault, added, containers, named, which};

/// Volumes any pod may have.
const VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// Adds what a restricted pod must not do, in upstream's order.
pub(super) fn judge(spec: &Value, faults: &mut Vec<Fault>) {
    escalation(spec, faults);
    capabilities(spec, faults);
    volumes(spec, faults);
    non_root(spec, faults);
    root_user(spec, faults);
    seccomp(spec, faults);
}

fn escalation(spec: &Value, faults: &mut Vec<Fault>) {
    let names = which(spec, |container| {
        container.field("securityContext.allowPrivilegeEscalation") != Some(&json!(false))
    });
    if !names.is_empty() {
        let who = named("container", &names);
        let place = format!("{who} must set securityContext.allowPrivilegeEscalation=false");
        faults.push(("allowPrivilegeEscalation != false".to_owned(), place));
    }
}

fn capabilities(spec: &Value, faults: &mut Vec<Fault>) {
    let drops_all = |container: &Value| {
        let list = container.field("securityContext.capabilities.drop").and_then(Value::as_array);
        list.into_iter().flatten().any(|one| one == "ALL")
    };
    let mut places = Vec::new();
    let keep = which(spec, |container| !drops_all(container));
    if !keep.is_empty() {
        let who = named("container", &keep);
        places.push(format!("{who} must set securityContext.capabilities.drop=[\"ALL\"]"));
    }
    let allowed = ["NET_BIND_SERVICE"];
    let more = which(spec, |container| !added(container, &allowed).is_empty());
    if !more.is_empty() {
        let mut all: Vec<String> = containers(spec).flat_map(|one| added(one, &allowed)).collect();
        all.sort();
        all.dedup();
        let quoted: Vec<String> = all.iter().map(|one| format!("\"{one}\"")).collect();
        places.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            named("container", &more),
            quoted.join(", ")
        ));
    }
    if !places.is_empty() {
        faults.push(("unrestricted capabilities".to_owned(), places.join("; ")));
    }
}

fn volumes(spec: &Value, faults: &mut Vec<Fault>) {
    let mut names = Vec::new();
    let mut kinds = Vec::new();
    for volume in spec.get("volumes").and_then(Value::as_array).into_iter().flatten() {
        let fields = volume.as_object().into_iter().flatten().map(|(field, _)| field.as_str());
        let bad: Vec<&str> =
            fields.filter(|field| *field != "name" && !VOLUMES.contains(field)).collect();
        if !bad.is_empty() {
            names.push(str_at(volume, "name").unwrap_or(""));
            kinds.extend(bad.iter().map(|kind| format!("\"{kind}\"")));
        }
    }
    if names.is_empty() {
        return;
    }
    kinds.sort();
    kinds.dedup();
    let many = if kinds.len() > 1 { "s" } else { "" };
    let uses = if names.len() > 1 { "use" } else { "uses" };
    let place = format!(
        "{} {uses} restricted volume type{many} {}",
        named("volume", &names),
        kinds.join(", ")
    );
    faults.push(("restricted volume types".to_owned(), place));
}

fn non_root(spec: &Value, faults: &mut Vec<Fault>) {
    let said = |holder: &Value| holder.field("securityContext.runAsNonRoot")?.as_bool();
    let pod = said(spec);
    let wrong = which(spec, |container| said(container) == Some(false));
    let mut who = Vec::new();
    if pod == Some(false) {
        who.push("pod".to_owned());
    }
    if !wrong.is_empty() {
        who.push(named("container", &wrong));
    }
    let rest = "must not set securityContext.runAsNonRoot=false";
    if !who.is_empty() {
        faults.push(("runAsNonRoot != true".to_owned(), format!("{} {rest}", who.join(" and "))));
        return;
    }
    let unsaid = which(spec, |container| said(container).is_none());
    if pod != Some(true) && !unsaid.is_empty() {
        let place = format!(
            "pod or {} must set securityContext.runAsNonRoot=true",
            named("container", &unsaid)
        );
        faults.push(("runAsNonRoot != true".to_owned(), place));
    }
}

fn root_user(spec: &Value, faults: &mut Vec<Fault>) {
    let root = |holder: &Value| holder.field("securityContext.runAsUser") == Some(&json!(0));
    let mut who = Vec::new();
    if root(spec) {
        who.push("pod".to_owned());
    }
    let names = which(spec, root);
    if !names.is_empty() {
        who.push(named("container", &names));
    }
    if !who.is_empty() {
        let place = format!("{} must not set runAsUser=0", who.join(" and "));
        faults.push(("runAsUser=0".to_owned(), place));
    }
}

fn seccomp(spec: &Value, faults: &mut Vec<Fault>) {
    let said = |holder: &Value| -> Option<bool> {
        let kind = str_at(holder, "securityContext.seccompProfile.type")?;
        Some(matches!(kind, "RuntimeDefault" | "Localhost"))
    };
    let pod = said(spec);
    let wrong = which(spec, |container| said(container) == Some(false));
    let unsaid = which(spec, |container| said(container).is_none());
    let rest = "securityContext.seccompProfile.type to";
    let mut places = Vec::new();
    let mut who = Vec::new();
    if pod == Some(false) {
        who.push("pod".to_owned());
    }
    if !wrong.is_empty() {
        who.push(named("container", &wrong));
    }
    if !who.is_empty() {
        places.push(format!("{} must not set {rest} \"Unconfined\"", who.join(" and ")));
    }
    if pod.is_none() && !unsaid.is_empty() {
        places.push(format!(
            "pod or {} must set {rest} \"RuntimeDefault\" or \"Localhost\"",
            named("container", &unsaid)
        ));
    }
    if !places.is_empty() {
        faults.push(("seccompProfile".to_owned(), places.join("; ")));
    }
}
