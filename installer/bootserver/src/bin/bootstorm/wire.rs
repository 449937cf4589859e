//! What machines and relays send: DHCP through a relay, TFTP, HTTP/1.1.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use boot::dhcp::Message;
use boot::tftp::{ReadRequest, render_ack, render_read};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::fleet;

const BLOCK: usize = 1468;
const WINDOW: u64 = 4;
/// As iPXE waits, about.
const TFTP_PATIENCE_S: [u64; 6] = [1, 2, 4, 8, 10, 10];
const HTTP_LIMIT: Duration = Duration::from_secs(40);

/// A server under test.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) dhcp: SocketAddr,
    pub(crate) tftp: SocketAddr,
    pub(crate) http: Option<SocketAddr>,
}

type Waiting = Mutex<BTreeMap<u32, mpsc::Sender<Message>>>;

/// One relay per rack. Answers find their machine by transaction number.
pub(crate) struct Relays {
    sockets: Vec<Arc<UdpSocket>>,
    waiting: Arc<Waiting>,
    port: u16,
}

impl Relays {
    /// Opens all relays on one port: a given one, or any free one.
    pub(crate) async fn open(racks: u32, port: Option<u16>) -> anyhow::Result<Self> {
        let mut port = port.unwrap_or(0);
        let mut sockets = Vec::new();
        for rack in 0..racks {
            let address = SocketAddrV4::new(fleet::gateway(rack), port);
            let socket = open_shared(address).with_context(|| format!("relay at {address}"))?;
            port = socket.local_addr()?.port();
            sockets.push(Arc::new(socket));
        }
        Ok(Self { sockets, waiting: Arc::default(), port })
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Begins to hand answers to machines.
    pub(crate) fn dispatch(&self, tasks: &mut JoinSet<()>) {
        for socket in &self.sockets {
            tasks.spawn(dispatch(Arc::clone(socket), Arc::clone(&self.waiting)));
        }
    }

    /// Passes a request on, and tells where its answers come.
    pub(crate) async fn send(
        &self,
        message: &Message,
        server: SocketAddr,
    ) -> anyhow::Result<mpsc::Receiver<Message>> {
        let (sender, receiver) = mpsc::channel(4);
        lock(&self.waiting).insert(message.transaction, sender);
        let rack = self
            .sockets
            .iter()
            .find(|socket| socket.local_addr().is_ok_and(|address| address.ip() == message.relay));
        let bytes = message.encode(1472)?;
        rack.context("no such relay")?.send_to(&bytes, server).await?;
        Ok(receiver)
    }

    pub(crate) fn forget(&self, transaction: u32) {
        lock(&self.waiting).remove(&transaction);
    }
}

async fn dispatch(socket: Arc<UdpSocket>, waiting: Arc<Waiting>) {
    let mut buffer = vec![0; 2048];
    loop {
        let Ok((len, _)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Ok(message) = Message::decode(buffer.get(..len).unwrap_or_default()) else {
            continue;
        };
        let machine = lock(&waiting).get(&message.transaction).cloned();
        if let Some(machine) = machine {
            let _gone = machine.try_send(message).is_err();
        }
    }
}

fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, BTreeMap<u32, mpsc::Sender<Message>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// dnsmasq listens on the relays' port on all addresses: both must agree to share it.
fn open_shared(address: SocketAddrV4) -> anyhow::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    let _granted = socket.set_recv_buffer_size(4 << 20).is_ok();
    socket.bind(&SocketAddr::V4(address).into())?;
    Ok(UdpSocket::from_std(socket.into())?)
}

/// Reads a file by TFTP with a window of four blocks, as UEFI does; its length.
pub(crate) async fn fetch_tftp(
    own: Ipv4Addr,
    server: SocketAddr,
    file: &str,
) -> anyhow::Result<usize> {
    let socket = UdpSocket::bind(SocketAddrV4::new(own, 0)).await?;
    let option = |name: &str, value: String| (name.to_owned(), value);
    let request = render_read(&ReadRequest {
        file: file.to_owned(),
        mode: "octet".to_owned(),
        options: vec![
            option("tsize", "0".to_owned()),
            option("blksize", BLOCK.to_string()),
            option("windowsize", WINDOW.to_string()),
        ],
    });
    let (mut answer, mut peer) = (request, server);
    let (mut next, mut in_window, mut len, mut tries) = (1_u64, 0, 0, 0);
    socket.send_to(&answer, peer).await?;
    let mut window = 1;
    let mut buffer = vec![0; 2048];
    loop {
        let patience = TFTP_PATIENCE_S.get(tries).map(|seconds| Duration::from_secs(*seconds));
        let patience = patience.with_context(|| format!("silence after {len} bytes"))?;
        let received = tokio::time::timeout(patience, socket.recv_from(&mut buffer)).await;
        let Ok(received) = received else {
            tries += 1;
            socket.send_to(&answer, peer).await?;
            continue;
        };
        let (size, from) = received?;
        let block = match buffer.get(..size) {
            Some([0, 6, options @ ..]) => {
                // A server that does not know windows (dnsmasq 2.90) leaves the option out.
                window = accepted(options, "windowsize").unwrap_or(1);
                0
            }
            Some([0, 3, high, low, data @ ..]) => {
                let number = u64::from(u16::from_be_bytes([*high, *low]));
                if number == next & 0xffff {
                    (next, in_window, len, tries) = (next + 1, in_window + 1, len + data.len(), 0);
                    let is_last = data.len() < BLOCK;
                    if !is_last && in_window < window {
                        continue;
                    }
                    if is_last {
                        socket.send_to(&ack(next - 1), from).await?;
                        return Ok(len);
                    }
                }
                in_window = 0;
                next - 1
            }
            Some([0, 5, _, code, ..]) => bail!("error {code}"),
            _ => continue,
        };
        (answer, peer) = (ack(block), from);
        socket.send_to(&answer, peer).await?;
    }
}

/// The value of an option that the server took over.
fn accepted(options: &[u8], name: &str) -> Option<u64> {
    let mut fields = options.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    while let (Some(found), Some(value)) = (fields.next(), fields.next()) {
        if found.eq_ignore_ascii_case(name) {
            return value.parse().ok();
        }
    }
    None
}

fn ack(block: u64) -> Vec<u8> {
    render_ack(u16::try_from(block & 0xffff).unwrap_or(0))
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Length of the body.
    pub(crate) len: usize,
    /// The body, or its first megabyte.
    pub(crate) body: Vec<u8>,
}

/// `GET`, with a range when one is given.
pub(crate) async fn get(
    own: Ipv4Addr,
    server: SocketAddr,
    path: &str,
    range: Option<&str>,
) -> anyhow::Result<Answer> {
    let range = range.map_or(String::new(), |range| format!("Range: {range}\r\n"));
    let head = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\n{range}Connection: close\r\n\r\n");
    ask_plain(own, server, head).await
}

/// `POST` of a JSON text.
pub(crate) async fn post(
    own: Ipv4Addr,
    server: SocketAddr,
    path: &str,
    body: &str,
) -> anyhow::Result<Answer> {
    let len = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {server}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    );
    ask_plain(own, server, head).await
}

async fn ask_plain(own: Ipv4Addr, server: SocketAddr, request: String) -> anyhow::Result<Answer> {
    ask(connect(SocketAddrV4::new(own, 0), server).await?, request).await
}

/// Connects from a machine's own address.
pub(crate) async fn connect(own: SocketAddrV4, server: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::V4(own))?;
    let connected = tokio::time::timeout(HTTP_LIMIT, socket.connect(server)).await;
    Ok(connected.context("no connection in 40 s")??)
}

/// Sends a request that ends its connection, and reads the answer.
pub(crate) async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: String,
) -> anyhow::Result<Answer> {
    let asking = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let (mut kept, mut total) = (Vec::new(), 0);
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let size = stream.read(&mut buffer).await?;
            if size == 0 {
                break;
            }
            total += size;
            // Enough to read every answer but a kernel, of which the length is enough.
            if kept.len() < 1024 || !is_large(&kept) {
                kept.extend_from_slice(buffer.get(..size).unwrap_or_default());
            }
        }
        parse_answer(kept, total)
    };
    tokio::time::timeout(HTTP_LIMIT, asking).await.context("no answer in 40 s")?
}

/// Whether this is the beginning of a file.
fn is_large(answer: &[u8]) -> bool {
    let head = String::from_utf8_lossy(answer.get(..1024).unwrap_or_default()).to_lowercase();
    head.contains("application/octet-stream")
}

fn parse_answer(mut kept: Vec<u8>, total: usize) -> anyhow::Result<Answer> {
    let end = kept.windows(4).position(|window| window == b"\r\n\r\n").context("no head")? + 4;
    let body = kept.split_off(end);
    let head = String::from_utf8(kept)?.to_lowercase();
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let len = total - end;
    let told = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    if let Some(told) = told {
        ensure!(told.trim().parse::<usize>()? == len, "cut off after {len} bytes");
    }
    Ok(Answer { status, len, body })
}
