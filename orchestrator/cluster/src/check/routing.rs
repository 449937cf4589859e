//! How a rack announces its pod networks: the mapping `racks[].routing`.

use super::fields::{Fields, Found, Problems, Refusal, scalar};
use super::{NODE_ASN_BASE, NODE_MAX, word};
use crate::document::Node;
use crate::plan::{Authentication, Numbering, RackRouting};

const KEYS: [&str; 8] =
    ["mode", "torAsn", "tors", "area", "asn", "reflectors", "authentication", "numbering"];
/// More routers than a rack has power supplies.
const TORS_MAX: usize = 4;
/// One may fail; more only add sessions.
const REFLECTORS_MAX: usize = 2;
const MODES: &str = "the modes are bgp, ibgp and ospf";

/// A rack's routing as far as it could be read.
#[derive(Debug)]
pub(super) struct RoutingDraft {
    pub(super) routing: Found<RackRouting>,
    pub(super) authentication: Authentication,
    pub(super) tors: Vec<Found<std::net::Ipv4Addr>>,
    pub(super) reflectors: Vec<Found<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Bgp,
    Ibgp,
    Ospf,
}

/// Reads the mapping.
pub(super) fn read(path: &str, node: &Node, problems: &mut Problems) -> Option<RoutingDraft> {
    let fields = Fields::open(path, node, &KEYS, problems)?;
    let mode = fields.required("mode", MODES, problems, |text| match text {
        "bgp" => Ok(Mode::Bgp),
        "ibgp" => Ok(Mode::Ibgp),
        "ospf" => Ok(Mode::Ospf),
        _ => Err(Refusal::new("is an unknown routing mode", MODES)),
    });
    let tor_asn = fields.optional("torAsn", problems, asn);
    let own_asn = fields.optional("asn", problems, asn);
    let area = fields.optional("area", problems, |text| word::number(text, 0, u32::MAX - 1));
    let tors = list(&fields, "tors", problems, word::address, TORS_MAX);
    let reflectors = list(&fields, "reflectors", problems, word::label, REFLECTORS_MAX);
    let authentication = fields.optional("authentication", problems, |text| match text {
        "none" => Ok(Authentication::None),
        "key" => Ok(Authentication::Key),
        _ => {
            let hint = "write key, and put the key into the Secret kube-system/muster-routing";
            Err(Refusal::new("is neither none nor key", hint))
        }
    });
    let numbering = fields.optional("numbering", problems, |text| match text {
        "numbered" => Ok(Numbering::Numbered),
        "unnumbered" => Ok(Numbering::Unnumbered),
        _ => {
            let hint = "write unnumbered where routers have fe80::1 on every port";
            Err(Refusal::new("is neither numbered nor unnumbered", hint))
        }
    });
    let mode = mode?.value;
    only(&fields, mode, problems);
    let value = match mode {
        Mode::Bgp => {
            if fields.node("torAsn").is_none() {
                fields.missing("torAsn", "the ToR router's AS number, as in 65001", problems);
            }
            let tors = tors.iter().map(|found| found.value).collect();
            let numbering = numbering.map_or(Numbering::Numbered, |found| found.value);
            RackRouting::Bgp { tor_asn: tor_asn?.value, tors, numbering }
        }
        Mode::Ibgp => {
            if fields.node("asn").is_none() {
                fields.missing("asn", "the AS number of the rack's nodes, as in 65010", problems);
            }
            let reflectors = reflectors.iter().map(|found| found.value.clone()).collect();
            RackRouting::Ibgp { asn: own_asn?.value, reflectors }
        }
        Mode::Ospf => RackRouting::Ospf {
            area: area.map_or(0, |area| area.value),
            tor_asn: tor_asn.map(|asn| asn.value),
        },
    };
    Some(RoutingDraft {
        routing: Found { value, place: fields.place.clone() },
        authentication: authentication.map_or(Authentication::None, |found| found.value),
        tors,
        reflectors,
    })
}

/// Reports keys of another mode.
fn only(fields: &Fields<'_>, mode: Mode, problems: &mut Problems) {
    for (key, modes, names) in [
        ("torAsn", &[Mode::Bgp, Mode::Ospf][..], "the modes bgp and ospf"),
        ("tors", &[Mode::Bgp], "mode bgp"),
        ("numbering", &[Mode::Bgp], "mode bgp"),
        ("area", &[Mode::Ospf], "mode ospf"),
        ("asn", &[Mode::Ibgp], "mode ibgp"),
        ("reflectors", &[Mode::Ibgp], "mode ibgp"),
    ] {
        if let Some((node, path)) = fields.node(key)
            && !modes.contains(&mode)
        {
            let rule = format!("belongs to {names}");
            let hint = "remove it, or change the mode";
            problems.add(&node.place(path), node.shape(), rule, hint);
        }
    }
}

fn asn(text: &str) -> Result<u32, Refusal> {
    let asn = word::number(text, 1, u32::MAX - 1)?;
    if (NODE_ASN_BASE..=NODE_ASN_BASE + NODE_MAX).contains(&asn) {
        let rule = "lies in the range of the nodes' own AS numbers";
        return Err(Refusal::new(rule, "take one from 64512 to 65534"));
    }
    Ok(asn)
}

/// Reads a short list without twins.
fn list<T: PartialEq + std::fmt::Display>(
    fields: &Fields<'_>,
    key: &str,
    problems: &mut Problems,
    parse: impl Fn(&str) -> Result<T, Refusal>,
    most: usize,
) -> Vec<Found<T>> {
    let mut all: Vec<Found<T>> = Vec::new();
    for (node, path) in fields.list(key, problems) {
        let Some(found) = scalar(&path, node, problems, &parse) else { continue };
        if all.iter().any(|other| other.value == found.value) {
            problems.add(&found.place, &found.value, "is listed twice", "keep one of the two");
        } else if all.len() == most {
            let rule = format!("is one more than the {most} there may be");
            problems.add(&found.place, &found.value, rule, "remove it");
        } else {
            all.push(found);
        }
    }
    all
}
