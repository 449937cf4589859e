use expect_test::{Expect, expect};
use serde_json::json;

use super::state::DISCOVERED_MAX;
use super::*;
use crate::dhcp::{Kind, Message, option};
use crate::{Journal, Reply, commit};

const START: Moment = Moment::from_unix_ms(1_763_000_000_000);
pub(super) const SEED: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
const WORKER: Mac = Mac::new([0x52, 0x54, 0, 0, 1, 0x0c]);
const STRANGER: Mac = Mac::new([0x52, 0x54, 0, 0, 9, 0x99]);
const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";
pub(super) const OTHER_UUID: &str = "aa112233-4455-6677-8899-aabbccddeeff";

fn plan() -> Plan {
    let machine = |name: &str, rack: &str, node: u32, address: &str, gateway: &str| {
        json!({
            "name": name, "rack": rack, "node": node, "role": "worker", "address": address,
            "prefixLen": 24, "gateway": gateway, "mac": format!("52:54:00:00:01:{node:02x}"),
            "boot": "bios", "podCIDR": format!("172.20.{node}.0/24"), "asn": 4_200_000_000_u32 + node,
        })
    };
    let mut first = machine("a-worker", "a", 12, "10.98.1.12", "10.98.1.1");
    first["uuid"] = json!(UUID);
    let rack = |name: &str, subnet: &str, gateway: &str| {
        json!({ "name": name, "subnet": subnet, "gateway": gateway,
                "routing": { "mode": "bgp", "torAsn": 65001 } })
    };
    serde_json::from_value(json!({
        "site": "lab",
        "seed": { "address": SEED, "subnet": "10.98.0.0/24", "apiPort": 6443, "httpPort": 8080 },
        "networks": { "pods": "172.20.0.0/16", "services": "172.21.0.0/24" },
        "timings": { "nodeMonitorGracePeriodSeconds": 40, "podEvictionTimeoutSeconds": 60 },
        "racks": [rack("a", "10.98.1.0/24", "10.98.1.1"), rack("b", "10.98.2.0/24", "10.98.2.1")],
        "machines": [
            first,
            machine("a-other", "a", 13, "10.98.1.13", "10.98.1.1"),
            machine("b-worker", "b", 21, "10.98.2.21", "10.98.2.1"),
        ],
    }))
    .unwrap()
}

/// A journal in memory that can be told to fail.
#[derive(Default)]
struct Paper {
    records: Vec<Record>,
    broken: bool,
}

impl Journal for Paper {
    type Error = &'static str;

    fn append(&mut self, records: &[Record]) -> Result<(), &'static str> {
        if self.broken {
            return Err("broken");
        }
        self.records.extend_from_slice(records);
        Ok(())
    }
}

/// A site with its journal, at a time.
pub(super) struct Bench {
    pub(super) site: Site,
    paper: Paper,
    pub(super) now: Moment,
}

impl Bench {
    pub(super) fn new() -> Self {
        let settings = Settings { command_line: "quiet".to_owned(), ..Settings::default() };
        let site = Site::new(settings, plan(), []).unwrap();
        Self { site, paper: Paper::default(), now: START }
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now.plus(Duration::from_secs(seconds));
    }

    /// Kills the server and starts it from its journal.
    pub(super) fn kill(&mut self) {
        let settings = self.site.settings.clone();
        self.site = Site::new(settings, plan(), self.paper.records.clone()).unwrap();
    }

    /// Sends a request through the relay of rack a.
    pub(super) fn relayed(&mut self, message: &Message) -> Option<Message> {
        let mut message = message.clone();
        message.relay = Ipv4Addr::new(10, 98, 1, 1);
        self.send(&message, None).map(|(_, answer)| answer)
    }

    fn send(&mut self, message: &Message, segment: Option<&str>) -> Option<(Reply, Message)> {
        let segment = segment.map(|net| net.parse().unwrap());
        let arrival = Arrival { socket: 7, segment };
        let bytes = message.encode(1472).unwrap();
        let outcome = self.site.dhcp(self.now, &bytes, arrival);
        let mut replies = commit(&mut self.paper, [outcome]).unwrap();
        assert!(replies.len() <= 1);
        let reply = replies.pop()?;
        assert_eq!(reply.socket, 7);
        let answer = Message::decode(&reply.bytes).unwrap();
        Some((reply, answer))
    }

    /// DISCOVER to ACK; the address.
    pub(super) fn lease(&mut self, mac: Mac, class: &str, uuid: Option<&str>) -> Ipv4Addr {
        let offer = self.relayed(&request(Kind::Discover, mac, class, uuid)).expect("an offer");
        assert_eq!(offer.kind(), Some(Kind::Offer));
        let ack =
            self.relayed(&select(mac, class, uuid, SEED, offer.your_address)).expect("an ack");
        assert_eq!(ack.kind(), Some(Kind::Ack));
        assert_eq!(ack.your_address, offer.your_address);
        ack.your_address
    }

    pub(super) fn fetch(&mut self, peer: Ipv4Addr, fetch: Fetch) -> Verdict {
        let (outcome, verdict) = self.site.fetched(self.now, peer, fetch);
        commit(&mut self.paper, [outcome]).unwrap();
        verdict
    }

    pub(super) fn script(&mut self, query: &str) -> String {
        let query = crate::parse_query(query).unwrap();
        let (outcome, script) = self.site.script(self.now, &query);
        commit(&mut self.paper, [outcome]).unwrap();
        script
    }

    fn report(&mut self, peer: Ipv4Addr, mac: Mac, phase: &str) -> Result<(), ReportRefused> {
        let body = json!({ "mac": mac, "phase": phase, "detail": "x" }).to_string();
        let report = crate::parse_report(body.as_bytes()).unwrap();
        let outcome = self.site.report(self.now, peer, &report)?;
        commit(&mut self.paper, [outcome]).unwrap();
        Ok(())
    }

    pub(super) fn view_of(&self, mac: Mac) -> MachineView {
        let view = self.site.view(self.now);
        view.machines.into_iter().find(|machine| machine.evidence.mac == mac).unwrap()
    }

    /// Standing, phases with seconds since the first, and cause, in one line.
    fn summary(&self, mac: Mac) -> String {
        let view = self.view_of(mac);
        let first = view.phases.first().map_or(self.now, |mark| mark.at);
        let phases = view.phases.iter();
        let phases =
            phases.map(|mark| format!("{}+{}", mark.name.name(), mark.at.since(first).as_secs()));
        let phases: Vec<_> = phases.collect();
        format!(
            "{}: {} ({})",
            view.standing,
            phases.join(" "),
            view.cause.as_deref().unwrap_or("-")
        )
    }
}

pub(super) fn request(kind: Kind, mac: Mac, class: &str, uuid: Option<&str>) -> Message {
    let mut message = Message::request(kind, mac, 77);
    if class == "iPXE" {
        message.options.set(option::USER_CLASS, *b"iPXE");
    } else if !class.is_empty() {
        message.options.set(option::VENDOR_CLASS, class.as_bytes());
    }
    if let Some(uuid) = uuid {
        let uuid = uuid::Uuid::parse_str(uuid).unwrap();
        message.options.set(option::CLIENT_UUID, [&[0][..], &uuid.to_bytes_le()].concat());
    }
    message
}

pub(super) fn select(
    mac: Mac,
    class: &str,
    uuid: Option<&str>,
    server: Ipv4Addr,
    address: Ipv4Addr,
) -> Message {
    let mut message = request(Kind::Request, mac, class, uuid);
    message.options.set(option::SERVER_IDENTIFIER, server.octets());
    message.options.set(option::REQUESTED_ADDRESS, address.octets());
    message
}

pub(super) const BIOS: &str = "PXEClient:Arch:00000:UNDI:002001";
const EFI: &str = "PXEClient:Arch:00007:UNDI:003000";
const HTTP: &str = "HTTPClient:Arch:00016:UNDI:003001";

/// The parts of an answer that decide a boot.
#[track_caller]
fn check_answer(mac: Mac, class: &str, expected: Expect) {
    let mut bench = Bench::new();
    let answer = bench.relayed(&request(Kind::Discover, mac, class, None)).unwrap();
    let mut text = format!("address {}\nnext {}\n", answer.your_address, answer.next_server);
    for (code, bytes) in answer.options.iter() {
        let shown = match code {
            option::HOST_NAME
            | option::BOOT_FILE
            | option::VENDOR_CLASS
            | option::TFTP_SERVER_NAME => String::from_utf8_lossy(bytes).into_owned(),
            _ => format!("{bytes:?}"),
        };
        text += &format!("{code} {shown}\n");
    }
    let end = answer.file.iter().position(|byte| *byte == 0).unwrap();
    text += &format!("file {}\n", String::from_utf8_lossy(&answer.file[..end]));
    expected.assert_eq(&text);
}

#[test]
fn a_bios_rom_gets_its_loader_by_tftp() {
    check_answer(
        WORKER,
        BIOS,
        expect![[r#"
        address 10.98.1.12
        next 10.98.0.1
        53 [2]
        54 [10, 98, 0, 1]
        51 [255, 255, 255, 255]
        1 [255, 255, 255, 0]
        3 [10, 98, 1, 1]
        12 a-worker
        60 PXEClient
        66 10.98.0.1
        43 [6, 1, 8, 255]
        67 undionly.kpxe
        file undionly.kpxe
    "#]],
    );
}

#[test]
fn uefi_gets_its_loader_by_tftp() {
    check_answer(
        STRANGER,
        EFI,
        expect![[r#"
        address 10.98.1.224
        next 10.98.0.1
        53 [2]
        54 [10, 98, 0, 1]
        51 [0, 0, 2, 88]
        58 [0, 0, 1, 44]
        59 [0, 0, 2, 13]
        1 [255, 255, 255, 0]
        3 [10, 98, 1, 1]
        60 PXEClient
        66 10.98.0.1
        43 [6, 1, 8, 255]
        67 snponly.efi
        file snponly.efi
    "#]],
    );
}

#[test]
fn uefi_http_gets_the_uki_only_when_it_is_in_the_plan() {
    check_answer(
        WORKER,
        HTTP,
        expect![[r#"
        address 10.98.1.12
        next 0.0.0.0
        53 [2]
        54 [10, 98, 0, 1]
        51 [255, 255, 255, 255]
        1 [255, 255, 255, 0]
        3 [10, 98, 1, 1]
        12 a-worker
        60 HTTPClient
        67 http://10.98.0.1:8080/uki.efi
        file http://10.98.0.1:8080/uki.efi
    "#]],
    );
    check_answer(
        STRANGER,
        HTTP,
        expect![[r#"
        address 10.98.1.224
        next 0.0.0.0
        53 [2]
        54 [10, 98, 0, 1]
        51 [0, 0, 2, 88]
        58 [0, 0, 1, 44]
        59 [0, 0, 2, 13]
        1 [255, 255, 255, 0]
        3 [10, 98, 1, 1]
        60 HTTPClient
        67 http://10.98.0.1:8080/loader/snponly.efi
        file http://10.98.0.1:8080/loader/snponly.efi
    "#]],
    );
}

#[test]
fn ipxe_gets_a_script_and_need_not_wait_for_a_proxy() {
    check_answer(
        WORKER,
        "iPXE",
        expect![[r#"
        address 10.98.1.12
        next 0.0.0.0
        53 [2]
        54 [10, 98, 0, 1]
        51 [255, 255, 255, 255]
        1 [255, 255, 255, 0]
        3 [10, 98, 1, 1]
        12 a-worker
        175 [176, 1, 1]
        67 http://10.98.0.1:8080/boot.ipxe?mac=52:54:00:00:01:0c&uuid=${uuid}&serial=${serial:uristring}
        file http://10.98.0.1:8080/boot.ipxe?mac=52:54:00:00:01:0c&uuid=${uuid}&serial=${serial:uristring}
    "#]],
    );
}

#[test]
fn our_init_gets_address_router_and_name_alone() {
    check_answer(
        WORKER,
        "muster-init",
        expect![[r#"
        address 10.98.1.12
        next 0.0.0.0
        53 [2]
        54 [10, 98, 0, 1]
        51 [255, 255, 255, 255]
        1 [255, 255, 255, 0]
        3 [10, 98, 1, 1]
        12 a-worker
        file 
    "#]],
    );
}

#[test]
fn a_boot_from_power_to_ready_is_told_phase_by_phase() {
    let mut bench = Bench::new();
    bench.report(SEED, WORKER, "power").unwrap();
    bench.wait(3);
    let address = bench.lease(WORKER, BIOS, Some(UUID));
    bench.wait(1);
    assert_eq!(bench.fetch(address, Fetch::Loader), Verdict::Serve);
    assert_eq!(bench.fetch(address, Fetch::LoaderSent), Verdict::Serve);
    assert_eq!(bench.lease(WORKER, "iPXE", Some(UUID)), address);
    let script = bench.script(&format!("mac={WORKER}&uuid={UUID}&serial=S1"));
    assert!(script.contains("kernel http://10.98.0.1:8080/image/vmlinuz initrd=initrd quiet"));
    bench.wait(1);
    assert_eq!(bench.fetch(address, Fetch::Kernel), Verdict::Serve);
    assert_eq!(bench.fetch(address, Fetch::Initrd), Verdict::Serve);
    bench.wait(5);
    assert_eq!(bench.lease(WORKER, "muster-init", None), address);
    assert_eq!(bench.fetch(address, Fetch::Image), Verdict::Serve);
    bench.wait(2);
    bench.report(address, WORKER, "verified").unwrap();
    bench.wait(9);
    bench.report(address, WORKER, "agent").unwrap();
    let told = bench.summary(WORKER);
    expect!["planned: power+0 dhcp+3 loader+4 kernel+5 image+10 verified+12 agent+21 (-)"]
        .assert_eq(&told);
    bench.kill();
    assert_eq!(bench.summary(WORKER), told, "a kill loses nothing");
    let former_life = START;
    bench.wait(2);
    for heartbeat in [former_life, bench.now] {
        let outcome = bench.site.ready(bench.now, "a-worker", heartbeat);
        assert_eq!(outcome.is_empty(), heartbeat == former_life);
        commit(&mut bench.paper, [outcome]).unwrap();
    }
    bench.wait(1000);
    expect!["planned: power+0 dhcp+3 loader+4 kernel+5 image+10 verified+12 agent+21 ready+23 (-)"]
        .assert_eq(&bench.summary(WORKER));
    let view = bench.view_of(WORKER);
    assert_eq!(view.addresses, [address]);
    assert_eq!(view.evidence.serial.as_deref(), Some("S1"));
}

#[test]
fn a_node_whose_clock_is_wrong_is_ready_when_its_heartbeat_moves() {
    let mut bench = Bench::new();
    bench.report(SEED, WORKER, "agent").unwrap();
    for (heartbeat, is_ready) in [(5, false), (5, false), (6, true)] {
        let outcome = bench.site.ready(bench.now, "a-worker", Moment::from_unix_ms(heartbeat));
        assert_eq!(!outcome.is_empty(), is_ready);
    }
}

#[test]
fn a_machine_that_starts_over_begins_a_new_boot() {
    let mut bench = Bench::new();
    let address = bench.lease(WORKER, BIOS, None);
    bench.fetch(address, Fetch::Loader);
    bench.fetch(address, Fetch::Kernel);
    bench.report(address, WORKER, "failed").unwrap();
    expect!["planned: dhcp+0 loader+0 kernel+0 (the machine says: x)"]
        .assert_eq(&bench.summary(WORKER));
    bench.wait(60);
    bench.lease(WORKER, BIOS, None);
    expect!["planned: dhcp+0 (-)"].assert_eq(&bench.summary(WORKER));
    bench.wait(2);
    bench.report(SEED, WORKER, "power").unwrap();
    expect!["planned: power+0 dhcp+0 (-)"].assert_eq(&bench.summary(WORKER));
    bench.wait(31);
    expect!["planned: power+0 dhcp+0 (DHCP offer sent and accepted, no TFTP request for 30 s)"]
        .assert_eq(&bench.summary(WORKER));
    let broken = Fetch::LoaderBroken("the machine fell silent".to_owned());
    bench.fetch(address, Fetch::Loader);
    bench.fetch(address, broken);
    bench.wait(31);
    expect!["planned: power+0 dhcp+0 loader+33 (loader transfer broke (the machine fell silent), nothing more for 30 s)"]
        .assert_eq(&bench.summary(WORKER));
}

#[test]
fn a_stranger_is_listed_and_held_and_never_gets_an_image() {
    let mut bench = Bench::new();
    let address = bench.lease(STRANGER, BIOS, None);
    assert_eq!(bench.fetch(address, Fetch::Loader), Verdict::Serve);
    let script = bench.script(&format!("mac={STRANGER}"));
    assert!(script.contains("is held: it is not in the plan"), "{script}");
    assert!(!script.contains("/image/"), "{script}");
    for fetch in [Fetch::Kernel, Fetch::Initrd, Fetch::UkiSize, Fetch::Uki, Fetch::Image] {
        assert_eq!(bench.fetch(address, fetch), Verdict::Refuse);
    }
    expect!["discovered: dhcp+0 loader+0 (held: not in the plan)"]
        .assert_eq(&bench.summary(STRANGER));
}

#[test]
fn a_held_machine_keeps_its_address_by_asking() {
    let mut bench = Bench::new();
    let address = bench.lease(STRANGER, "iPXE", None);
    for _ in 0..20 {
        bench.wait(250);
        bench.script(&format!("mac={STRANGER}"));
        assert_eq!(bench.site.holder(address, bench.now), Some(STRANGER));
    }
    bench.wait(601);
    assert_eq!(bench.site.holder(address, bench.now), None);
}

#[test]
fn two_machines_with_one_uuid_are_both_held_and_named() {
    let mut bench = Bench::new();
    let address = bench.lease(WORKER, BIOS, Some(UUID));
    assert_eq!(bench.view_of(WORKER).standing, "planned");
    bench.lease(STRANGER, BIOS, Some(UUID));
    for (mac, other) in
        [(WORKER, "unknown machine 52:54:00:00:09:99"), (STRANGER, "a-worker (52:54:00:00:01:0c)")]
    {
        let view = bench.view_of(mac);
        assert!(view.quarantined);
        let cause = format!("quarantined: UUID {UUID} is also that of {other}");
        assert_eq!(view.cause.as_deref(), Some(cause.as_str()));
        assert!(bench.script(&format!("mac={mac}")).contains(&format!("also that of {other}")));
    }
    assert_eq!(bench.fetch(address, Fetch::Image), Verdict::Refuse);
    bench.kill();
    assert!(bench.view_of(WORKER).quarantined && bench.view_of(STRANGER).quarantined);
    bench.wait(25 * 3600);
    bench.lease(WORKER, BIOS, Some(UUID));
    assert_eq!(bench.view_of(WORKER).standing, "planned", "the other went away for a day");
}

#[test]
fn a_twin_that_shows_up_in_between_does_not_cost_the_address() {
    let mut bench = Bench::new();
    let offer = bench.relayed(&request(Kind::Discover, WORKER, "iPXE", Some(UUID))).unwrap();
    bench.relayed(&request(Kind::Discover, STRANGER, "iPXE", Some(UUID))).unwrap();
    let message = select(WORKER, "iPXE", Some(UUID), SEED, offer.your_address);
    assert_eq!(bench.relayed(&message).unwrap().kind(), Some(Kind::Ack));
    assert!(bench.script(&format!("mac={WORKER}")).contains("is held"));
    assert_eq!(bench.fetch(offer.your_address, Fetch::Kernel), Verdict::Refuse);
}

#[test]
fn a_machine_that_is_not_what_the_plan_says_is_held() {
    let mut bench = Bench::new();
    bench.lease(WORKER, BIOS, Some(OTHER_UUID));
    let cause = bench.view_of(WORKER).cause;
    let expected = format!("quarantined: its UUID is {OTHER_UUID}, the plan says {UUID}");
    assert_eq!(cause, Some(expected));
    let misplaced: Mac = "52:54:00:00:01:15".parse().unwrap();
    let address = bench.lease(misplaced, BIOS, None);
    assert_eq!(address, Ipv4Addr::new(10, 98, 1, 224), "an address of the rack it stands in");
    let cause = bench.view_of(misplaced).cause;
    let expected = "quarantined: it stands in rack a, the plan says b";
    assert_eq!(cause.as_deref(), Some(expected));
}

#[test]
fn an_answer_behind_a_relay_goes_to_the_relay_with_its_data() {
    let mut bench = Bench::new();
    let mut message = request(Kind::Discover, WORKER, BIOS, None);
    message.relay = Ipv4Addr::new(10, 98, 1, 1);
    message.options.set(option::RELAY_AGENT, *b"\x01\x04eth5\x02\x01x");
    message.options.set(option::CLIENT_IDENTIFIER, *b"\x01abcdef");
    let (reply, answer) = bench.send(&message, None).unwrap();
    assert_eq!(reply.to.to_string(), "10.98.1.1:67");
    assert_eq!(
        answer.options.iter().last(),
        Some((option::RELAY_AGENT, &b"\x01\x04eth5\x02\x01x"[..]))
    );
    assert_eq!(answer.options.get(option::CLIENT_IDENTIFIER), Some(&b"\x01abcdef"[..]));
    assert_eq!(bench.view_of(WORKER).evidence.circuit.as_deref(), Some("eth5"));
    assert_eq!(answer.transaction, 77);
    // RFC 3527: the client's subnet is not the relay's.
    message.relay = Ipv4Addr::new(192, 0, 2, 1);
    assert!(bench.send(&message, None).is_none());
    message.options.set(option::RELAY_AGENT, [5, 4, 10, 98, 1, 0, 11, 4, 10, 98, 1, 1]);
    let (reply, answer) = bench.send(&message, None).unwrap();
    assert_eq!(reply.to.to_string(), "192.0.2.1:67");
    // RFC 5107: the relay wants to be taken for the server.
    assert_eq!(
        answer.options.address(option::SERVER_IDENTIFIER),
        Some(Ipv4Addr::new(10, 98, 1, 1))
    );
}

#[test]
fn an_answer_on_a_segment_is_broadcast_or_goes_to_the_address_in_use() {
    let mut bench = Bench::new();
    let message = request(Kind::Discover, WORKER, BIOS, None);
    let (reply, _) = bench.send(&message, Some("10.98.1.0/24")).unwrap();
    assert_eq!(reply.to.to_string(), "255.255.255.255:68");
    assert!(bench.send(&message, Some("192.0.2.0/24")).is_none(), "a foreign segment");
    assert!(bench.send(&message, None).is_none(), "no segment");
    let mut renew = request(Kind::Request, WORKER, "", None);
    renew.client_address = Ipv4Addr::new(10, 98, 1, 12);
    let (reply, ack) = bench.send(&renew, None).unwrap();
    assert_eq!((reply.to.to_string().as_str(), ack.kind()), ("10.98.1.12:68", Some(Kind::Ack)));
    renew.client_address = Ipv4Addr::new(10, 98, 1, 99);
    let (reply, nak) = bench.send(&renew, None).unwrap();
    assert_eq!(
        (reply.to.to_string().as_str(), nak.kind()),
        ("255.255.255.255:68", Some(Kind::Nak))
    );
}

#[test]
fn requests_are_acknowledged_or_refused_as_the_plan_says() {
    let own = Ipv4Addr::new(10, 98, 1, 12);
    for (address, expected) in [
        (own, Kind::Ack),
        (Ipv4Addr::new(10, 98, 1, 13), Kind::Nak),
        (Ipv4Addr::new(10, 0, 0, 1), Kind::Nak),
    ] {
        let mut bench = Bench::new();
        let answer = bench.relayed(&select(WORKER, BIOS, None, SEED, address)).unwrap();
        assert_eq!(answer.kind(), Some(expected), "{address}");
        // INIT-REBOOT: the client remembers its address, no server is named.
        let mut message = request(Kind::Request, WORKER, BIOS, None);
        message.options.set(option::REQUESTED_ADDRESS, address.octets());
        let answer = bench.relayed(&message).unwrap();
        assert_eq!(answer.kind(), Some(expected), "{address}");
    }
    let mut bench = Bench::new();
    assert!(bench.relayed(&request(Kind::Request, WORKER, BIOS, None)).is_none());
}

#[test]
fn no_lease_is_promised_that_is_not_kept() {
    let mut bench = Bench::new();
    let offer = bench.relayed(&request(Kind::Discover, WORKER, BIOS, None)).unwrap();
    assert!(bench.paper.records.iter().all(|record| !record.is_promise()));
    let mut message = select(WORKER, BIOS, None, SEED, offer.your_address);
    message.relay = Ipv4Addr::new(10, 98, 1, 1);
    let arrival = Arrival { socket: 0, segment: None };
    let outcome = bench.site.dhcp(bench.now, &message.encode(548).unwrap(), arrival);
    assert!(outcome.records().iter().any(Record::is_promise));
    let mut broken = Paper { broken: true, ..Paper::default() };
    assert_eq!(commit(&mut broken, [outcome]), Err("broken"));
    // A lease for ever is on disk once; asking again costs no disk.
    bench.lease(WORKER, BIOS, None);
    let before = bench.paper.records.len();
    bench.lease(WORKER, BIOS, None);
    assert!(bench.paper.records[before..].iter().all(|record| !record.is_promise()));
}

#[test]
fn another_dhcp_server_is_named() {
    let mut bench = Bench::new();
    let rival = Ipv4Addr::new(10, 98, 1, 66);
    bench.relayed(&request(Kind::Discover, WORKER, BIOS, None)).unwrap();
    assert!(
        bench.relayed(&select(WORKER, BIOS, None, rival, Ipv4Addr::new(10, 98, 1, 200))).is_none()
    );
    let view = bench.site.view(bench.now);
    let found = view.rivals.first().unwrap();
    assert_eq!((found.server, found.rack.as_deref(), found.mac), (rival, Some("a"), Some(WORKER)));
    let cause = "another DHCP server, 10.98.1.66, answered the machine";
    assert_eq!(bench.view_of(WORKER).cause.as_deref(), Some(cause));
    bench.kill();
    assert_eq!(bench.site.view(bench.now).rivals.len(), 1);
    // An offer heard on the segment.
    let mut offer = request(Kind::Discover, STRANGER, "", None).reply(Kind::Offer);
    offer.options.set(option::SERVER_IDENTIFIER, [10, 98, 1, 67]);
    assert!(bench.send(&offer, Some("10.98.1.0/24")).is_none());
    offer.options.set(option::SERVER_IDENTIFIER, SEED.octets());
    assert!(bench.send(&offer, Some("10.98.1.0/24")).is_none());
    let rivals = bench.site.view(bench.now).rivals;
    assert_eq!(rivals.iter().map(|rival| rival.server.octets()[3]).collect::<Vec<_>>(), [66, 67]);
}

#[test]
fn a_declined_address_is_told_and_rests() {
    let mut bench = Bench::new();
    let address = bench.lease(WORKER, BIOS, None);
    let mut decline = select(WORKER, BIOS, None, SEED, address);
    decline.options.set(option::MESSAGE_TYPE, [Kind::Decline.code()]);
    assert!(bench.relayed(&decline).is_none());
    let cause = bench.site.machine(WORKER).unwrap().activity.clone();
    assert_eq!(cause.map(|(activity, _)| activity), Some(Activity::Declined(address)));
    assert!(bench.relayed(&request(Kind::Discover, WORKER, BIOS, None)).is_none());
    bench.kill();
    assert!(bench.relayed(&request(Kind::Discover, WORKER, BIOS, None)).is_none());
    bench.wait(601);
    assert_eq!(bench.lease(WORKER, BIOS, None), address);
}

#[test]
fn a_released_address_is_free_and_inform_takes_none() {
    let mut bench = Bench::new();
    let address = bench.lease(STRANGER, "", None);
    let mut release = request(Kind::Release, WORKER, "", None);
    release.client_address = address;
    bench.send(&release, None);
    assert_eq!(
        bench.site.holder(address, bench.now),
        Some(STRANGER),
        "only the holder gives it back"
    );
    release = request(Kind::Release, STRANGER, "", None);
    release.client_address = address;
    bench.send(&release, None);
    assert_eq!(bench.site.holder(address, bench.now), None);
    let mut inform = request(Kind::Inform, STRANGER, "", None);
    inform.client_address = Ipv4Addr::new(10, 98, 1, 77);
    let (reply, ack) = bench.send(&inform, None).unwrap();
    assert_eq!(reply.to.to_string(), "10.98.1.77:68");
    assert_eq!(
        (ack.your_address, ack.options.get(option::LEASE_TIME)),
        (Ipv4Addr::UNSPECIFIED, None)
    );
}

#[test]
fn long_relay_data_leaves_out_what_is_dispensable() {
    let mut bench = Bench::new();
    let mut message = request(Kind::Discover, WORKER, "iPXE", Some(UUID));
    message.options.set(option::RELAY_AGENT, [&[1, 90][..], &[b'x'; 90]].concat());
    let answer = bench.relayed(&message).unwrap();
    assert!(answer.options.get(option::CLIENT_UUID).is_some());
    message.options.set(option::RELAY_AGENT, [&[1, 155][..], &[b'x'; 155]].concat());
    let answer = bench.relayed(&message).unwrap();
    assert!(answer.options.get(option::CLIENT_UUID).is_none());
    assert!(answer.options.get(option::BOOT_FILE).is_some());
    message.options.set(option::RELAY_AGENT, [&[1, 220][..], &[b'x'; 220]].concat());
    assert!(bench.relayed(&message).is_none());
    assert_eq!(bench.site.counters().too_long, 1);
    message.options.set(option::MESSAGE_SIZE_MAX, 1500_u16.to_be_bytes());
    assert!(bench.relayed(&message).is_some());
}

#[test]
fn reports_are_taken_from_the_machine_itself_or_a_host_that_is_none() {
    let mut bench = Bench::new();
    let address = bench.lease(WORKER, BIOS, None);
    assert!(bench.report(SEED, WORKER, "verified").is_ok());
    assert!(bench.report(address, WORKER, "agent").is_ok());
    let other: Mac = "52:54:00:00:01:0d".parse().unwrap();
    let refused = Err(ReportRefused::Foreign { mac: other, owner: WORKER });
    assert_eq!(bench.report(address, other, "agent"), refused);
    assert_eq!(
        bench.report(SEED, STRANGER, "agent"),
        Err(ReportRefused::Unknown { mac: STRANGER })
    );
}

#[test]
fn a_cleaned_up_journal_gives_the_same_state() {
    let mut bench = Bench::new();
    let address = bench.lease(WORKER, BIOS, Some(UUID));
    bench.fetch(address, Fetch::Kernel);
    bench.report(address, WORKER, "failed").unwrap();
    bench.lease(STRANGER, EFI, Some(OTHER_UUID));
    assert!(!bench.site.rival(bench.now, Ipv4Addr::new(10, 98, 1, 9), None).is_empty());
    let told = bench.site.view(bench.now);
    let records = bench.site.snapshot(bench.now);
    let lines: Vec<String> = records.iter().map(crate::render_record).collect();
    bench.paper.records = lines.iter().map(|line| crate::parse_record(line).unwrap()).collect();
    assert_eq!(bench.paper.records, records);
    bench.kill();
    assert_eq!(bench.site.view(bench.now), told);
}

#[test]
fn a_flood_of_strangers_does_not_fill_the_memory() {
    let mut bench = Bench::new();
    for number in 0..5000_u32 {
        let [_, _, c, d] = number.to_be_bytes();
        let mac = Mac::new([2, 0, 0, 0, c, d]);
        let mut message = request(Kind::Discover, mac, BIOS, None);
        message.relay = Ipv4Addr::new(10, 98, 1, 1);
        bench.send(&message, None);
    }
    assert_eq!(bench.site.view(bench.now).machines.len(), DISCOVERED_MAX + 3);
    assert!(bench.site.counters().exhausted > 4900, "the pool has 31 addresses");
    assert_eq!(bench.lease(WORKER, BIOS, None), Ipv4Addr::new(10, 98, 1, 12));
}

#[test]
fn a_bad_plan_is_refused() {
    let mut same = plan();
    same.machines[1].mac = same.machines[0].mac.clone();
    let err = Site::new(Settings::default(), same, []).unwrap_err();
    let expected = "machines a-worker and a-other have the same mac 52:54:00:00:01:0c";
    assert_eq!(err.to_string(), expected);
    let settings = Settings { command_line: "a || b".to_owned(), ..Settings::default() };
    assert_eq!(Site::new(settings, plan(), []).unwrap_err(), SiteError::CommandLine);
}

#[test]
fn no_packet_stops_the_server() {
    let site = std::sync::Mutex::new(Bench::new().site);
    let head = request(Kind::Discover, WORKER, BIOS, None);
    let head = Message { relay: Ipv4Addr::new(10, 98, 1, 1), ..head }.encode(548).unwrap();
    bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        let mut site = site.lock().unwrap();
        let arrival = Arrival { socket: 0, segment: None };
        let _ignored = site.dhcp(START, bytes, arrival);
        let mut packet = head[..240].to_vec();
        packet.extend_from_slice(bytes);
        let outcome = site.dhcp(START, &packet, arrival);
        for reply in commit(&mut Paper::default(), [outcome]).unwrap() {
            assert!(Message::decode(&reply.bytes).is_ok());
        }
    });
}
