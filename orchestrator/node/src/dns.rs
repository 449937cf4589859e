//! Cluster DNS: the names of services, their endpoints, and pods.
//!
//! A [`Zone`] is made of Services and EndpointSlices, one service at a time, and answers questions
//! about the cluster's domain and the reverse names of its addresses; of everything else it says
//! that it is foreign. It knows no sockets, no other name servers and no clock: the order of several
//! addresses turns with an argument.
//!
//! Spec: Kubernetes DNS-Based Service Discovery 1.1.0; RFC 1034, 1035, 2308 (negative answers),
//! 2782 (SRV), 3596 (AAAA).
//!
//! As CoreDNS with `pods insecure`: `A-B-C-D.NAMESPACE.pod` is answered without a look at pods.
//! *Limits*: no zone transfer, no wildcards.

mod cache;
mod zone;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, NS, PTR, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::IpNet;

pub use cache::Cache;
use zone::{Entry, Found};
pub use zone::{NotADomain, Zone};

/// The domain of a cluster's names: upstream's default, which programs rely on.
pub const DOMAIN: &str = "cluster.local";
/// How long an answer may be kept, in seconds: upstream's default.
pub const TTL_SECONDS: u32 = 5;
/// The version of the specification, as `dns-version` tells it.
const SPEC_VERSION: &str = "1.1.0";

/// What a zone says to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The zone's own answer.
    Answer(Answer),
    /// The name is another name for one that is to be looked up.
    Alias {
        /// The CNAME record.
        record: Box<Record>,
        /// The name to look up next.
        target: Name,
    },
    /// The zone knows nothing of such names: others must be asked.
    Foreign,
}

/// An answer with authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `NoError`, or `NXDomain` when there is no such name.
    pub code: ResponseCode,
    /// What was asked for; empty when the name exists, but nothing of that type.
    pub answers: Vec<Record>,
    /// Addresses of the targets in `answers`.
    pub additionals: Vec<Record>,
    /// The zone's SOA when there is no answer, so that resolvers know how long to believe it.
    pub authority: Option<Box<Record>>,
}

impl Zone {
    /// Answers a question; several records begin with the one that it is the turn of.
    #[must_use]
    pub fn answer(&self, query: &Query, turn: usize) -> Verdict {
        let name = query.name();
        if query.query_class() != DNSClass::IN {
            return Verdict::Foreign;
        }
        if !self.contains(name) {
            return self.answer_reverse(query);
        }
        let labels: Option<Vec<String>> = name
            .iter()
            .take(name.iter().len().saturating_sub(self.depth()))
            .map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase))
            .collect();
        let labels: Vec<&str> = labels.iter().flatten().map(String::as_str).collect();
        // The last label is the nearest to the domain.
        match *labels.as_slice() {
            [] => self.answer_apex(query),
            ["dns-version"] => {
                let text = RData::TXT(TXT::new(vec![SPEC_VERSION.to_owned()]));
                self.some(query, vec![text], Vec::new())
            }
            ["svc" | "pod"] => self.nothing(),
            [namespace, "svc" | "pod"] if self.has_namespace(namespace) => self.nothing(),
            [address, _, "pod"] => match zone::parse_dashed(address) {
                Some(address) => self.some(query, vec![zone::address_data(address)], Vec::new()),
                None => self.no_such_name(),
            },
            [ref rest @ .., service, namespace, "svc"] => match self.entry(namespace, service) {
                Some(entry) => self.answer_service(query, entry, rest, turn),
                None => self.no_such_name(),
            },
            _ => self.no_such_name(),
        }
    }

    fn answer_apex(&self, query: &Query) -> Verdict {
        match query.query_type() {
            RecordType::SOA => self.some(query, vec![self.soa().data], Vec::new()),
            RecordType::NS => self.some(query, vec![RData::NS(NS(self.server_name()))], Vec::new()),
            _ => self.nothing(),
        }
    }

    fn answer_service(&self, query: &Query, entry: &Entry, below: &[&str], turn: usize) -> Verdict {
        let found = match (entry, below) {
            (Entry::External(target), []) => {
                let data = RData::CNAME(CNAME(target.clone()));
                let record = Record::from_rdata(query.name().clone(), TTL_SECONDS, data);
                if query.query_type() == RecordType::CNAME {
                    return self.some(query, vec![record.data], Vec::new());
                }
                return Verdict::Alias { record: Box::new(record), target: target.clone() };
            }
            (Entry::External(_), _) => return self.no_such_name(),
            (entry, []) => entry.all(),
            (entry, [port, protocol]) => match (port.strip_prefix('_'), protocol.strip_prefix('_'))
            {
                (Some(port), Some(protocol)) => entry.port(port, protocol),
                _ => return self.no_such_name(),
            },
            (Entry::Headless(hosts), [host]) => zone::host(hosts, host),
            _ => return self.no_such_name(),
        };
        if found.is_empty() && !below.is_empty() {
            return self.no_such_name();
        }
        let Found { mut addresses, mut services, glue } = found;
        // Under a port's name there are services, not addresses.
        let wanted: Vec<RData> = match query.query_type() {
            RecordType::A => {
                addresses.retain(std::net::IpAddr::is_ipv4);
                rotated(addresses.into_iter().map(zone::address_data).collect(), turn)
            }
            RecordType::AAAA => {
                addresses.retain(std::net::IpAddr::is_ipv6);
                rotated(addresses.into_iter().map(zone::address_data).collect(), turn)
            }
            RecordType::SRV => {
                services.dedup();
                let glue = glue.into_iter().map(|(name, address)| {
                    Record::from_rdata(name, TTL_SECONDS, zone::address_data(address))
                });
                let glue = glue.collect();
                let services = services.into_iter().map(RData::SRV).collect();
                return self.some(query, rotated(services, turn), glue);
            }
            _ => Vec::new(),
        };
        self.some(query, wanted, Vec::new())
    }

    /// Answers `1.0.0.10.in-addr.arpa` and its like for addresses of services and named pods.
    fn answer_reverse(&self, query: &Query) -> Verdict {
        let is_reverse = {
            let mut labels = query.name().iter().rev();
            labels.next().is_some_and(|label| label.eq_ignore_ascii_case(b"arpa"))
                && labels.next().is_some_and(|label| {
                    label.eq_ignore_ascii_case(b"in-addr") || label.eq_ignore_ascii_case(b"ip6")
                })
        };
        let Some(net) = is_reverse.then(|| query.name().parse_arpa_name().ok()).flatten() else {
            return Verdict::Foreign;
        };
        let address = net.addr();
        if IpNet::from(address) != net {
            return Verdict::Foreign;
        }
        match self.reverse(address) {
            [] if self.owns(address) => self.no_such_name(),
            [] => Verdict::Foreign,
            names if query.query_type() == RecordType::PTR => {
                let data = names.iter().map(|name| RData::PTR(PTR(name.clone())));
                self.some(query, data.collect(), Vec::new())
            }
            _ => self.nothing(),
        }
    }

    /// The answer that has `data`, or the statement that there is nothing of that type.
    fn some(&self, query: &Query, data: Vec<RData>, additionals: Vec<Record>) -> Verdict {
        let wanted = query.query_type();
        let of_type = |data: &RData| data.record_type() == wanted || wanted == RecordType::ANY;
        let answers: Vec<Record> = data
            .into_iter()
            .filter(of_type)
            .map(|data| Record::from_rdata(query.name().clone(), TTL_SECONDS, data))
            .collect();
        if answers.is_empty() {
            return self.nothing();
        }
        Verdict::Answer(Answer {
            code: ResponseCode::NoError,
            answers,
            additionals,
            authority: None,
        })
    }

    /// The name is there, but nothing of the type asked for.
    fn nothing(&self) -> Verdict {
        self.negative(ResponseCode::NoError)
    }

    fn no_such_name(&self) -> Verdict {
        self.negative(ResponseCode::NXDomain)
    }

    fn negative(&self, code: ResponseCode) -> Verdict {
        Verdict::Answer(Answer {
            code,
            answers: Vec::new(),
            additionals: Vec::new(),
            authority: Some(Box::new(self.soa())),
        })
    }
}

fn rotated<T>(mut list: Vec<T>, turn: usize) -> Vec<T> {
    if let Some(turn) = turn.checked_rem(list.len()) {
        list.rotate_left(turn);
    }
    list
}

#[cfg(test)]
mod tests;
