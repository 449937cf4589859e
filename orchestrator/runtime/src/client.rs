//! A client of the Kubernetes API: TLS with client certificates, HTTP/2, JSON.
//!
//! Dynamic: objects are `serde_json::Value`s or whatever the caller decodes them to. It does
//! not retry by itself; [`ClientError::retry`] says whether that makes sense.

mod config;
mod error;
mod lean;
mod params;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde_json::Value;

use crate::resource::Resource;

pub use config::{ClientConfig, ConfigError, Identity};
pub use error::{ApiStatus, ClientError, Retry};
pub use params::{DeleteParams, List, ListParams, Patch, PatchKind, Preconditions};
pub use watch::{WatchEvent, WatchParams, WatchStream};

type Http = hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Longest wait for an answer, or for the head of a watch.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a TCP connection: the server is near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections are probed this often, so that a dead server is noticed under a quiet watch.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Largest answer taken into memory; a list of 150,000 pods is larger and must be paged.
const BODY_BYTES_MAX: usize = 512 << 20;
/// Stream window of HTTP/2: the default of 64 KiB makes long lists slow.
const WINDOW_BYTES: u32 = 2 << 20;

/// A client of one API server; cheap to clone, connections are shared.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// Is nothing but metadata read of answers?
    brief: bool,
}

struct Inner {
    server: String,
    token: Option<header::HeaderValue>,
    http: Http,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Client").field("server", &self.inner.server).finish_non_exhaustive()
    }
}

/// An answer as it came, for doors that do not speak `Status`.
#[derive(Debug, Clone)]
pub struct RawResponse {
    /// HTTP status.
    pub status: StatusCode,
    /// The head's other fields.
    pub headers: http::HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Client {
    /// Reads server, CA and identity from a kubeconfig file's current context.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, parsed, or lacks what TLS needs; retrying is useless
    /// until someone mends it.
    pub fn from_kubeconfig(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        Self::new(ClientConfig::from_kubeconfig(path.as_ref())?)
    }

    /// Makes a client; nothing is connected yet.
    ///
    /// # Errors
    ///
    /// When a certificate or key does not parse.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let tls = config.render_tls()?;
        let token = match &config.token {
            Some(token) => {
                let mut value = header::HeaderValue::try_from(format!("Bearer {token}"))
                    .map_err(|_| ConfigError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_keepalive(Some(KEEP_ALIVE));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(tcp);
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_timeout(CONNECT_TIMEOUT)
            .http2_initial_stream_window_size(WINDOW_BYTES)
            .http2_initial_connection_window_size(WINDOW_BYTES)
            .build(connector);
        let server = config.server.trim_end_matches('/').to_owned();
        Ok(Self { inner: Arc::new(Inner { server, token, http }), brief: false })
    }

    /// The same client for those who write and want no object back: of answers only metadata is
    /// read, without the owners of fields.
    #[must_use]
    pub fn briefly(&self) -> Self {
        Self { brief: true, ..self.clone() }
    }

    /// The base address of the server.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.inner.server
    }

    /// Fetches one object.
    ///
    /// # Errors
    ///
    /// [`ClientError::is_not_found`] when there is none.
    pub async fn get(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Value, ClientError> {
        let path = resource.render_path(namespace, Some(name), None);
        self.call(Method::GET, path, None).await
    }

    /// Lists objects; `namespace` = `None` means everywhere.
    ///
    /// # Errors
    ///
    /// [`ClientError::is_gone`] when `resource_version` or `continue` is too old.
    pub async fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        params: &ListParams,
    ) -> Result<List, ClientError> {
        let path = params.render_onto(resource.render_path(namespace, None, None));
        let answer = self.call(Method::GET, path, None).await?;
        Ok(List::from_value(answer, resource))
    }

    /// Creates an object; `namespace` is needed for namespaced resources.
    ///
    /// # Errors
    ///
    /// [`ClientError::is_already_exists`] when the name is taken.
    pub async fn create(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        object: &Value,
    ) -> Result<Value, ClientError> {
        let path = resource.render_path(namespace, None, None);
        self.call(Method::POST, path, Some(Payload::json(object)?)).await
    }

    /// Posts to a subresource: `binding`, `eviction`, `token`.
    ///
    /// # Errors
    ///
    /// As the server says.
    pub async fn create_subresource(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        subresource: &str,
        object: &Value,
    ) -> Result<Value, ClientError> {
        let path = resource.render_path(namespace, Some(name), Some(subresource));
        self.call(Method::POST, path, Some(Payload::json(object)?)).await
    }

    /// Replaces an object; its `metadata.resourceVersion` makes it a compare-and-set.
    ///
    /// # Errors
    ///
    /// [`ClientError::is_conflict`] when the object has changed since.
    pub async fn update(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        object: &Value,
    ) -> Result<Value, ClientError> {
        let path = resource.render_path(namespace, Some(name), None);
        self.call(Method::PUT, path, Some(Payload::json(object)?)).await
    }

    /// Replaces the status of an object.
    ///
    /// # Errors
    ///
    /// As [`Self::update`].
    pub async fn update_status(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        object: &Value,
    ) -> Result<Value, ClientError> {
        self.update_subresource(resource, namespace, name, "status", object).await
    }

    /// Replaces a subresource: `status`, `approval`, `finalize`, `scale`.
    ///
    /// # Errors
    ///
    /// As [`Self::update`].
    pub async fn update_subresource(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        subresource: &str,
        object: &Value,
    ) -> Result<Value, ClientError> {
        let path = resource.render_path(namespace, Some(name), Some(subresource));
        self.call(Method::PUT, path, Some(Payload::json(object)?)).await
    }

    /// Patches an object or a subresource of it.
    ///
    /// # Errors
    ///
    /// [`ClientError::is_conflict`] when the patch names a version that is no longer current,
    /// or fields that belong to another manager.
    pub async fn patch(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        patch: &Patch,
    ) -> Result<Value, ClientError> {
        let path = resource.render_path(namespace, Some(name), patch.subresource.as_deref());
        let payload =
            Payload { content_type: patch.kind.content_type(), ..Payload::json(&patch.body)? };
        self.call(Method::PATCH, patch.render_onto(path), Some(payload)).await
    }

    /// Deletes an object; the answer is the object as it was, or a `Status`.
    ///
    /// # Errors
    ///
    /// [`ClientError::is_conflict`] when a precondition does not hold.
    pub async fn delete(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        params: &DeleteParams,
    ) -> Result<Value, ClientError> {
        let path = resource.render_path(namespace, Some(name), None);
        self.call(Method::DELETE, path, Some(Payload::json(&params.render())?)).await
    }

    /// Opens a watch.
    ///
    /// # Errors
    ///
    /// [`ClientError::is_gone`] when `resource_version` is too old: list again.
    pub async fn watch(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        params: &WatchParams,
    ) -> Result<WatchStream, ClientError> {
        let path = params.render_onto(resource.render_path(namespace, None, None));
        let response = self.send(Method::GET, &path, None).await?;
        if !response.status().is_success() {
            let raw = collect(&path, response).await?;
            return Err(ClientError::refused(&Method::GET, &path, &raw));
        }
        Ok(WatchStream::new(path, response.into_body(), params.idle_limit()))
    }

    /// Fetches any path of the server, whatever the status.
    ///
    /// # Errors
    ///
    /// Only when no answer came.
    pub async fn raw_get(&self, path: &str) -> Result<RawResponse, ClientError> {
        self.raw(Method::GET, path, None).await
    }

    /// Posts JSON to any path of the server, whatever the status of the answer.
    ///
    /// # Errors
    ///
    /// Only when no answer came.
    pub async fn raw_post(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<RawResponse, ClientError> {
        self.raw(Method::POST, path, Some(Payload::json(body)?)).await
    }

    /// Sends bytes to any path of the server, whatever the status of the answer.
    ///
    /// # Errors
    ///
    /// Only when no answer came.
    pub async fn raw_send(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<RawResponse, ClientError> {
        self.raw(method, path, Some(Payload { content_type, body })).await
    }

    async fn call(
        &self,
        method: Method,
        path: String,
        payload: Option<Payload>,
    ) -> Result<Value, ClientError> {
        let raw = self.raw(method.clone(), &path, payload).await?;
        if !raw.status.is_success() {
            return Err(ClientError::refused(&method, &path, &raw));
        }
        if raw.body.is_empty() {
            return Ok(Value::Null);
        }
        let decoded = match self.brief {
            true => lean::read_metadata(&raw.body),
            false => serde_json::from_slice(&raw.body),
        };
        decoded.map_err(|source| ClientError::Decode { path, source })
    }

    async fn raw(
        &self,
        method: Method,
        path: &str,
        payload: Option<Payload>,
    ) -> Result<RawResponse, ClientError> {
        let whole = async {
            let response = self.send(method.clone(), path, payload).await?;
            collect(path, response).await
        };
        let Ok(answer) = tokio::time::timeout(REQUEST_TIMEOUT, whole).await else {
            return Err(ClientError::timeout(&method, path, REQUEST_TIMEOUT));
        };
        answer
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        payload: Option<Payload>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", self.inner.server))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("muster/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.inner.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let body = payload.map_or_else(Bytes::new, |payload| {
            if let Some(headers) = request.headers_mut() {
                let kind = header::HeaderValue::from_static(payload.content_type);
                headers.insert(header::CONTENT_TYPE, kind);
            }
            payload.body
        });
        let request = request
            .body(Full::new(body))
            .map_err(|source| ClientError::Request { path: path.to_owned(), source })?;
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.inner.http.request(request)).await;
        let Ok(answer) = answer else {
            return Err(ClientError::timeout(&method, path, REQUEST_TIMEOUT));
        };
        answer.map_err(|source| ClientError::transport(&method, path, source))
    }
}

/// A request body.
struct Payload {
    content_type: &'static str,
    body: Bytes,
}

impl Payload {
    fn json(value: &impl Serialize) -> Result<Self, ClientError> {
        let body = serde_json::to_vec(value).map_err(|source| ClientError::Encode { source })?;
        Ok(Self { content_type: "application/json", body: body.into() })
    }
}

async fn collect(path: &str, response: Response<Incoming>) -> Result<RawResponse, ClientError> {
    let (head, mut incoming) = response.into_parts();
    let (status, headers) = (head.status, head.headers);
    let mut body = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|source| ClientError::Body { path: path.to_owned(), source })?;
        if let Some(data) = frame.data_ref() {
            if body.len() + data.len() > BODY_BYTES_MAX {
                return Err(ClientError::TooLarge {
                    path: path.to_owned(),
                    limit_bytes: BODY_BYTES_MAX,
                });
            }
            body.extend_from_slice(data);
        }
    }
    Ok(RawResponse { status, headers, body: body.freeze() })
}
