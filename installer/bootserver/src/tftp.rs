//! TFTP: one task that takes requests and drives all transfers.
//!
//! Serves the first loaders and nothing else; there are no paths. A transfer has a socket of its
//! own, as the protocol wants, and ends by itself.

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use boot::Fetch;
use boot::tftp::{
    ErrorCode, Packet, Progress, ReadRequest, Step, Transfer, parse_packet, render_error,
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::desk::DeskHandle;
use crate::{now, peer_v4, segment};

/// The only names there are.
pub(crate) const LOADERS: [&str; 2] = ["undionly.kpxe", "snponly.efi"];
/// A loader is a few hundred KB; a larger file in its place is a mistake.
const LOADER_LEN_MAX: u64 = 16 << 20;
/// Beyond this requests are dropped and come again.
const TRANSFERS_MAX: usize = 1024;
const PACKET_LEN: usize = 2048;

/// Serves until `stop`; transfers that are under way then are cut off.
pub(crate) async fn run(
    stop: CancellationToken,
    socket: Arc<UdpSocket>,
    dir: PathBuf,
    desk: DeskHandle,
) {
    let mut shelf = Shelf { dir, loaders: Vec::new() };
    let mut transfers = FuturesUnordered::new();
    let mut active = BTreeSet::new();
    let mut buffer = vec![0; PACKET_LEN];
    loop {
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(peer) = transfers.next(), if !transfers.is_empty() => {
                active.remove(&peer);
                continue;
            }
            received = socket.recv_from(&mut buffer) => received,
        };
        let Ok((len, peer)) = received else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let answer = match parse_packet(buffer.get(..len).unwrap_or_default()) {
            Ok(Packet::Read(request)) => {
                if active.contains(&peer) || active.len() >= TRANSFERS_MAX {
                    continue;
                }
                match shelf.find(&request).await {
                    Ok(file) => {
                        active.insert(peer);
                        let local = socket.local_addr();
                        transfers.push(transfer(local, peer, request, file, desk.clone()));
                        continue;
                    }
                    Err(refusal) => refusal,
                }
            }
            Ok(Packet::Write) => render_error(ErrorCode::AccessViolation, "read only"),
            Ok(Packet::Data | Packet::Ack(_)) => {
                render_error(ErrorCode::UnknownTransfer, "no such transfer")
            }
            Ok(Packet::Error { .. }) | Err(_) => continue,
        };
        let _lost = socket.send_to(&answer, peer).await.is_err();
    }
}

/// The loaders in memory, read again when the file changed.
struct Shelf {
    dir: PathBuf,
    loaders: Vec<Loader>,
}

struct Loader {
    name: &'static str,
    changed: std::time::SystemTime,
    bytes: Arc<[u8]>,
}

impl Shelf {
    async fn find(&mut self, request: &ReadRequest) -> Result<Arc<[u8]>, Vec<u8>> {
        if request.mode != "octet" {
            return Err(render_error(ErrorCode::Undefined, "only octet mode"));
        }
        let asked = request.file.trim_start_matches('/');
        let asked = asked.strip_prefix("loader/").unwrap_or(asked);
        let name = LOADERS.into_iter().find(|name| *name == asked);
        let missing = || render_error(ErrorCode::FileNotFound, "no such file");
        let name = name.ok_or_else(missing)?;
        let path = self.dir.join(name);
        match self.read(name, &path).await {
            Ok(bytes) => Ok(bytes),
            Err(err) => {
                tracing::warn!(path = %path.display(), %err, "loader not served");
                Err(missing())
            }
        }
    }

    async fn read(&mut self, name: &'static str, path: &Path) -> std::io::Result<Arc<[u8]>> {
        let about = tokio::fs::metadata(path).await?;
        let changed = about.modified()?;
        let known = self.loaders.iter().find(|known| known.name == name);
        if let Some(known) = known.filter(|known| known.changed == changed) {
            return Ok(Arc::clone(&known.bytes));
        }
        if about.len() > LOADER_LEN_MAX {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        let bytes: Arc<[u8]> = tokio::fs::read(path).await?.into();
        self.loaders.retain(|known| known.name != name);
        self.loaders.push(Loader { name, changed, bytes: Arc::clone(&bytes) });
        Ok(bytes)
    }
}

/// One transfer from its first packet to its end.
async fn transfer(
    local: std::io::Result<SocketAddr>,
    peer: SocketAddr,
    request: ReadRequest,
    file: Arc<[u8]>,
    desk: DeskHandle,
) -> SocketAddr {
    let host = peer_v4(peer);
    // The desk may be busy with a storm; the machine need not wait for it.
    let (_told, ended) = tokio::join!(desk.fetched(host, Fetch::Loader), async {
        drive(local?, peer, &request, file).await
    });
    let (fetch, level) = match ended {
        Ok(Progress::Done) => (Some(Fetch::LoaderSent), "sent"),
        // Asking for the size alone and stopping is what UEFI does first.
        Ok(Progress::Aborted(_) | Progress::Going) => (None, "stopped by the client"),
        Ok(Progress::Silent) => (Some(broken("the machine fell silent")), "silence"),
        Err(err) => (Some(broken(&err.to_string())), "failed"),
    };
    tracing::debug!(%peer, file = %request.file, end = level, "loader");
    if let Some(fetch) = fetch {
        let _stopping = desk.fetched(host, fetch).await.is_err();
    }
    peer
}

async fn drive(
    local: SocketAddr,
    peer: SocketAddr,
    request: &ReadRequest,
    file: Arc<[u8]>,
) -> std::io::Result<Progress> {
    let address = SocketAddrV4::new(peer_v4(local), 0);
    let socket = segment::open_unicast(address)?;
    // Packets of others never reach a connected socket.
    socket.connect(peer).await?;
    let (mut transfer, mut step) = Transfer::start(now(), request, file);
    let mut buffer = vec![0; 600];
    loop {
        let Step { send, progress } = step;
        for packet in send {
            // A full queue or a refused port is like a lost packet: the timer decides.
            let _lost = socket.send(&packet).await.is_err();
        }
        if progress != Progress::Going {
            return Ok(progress);
        }
        let rest = transfer.deadline().since(now());
        step = match tokio::time::timeout(rest, socket.recv(&mut buffer)).await {
            Ok(Ok(len)) => transfer.handle(now(), buffer.get(..len).unwrap_or_default()),
            Ok(Err(err)) => return Err(err),
            Err(_late) => transfer.wake(now()),
        };
    }
}

fn broken(why: &str) -> Fetch {
    Fetch::LoaderBroken(why.to_owned())
}
