//! Groups that other servers serve behind ours: asked whether they are there, their documents laid
//! beside ours, requests handed on in the requester's name.
//!
//! A server behind ours believes who a requester is, because ours shows a certificate of the
//! front-proxy authority; which one that is, and which headers count, stands in the ConfigMap
//! `kube-system/extension-apiserver-authentication`.
//!
//! The groups served here have an APIService each too, so that clients see in one place who serves
//! what: made when missing, those of custom resources for as long as these are served.
//!
//! Tasks: one that keeps APIServices and what they say up to date.
//!
//! Spec: upstream's kube-aggregator.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use api::remote::{self, Remote};
use api::{Attributes, User};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use objects::field::Fields as _;
use objects::{Status, Time, field, kind};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::agent::{self, AskError};
use crate::object;
use crate::proxy;
use crate::respond::{self, Answer};
use crate::server::{Server, now};
use crate::webhook::resolve;
use crate::write::{create_own, delete_own, replace_own};

/// The user recorded for what is written here.
const USER: &str = "system:apiserver";
/// Who asks the servers what they serve.
const ASKER: &str = "system:kube-aggregator";
/// How long the head of an answer may take.
const LIMIT: Duration = Duration::from_secs(60);
/// A document of another server may be this large.
const DOCUMENT_BYTES_MAX: usize = 16 << 20;
/// How often a server that answers is asked again.
const BEAT: Duration = Duration::from_secs(30);
/// How often one that does not.
const BEAT_MISSING: Duration = Duration::from_secs(1);

/// What the condition of a group says that is served here.
const LOCAL: &str = "Local APIServices are always available";

/// By group and version.
type Backends = BTreeMap<(String, String), Arc<Backend>>;

/// The servers behind ours.
#[derive(Debug, Default)]
pub(crate) struct Aggregates {
    backends: RwLock<Arc<Backends>>,
    /// Rung when a server is missed, or when there are more or fewer groups of our own.
    wake: Notify,
}

/// Where a group-version is served.
struct Backend {
    namespace: String,
    service: String,
    port: i64,
    tls: Arc<ClientConfig>,
    available: bool,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("service", &self.service).finish_non_exhaustive()
    }
}

impl Aggregates {
    fn find(&self, path: &str) -> Option<Arc<Backend>> {
        let all = Arc::clone(&self.backends.read().unwrap_or_else(PoisonError::into_inner));
        if all.is_empty() {
            return None;
        }
        let mut words = path.strip_prefix("/apis/")?.split('/');
        let (group, version) = (words.next()?, words.next()?);
        all.get(&(group.to_owned(), version.to_owned())).cloned()
    }

    /// Looks at everything again soon.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Is this path another server's?
    pub(crate) fn serve(&self, path: &str) -> bool {
        self.find(path).is_some()
    }
}

/// What a request for another server asks to be allowed.
pub(crate) fn attributes(parts: &Parts) -> Attributes {
    let query = parts.uri.query().unwrap_or("");
    remote::attributes(parts.method.as_str(), parts.uri.path(), query)
}

/// Hands a request on in the requester's name, and the answer back.
pub(crate) async fn answer(
    server: &Arc<Server>,
    user: &User,
    parts: &Parts,
    body: Incoming,
) -> Result<Answer, Status> {
    let backend = server.aggregates.find(parts.uri.path());
    let Some(backend) = backend.filter(|backend| backend.available) else {
        return Ok(respond::text(503, "service unavailable\n"));
    };
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(|_| Status::bad_request("the path is no path"))?;
    *request.headers_mut() = proxy::forwarded(&parts.headers);
    introduce(request.headers_mut(), user);
    let upgrade = parts.extensions.get::<OnUpgrade>().cloned();
    let upgrade = upgrade.filter(|_| parts.headers.contains_key(UPGRADE));
    if upgrade.is_some() {
        for name in [CONNECTION, UPGRADE] {
            if let Some(value) = parts.headers.get(&name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
    }
    let mut answered = match send(server, &backend, request).await {
        Ok(answered) => answered,
        Err(err) => {
            server.aggregates.wake.notify_one();
            let why = format!("error trying to reach service: {err}");
            return Err(Status { code: 503, ..Status::failure(503, "ServiceUnavailable", why) });
        }
    };
    if answered.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(proxy::switch(server, &mut answered, upgrade));
    }
    Ok(proxy::passed_back(answered, ""))
}

/// Says who asks; what the client said of that itself is taken out.
fn introduce(headers: &mut HeaderMap, user: &User) {
    let said: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.starts_with("x-remote-") || name.starts_with("impersonate-")
        })
        .cloned()
        .collect();
    for name in said {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        let name = HeaderName::try_from(name);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        for value in values {
            add(&format!("x-remote-extra-{}", escape(key)), value);
        }
    }
}

/// What may not stand in a header's name is written as in a URL.
fn escape(key: &str) -> String {
    let mut out = String::new();
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

async fn send<B>(
    server: &Server,
    backend: &Backend,
    mut request: Request<B>,
) -> Result<Response<Incoming>, AskError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Backend { namespace, service, port, .. } = backend;
    let found = resolve(server, namespace, service, *port);
    let none = || format!("no endpoints available for service {service:?}");
    let (address, target) = found.ok_or_else(|| std::io::Error::other(none()))?;
    let host = format!("{service}.{namespace}.svc");
    let value = HeaderValue::from_str(&host).map_err(std::io::Error::other)?;
    request.headers_mut().insert(HOST, value);
    let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
    let socket = agent::connect((address, target).into()).await?;
    let tls = TlsConnector::from(Arc::clone(&backend.tls)).connect(name, socket).await?;
    agent::exchange(server, tls, request, LIMIT).await
}

/// Gets a document of another server; `None` when it has none.
async fn document(server: &Server, backend: &Backend, path: &str) -> Result<Option<Value>, String> {
    let mut request = Request::new(Full::<Bytes>::default());
    *request.uri_mut() = path.parse::<Uri>().map_err(|err| err.to_string())?;
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
    let asker = User { groups: vec!["system:masters".to_owned()], ..User::named(ASKER) };
    introduce(request.headers_mut(), &asker);
    let asked = async {
        let answered = send(server, backend, request).await.map_err(|err| err.to_string())?;
        let code = answered.status();
        if code == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !code.is_success() {
            return Err(format!("bad status from {path}: {}", code.as_u16()));
        }
        let body = Limited::new(answered.into_body(), DOCUMENT_BYTES_MAX).collect().await;
        let bytes = body.map_err(|err| err.to_string())?.to_bytes();
        serde_json::from_slice(&bytes).map(Some).map_err(|err| err.to_string())
    };
    match tokio::time::timeout(remote::CHECK_LIMIT, asked).await {
        Ok(asked) => asked,
        Err(_) => Err("context deadline exceeded".to_owned()),
    }
}

/// Why a server cannot be asked, as its condition says it: reason and message.
type Trouble = (&'static str, String);

/// Asks a server what it serves.
async fn check(
    server: &Server,
    object: &Value,
    mut said: Remote,
) -> (Option<Backend>, Result<Remote, Trouble>) {
    let text = |path: &str| field::str_at(object, path).unwrap_or("").to_owned();
    let (namespace, service) = (text("spec.service.namespace"), text("spec.service.name"));
    let port = remote::port(object);
    let tls = match tls_config(server, object) {
        Ok(tls) => Arc::new(tls),
        Err(why) => return (None, Err(("FailedDiscoveryCheck", why))),
    };
    let mut backend = Backend {
        namespace: namespace.clone(),
        service: service.clone(),
        port,
        tls,
        available: false,
    };
    let Some(item) = server.item(&kind::SERVICE, &namespace, &service) else {
        let why = format!("service/{service} in {namespace:?} is not present");
        return (Some(backend), Err(("ServiceNotFound", why)));
    };
    let found = object::decode(&item, 0);
    let ports = found.field("spec.ports").and_then(Value::as_array).into_iter().flatten();
    let known = ports.into_iter().find(|one| field::int_at(one, "port") == Some(port));
    let Some(known) = known else {
        let why = format!("service/{service} in {namespace:?} is not listening on port {port}");
        return (Some(backend), Err(("ServicePortError", why)));
    };
    if resolve(server, &namespace, &service, port).is_none() {
        let name = field::str_at(known, "name").unwrap_or("");
        let why = format!(
            "endpoints for service/{service} in {namespace:?} have no addresses with port name \
             {name:?}"
        );
        return (Some(backend), Err(("MissingEndpoints", why)));
    }
    let path = format!("/apis/{}/{}", said.group, said.version);
    let list = match document(server, &backend, &path).await {
        Ok(Some(list)) => list,
        Ok(None) => {
            return (
                Some(backend),
                Err(failing(&service, &namespace, port, &path, "bad status: 404")),
            );
        }
        Err(why) => return (Some(backend), Err(failing(&service, &namespace, port, &path, &why))),
    };
    said.discovery = Some(remote::entry(said.group, said.version, &list));
    // Old servers have no such documents, and lack of words is no lack of service.
    said.openapi_v3 =
        document(server, &backend, &format!("/openapi/v3{path}")).await.unwrap_or_default();
    said.openapi_v2 = document(server, &backend, "/openapi/v2").await.unwrap_or_default();
    backend.available = true;
    (Some(backend), Ok(said))
}

fn failing(service: &str, namespace: &str, port: i64, path: &str, why: &str) -> Trouble {
    let url = format!("https://{service}.{namespace}.svc:{port}{path}");
    ("FailedDiscoveryCheck", format!("failing or missing response from {url}: {why}"))
}

/// Trusts whom the APIService names, and shows who we are.
fn tls_config(server: &Server, object: &Value) -> Result<ClientConfig, String> {
    let skips = field::value_at(object, "spec.insecureSkipTLSVerify") == Some(&json!(true));
    let bundle = field::str_at(object, "spec.caBundle").unwrap_or("");
    let pem = STANDARD.decode(bundle).map_err(|_| "caBundle is no base64".to_owned())?;
    let bundle = (!skips).then_some(pem);
    server.site.front_proxy.tls(bundle.as_deref())
}

/// Makes the APIServices of the groups served here that are missing, and takes away those of
/// custom resources that are gone.
///
/// # Errors
///
/// When the store takes no writes.
pub(crate) async fn locals(server: &Server) -> Result<(), Status> {
    let registry = server.customs.registry();
    let wanted = remote::local_services(&registry);
    let name = |object: &Value| field::str_at(object, "metadata.name").unwrap_or("").to_owned();
    let names: Vec<String> = wanted.iter().map(name).collect();
    let made =
        wanted.iter().filter(|one| server.item(&kind::API_SERVICE, "", &name(one)).is_none());
    // All at once, so that they share the disk's syncs.
    let made = made.map(|object| async move {
        let path = kind::API_SERVICE.path(None, None);
        if !create_own(server, USER, &path, object).await? {
            return Ok(());
        }
        let item = server.item(&kind::API_SERVICE, "", &name(object));
        if let Some(item) = item {
            let object = object::decode(&item, item.modified());
            tell(server, object, true, "Local", LOCAL).await;
        }
        Ok(())
    });
    futures_util::future::join_all(made).await.into_iter().collect::<Result<(), Status>>()?;
    for item in server.items(&kind::API_SERVICE, "") {
        let object = object::decode(&item, item.modified());
        if remote::is_of_custom(&object) && !names.contains(&name(&object)) {
            let path = kind::API_SERVICE.path(None, Some(&name(&object)));
            delete_own(server, USER, &path, &json!({})).await?;
        }
    }
    Ok(())
}

/// Works out which servers are there, says so in their APIServices, and serves what they say.
/// Whether one is missing.
async fn settle(server: &Arc<Server>) -> bool {
    let mut backends = BTreeMap::new();
    let mut remotes = Vec::new();
    let mut missing = false;
    let mut said = Vec::new();
    for item in server.items(&kind::API_SERVICE, "") {
        let object = object::decode(&item, item.modified());
        if object.field("metadata.deletionTimestamp").is_some() {
            continue;
        }
        let Some(remote) = Remote::read(&object) else {
            said.push((object, true, "Local", LOCAL.to_owned()));
            continue;
        };
        let key = (remote.group.to_owned(), remote.version.to_owned());
        let (backend, asked) = check(server, &object, remote.clone()).await;
        match asked {
            Ok(remote) => {
                remotes.push(Arc::new(remote));
                said.push((object, true, "Passed", "all checks passed".to_owned()));
            }
            Err((reason, message)) => {
                missing = true;
                remotes.push(Arc::new(remote));
                said.push((object, false, reason, message));
            }
        }
        if let Some(backend) = backend {
            backends.insert(key, Arc::new(backend));
        }
    }
    *server.aggregates.backends.write().unwrap_or_else(PoisonError::into_inner) =
        Arc::new(backends);
    if server.customs.lay_beside(remotes) {
        crate::custom::settle(server).await;
    }
    // What is said to be there can be used by now.
    for (object, available, reason, message) in said {
        tell(server, object, available, reason, &message).await;
    }
    missing
}

/// Writes the condition of an APIService when it says something new.
async fn tell(server: &Server, mut object: Value, available: bool, reason: &str, message: &str) {
    let status = remote::status(&object, available, reason, message, Time::from(now()));
    let (Some(status), Some(fields)) = (status, object.as_object_mut()) else { return };
    fields.insert("status".to_owned(), status);
    let name = field::str_at(&object, "metadata.name").unwrap_or("");
    let path = format!("{}/status", kind::API_SERVICE.path(None, Some(name)));
    if let Err(status) = replace_own(server, USER, &path, &object).await {
        tracing::debug!(%status, name, "the condition of an APIService was not written");
    }
}

/// Keeps all of it up to date until `stop`.
pub(crate) async fn run(stop: CancellationToken, server: &Arc<Server>) {
    let services = server.shelf(&kind::API_SERVICE);
    let mut watch = server.store.watch(&services, "", server.store.revision());
    loop {
        if let Err(status) = locals(server).await {
            tracing::debug!(%status, "an APIService of our own was not written");
        }
        let missing = settle(server).await;
        let pause = if missing { BEAT_MISSING } else { BEAT };
        let lost = tokio::select! { biased;
            () = stop.cancelled() => return,
            changes = watch.next() => changes.is_err(),
            () = server.aggregates.wake.notified() => false,
            () = tokio::time::sleep(pause) => false,
        };
        if lost {
            watch = server.store.watch(&services, "", server.store.revision());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_says_by_himself_who_he_is() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("root"));
        headers.insert("x-remote-extra-a", HeaderValue::from_static("b"));
        headers.insert("impersonate-user", HeaderValue::from_static("root"));
        let extra = BTreeMap::from([("e.com/k".to_owned(), vec!["v".to_owned()])]);
        let user =
            User { groups: vec!["a".to_owned(), "b".to_owned()], extra, ..User::named("jane") };
        introduce(&mut headers, &user);
        let said: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        let expected = [
            "x-remote-user: jane",
            "x-remote-group: a",
            "x-remote-group: b",
            "x-remote-extra-e.com%2fk: v",
        ];
        assert_eq!(said.len(), expected.len());
        assert!(expected.iter().all(|line| said.contains(&(*line).to_owned())), "{said:?}");
    }
}
