//! Machines boot from a real server over loopback sockets; the server is killed and comes back.

#![expect(clippy::unwrap_used, reason = "a test ends by a panic, in its helpers too")]

#[path = "../src/bin/bootstorm/fleet.rs"]
mod fleet;
#[path = "../src/bin/bootstorm/wire.rs"]
mod wire;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use boot::dhcp::{Kind, Message, option};
use boot::tftp::{ErrorCode, ReadRequest, render_error, render_read};
use boot::{Mac, SiteView};
use bootserver::{Addresses, Config, Listen, RunError, Segments, Server};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::fleet::{Machine, Road, SEED};
use crate::wire::{Relays, Target, get, post};

const LOADER_LEN: usize = 5_000;
const KERNEL_LEN: usize = 70_000;
const LIMIT: Duration = Duration::from_secs(30);

/// A server in this process, which ends when it is dropped, as a killed one does.
struct Running {
    addresses: Addresses,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), RunError>>,
}

impl Running {
    async fn start(dir: &Path, relay_port: u16) -> Self {
        let any = SocketAddrV4::new(SEED, 0);
        let mut config =
            Config::new(fleet::plan(10).unwrap(), dir.join("image"), dir.join("state"));
        config.command_line = "quiet".to_owned();
        config.uki = Some(dir.join("uki.efi"));
        config.listen = Listen {
            dhcp: any,
            segments: Segments::None,
            tftp: any,
            http: any,
            relay_port,
            client_port: 68,
        };
        let server = Server::bind(config).await.unwrap();
        let (addresses, stop) = (server.addresses(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(stop.clone()));
        Self { addresses, stop, tasks }
    }

    fn target(&self) -> Arc<Target> {
        let Addresses { dhcp, tftp, http } = self.addresses;
        Arc::new(Target { dhcp, tftp, http: Some(http) })
    }

    async fn view(&self) -> SiteView {
        let answer = get(SEED, self.addresses.http, "/machines", None).await.unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// Ends without a word, as SIGKILL does.
    async fn kill(mut self) {
        self.tasks.shutdown().await;
    }

    async fn stop(mut self) {
        self.stop.cancel();
        self.tasks.join_next().await.unwrap().unwrap().unwrap();
    }
}

fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::create_dir(&image).unwrap();
    for (name, len) in [
        ("undionly.kpxe", LOADER_LEN),
        ("vmlinuz", KERNEL_LEN),
        ("initrd", KERNEL_LEN),
        ("root.img", 2 << 20),
    ] {
        std::fs::write(image.join(name), vec![7; len]).unwrap();
    }
    std::fs::write(image.join("secret"), "no").unwrap();
    std::fs::write(dir.path().join("uki.efi"), vec![8; 1000]).unwrap();
    dir
}

async fn relays(dispatch: &mut JoinSet<()>) -> Arc<Relays> {
    let relays = Relays::open(1, None).await.unwrap();
    relays.dispatch(dispatch);
    Arc::new(relays)
}

async fn boot(running: &Running, relays: &Arc<Relays>, numbers: std::ops::Range<u32>, road: Road) {
    let mut boots = JoinSet::new();
    for number in numbers {
        let machine = Machine::new(number, running.target(), Arc::clone(relays));
        boots.spawn(async move { machine.boot(road).await });
    }
    while let Some(ended) = boots.join_next().await {
        ended.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_killed_server_comes_back_and_has_lost_nothing() {
    let (dir, mut dispatch) = (files(), JoinSet::new());
    let relays = relays(&mut dispatch).await;
    let running = Running::start(dir.path(), relays.port()).await;
    boot(&running, &relays, 0..5, Road::Whole).await;
    boot(&running, &relays, 5..10, Road::DhcpAndTftp).await;
    assert_eq!(fleet::count_agents(&running.target()).await.unwrap(), 5);
    let before = running.view().await;
    running.kill().await;
    let running = Running::start(dir.path(), relays.port()).await;
    let after = running.view().await;
    for (before, after) in before.machines.iter().zip(&after.machines) {
        assert_eq!((&before.name, &before.phases), (&after.name, &after.phases));
        assert_eq!((&before.addresses, &before.evidence), (&after.addresses, &after.evidence));
    }
    boot(&running, &relays, 5..10, Road::Whole).await;
    assert_eq!(fleet::count_agents(&running.target()).await.unwrap(), 10);
    running.stop().await;
}

/// DISCOVER and REQUEST of a machine that is not in the plan; its address.
async fn lease_stranger(running: &Running, relays: &Relays) -> Ipv4Addr {
    let mac = Mac::new([2, 0, 0, 0, 0, 9]);
    let mut message = Message::request(Kind::Discover, mac, 900);
    message.relay = fleet::gateway(0);
    message.options.set(option::VENDOR_CLASS, *b"HTTPClient:Arch:00016");
    message.options.set(option::CLIENT_ARCHITECTURE, [0, 16]);
    let server = running.addresses.dhcp;
    let mut answers = relays.send(&message, server).await.unwrap();
    let offer = tokio::time::timeout(LIMIT, answers.recv()).await.unwrap().unwrap();
    let file = String::from_utf8(offer.options.get(option::BOOT_FILE).unwrap().to_vec()).unwrap();
    assert!(file.ends_with("/loader/snponly.efi"), "{file}");
    message.options.set(option::MESSAGE_TYPE, [Kind::Request.code()]);
    message.options.set(option::SERVER_IDENTIFIER, SEED.octets());
    message.options.set(option::REQUESTED_ADDRESS, offer.your_address.octets());
    let mut answers = relays.send(&message, server).await.unwrap();
    let ack = tokio::time::timeout(LIMIT, answers.recv()).await.unwrap().unwrap();
    assert_eq!(ack.kind(), Some(Kind::Ack));
    ack.your_address
}

#[tokio::test]
async fn a_stranger_gets_a_script_that_holds_it_and_no_image() {
    let (dir, mut dispatch) = (files(), JoinSet::new());
    let relays = relays(&mut dispatch).await;
    let running = Running::start(dir.path(), relays.port()).await;
    let address = lease_stranger(&running, &relays).await;
    let http = running.addresses.http;
    let script = get(address, http, "/boot.ipxe?mac=02:00:00:00:00:09", None).await.unwrap();
    let script = String::from_utf8(script.body).unwrap();
    assert!(script.contains("is held") && !script.contains("kernel"), "{script}");
    for path in ["/image/vmlinuz", "/image/initrd", "/image/root.img", "/uki.efi"] {
        let answer = get(address, http, path, None).await.unwrap();
        assert_eq!(answer.status, 403, "{path}");
        let answer = get(SEED, http, path, None).await.unwrap();
        assert_eq!(answer.status, 200, "{path} for the operator");
    }
    let view = running.view().await;
    let stranger = view.machines.last().unwrap();
    assert_eq!(stranger.standing, "discovered");
    running.stop().await;
}

#[tokio::test]
async fn nonsense_is_answered_and_the_server_goes_on() {
    let dir = files();
    let running = Running::start(dir.path(), 67).await;
    let http = running.addresses.http;
    for (path, status) in [
        ("/", 404),
        ("/boot.ipxe", 400),
        ("/boot.ipxe?mac=x", 400),
        ("/image/secret", 404),
        ("/image/..%2fuki.efi", 404),
        ("/image/../state/journal.jsonl", 404),
        ("/loader/uki.efi", 404),
        ("/ca.pem", 404),
        ("/report", 405),
    ] {
        let answer = get(SEED, http, path, None).await.unwrap();
        assert_eq!(answer.status, status, "{path}");
    }
    let stranger = r#"{"mac":"02:00:00:00:00:09","phase":"agent"}"#;
    for (body, status) in [("{", 400), (stranger, 403), (&" ".repeat(5000), 413)] {
        let answer = post(SEED, http, "/report", body).await.unwrap();
        assert_eq!(answer.status, status, "{body}");
    }
    let range = get(SEED, http, "/image/root.img", Some("bytes=10-19")).await.unwrap();
    assert_eq!((range.status, range.body), (206, vec![7; 10]));
    let range = get(SEED, http, "/image/root.img", Some("bytes=9999999-")).await.unwrap();
    assert_eq!(range.status, 416);
    let socket = UdpSocket::bind((SEED, 0)).await.unwrap();
    for junk in [&b""[..], b"\0", &[0xff; 1400], b"\0\x01", b"\0\x05"] {
        socket.send_to(junk, running.addresses.dhcp).await.unwrap();
        socket.send_to(junk, running.addresses.tftp).await.unwrap();
    }
    let read = |file: &str| {
        render_read(&ReadRequest {
            file: file.to_owned(),
            mode: "octet".to_owned(),
            ..ReadRequest::default()
        })
    };
    let missing = render_error(ErrorCode::FileNotFound, "no such file");
    for (request, expected) in [
        (read("autoexec.ipxe"), missing.clone()),
        (read("../uki.efi"), missing.clone()),
        (read("vmlinuz"), missing),
        (b"\0\x02a\0octet\0".to_vec(), render_error(ErrorCode::AccessViolation, "read only")),
    ] {
        socket.send_to(&request, running.addresses.tftp).await.unwrap();
        let mut buffer = [0; 600];
        let received = tokio::time::timeout(LIMIT, socket.recv_from(&mut buffer)).await;
        let (len, _) = received.unwrap().unwrap();
        assert_eq!(&buffer[..len], expected);
    }
    running.stop().await;
}
