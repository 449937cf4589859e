//! Ranges of addresses for services, of either family.
//!
//! All arithmetic is in 128 bits, an IPv4 address being the lowest 32 of them; nothing here ever
//! walks through a range, for one of IPv6 may hold 2^64 addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use objects::field::Fields as _;
use serde_json::Value;

/// The shortest prefix of a range of IPv6, upstream's.
const PREFIX_V6_MIN: u8 = 64;

/// One of the two families of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As services name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The family that services call so.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|family| family.name() == name)
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// The ranges addresses and ports of services come from when a cluster begins: one, or one of
/// each family. The first says which family a service gets that asks for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceRange {
    first: Network,
    second: Option<Network>,
    /// The lowest node port.
    pub node_port_min: u16,
    /// The highest node port.
    pub node_port_max: u16,
}

impl ServiceRange {
    /// The ranges as text, the first one first.
    #[must_use]
    pub fn cidrs(&self) -> Vec<String> {
        self.networks().map(|network| network.to_string()).collect()
    }

    /// The families services may ask for, the usual one first.
    pub fn families(&self) -> impl Iterator<Item = Family> + use<> {
        self.networks().map(|network| network.family)
    }

    /// The address of the service `kubernetes`: the first of the first range.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first.at(0)
    }

    /// The first address of each range.
    pub fn firsts(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.networks().map(|network| network.at(0))
    }

    /// The address of cluster DNS: the tenth of the first range, if it has so many.
    #[must_use]
    pub fn tenth(&self) -> Option<IpAddr> {
        (self.first.size() >= 10).then(|| self.first.at(9))
    }

    fn networks(&self) -> impl Iterator<Item = Network> + use<> {
        [Some(self.first), self.second].into_iter().flatten()
    }

    /// Node ports in the order they are tried, begun at random.
    pub(super) fn node_ports(&self, seed: u64) -> impl Iterator<Item = u16> + use<> {
        let size = u64::from(self.node_port_max.saturating_sub(self.node_port_min)) + 1;
        let low = self.node_port_min;
        let steps = rotation(size, reserved(size, 32, 128), seed);
        steps.filter_map(move |step| low.checked_add(u16::try_from(step).ok()?))
    }
}

/// Why a text does not say where addresses of services come from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not a range.
    #[error("{0:?} is no range of addresses, such as 172.21.0.0/24 or fd21::/112")]
    NoRange(String),
    /// Not one or two of them.
    #[error("one range is needed, or one of each family with a comma between them; here are {0}")]
    Count(usize),
    /// Two of one family.
    #[error("{0} and {1} are both of {name}; the second range must be of the other family", name = .2.name())]
    OneFamily(String, String, Family),
    /// A range of IPv6 that is too large.
    #[error("{0} is too large; a range of IPv6 must have a prefix of /{PREFIX_V6_MIN} or longer")]
    TooLarge(String),
    /// A range that holds nothing.
    #[error("{0} has no address to give to a service")]
    TooSmall(String),
}

impl FromStr for ServiceRange {
    type Err = RangeError;

    /// Reads `A` or `A,B`, with upstream's node ports, 30000 to 32767.
    fn from_str(text: &str) -> Result<Self, RangeError> {
        let all: Vec<&str> = text.split(',').map(str::trim).collect();
        let (first, second) = match all.as_slice() {
            [one] => (read(one)?, None),
            [one, other] => (read(one)?, Some(read(other)?)),
            several => return Err(RangeError::Count(several.len())),
        };
        if let Some(second) = second.filter(|second| second.family == first.family) {
            let family = first.family;
            return Err(RangeError::OneFamily(first.to_string(), second.to_string(), family));
        }
        Ok(Self { first, second, node_port_min: 30_000, node_port_max: 32_767 })
    }
}

fn read(text: &str) -> Result<Network, RangeError> {
    let network = Network::parse(text).ok_or_else(|| RangeError::NoRange(text.to_owned()))?;
    if network.family == Family::V6 && network.prefix_len < PREFIX_V6_MIN {
        return Err(RangeError::TooLarge(text.to_owned()));
    }
    if network.size() == 0 {
        return Err(RangeError::TooSmall(text.to_owned()));
    }
    Ok(network)
}

/// A range of addresses for services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    family: Family,
    base: u128,
    prefix_len: u8,
}

impl Network {
    fn parse(cidr: &str) -> Option<Self> {
        let (address, prefix_len) = cidr.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let family = Family::of(address);
        let prefix_len = prefix_len.parse().ok().filter(|length| *length <= family.bits())?;
        let network = Self { family, base: 0, prefix_len };
        Some(Self { base: bits(address) & !network.hosts(), ..network })
    }

    /// The family of its addresses.
    #[must_use]
    pub fn family(self) -> Family {
        self.family
    }

    /// The part of an address that differs within the range, all ones.
    fn hosts(self) -> u128 {
        let length = u32::from(self.family.bits().saturating_sub(self.prefix_len));
        u128::MAX.checked_shl(length).map_or(u128::MAX, |mask| !mask)
    }

    pub(super) fn contains(self, address: IpAddr) -> bool {
        Family::of(address) == self.family && bits(address) & !self.hosts() == self.base
    }

    /// Can this address be given away? The network's own cannot, nor can IPv4's broadcast address.
    pub(super) fn gives(self, address: IpAddr) -> bool {
        let offset = bits(address).wrapping_sub(self.base);
        self.contains(address) && offset != 0 && offset <= self.last()
    }

    /// The offset of the last address that can be given away.
    fn last(self) -> u128 {
        match self.family {
            Family::V4 => self.hosts().saturating_sub(1),
            Family::V6 => self.hosts(),
        }
    }

    /// How many addresses can be given away; the lowest 2^64 of more.
    fn size(self) -> u64 {
        u64::try_from(self.last()).unwrap_or(u64::MAX)
    }

    fn at(self, step: u64) -> IpAddr {
        let bits = self.base.saturating_add(1).saturating_add(step.into());
        match self.family {
            Family::V4 => Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)).into(),
            Family::V6 => Ipv6Addr::from_bits(bits).into(),
        }
    }

    /// Its addresses in the order they are tried, begun at random. Who looks for a free one stops
    /// after as many steps as there are taken ones at most.
    pub(super) fn addresses(self, seed: u64) -> impl Iterator<Item = IpAddr> {
        let size = self.size();
        rotation(size, reserved(size, 16, 256), seed).map(move |step| self.at(step))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address: IpAddr = match self.family {
            Family::V4 => Ipv4Addr::from_bits(u32::try_from(self.base).unwrap_or(0)).into(),
            Family::V6 => Ipv6Addr::from_bits(self.base).into(),
        };
        write!(f, "{address}/{}", self.prefix_len)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(four) => four.to_bits().into(),
        IpAddr::V6(six) => six.to_bits(),
    }
}

/// How many of the lowest are kept for those who ask for them.
fn reserved(size: u64, share: u64, most: u64) -> u64 {
    const LEAST: u64 = 16;
    if size < LEAST { 0 } else { (size / share).clamp(LEAST, most) }
}

/// All steps below `size`: those from `reserved` on begun at random, then the lower ones.
fn rotation(size: u64, reserved: u64, seed: u64) -> impl Iterator<Item = u64> {
    let turn = move |from: u64, length: u64| {
        let start = seed % length.max(1);
        (start..length).chain(0..start).map(move |step| from.saturating_add(step))
    };
    let reserved = reserved.min(size);
    turn(reserved, size.saturating_sub(reserved)).chain(turn(0, reserved))
}

/// The ranges that addresses come from at the moment: those of each `ServiceCIDR` that is ready.
///
/// One of which nobody says anything counts as ready, for that is a controller's to say.
pub fn networks<'a>(ranges: impl IntoIterator<Item = &'a Value>) -> Vec<Network> {
    let is_ready = |range: &&Value| {
        let conditions = range.field("status.conditions").and_then(Value::as_array);
        let mut conditions = conditions.into_iter().flatten();
        let ready = conditions.find(|one| one.get("type").and_then(Value::as_str) == Some("Ready"));
        let going = range.field("metadata.deletionTimestamp").is_some();
        !going && ready.is_none_or(|one| one.get("status").and_then(Value::as_str) == Some("True"))
    };
    let cidrs = ranges
        .into_iter()
        .filter(is_ready)
        .filter_map(|range| range.field("spec.cidrs")?.as_array());
    cidrs.flatten().filter_map(|cidr| Network::parse(cidr.as_str()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refuses(text: &str, why: &str) {
        assert_eq!(text.parse::<ServiceRange>().unwrap_err().to_string(), why);
    }

    #[test]
    fn one_range_or_one_of_each_family_is_taken_in_either_order() {
        let range: ServiceRange = "172.21.0.7/24".parse().unwrap();
        assert_eq!(
            (range.cidrs(), range.tenth()),
            (vec!["172.21.0.0/24".to_owned()], Some("172.21.0.10".parse().unwrap()),)
        );
        let both: ServiceRange = "fd21::/112, 172.21.0.0/24".parse().unwrap();
        assert_eq!(both.cidrs(), ["fd21::/112", "172.21.0.0/24"]);
        assert_eq!(both.families().collect::<Vec<_>>(), [Family::V6, Family::V4]);
        assert_eq!(both.first(), "fd21::1".parse::<IpAddr>().unwrap());
        assert_eq!(both.tenth(), Some("fd21::a".parse().unwrap()));
        assert_eq!("fd21::/126".parse::<ServiceRange>().unwrap().tenth(), None);
        refuses(
            "172.21.0.0",
            "\"172.21.0.0\" is no range of addresses, such as 172.21.0.0/24 or \
                               fd21::/112",
        );
        refuses(
            "172.21.0.0/24,",
            "\"\" is no range of addresses, such as 172.21.0.0/24 or \
                                   fd21::/112",
        );
        refuses(
            "10.0.0.0/33",
            "\"10.0.0.0/33\" is no range of addresses, such as 172.21.0.0/24 \
                                or fd21::/112",
        );
        refuses(
            "10.0.0.0/24,fd21::/112,fd22::/112",
            "one range is needed, or one of each family \
                                                      with a comma between them; here are 3",
        );
        refuses(
            "10.0.0.0/24,10.0.1.0/24",
            "10.0.0.0/24 and 10.0.1.0/24 are both of IPv4; the \
                                            second range must be of the other family",
        );
        refuses(
            "fd21::/48",
            "fd21::/48 is too large; a range of IPv6 must have a prefix of /64 \
                              or longer",
        );
        refuses("10.0.0.0/24,fd21::/128", "fd21::/128 has no address to give to a service");
        refuses("10.0.0.0/31", "10.0.0.0/31 has no address to give to a service");
    }

    #[test]
    fn a_huge_range_gives_addresses_without_being_walked_through() {
        let network = Network::parse("fd21:0:0:1::/64").unwrap();
        assert_eq!(network.size(), u64::MAX);
        for seed in [0, 1, 7, u64::MAX / 2, u64::MAX] {
            let some: Vec<IpAddr> = network.addresses(seed).take(3).collect();
            assert!(some.iter().all(|address| network.gives(*address)), "{some:?}");
        }
        // The lowest stay for those who ask for them, and the last is as good as any.
        assert!(network.addresses(0).take(10).all(|one| bits(one) & 0xffff >= 257));
        assert!(network.gives("fd21::1:ffff:ffff:ffff:ffff".parse().unwrap()));
        assert!(!network.gives("fd21:0:0:1::".parse().unwrap()));
        assert!(!network.gives("fd21:0:0:2::".parse().unwrap()));
        assert!(!network.contains("0.0.0.1".parse().unwrap()));
        let whole = Network::parse("::/0").unwrap();
        assert!(whole.gives("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap()));
        let four = Network::parse("0.0.0.0/0").unwrap();
        assert!(four.gives("255.255.255.254".parse().unwrap()));
        assert!(!four.gives("255.255.255.255".parse().unwrap()));
    }

    #[test]
    fn each_address_of_a_small_range_comes_once() {
        for (cidr, count) in [("10.0.0.0/27", 30), ("fd21::/123", 31), ("fd21::/127", 1)] {
            let network = Network::parse(cidr).unwrap();
            let mut all: Vec<IpAddr> = network.addresses(11).collect();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), count, "{cidr}");
            assert!(all.iter().all(|address| network.gives(*address)), "{cidr}");
        }
    }

    #[test]
    fn any_text_is_read_or_refused() {
        bolero::check!().with_iterations(2_000).for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            // Not all texts that look like ranges are found by chance.
            for text in [text.clone(), format!("{text}/24"), format!("fd21::{text},10.0.0.0/8")] {
                if let Ok(range) = text.parse::<ServiceRange>() {
                    assert_eq!(range.cidrs().join(",").parse(), Ok(range), "{text}");
                }
            }
        });
    }
}
