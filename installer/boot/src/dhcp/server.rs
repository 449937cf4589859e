//! The DHCP side of [`Site`]: from a request to an answer.
//!
//! Authoritative in the subnets of the plan's racks, silent everywhere else. Machines of the plan
//! get the plan's address for ever, so that a node need not renew; all others get a short lease.
//! Without a relay, answers are broadcast unless the client has an address: unicast to a host
//! that cannot answer ARP needs a raw socket, and every client takes a broadcast (RFC 2131 §4.1).
//!
//! Spec: RFC 2131 §4, RFC 3046, RFC 3527, RFC 5107, RFC 6842, RFC 4578; UEFI 2.10 §24.3.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::{Kind, Message, Operation, client, option};
use crate::cause::Activity;
use crate::lease::Lease;
use crate::record::{Outcome, Record, Reply};
use crate::request::printable;
use crate::script::Source;
use crate::site::{Arrival, Sighting, Site};
use crate::{Firmware, Mac, Moment, Phase, Standing};

/// Lease of a machine that is not in the plan.
pub(crate) const POOL_LEASE: Duration = Duration::from_secs(600);
const FOR_EVER: u32 = u32::MAX;
/// A client that says nothing takes this much (RFC 2131 §2); its headers are not ours to fill.
const MESSAGE_SIZE_DEFAULT: u16 = 576;
/// What fits an Ethernet frame.
const MESSAGE_SIZE_MAX: u16 = 1500;
const IP_AND_UDP_HEADERS: u16 = 28;
/// Discovery control, one byte, 8: take the file name of this very answer and look no further.
const PXE_NO_DISCOVERY: [u8; 4] = [6, 1, 8, 255];
/// iPXE's own option 176 in option 175, one byte, 1: do not wait for a proxy.
const IPXE_NO_PROXY: [u8; 3] = [176, 1, 1];
/// What an answer can do without, when it is too long.
const DISPENSABLE: [u8; 4] =
    [option::CLIENT_UUID, option::RENEWAL_TIME, option::REBINDING_TIME, option::CLIENT_IDENTIFIER];

/// One request, with what follows from it at once.
struct Call<'a> {
    now: Moment,
    arrival: Arrival,
    message: &'a Message,
    mac: Mac,
    firmware: Firmware,
    /// Index into `Site::subnets`.
    subnet: usize,
    /// Our name in option 54.
    server: Ipv4Addr,
}

/// An address and for how long.
#[derive(Clone, Copy)]
struct Binding {
    address: Ipv4Addr,
    expires: Option<Moment>,
}

impl Site {
    /// Takes one packet of UDP port 67 or 68. A packet that cannot be read is counted, no more.
    pub fn dhcp(&mut self, now: Moment, bytes: &[u8], arrival: Arrival) -> Outcome {
        let mut outcome = Outcome::default();
        let Ok(message) = Message::decode(bytes) else {
            self.counters.malformed += 1;
            return outcome;
        };
        let (Some(kind), Some(mac)) = (message.kind(), message.mac()) else {
            self.counters.malformed += 1;
            return outcome;
        };
        self.counters.packets += 1;
        let subnet = self.subnet_of(&message, arrival);
        if message.operation == Operation::Reply {
            self.overhear(now, &message, mac, subnet, &mut outcome);
            return outcome;
        }
        let Some(subnet) = subnet else {
            self.counters.outside += 1;
            return outcome;
        };
        if message.options.get(option::VENDOR_CLASS) == Some(client::PROBE_CLASS) {
            return outcome;
        }
        let relayed_as = client::relay_address(&message, option::relay::SERVER_OVERRIDE);
        let call = Call {
            now,
            arrival,
            message: &message,
            mac,
            firmware: client::firmware(&message),
            subnet,
            server: relayed_as.unwrap_or(self.plan.seed.address),
        };
        let sighting = Sighting {
            uuid: client::uuid(&message),
            serial: None,
            subnet: Some(subnet),
            firmware: Some(call.firmware),
            circuit: client::relay_data(&message, option::relay::CIRCUIT).map(circuit_name),
        };
        self.meet(now, mac, sighting, &mut outcome);
        match kind {
            Kind::Discover => self.discover(&call, &mut outcome),
            Kind::Request => self.request(&call, &mut outcome),
            Kind::Decline => self.decline(&call, &mut outcome),
            Kind::Release => self.release(&call, &mut outcome),
            Kind::Inform => self.inform(&call, &mut outcome),
            Kind::Offer | Kind::Ack | Kind::Nak => {}
        }
        outcome
    }

    /// The subnet a client stands in: as its relay says, else by its own address, else that of
    /// the segment it was heard on. `None` for subnets that are not ours to serve.
    fn subnet_of(&self, message: &Message, arrival: Arrival) -> Option<usize> {
        let link = client::relay_address(message, option::relay::LINK);
        let relay = Some(message.relay).filter(|relay| !relay.is_unspecified());
        let own = Some(message.client_address).filter(|own| !own.is_unspecified());
        let of = |address: Ipv4Addr| {
            self.subnets.iter().position(|subnet| subnet.net.contains(&address))
        };
        match (link.or(relay).or(own), arrival.segment) {
            (Some(address), _) => of(address),
            (None, Some(segment)) => self.subnets.iter().position(|subnet| subnet.net == segment),
            (None, None) => None,
        }
    }

    fn discover(&mut self, call: &Call<'_>, outcome: &mut Outcome) {
        self.wake(call, outcome);
        let wanted = call.message.options.address(option::REQUESTED_ADDRESS);
        let Some(binding) = self.binding(call, wanted) else {
            self.counters.exhausted += 1;
            return;
        };
        let offer = self.answer(call, Kind::Offer, Some(binding));
        self.send(call, offer, outcome);
        self.note(call.now, call.mac, Activity::Offered);
        self.reach(call.now, call.mac, Phase::Dhcp, outcome);
    }

    /// Begins a new boot when firmware starts over, or our init runs without our loader.
    fn wake(&mut self, call: &Call<'_>, outcome: &mut Outcome) {
        let Some(machine) = self.machine(call.mac) else {
            return;
        };
        let reached = machine.phase().map(|(phase, _)| phase);
        let again = match call.firmware {
            Firmware::PxeBios | Firmware::PxeEfi | Firmware::HttpEfi => {
                reached >= Some(Phase::Loader)
            }
            Firmware::Ipxe => reached >= Some(Phase::Kernel),
            Firmware::Init => reached >= Some(Phase::Verified),
            Firmware::Unsupported { .. } | Firmware::Other => false,
        };
        if again {
            self.keep(Record::Boot { at: call.now, mac: call.mac }, outcome);
        }
    }

    fn request(&mut self, call: &Call<'_>, outcome: &mut Outcome) {
        let options = &call.message.options;
        let chosen = options.address(option::SERVER_IDENTIFIER);
        if let Some(other) = chosen.filter(|chosen| *chosen != call.server) {
            self.leases.withdraw(call.mac);
            self.meet_rival(call.now, other, Some(call.subnet), Some(call.mac), outcome);
            return;
        }
        let own = Some(call.message.client_address).filter(|own| !own.is_unspecified());
        let Some(wanted) = options.address(option::REQUESTED_ADDRESS).or(own) else {
            return;
        };
        match self.binding(call, Some(wanted)).filter(|binding| binding.address == wanted) {
            Some(binding) => self.acknowledge(call, binding, outcome),
            None => self.refuse(call, wanted, outcome),
        }
    }

    fn acknowledge(&mut self, call: &Call<'_>, binding: Binding, outcome: &mut Outcome) {
        let Binding { address, expires } = binding;
        let lease = Lease { mac: call.mac, expires };
        if self.leases.of(call.mac) != Some((address, lease)) {
            let record = Record::Lease { at: call.now, mac: call.mac, address, expires };
            self.keep(record, outcome);
        }
        let mut ack = self.answer(call, Kind::Ack, Some(binding));
        ack.client_address = call.message.client_address;
        self.send(call, ack, outcome);
        if call.firmware == Firmware::Init {
            // A UKI may come from elsewhere; that init speaks proves that a kernel runs.
            self.reach(call.now, call.mac, Phase::Kernel, outcome);
        } else {
            self.reach(call.now, call.mac, Phase::Dhcp, outcome);
        }
        self.note(call.now, call.mac, Activity::Acknowledged);
    }

    fn refuse(&mut self, call: &Call<'_>, wanted: Ipv4Addr, outcome: &mut Outcome) {
        let mut nak = call.message.reply(Kind::Nak);
        nak.options.set(option::SERVER_IDENTIFIER, call.server.octets());
        nak.options.set(option::MESSAGE, format!("{wanted} is not yours").into_bytes());
        echo(call.message, &mut nak, option::CLIENT_IDENTIFIER);
        // The client may have a wrong address: only a broadcast is sure to reach it.
        nak.set_broadcast();
        self.send(call, nak, outcome);
        self.note(call.now, call.mac, Activity::Refused);
    }

    fn decline(&mut self, call: &Call<'_>, outcome: &mut Outcome) {
        let options = &call.message.options;
        let ours = options.address(option::SERVER_IDENTIFIER) == Some(call.server);
        let Some(address) = options.address(option::REQUESTED_ADDRESS).filter(|_| ours) else {
            return;
        };
        // Only who holds an address may spoil it.
        let held = self.leases.of(call.mac).is_some_and(|(held, _)| held == address);
        if held {
            self.keep(Record::Decline { at: call.now, mac: call.mac, address }, outcome);
            self.note(call.now, call.mac, Activity::Declined(address));
        }
    }

    fn release(&mut self, call: &Call<'_>, outcome: &mut Outcome) {
        let address = call.message.client_address;
        if self.leases.of(call.mac).is_some_and(|(held, _)| held == address) {
            self.keep(Record::Release { at: call.now, mac: call.mac, address }, outcome);
        }
    }

    fn inform(&mut self, call: &Call<'_>, outcome: &mut Outcome) {
        if call.message.client_address.is_unspecified() {
            return;
        }
        let mut ack = self.answer(call, Kind::Ack, None);
        ack.client_address = call.message.client_address;
        self.send(call, ack, outcome);
    }

    /// Notes who else answers machines; our own answers, which a segment echoes, are no news.
    fn overhear(
        &mut self,
        now: Moment,
        message: &Message,
        mac: Mac,
        subnet: Option<usize>,
        outcome: &mut Outcome,
    ) {
        let Some(server) = message.options.address(option::SERVER_IDENTIFIER) else {
            return;
        };
        if server != self.plan.seed.address && subnet.is_some() {
            let known = self.machine(mac).map(|machine| machine.mac);
            self.meet_rival(now, server, subnet, known, outcome);
        }
    }

    /// The address a client gets: the plan's for a MAC of the plan in its rack, one of the pool
    /// for all others. Quarantine changes nothing here: a machine that was offered its address
    /// and is then refused it, because a twin showed up in between, gives up for good.
    fn binding(&mut self, call: &Call<'_>, wanted: Option<Ipv4Addr>) -> Option<Binding> {
        let Call { now, mac, .. } = *call;
        let subnet = self.subnets.get(call.subnet)?;
        let planned = self.planned(mac).map(|planned| planned.address);
        if let Some(address) = planned.filter(|address| subnet.net.contains(address)) {
            let usable = !self.leases.is_declined(address, now);
            return usable.then_some(Binding { address, expires: None });
        }
        let address = self.leases.pick(subnet, mac, wanted, now)?;
        Some(Binding { address, expires: Some(now.plus(POOL_LEASE)) })
    }

    fn answer(&self, call: &Call<'_>, kind: Kind, binding: Option<Binding>) -> Message {
        let mut answer = call.message.reply(kind);
        answer.options.set(option::SERVER_IDENTIFIER, call.server.octets());
        if let Some(binding) = binding {
            answer.your_address = binding.address;
            set_times(&mut answer, call.now, binding.expires);
        }
        if let Some(subnet) = self.subnets.get(call.subnet) {
            answer.options.set(option::SUBNET_MASK, subnet.net.netmask().octets());
            answer.options.set(option::ROUTER, subnet.gateway.octets());
        }
        if let Some(planned) = self.planned(call.mac)
            && self.standing(call.mac, call.now) == Standing::Planned
        {
            answer.options.set(option::HOST_NAME, planned.name.as_bytes());
        }
        self.set_boot(call, &mut answer);
        echo(call.message, &mut answer, option::CLIENT_IDENTIFIER);
        answer
    }

    /// What the client boots next, and how it must be told.
    fn set_boot(&self, call: &Call<'_>, answer: &mut Message) {
        let seed = self.plan.seed.address;
        let may_boot = self.standing(call.mac, call.now) == Standing::Planned;
        let (class, file): (&[u8], String) = match call.firmware {
            Firmware::PxeBios => (b"PXEClient", "undionly.kpxe".to_owned()),
            Firmware::PxeEfi => (b"PXEClient", "snponly.efi".to_owned()),
            Firmware::HttpEfi if may_boot => (b"HTTPClient", format!("{}/uki.efi", self.http)),
            Firmware::HttpEfi => (b"HTTPClient", format!("{}/loader/snponly.efi", self.http)),
            Firmware::Ipxe => {
                let source = Source {
                    http: &self.http,
                    command_line: &self.settings.command_line,
                    pause: self.settings.hold_pause,
                };
                answer.options.set(option::IPXE, IPXE_NO_PROXY);
                (b"", source.script_url(call.mac))
            }
            Firmware::Init | Firmware::Unsupported { .. } | Firmware::Other => return,
        };
        if !class.is_empty() {
            answer.options.set(option::VENDOR_CLASS, class);
        }
        if class == b"PXEClient" {
            answer.next_server = seed;
            answer.options.set(option::TFTP_SERVER_NAME, seed.to_string().into_bytes());
            answer.options.set(option::VENDOR_SPECIFIC, PXE_NO_DISCOVERY);
        }
        // Old ROMs read the fixed field alone, iPXE and UEFI the option first.
        answer.set_file(&file);
        answer.options.set(option::BOOT_FILE, file.into_bytes());
        echo(call.message, answer, option::CLIENT_UUID);
    }

    fn send(&mut self, call: &Call<'_>, mut answer: Message, outcome: &mut Outcome) {
        // Relays cut the option off at the end; it stands last (RFC 3046 §2.1).
        echo(call.message, &mut answer, option::RELAY_AGENT);
        let limit = size_limit(call.message);
        let mut encoded = answer.encode(limit);
        for code in DISPENSABLE {
            if encoded.is_err() {
                answer.options.remove(code);
                encoded = answer.encode(limit);
            }
        }
        let Ok(bytes) = encoded else {
            self.counters.too_long += 1;
            return;
        };
        let to = self.destination(&answer);
        outcome.reply(Reply { bytes, to, socket: call.arrival.socket });
    }

    fn destination(&self, answer: &Message) -> SocketAddrV4 {
        if !answer.relay.is_unspecified() {
            return SocketAddrV4::new(answer.relay, self.settings.relay_port);
        }
        let unicast = !answer.client_address.is_unspecified() && answer.kind() == Some(Kind::Ack);
        let address = if unicast { answer.client_address } else { Ipv4Addr::BROADCAST };
        SocketAddrV4::new(address, self.settings.client_port)
    }
}

fn set_times(answer: &mut Message, now: Moment, expires: Option<Moment>) {
    let seconds = expires.map_or(FOR_EVER, |expires| {
        u32::try_from(expires.since(now).as_secs()).unwrap_or(FOR_EVER - 1)
    });
    answer.options.set(option::LEASE_TIME, seconds.to_be_bytes());
    if seconds != FOR_EVER {
        answer.options.set(option::RENEWAL_TIME, (seconds / 2).to_be_bytes());
        answer.options.set(option::REBINDING_TIME, (seconds / 8 * 7).to_be_bytes());
    }
}

fn echo(from: &Message, to: &mut Message, code: u8) {
    if let Some(bytes) = from.options.get(code) {
        to.options.set(code, bytes);
    }
}

/// How long an answer may be, without IP and UDP headers.
fn size_limit(message: &Message) -> usize {
    let told = match message.options.get(option::MESSAGE_SIZE_MAX) {
        Some([high, low]) => u16::from_be_bytes([*high, *low]),
        _ => MESSAGE_SIZE_DEFAULT,
    };
    usize::from(told.clamp(MESSAGE_SIZE_DEFAULT, MESSAGE_SIZE_MAX) - IP_AND_UDP_HEADERS)
}

/// A circuit identifier as people read it: text when it is text, else hexadecimal.
fn circuit_name(bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).ok();
    match text.filter(|text| text.chars().all(|c| c.is_ascii_graphic() || c == ' ')) {
        Some(text) => printable(text, 64),
        None => bytes.iter().take(32).map(|byte| format!("{byte:02x}")).collect(),
    }
}
