//! Schedules as people write them: `*/5 2 * * mon-fri`, `@daily`, `@every 1h30m`.
//!
//! Spec: the standard format of robfig/cron v3, which upstream uses: five fields, names of
//! months and days, steps; when both day fields are restricted either is enough. Times that a
//! clock change leaves out do not run; those it repeats run twice.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use thiserror::Error;

/// How far ahead a time is looked for: `0 0 29 2 *` may be eight years off.
const YEARS: i16 = 9;
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Why a schedule does not read.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum ParseScheduleError {
    /// Not five fields.
    #[error("expected exactly 5 fields, found {found}: [{text}]")]
    Fields {
        /// How many there are.
        found: usize,
        /// The schedule.
        text: String,
    },
    /// A field is not of numbers, ranges and steps in its bounds.
    #[error("failed to parse field {field}: {text}")]
    Field {
        /// Which one.
        field: &'static str,
        /// What stands there.
        text: String,
    },
    /// A word that begins with `@` and is not known.
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    /// No such time zone.
    #[error("unknown time zone {0}")]
    Zone(String),
}

/// Allowed values of one field, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    bits: u64,
    /// Written as `*`: says nothing about days.
    any: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| self.bits.checked_shr(value).unwrap_or(0) & 1 == 1)
    }
}

/// When something is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Fields { minute: Field, hour: Field, day: Field, month: Field, weekday: Field },
    Every(SignedDuration),
}

impl Schedule {
    /// Takes `TZ=` or `CRON_TZ=` off the front of a schedule.
    #[must_use]
    pub fn split_zone(text: &str) -> (&str, &str) {
        let text = text.trim();
        let after = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ="));
        after.map_or(("", text), |rest| rest.split_once(' ').unwrap_or((rest, "")))
    }

    /// Reads a schedule.
    ///
    /// # Errors
    ///
    /// Says which part does not read.
    pub fn parse(text: &str) -> Result<Self, ParseScheduleError> {
        let text = text.trim();
        if let Some(word) = text.strip_prefix('@') {
            return Self::named(word);
        }
        let parts: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts.as_slice() else {
            return Err(ParseScheduleError::Fields { found: parts.len(), text: text.to_owned() });
        };
        Ok(Self(Kind::Fields {
            minute: field("minute", minute, 0, 59, &[])?,
            hour: field("hour", hour, 0, 23, &[])?,
            day: field("day of month", day, 1, 31, &[])?,
            month: field("month", month, 1, 12, &MONTHS)?,
            weekday: field("day of week", weekday, 0, 7, &DAYS)?,
        }))
    }

    fn named(word: &str) -> Result<Self, ParseScheduleError> {
        let unknown = || ParseScheduleError::Descriptor(format!("@{word}"));
        if let Some(text) = word.strip_prefix("every ") {
            let every = parse_duration(text.trim()).ok_or_else(unknown)?;
            // Finer than a second makes no sense, and zero would never end.
            let every = SignedDuration::from_secs(every.as_secs().max(1));
            return Ok(Self(Kind::Every(every)));
        }
        Self::parse(match word {
            "yearly" | "annually" => "0 0 1 1 *",
            "monthly" => "0 0 1 * *",
            "weekly" => "0 0 * * 0",
            "daily" | "midnight" => "0 0 * * *",
            "hourly" => "0 * * * *",
            _ => return Err(unknown()),
        })
    }

    /// The first time after `after`; `None` when there is none within years.
    #[must_use]
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Kind::Every(every) = self.0 {
            let second = Timestamp::from_second(after.as_second()).ok()?;
            return second.checked_add(every).ok();
        }
        let minute = after.as_second().div_euclid(60).checked_add(1)?.checked_mul(60)?;
        let mut at = Timestamp::from_second(minute).ok()?;
        let last = at.to_zoned(zone.clone()).year().checked_add(YEARS)?;
        loop {
            let local = at.to_zoned(zone.clone());
            if local.year() > last {
                return None;
            }
            let next = match self.misfit(&local)? {
                Misfit::None => return Some(at),
                Misfit::Month => {
                    let first = local.date().first_of_month().checked_add(1.month()).ok()?;
                    first.to_zoned(zone.clone()).ok()?.timestamp()
                }
                Misfit::Day => {
                    local.date().tomorrow().ok()?.to_zoned(zone.clone()).ok()?.timestamp()
                }
                Misfit::Hour => {
                    let rest = 60 - i64::from(local.minute());
                    at.checked_add(SignedDuration::from_mins(rest)).ok()?
                }
                Misfit::Minute => at.checked_add(SignedDuration::from_mins(1)).ok()?,
            };
            // A zone's midnight may not exist; never stand still.
            at = next.max(at.checked_add(SignedDuration::from_mins(1)).ok()?);
        }
    }

    /// The last time that is not after `now` but after `since`.
    #[must_use]
    pub fn previous(&self, now: Timestamp, since: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Kind::Every(every) = self.0 {
            let steps = (now.as_second() - since.as_second()).div_euclid(every.as_secs());
            let at = since.as_second().checked_add(steps.checked_mul(every.as_secs())?)?;
            return Timestamp::from_second(at).ok().filter(|_| steps > 0);
        }
        let minute = now.as_second().div_euclid(60).checked_mul(60)?;
        let mut at = Timestamp::from_second(minute).ok()?;
        while at > since {
            let local = at.to_zoned(zone.clone());
            let minute_before = |at: Timestamp| at.checked_sub(SignedDuration::from_mins(1)).ok();
            let before = match self.misfit(&local)? {
                Misfit::None => return Some(at),
                Misfit::Month => {
                    let first = local.date().first_of_month().to_zoned(zone.clone()).ok()?;
                    minute_before(first.timestamp())?
                }
                Misfit::Day => {
                    let start = local.date().to_zoned(zone.clone()).ok()?;
                    minute_before(start.timestamp())?
                }
                Misfit::Hour => {
                    let gone = i64::from(local.minute()) + 1;
                    at.checked_sub(SignedDuration::from_mins(gone)).ok()?
                }
                Misfit::Minute => minute_before(at)?,
            };
            at = before.min(minute_before(at)?);
        }
        None
    }

    /// The coarsest field that does not fit.
    fn misfit(&self, local: &jiff::Zoned) -> Option<Misfit> {
        let Kind::Fields { minute, hour, day, month, weekday } = &self.0 else { return None };
        let days = local.weekday().to_sunday_zero_offset();
        let (by_day, by_week) = (day.has(local.day()), weekday.has(days));
        let day_fits = if day.any || weekday.any { by_day && by_week } else { by_day || by_week };
        Some(if !month.has(local.month()) {
            Misfit::Month
        } else if !day_fits {
            Misfit::Day
        } else if !hour.has(local.hour()) {
            Misfit::Hour
        } else if !minute.has(local.minute()) {
            Misfit::Minute
        } else {
            Misfit::None
        })
    }
}

enum Misfit {
    None,
    Month,
    Day,
    Hour,
    Minute,
}

fn field(
    name: &'static str,
    text: &str,
    least: u32,
    most: u32,
    words: &[&str],
) -> Result<Field, ParseScheduleError> {
    let error = || ParseScheduleError::Field { field: name, text: text.to_owned() };
    let number = |part: &str| -> Option<u32> {
        let lower = part.to_ascii_lowercase();
        let word = words.iter().position(|one| *one == lower);
        let word = word.and_then(|at| u32::try_from(at).ok()).map(|at| at + words_start(words));
        // Digits alone: a sign is not a number here.
        let digits = part.bytes().all(|byte| byte.is_ascii_digit());
        word.or_else(|| digits.then(|| part.parse().ok()).flatten())
            .filter(|number| (least..=most).contains(number))
    };
    let (mut bits, mut any) = (0_u64, false);
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                let step = step.parse::<u32>().ok().filter(|step| *step > 0).ok_or_else(error)?;
                (range, Some(step))
            }
            None => (part, None),
        };
        let (first, last) = match range {
            "*" | "?" => {
                any |= step.is_none_or(|step| step == 1);
                // Seven is Sunday again.
                (least, if most == 7 { 6 } else { most })
            }
            range => match range.split_once('-') {
                Some((first, last)) => {
                    (number(first).ok_or_else(error)?, number(last).ok_or_else(error)?)
                }
                None => {
                    let first = number(range).ok_or_else(error)?;
                    (first, if step.is_some() { most } else { first })
                }
            },
        };
        if first > last {
            return Err(error());
        }
        let mut value = first;
        while value <= last {
            let day = if most == 7 && value == 7 { 0 } else { value };
            bits |= 1 << day;
            value = value.saturating_add(step.unwrap_or(1));
        }
    }
    Ok(Field { bits, any })
}

/// Months are counted from one, days of the week from zero.
const fn words_start(words: &[&str]) -> u32 {
    if words.len() == MONTHS.len() { 1 } else { 0 }
}

/// Reads `1h30m`, `90s`; finer units are taken but count nothing.
fn parse_duration(text: &str) -> Option<SignedDuration> {
    let (mut rest, mut total) = (text, SignedDuration::ZERO);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let (number, after) = rest.split_at_checked(digits)?;
        let number: i64 = number.parse().ok()?;
        let end = after.find(|letter: char| letter.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(end)?;
        let seconds = match unit {
            "h" => 3600,
            "m" => 60,
            "s" => 1,
            "ms" | "us" | "µs" | "ns" => 0,
            _ => return None,
        };
        let part = number.checked_mul(seconds)?;
        total = total.checked_add(SignedDuration::from_secs(part))?;
        rest = after;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, zone: &str, after: &str, expected: &str) {
        let zone = TimeZone::get(zone).unwrap();
        let schedule = Schedule::parse(text).unwrap();
        let after: Timestamp = after.parse().unwrap();
        let next = schedule.next(after, &zone).map(|at| at.to_string());
        assert_eq!(next.as_deref().unwrap_or("never"), expected, "{text}");
        if let Ok(expected) = expected.parse::<Timestamp>() {
            assert_eq!(schedule.previous(expected, after, &zone), Some(expected), "{text}");
            let before = expected - SignedDuration::from_secs(1);
            assert_eq!(schedule.previous(before, after, &zone), None, "{text}");
        }
    }

    #[test]
    fn the_next_time_is_found() {
        let utc = "Etc/UTC";
        check("* * * * *", utc, "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z");
        check("*/15 * * * *", utc, "2026-01-01T00:50:10Z", "2026-01-01T01:00:00Z");
        check("20-35/15 * * * *", utc, "2026-01-01T00:20:00Z", "2026-01-01T00:35:00Z");
        check("0 0 29 feb ?", utc, "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z");
        check("30 9 * * MON-fri", utc, "2026-01-02T10:00:00Z", "2026-01-05T09:30:00Z");
        check("0 12 1 * sun", utc, "2026-01-01T12:00:00Z", "2026-01-04T12:00:00Z");
        check("0 12 * * 7", utc, "2026-01-01T12:00:00Z", "2026-01-04T12:00:00Z");
        check("0 12 */2 * 1", utc, "2026-01-01T12:00:00Z", "2026-01-03T12:00:00Z");
        check("0 0 31 4 *", utc, "2026-01-01T00:00:00Z", "never");
        check("@hourly", utc, "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z");
        check("@yearly", utc, "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z");
        check("@every 1h30m", utc, "2026-01-01T00:10:05Z", "2026-01-01T01:40:05Z");
    }

    #[test]
    fn zones_and_their_clock_changes_count() {
        let berlin = "Europe/Berlin";
        check("0 6 * * *", berlin, "2026-01-01T05:00:00Z", "2026-01-02T05:00:00Z");
        check("0 6 * * *", berlin, "2026-07-01T05:00:00Z", "2026-07-02T04:00:00Z");
        // 02:30 does not exist on the last Sunday of March.
        check("30 2 * * *", berlin, "2026-03-28T12:00:00Z", "2026-03-30T00:30:00Z");
        // 02:30 comes twice on the last Sunday of October.
        check("30 2 * * *", berlin, "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z");
        check("30 2 * * *", berlin, "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z");
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "5-2 * * * *",
            "*/0 * * * *",
            "+1 * * * *",
            "a * * * *",
            "@often",
            "@every",
            "@every 5x",
            "1,,2 * * * *",
        ] {
            assert!(Schedule::parse(text).is_err(), "{text}");
        }
        assert_eq!(Schedule::split_zone("TZ=Europe/Berlin 0 6 * * *").0, "Europe/Berlin");
    }

    #[test]
    fn no_text_makes_the_parser_stumble() {
        use proptest::prelude::*;
        let parts = "[0-9*/,?a-z@ -]{0,24}";
        proptest!(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() }, |(text in parts)| {
            if let Ok(schedule) = Schedule::parse(&text) {
                let now = Timestamp::UNIX_EPOCH;
                if let Some(next) = schedule.next(now, &TimeZone::UTC) {
                    prop_assert!(next > now);
                }
            }
        });
    }
}
