//! The tables of others: a chain for each service and each endpoint.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::PORT;

/// The table's name.
pub(crate) const TABLE: &str = "peer";
/// An endpoint that nobody is.
pub(crate) const SPARE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);

/// How a service's chain is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// By a map.
    Mapped,
    /// By one rule after the other.
    Listed,
}

/// The address of a service.
pub(crate) fn service(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(172, 20, 0, 0).to_bits().saturating_add(number))
}

/// The address of an endpoint; all services have the same.
pub(crate) fn endpoint(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number.saturating_add(1))
}

/// Renders the whole table.
pub(crate) fn render(shape: Shape, services: u32, endpoints: u8) -> String {
    let mut text = format!("table ip {TABLE} {{\n");
    for number in 0..services {
        let mut choices = Vec::new();
        for one in 0..endpoints {
            let address = endpoint(one);
            _ = writeln!(
                text,
                "chain e{number}_{one} {{ meta l4proto udp dnat to {address}:{PORT}; }}"
            );
            choices.push(format!("{one} : goto e{number}_{one}"));
        }
        let choices = choices.join(", ");
        _ = writeln!(
            text,
            "chain s{number} {{ numgen random mod {endpoints} vmap {{ {choices} }}; }}"
        );
    }
    match shape {
        Shape::Mapped => {
            text += "map services { type ipv4_addr . inet_proto . inet_service : verdict\nelements = {\n";
            for number in 0..services {
                _ = writeln!(text, "{} . udp . 80 : goto s{number},", service(number));
            }
            text += "}\n}\nchain find { ip daddr . meta l4proto . th dport vmap @services; }\n";
        }
        Shape::Listed => {
            text += "chain find {\n";
            for number in 0..services {
                _ = writeln!(text, "ip daddr {} udp dport 80 goto s{number}", service(number));
            }
            text += "}\n";
        }
    }
    text + "chain out { type nat hook output priority -100; jump find; }\n}\n"
}

/// Renders the change of the first service's first endpoint.
pub(crate) fn render_change(address: Ipv4Addr) -> String {
    format!(
        "flush chain ip {TABLE} e0_0\nadd rule ip {TABLE} e0_0 meta l4proto udp dnat to {address}:{PORT}\n"
    )
}
