//! The enrolment door: the one place where a machine without a certificate is heard.
//!
//! A machine posts its signing request with its hardware evidence; the door makes a
//! CertificateSigningRequest object of it and answers how that stands. It approves nothing:
//! that is the controller's work, or a person's.
//! Everything is bounded: bodies, rates per address, and how many requests may wait.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use hyper::body::Incoming;
use jiff::Timestamp;
use objects::field::Fields as _;
use objects::{Status, field, kind, name};
use runtime::pki;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::handle::read_limited;
use crate::object;
use crate::respond::{self, Answer};
use crate::server::Server;
use crate::{sweep, write};

/// Where the door is.
const PATH: &str = "/muster/v1/enroll";
/// Bytes of a posted request.
const BODY_BYTES_MAX: usize = 16 << 10;
/// Characters of one piece of evidence.
const EVIDENCE_CHARS_MAX: usize = 128;
/// Requests that may wait for approval at a time.
const WAITING_MAX: usize = 10_000;
/// From this many on, those that are done with are removed before another is taken.
const PRUNE_FROM: usize = 500;
/// How long a request that got its answer is kept, so that the machine can fetch it.
const ANSWERED_SECONDS: i64 = 3600;
/// How long a request may wait for its answer.
const WAITING_SECONDS: i64 = 24 * 3600;
/// The user recorded in requests that come through the door.
const USER: &str = "muster:enrolling";

/// Is this path the door's?
pub(crate) fn is_door(path: &str) -> bool {
    path.strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Answers a request at the door.
pub(crate) async fn answer(
    server: &Server,
    address: IpAddr,
    method: &Method,
    path: &str,
    body: Incoming,
) -> Result<Answer, Status> {
    if !server.limiter.admit(address, Instant::now()) {
        return Err(Status::too_many_requests("too many enrolment requests", 1));
    }
    let request = path.strip_prefix(PATH).unwrap_or("").trim_start_matches('/');
    match (method, request) {
        (&Method::POST, "") => {
            let bytes = read_limited(body, 0, BODY_BYTES_MAX).await?;
            submit(server, &bytes).await
        }
        (&Method::GET, request) if !request.is_empty() => state(server, request),
        _ => Err(Status::method_not_allowed("the enrolment door takes POST and GET")),
    }
}

#[derive(Deserialize)]
struct Submission {
    name: String,
    csr: String,
    #[serde(default)]
    evidence: Evidence,
}

#[derive(Deserialize, Default)]
struct Evidence {
    #[serde(default)]
    mac: String,
    #[serde(default)]
    uuid: String,
    #[serde(default)]
    serial: String,
}

async fn submit(server: &Server, bytes: &[u8]) -> Result<Answer, Status> {
    let submission: Submission = serde_json::from_slice(bytes)
        .map_err(|err| Status::bad_request(format!("the enrolment cannot be read: {err}")))?;
    check(&submission)?;
    let digest = hex::encode(Sha256::digest(submission.csr.as_bytes()));
    let request = format!("node-{}-{}", submission.name, digest.get(..8).unwrap_or_default());
    let accepted = respond::json(202, &json!({ "request": request }));
    // The same request again is the same request: answers get lost on the way.
    let known = server.item(&kind::CERTIFICATE_SIGNING_REQUEST, "", &request).is_some();
    if known {
        return Ok(accepted);
    }
    let shelf = server.shelf(&kind::CERTIFICATE_SIGNING_REQUEST);
    if server.store.count(&shelf, "node-") >= PRUNE_FROM {
        sweep::requests(server).await;
    }
    if server.store.count(&shelf, "node-") >= WAITING_MAX {
        return Err(Status::too_many_requests("too many enrolments are waiting", 30));
    }
    let object = render_request(&submission, &request);
    let path = kind::CERTIFICATE_SIGNING_REQUEST.path(None, None);
    write::create_own(server, USER, &path, &object).await?;
    tracing::info!(node = submission.name, mac = submission.evidence.mac, "a machine enrols");
    Ok(accepted)
}

/// Does nobody wait for this request any more? Requests of other origin are left alone.
pub(crate) fn is_over(request: &Value, now: Timestamp) -> bool {
    let name = field::str_at(request, "metadata.name").unwrap_or_default();
    if !name.starts_with("node-") {
        return false;
    }
    let created = field::str_at(request, "metadata.creationTimestamp").unwrap_or_default();
    let Some(created) = objects::time::parse_time(created) else { return false };
    let (state, _) = standing(request);
    let kept = if state == "pending" { WAITING_SECONDS } else { ANSWERED_SECONDS };
    objects::time::seconds_between(created, now) > kept
}

fn check(submission: &Submission) -> Result<(), Status> {
    let bad = |why: &str| Err(Status::bad_request(why));
    if name::check_dns_label(&submission.name).is_err() {
        return bad("name: a DNS label of at most 63 characters is wanted");
    }
    let evidence = &submission.evidence;
    for part in [&evidence.mac, &evidence.uuid, &evidence.serial] {
        if part.chars().count() > EVIDENCE_CHARS_MAX || part.chars().any(char::is_control) {
            return bad("evidence: at most 128 printable characters each are wanted");
        }
    }
    let Ok(claims) = pki::parse_request(&submission.csr) else {
        return bad("csr: a PEM certificate signing request signed by its own key is wanted");
    };
    if claims.subject.common_name != format!("system:node:{}", submission.name)
        || claims.subject.organizations != ["system:nodes"]
    {
        return bad("csr: the subject must be CN=system:node:NAME, O=system:nodes");
    }
    if !claims.sans.names.is_empty() {
        return bad("csr: only addresses may stand in the subject's alternative names");
    }
    Ok(())
}

fn render_request(submission: &Submission, request: &str) -> Value {
    let evidence = &submission.evidence;
    json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {
            "name": request,
            "annotations": {
                "muster.dev/evidence-mac": evidence.mac.to_ascii_lowercase(),
                "muster.dev/evidence-uuid": evidence.uuid.to_ascii_lowercase(),
                "muster.dev/evidence-serial": evidence.serial,
            },
        },
        "spec": {
            "request": STANDARD.encode(&submission.csr),
            "signerName": "muster.dev/node",
            "username": USER,
            "usages": ["client auth", "server auth", "digital signature"],
        },
    })
}

/// How a request stands. Certificates are no secret.
fn state(server: &Server, request: &str) -> Result<Answer, Status> {
    let found = server.item(&kind::CERTIFICATE_SIGNING_REQUEST, "", request);
    let found = found
        .filter(|_| request.starts_with("node-"))
        .ok_or_else(|| Status::not_found(&kind::CERTIFICATE_SIGNING_REQUEST, request))?;
    let object = object::decode(&found, 0);
    let certificate = field::str_at(&object, "status.certificate")
        .and_then(|encoded| STANDARD.decode(encoded).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let (state, reason) = standing(&object);
    let certificate = certificate.filter(|_| state == "issued");
    let told = json!({"state": state, "certificate": certificate, "reason": reason});
    Ok(respond::json(200, &told))
}

/// The state of a request, and why.
fn standing(request: &Value) -> (&'static str, &str) {
    let conditions = request.field("status.conditions").and_then(Value::as_array);
    let condition = |wanted: &[&str]| {
        let mut all = conditions.into_iter().flatten();
        all.find(|one| field::str_at(one, "type").is_some_and(|what| wanted.contains(&what)))
    };
    let issued = field::str_at(request, "status.certificate").is_some_and(|c| !c.is_empty());
    match (condition(&["Denied", "Failed"]), condition(&["Approved"])) {
        (Some(denied), _) => ("denied", reason(denied)),
        (None, Some(approved)) if issued => ("issued", reason(approved)),
        (None, Some(approved)) => ("approved", reason(approved)),
        (None, None) => ("pending", "waiting for approval"),
    }
}

fn reason(condition: &Value) -> &str {
    let said = ["message", "reason"].iter().filter_map(|key| field::str_at(condition, key));
    said.into_iter().find(|text| !text.is_empty()).unwrap_or_default()
}

/// How many requests each address may make.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    seen: Mutex<BTreeMap<IpAddr, (Instant, f64)>>,
}

impl Limiter {
    /// Requests an address may make at once.
    const BURST: f64 = 60.0;
    /// Requests a second it may go on with.
    const PER_SECOND: f64 = 20.0;
    /// Addresses remembered; beyond them the fully rested are forgotten.
    const ADDRESSES_MAX: usize = 8192;

    fn admit(&self, address: IpAddr, now: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let left = |(at, left): &(Instant, f64)| {
            let rested = now.saturating_duration_since(*at).as_secs_f64() * Self::PER_SECOND;
            (left + rested).min(Self::BURST)
        };
        if seen.len() >= Self::ADDRESSES_MAX && !seen.contains_key(&address) {
            seen.retain(|_, entry| left(entry) < Self::BURST);
            if seen.len() >= Self::ADDRESSES_MAX {
                return false;
            }
        }
        let entry = seen.entry(address).or_insert((now, Self::BURST));
        *entry = (now, left(entry));
        let admitted = entry.1 >= 1.0;
        if admitted {
            entry.1 -= 1.0;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn requests_are_kept_as_long_as_someone_may_ask() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let check = |created: &str, status: Value, over: bool| {
            let request = json!({
                "metadata": {"name": "node-a-1", "creationTimestamp": created}, "status": status,
            });
            assert_eq!(is_over(&request, now), over, "{request}");
        };
        let issued = json!({"conditions": [{"type": "Approved"}], "certificate": "Yw=="});
        check("2026-11-21T11:30:00Z", issued.clone(), false);
        check("2026-11-21T10:30:00Z", issued, true);
        check("2026-11-21T10:30:00Z", json!({}), false);
        check("2026-11-20T10:30:00Z", json!({}), true);
        check("never", json!({}), false);
    }

    #[test]
    fn what_strangers_send_is_checked_without_harm() {
        bolero::check!().with_iterations(10_000).for_each(|bytes: &[u8]| {
            let csr = format!(
                "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
                STANDARD.encode(bytes)
            );
            let evidence = Evidence::default();
            let submission = Submission { name: "a".to_owned(), csr, evidence };
            let _outcome = (check(&submission), serde_json::from_slice::<Submission>(bytes));
        });
    }

    #[test]
    fn an_address_is_slowed_and_others_are_not() {
        let limiter = Limiter::default();
        let start = Instant::now();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        assert_eq!((0..100).filter(|_| limiter.admit(one, start)).count(), 60);
        assert!(limiter.admit(other, start));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| limiter.admit(one, later)).count(), 20);
    }
}
