//! Reads packet captures: who spoke with whom, by what, and whether something was carried inside.
//!
//! Classic pcap of Ethernet only, both byte orders; no pcapng. A capture cut off in the middle
//! of a packet gives the packets before it.

use std::net::Ipv4Addr;

/// Ethernet (LINKTYPE_ETHERNET).
const LINK_ETHERNET: u32 = 1;
const ETHER_IPV4: u16 = 0x0800;
const ETHER_VLAN: u16 = 0x8100;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// An IPv4 packet, as far as its headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Sender.
    pub source: Ipv4Addr,
    /// Receiver.
    pub target: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Ports of TCP and UDP, source first; `None` in later fragments and other protocols.
    pub ports: Option<(u16, u16)>,
}

impl Packet {
    /// Names the tunnel this packet is part of, if it is.
    #[must_use]
    pub fn encapsulation(&self) -> Option<&'static str> {
        match (self.protocol, self.ports) {
            (4, _) => Some("IPIP"),
            (41, _) => Some("IPv6 in IPv4"),
            (47, _) => Some("GRE"),
            (50 | 51, _) => Some("IPsec"),
            (PROTOCOL_UDP, Some((_, 4789 | 8472))) => Some("VXLAN"),
            (PROTOCOL_UDP, Some((_, 6081))) => Some("Geneve"),
            (PROTOCOL_UDP, Some((_, 51820))) => Some("WireGuard"),
            _ => None,
        }
    }
}

/// Finds the IPv4 packets of a capture; `None` when it is no capture of Ethernet.
#[must_use]
pub fn packets(capture: &[u8]) -> Option<Vec<Packet>> {
    let order = match capture.get(..4)? {
        [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1] => u32::from_le_bytes,
        [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d] => u32::from_be_bytes,
        _ => return None,
    };
    let word = |at: usize| Some(order(capture.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if word(20)? != LINK_ETHERNET {
        return None;
    }
    let mut found = Vec::new();
    let mut at = 24_usize;
    while let Some(len) = at.checked_add(8).and_then(word) {
        let Some(len) = usize::try_from(len).ok() else { break };
        let Some(end) = at.checked_add(16).and_then(|start| start.checked_add(len)) else { break };
        let Some(frame) = capture.get(at + 16..end) else { break };
        found.extend(ipv4(frame));
        at = end;
    }
    Some(found)
}

fn ipv4(frame: &[u8]) -> Option<Packet> {
    let kind = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    let payload = match kind(12)? {
        ETHER_IPV4 => 14,
        ETHER_VLAN if kind(16)? == ETHER_IPV4 => 18,
        _ => return None,
    };
    let header = frame.get(payload..)?;
    let address = |at: usize| -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    let header_len = usize::from(header.first()? & 0x0f) * 4;
    let protocol = *header.get(9)?;
    let fragment = u16::from_be_bytes(header.get(6..8)?.try_into().ok()?) & 0x1fff;
    let port = |at: usize| -> Option<u16> {
        Some(u16::from_be_bytes(header.get(header_len + at..header_len + at + 2)?.try_into().ok()?))
    };
    let has_ports = fragment == 0 && matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP);
    let ports = if has_ports { port(0).zip(port(2)) } else { None };
    Some(Packet { source: address(12)?, target: address(16)?, protocol, ports })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(frames: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0];
        bytes.extend([0; 8]);
        bytes.extend(65535_u32.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        for frame in frames {
            bytes.extend([0; 8]);
            let len = u32::try_from(frame.len()).unwrap();
            bytes.extend(len.to_le_bytes());
            bytes.extend(len.to_le_bytes());
            bytes.extend(*frame);
        }
        bytes
    }

    fn frame(protocol: u8, ports: (u16, u16)) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00]);
        bytes.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0]);
        bytes.extend([172, 20, 12, 2, 172, 20, 21, 3]);
        bytes.extend(ports.0.to_be_bytes());
        bytes.extend(ports.1.to_be_bytes());
        bytes
    }

    #[test]
    fn addresses_ports_and_tunnels_are_seen() {
        let frames = [frame(6, (4000, 80)), frame(17, (4000, 4789)), frame(47, (0, 0)), vec![1, 2]];
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let found = packets(&capture(&frames)).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].source, Ipv4Addr::new(172, 20, 12, 2));
        assert_eq!(found[0].ports, Some((4000, 80)));
        let tunnels: Vec<_> = found.iter().map(Packet::encapsulation).collect();
        assert_eq!(tunnels, [None, Some("VXLAN"), Some("GRE")]);
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        let (whole, frame) = (frame(6, (1, 2)), frame(6, (1, 2)));
        let bytes = capture(&[&whole, &frame]);
        assert_eq!(packets(&bytes[..bytes.len() - 1]).unwrap().len(), 1);
        assert_eq!(packets(b"not a capture at all"), None);
    }

    #[test]
    fn any_bytes_are_answered() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            let mut whole = capture(&[]);
            whole.extend(bytes);
            assert!(packets(&whole).is_some());
            assert!(packets(&capture(&[bytes])).is_some_and(|found| found.len() <= 1));
            drop(packets(bytes));
        });
    }
}
