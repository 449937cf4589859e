//! Brings up the card that leads to the boot network.
//!
//! Which card that is, is not known to a machine booted from UEFI, so all of them ask for an
//! address and the first that is answered is taken. The lease is not renewed: reservations of
//! planned machines do not end.
//!
//! Spec: RFC 2131 §4.4 (client), RFC 2132 (options).

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use boot::Mac;
use boot::dhcp::{Kind, Message, option};
use kernel::packet::{self, Card};
use layout::cmdline::Arguments;

use crate::console::say;

/// What we call ourselves to DHCP servers, so that they send no boot files.
const VENDOR_CLASS: &str = "muster-init";
/// Servers and relays that boot together with the machine need time.
const DHCP_PATIENCE: Duration = Duration::from_secs(180);
const CARRIER_PATIENCE: Duration = Duration::from_secs(5);
const CARD_PATIENCE: Duration = Duration::from_secs(30);
const ROUND_MIN: Duration = Duration::from_millis(1500);
const ROUND_MAX: Duration = Duration::from_secs(10);
const ACK_PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);
/// Interface MTU. Spec: RFC 2132 §5.1.
const MTU_OPTION: u8 = 26;
const MESSAGE_BYTES_MAX: usize = 1472;
/// Subnet mask, routers, DNS, host name, domain, MTU, lease time, server.
const WANTED: [u8; 8] = [1, 3, 6, 12, 15, 26, 51, 54];

/// The configured boot network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) interface: String,
    pub(crate) mac: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix_len: u8,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) name: Option<String>,
    pub(crate) resolvers: Vec<Ipv4Addr>,
    pub(crate) domain: Option<String>,
    pub(crate) mtu_bytes: Option<u16>,
}

/// Finds the boot card, gives it its address and the way out.
pub(crate) fn apply(arguments: &Arguments) -> Result<Network> {
    packet::bring_up("lo")?;
    let mut cards = await_cards(arguments.mac.as_deref())?;
    // A card that lacks its firmware must not keep a machine from booting by another.
    cards.retain(|card| match packet::bring_up(&card.name) {
        Ok(()) => true,
        Err(err) => {
            say(&format!("{} is left out: {:#}", card.name, anyhow::Error::new(err)));
            false
        }
    });
    ensure!(!cards.is_empty(), "no network card can be switched on");
    await_carrier(&cards);
    let mut network = match &arguments.address {
        Some(fixed) => {
            let card = cards
                .iter()
                .find(|card| packet::has_carrier(&card.name))
                .context("no network card has a link")?;
            Network {
                interface: card.name.clone(),
                mac: render_mac(card.mac),
                address: fixed.address,
                prefix_len: fixed.prefix_len,
                gateway: fixed.gateway,
                name: None,
                resolvers: Vec::new(),
                domain: None,
                mtu_bytes: None,
            }
        }
        None => ask(&cards)?,
    };
    if let Some(name) = &arguments.name {
        network.name = Some(name.clone());
    }
    packet::set_address(&network.interface, network.address, network.prefix_len)?;
    if let Some(mtu_bytes) = network.mtu_bytes {
        packet::set_mtu(&network.interface, mtu_bytes)?;
    }
    if let Some(gateway) = network.gateway {
        packet::set_default_route(&network.interface, gateway)?;
    }
    Ok(network)
}

/// Renders a hardware address as people write it.
pub(crate) fn render_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn await_cards(only: Option<&str>) -> Result<Vec<Card>> {
    let since = Instant::now();
    loop {
        let mut cards = packet::list_cards()?;
        if let Some(mac) = only {
            cards.retain(|card| render_mac(card.mac) == mac);
        }
        if !cards.is_empty() {
            return Ok(cards);
        }
        if since.elapsed() > CARD_PATIENCE {
            bail!("no network card that a driver of ours knows");
        }
        thread::sleep(PAUSE);
    }
}

fn await_carrier(cards: &[Card]) {
    let since = Instant::now();
    while since.elapsed() < CARRIER_PATIENCE {
        if cards.iter().any(|card| packet::has_carrier(&card.name)) {
            return;
        }
        thread::sleep(PAUSE);
    }
}

/// One card's side of the conversation.
struct Client<'a> {
    card: &'a Card,
    socket: UdpSocket,
}

fn ask(cards: &[Card]) -> Result<Network> {
    let mut clients = Vec::new();
    for card in cards {
        clients.push(Client { card, socket: packet::open_dhcp_socket(&card.name, PAUSE)? });
    }
    let since = Instant::now();
    let mut round = ROUND_MIN;
    let mut transaction = seed(cards);
    while since.elapsed() < DHCP_PATIENCE {
        transaction = transaction.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        for client in &clients {
            client.send(&client.discover(transaction, since.elapsed()));
        }
        let until = Instant::now() + round + jitter(transaction, round);
        while let Some((client, offer)) = next(&clients, until, transaction, Kind::Offer) {
            if let Some(network) = client.take(&offer, since.elapsed())? {
                return Ok(network);
            }
        }
        say("no DHCP answer yet");
        round = (round * 2).min(ROUND_MAX);
    }
    bail!("no DHCP server answered for {} s", DHCP_PATIENCE.as_secs())
}

/// Waits on all cards for a message of this exchange.
fn next<'a, 'b>(
    clients: &'a [Client<'b>],
    until: Instant,
    transaction: u32,
    kind: Kind,
) -> Option<(&'a Client<'b>, Message)> {
    while Instant::now() < until {
        for client in clients {
            if let Some(message) = client.receive(transaction)
                && message.kind() == Some(kind)
            {
                return Some((client, message));
            }
        }
    }
    None
}

impl Client<'_> {
    fn discover(&self, transaction: u32, elapsed: Duration) -> Message {
        self.message(Kind::Discover, transaction, elapsed)
    }

    fn message(&self, kind: Kind, transaction: u32, elapsed: Duration) -> Message {
        let mut message = Message::request(kind, Mac::new(self.card.mac), transaction);
        message.set_broadcast();
        message.seconds = u16::try_from(elapsed.as_secs()).unwrap_or(u16::MAX);
        message.options.set(option::VENDOR_CLASS, VENDOR_CLASS.as_bytes());
        message.options.set(option::PARAMETER_LIST, WANTED);
        message
    }

    fn send(&self, message: &Message) {
        // A card whose link is still down refuses; the next round tries again.
        if let Ok(bytes) = message.encode(MESSAGE_BYTES_MAX) {
            drop(self.socket.send_to(&bytes, (Ipv4Addr::BROADCAST, 67)));
        }
    }

    fn receive(&self, transaction: u32) -> Option<Message> {
        let mut bytes = [0; 2048];
        let (len, _) = self.socket.recv_from(&mut bytes).ok()?;
        let message = Message::decode(bytes.get(..len)?).ok()?;
        let ours = message.transaction == transaction
            && message.mac().is_some_and(|mac| mac == Mac::new(self.card.mac));
        ours.then_some(message)
    }

    /// Asks for the offered address; `None` when the server does not stand by it.
    fn take(&self, offer: &Message, elapsed: Duration) -> Result<Option<Network>> {
        let mut request = self.message(Kind::Request, offer.transaction, elapsed);
        request.options.set(option::REQUESTED_ADDRESS, offer.your_address.octets());
        if let Some(server) = offer.options.get(option::SERVER_IDENTIFIER) {
            request.options.set(option::SERVER_IDENTIFIER, server);
        }
        for _ in 0..2 {
            self.send(&request);
            let until = Instant::now() + ACK_PATIENCE;
            while Instant::now() < until {
                let Some(answer) = self.receive(offer.transaction) else { continue };
                match answer.kind() {
                    Some(Kind::Ack) => return self.network(&answer).map(Some),
                    Some(Kind::Nak) => return Ok(None),
                    _ => (),
                }
            }
        }
        Ok(None)
    }

    fn network(&self, ack: &Message) -> Result<Network> {
        let text = |code| {
            let bytes = ack.options.get(code)?;
            let text = String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
            (!text.is_empty()).then_some(text)
        };
        let mask = ack.options.address(option::SUBNET_MASK).context("the lease has no netmask")?;
        let ones = mask.to_bits().leading_ones();
        ensure!(ones == mask.to_bits().count_ones(), "{mask} is no netmask");
        let resolvers = ack.options.get(option::NAME_SERVER).unwrap_or_default().chunks_exact(4);
        let gateway = ack.options.get(option::ROUTER).and_then(|list| list.first_chunk::<4>());
        Ok(Network {
            interface: self.card.name.clone(),
            mac: render_mac(self.card.mac),
            address: ack.your_address,
            prefix_len: u8::try_from(ones)?,
            gateway: gateway.map(|octets| Ipv4Addr::from(*octets)),
            name: text(option::HOST_NAME).filter(|name| is_host_name(name)),
            resolvers: resolvers
                .filter_map(|part| Some(Ipv4Addr::from(*part.first_chunk::<4>()?)))
                .collect(),
            domain: text(option::DOMAIN_NAME).filter(|name| is_host_name(name)),
            mtu_bytes: mtu(ack.options.get(MTU_OPTION)),
        })
    }
}

/// These words go into files of the node, so nothing but names may pass.
fn is_host_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    name.len() <= 253 && name.bytes().all(good)
}

fn mtu(bytes: Option<&[u8]>) -> Option<u16> {
    let value = u16::from_be_bytes(*bytes?.first_chunk::<2>()?);
    (576..=9216).contains(&value).then_some(value)
}

/// Machines of one rack are powered on together; their hardware addresses keep them apart.
fn seed(cards: &[Card]) -> u32 {
    let now = u32::try_from(nix::unistd::getpid().as_raw()).unwrap_or_default();
    let bytes = cards.iter().flat_map(|card| card.mac);
    bytes.fold(0x811c_9dc5 ^ now, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Up to a quarter of the round.
fn jitter(number: u32, round: Duration) -> Duration {
    (round / 4).mul_f64(f64::from(number >> 16) / 65536.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_pass_as_names() {
        for (name, good) in [("a-worker", true), ("n1.rack", true), ("a b", false), ("x\ny", false)]
        {
            assert_eq!(is_host_name(name), good, "{name:?}");
        }
    }

    #[test]
    fn an_odd_mtu_is_ignored() {
        assert_eq!(mtu(Some(&[0x05, 0xdc])), Some(1500));
        assert_eq!(mtu(Some(&[0, 1])), None);
        assert_eq!(mtu(Some(&[1])), None);
        assert_eq!(mtu(None), None);
    }
}
