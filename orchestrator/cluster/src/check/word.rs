//! The single values of a `rack.yaml`: addresses, names, times, sizes.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::fields::Refusal;
use crate::plan::{BootMethod, Role};

/// Parses a network without host bits.
pub(super) fn network(text: &str) -> Result<Ipv4Net, Refusal> {
    let refusal = || Refusal::new("is not an IPv4 network", "write it as 10.98.1.0/24");
    let net: Ipv4Net = text.parse().map_err(|_| refusal())?;
    if net.addr() == net.network() {
        Ok(net)
    } else {
        Err(Refusal::new("has host bits set", format!("try {}", net.trunc())))
    }
}

/// Parses an address of one host.
pub(super) fn address(text: &str) -> Result<Ipv4Addr, Refusal> {
    let refusal = || Refusal::new("is not an IPv4 address", "write it as 10.98.1.11");
    let address: Ipv4Addr = text.parse().map_err(|_| refusal())?;
    if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        return Err(Refusal::new("is no address of one host", "give a unicast address"));
    }
    Ok(address)
}

/// Parses a DNS label (RFC 1123).
pub(super) fn label(text: &str) -> Result<String, Refusal> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if good {
        return Ok(text.to_owned());
    }
    let mended: String = text
        .to_lowercase()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .take(63)
        .collect();
    let mended = mended.trim_matches('-');
    let hint = if mended.is_empty() { String::new() } else { format!("try {mended}") };
    Err(Refusal::new("is no DNS label (a-z, 0-9 and -, at most 63, no - at the ends)", hint))
}

/// Parses an Ethernet address into lower case with colons.
pub(super) fn mac(text: &str) -> Result<String, Refusal> {
    let refusal = || Refusal::new("is no Ethernet address", "write it as 52:54:00:00:01:0b");
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let good = parts.len() == 6
        && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
    if !good {
        return Err(refusal());
    }
    let mac = parts.join(":").to_lowercase();
    let first = u8::from_str_radix(parts.first().copied().unwrap_or_default(), 16);
    if first.is_ok_and(|first| first & 1 == 1) || mac == "00:00:00:00:00:00" {
        return Err(Refusal::new("is no address of one interface", "copy it from the machine"));
    }
    Ok(mac)
}

/// Parses an SMBIOS UUID into lower case.
pub(super) fn uuid(text: &str) -> Result<String, Refusal> {
    let refusal = || Refusal::new("is no UUID", "write it as 4c4c4544-0042-3510-8053-b4c04f303232");
    // Only the one spelling firmware prints; braces or missing hyphens are typing mistakes here.
    if text.len() != 36 {
        return Err(refusal());
    }
    let uuid = uuid::Uuid::try_parse(text).map_err(|_| refusal())?;
    if uuid.is_nil() || uuid.is_max() {
        return Err(Refusal::new("identifies nothing", "leave it out: the vendor never set it"));
    }
    Ok(uuid.hyphenated().to_string())
}

/// Parses a text of printable characters, such as a serial number.
pub(super) fn text(text: &str) -> Result<String, Refusal> {
    let good = (1..=64).contains(&text.len()) && text.bytes().all(|b| (0x20..0x7f).contains(&b));
    if good && text.trim() == text {
        return Ok(text.to_owned());
    }
    Err(Refusal::new("must be 1 to 64 printable characters", "copy it as the machine prints it"))
}

/// Parses a number from `least` to `most`.
pub(super) fn number(text: &str, least: u32, most: u32) -> Result<u32, Refusal> {
    let good = |number: &u32| (least..=most).contains(number);
    // No leading zeros: some readers of YAML take them for octal.
    let plain = text == "0" || !text.starts_with(['0', '+']);
    let refusal =
        || Refusal::new("is out of range", format!("give a number from {least} to {most}"));
    text.parse().ok().filter(good).filter(|_| plain).ok_or_else(refusal)
}

/// Parses `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, Refusal> {
    text.parse().map_err(|_| Refusal::new("is neither true nor false", "write true or false"))
}

/// Parses a time such as `40s`, `5m` or `1h` into seconds, at least one, at most a day.
pub(super) fn seconds(text: &str) -> Result<u32, Refusal> {
    let refusal = || Refusal::new("is not a time from 1s to 24h", "write it as 40s, 5m or 1h");
    let unit = text.chars().next_back().ok_or_else(refusal)?;
    let factor: u32 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(refusal()),
    };
    let count: u32 = text.trim_end_matches(unit).parse().map_err(|_| refusal())?;
    count.checked_mul(factor).filter(|all| (1..=86_400).contains(all)).ok_or_else(refusal)
}

/// Parses a size such as `400GB` or `1TiB` into bytes.
pub(super) fn bytes(text: &str) -> Result<u64, Refusal> {
    const UNITS: [(&str, u64); 6] = [
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    let refusal = || Refusal::new("is not a size", "write it as 400GB, 1TB or 512GiB");
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
        .ok_or_else(refusal)?;
    let count: u64 = number.trim_end().parse().map_err(|_| refusal())?;
    count.checked_mul(*factor).filter(|bytes| *bytes > 0).ok_or_else(refusal)
}

/// Parses a machine's role.
pub(super) fn role(text: &str) -> Result<Role, Refusal> {
    match text {
        "master" => Ok(Role::Master),
        "worker" => Ok(Role::Worker),
        _ => Err(Refusal::new("is an unknown role", "the roles are master and worker")),
    }
}

/// Parses a boot method.
pub(super) fn boot(text: &str) -> Result<BootMethod, Refusal> {
    match text {
        "bios" => Ok(BootMethod::Bios),
        "uefi-pxe" => Ok(BootMethod::UefiPxe),
        "uefi-http" => Ok(BootMethod::UefiHttp),
        _ => Err(Refusal::new(
            "is an unknown boot method",
            "the methods are bios, uefi-pxe and uefi-http",
        )),
    }
}

/// Parses a monitor's `address:port`, in the spelling given back.
pub(super) fn endpoint(text: &str) -> Result<String, Refusal> {
    let refusal = || Refusal::new("is not address:port", "write it as 10.38.2.31:6789");
    let endpoint: std::net::SocketAddrV4 = text.parse().map_err(|_| refusal())?;
    if endpoint.port() == 0 { Err(refusal()) } else { Ok(endpoint.to_string()) }
}

/// How a node's pod network follows from its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PodRange {
    /// The range that holds every pod network.
    pub(super) range: Ipv4Net,
    /// The network of node 0; that of node N lies N strides further.
    first: Ipv4Net,
    stride: u32,
    /// The largest node number with a network of its own.
    pub(super) node_max: u32,
}

/// Prefix length of a node's pod network when only a whole range is given.
const POD_PREFIX: u8 = 24;

impl PodRange {
    /// The pod network of a node; `None` beyond `node_max`.
    pub(super) fn network(&self, node: u32) -> Option<Ipv4Net> {
        if node > self.node_max {
            return None;
        }
        let base = u32::from(self.first.network());
        let address = base.checked_add(node.checked_mul(self.stride)?)?;
        Ipv4Net::new(Ipv4Addr::from(address), self.first.prefix_len()).ok()
    }
}

/// Parses `172.17.{node}.0/24`, or a whole range of which node N gets the N-th `/24`.
pub(super) fn pods(text: &str) -> Result<PodRange, Refusal> {
    const NODE: &str = "{node}";
    if !text.contains('{') {
        let range = network(text)?;
        if range.prefix_len() >= POD_PREFIX {
            let rule = format!("has no room for a /{POD_PREFIX} per node");
            return Err(Refusal::new(rule, "give a /16 or larger"));
        }
        let first = Ipv4Net::new(range.network(), POD_PREFIX).unwrap_or(range);
        let node_max = (1_u32 << (POD_PREFIX - range.prefix_len())) - 1;
        return Ok(PodRange { range, first, stride: 1 << (32 - POD_PREFIX), node_max });
    }
    let refusal = || {
        let rule = "must have {node} once, as its second or third number";
        Refusal::new(rule, "write it as 172.17.{node}.0/24")
    };
    let at = text.split('.').position(|part| part == NODE).ok_or_else(refusal)?;
    let (range_prefix, stride) = match at {
        1 => (8, 1 << 16),
        2 => (16, 1 << 8),
        _ => return Err(refusal()),
    };
    if text.matches(NODE).count() != 1 {
        return Err(refusal());
    }
    let first = network(&text.replace(NODE, "0"))?;
    if first.prefix_len() < range_prefix + 8 || first.prefix_len() > 30 {
        let rule = format!("must have a prefix from /{} to /30", range_prefix + 8);
        return Err(Refusal::new(rule, "write it as 172.17.{node}.0/24"));
    }
    let range = Ipv4Net::new(first.network(), range_prefix).map_err(|_| refusal())?.trunc();
    Ok(PodRange { range, first, stride, node_max: 255 })
}
