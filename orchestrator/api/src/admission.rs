//! Built-in admission: what the cluster itself adds to objects, and what it does not let in.
//!
//! Every plugin is a function of the request, the object and a [`View`] of other objects; they run
//! in upstream's order. [`mutate`] stands between defaults and validation, [`validate`] behind it,
//! [`quota::charge`] last of all, just before the object is stored.
//!
//! It does not know webhooks or policies in CEL, and writes nothing.

pub mod quota;

mod account;
mod amount;
mod classes;
mod limits;
mod restricted;
mod security;

pub use security::annotate;

use objects::field::Fields as _;
use objects::{Kind, Status, field::str_at, kind};
use serde_json::{Value, json};

use crate::{
    authority::{Attributes, User},
    prepare::Context,
    request::Request,
};

/// What the site wants of admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long pods that say nothing about it stay on a node that is not ready or not reachable;
    /// `None` = nothing is added to them.
    pub toleration_seconds: Option<i64>,
    /// Do pods get their account's token as a volume?
    pub token_volumes: bool,
    /// Do new nodes take no pods until they are known to be ready? Someone must then know.
    pub taint_new_nodes: bool,
    /// Are claims and volumes held while they are in use? Someone must then let go of them.
    pub storage_protection: bool,
}

impl Default for Settings {
    /// Upstream's.
    fn default() -> Self {
        Self {
            toleration_seconds: Some(300),
            token_volumes: true,
            taint_new_nodes: true,
            storage_protection: true,
        }
    }
}

/// What a verdict may depend on besides the request: other objects, and rights.
pub trait View: Send + Sync + std::fmt::Debug {
    /// An object as it is stored.
    fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Value>;

    /// All objects of a kind in a namespace, or in all when that is empty.
    fn list(&self, kind: &Kind, namespace: &str) -> Vec<Value>;

    /// May the user do this besides what it does?
    fn allows(&self, user: &User, attributes: &Attributes) -> bool;

    /// What the site wants.
    fn settings(&self) -> Settings;
}

/// A view of nothing: no other objects are known, and nobody is refused for them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nothing;

impl View for Nothing {
    fn get(&self, _kind: &Kind, _namespace: &str, _name: &str) -> Option<Value> {
        None
    }

    fn list(&self, _kind: &Kind, _namespace: &str) -> Vec<Value> {
        Vec::new()
    }

    fn allows(&self, _user: &User, _attributes: &Attributes) -> bool {
        true
    }

    fn settings(&self) -> Settings {
        Settings {
            toleration_seconds: None,
            token_volumes: false,
            taint_new_nodes: false,
            storage_protection: false,
        }
    }
}

/// One write as the plugins see it.
#[derive(Clone, Copy)]
pub(crate) struct Admission<'a> {
    pub(crate) request: &'a Request,
    pub(crate) context: &'a Context<'a>,
    /// The object before; `None` when it is new.
    pub(crate) old: Option<&'a Value>,
}

impl Admission<'_> {
    fn view(&self) -> &dyn View {
        self.context.view
    }

    fn is_create(&self) -> bool {
        self.old.is_none()
    }

    /// 403 in upstream's words.
    fn forbid(&self, object: &Value, why: &str) -> Status {
        let name = str_at(object, "metadata.name").unwrap_or(&self.request.name);
        Status::forbidden(self.request.kind, name, why)
    }
}

/// Adds to an object what the cluster wants on it.
///
/// # Errors
///
/// 403 when it refers to what is not there, or must not be made.
pub(crate) fn mutate(admission: &Admission<'_>, object: &mut Value) -> Result<(), Status> {
    if !admission.request.is_main() || admission.request.custom.is_some() {
        return Ok(());
    }
    match admission.request.kind.kind {
        "Pod" if admission.is_create() => {
            limits::fill_in(admission, object);
            account::mount(admission, object)?;
            classes::resolve_priority(admission, object)?;
            classes::add_tolerations(admission, object);
            classes::add_overhead(admission, object)?;
        }
        "Node" if admission.is_create() && admission.view().settings().taint_new_nodes => {
            classes::taint_new_node(object);
        }
        "PersistentVolumeClaim" if admission.is_create() => {
            classes::choose_storage_class(admission, object);
            classes::protect(admission, object, "kubernetes.io/pvc-protection");
        }
        "PersistentVolume" if admission.is_create() => {
            classes::protect(admission, object, "kubernetes.io/pv-protection");
        }
        "Ingress" if admission.is_create() => classes::choose_ingress_class(admission, object)?,
        _ => {}
    }
    Ok(())
}

/// Judges an object that is valid by itself. Warnings are told to the client.
///
/// # Errors
///
/// 403 when the cluster does not let it in.
pub(crate) fn validate(
    admission: &Admission<'_>,
    object: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let request = admission.request;
    if request.custom.is_some() {
        return check_owners(admission, object);
    }
    match (request.kind.kind, request.subresource.as_str()) {
        ("Namespace", "") => check_namespace_end(admission, object)?,
        ("Pod", "") if admission.is_create() => limits::check_pod(admission, object)?,
        ("PersistentVolumeClaim", "") => {
            limits::check_claim(admission, object)?;
            classes::check_resize(admission, object)?;
        }
        ("PriorityClass", "") => classes::check_default_priority(admission, object)?,
        ("CertificateSigningRequest", "") if admission.is_create() => {
            check_subject(admission, object)?;
        }
        _ => {}
    }
    security::check(admission, object, warnings)?;
    check_owners(admission, object)
}

/// Some namespaces are the cluster's own; their deletion is refused by
/// [`crate::prepare::prepare_delete`]. What is going does not come back.
fn check_namespace_end(admission: &Admission<'_>, object: &Value) -> Result<(), Status> {
    let phase = |object: &Value| str_at(object, "status.phase").unwrap_or("").to_owned();
    match admission.old {
        Some(old) if phase(old) == "Terminating" && phase(object) != "Terminating" => {
            Err(admission.forbid(object, "a namespace that is being terminated does not return"))
        }
        _ => Ok(()),
    }
}

/// Nobody becomes a master by a client certificate that the signer of clients makes.
fn check_subject(admission: &Admission<'_>, object: &Value) -> Result<(), Status> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    if str_at(object, "spec.signerName") != Some("kubernetes.io/kube-apiserver-client") {
        return Ok(());
    }
    let pem = STANDARD.decode(str_at(object, "spec.request").unwrap_or("")).unwrap_or_default();
    let body: Vec<u8> = String::from_utf8_lossy(&pem)
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .flat_map(|line| line.trim().bytes().collect::<Vec<u8>>())
        .collect();
    let der = STANDARD.decode(body).unwrap_or_default();
    // The name stands in the request as it is written, whatever surrounds it.
    let masters = b"system:masters";
    if der.windows(masters.len()).any(|part| part == masters) {
        let why = "use of kubernetes.io/kube-apiserver-client signer with system:masters group \
                   is not allowed";
        return Err(admission.forbid(object, why));
    }
    Ok(())
}

/// An owner reference that blocks the owner's deletion needs the right to write its finalizers;
/// changing owner references needs the right to delete the object.
fn check_owners(admission: &Admission<'_>, object: &Value) -> Result<(), Status> {
    let owners = |object: &Value| -> Vec<Value> {
        let list = object.field("metadata.ownerReferences").and_then(Value::as_array);
        list.cloned().unwrap_or_default()
    };
    let after = owners(object);
    let before = admission.old.map(owners).unwrap_or_default();
    if after == before || !admission.request.is_main() {
        return Ok(());
    }
    let request = admission.request;
    let right = |verb: &str, group: &str, resource: &str, part: &str, name: &str| {
        let attributes = Attributes {
            verb: verb.to_owned(),
            group: group.to_owned(),
            version: "*".to_owned(),
            resource: resource.to_owned(),
            subresource: part.to_owned(),
            namespace: request.namespace.clone(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        admission.view().allows(admission.context.user, &attributes)
    };
    let own = &request.kind;
    if !admission.is_create() && !right("delete", own.group, own.plural, "", &request.name) {
        let why = "cannot set an ownerRef on a resource you can't delete: , <nil>";
        return Err(admission.forbid(object, why));
    }
    let blocking = |owner: &&Value| owner.get("blockOwnerDeletion") == Some(&json!(true));
    for owner in after.iter().filter(blocking).filter(|owner| !before.contains(owner)) {
        let text = |key: &str| str_at(owner, key).unwrap_or("");
        let Some(kind) = kind::by_gvk(text("apiVersion"), text("kind")) else { continue };
        if !right("update", kind.group, kind.plural, "finalizers", text("name")) {
            let why = "cannot set blockOwnerDeletion if an ownerReference refers to a resource \
                       you can't set finalizers on: , <nil>";
            return Err(admission.forbid(object, why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
