//! From an HTTP request to its answer: who, what, whether, then the one who does it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::request::DocumentPath;
use api::{Attributes, Form, Request, Route, User, Verb};
use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, EXPECT,
    IF_NONE_MATCH, USER_AGENT, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use objects::{Status, kind};

use crate::audit::Caught;
use crate::fair::Seat;
use crate::metrics::Series;
use crate::respond::{self, Answer};
use crate::server::Server;
use crate::{
    aggregate, audit, enroll, fair, gate, log, metrics_api, proxy, read, registry, review, storage,
    stream, token, watch, webhook, write,
};

/// Upstream's limit for request bodies.
const BODY_BYTES_MAX: usize = 3 << 20;
/// How much of a body is read that nobody asked for, and how long that may take.
const UNREAD_BYTES_MAX: usize = 256 << 10;
const UNREAD_LIMIT: Duration = Duration::from_secs(1);
/// How long a client may take to send its body.
const BODY_LIMIT: Duration = Duration::from_secs(60);

/// How long an answer may take; upstream's.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Who its certificate says it is; `None` without one.
    pub(crate) user: Option<User>,
    pub(crate) address: IpAddr,
}

/// A request to a resource with all that its handler needs.
pub(crate) struct Call<'a> {
    pub(crate) server: &'a Arc<Server>,
    pub(crate) user: &'a User,
    pub(crate) headers: &'a HeaderMap,
    /// What the audit log is to be told, when it is kept.
    pub(crate) caught: Option<&'a Caught>,
    pub(crate) request: Request,
}

impl Call<'_> {
    /// A header as text; empty when absent or not text.
    pub(crate) fn header(&self, name: HeaderName) -> &str {
        header(self.headers, name)
    }
}

fn header(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// Answers one request.
pub(crate) async fn handle(
    server: &Arc<Server>,
    peer: &Peer,
    request: http::Request<Incoming>,
) -> Answer {
    let started = Instant::now();
    let (mut parts, body) = request.into_parts();
    let mut body = Unread(Some(body));
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    let remote = server.aggregates.serve(path);
    let route = if remote || metrics_api::is_path(path) {
        Ok(Route::Other(path.to_owned()))
    } else {
        let query = parts.uri.query().unwrap_or("");
        api::parse_request_in(&server.customs.registry(), method, path, query)
    };
    let series = match &route {
        Ok(Route::Resource(request)) => Series::of(request),
        Ok(_) | Err(_) => Series::other(&parts.method),
    };
    let flying = server.metrics.begin(&series);
    let asked = if remote { aggregate::attributes(&parts) } else { attributes(&parts, &route) };
    let asker = gate::identify(server, peer, &parts.headers).await;
    let entry = audit::begin(server, peer, &mut parts, &asker, &asked).await;
    let mut seat = None;
    let answer = match (&asker, route) {
        (Err(status), _) => Err(status.clone()),
        // Strangers learn nothing about which paths exist.
        (Ok(asker), Err(_)) if asker.user.is_anonymous() => Err(Status::unauthorized()),
        (Ok(_), Err(status)) => Err(status),
        // The door has limits of its own, and knows nobody yet.
        (Ok(_), Ok(Route::Other(path))) if enroll::is_door(&path) => match body.take() {
            Ok(body) => enroll::answer(server, peer.address, &parts.method, &path, body).await,
            Err(status) => Err(status),
        },
        (Ok(asker), Ok(route)) => match admit(server, &asker.user, &parts, &asked).await {
            Ok(given) => {
                seat = Some(given);
                let limit = request_limit(&parts, &route);
                within(limit, answer(server, &asker.user, &parts, route, &mut body)).await
            }
            Err(status) => Err(status),
        },
    };
    let (user, impersonator) = asker.map_or_else(
        |_| (String::new(), None),
        |asker| (asker.user.name, asker.impersonator.map(|user| user.name)),
    );
    body.finish(&parts).await;
    let mut answer = answer.unwrap_or_else(|status| respond::failure(&status));
    if let Some(entry) = entry {
        answer = entry.end(answer).await;
    }
    answer = in_wanted_words(answer, &parts).await;
    if parts.method == http::Method::HEAD {
        answer = respond::without_body(answer);
    }
    if let Some(seat) = seat {
        seat.tell(&mut answer);
    }
    answer = respond::compressed(answer, header(&parts.headers, ACCEPT_ENCODING));
    drop(flying);
    let (code, elapsed) = (answer.status().as_u16(), started.elapsed());
    server.metrics.observe(series, code, elapsed);
    tracing::trace!(
        method = %parts.method, path = parts.uri.path(), user, impersonator, code,
        elapsed_us = elapsed.as_micros(), "answered"
    );
    answer
}

/// The same answer in YAML for those who want that; the API's description of itself knows none.
async fn in_wanted_words(answer: Answer, parts: &Parts) -> Answer {
    let path = parts.uri.path();
    let schema = path == "/version" || path.starts_with("/openapi/");
    if schema || !api::accept::wants_yaml(header(&parts.headers, ACCEPT)) {
        return answer;
    }
    respond::in_yaml(answer).await
}

/// A request's body that nobody may ask for.
struct Unread(Option<Incoming>);

impl Unread {
    fn take(&mut self) -> Result<Incoming, Status> {
        self.0.take().ok_or_else(|| Status::internal("the body was read already"))
    }

    /// Reads what nobody asked for, if it is little: a client that is answered while it still
    /// sends would take the end of its stream for an error.
    async fn finish(self, parts: &Parts) {
        let Some(body) = self.0.filter(|body| !body.is_end_stream()) else { return };
        if !parts.headers.contains_key(EXPECT) {
            let reading = Limited::new(body, UNREAD_BYTES_MAX).collect();
            let _read = tokio::time::timeout(UNREAD_LIMIT, reading).await.is_ok();
        }
    }
}

/// How long an answer may take; `None` for those that flow as long as the client listens.
fn request_limit(parts: &Parts, route: &Route) -> Result<Option<Duration>, Status> {
    if let Route::Resource(request) = route {
        let streams = matches!(
            request.subresource.as_str(),
            "attach" | "exec" | "log" | "portforward" | "proxy"
        );
        if streams || request.verb == Verb::Watch {
            return Ok(None);
        }
    }
    if registry::is_stream(parts.uri.path()) {
        return Ok(None);
    }
    let query = parts.uri.query().unwrap_or("");
    let said = query.split('&').find_map(|pair| pair.strip_prefix("timeout="));
    match said.filter(|said| !said.is_empty()) {
        None => Ok(Some(REQUEST_LIMIT)),
        Some(said) => match api::request::parse_duration(said) {
            Some(limit) if limit.is_zero() => Ok(Some(REQUEST_LIMIT)),
            Some(limit) => Ok(Some(limit.min(REQUEST_LIMIT))),
            None => Err(Status::bad_request(format!(
                "invalid timeout specified in the request URL - time: invalid duration {said:?}"
            ))),
        },
    }
}

/// Awaits an answer, but no longer than it may take.
async fn within(
    limit: Result<Option<Duration>, Status>,
    answering: impl Future<Output = Result<Answer, Status>>,
) -> Result<Answer, Status> {
    let Some(limit) = limit? else { return answering.await };
    // A write that was handed to the store goes on there; its client must look what became of it.
    tokio::time::timeout(limit, answering).await.unwrap_or_else(|_| {
        Err(Status::timeout("Timeout: request did not complete within the allotted timeout", 0))
    })
}

/// What a request asks, in the words of roles.
fn attributes(parts: &Parts, route: &Result<Route, Status>) -> Attributes {
    match route {
        Ok(Route::Resource(request)) => Attributes::of(request),
        Ok(Route::Review(path)) => review::attributes(path),
        Ok(Route::Other(path)) if metrics_api::is_path(path) => metrics_api::attributes(path),
        Ok(_) | Err(_) => {
            let method =
                if parts.method == http::Method::HEAD { "get" } else { parts.method.as_str() };
            Attributes::of_path(method, parts.uri.path())
        }
    }
}

/// Waits for a request's turn, and lets it in if its user may do what it asks.
async fn admit(
    server: &Arc<Server>,
    user: &User,
    parts: &Parts,
    asked: &Attributes,
) -> Result<Seat, Status> {
    let seat = fair::seat(server, user, asked).await?;
    match gate::authorize(server, user, asked) {
        Ok(decision) => {
            audit::catch_decision(parts, true, &decision.reason);
            Ok(seat)
        }
        Err(status) => {
            audit::catch_decision(parts, false, "");
            Err(status)
        }
    }
}

async fn answer(
    server: &Arc<Server>,
    user: &User,
    parts: &Parts,
    route: Route,
    body: &mut Unread,
) -> Result<Answer, Status> {
    match route {
        Route::Other(path) if server.aggregates.serve(&path) => {
            aggregate::answer(server, user, parts, body.take()?).await
        }
        Route::Other(path) if metrics_api::is_path(&path) => {
            if parts.method != http::Method::GET {
                return Err(api::not_allowed());
            }
            metrics_api::answer(server, &path, parts.uri.query().unwrap_or("")).await
        }
        Route::Other(path) if registry::is_path(&path) => {
            registry::answer(server, parts, body.take()?).await
        }
        Route::Health(check) => {
            Ok(storage::health(&server.store, &check, parts.uri.query().unwrap_or("")))
        }
        Route::Document(document) => render_document(server, parts, &document),
        Route::Other(path) => other(server, &path),
        Route::Review(path) => {
            // A review is no table and has no metadata worth alone.
            match api::negotiate(header(&parts.headers, ACCEPT)) {
                Ok(Form::Json | Form::Yaml) => {}
                Ok(_) => return Err(api::accept::refused()),
                Err(status) if !header(&parts.headers, ACCEPT).contains("protobuf") => {
                    return Err(status);
                }
                Err(_) => {}
            }
            let bytes = read_body(parts, body.take()?).await?;
            let content_type = header(&parts.headers, CONTENT_TYPE);
            review::answer(server, user, &path, content_type, &bytes).await
        }
        Route::Resource(request) => {
            let custom = request.custom.clone();
            let (headers, caught) = (&parts.headers, parts.extensions.get::<Caught>());
            let call = Call { server, user, headers, caught, request: *request };
            let mut answer = resource(call, parts, body).await?;
            if let Some(warning) = custom.as_ref().and_then(|custom| custom.warning.clone()) {
                respond::warn(&mut answer, &[warning]);
            }
            Ok(answer)
        }
    }
}

async fn resource(call: Call<'_>, parts: &Parts, body: &mut Unread) -> Result<Answer, Status> {
    let subresource = call.request.subresource.as_str();
    storage::freshen(&call.server.store, &call.request).await?;
    if stream::is_stream(&call) || proxy::is_proxy(&call) {
        webhook::admit_connection(&call).await?;
    }
    if stream::is_stream(&call) {
        return stream::answer(&call, parts).await;
    }
    if proxy::is_proxy(&call) {
        return proxy::answer(&call, parts, body.take()?).await;
    }
    match call.request.verb {
        Verb::Get if subresource == "log" => log::answer(&call).await,
        Verb::Create if subresource == "token" => {
            let bytes = read_body(parts, body.take()?).await?;
            token::answer(&call, &bytes)
        }
        // Parts that are done, not read.
        _ if matches!(subresource, "attach" | "exec" | "portforward" | "proxy" | "token") => {
            Err(api::not_allowed())
        }
        Verb::Get if matches!(subresource, "binding" | "eviction" | "finalize") => {
            Err(api::not_allowed())
        }
        Verb::Get => read::get(&call).await,
        Verb::List => read::list(&call).await,
        Verb::Watch => watch::answer(&call).await,
        verb => {
            let bytes = read_body(parts, body.take()?).await?;
            match verb {
                Verb::Create if subresource == "eviction" => write::evict(&call, &bytes).await,
                Verb::Create => write::create(&call, &bytes).await,
                Verb::Update => write::update(&call, &bytes).await,
                Verb::Patch => write::patch(&call, &bytes).await,
                Verb::DeleteCollection => write::delete_collection(&call, &bytes).await,
                _ => write::delete(&call, &bytes).await,
            }
        }
    }
}

fn render_document(
    server: &Server,
    parts: &Parts,
    document: &DocumentPath,
) -> Result<Answer, Status> {
    let accept = header(&parts.headers, ACCEPT);
    let query = parts.uri.query().unwrap_or("");
    // Documents are kept by address, so it must not be what a client makes up in `Host`.
    let registry = server.customs.registry();
    let found = api::render_document_in(&registry, document, accept, query, &server.address())?;
    let etag = HeaderValue::from_str(&found.etag).ok().filter(|_| !found.etag.is_empty());
    let known = parts.headers.get(IF_NONE_MATCH);
    let (code, bytes) = match &etag {
        Some(etag) if known == Some(etag) => (304, Bytes::new()),
        _ => (200, Bytes::from_owner(found.bytes)),
    };
    let mut answer = respond::whole(code, found.content_type, bytes);
    let headers = answer.headers_mut();
    if let Some(etag) = etag {
        headers.insert(ETAG, etag);
        headers.insert(VARY, HeaderValue::from_static("Accept"));
    }
    if found.immutable {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    Ok(answer)
}

fn other(server: &Server, path: &str) -> Result<Answer, Status> {
    match path {
        "/metrics" => {
            let objects: Vec<_> = kind::KINDS
                .iter()
                .map(|kind| (kind.plural, server.store.count(&server.shelf(kind), "")))
                .collect();
            let mut text = server.metrics.render(server.store.revision(), &objects);
            text.push_str(&server.fair.render());
            text.push_str(&server.others.render());
            Ok(respond::whole(200, "text/plain; version=0.0.4", text))
        }
        "/openid/v1/jwks" | "/openid/v1/jwks/" => {
            let keys = server.site.tokens.key_set().to_string();
            Ok(respond::whole(200, "application/jwk-set+json", keys))
        }
        "/.well-known/openid-configuration" | "/.well-known/openid-configuration/" => {
            Ok(respond::json(200, &server.site.tokens.discovery(&server.address())))
        }
        "/" => {
            let paths = api::root_paths(&server.customs.registry());
            Ok(respond::json(200, &serde_json::json!({ "paths": paths })))
        }
        _ => Err(Status::no_such_path()),
    }
}

async fn read_body(parts: &Parts, body: Incoming) -> Result<Bytes, Status> {
    let announced = header(&parts.headers, CONTENT_LENGTH).parse::<usize>().unwrap_or(0);
    let bytes = read_limited(body, announced, BODY_BYTES_MAX).await?;
    audit::catch_body(parts, &bytes);
    Ok(bytes)
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read_limited(
    body: Incoming,
    announced: usize,
    limit: usize,
) -> Result<Bytes, Status> {
    let too_large = || Status::too_large(format!("limit is {limit}"));
    if announced > limit {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_LIMIT, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(err)) if err.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Status::bad_request("the request's body ended early")),
        Err(_) => Err(Status::timeout("the request's body did not arrive in time", 1)),
    }
}

/// The client's name for itself.
pub(crate) fn user_agent<'a>(call: &'a Call<'_>) -> &'a str {
    call.header(USER_AGENT)
}
