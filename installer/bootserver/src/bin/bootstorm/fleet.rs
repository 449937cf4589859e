//! Simulated machines, and the plan that names them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use boot::dhcp::{Kind, Message, option};
use boot::{Mac, Phase, SiteView};
use cluster::plan::Plan;
use serde_json::json;

use crate::wire::{self, Relays, Target};

/// The boot server.
pub(crate) const SEED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const PER_RACK: u32 = 200;
/// As iPXE waits; the specification's 4, 8, 16, 32 s are more patient.
const PATIENCE_S: [u64; 5] = [1, 2, 4, 8, 10];
const ROM_CLASS: &str = "PXEClient:Arch:00000:UNDI:002001";

/// How far a machine goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Road {
    /// To the report of its agent.
    Whole,
    /// To the loader, which is what dnsmasq can do too.
    DhcpAndTftp,
}

/// One machine.
pub(crate) struct Machine {
    number: u32,
    target: Arc<Target>,
    relays: Arc<Relays>,
}

/// Racks of 200 machines: how many.
pub(crate) fn racks(machines: u32) -> u32 {
    machines.div_ceil(PER_RACK)
}

/// The relay's address in a rack; the rack's subnet is its /24.
pub(crate) fn gateway(rack: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 20, 0, 1)) + (rack << 8))
}

pub(crate) fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(gateway(number / PER_RACK)) + 1 + number % PER_RACK)
}

pub(crate) fn mac(number: u32) -> Mac {
    let [_, b, c, d] = number.to_be_bytes();
    Mac::new([0x52, 0x54, 0x00, b, c, d])
}

pub(crate) fn uuid(number: u32) -> uuid::Uuid {
    uuid::Uuid::from_u128(0x5700_0000_0000_4000_8000_0000_0000_0000 + u128::from(number))
}

/// A plan of so many machines.
pub(crate) fn plan(machines: u32) -> anyhow::Result<Plan> {
    ensure!((1..=50_000).contains(&machines), "between 1 and 50000 machines");
    let rack = |rack: u32| {
        json!({
            "name": format!("r{rack}"), "subnet": format!("{}/24", gateway(rack)),
            "gateway": gateway(rack), "routing": { "mode": "bgp", "torAsn": 65001 },
        })
    };
    let machine = |number: u32| {
        let rack = number / PER_RACK;
        json!({
            "name": format!("m{number}"), "rack": format!("r{rack}"), "node": number + 1,
            "role": "worker", "address": address(number), "prefixLen": 24,
            "gateway": gateway(rack), "mac": mac(number), "boot": "bios",
            "podCIDR": format!("{}/24", Ipv4Addr::from(0x0a00_0000 + (number << 8))),
            "asn": 4_200_000_000_u32 + number + 1,
        })
    };
    let numbers = 0..machines;
    let plan = json!({
        "site": "storm",
        "seed": { "address": SEED, "subnet": "127.0.0.0/24", "apiPort": 6443, "httpPort": 8080 },
        "networks": { "pods": "10.0.0.0/8", "services": "172.21.0.0/24" },
        "timings": { "nodeMonitorGracePeriodSeconds": 40, "podEvictionTimeoutSeconds": 60 },
        "racks": (0..racks(machines)).map(rack).collect::<Vec<_>>(),
        "machines": numbers.map(machine).collect::<Vec<_>>(),
    });
    serde_json::from_value(plan).context("the plan of the storm")
}

/// Asks the boot server how many machines reached their agent.
pub(crate) async fn count_agents(target: &Target) -> anyhow::Result<usize> {
    let http = target.http.context("no HTTP")?;
    let answer = wire::get(SEED, http, "/machines", None).await?;
    let view: SiteView = serde_json::from_slice(&answer.body)?;
    let enrolled = view.machines.iter().filter(|machine| machine.phase == Some(Phase::Agent));
    Ok(enrolled.count())
}

impl Machine {
    pub(crate) const fn new(number: u32, target: Arc<Target>, relays: Arc<Relays>) -> Self {
        Self { number, target, relays }
    }

    /// Goes the road; an error is a machine that gave up.
    pub(crate) async fn boot(&self, road: Road) -> anyhow::Result<()> {
        let (address, loader) = self.lease(ROM_CLASS).await.context("DHCP of the firmware")?;
        ensure!(address == self::address(self.number), "leased {address}");
        let len = wire::fetch_tftp(address, self.target.tftp, &loader).await.context("TFTP")?;
        ensure!(len == crate::LOADER_LEN, "loader of {len} bytes");
        if road == Road::DhcpAndTftp {
            return Ok(());
        }
        let http = self.target.http.context("no HTTP")?;
        let (_, url) = self.lease("iPXE").await.context("DHCP of iPXE")?;
        let path = path_of(&url)?;
        let script = wire::get(address, http, path, None).await.context("script")?;
        let script = String::from_utf8(script.body)?;
        for word in ["kernel ", "initrd --name initrd "] {
            let line = script.lines().find_map(|line| line.strip_prefix(word));
            let url = line.and_then(|line| line.split(' ').next()).context("no image in script")?;
            let file = wire::get(address, http, path_of(url)?, None).await.context("kernel")?;
            ensure!(file.len == crate::KERNEL_LEN, "kernel of {} bytes", file.len);
        }
        self.lease("muster-init").await.context("DHCP of init")?;
        let part = wire::get(address, http, "/image/root.img", Some("bytes=1048576-1114111"));
        let part = part.await.context("image")?;
        ensure!(part.status == 206 && part.len == 65_536, "range: {} {}", part.status, part.len);
        for phase in ["verified", "agent"] {
            let report = json!({ "mac": mac(self.number), "phase": phase }).to_string();
            let answer = wire::post(address, http, "/report", &report).await.context("report")?;
            ensure!(answer.status == 204, "report answered {}", answer.status);
        }
        Ok(())
    }

    /// DISCOVER to ACK; the address and the boot file.
    async fn lease(&self, class: &str) -> anyhow::Result<(Ipv4Addr, String)> {
        for patience in PATIENCE_S {
            let patience = Duration::from_secs(patience);
            let discover = self.request(Kind::Discover, class);
            let Some(offer) = self.exchange(discover, Kind::Offer, patience).await? else {
                continue;
            };
            let mut request = self.request(Kind::Request, class);
            request.options.set(option::REQUESTED_ADDRESS, offer.your_address.octets());
            let server = offer.options.get(option::SERVER_IDENTIFIER).context("no server named")?;
            request.options.set(option::SERVER_IDENTIFIER, server);
            let Some(ack) = self.exchange(request, Kind::Ack, patience).await? else {
                continue;
            };
            return Ok((ack.your_address, boot_file(&ack)));
        }
        bail!("no answer in 25 s")
    }

    async fn exchange(
        &self,
        message: Message,
        wanted: Kind,
        patience: Duration,
    ) -> anyhow::Result<Option<Message>> {
        let mut answers = self.relays.send(&message, self.target.dhcp).await?;
        let wait = async {
            while let Some(answer) = answers.recv().await {
                if answer.kind() == Some(Kind::Nak) {
                    bail!("refused");
                }
                if answer.kind() == Some(wanted) {
                    return Ok(Some(answer));
                }
            }
            Ok(None)
        };
        let answer = tokio::time::timeout(patience, wait).await.unwrap_or(Ok(None));
        self.relays.forget(message.transaction);
        answer
    }

    fn request(&self, kind: Kind, class: &str) -> Message {
        let transaction = rotate(self.number, kind, class);
        let mut message = Message::request(kind, mac(self.number), transaction);
        message.relay = gateway(self.number / PER_RACK);
        message.hops = 1;
        if class == "iPXE" {
            message.options.set(option::USER_CLASS, *b"iPXE");
            message.options.set(option::IPXE, [0xb1, 0x05, 1, 0x80, 0x86, 0x10, 0x0e]);
        }
        let vendor = if class == "iPXE" { ROM_CLASS } else { class };
        message.options.set(option::VENDOR_CLASS, vendor.as_bytes());
        message.options.set(option::CLIENT_ARCHITECTURE, [0, 0]);
        message.options.set(option::PARAMETER_LIST, [1, 3, 12, 43, 54, 60, 66, 67]);
        message.options.set(option::MESSAGE_SIZE_MAX, 1472_u16.to_be_bytes());
        let uuid = uuid(self.number);
        message.options.set(option::CLIENT_UUID, [&[0][..], &uuid.to_bytes_le()].concat());
        message
            .options
            .set(option::RELAY_AGENT, format!("\u{1}\u{4}e{:03}", self.number % PER_RACK));
        message
    }
}

/// A transaction number for each exchange of each machine, so that late answers meet nobody.
fn rotate(number: u32, kind: Kind, class: &str) -> u32 {
    let step = match (class, kind) {
        (ROM_CLASS, Kind::Discover) => 0,
        (ROM_CLASS, _) => 1,
        ("iPXE", Kind::Discover) => 2,
        ("iPXE", _) => 3,
        (_, Kind::Discover) => 4,
        _ => 5,
    };
    number * 8 + step
}

fn boot_file(message: &Message) -> String {
    let option = message.options.get(option::BOOT_FILE);
    let bytes = option.unwrap_or(&message.file);
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

fn path_of(url: &str) -> anyhow::Result<&str> {
    let rest = url.strip_prefix("http://").with_context(|| format!("no HTTP address: {url}"))?;
    rest.find('/').and_then(|slash| rest.get(slash..)).context("no path")
}
