//! The whole of the boot server's thinking: one value that is fed and asked.
//!
//! State is of two kinds. What must last changes only by [`Record`]s in [`Site::apply`], so the
//! journal of an earlier run gives it back. What may be lost (open offers, the last packet of a
//! machine) is set in place.

mod state;

use state::Rival;
pub(crate) use state::Sighting;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use cluster::plan::Plan;
use ipnet::Ipv4Net;

use crate::cause::{Activity, cause};
use crate::lease::{Lease, Leases, Subnet};
use crate::machine::Machine;
use crate::request::printable;
use crate::script::{Source, is_safe_command_line};
use crate::view::{Evidence, MachineView, Mark, RivalView, SiteView};
use crate::{
    Firmware, Mac, MacError, Moment, Outcome, Phase, Query, Record, Report, ReportedPhase, Standing,
};

/// A power-on that is told within this after the first packet belongs to it.
const POWER_LATE: Duration = Duration::from_secs(20);
/// Times of Node conditions have whole seconds.
const HEARTBEAT_GRAIN: Duration = Duration::from_secs(1);

/// How the server behaves beside what the plan says.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Port of our HTTP side, as machines reach it.
    pub http_port: u16,
    /// What the kernel is told when iPXE starts it.
    pub command_line: String,
    /// Port of relays and servers: 67, except in tests without root.
    pub relay_port: u16,
    /// Port of clients: 68, except in tests without root.
    pub client_port: u16,
    /// Pause between two questions of a held machine.
    pub hold_pause: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            http_port: 8080,
            command_line: String::new(),
            relay_port: 67,
            client_port: 68,
            hold_pause: Duration::from_secs(10),
        }
    }
}

/// A plan or settings that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// A machine's MAC address is none.
    #[error("machine {name} has a bad mac")]
    Mac {
        /// The machine.
        name: String,
        /// Why.
        #[source]
        source: MacError,
    },
    /// Two machines share a MAC address.
    #[error("machines {first} and {second} have the same mac {mac}")]
    SameMac {
        /// The address.
        mac: Mac,
        /// The first machine.
        first: String,
        /// The second machine.
        second: String,
    },
    /// The kernel command line would be changed by iPXE.
    #[error("kernel command line holds quotes, ${{}}, #, && or the like, which iPXE would read")]
    CommandLine,
}

/// How a packet came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The caller's number for the socket; replies carry it.
    pub socket: usize,
    /// The subnet of the interface that a broadcast came in by; `None` for a socket that hears
    /// unicast alone.
    pub segment: Option<Ipv4Net>,
}

/// What was asked for by TFTP or HTTP, and how that went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetch {
    /// A first loader was asked for.
    Loader,
    /// A first loader was sent whole.
    LoaderSent,
    /// The transfer of a first loader broke.
    LoaderBroken(String),
    /// The kernel was asked for.
    Kernel,
    /// The initramfs was asked for.
    Initrd,
    /// UEFI asked for the size of the UKI: its own loader works.
    UkiSize,
    /// The UKI was asked for.
    Uki,
    /// The root image was asked for.
    Image,
}

/// Whether a fetch may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Serve it.
    Serve,
    /// Refuse it: the machine may not have an image.
    Refuse,
}

/// Why a report is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReportRefused {
    /// Nothing was ever heard of this machine.
    #[error("machine {mac} is unknown")]
    Unknown {
        /// Its boot NIC.
        mac: Mac,
    },
    /// It comes from the address of another machine.
    #[error("machine {owner} reports for machine {mac}")]
    Foreign {
        /// Whom it is about.
        mac: Mac,
        /// Who holds the address it came from.
        owner: Mac,
    },
}

/// What went by, for telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// DHCP packets that could be read.
    pub packets: u64,
    /// DHCP packets that could not.
    pub malformed: u64,
    /// DHCP packets from outside the plan's subnets.
    pub outside: u64,
    /// Requests for which no address was left.
    pub exhausted: u64,
    /// Answers that did not fit the client's limit.
    pub too_long: u64,
}

/// The boot server's state. See the crate's header.
#[derive(Debug)]
pub struct Site {
    pub(crate) settings: Settings,
    pub(crate) plan: Plan,
    pub(crate) http: String,
    pub(crate) subnets: Vec<Subnet>,
    pub(crate) leases: Leases,
    pub(crate) counters: Counters,
    machines: BTreeMap<Mac, Machine>,
    discovered_count: usize,
    planned_addresses: BTreeMap<Ipv4Addr, Mac>,
    planned_names: BTreeMap<String, Mac>,
    twins: BTreeMap<u128, BTreeSet<Mac>>,
    rivals: BTreeMap<Ipv4Addr, Rival>,
}

impl Site {
    /// Makes the state from a plan and the records of earlier runs, oldest first.
    ///
    /// # Errors
    /// When the plan or the settings cannot be served; retrying is of no use.
    pub fn new(
        settings: Settings,
        plan: Plan,
        records: impl IntoIterator<Item = Record>,
    ) -> Result<Self, SiteError> {
        if !is_safe_command_line(&settings.command_line) {
            return Err(SiteError::CommandLine);
        }
        let mut site = Self {
            http: format!("http://{}:{}", plan.seed.address, settings.http_port),
            subnets: subnets(&plan),
            settings,
            plan,
            leases: Leases::default(),
            counters: Counters::default(),
            machines: BTreeMap::new(),
            discovered_count: 0,
            planned_addresses: BTreeMap::new(),
            planned_names: BTreeMap::new(),
            twins: BTreeMap::new(),
            rivals: BTreeMap::new(),
        };
        site.take_plan()?;
        records.into_iter().for_each(|record| site.apply(&record));
        Ok(site)
    }

    /// Tells what went by so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Tells the subnets in which machines are answered.
    pub fn segments(&self) -> impl Iterator<Item = Ipv4Net> {
        self.subnets.iter().map(|subnet| subnet.net)
    }

    /// Answers `GET /boot.ipxe`: the script of one machine.
    pub fn script(&mut self, now: Moment, query: &Query) -> (Outcome, String) {
        let mut outcome = Outcome::default();
        let seen = Sighting {
            uuid: query.uuid,
            serial: query.serial.clone(),
            firmware: Some(Firmware::Ipxe),
            ..Sighting::default()
        };
        self.meet(now, query.mac, seen, &mut outcome);
        self.reach(now, query.mac, Phase::Loader, &mut outcome);
        self.note(now, query.mac, Activity::ScriptSent);
        self.keep_lease(now, query.mac, &mut outcome);
        let source = Source {
            http: &self.http,
            command_line: &self.settings.command_line,
            pause: self.settings.hold_pause,
        };
        let script = match (self.standing(query.mac, now), self.planned(query.mac)) {
            (Standing::Planned, Some(machine)) => source.render_boot(&machine.name, query.mac),
            (Standing::Quarantined(reason), _) => source.render_hold(&reason, query.mac),
            _ => source.render_hold("it is not in the plan", query.mac),
        };
        (outcome, script)
    }

    /// Notes a fetch by TFTP or HTTP and says whether it may go on. Machines are known by the
    /// address that was leased to them; anyone else may fetch without being noted.
    pub fn fetched(&mut self, now: Moment, peer: Ipv4Addr, fetch: Fetch) -> (Outcome, Verdict) {
        let mut outcome = Outcome::default();
        let Some(mac) = self.holder(peer, now) else {
            return (outcome, Verdict::Serve);
        };
        let open = matches!(fetch, Fetch::Loader | Fetch::LoaderSent | Fetch::LoaderBroken(_));
        if !open && self.standing(mac, now) != Standing::Planned {
            return (outcome, Verdict::Refuse);
        }
        let (phase, activity) = match fetch {
            Fetch::Loader => (Phase::Loader, Activity::LoaderAsked),
            Fetch::LoaderSent => (Phase::Loader, Activity::LoaderSent),
            Fetch::LoaderBroken(why) => (Phase::Loader, Activity::LoaderBroken(why)),
            Fetch::UkiSize => (Phase::Loader, Activity::LoaderAsked),
            Fetch::Kernel | Fetch::Uki => (Phase::Kernel, Activity::KernelAsked),
            Fetch::Initrd => (Phase::Kernel, Activity::InitrdAsked),
            Fetch::Image => (Phase::Image, Activity::ImageAsked),
        };
        if phase == Phase::Kernel {
            // UEFI that asks for the UKI without asking for its size first.
            self.reach(now, mac, Phase::Loader, &mut outcome);
        }
        self.reach(now, mac, phase, &mut outcome);
        self.note(now, mac, activity);
        (outcome, Verdict::Serve)
    }

    /// Takes a report. `peer` is the address it came from.
    ///
    /// # Errors
    /// When the machine is unknown, or another machine reports for it.
    pub fn report(
        &mut self,
        now: Moment,
        peer: Ipv4Addr,
        report: &Report,
    ) -> Result<Outcome, ReportRefused> {
        let mac = report.mac;
        if let Some(owner) = self.holder(peer, now).filter(|owner| *owner != mac) {
            return Err(ReportRefused::Foreign { mac, owner });
        }
        let machine = self.machines.get(&mac).ok_or(ReportRefused::Unknown { mac })?;
        let first_packet = machine.marks.first().copied();
        let mut outcome = Outcome::default();
        match report.phase {
            ReportedPhase::Power => match first_packet {
                Some((Phase::Dhcp, at)) if now.since(at) < POWER_LATE => {
                    self.keep(Record::Phase { at, mac, phase: Phase::Power }, &mut outcome);
                }
                _ => {
                    self.keep(Record::Boot { at: now, mac }, &mut outcome);
                    self.reach(now, mac, Phase::Power, &mut outcome);
                }
            },
            ReportedPhase::Verified => self.reach(now, mac, Phase::Verified, &mut outcome),
            ReportedPhase::Agent => self.reach(now, mac, Phase::Agent, &mut outcome),
            ReportedPhase::Failed => {
                let detail = printable(&report.detail, 500);
                self.keep(Record::Failed { at: now, mac, detail }, &mut outcome);
            }
        }
        if report.uuid.is_some() {
            self.meet(
                now,
                mac,
                Sighting { uuid: report.uuid, ..Sighting::default() },
                &mut outcome,
            );
        }
        Ok(outcome)
    }

    /// Takes that a node was seen Ready through the API, with the time of its last heartbeat.
    ///
    /// A heartbeat older than the agent of this boot is the node's former life and is ignored. As
    /// the node's clock may be wrong, one that moves counts too, whatever it says.
    pub fn ready(&mut self, now: Moment, node: &str, heartbeat: Moment) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(mac) = self.planned_names.get(node).copied() else {
            return outcome;
        };
        let Some(machine) = self.machines.get_mut(&mac) else {
            return outcome;
        };
        let before = machine.heartbeat.replace(heartbeat);
        let agent = machine.marks.iter().find(|(phase, _)| *phase == Phase::Agent);
        let is_alive = agent.is_some_and(|(_, at)| {
            heartbeat.plus(HEARTBEAT_GRAIN) >= *at || before.is_some_and(|it| it != heartbeat)
        });
        if is_alive {
            self.reach(now, mac, Phase::Ready, &mut outcome);
        }
        outcome
    }

    /// Notes another DHCP server that was found by a probe of our own.
    pub fn rival(&mut self, now: Moment, server: Ipv4Addr, segment: Option<Ipv4Net>) -> Outcome {
        let mut outcome = Outcome::default();
        let subnet = self.subnets.iter().position(|subnet| Some(subnet.net) == segment);
        self.meet_rival(now, server, subnet, None, &mut outcome);
        outcome
    }

    /// Tells everything there is to show.
    #[must_use]
    pub fn view(&self, now: Moment) -> SiteView {
        let planned = self.planned_macs().filter_map(|mac| self.machines.get(&mac));
        let others = self.machines.values().filter(|machine| machine.planned.is_none());
        let rivals = self.rivals.iter().map(|(server, rival)| RivalView {
            server: *server,
            at: rival.at,
            rack: rival.rack.clone(),
            mac: rival.mac,
        });
        SiteView {
            at: now,
            machines: planned
                .chain(others)
                .map(|machine| self.machine_view(machine, now))
                .collect(),
            rivals: rivals.collect(),
        }
    }

    /// Tells the shortest list of records that gives this state: the journal, cleaned up.
    #[must_use]
    pub fn snapshot(&self, now: Moment) -> Vec<Record> {
        let mut records = Vec::new();
        for machine in self.machines.values() {
            records.extend(self.machine_records(machine));
        }
        for (address, lease) in self.leases.iter() {
            let Lease { mac, expires } = lease;
            records.push(Record::Lease { at: now, mac, address, expires });
        }
        for (address, mac, at) in self.leases.declined() {
            records.push(Record::Decline { at, mac, address });
        }
        for (server, rival) in &self.rivals {
            let Rival { at, rack, mac } = rival.clone();
            records.push(Record::Rival { at, server: *server, rack, mac });
        }
        records
    }

    fn machine_records(&self, machine: &Machine) -> Vec<Record> {
        let mac = machine.mac;
        let mut records = Vec::new();
        if let Some(at) = machine.seen {
            records.push(Record::Seen {
                at,
                mac,
                uuid: machine.uuid,
                serial: machine.serial.clone(),
                rack: machine.rack.and_then(|rack| self.rack_name(rack)),
                firmware: machine.firmware,
                circuit: machine.circuit.clone(),
            });
        }
        records.extend(machine.marks.iter().map(|(phase, at)| Record::Phase {
            at: *at,
            mac,
            phase: *phase,
        }));
        if let (Some(detail), Some(at)) = (&machine.failure, machine.seen) {
            records.push(Record::Failed { at, mac, detail: detail.clone() });
        }
        records
    }

    fn machine_view(&self, machine: &Machine, now: Moment) -> MachineView {
        let standing = self.standing(machine.mac, now);
        let word = match standing {
            Standing::Planned => "planned",
            Standing::Discovered => "discovered",
            Standing::Quarantined(_) => "quarantined",
        };
        let marks = machine.marks.iter();
        MachineView {
            name: self.planned(machine.mac).map(|planned| planned.name.clone()),
            standing: word.to_owned(),
            evidence: Evidence {
                mac: machine.mac,
                uuid: machine.uuid,
                serial: machine.serial.clone(),
                rack: machine.rack.and_then(|rack| self.rack_name(rack)),
                circuit: machine.circuit.clone(),
                firmware: machine.firmware,
            },
            phase: machine.phase().map(|(phase, _)| phase),
            phases: marks.map(|(phase, at)| Mark { name: *phase, at: *at }).collect(),
            cause: cause(machine, &standing, now),
            addresses: machine.address.into_iter().collect(),
            quarantined: matches!(standing, Standing::Quarantined(_)),
            last_seen: machine.seen,
        }
    }
}

impl Site {
    fn rack_name(&self, rack: usize) -> Option<String> {
        self.plan.racks.get(rack).map(|rack| rack.name.clone())
    }

    fn planned_macs(&self) -> impl Iterator<Item = Mac> {
        self.plan.machines.iter().filter_map(|machine| machine.mac.parse().ok())
    }

    fn take_plan(&mut self) -> Result<(), SiteError> {
        for (index, planned) in self.plan.machines.iter().enumerate() {
            let name = planned.name.clone();
            let mac: Mac = match planned.mac.parse() {
                Ok(mac) => mac,
                Err(source) => return Err(SiteError::Mac { name, source }),
            };
            let machine = Machine { planned: Some(index), ..Machine::new(mac) };
            if let Some(before) = self.machines.insert(mac, machine) {
                let first = before.planned.and_then(|index| self.plan.machines.get(index));
                let first = first.map(|first| first.name.clone()).unwrap_or_default();
                return Err(SiteError::SameMac { mac, first, second: name });
            }
            self.planned_addresses.insert(planned.address, mac);
            self.planned_names.insert(name, mac);
        }
        Ok(())
    }
}

/// The racks' subnets. The seed's own is served only when it is one of them: an operator's host
/// may stand in an office network whose machines are none of our business.
fn subnets(plan: &Plan) -> Vec<Subnet> {
    let mut subnets: Vec<Subnet> = Vec::new();
    for (index, rack) in plan.racks.iter().enumerate() {
        if subnets.iter().all(|known| known.net != rack.subnet) {
            let planned = plan.machines.iter().map(|machine| machine.address);
            let reserved = planned.chain([plan.seed.address]);
            subnets.push(Subnet::new(rack.subnet, rack.gateway, index, reserved));
        }
    }
    subnets
}

#[cfg(test)]
mod storm;
#[cfg(test)]
mod tests;
