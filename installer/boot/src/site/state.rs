//! The site's state: machines met, judged and forgotten; records applied.
//!
//! [`Site::keep`] is the only way to change what lasts: it applies a record and hands it on.

use std::net::Ipv4Addr;
use std::time::Duration;

use cluster::plan;

use super::Site;
use crate::cause::Activity;
use crate::lease::Lease;
use crate::machine::Machine;
use crate::{Firmware, Mac, Moment, Outcome, Phase, Record, SmbiosUuid, Standing};

/// Machines outside the plan that are remembered. A segment has few; an attacker has many.
pub(super) const DISCOVERED_MAX: usize = 4096;
/// Two machines with one UUID that were not heard together for so long are one that was rebuilt.
const TWIN_WINDOW: Duration = Duration::from_secs(24 * 3600);
/// Another DHCP server is noted again after this.
const RIVAL_AGAIN: Duration = Duration::from_secs(3600);
/// A machine that is only heard again is noted in the journal at this beat.
const SEEN_AGAIN: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
pub(super) struct Rival {
    pub(super) at: Moment,
    pub(super) rack: Option<String>,
    pub(super) mac: Option<Mac>,
}

/// What a request tells of its sender, as far as it does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sighting {
    pub(crate) uuid: Option<SmbiosUuid>,
    pub(crate) serial: Option<String>,
    /// Index into `Site::subnets`.
    pub(crate) subnet: Option<usize>,
    pub(crate) firmware: Option<Firmware>,
    pub(crate) circuit: Option<String>,
}

impl Site {
    pub(crate) fn planned(&self, mac: Mac) -> Option<&plan::Machine> {
        self.plan.machines.get(self.machines.get(&mac)?.planned?)
    }

    pub(crate) fn machine(&self, mac: Mac) -> Option<&Machine> {
        self.machines.get(&mac)
    }

    /// The machine that holds an address, by lease or else by plan.
    pub(crate) fn holder(&self, address: Ipv4Addr, now: Moment) -> Option<Mac> {
        let leased = self.leases.holder(address, now);
        leased.or_else(|| self.planned_addresses.get(&address).copied())
    }

    /// Whether a machine may boot.
    pub(crate) fn standing(&self, mac: Mac, now: Moment) -> Standing {
        let Some(machine) = self.machines.get(&mac) else {
            return Standing::Discovered;
        };
        if let Some(twins) = self.twins_of(machine, now) {
            return Standing::Quarantined(twins);
        }
        let Some(planned) = machine.planned.and_then(|index| self.plan.machines.get(index)) else {
            return Standing::Discovered;
        };
        let wanted = planned.uuid.as_deref().and_then(SmbiosUuid::parse);
        if let (Some(wanted), Some(found)) = (wanted, machine.uuid)
            && !wanted.is_same(found)
        {
            let reason = format!("its UUID is {found}, the plan says {wanted}");
            return Standing::Quarantined(reason);
        }
        if let (Some(wanted), Some(found)) = (&planned.serial, &machine.serial)
            && !wanted.trim().eq_ignore_ascii_case(found.trim())
        {
            let reason = format!("its serial number is {found}, the plan says {wanted}");
            return Standing::Quarantined(reason);
        }
        match machine.rack.and_then(|rack| self.plan.racks.get(rack)) {
            Some(rack) if !rack.subnet.contains(&planned.address) => Standing::Quarantined(
                format!("it stands in rack {}, the plan says {}", rack.name, planned.rack),
            ),
            _ => Standing::Planned,
        }
    }

    /// Updates what is known of a machine; tells the journal when it is new or old news.
    pub(crate) fn meet(&mut self, now: Moment, mac: Mac, seen: Sighting, outcome: &mut Outcome) {
        let known = self.machines.get(&mac);
        let rack = seen.subnet.and_then(|subnet| self.subnets.get(subnet)).map(|found| found.rack);
        let uuid = match (known.and_then(|known| known.uuid), seen.uuid) {
            // Only the byte order differs: keep the first, or it would flap at every request.
            (Some(old), Some(new)) if old.is_same(new) => Some(old),
            (old, new) => new.or(old),
        };
        let serial = seen.serial.or_else(|| known?.serial.clone());
        let rack = rack.or_else(|| known?.rack);
        let firmware = seen.firmware.or_else(|| known?.firmware);
        let circuit = seen.circuit.or_else(|| known?.circuit.clone());
        let is_news = known.is_none_or(|known| {
            let heard = known.seen.is_some_and(|at| now.since(at) < SEEN_AGAIN);
            let same = (known.uuid, &known.serial, known.rack, known.firmware, &known.circuit)
                == (uuid, &serial, rack, firmware, &circuit);
            !heard || !same
        });
        if is_news {
            let rack = rack.and_then(|rack| self.rack_name(rack));
            let record = Record::Seen { at: now, mac, uuid, serial, rack, firmware, circuit };
            self.keep(record, outcome);
        } else if let Some(machine) = self.machines.get_mut(&mac) {
            machine.seen = Some(now);
        }
    }

    /// Notes that a machine came to a phase, unless it was there already.
    pub(crate) fn reach(&mut self, now: Moment, mac: Mac, phase: Phase, outcome: &mut Outcome) {
        if self.machines.get(&mac).is_some_and(|machine| machine.lacks(phase)) {
            self.keep(Record::Phase { at: now, mac, phase }, outcome);
        }
    }

    /// Notes the last traffic of a machine; not kept over a restart.
    pub(crate) fn note(&mut self, now: Moment, mac: Mac, activity: Activity) {
        if let Some(machine) = self.machines.get_mut(&mac) {
            machine.activity = Some((activity, now));
        }
    }

    pub(crate) fn meet_rival(
        &mut self,
        now: Moment,
        server: Ipv4Addr,
        subnet: Option<usize>,
        mac: Option<Mac>,
        outcome: &mut Outcome,
    ) {
        if let Some(machine) = mac.and_then(|mac| self.machines.get_mut(&mac)) {
            machine.rival = Some((server, now));
        }
        let recent =
            self.rivals.get(&server).is_some_and(|known| now.since(known.at) < RIVAL_AGAIN);
        // A forger may name any number of servers; a site has a handful.
        if !recent && self.rivals.len() < 256 {
            let rack = subnet.and_then(|subnet| self.subnets.get(subnet));
            let rack = rack.and_then(|subnet| self.rack_name(subnet.rack));
            self.keep(Record::Rival { at: now, server, rack, mac }, outcome);
        }
    }

    /// Applies a record and hands it on for the journal.
    pub(crate) fn keep(&mut self, record: Record, outcome: &mut Outcome) {
        self.apply(&record);
        outcome.record(record);
    }

    pub(super) fn apply(&mut self, record: &Record) {
        match record {
            Record::Lease { mac, address, expires, .. } => {
                self.leases.grant(*address, Lease { mac: *mac, expires: *expires });
                self.entry(*mac).address = Some(*address);
            }
            Record::Release { mac, address, .. } => self.leases.release(*mac, *address),
            Record::Decline { at, mac, address } => self.leases.decline(*mac, *address, *at),
            Record::Seen { .. } => self.apply_seen(record),
            Record::Boot { mac, .. } => self.entry(*mac).begin(),
            Record::Phase { at, mac, phase } => self.entry(*mac).mark(*phase, *at),
            Record::Failed { mac, detail, .. } => self.entry(*mac).failure = Some(detail.clone()),
            Record::Rival { at, server, rack, mac } => {
                let rival = Rival { at: *at, rack: rack.clone(), mac: *mac };
                self.rivals.insert(*server, rival);
            }
        }
    }

    fn apply_seen(&mut self, record: &Record) {
        let Record::Seen { at, mac, uuid, serial, rack, firmware, circuit } = record else {
            return;
        };
        let rack = rack.as_ref();
        let rack = rack.and_then(|name| self.plan.racks.iter().position(|rack| rack.name == *name));
        let machine = self.entry(*mac);
        let before = machine.uuid;
        machine.seen = Some(*at);
        machine.uuid = *uuid;
        machine.serial.clone_from(serial);
        machine.rack = rack;
        machine.firmware = *firmware;
        machine.circuit.clone_from(circuit);
        if let Some(before) = before
            && let Some(macs) = self.twins.get_mut(&before.key())
        {
            macs.remove(mac);
        }
        if let Some(uuid) = uuid {
            self.twins.entry(uuid.key()).or_default().insert(*mac);
        }
    }

    /// The machine of a MAC address, made when it is new. Of machines outside the plan the one
    /// longest silent is forgotten when there are too many.
    fn entry(&mut self, mac: Mac) -> &mut Machine {
        if !self.machines.contains_key(&mac) {
            if self.discovered_count >= DISCOVERED_MAX {
                self.forget_oldest();
            }
            self.discovered_count += 1;
        }
        self.machines.entry(mac).or_insert_with(|| Machine::new(mac))
    }

    fn forget_oldest(&mut self) {
        let unknown = self.machines.values().filter(|machine| machine.planned.is_none());
        let Some(oldest) = unknown.min_by_key(|machine| machine.seen).map(|machine| machine.mac)
        else {
            return;
        };
        if let Some(machine) = self.machines.remove(&oldest) {
            self.discovered_count = self.discovered_count.saturating_sub(1);
            if let Some(macs) = machine.uuid.and_then(|uuid| self.twins.get_mut(&uuid.key())) {
                macs.remove(&oldest);
            }
        }
        self.twins.retain(|_, macs| !macs.is_empty());
    }

    /// Says which other machines have this one's UUID, for people.
    fn twins_of(&self, machine: &Machine, now: Moment) -> Option<String> {
        let uuid = machine.uuid?;
        let macs = self.twins.get(&uuid.key())?;
        let recent = |mac: &&Mac| {
            let seen = self.machines.get(mac).and_then(|twin| twin.seen);
            **mac != machine.mac && seen.is_some_and(|at| now.since(at) < TWIN_WINDOW)
        };
        let names: Vec<String> =
            macs.iter().filter(recent).take(4).map(|mac| self.call(*mac)).collect();
        (!names.is_empty()).then(|| format!("UUID {uuid} is also that of {}", names.join(" and ")))
    }

    fn call(&self, mac: Mac) -> String {
        match self.planned(mac) {
            Some(planned) => format!("{} ({mac})", planned.name),
            None => format!("unknown machine {mac}"),
        }
    }

    /// A held machine asks for its script again and again and never renews its lease: asking
    /// counts as renewing once half of the time is over.
    pub(super) fn keep_lease(&mut self, now: Moment, mac: Mac, outcome: &mut Outcome) {
        let Some((address, Lease { expires: Some(expires), .. })) = self.leases.of(mac) else {
            return;
        };
        let rest = expires.since(now);
        if !rest.is_zero() && rest < crate::dhcp::server::POOL_LEASE / 2 {
            let expires = Some(now.plus(crate::dhcp::server::POOL_LEASE));
            self.keep(Record::Lease { at: now, mac, address, expires }, outcome);
        }
    }
}
