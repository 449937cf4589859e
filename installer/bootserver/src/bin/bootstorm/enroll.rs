//! The end of the road: a signing request at the API server's enrolment door.
//!
//! The control plane is the real `muster master`, a process of its own with a fresh data
//! directory on loopback. Each machine makes its own key, posts its request from its own
//! address, and asks until its certificate is issued, as the node agent does.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cluster::plan::Plan;
use runtime::Client;
use runtime::pki::{self, Request, Sans, Subject};
use runtime::resource::MACHINES;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::fleet::{self, SEED};
use crate::wire;

/// How long the control plane may take to its first answer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Between two questions whether a certificate is there, as the agent waits.
const PACE: Duration = Duration::from_millis(500);
/// Questions before a machine gives up: a minute.
const QUESTIONS_MAX: u32 = 120;
/// Machines registered at a time.
const WRITERS: u32 = 16;

/// A control plane with an enrolment door.
pub(crate) struct Master {
    process: Child,
    door: Arc<Door>,
}

/// Where machines enrol, and how they trust it.
pub(crate) struct Door {
    address: SocketAddr,
    tls: TlsConnector,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    request: String,
    state: String,
    certificate: Option<String>,
    reason: Option<String>,
}

/// Finds the `muster` program that was built beside this one.
pub(crate) fn find_program(wish: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = wish {
        ensure!(path.exists(), "{}: no such program", path.display());
        return Ok(path.to_owned());
    }
    let own = std::env::current_exe()?;
    let profile = own.parent().context("a program stands in a directory")?;
    let target = profile.parent().context("a profile stands in the target directory")?;
    let name = profile.file_name().context("a profile has a name")?;
    let shipped = target.join("x86_64-unknown-linux-musl").join(name).join("muster");
    let found = [profile.join("muster"), shipped].into_iter().find(|path| path.exists());
    found.context("no `muster` beside this program; build it, or name it with --muster PATH")
}

impl Master {
    /// Starts a control plane in `dir` and registers the plan's machines.
    pub(crate) async fn start(program: &Path, dir: &Path, plan: &Plan) -> anyhow::Result<Self> {
        // Free now; the master refuses to start if somebody takes it meanwhile.
        let address = std::net::TcpListener::bind((SEED, 0))?.local_addr()?;
        std::fs::create_dir_all(dir)?;
        let log = std::fs::File::create(dir.join("log"))?;
        let mut command = Command::new(program);
        command.arg("master").arg("--data-dir").arg(dir.join("data"));
        command.args(["--listen", &address.to_string(), "--advertise", &SEED.to_string()]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let mut process =
            command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let data = dir.join("data");
        let starting = async {
            loop {
                if let Some(status) = process.try_wait()? {
                    let words = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
                    bail!("the control plane ended with {status}: {words}");
                }
                if let Ok(client) = Client::from_kubeconfig(data.join("admin.kubeconfig"))
                    && client.raw_get("/readyz").await.is_ok_and(|a| a.status.is_success())
                {
                    return Ok(client);
                }
                tokio::time::sleep(PACE / 10).await;
            }
        };
        let started = tokio::time::timeout(START_LIMIT, starting).await;
        let client = started.context("the control plane does not answer")??;
        register(&client, plan).await?;
        let ca = CertificateDer::from_pem_file(data.join("pki/ca.crt"))?;
        let door = Arc::new(Door { address, tls: connector(ca)? });
        Ok(Self { process, door })
    }

    /// Its door.
    pub(crate) fn door(&self) -> Arc<Door> {
        Arc::clone(&self.door)
    }

    /// The most memory it ever had, in bytes.
    pub(crate) fn resident_max_bytes(&self) -> anyhow::Result<u64> {
        crate::resident_max_bytes(&self.process.id().context("it ended")?.to_string())
    }
}

fn connector(ca: CertificateDer<'static>) -> anyhow::Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Puts every machine into the API, as `muster up` does.
async fn register(client: &Client, plan: &Plan) -> anyhow::Result<()> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let machines = plan.machines.iter().skip(usize::try_from(writer)?);
        let machines: Vec<_> = machines.step_by(usize::try_from(WRITERS)?).cloned().collect();
        let client = client.clone();
        writers.spawn(async move {
            for machine in machines {
                let object = json!({
                    "apiVersion": MACHINES.api_version(), "kind": MACHINES.kind,
                    "metadata": { "name": machine.name }, "spec": machine,
                });
                client.create(&MACHINES, None, &object).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended?.context("cannot register the machines")?;
    }
    Ok(())
}

impl Door {
    /// Enrols one machine: its own key, its request, its certificate.
    pub(crate) async fn enroll(&self, number: u32) -> anyhow::Result<()> {
        let own = fleet::address(number);
        let name = format!("m{number}");
        let subject = Subject::new(&format!("system:node:{name}"), &["system:nodes"]);
        let sans = Sans { names: Vec::new(), addresses: vec![own.into()] };
        let request = Request::generate(&subject, &sans)?;
        let evidence =
            json!({ "mac": fleet::mac(number), "uuid": fleet::uuid(number).to_string() });
        let body = json!({ "name": name, "csr": request.csr_pem, "evidence": evidence });
        let path = "/muster/v1/enroll";
        let asked = self.ask(own, "POST", path, &body.to_string()).await?.request;
        for _ in 0..QUESTIONS_MAX {
            let answer = self.ask(own, "GET", &format!("{path}/{asked}"), "").await?;
            match (answer.state.as_str(), answer.certificate) {
                ("issued", Some(pem)) => {
                    pki::not_after(&pem).context("the certificate does not read")?;
                    return Ok(());
                }
                ("denied", _) => bail!("denied: {}", answer.reason.unwrap_or_default()),
                _ => tokio::time::sleep(PACE).await,
            }
        }
        bail!("no certificate for {asked} in a minute")
    }

    async fn ask(
        &self,
        own: Ipv4Addr,
        method: &str,
        path: &str,
        body: &str,
    ) -> anyhow::Result<Answer> {
        let stream = wire::connect(SocketAddrV4::new(own, 0), self.address).await?;
        let server = ServerName::from(self.address.ip());
        let stream = self.tls.connect(server, stream).await.context("TLS")?;
        let len = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {len}\r\nConnection: close\r\n\r\n{body}",
            self.address
        );
        let answer = wire::ask(stream, head).await?;
        let text = String::from_utf8_lossy(&answer.body);
        ensure!(answer.status < 300, "{path} answered {}: {text}", answer.status);
        serde_json::from_str(&text).with_context(|| format!("{path} answered {text}"))
    }
}
