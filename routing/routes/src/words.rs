//! Small pieces of BIRD's configuration language.

use cluster::plan::{Networks, Role};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::intent::Bfd;
use crate::key::Key;

/// Prefixes to match: this one, or longer ones inside it up to a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pattern {
    net: IpNet,
    /// Shortest and longest accepted prefix length; `None` is the prefix itself.
    lengths: Option<(u8, u8)>,
}

impl Pattern {
    /// What is announced one address at a time, or as parts of these ranges.
    pub(crate) fn service_ranges(networks: &Networks) -> impl Iterator<Item = Ipv4Net> {
        std::iter::once(networks.services).chain(networks.load_balancers.iter().copied())
    }

    /// The API's address, if it has one that masters share.
    pub(crate) fn api(networks: &Networks) -> Option<Self> {
        networks.api_net().map(Self::exactly)
    }

    /// What is announced from several places at once: services one by one, and the API.
    pub(crate) fn anycast(networks: &Networks) -> impl Iterator<Item = Self> {
        Self::service_ranges(networks).map(Self::hosts).chain(Self::api(networks))
    }

    /// The part of it that a node may announce.
    pub(crate) fn anycast_of(networks: &Networks, role: Role) -> impl Iterator<Item = Self> {
        let api = Self::api(networks).filter(|_| role == Role::Master);
        Self::service_ranges(networks).map(Self::hosts).chain(api)
    }

    pub(crate) fn exactly(net: impl Into<IpNet>) -> Self {
        Self { net: net.into().trunc(), lengths: None }
    }

    /// `net` and what lies inside it, down to prefixes of `longest` bits.
    pub(crate) fn inside(net: impl Into<IpNet>, longest: u8) -> Self {
        let net = net.into().trunc();
        let shortest = net.prefix_len();
        Self { net, lengths: Some((shortest, longest.max(shortest))) }
    }

    /// Only single addresses inside `net`.
    pub(crate) fn hosts(net: impl Into<IpNet>) -> Self {
        let net = net.into().trunc();
        let longest = net.max_prefix_len();
        Self { net, lengths: Some((longest, longest)) }
    }
}

/// Renders a prefix set; an empty set matches nothing.
pub(crate) fn render_set(patterns: impl IntoIterator<Item = Pattern>) -> String {
    let mut set = String::new();
    for Pattern { net, lengths } in patterns {
        let separator = if set.is_empty() { "[ " } else { ", " };
        set += &match lengths {
            None => format!("{separator}{net}"),
            Some((shortest, longest)) => format!("{separator}{net}{{{shortest},{longest}}}"),
        };
    }
    // BIRD's grammar has no empty set: one that matches nothing a unicast router ever holds.
    if set.is_empty() { "[ 255.255.255.255/32 ]".to_owned() } else { set + " ]" }
}

/// The default route as a prefix.
pub(crate) fn default_route() -> Ipv4Net {
    Ipv4Net::default()
}

/// The same of IPv6.
pub(crate) fn default_route_v6() -> Ipv6Net {
    Ipv6Net::default()
}

/// Renders the BFD protocol on some interfaces.
pub(crate) fn render_bfd(interfaces: &[&str], bfd: Bfd) -> String {
    let names: Vec<String> = interfaces.iter().map(|name| quote(name)).collect();
    format!(
        "protocol bfd {{ interface {} {{ interval {} ms; multiplier {}; }}; }}\n",
        names.join(", "),
        bfd.interval_ms,
        bfd.multiplier
    )
}

/// Quotes a string; BIRD's strings know no escapes, so what could end one is left out.
pub(crate) fn quote(text: &str) -> String {
    let safe: String = text.chars().filter(|c| !c.is_control() && *c != '"').collect();
    format!("\"{safe}\"")
}

/// Quotes a link's name as a symbol, as behind an address of the link itself.
pub(crate) fn quote_link(name: &str) -> String {
    let safe = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '@');
    let safe: String = name.chars().filter(safe).collect();
    format!("'{safe}'")
}

/// Makes a symbol of a name, behind a prefix of ours so that it meets no reserved word.
pub(crate) fn symbol(prefix: &str, name: &str) -> String {
    let safe = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    prefix.chars().chain(safe).collect()
}

/// The options every eBGP session of ours has: seconds, not minutes, until a lost session is
/// noticed and tried again, and packets only from the link itself.
pub(crate) const SESSION: &str = "    direct; bfd yes; ttl security yes; enforce first as yes;
    hold time 9; keepalive time 3; connect delay time 1; connect retry time 5; error wait time 1,5;
";

/// As [`SESSION`], inside one AS.
pub(crate) const INSIDE: &str = "    direct; bfd yes; ttl security yes;
    hold time 9; keepalive time 3; connect delay time 1; connect retry time 5; error wait time 1,5;
";

/// The options every OSPF interface of ours has. Most routers send OSPF with a TTL of 1 unless
/// told otherwise, so a TTL of 255 is offered but not asked for.
const ADJACENCY: &str = "type broadcast; hello 1; dead count 4; cost 10; bfd yes; ttl security tx only; tx length 1400;";
/// As [`ADJACENCY`], for `OSPFv3`, whose messages stay on the link by their addresses.
const ADJACENCY_V6: &str =
    "type broadcast; hello 1; dead count 4; cost 10; bfd yes; tx length 1400;";

/// Renders the options of an OSPF interface, with the rack's key if it has one.
pub(crate) fn render_adjacency(key: Option<&Key>) -> String {
    format!("{ADJACENCY}{}", render_trailer(key))
}

/// The same for `OSPFv3`; its key needs routers that know RFC 7166.
pub(crate) fn render_adjacency_v6(key: Option<&Key>) -> String {
    format!("{ADJACENCY_V6}{}", render_trailer(key))
}

fn render_trailer(key: Option<&Key>) -> String {
    key.map_or_else(String::new, |key| {
        let key = quote(key.reveal());
        format!(" authentication cryptographic; password {key} {{ id 1; algorithm hmac sha256; }};")
    })
}

/// Renders the key of a BGP session: a TCP MD5 signature, the one kind that all routers know.
pub(crate) fn render_password(key: Option<&Key>) -> String {
    key.map_or_else(String::new, |key| format!("    password {};\n", quote(key.reveal())))
}
