//! Lines of container logs, and which of them were asked for.
//!
//! The runtime writes `TIME STREAM TAG TEXT`, one line per write of the program; tag `P` says
//! that the next line goes on. [`Printer`] turns the bytes of such a file, in pieces of any
//! size, into what `kubectl logs` shows.
//!
//! Spec: CRI's log format; the query of upstream's `/containerLogs`.

use jiff::{SignedDuration, Timestamp};
use thiserror::Error;

/// How much of a log stands in for last words.
const LAST_LINES_MAX: usize = 80;
/// The same in bytes.
const LAST_BYTES_MAX: usize = 2048;
/// The longest line kept together while its end has not come; the runtime cuts at 16 KiB.
const LINE_BYTES_MAX: usize = 256 << 10;

/// What was asked of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// Go on until the container ends.
    pub follow: bool,
    /// Only the last lines.
    pub tail: Option<u64>,
    /// The life before the present one.
    pub previous: bool,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Only lines from then on.
    pub since: Option<Timestamp>,
    /// No more bytes than that.
    pub limit_bytes: Option<u64>,
}

/// A query that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{name}={value} is not {rule}")]
pub struct QueryError {
    /// The parameter.
    pub name: &'static str,
    /// What was given.
    pub value: String,
    /// What it must be.
    pub rule: &'static str,
}

/// One line of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// When it was written, as the runtime wrote it.
    pub time: &'a str,
    /// Whether the program's line goes on in the next one.
    pub partial: bool,
    /// What the program wrote, without the end of line.
    pub text: &'a [u8],
}

/// What stands in for a container's last words: the end of its log, given the end of that file.
///
/// Spec: upstream's `FallbackToLogsOnError`: 80 lines, and of those the last 2,048 bytes.
#[must_use]
pub fn last_lines(file: &str) -> String {
    let starts = file.trim_end_matches('\n').rmatch_indices('\n').map(|(at, _)| at + 1);
    let from = starts.take(LAST_LINES_MAX).nth(LAST_LINES_MAX - 1).unwrap_or(0);
    let mut out = Vec::new();
    Printer::new(&Query::default()).feed(file.get(from..).unwrap_or(file).as_bytes(), &mut out);
    let cut = out.len().saturating_sub(LAST_BYTES_MAX);
    String::from_utf8_lossy(out.get(cut..).unwrap_or(&out)).into_owned()
}

/// Parses a query string; unknown parameters are skipped.
///
/// # Errors
///
/// When a number or time is none.
pub fn parse_query(query: &str, now: Timestamp) -> Result<Query, QueryError> {
    let mut out = Query::default();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "follow" => out.follow = flag("follow", value)?,
            "previous" => out.previous = flag("previous", value)?,
            "timestamps" => out.timestamps = flag("timestamps", value)?,
            "tailLines" => out.tail = Some(number("tailLines", value)?),
            "limitBytes" => out.limit_bytes = Some(number("limitBytes", value)?),
            "sinceSeconds" => {
                let seconds = i64::try_from(number("sinceSeconds", value)?).unwrap_or(i64::MAX);
                let since = now.checked_sub(SignedDuration::from_secs(seconds));
                out.since = Some(since.unwrap_or(Timestamp::UNIX_EPOCH));
            }
            "sinceTime" => {
                let text = value.replace("%3A", ":").replace("%3a", ":").replace("%2B", "+");
                let since = text.parse().map_err(|_| QueryError {
                    name: "sinceTime",
                    value: value.to_owned(),
                    rule: "an RFC 3339 time",
                })?;
                out.since = Some(since);
            }
            _ => {}
        }
    }
    Ok(out)
}

fn flag(name: &'static str, value: &str) -> Result<bool, QueryError> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(QueryError { name, value: value.to_owned(), rule: "true or false" }),
    }
}

fn number(name: &'static str, value: &str) -> Result<u64, QueryError> {
    let rule = "a whole number";
    value.parse().map_err(|_| QueryError { name, value: value.to_owned(), rule })
}

/// Parses one line, without its end; `None` when the runtime did not write it.
#[must_use]
pub fn parse_line(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = parts.next()?;
    let tag = parts.next()?;
    let text = parts.next().unwrap_or_default();
    if stream != b"stdout" && stream != b"stderr" {
        return None;
    }
    // Tags may be joined by colons; the first says whether the line is whole.
    Some(Line { time, partial: tag.split(|b| *b == b':').next() == Some(b"P"), text })
}

/// Where the last `lines` lines of a block begin, and how many of them it holds.
///
/// For reading a file from its end: when the block holds fewer than asked for, the start is 0
/// and the rest is in the block before. A line without an end counts as a line.
#[must_use]
pub fn tail_start(block: &[u8], lines: u64, at_end_of_file: bool) -> (usize, u64) {
    if lines == 0 {
        return (block.len(), 0);
    }
    let mut found = 0;
    let last = block.len().saturating_sub(1);
    for (index, byte) in block.iter().enumerate().rev() {
        // The end of the very last line does not begin another one.
        if *byte != b'\n' || (at_end_of_file && index == last) {
            continue;
        }
        found += 1;
        if found == lines {
            return (index.saturating_add(1), found);
        }
    }
    (0, found)
}

/// Turns a log file's bytes into what was asked for.
#[derive(Debug, Clone)]
pub struct Printer {
    timestamps: bool,
    since: Option<Timestamp>,
    left_bytes: Option<u64>,
    /// The beginning of a line whose end has not come.
    rest: Vec<u8>,
    /// Whether the last line printed goes on, so that no time is put into the middle.
    open: bool,
}

impl Printer {
    /// A printer for one file.
    #[must_use]
    pub fn new(query: &Query) -> Self {
        Self {
            timestamps: query.timestamps,
            since: query.since,
            left_bytes: query.limit_bytes,
            rest: Vec::new(),
            open: false,
        }
    }

    /// Takes more bytes of the file and appends what they show to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut whole = std::mem::take(&mut self.rest);
        whole.extend_from_slice(bytes);
        let mut lines = whole.split(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            if lines.peek().is_none() {
                // Behind the last end of line: the beginning of the next one.
                if line.len() <= LINE_BYTES_MAX {
                    self.rest = line.to_vec();
                } else {
                    self.print(line, out);
                }
                break;
            }
            self.print(line, out);
        }
    }

    /// Tells whether as many bytes were printed as were asked for.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.left_bytes == Some(0)
    }

    fn print(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse_line(line) else { return };
        if let Some(since) = self.since
            && line.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return;
        }
        if self.timestamps && !self.open {
            self.put(line.time.as_bytes(), out);
            self.put(b" ", out);
        }
        self.put(line.text, out);
        if !line.partial {
            self.put(b"\n", out);
        }
        self.open = line.partial;
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let length = match self.left_bytes {
            Some(left) => usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()),
            None => bytes.len(),
        };
        out.extend_from_slice(bytes.get(..length).unwrap_or_default());
        if let Some(left) = &mut self.left_bytes {
            *left = left.saturating_sub(u64::try_from(length).unwrap_or(u64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = b"2026-01-02T03:04:05.000000001Z stdout F one\n\
        2026-01-02T03:04:06Z stderr P tw\n\
        2026-01-02T03:04:06Z stderr F o\n\
        not a line\n\
        2026-01-02T03:04:07Z stdout F \n\
        2026-01-02T03:04:08Z stdout F four\n";

    /// Every way to cut the file in two gives the same output.
    #[track_caller]
    fn check(query: &str, expected: &str) {
        let now = "2026-01-02T03:04:10Z".parse().unwrap();
        let query = parse_query(query, now).unwrap();
        for cut in 0..=FILE.len() {
            let mut printer = Printer::new(&query);
            let mut out = Vec::new();
            printer.feed(&FILE[..cut], &mut out);
            printer.feed(&FILE[cut..], &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_log_shows_what_was_asked_for() {
        check("", "one\ntwo\n\nfour\n");
        check(
            "timestamps=true&sinceSeconds=4",
            "2026-01-02T03:04:06Z two\n2026-01-02T03:04:07Z \n2026-01-02T03:04:08Z four\n",
        );
        check("limitBytes=5", "one\nt");
        check("sinceTime=2026-01-02T03%3A04%3A08Z", "four\n");
    }

    #[test]
    fn the_end_of_a_log_stands_in_for_last_words() {
        let line = |text: &str| format!("2024-01-01T00:00:00Z stdout F {text}\n");
        let log = |count: usize, text: &str| -> String {
            (0..count).map(|number| line(&format!("{text}{number}"))).collect()
        };
        assert_eq!(last_lines(""), "");
        assert_eq!(last_lines(&log(2, "a")), "a0\na1\n");
        let many = last_lines(&log(200, "a"));
        assert_eq!((many.lines().count(), many.lines().next()), (80, Some("a120")));
        assert_eq!(last_lines(&line("")), "\n");
        let long = "x".repeat(100);
        assert_eq!(last_lines(&log(79, &long)).len(), 2048);
        // The file's end may begin within a line.
        assert_eq!(last_lines(&format!("lf a line\n{}", line("whole"))), "whole\n");
    }

    #[test]
    fn the_tail_is_found_from_the_end() {
        let check = |block: &str, lines, end, expected| {
            assert_eq!(tail_start(block.as_bytes(), lines, end), expected, "{block:?} {lines}");
        };
        check("a\nb\nc\n", 1, true, (4, 1));
        check("a\nb\nc\n", 3, true, (0, 2));
        check("a\nb\nc", 1, true, (4, 1));
        check("a\nb\n", 1, false, (4, 1));
        check("a\nb\n", 0, true, (4, 0));
    }

    #[test]
    fn nonsense_in_a_query_is_named() {
        let now = Timestamp::UNIX_EPOCH;
        let err = parse_query("tailLines=many", now).unwrap_err();
        assert_eq!(err.to_string(), "tailLines=many is not a whole number");
        assert!(parse_query("follow=maybe", now).is_err());
        let all = parse_query("follow=true&previous=1&x=y&tailLines=3", now).unwrap();
        assert_eq!(all, Query { follow: true, previous: true, tail: Some(3), ..Query::default() });
    }

    #[test]
    fn no_bytes_stop_the_printer() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            let query = Query { timestamps: true, limit_bytes: Some(64), ..Query::default() };
            let mut out = Vec::new();
            Printer::new(&query).feed(bytes, &mut out);
            assert!(out.len() <= 64);
            if let Ok(text) = std::str::from_utf8(bytes)
                && let Err(err) = parse_query(text, Timestamp::UNIX_EPOCH)
            {
                assert!(text.contains(err.name));
            }
            assert!(parse_line(bytes).is_none_or(|line| line.text.len() <= bytes.len()));
        });
    }
}
