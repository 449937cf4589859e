//! How a machine becomes a node: the authority is pinned, a key made, a certificate asked for.
//!
//! The fingerprint of the authority came with the signed boot artefact or command line; what the
//! boot server sends is believed only if it has that fingerprint. The key is made here and never
//! leaves the machine's memory. A restarted agent finds certificate and key in `pki_dir` (a file
//! system in memory) and does not ask again while they are good.
//!
//! *Limits*: keys are kept by the kernel's memory file system, not by a TPM.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use objects::status::Status;
use runtime::backoff::Backoff;
use runtime::pki::{self, PkiError, Request, Sans, Secret, Subject};
use runtime::{Client, ClientConfig, ClientError, Identity, report};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Config, Imports, RunError, Shared, started, web};

/// Waits between tries to reach the boot server or the API.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// A rack that was powered on at once waits for its master; this is how long between knocks.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How soon an approved request is looked at again: approval is quick when it is automatic.
const POLL_FIRST: Duration = Duration::from_millis(100);
/// How rarely one that waits for a person.
const POLL_MAX: Duration = Duration::from_secs(5);
/// Wait before a denied request is made anew.
const DENIED_PAUSE: Duration = Duration::from_secs(60);
/// How often the certificate's end is looked at.
const RENEW_BEAT: Duration = Duration::from_secs(600);
/// Names of the files in `pki_dir`.
const FILES: [&str; 3] = ["ca.crt", "node.crt", "node.key"];

/// What the first program of the node found out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// The node's name.
    pub name: String,
    /// The boot NIC's address, lower case with colons.
    pub mac: String,
    /// SMBIOS system UUID.
    #[serde(default)]
    pub uuid: String,
    /// SMBIOS serial number.
    #[serde(default)]
    pub serial: String,
    /// The node's address.
    pub address: IpAddr,
    /// Prefix length of its subnet.
    #[serde(default)]
    pub prefix_len: u8,
    /// Its gateway.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// The boot NIC's name.
    #[serde(default)]
    pub interface: String,
    /// Base address of the API.
    pub api: String,
    /// Fingerprint of the cluster's authority.
    pub ca_fingerprint: String,
    /// Base address of the boot server.
    pub boot: String,
}

/// A node with a certificate.
#[derive(Debug, Clone)]
pub struct Joined {
    /// For clients of the API; each part of the process makes its own.
    pub client_config: ClientConfig,
    /// Who the node is.
    pub node: NodeInfo,
    /// The node's own images, on their way into the runtime.
    pub imports: Imports,
}

/// Why a machine cannot become a node.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The hand-over file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The hand-over file is not what it should be.
    #[error("{path} is not a node description")]
    Node {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The boot server offers another authority than the boot artefact names.
    #[error(
        "the authority from {boot} has fingerprint {found}, but this machine was booted for \
         {wanted}: refusing to join"
    )]
    Fingerprint {
        /// The boot server.
        boot: String,
        /// What it sent.
        found: String,
        /// What it must be.
        wanted: String,
    },
    /// Key or request could not be made.
    #[error("cannot make the node's key and request")]
    Pki(#[source] PkiError),
    /// No client can be made of what was got.
    #[error("cannot make an API client")]
    Client(#[source] Box<ClientError>),
    /// Certificate or key cannot be kept.
    #[error("cannot keep the node's certificate in {path}")]
    Keep {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What the enrolment door says of a request.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    request: String,
    state: String,
    certificate: Option<String>,
    reason: Option<String>,
}

/// Makes this machine a node; `None` when `stop` came first.
///
/// Waits as long as it takes: for the boot server, for the API, for approval.
///
/// # Errors
///
/// When the hand-over file is unusable or the authority is not the pinned one; trying again
/// is useless until someone mends it.
pub async fn join(stop: &CancellationToken, config: &Config) -> Result<Option<Joined>, JoinError> {
    tokio::select! { biased;
        () = stop.cancelled() => Ok(None),
        joined = join_unstopped(config) => joined.map(Some),
        never = started::tell_late() => match never {},
    }
}

async fn join_unstopped(config: &Config) -> Result<Joined, JoinError> {
    let node = observe_node(&config.node_json).await?;
    let imports = Imports::default();
    imports.begin(config);
    let becoming = become_node(config, node.clone());
    tokio::pin!(becoming);
    // The report is news for people; the join does not wait for it.
    let joined = tokio::select! {
        joined = &mut becoming => joined,
        () = report_phase(&node) => becoming.await,
    };
    joined.map(|joined| Joined { imports, ..joined })
}

async fn become_node(config: &Config, node: NodeInfo) -> Result<Joined, JoinError> {
    if let Some(joined) = observe_kept(&config.pki_dir, &node).await {
        info!(node = node.name, "certificate found; no need to ask again");
        return Ok(joined);
    }
    let ca_pem = fetch_authority(config, &node).await?;
    let identity = enroll(config, &node, &ca_pem).await?;
    keep(&config.pki_dir, &ca_pem, &identity).await?;
    info!(node = node.name, "joined");
    Ok(joined(node, ca_pem, identity))
}

/// Enrols again before the certificate ends; ends with [`RunError::Renewed`] then.
pub(crate) async fn renew(
    stop: CancellationToken,
    shared: Arc<Shared>,
    joined: Joined,
) -> Result<(), RunError> {
    loop {
        tokio::select! { biased;
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(RENEW_BEAT) => {}
        }
        let good =
            joined.client_config.identity.as_ref().is_some_and(|identity| {
                std::str::from_utf8(&identity.cert_pem).is_ok_and(is_fresh)
            });
        if good {
            continue;
        }
        let work = async {
            let ca_pem = String::from_utf8_lossy(&joined.client_config.ca_pem).into_owned();
            let identity = enroll(&shared.config, &joined.node, &ca_pem).await?;
            keep(&shared.config.pki_dir, &ca_pem, &identity).await
        };
        tokio::select! { biased;
            () = stop.cancelled() => return Ok(()),
            done = work => match done {
                Ok(()) => return Err(RunError::Renewed),
                Err(err) => warn!(err = report(&err), "cannot renew the certificate; retrying"),
            }
        }
    }
}

async fn observe_node(path: &Path) -> Result<NodeInfo, JoinError> {
    let bytes = tokio::fs::read(path)
        .await
        .map_err(|source| JoinError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|source| JoinError::Node { path: path.to_owned(), source })
}

fn joined(node: NodeInfo, ca_pem: String, identity: pki::Identity) -> Joined {
    let identity = Identity {
        cert_pem: identity.cert_pem.into_bytes(),
        key_pem: identity.key_pem.expose().as_bytes().to_vec(),
    };
    let client_config = ClientConfig {
        server: node.api.clone(),
        ca_pem: ca_pem.into_bytes(),
        identity: Some(identity),
        token: None,
    };
    Joined { client_config, node, imports: Imports::default() }
}

/// Certificate and key of an earlier start, when they are still good for this node.
async fn observe_kept(dir: &Path, node: &NodeInfo) -> Option<Joined> {
    let mut texts = Vec::new();
    for file in FILES {
        texts.push(tokio::fs::read_to_string(dir.join(file)).await.ok()?);
    }
    let [ca_pem, cert_pem, key_pem] = <[String; 3]>::try_from(texts).ok()?;
    let pinned = pki::fingerprint(&ca_pem).is_ok_and(|found| found == node.ca_fingerprint);
    if !pinned || !is_fresh(&cert_pem) {
        return None;
    }
    let identity = pki::Identity { cert_pem, key_pem: Secret::new(key_pem) };
    Some(joined(node.clone(), ca_pem, identity))
}

/// Tells whether a certificate still has more than a day, or a third of a short life.
fn is_fresh(cert_pem: &str) -> bool {
    let Ok(end) = pki::not_after(cert_pem) else { return false };
    end.duration_since(SystemTime::now()).is_ok_and(|left| left > Duration::from_secs(24 * 3600))
}

async fn keep(dir: &Path, ca_pem: &str, identity: &pki::Identity) -> Result<(), JoinError> {
    let failed = |source| JoinError::Keep { path: dir.to_owned(), source };
    tokio::fs::create_dir_all(dir).await.map_err(failed)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    tokio::fs::set_permissions(dir, mode).await.map_err(failed)?;
    let texts = [ca_pem, &identity.cert_pem, identity.key_pem.expose()];
    for (file, text) in FILES.iter().zip(texts) {
        pki::write_secret(&dir.join(file), &Secret::new(text)).map_err(JoinError::Pki)?;
    }
    Ok(())
}

/// Fetches the authority's certificate until it comes, and believes only the pinned one.
async fn fetch_authority(config: &Config, node: &NodeInfo) -> Result<String, JoinError> {
    let url = format!("{}/ca.pem", node.boot.trim_end_matches('/'));
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        match web::get(&url).await {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let found = pki::fingerprint(&text).unwrap_or_else(|_| "none".to_owned());
                if found == node.ca_fingerprint {
                    return Ok(text);
                }
                let (boot, wanted) = (node.boot.clone(), node.ca_fingerprint.clone());
                let err = JoinError::Fingerprint { boot, found, wanted };
                tell_console(config, &err.to_string()).await;
                return Err(err);
            }
            Err(err) => warn!(err = report(&err), "cannot fetch the authority; retrying"),
        }
        tokio::time::sleep(backoff.step()).await;
    }
}

/// Asks for a certificate until there is one.
async fn enroll(
    config: &Config,
    node: &NodeInfo,
    ca_pem: &str,
) -> Result<pki::Identity, JoinError> {
    let user = format!("system:node:{}", node.name);
    let subject = Subject::new(&user, &["system:nodes"]);
    let sans = Sans { names: Vec::new(), addresses: vec![node.address] };
    let request = Request::generate(&subject, &sans).map_err(JoinError::Pki)?;
    let door = Client::new(ClientConfig {
        server: node.api.clone(),
        ca_pem: ca_pem.as_bytes().to_vec(),
        ..ClientConfig::default()
    })
    .map_err(|err| JoinError::Client(Box::new(err)))?;
    let evidence = json!({"mac": node.mac, "uuid": node.uuid, "serial": node.serial});
    let body = json!({"name": node.name, "csr": request.csr_pem, "evidence": evidence});
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        match ask(&door, &body).await {
            Ok(answer) => {
                backoff.reset();
                if let Some(cert_pem) = await_issue(config, node, &door, &answer.request).await {
                    return Ok(pki::Identity { cert_pem, key_pem: request.key_pem });
                }
            }
            Err(why) => warn!(node = node.name, why, "cannot enrol; retrying"),
        }
        tokio::time::sleep(backoff.step()).await;
    }
}

/// Hands the request in.
async fn ask(door: &Client, body: &serde_json::Value) -> Result<Answer, String> {
    let answer = door.raw_post("/muster/v1/enroll", body).await.map_err(|err| report(&err))?;
    if !answer.status.is_success() {
        return Err(refusal(answer.status, &answer.body));
    }
    serde_json::from_slice(&answer.body).map_err(|err| report(&err))
}

/// Waits until the request is issued; `None` when it is gone or denied and must be made anew.
async fn await_issue(
    config: &Config,
    node: &NodeInfo,
    door: &Client,
    request: &str,
) -> Option<String> {
    let path = format!("/muster/v1/enroll/{request}");
    let mut backoff = Backoff::new(POLL_FIRST, POLL_MAX);
    let mut told = false;
    let mut polls = 0_u32;
    loop {
        tokio::time::sleep(backoff.step()).await;
        polls = polls.saturating_add(1);
        let answer = match door.raw_get(&path).await {
            Ok(answer) if answer.status == http::StatusCode::NOT_FOUND => return None,
            Ok(answer) if answer.status.is_success() => {
                serde_json::from_slice::<Answer>(&answer.body).unwrap_or_default()
            }
            Ok(answer) => {
                warn!(why = refusal(answer.status, &answer.body), "cannot ask for the certificate");
                continue;
            }
            Err(err) => {
                warn!(err = report(&err), "cannot ask for the certificate; retrying");
                continue;
            }
        };
        match (answer.state.as_str(), answer.certificate) {
            (_, Some(certificate)) if !certificate.is_empty() => return Some(certificate),
            ("denied", _) => {
                let why = answer.reason.unwrap_or_default();
                let text = format!("{}: the cluster denied this machine: {why}", node.name);
                tell_console(config, &text).await;
                tokio::time::sleep(DENIED_PAUSE).await;
                return None;
            }
            // Automatic approval takes less than a few polls; then a person is needed.
            ("pending", _) if !told && polls > 4 => {
                told = true;
                let text = format!(
                    "{}: waiting for approval; on the operator's host: muster approve {}",
                    node.name, node.name
                );
                tell_console(config, &text).await;
            }
            _ => {}
        }
    }
}

fn refusal(status: http::StatusCode, body: &[u8]) -> String {
    let told = serde_json::from_slice::<Status>(body).map(|status| status.message);
    format!("{status} {}", told.unwrap_or_default())
}

/// Says something to the log and to whoever watches the machine's console.
async fn tell_console(config: &Config, text: &str) {
    warn!(text, "told on the console");
    if let Some(console) = &config.console {
        let line = format!("\r\nmuster: {text}\r\n");
        if let Err(err) = tokio::fs::write(console, line).await {
            warn!(err = report(&err), "cannot write to the console");
        }
    }
}

/// Tells the boot server that the agent runs; a failure is only told.
async fn report_phase(node: &NodeInfo) {
    let url = format!("{}/report", node.boot.trim_end_matches('/'));
    let body = json!({"mac": node.mac, "uuid": node.uuid, "phase": "agent", "detail": ""});
    if let Err(err) = web::post(&url, body.to_string()).await {
        warn!(err = report(&err), "cannot report to the boot server");
    }
}
