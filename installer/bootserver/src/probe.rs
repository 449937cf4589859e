//! Looks for other DHCP servers on local segments at start.
//!
//! One DISCOVER of a made-up machine per segment, and a few seconds of listening. Servers behind
//! relays are found otherwise: by the requests of machines that chose them (`boot`).
//!
//! *Limits*: port 68 must be free for a second listener; where it is not, the probe is left out
//! and says so.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use boot::dhcp::{Kind, Message, option};
use boot::{Mac, Moment};
use ipnet::Ipv4Net;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::desk::DeskHandle;
use crate::{Config, now, segment};

/// Servers that ping an address before they offer it take up to three seconds.
const LISTEN: Duration = Duration::from_secs(5);
/// Fits every client (RFC 2131 §2).
const SIZE: usize = 548;

/// Probes all segments, then ends.
pub(crate) async fn run(stop: CancellationToken, config: Config, desk: DeskHandle) {
    let segments = segment::local_segments(&config).unwrap_or_default();
    let own = config.plan.seed.address;
    let probes = segments.iter().map(|(interface, net)| {
        let (config, desk) = (&config, &desk);
        async move {
            let local = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, config.listen.client_port);
            let server = SocketAddrV4::new(Ipv4Addr::BROADCAST, config.listen.dhcp.port());
            match segment::open(local, Some(interface)) {
                Ok(socket) => probe(&socket, server, own, *net, desk).await,
                Err(err) => {
                    tracing::warn!(%interface, %err, "no search for other DHCP servers");
                }
            }
        }
    });
    let all = futures_util::future::join_all(probes);
    let _stopped = stop.run_until_cancelled(all).await;
}

async fn probe(
    socket: &UdpSocket,
    server: SocketAddrV4,
    own: Ipv4Addr,
    net: Ipv4Net,
    desk: &DeskHandle,
) {
    let discover = render_discover(now());
    if let Err(err) = socket.send_to(&discover, SocketAddr::V4(server)).await {
        tracing::warn!(%net, %err, "no search for other DHCP servers");
        return;
    }
    let mut buffer = vec![0; 2048];
    let _over = tokio::time::timeout(LISTEN, async {
        while let Ok((len, _)) = socket.recv_from(&mut buffer).await {
            let Ok(answer) = Message::decode(buffer.get(..len).unwrap_or_default()) else {
                continue;
            };
            let server = answer.options.address(option::SERVER_IDENTIFIER);
            if let (Some(Kind::Offer | Kind::Ack), Some(server)) = (answer.kind(), server)
                && server != own
            {
                let _stopping = desk.rival(server, Some(net)).await.is_err();
            }
        }
    })
    .await;
}

/// The vendor class says who asks, so that no muster boot server lists it as a machine.
fn render_discover(now: Moment) -> Vec<u8> {
    let [.., a, b, c, d] = now.unix_ms().to_be_bytes();
    let mac = Mac::new([0x02, 0x6d, a, b, c, d]);
    let mut message = Message::request(Kind::Discover, mac, u32::from_be_bytes([a, b, c, d]));
    message.set_broadcast();
    message.options.set(option::VENDOR_CLASS, boot::dhcp::client::PROBE_CLASS);
    message.options.set(option::PARAMETER_LIST, [option::SUBNET_MASK, option::ROUTER]);
    message.encode(SIZE).unwrap_or_default()
}
