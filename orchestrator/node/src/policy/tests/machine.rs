//! As much of nft as the rendered scripts speak: loads them, strictly, and passes packets.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Packet;

/// The kernel's tables by family.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    tables: BTreeMap<String, Table>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Table {
    /// Sets and maps: the verdict of an element, empty in a set.
    sets: BTreeMap<String, BTreeMap<String, String>>,
    chains: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    /// To the next rule of the caller.
    Return,
}

fn elements(text: &str) -> Vec<&str> {
    let (_, inside) = text.split_once('{').unwrap();
    inside.trim_end().strip_suffix('}').unwrap().split(',').map(str::trim).collect()
}

impl Machine {
    /// Applies a script; panics where the kernel would refuse.
    #[track_caller]
    pub(super) fn apply(&mut self, script: &str) {
        let mut lines = script.lines();
        while let Some(line) = lines.next() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["add", "table", family, _] => _ = self.tables.entry((*family).into()).or_default(),
                ["delete", "table", family, _] => assert!(self.tables.remove(*family).is_some()),
                ["table", family, _, "{"] => {
                    let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "}").collect();
                    self.tables.entry((*family).into()).or_default().define(&block);
                }
                [verb, what, family, _, name, rest @ ..] => {
                    let table = self.tables.get_mut(*family).expect("a table");
                    table.change((verb, what), name, rest, line);
                }
                _ => panic!("{line}"),
            }
        }
    }

    /// Whether the first packet of a connection is forwarded.
    pub(super) fn forwards(&self, packet: &Packet) -> bool {
        let family = if packet.from.is_ipv4() { "ip" } else { "ip6" };
        let Some(table) = self.tables.get(family) else { return true };
        table.run("forward", packet) != Verdict::Drop
    }

    /// How many sets and chains there are.
    pub(super) fn size(&self) -> usize {
        self.tables.values().map(|table| table.sets.len() + table.chains.len()).sum()
    }
}

impl Table {
    fn define(&mut self, block: &[&str]) {
        let mut chain = None;
        for line in block {
            let words: Vec<&str> = line.split_whitespace().collect();
            match (chain, words.as_slice()) {
                (None, ["map" | "set", name, ..]) => {
                    assert!(self.sets.insert((*name).into(), BTreeMap::new()).is_none());
                }
                (None, ["chain", name, "{"]) => {
                    self.chains.insert((*name).into(), Vec::new());
                    chain = Some(*name);
                }
                (Some(_), ["}"]) => chain = None,
                (Some(_), ["type", "filter", "hook", ..]) => (),
                (Some(name), _) => self.chains.get_mut(name).unwrap().push(line.trim().to_owned()),
                _ => panic!("{line}"),
            }
        }
    }

    fn change(&mut self, what: (&str, &str), name: &str, rest: &[&str], line: &str) {
        let target = format!("jump {name}");
        let refers = |rules: &Vec<String>| {
            rules.iter().any(|rule| rule.split(' ').any(|word| word == format!("@{name}")))
        };
        match what {
            ("add", "set") => assert!(self.sets.insert(name.into(), BTreeMap::new()).is_none()),
            ("delete", "set") => {
                assert!(!self.chains.values().any(refers), "{line}: in use");
                assert!(self.sets.remove(name).is_some(), "{line}");
            }
            ("add", "element") => {
                for element in elements(line) {
                    let (key, verdict) = element.split_once(" : ").unwrap_or((element, ""));
                    if let Some(chain) = verdict.strip_prefix("jump ") {
                        assert!(self.chains.contains_key(chain), "{line}");
                    }
                    let set = self.sets.get_mut(name).expect("a set");
                    assert!(set.insert(key.into(), verdict.into()).is_none(), "{line}: twice");
                }
            }
            ("delete", "element") => {
                for element in elements(line) {
                    let set = self.sets.get_mut(name).expect("a set");
                    assert!(set.remove(element).is_some(), "{line}: not there");
                }
            }
            ("add", "chain") => assert!(self.chains.insert(name.into(), Vec::new()).is_none()),
            ("add", "rule") => self.chains.get_mut(name).expect("a chain").push(rest.join(" ")),
            ("flush", "chain") => self.chains.get_mut(name).expect("a chain").clear(),
            ("delete", "chain") => {
                let used = self.sets.values().flat_map(BTreeMap::values).any(|v| *v == target);
                assert!(!used, "{line}: in use");
                assert!(self.chains.remove(name).is_some(), "{line}");
            }
            _ => panic!("{line}"),
        }
    }

    fn run(&self, chain: &str, packet: &Packet) -> Verdict {
        for rule in &self.chains[chain] {
            match self.rule(rule, packet) {
                None | Some(Verdict::Return) if chain == "forward" => (),
                None => (),
                Some(verdict) => return verdict,
            }
        }
        Verdict::Return
    }

    /// What a rule says of a packet; `None` when it is not about it.
    fn rule(&self, rule: &str, packet: &Packet) -> Option<Verdict> {
        let mut words = rule.split(' ');
        let mut key: Vec<String> = Vec::new();
        loop {
            let word = words.next().expect("a verdict");
            match word {
                "accept" => return Some(Verdict::Accept),
                "drop" => return Some(Verdict::Drop),
                "return" => return Some(Verdict::Return),
                "ct" => return None,
                "." => (),
                "ip" | "ip6" => key.push(match words.next() {
                    Some("saddr") => packet.from.to_string(),
                    Some("daddr") => packet.to.to_string(),
                    other => panic!("{other:?}"),
                }),
                "tcp" | "udp" | "sctp" => {
                    assert_eq!(words.next(), Some("dport"));
                    if word != packet.protocol {
                        return None;
                    }
                    key.push(packet.port.to_string());
                }
                "meta" => {
                    assert_eq!(words.next(), Some("l4proto"));
                    if words.next() != Some(packet.protocol) {
                        return None;
                    }
                }
                "vmap" => {
                    let map = &self.sets[words.next().unwrap().strip_prefix('@').unwrap()];
                    let chain = map.get(&key.join(" . "))?.strip_prefix("jump ").unwrap();
                    return Some(self.run(chain, packet));
                }
                test => {
                    let wanted = test != "!=";
                    let test = if wanted { test } else { words.next().unwrap() };
                    let one = std::mem::take(&mut key).join(" . ");
                    let found = match test {
                        "{" => {
                            let inside: Vec<&str> =
                                words.by_ref().take_while(|word| *word != "}").collect();
                            inside.iter().any(|item| is_in(&one, item.trim_end_matches(',')))
                        }
                        set if set.starts_with('@') => self.sets[&set[1..]].contains_key(&one),
                        net => is_in(&one, net),
                    };
                    if found != wanted {
                        return None;
                    }
                }
            }
        }
    }
}

/// Whether an address is in a block, or a port in a range.
fn is_in(one: &str, item: &str) -> bool {
    if let Ok(address) = one.parse::<IpAddr>() {
        return item.parse::<IpNet>().unwrap().contains(&address);
    }
    let (first, last) = item.split_once('-').unwrap_or((item, item));
    let number = |text: &str| text.parse::<u16>().unwrap();
    (number(first)..=number(last)).contains(&number(one))
}
