//! BIRD's control protocol, without the socket.
//!
//! A reply is lines of `CCCC-text` (more follow), `CCCC text` (the last) or ` text` (the code of
//! the line before). Codes 0xxx are success, 1xxx rows, 2xxx headings, 8xxx run-time errors, 9xxx
//! errors of the command. [`Reader`] turns bytes into [`Reply`]s; the functions below read them.
//!
//! *Limits*: reads the few replies Muster asks for; anything else is kept as text.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use crate::compare::Way;

/// A line longer than this is not BIRD's.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// A reply of more lines than this is not one that we asked for.
const REPLY_LINES_MAX: usize = 200_000;

/// One line of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The four-digit code.
    pub code: u16,
    /// What follows it.
    pub text: String,
}

/// One whole reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// All lines; the last one's code is the outcome. Never empty.
    pub lines: Vec<Line>,
}

impl Reply {
    /// The outcome: the last line's code.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.lines.last().map_or(0, |line| line.code)
    }

    /// Whether BIRD refused or failed.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.code() >= 8000
    }

    /// The texts of all lines with this code, in order.
    pub fn texts(&self, code: u16) -> impl Iterator<Item = &str> {
        self.lines.iter().filter(move |line| line.code == code).map(|line| line.text.as_str())
    }

    /// All texts, one a line, for people.
    #[must_use]
    pub fn text(&self) -> String {
        let texts: Vec<&str> = self.lines.iter().map(|line| line.text.as_str()).collect();
        texts.join("\n")
    }
}

/// Bytes that are no control protocol.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReadError {
    /// A line begins with neither a code nor a space.
    #[error("line {line:?} at byte {offset} has no reply code")]
    NoCode {
        /// The line, cut short.
        line: String,
        /// Where it begins in the stream.
        offset: u64,
    },
    /// A line or a reply is too long.
    #[error("reply at byte {offset} exceeds its limit")]
    TooLong {
        /// Where the reader stood in the stream.
        offset: u64,
    },
}

/// Collects bytes into replies.
#[derive(Debug, Default)]
pub struct Reader {
    partial: Vec<u8>,
    lines: Vec<Line>,
    offset: u64,
}

impl Reader {
    /// Takes bytes as they come and returns the replies that they complete.
    ///
    /// # Errors
    ///
    /// When the bytes are no control protocol; the stream is of no further use then.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Vec<Reply>, ReadError> {
        let mut replies = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = rest.split_at(end);
            self.partial.extend_from_slice(head);
            rest = tail.get(1..).unwrap_or_default();
            let line = std::mem::take(&mut self.partial);
            replies.extend(self.line(&line)?);
            self.offset = self.offset.saturating_add(u64::try_from(line.len()).unwrap_or(0) + 1);
        }
        self.partial.extend_from_slice(rest);
        if self.partial.len() > LINE_BYTES_MAX {
            return Err(ReadError::TooLong { offset: self.offset });
        }
        Ok(replies)
    }

    fn line(&mut self, bytes: &[u8]) -> Result<Option<Reply>, ReadError> {
        if bytes.len() > LINE_BYTES_MAX || self.lines.len() >= REPLY_LINES_MAX {
            return Err(ReadError::TooLong { offset: self.offset });
        }
        let text = String::from_utf8_lossy(bytes);
        if let Some(more) = text.strip_prefix(' ')
            && let Some(code) = self.lines.last().map(|line| line.code)
        {
            self.lines.push(Line { code, text: more.to_owned() });
            return Ok(None);
        }
        // An asynchronous message, as `echo` sends; nothing waits for it.
        if text.starts_with('+') {
            return Ok(None);
        }
        let (code, last, rest) = coded(&text).ok_or_else(|| ReadError::NoCode {
            line: text.chars().take(40).collect(),
            offset: self.offset,
        })?;
        self.lines.push(Line { code, text: rest.to_owned() });
        Ok(last.then(|| Reply { lines: std::mem::take(&mut self.lines) }))
    }
}

/// Splits `CCCC-text` or `CCCC text`; true for the last line of a reply.
fn coded(line: &str) -> Option<(u16, bool, &str)> {
    let digits = line.get(..4)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let last = match line.as_bytes().get(4) {
        Some(b'-') => false,
        Some(b' ') | None => true,
        Some(_) => return None,
    };
    Some((digits.parse().ok()?, last, line.get(5..).unwrap_or_default()))
}

/// One row of `show protocols`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtocolRow {
    /// The instance's name (`tor1`).
    pub name: String,
    /// The kind (`BGP`).
    pub kind: String,
    /// Up, down, start, stop.
    pub state: String,
    /// Since when, in BIRD's words.
    pub since: String,
    /// What the protocol says of itself (`Established`).
    pub info: String,
}

impl ProtocolRow {
    /// Whether it exchanges routes: an established BGP session, an OSPF instance with a
    /// neighbour, any other protocol that is up.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let info = match self.kind.as_str() {
            "BGP" => "Established",
            "OSPF" => "Running",
            _ => "",
        };
        self.state == "up" && self.info.starts_with(info)
    }
}

/// Reads `show protocols`; rows of unknown shape are skipped.
#[must_use]
pub fn parse_protocols(reply: &Reply) -> Vec<ProtocolRow> {
    reply.texts(1002).filter_map(parse_protocol).collect()
}

fn parse_protocol(row: &str) -> Option<ProtocolRow> {
    let mut words = row.split_whitespace().peekable();
    let mut next = || words.next().map(str::to_owned);
    let name = next()?;
    let kind = next()?;
    let _table = next()?;
    let state = next()?;
    let mut since = next().unwrap_or_default();
    // A date may be followed by a time of day.
    if since.contains('-')
        && let Some(time) = words.next_if(|word| word.contains(':'))
    {
        since = format!("{since} {time}");
    }
    let info = words.collect::<Vec<_>>().join(" ");
    Some(ProtocolRow { name, kind, state, since, info })
}

/// How many prefixes a protocol takes and gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Taken into the table.
    pub imported: u64,
    /// Refused by the filter, where BIRD keeps those.
    pub filtered: u64,
    /// Told to the other side.
    pub exported: u64,
}

/// Reads the prefix counts of `show protocols all`, over all channels of a protocol.
#[must_use]
pub fn parse_counts(reply: &Reply) -> BTreeMap<String, Counts> {
    let mut all: BTreeMap<String, Counts> = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in &reply.lines {
        if line.code == 1002 {
            current = line.text.split_whitespace().next().map(str::to_owned);
            continue;
        }
        let counts = line.text.trim_start().strip_prefix("Routes:");
        let (Some(name), Some(counts)) = (&current, counts) else { continue };
        let entry = all.entry(name.clone()).or_default();
        for part in counts.split(',') {
            let mut words = part.split_whitespace();
            let Some(Ok(number)) = words.next().map(str::parse::<u64>) else { continue };
            let field = match words.next() {
                Some("imported") => &mut entry.imported,
                Some("filtered") => &mut entry.filtered,
                Some("exported") => &mut entry.exported,
                _ => continue,
            };
            *field = field.saturating_add(number);
        }
    }
    all
}

/// One destination of `show route`, with all ways there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BirdRoute {
    /// Which packets it is for.
    pub destination: IpNet,
    /// Where they go.
    pub way: Way,
    /// The protocol instance it came from.
    pub from: String,
}

/// Reads `show route` and `show route export`; lines of unknown shape are skipped. Several routes
/// to one destination are one with all their ways, in the order BIRD prefers them.
#[must_use]
pub fn parse_routes(reply: &Reply) -> Vec<BirdRoute> {
    let mut routes: Vec<BirdRoute> = Vec::new();
    for line in reply.texts(1007) {
        if let Some(gateway) = parse_gateway(line) {
            if let Some(Way::Via(gateways)) = routes.last_mut().map(|route| &mut route.way)
                && !gateways.contains(&gateway)
            {
                gateways.push(gateway);
            }
            continue;
        }
        routes.extend(parse_route(line));
    }
    for route in &mut routes {
        if route.way == Way::Via(Vec::new()) {
            route.way = Way::Link;
        }
    }
    routes
}

/// `10.2.0.0/24 unicast [tor1 08:00:01.123] * (100) [AS65001i]`. A second route to the same
/// destination has blanks in its place, and is a further way of the first.
fn parse_route(line: &str) -> Option<BirdRoute> {
    let mut words = line.split_whitespace();
    let destination = words.next()?.parse().ok()?;
    let way = match words.next()? {
        "unicast" | "multipath" => Way::Via(Vec::new()),
        "blackhole" | "unreachable" | "prohibited" => Way::Blackhole,
        _ => return None,
    };
    let from = words.next()?.strip_prefix('[')?.trim_end_matches(']').to_owned();
    Some(BirdRoute { destination, way, from })
}

/// `\tvia 10.0.0.2 on eth0 weight 1`.
fn parse_gateway(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    (words.next()? == "via").then(|| words.next()?.parse().ok())?
}

/// The figures of `show route count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteCount {
    /// Routes in all tables.
    pub routes: u64,
    /// Networks they lead to.
    pub networks: u64,
}

/// Reads `show route count`: the sum line where there is one, the only table's otherwise.
#[must_use]
pub fn parse_route_count(reply: &Reply) -> Option<RouteCount> {
    let counts: Vec<(bool, RouteCount)> =
        reply.lines.iter().filter_map(|line| count_line(&line.text)).collect();
    let total = counts.iter().find(|(total, _)| *total).or_else(|| counts.first());
    total.map(|(_, count)| *count)
}

/// `12 of 12 routes for 7 networks in table master4`, `Total: 12 of 12 routes for 7 networks …`.
fn count_line(text: &str) -> Option<(bool, RouteCount)> {
    let (total, text) = match text.strip_prefix("Total:") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut words = text.split_whitespace();
    let mut count = RouteCount { routes: words.next()?.parse().ok()?, networks: 0 };
    while let Some(word) = words.next() {
        if word == "for" {
            count.networks = words.next()?.parse().ok()?;
            return Some((total, count));
        }
    }
    None
}

/// What became of `configure` or `configure check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Configured {
    /// The file is well-formed; nothing was changed.
    Checked,
    /// The new configuration is in force.
    Applied,
    /// It will be in force when what is under way has ended.
    Underway,
    /// BIRD is shutting down and takes no configuration.
    ShuttingDown,
    /// Refused; the running configuration is untouched.
    Refused {
        /// Why, usually `file:line:column message`.
        message: String,
    },
}

/// Reads the reply to `configure` or `configure check`.
#[must_use]
pub fn parse_configured(reply: &Reply) -> Configured {
    match reply.code() {
        3 => Configured::Applied,
        4 | 5 | 18 => Configured::Underway,
        6 => Configured::ShuttingDown,
        20 => Configured::Checked,
        _ => {
            let last = reply.lines.last().map(|line| line.text.clone());
            Configured::Refused { message: last.unwrap_or_default() }
        }
    }
}

#[cfg(test)]
mod tests;
