//! Upstream's signers: certificates of users and of kubelets that are not ours.
//!
//! Nothing of theirs is approved here; a person's approval is needed, and then these rules must
//! hold. Spec: upstream's `kube-apiserver-client`, `kube-apiserver-client-kubelet` and
//! `kubelet-serving`; stricter in one point: no certificate of `system:masters`, which upstream
//! refuses already when the request is made.

use objects::certificate::CertificateSigningRequest;

use crate::view::RequestFacts;

/// Certificates by which users and programs dial the API server.
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Certificates by which nodes dial it.
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Certificates by which nodes are dialled.
const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";

/// Signers whose certificates are to be dialled with.
#[must_use]
pub fn is_serving(signer: &str) -> bool {
    signer == NODE_SERVING
}

/// Signers whose certificates are to dial with.
#[must_use]
pub fn is_client(signer: &str) -> bool {
    [CLIENT, NODE_CLIENT].contains(&signer)
}

/// Says what is wrong with a request that a person approved; `None` when it is not for us.
pub(super) fn judge(
    request: &CertificateSigningRequest,
    facts: Option<&RequestFacts>,
) -> Option<Result<(), &'static str>> {
    let signer = request.spec.signer_name.as_str();
    if !is_client(signer) && !is_serving(signer) {
        return None;
    }
    let Some(facts) = facts else { return Some(Err("the body is not a certificate request")) };
    let wanted = if is_serving(signer) { "server auth" } else { "client auth" };
    Some(usages(request, wanted).and_then(|()| match signer {
        CLIENT => user(facts),
        NODE_CLIENT if facts.names.is_empty() && facts.addresses.is_empty() => node(facts),
        NODE_CLIENT => Err("subjectAltNames are not allowed"),
        _ if facts.names.is_empty() && facts.addresses.is_empty() => {
            Err("at least one DNS or IP subjectAltName is required")
        }
        _ => node(facts),
    }))
}

fn usages(request: &CertificateSigningRequest, wanted: &str) -> Result<(), &'static str> {
    let all = &request.spec.usages;
    let known = |one: &String| {
        ["digital signature", "key encipherment"].contains(&one.as_str()) || one == wanted
    };
    if !all.iter().any(|one| one == wanted) {
        return Err("the usages lack what the signer signs for");
    }
    if all.iter().all(known) { Ok(()) } else { Err("the usages go beyond what the signer allows") }
}

fn user(facts: &RequestFacts) -> Result<(), &'static str> {
    let master = facts.organizations.iter().any(|one| one == "system:masters");
    if master { Err("the subject must not be of system:masters") } else { Ok(()) }
}

fn node(facts: &RequestFacts) -> Result<(), &'static str> {
    if facts.organizations.as_slice() != ["system:nodes"] {
        return Err("subject organization is not system:nodes");
    }
    let named = facts.common_name.strip_prefix("system:node:").is_some_and(|one| !one.is_empty());
    if named { Ok(()) } else { Err("subject common name does not begin with system:node:") }
}
