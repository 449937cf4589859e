//! Admission that others have a say in: policies in CEL, and webhooks over HTTPS.
//!
//! Mutating policies and webhooks come after the built-in defaults and before validation, the
//! validating ones after it. A cluster without any pays for looking at six empty shelves.
//!
//! *Limits*: each call to a webhook is a connection of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::said::Said;
use api::webhook::{self, Hook, Matter, Verdict};
use api::{Prepared, Request, User, policy};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http_body_util::{BodyExt as _, Full, Limited};
use objects::field::Fields as _;
use objects::{Kind, Status, field, kind};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio_rustls::TlsConnector;

use crate::agent::{connect, exchange};
use crate::audit;
use crate::handle::Call;
use crate::object;
use crate::proxy;
use crate::server::Server;

/// A webhook's answer may be as large as an object, and its patch as large again.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Who asks for what.
pub(crate) struct Asking<'a> {
    pub(crate) server: &'a Arc<Server>,
    pub(crate) user: &'a User,
    pub(crate) request: &'a Request,
    pub(crate) operation: &'a str,
    pub(crate) old: &'a Value,
}

fn all(server: &Server, kind: &Kind) -> Vec<Value> {
    let items = server.items(kind, "");
    items.iter().map(|item| object::decode(item, item.modified())).collect()
}

/// Lets mutating policies and webhooks change what was prepared, and validating ones refuse it.
///
/// # Errors
///
/// When one refuses, or one that must be asked cannot be.
pub(crate) async fn admit(
    call: &Call<'_>,
    mut prepared: Prepared,
    old: Option<&Value>,
    context: &api::Context<'_>,
) -> Result<Prepared, Status> {
    let request = &call.request;
    if !concerned(call.server, request.kind) {
        return Ok(prepared);
    }
    let operation = match (old, request.subresource.as_str()) {
        (_, "binding" | "eviction") | (None, _) => "CREATE",
        (Some(_), _) => "UPDATE",
    };
    let null = Value::Null;
    let asking = Asking {
        server: call.server,
        user: call.user,
        request,
        operation,
        old: old.unwrap_or(&null),
    };
    let mut said = Said::default();
    let admitted = async {
        let changed = mutate(&asking, &prepared.object, &mut said).await?;
        if changed != prepared.object {
            prepared = api::readmit(request, prepared, changed, old, context)?;
        }
        validate(&asking, &prepared.object, &mut said).await?;
        Ok(prepared)
    };
    let admitted = admitted.await;
    audit::catch_annotations(call.caught, &said);
    let mut prepared: Prepared = admitted?;
    prepared.warnings.append(&mut said.warnings);
    Ok(prepared)
}

/// Asks about a deletion.
///
/// # Errors
///
/// As [`admit`].
pub(crate) async fn admit_deletion(
    call: &Call<'_>,
    request: &Request,
    old: &Value,
) -> Result<Vec<String>, Status> {
    if !concerned(call.server, request.kind) {
        return Ok(Vec::new());
    }
    let (server, user) = (call.server, call.user);
    let asking = Asking { server, user, request, operation: "DELETE", old };
    pass(call, &asking, &Value::Null).await
}

/// Asks about a connection to a pod, service or node that is to be opened.
///
/// # Errors
///
/// As [`admit`].
pub(crate) async fn admit_connection(call: &Call<'_>) -> Result<(), Status> {
    let request = &call.request;
    if !concerned(call.server, request.kind) {
        return Ok(());
    }
    let options = webhook::connect_options(request);
    let (server, user, null) = (call.server, call.user, Value::Null);
    let asking = Asking { server, user, request, operation: "CONNECT", old: &null };
    pass(call, &asking, &options).await.map(drop)
}

/// Asks about what nobody can change any more, and returns warnings.
async fn pass(call: &Call<'_>, asking: &Asking<'_>, object: &Value) -> Result<Vec<String>, Status> {
    let mut said = Said::default();
    let passed = async {
        mutate(asking, object, &mut said).await?;
        validate(asking, object, &mut said).await
    };
    let passed = passed.await;
    audit::catch_annotations(call.caught, &said);
    passed.map(|()| said.warnings)
}

/// Is there anything that has a say about a kind?
pub(crate) fn concerned(server: &Server, kind: &Kind) -> bool {
    let deciders = [
        &kind::MUTATING_WEBHOOK_CONFIGURATION,
        &kind::VALIDATING_WEBHOOK_CONFIGURATION,
        &kind::MUTATING_ADMISSION_POLICY_BINDING,
        &kind::VALIDATING_ADMISSION_POLICY_BINDING,
    ];
    !webhook::is_exempt(kind)
        && deciders.iter().any(|kind| server.store.count(&server.shelf(kind), "") > 0)
}

fn matter<'a>(asking: &'a Asking<'_>, object: &'a Value, uid: &'a str) -> Matter<'a> {
    Matter {
        request: asking.request,
        operation: asking.operation,
        object,
        old: asking.old,
        user: asking.user,
        view: asking.server.as_ref(),
        uid,
    }
}

fn fresh_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// What mutating admission remembers between its two rounds.
///
/// Who asked for it is asked again when somebody later changed the object; each at most once more.
#[derive(Default)]
struct Rounds {
    /// Those of this round that may be asked again, by configuration and name.
    asked: Vec<(String, String)>,
    /// Those to ask in the second round.
    again: Vec<(String, String)>,
}

impl Rounds {
    /// The object changed: everyone asked before gets to see it.
    fn changed(&mut self) {
        self.again.append(&mut self.asked);
    }
}

async fn mutate(asking: &Asking<'_>, object: &Value, said: &mut Said) -> Result<Value, Status> {
    let server = asking.server;
    let mut object = object.clone();
    mutate_by_policy(asking, &mut object, policy::Round::First)?;
    let configurations = all(server, &kind::MUTATING_WEBHOOK_CONFIGURATION);
    if configurations.is_empty() {
        return Ok(object);
    }
    let mut rounds = Rounds::default();
    let before = object.clone();
    let places = places(&configurations);
    mutate_by_webhook(asking, &configurations, &mut object, &mut rounds, (0, &places), said)
        .await?;
    if object != before {
        let seen = object.clone();
        mutate_by_policy(asking, &mut object, policy::Round::Again)?;
        if object != seen {
            rounds.changed();
        }
    }
    if !rounds.again.is_empty() {
        let hooks = configurations_of(&configurations, &rounds.again);
        let mut last = Rounds::default();
        mutate_by_webhook(asking, &hooks, &mut object, &mut last, (1, &places), said).await?;
    }
    Ok(object)
}

/// All webhooks of the cluster in their order, by configuration and name.
fn places(configurations: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value, path: &str| field::str_at(value, path).unwrap_or("").to_owned();
    let mut places = Vec::new();
    for configuration in configurations {
        let hooks = configuration.get("webhooks").and_then(Value::as_array);
        for hook in hooks.into_iter().flatten() {
            places.push((text(configuration, "metadata.name"), text(hook, "name")));
        }
    }
    places
}

/// A webhook's place among all.
fn place_of(places: &[(String, String)], hook: &Hook) -> usize {
    let own = |(configuration, name): &(String, String)| {
        *configuration == hook.configuration && *name == hook.name
    };
    places.iter().position(own).unwrap_or(0)
}

/// The configurations with those webhooks alone that are to be asked again.
fn configurations_of(configurations: &[Value], only: &[(String, String)]) -> Vec<Value> {
    let mut kept = configurations.to_vec();
    for configuration in &mut kept {
        let own = field::str_at(configuration, "metadata.name").unwrap_or("").to_owned();
        let hooks = configuration.get_mut("webhooks").and_then(Value::as_array_mut);
        if let Some(hooks) = hooks {
            hooks.retain(|hook| {
                let name = field::str_at(hook, "name").unwrap_or("");
                only.iter().any(|(configuration, hook)| *configuration == own && hook == name)
            });
        }
    }
    kept
}

fn mutate_by_policy(
    asking: &Asking<'_>,
    object: &mut Value,
    round: policy::Round,
) -> Result<(), Status> {
    let server = asking.server;
    let bindings = all(server, &kind::MUTATING_ADMISSION_POLICY_BINDING);
    if bindings.is_empty() || object.is_null() {
        return Ok(());
    }
    let policies = all(server, &kind::MUTATING_ADMISSION_POLICY);
    let registry = server.customs.registry();
    let merge =
        |object: &Value, applied: &Value| api::merge_configuration(asking.request, object, applied);
    let uid = fresh_uid();
    let matter = matter(asking, object, &uid);
    let changed = policy::mutate(&policies, &bindings, &registry, &matter, round, &merge)?;
    *object = changed;
    Ok(())
}

/// Asks the webhooks one after another, each with what those before it made of the object.
async fn mutate_by_webhook(
    asking: &Asking<'_>,
    configurations: &[Value],
    object: &mut Value,
    rounds: &mut Rounds,
    (round, places): (usize, &[(String, String)]),
    said: &mut Said,
) -> Result<(), Status> {
    let uid = fresh_uid();
    for hook in webhook::plan(configurations, &matter(asking, object, &uid))? {
        let when = (round, place_of(places, &hook));
        let (verdict, mut heard) = ask(asking, &hook, object, Way::Mutates(when)).await;
        said.annotations.append(&mut heard.annotations);
        let verdict = verdict?;
        said.warnings.extend(verdict.warnings);
        if let Some(patched) = verdict.patched.filter(|patched| patched != object) {
            *object = patched;
            rounds.changed();
        }
        if hook.reinvoked {
            rounds.asked.push((hook.configuration, hook.name));
        }
    }
    Ok(())
}

async fn validate(asking: &Asking<'_>, object: &Value, said: &mut Said) -> Result<(), Status> {
    let server = asking.server;
    let bindings = all(server, &kind::VALIDATING_ADMISSION_POLICY_BINDING);
    if !bindings.is_empty() {
        let policies = all(server, &kind::VALIDATING_ADMISSION_POLICY);
        let (registry, uid) = (server.customs.registry(), fresh_uid());
        let matter = matter(asking, object, &uid);
        policy::validate(&policies, &bindings, &registry, &matter, said)?;
    }
    let configurations = all(server, &kind::VALIDATING_WEBHOOK_CONFIGURATION);
    if configurations.is_empty() {
        return Ok(());
    }
    let uid = fresh_uid();
    let hooks = webhook::plan(&configurations, &matter(asking, object, &uid))?;
    let places = places(&configurations);
    // They cannot see each other's answers, so they are asked all at once.
    let asked = hooks.iter().map(|hook| {
        let way = Way::Validates((0, place_of(&places, hook)));
        ask(asking, hook, object, way)
    });
    let mut outcome = Ok(());
    for (verdict, mut heard) in futures_util::future::join_all(asked).await {
        said.annotations.append(&mut heard.annotations);
        match verdict {
            Ok(verdict) => said.warnings.extend(verdict.warnings),
            Err(status) => outcome = outcome.and(Err(status)),
        }
    }
    outcome
}

/// What a webhook is asked for, in which round, and its place among all.
#[derive(Debug, Clone, Copy)]
enum Way {
    Mutates((usize, usize)),
    Validates((usize, usize)),
}

/// Asks one webhook; one that cannot be asked and may be ignored allows everything.
async fn ask(
    asking: &Asking<'_>,
    hook: &Hook,
    object: &Value,
    way: Way,
) -> (Result<Verdict, Status>, Said) {
    let mut said = Said::default();
    let uid = fresh_uid();
    let review = webhook::review(&matter(asking, object, &uid));
    let limit = Duration::from_secs(hook.timeout_seconds);
    let answer = post(asking.server, &hook.client, &review, limit).await;
    if let Ok(answer) = &answer {
        webhook::annotate(hook, answer, &mut said);
    }
    let judged = answer
        .map_err(Err)
        .and_then(|answer| Ok((webhook::verdict(hook, &uid, object, &answer)?, answer)));
    let verdict = match judged {
        Ok((verdict, answer)) => {
            if let Way::Mutates(when) = way {
                webhook::annotate_mutation(hook, when, &answer, &mut said);
            }
            Ok(verdict)
        }
        Err(Ok(status)) => Err(status),
        Err(Err(why)) if hook.ignores_failure => {
            let (how, when) = match way {
                Way::Mutates(when) => ("mutation", when),
                Way::Validates(when) => ("validating", when),
            };
            webhook::annotate_failure(hook, how, when, &mut said);
            tracing::warn!(webhook = hook.name, why, "failed calling webhook, failing open");
            Ok(Verdict { patched: None, warnings: Vec::new() })
        }
        Err(Err(why)) => Err(webhook::unreachable(hook, &why)),
    };
    (verdict, said)
}

/// Posts a review to where a `clientConfig` says, and reads the answer.
///
/// # Errors
///
/// In words, for whoever set the webhook up.
pub(crate) async fn post(
    server: &Server,
    client: &Value,
    review: &Value,
    limit: Duration,
) -> Result<Value, String> {
    let seconds = limit.as_secs();
    let failed = |url: &str, why: String| {
        format!("failed to call webhook: Post \"{url}?timeout={seconds}s\": {why}")
    };
    let place = Place::of(server, client).map_err(|why| failed(&address_of(client), why))?;
    let url = format!("https://{}{}", place.host, place.path);
    let asked = async {
        let tls = tls_config(client)?;
        let name = ServerName::try_from(place.name.clone()).map_err(|err| err.to_string())?;
        let address = place.address().await?;
        let socket = connect(address).await.map_err(|err| err.to_string())?;
        let connector = TlsConnector::from(Arc::new(tls));
        let io = connector.connect(name, socket).await.map_err(|err| err.to_string())?;
        let request = http::Request::post(place.path.as_str())
            .header(HOST, &place.host)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, "muster")
            .body(Full::<Bytes>::from(review.to_string()))
            .map_err(|err| err.to_string())?;
        let answer = exchange(server, io, request, limit).await.map_err(|err| err.to_string())?;
        let code = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|err| err.to_string())?.to_bytes();
        if !code.is_success() {
            let text = String::from_utf8_lossy(&body).chars().take(256).collect::<String>();
            return Err(format!("the server responded with {code}: {text}"));
        }
        serde_json::from_slice(&body).map_err(|err| format!("the answer is no JSON: {err}"))
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(why)) => Err(failed(&url, why)),
        Err(_) => Err(failed(&url, "context deadline exceeded".to_owned())),
    }
}

/// The address a `clientConfig` means, for messages.
fn address_of(client: &Value) -> String {
    let text = |key: &str| field::str_at(client, key).unwrap_or("");
    if !text("url").is_empty() {
        return text("url").to_owned();
    }
    let port = field::int_at(client, "service.port").unwrap_or(443);
    let path = text("service.path").trim_start_matches('/');
    let (name, namespace) = (text("service.name"), text("service.namespace"));
    format!("https://{name}.{namespace}.svc:{port}/{path}")
}

/// Where a webhook is.
struct Place {
    /// The name its certificate must be good for.
    name: String,
    /// The `Host` header.
    host: String,
    port: u16,
    path: String,
    /// Known for services; others are looked up.
    address: Option<IpAddr>,
}

impl Place {
    fn of(server: &Server, client: &Value) -> Result<Self, String> {
        if let Some(url) = field::str_at(client, "url") {
            let uri: http::Uri = url.parse().map_err(|_| format!("{url:?} is no URL"))?;
            let host = uri.host().ok_or_else(|| format!("{url:?} names no host"))?;
            let name = host.trim_matches(['[', ']']).to_owned();
            let port = uri.port_u16().unwrap_or(443);
            let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
            let address = name.parse().ok();
            return Ok(Self { host: format!("{host}:{port}"), name, port, path, address });
        }
        let text = |key: &str| field::str_at(client, &format!("service.{key}")).unwrap_or("");
        let (namespace, service) = (text("namespace"), text("name"));
        let port = field::int_at(client, "service.port").unwrap_or(443);
        let path = match text("path") {
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        let (address, target) = resolve(server, namespace, service, port)
            .ok_or_else(|| format!("no endpoints available for service \"{service}\""))?;
        let name = format!("{service}.{namespace}.svc");
        let host = format!("{name}:{port}");
        Ok(Self { name, host, port: target, path, address: Some(address) })
    }

    async fn address(&self) -> Result<SocketAddr, String> {
        if let Some(address) = self.address {
            return Ok(SocketAddr::new(address, self.port));
        }
        let found = tokio::net::lookup_host((self.name.as_str(), self.port)).await;
        let first = found.map_err(|err| err.to_string())?.next();
        first.ok_or_else(|| format!("lookup {}: no such host", self.name))
    }
}

/// A ready endpoint of a service, and the port it listens on.
pub(crate) fn resolve(
    server: &Server,
    namespace: &str,
    name: &str,
    port: i64,
) -> Option<(IpAddr, u16)> {
    let service = server.item(&kind::SERVICE, namespace, name)?;
    let service = object::decode(&service, 0);
    let ports = service.field("spec.ports").and_then(Value::as_array)?;
    let wanted = ports.iter().find(|one| field::int_at(one, "port") == Some(port))?;
    let port_name = field::str_at(wanted, "name").unwrap_or("");
    for slice in proxy::slices(server, namespace, name, &service) {
        let target = slice.get("ports").and_then(Value::as_array).into_iter().flatten();
        let target = target
            .filter(|one| field::str_at(one, "name").unwrap_or("") == port_name)
            .find_map(|one| u16::try_from(field::int_at(one, "port")?).ok());
        let endpoints = slice.get("endpoints").and_then(Value::as_array).into_iter().flatten();
        let address = endpoints
            .filter(|one| one.field("conditions.ready") != Some(&Value::Bool(false)))
            .flat_map(|one| one.get("addresses").and_then(Value::as_array).into_iter().flatten())
            .find_map(|one| one.as_str()?.parse().ok());
        if let (Some(address), Some(target)) = (address, target) {
            return Some((address, target));
        }
    }
    None
}

/// Trusts the authorities the configuration names, and none besides.
fn tls_config(client: &Value) -> Result<ClientConfig, String> {
    use base64::Engine as _;
    let bundle = field::str_at(client, "caBundle").unwrap_or("");
    let pem = base64::engine::general_purpose::STANDARD
        .decode(bundle)
        .map_err(|_| "caBundle is no base64".to_owned())?;
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&pem) {
        let cert = cert.map_err(|err| format!("caBundle: {err}"))?;
        roots.add(cert).map_err(|err| format!("caBundle: {err}"))?;
    }
    if roots.is_empty() {
        return Err("x509: certificate signed by unknown authority: no caBundle".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|err| err.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
