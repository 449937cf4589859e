//! Which families of addresses a service has: its policy, its families and its addresses agree.
//!
//! [`keep`] is a part of preparing an update: what the client leaves out stays as it was.
//! [`settle`] comes behind admission, with the cluster's families known: it fills in the policy
//! and the families, and says where those of the client cannot be. Addresses are given afterwards.
//!
//! Spec: the Service API reference (`ipFamilyPolicy`, `ipFamilies`, `clusterIPs`) and upstream's
//! page on dual-stack. A service that prefers two families is left as it is until somebody changes
//! its policy, families or addresses, even if the cluster has got a second family meanwhile.

use std::net::IpAddr;

use objects::field::{Fields as _, str_at};
use objects::{Cause, Status, kind};
use serde_json::{Map, Value, json};

use super::network::Family;

const POLICY: &str = "spec.ipFamilyPolicy";
const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// What a service says of its families and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    kind: String,
    policy: Option<String>,
    families: Vec<String>,
    addresses: Vec<String>,
    has_selector: bool,
}

impl Said {
    fn of(service: &Value) -> Self {
        let text = |path| str_at(service, path).unwrap_or_default().to_owned();
        let list = |path: &str| -> Vec<String> {
            let all = service.field(path).and_then(Value::as_array).into_iter().flatten();
            all.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let selector = service.field("spec.selector").and_then(Value::as_object);
        Self {
            kind: text("spec.type"),
            policy: Some(text(POLICY)).filter(|policy| !policy.is_empty()),
            families: list("spec.ipFamilies"),
            addresses: list("spec.clusterIPs"),
            has_selector: selector.is_some_and(|labels| !labels.is_empty()),
        }
    }

    fn is_single(&self) -> bool {
        self.policy.as_deref() == Some(SINGLE)
    }

    fn is_headless(&self) -> bool {
        self.addresses.first().is_some_and(|address| address == "None")
    }

    /// May it stay as it is, whatever families the cluster has by now?
    fn is_as_before(&self, old: &Self) -> bool {
        let prefers = |said: &Self| said.policy.as_deref() == Some(PREFER);
        self.kind == old.kind
            && prefers(self)
            && prefers(old)
            && self.addresses == old.addresses
            && self.families == old.families
    }

    fn store(self, service: &mut Value) {
        let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return };
        spec.insert("ipFamilyPolicy".to_owned(), json!(self.policy));
        spec.insert("ipFamilies".to_owned(), json!(self.families));
        if !self.addresses.is_empty() {
            spec.insert("clusterIPs".to_owned(), json!(self.addresses));
        }
    }
}

/// Makes one address and the list of them agree in a new service.
pub(crate) fn link(spec: &mut Map<String, Value>) {
    let address = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !address.is_empty() && is_unsaid(spec.get("clusterIPs")) {
        spec.insert("clusterIPs".to_owned(), json!([address]));
    }
}

/// Keeps in an update what the client leaves out, and makes its one address and the list agree.
///
/// Both versions are of types that have addresses.
pub(crate) fn keep(old: &Value, spec: &mut Map<String, Value>) {
    let had = |field: &str| old.get("spec").and_then(|spec| spec.get(field));
    for field in ["clusterIP", "ipFamilyPolicy", "ipFamilies"] {
        if let (true, Some(had)) = (is_unsaid(spec.get(field)), had(field)) {
            spec.insert(field.to_owned(), had.clone());
        }
    }
    let changed = spec.get("clusterIP") != had("clusterIP");
    if let (false, true, Some(had)) =
        (changed, is_unsaid(spec.get("clusterIPs")), had("clusterIPs"))
    {
        spec.insert("clusterIPs".to_owned(), had.clone());
    }
    if changed && spec.get("clusterIPs") == had("clusterIPs") {
        // Who knows only of one address has changed that.
        spec.remove("clusterIPs");
    }
    link(spec);
}

fn is_unsaid(said: Option<&Value>) -> bool {
    match said {
        None | Some(Value::Null) => true,
        Some(Value::String(said)) => said.is_empty(),
        Some(Value::Array(said)) => said.is_empty(),
        Some(_) => false,
    }
}

/// Fills in policy and families of a service, and cuts what it gives up.
///
/// `families` are the cluster's, the usual one first.
///
/// # Errors
///
/// 422 when what is asked for contradicts itself or what the cluster has.
pub(super) fn settle(
    service: &mut Value,
    old: Option<&Value>,
    families: &[Family],
) -> Result<(), Status> {
    let mut said = Said::of(service);
    let old = old.map(Said::of);
    if said.kind == "ExternalName" || old.as_ref().is_some_and(|old| said.is_as_before(old)) {
        return Ok(());
    }
    let free = said.is_headless() && !said.has_selector;
    if said.policy.is_none() {
        let kept = old.as_ref().and_then(|old| old.policy.clone());
        // Endpoints that somebody else writes may be of either family, whatever the cluster has.
        let usual = if free { REQUIRE } else { SINGLE };
        said.policy = kept.or_else(|| Some(usual.to_owned()));
    }
    let mut causes = Vec::new();
    if let Some(old) = &old {
        shrink(&mut said, old, &mut causes);
    }
    infer(&mut said, families, &mut causes);
    if causes.is_empty() && !free {
        check_cluster(&said, families, &mut causes);
    }
    if !causes.is_empty() {
        let name = str_at(service, "metadata.name").unwrap_or_default();
        return Err(Status::invalid(&kind::SERVICE, name, causes));
    }
    if said.families.is_empty() {
        said.families.extend(families.first().map(|family| family.name().to_owned()));
    }
    if let (false, [one]) = (said.is_single(), said.families.as_slice())
        && let Some(other) = Family::named(one).map(Family::other)
        && (free || families.contains(&other))
    {
        said.families.push(other.name().to_owned());
    }
    said.store(service);
    Ok(())
}

/// Takes the second of two from a service that shall have one; whoever takes it away himself must
/// say that this is what he means.
fn shrink(said: &mut Said, old: &Said, causes: &mut Vec<Cause>) {
    if said.is_single() {
        if said.addresses == old.addresses {
            said.addresses.truncate(1);
        }
        if said.families == old.families {
            said.families.truncate(1);
        }
        return;
    }
    let mut refuse = |what: &str| {
        let why = format!("must be 'SingleStack' to release the secondary {what}");
        causes.push(Cause::invalid(POLICY, &json!(said.policy), &why));
    };
    if said.addresses.len() == 1 && old.addresses.len() == 2 {
        refuse("cluster IP");
    }
    if said.families.len() == 1 && old.families.len() == 2 {
        refuse("IP family");
    }
}

/// Derives families from addresses, where these are said.
fn infer(said: &mut Said, families: &[Family], causes: &mut Vec<Cause>) {
    for (count, what) in
        [(said.addresses.len(), "cluster IPs"), (said.families.len(), "IP families")]
    {
        if said.is_single() && count == 2 {
            let why = format!(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
            );
            causes.push(Cause::invalid(POLICY, &json!(said.policy), &why));
        }
    }
    if said.is_headless() {
        return;
    }
    for (at, address) in said.addresses.iter().enumerate().skip(said.families.len()) {
        // What is no address has been refused before.
        let Ok(address) = address.parse::<IpAddr>() else { continue };
        let family = Family::of(address);
        if families.contains(&family) {
            said.families.push(family.name().to_owned());
        } else {
            let why = format!("{} is not configured on this cluster", family.name());
            let path = format!("spec.clusterIPs[{at}]");
            causes.push(Cause::invalid(path, &json!(said.addresses), &why));
        }
    }
}

/// Has the cluster what the service asks for?
fn check_cluster(said: &Said, families: &[Family], causes: &mut Vec<Cause>) {
    if said.policy.as_deref() == Some(REQUIRE) && families.len() < 2 {
        let why = "this cluster is not configured for dual-stack services";
        causes.push(Cause::invalid(POLICY, &json!(said.policy), why));
    }
    for (at, name) in said.families.iter().enumerate() {
        if Family::named(name).is_none_or(|family| !families.contains(&family)) {
            let path = format!("spec.ipFamilies[{at}]");
            causes.push(Cause::invalid(path, &json!(name), "not configured on this cluster"));
        }
    }
}
