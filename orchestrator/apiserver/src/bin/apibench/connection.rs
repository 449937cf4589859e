//! One connection to the server: requests out, whole or flowing answers back.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use runtime::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

/// Where the server is and who we are.
pub(crate) struct Target {
    host: String,
    name: ServerName<'static>,
    address: SocketAddr,
    tls: TlsConnector,
    token: Option<HeaderValue>,
}

impl Target {
    /// Reads a kubeconfig.
    pub(crate) fn open(kubeconfig: &Path) -> anyhow::Result<Self> {
        let config = ClientConfig::from_kubeconfig(kubeconfig)?;
        let host = config.server.strip_prefix("https://").context("the server is not https")?;
        let host = host.trim_end_matches('/').to_owned();
        let with_port = if host.contains(':') { host.clone() } else { format!("{host}:443") };
        let address = std::net::ToSocketAddrs::to_socket_addrs(&with_port)?.next();
        let address = address.context("the server's name has no address")?;
        let (name, _) = with_port.rsplit_once(':').unwrap_or((&with_port, ""));
        let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned())?;
        let tls = TlsConnector::from(Arc::new(config.render_tls()?));
        let token = config.token.map(|token| HeaderValue::from_str(&format!("Bearer {token}")));
        Ok(Self { host, name, address, tls, token: token.transpose()? })
    }

    /// The server's address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        let tls = self.tls.connect(self.name.clone(), socket).await?;
        let (sender, driver) = http1::handshake(TokioIo::new(tls)).await?;
        let mut task = JoinSet::new();
        task.spawn(async move { driver.await.is_ok() });
        let host = HeaderValue::from_str(&self.host)?;
        let accept = HeaderValue::from_static("application/json");
        Ok(Connection { sender, host, accept, token: self.token.clone(), _task: task })
    }
}

/// A connection; its task ends with it.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
    /// The form answers are asked for in.
    pub(crate) accept: HeaderValue,
    token: Option<HeaderValue>,
    _task: JoinSet<bool>,
}

impl Connection {
    /// Sends a request and returns the answer's head with its body still to come.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.host.clone())
            .header(USER_AGENT, HeaderValue::from_static("apibench"))
            .header(ACCEPT, self.accept.clone());
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.clone());
        }
        if !content_type.is_empty() {
            request = request.header(CONTENT_TYPE, content_type);
        }
        self.sender.ready().await?;
        Ok(self.sender.send_request(request.body(Full::new(body))?).await?)
    }

    /// Sends a request and reads the whole answer; the size of its body.
    pub(crate) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        let response = self.send(method, path, content_type, body).await?;
        let code = response.status().as_u16();
        let mut body = response.into_body();
        let mut chunks = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                chunks.push(data);
            }
        }
        Ok(Answer { code, chunks })
    }
}

/// A whole answer, as it came.
pub(crate) struct Answer {
    pub(crate) code: u16,
    chunks: Vec<Bytes>,
}

impl Answer {
    /// The size of the body.
    pub(crate) fn size(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// The body in one piece.
    pub(crate) fn body(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    /// Fails unless the code is one of these.
    pub(crate) fn expect(self, codes: &[u16]) -> anyhow::Result<Self> {
        if !codes.contains(&self.code) {
            bail!("the server answers {}: {}", self.code, String::from_utf8_lossy(&self.body()));
        }
        Ok(self)
    }
}
