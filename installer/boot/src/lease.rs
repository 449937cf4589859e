//! Who holds which address: leases, open offers, addresses found in use.
//!
//! Decides nothing about planned machines: their addresses come from the plan and are only noted
//! here. Unknown machines get an address from the high end of the subnet, where node numbers of
//! the plan's address formula come last.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::{Mac, Moment};

/// How long an offer is kept for its machine. PXE waits at most 60 s over all its tries.
const OFFER_KEPT: Duration = Duration::from_secs(60);
/// How long an address that a machine declined is left alone.
const DECLINED_KEPT: Duration = Duration::from_secs(600);
/// No pool needs more: unknown machines are guests.
const POOL_MAX: u32 = 256;

/// A served subnet and its pool for unknown machines.
#[derive(Debug, Clone)]
pub(crate) struct Subnet {
    pub(crate) net: Ipv4Net,
    pub(crate) gateway: Ipv4Addr,
    /// Index into the plan's racks.
    pub(crate) rack: usize,
    pool: RangeInclusive<u32>,
    reserved: BTreeSet<Ipv4Addr>,
}

impl Subnet {
    /// Takes the highest eighth of the hosts as pool, but at least one and at most 256.
    pub(crate) fn new(
        net: Ipv4Net,
        gateway: Ipv4Addr,
        rack: usize,
        planned: impl Iterator<Item = Ipv4Addr>,
    ) -> Self {
        let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
        let hosts = last.saturating_sub(first).saturating_sub(1);
        let size = (hosts / 8).clamp(1, POOL_MAX).min(hosts);
        let top = last.saturating_sub(1);
        let pool = top.saturating_add(1).saturating_sub(size)..=top;
        let reserved = planned.filter(|address| net.contains(address)).chain([gateway]).collect();
        Self { net, gateway, rack, pool, reserved }
    }

    fn lends(&self, address: Ipv4Addr) -> bool {
        self.pool.contains(&u32::from(address)) && !self.reserved.contains(&address)
    }
}

/// One address in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) mac: Mac,
    /// `None`: for ever.
    pub(crate) expires: Option<Moment>,
}

impl Lease {
    fn is_live(&self, now: Moment) -> bool {
        self.expires.is_none_or(|expires| expires > now)
    }
}

/// All leases; one machine holds at most one address.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_address: BTreeMap<Ipv4Addr, Lease>,
    by_mac: BTreeMap<Mac, Ipv4Addr>,
    offers: BTreeMap<Ipv4Addr, (Mac, Moment)>,
    declined: BTreeMap<Ipv4Addr, (Mac, Moment)>,
}

impl Leases {
    /// Notes that a machine holds an address; it loses any other, and so does another machine.
    pub(crate) fn grant(&mut self, address: Ipv4Addr, lease: Lease) {
        if let Some(before) = self.by_mac.insert(lease.mac, address)
            && before != address
        {
            self.by_address.remove(&before);
        }
        if let Some(before) = self.by_address.insert(address, lease)
            && before.mac != lease.mac
        {
            self.by_mac.remove(&before.mac);
        }
        self.offers.remove(&address);
    }

    pub(crate) fn release(&mut self, mac: Mac, address: Ipv4Addr) {
        if self.by_mac.get(&mac) == Some(&address) {
            self.by_mac.remove(&mac);
            self.by_address.remove(&address);
        }
    }

    pub(crate) fn decline(&mut self, mac: Mac, address: Ipv4Addr, now: Moment) {
        self.release(mac, address);
        self.offers.remove(&address);
        self.declined.insert(address, (mac, now));
    }

    /// Gives an open offer up, because the machine chose another server.
    pub(crate) fn withdraw(&mut self, mac: Mac) {
        self.offers.retain(|_, (holder, _)| *holder != mac);
    }

    pub(crate) fn of(&self, mac: Mac) -> Option<(Ipv4Addr, Lease)> {
        let address = *self.by_mac.get(&mac)?;
        Some((address, *self.by_address.get(&address)?))
    }

    /// The machine that holds an address now.
    pub(crate) fn holder(&self, address: Ipv4Addr, now: Moment) -> Option<Mac> {
        self.by_address.get(&address).filter(|lease| lease.is_live(now)).map(|lease| lease.mac)
    }

    pub(crate) fn is_declined(&self, address: Ipv4Addr, now: Moment) -> bool {
        self.declined.get(&address).is_some_and(|(_, at)| now.since(*at) < DECLINED_KEPT)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, Lease)> {
        self.by_address.iter().map(|(address, lease)| (*address, *lease))
    }

    /// Addresses found in use: which, by whom, when.
    pub(crate) fn declined(&self) -> impl Iterator<Item = (Ipv4Addr, Mac, Moment)> {
        self.declined.iter().map(|(address, (mac, at))| (*address, *mac, *at))
    }

    /// Picks an address of the pool for a machine and keeps it for the time of an offer: the one
    /// it has, else the one it wants, else one never lent, else the one longest expired.
    pub(crate) fn pick(
        &mut self,
        subnet: &Subnet,
        mac: Mac,
        wanted: Option<Ipv4Addr>,
        now: Moment,
    ) -> Option<Ipv4Addr> {
        self.offers.retain(|_, (_, until)| *until > now);
        self.declined.retain(|_, (_, at)| now.since(*at) < DECLINED_KEPT);
        let own = self.by_mac.get(&mac).copied();
        let offered =
            self.offers.iter().find(|(_, (holder, _))| *holder == mac).map(|(found, _)| *found);
        let preferred = [own, offered, wanted].into_iter().flatten();
        let address = preferred
            .filter(|address| self.is_free(subnet, *address, mac, now))
            .chain(self.longest_free(subnet, mac, now))
            .next()?;
        self.withdraw(mac);
        self.offers.insert(address, (mac, now.plus(OFFER_KEPT)));
        Some(address)
    }

    fn is_free(&self, subnet: &Subnet, address: Ipv4Addr, mac: Mac, now: Moment) -> bool {
        let leased = self
            .by_address
            .get(&address)
            .is_some_and(|lease| lease.mac != mac && lease.is_live(now));
        let offered = self.offers.get(&address).is_some_and(|(holder, _)| *holder != mac);
        subnet.lends(address) && !leased && !offered && !self.declined.contains_key(&address)
    }

    /// `min_by_key` takes the first of equals, so addresses never lent go out in order.
    fn longest_free(&self, subnet: &Subnet, mac: Mac, now: Moment) -> Option<Ipv4Addr> {
        subnet
            .pool
            .clone()
            .map(Ipv4Addr::from)
            .filter(|address| self.is_free(subnet, *address, mac, now))
            .min_by_key(|address| self.by_address.get(address).map(|lease| lease.expires))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> Mac {
        Mac::new([2, 0, 0, 0, 0, last])
    }

    fn subnet(net: &str) -> Subnet {
        let net: Ipv4Net = net.parse().unwrap();
        let gateway = net.hosts().next().unwrap();
        Subnet::new(net, gateway, 0, std::iter::empty())
    }

    #[test]
    fn the_pool_is_the_high_end_of_the_subnet() {
        let now = Moment::from_unix_ms(0);
        for (net, first) in [
            ("10.98.1.0/24", "10.98.1.224"),
            ("10.0.0.0/16", "10.0.254.255"),
            ("10.0.0.0/29", "10.0.0.6"),
        ] {
            let picked = Leases::default().pick(&subnet(net), mac(1), None, now).unwrap();
            assert_eq!(picked.to_string(), first, "{net}");
        }
    }

    #[test]
    fn an_exhausted_pool_lends_nothing_until_a_lease_runs_out() {
        let (subnet, mut leases) = (subnet("10.0.0.0/28"), Leases::default());
        let now = Moment::from_unix_ms(1_000);
        let expires = Some(now.plus(Duration::from_secs(600)));
        let address = leases.pick(&subnet, mac(1), None, now).unwrap();
        leases.grant(address, Lease { mac: mac(1), expires });
        assert_eq!(leases.pick(&subnet, mac(2), None, now), None);
        let later = now.plus(Duration::from_secs(601));
        assert_eq!(leases.pick(&subnet, mac(2), None, later), Some(address));
        assert_eq!(leases.holder(address, later), None);
    }

    #[test]
    fn a_machine_gets_its_address_again_and_never_an_outside_one() {
        let (subnet, mut leases) = (subnet("10.0.0.0/24"), Leases::default());
        let now = Moment::from_unix_ms(1_000);
        let wanted = Some(Ipv4Addr::new(10, 0, 0, 230));
        assert_eq!(leases.pick(&subnet, mac(1), wanted, now), wanted);
        assert_eq!(leases.pick(&subnet, mac(1), None, now), wanted);
        assert_ne!(leases.pick(&subnet, mac(2), wanted, now), wanted);
        let outside = Some(Ipv4Addr::new(10, 0, 0, 5));
        assert_ne!(leases.pick(&subnet, mac(3), outside, now), outside);
    }

    #[test]
    fn a_declined_address_rests() {
        let (subnet, mut leases) = (subnet("10.0.0.0/24"), Leases::default());
        let now = Moment::from_unix_ms(1_000);
        let address = leases.pick(&subnet, mac(1), None, now).unwrap();
        leases.decline(mac(1), address, now);
        assert_ne!(leases.pick(&subnet, mac(1), Some(address), now), Some(address));
        let later = now.plus(DECLINED_KEPT);
        assert_eq!(leases.pick(&subnet, mac(2), Some(address), later), Some(address));
    }
}
