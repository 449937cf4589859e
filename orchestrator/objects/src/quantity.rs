//! Quantities: amounts of resources such as `250m`, `1.5Gi`, `2e3`.
//!
//! Spec: upstream's `resource.Quantity`: at most nine decimals, the rest rounded up, values
//! beyond 2^63-1 capped, written in the canonical form of the suffix family they came in.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Nanos in one.
const ONE: i128 = 1_000_000_000;
/// The greatest amount: 2^63-1, as upstream caps it.
const MAX: i128 = (i64::MAX as i128) * ONE;
/// More digits than any sensible amount has; longer input is refused before it is worked on.
const DIGITS_MAX: usize = 64;

/// Suffixes of the decimal family by power of ten.
const DECIMAL: &[(&str, i32)] = &[
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
/// Suffixes of the binary family by power of two.
const BINARY: &[(&str, u32)] =
    &[("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

/// An exact amount and the suffix family it is written in.
///
/// Comparison looks at the amount alone: `1Gi` equals `1073741824`.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    /// The amount in billionths.
    nanos: i128,
    /// How it is written.
    format: Format,
}

/// The family of suffixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// `m`, `k`, `M`, …
    Decimal,
    /// `Ki`, `Mi`, …
    Binary,
    /// `e3`.
    Exponent,
}

/// The text is not a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a quantity: want a number with an optional suffix such as m, k, M, Ki, Mi or e3")]
pub struct ParseQuantityError;

impl Quantity {
    /// A whole amount in decimal notation.
    #[must_use]
    pub fn from_whole(amount: i64) -> Self {
        Self { nanos: i128::from(amount) * ONE, format: Format::Decimal }
    }

    /// Thousandths in decimal notation: `from_milli(250)` is `250m`.
    #[must_use]
    pub fn from_milli(amount: i64) -> Self {
        Self { nanos: i128::from(amount) * (ONE / 1000), format: Format::Decimal }
    }

    /// Bytes in binary notation.
    #[must_use]
    pub fn from_bytes(amount: i64) -> Self {
        Self { nanos: i128::from(amount) * ONE, format: Format::Binary }
    }

    /// The amount rounded up to a whole number.
    #[must_use]
    pub fn value(&self) -> i64 {
        saturate(div_up(self.nanos, ONE))
    }

    /// The amount in thousandths, rounded up.
    #[must_use]
    pub fn milli_value(&self) -> i64 {
        saturate(div_up(self.nanos, ONE / 1000))
    }

    /// The sum, in the notation of `self`.
    #[must_use]
    pub fn add(&self, other: &Self) -> Self {
        let nanos = (self.nanos + other.nanos).clamp(-MAX, MAX);
        Self { nanos, format: if self.nanos == 0 { other.format } else { self.format } }
    }

    /// The difference, in the notation of `self`.
    #[must_use]
    pub fn sub(&self, other: &Self) -> Self {
        self.add(&Self { nanos: -other.nanos, format: other.format })
    }

    /// Is the amount zero?
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Is the amount below zero?
    #[must_use]
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// How many times `divisor` goes into the amount, rounded up; 0 when the divisor is 0.
    #[must_use]
    pub fn divide_up(&self, divisor: &Self) -> i64 {
        if divisor.nanos == 0 { 0 } else { saturate(div_up(self.nanos, divisor.nanos)) }
    }
}

impl Default for Quantity {
    fn default() -> Self {
        Self::from_whole(0)
    }
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, text.get(1..).unwrap_or("")),
            Some(b'+') => (false, text.get(1..).unwrap_or("")),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty())
            || fraction.contains('.')
            || number.len() > DIGITS_MAX
        {
            return Err(ParseQuantityError);
        }
        let (format, two, ten) = parse_suffix(suffix)?;
        let nanos = scale(whole, fraction, two, ten);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// The family, power of two and power of ten of a suffix.
fn parse_suffix(suffix: &str) -> Result<(Format, u32, i32), ParseQuantityError> {
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::Decimal, 0, *power));
    }
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::Binary, *power, 0));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseQuantityError)?;
    let power: i32 = exponent.parse().map_err(|_| ParseQuantityError)?;
    Ok((Format::Exponent, 0, power.clamp(-100, 100)))
}

/// `whole.fraction × 2^two × 10^ten` in nanos, rounded up, capped at [`MAX`].
fn scale(whole: &str, fraction: &str, two: u32, ten: i32) -> i128 {
    let digits: Vec<i128> =
        whole.bytes().chain(fraction.bytes()).map(|digit| i128::from(digit - b'0')).collect();
    let places = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let first = digits.iter().position(|digit| *digit != 0).unwrap_or(digits.len());
    let digits = digits.get(first..).unwrap_or(&[]);
    if digits.is_empty() {
        return 0;
    }
    // The power of ten of the last digit, in nanos.
    let mut power = ten - places + 9;
    let mut kept: i128 = 0;
    let mut lost = false;
    let mut dropped = 0;
    for digit in digits {
        // Beyond 28 digits only "was there more" matters.
        if kept > 10_i128.pow(27) {
            dropped += 1;
            lost |= *digit != 0;
        } else {
            kept = kept * 10 + digit;
        }
    }
    power += dropped;
    for _ in 0..two {
        kept = kept.saturating_mul(2);
    }
    while power > 0 && kept <= MAX {
        kept = kept.saturating_mul(10);
        power -= 1;
    }
    while power < 0 && kept > 0 {
        lost |= kept % 10 != 0;
        kept /= 10;
        power += 1;
    }
    kept.saturating_add(i128::from(lost)).min(MAX)
}

/// Division that rounds away from zero upward, as amounts are never understated.
fn div_up(nanos: i128, by: i128) -> i128 {
    let quotient = nanos.div_euclid(by);
    if nanos.rem_euclid(by) == 0 { quotient } else { quotient.saturating_add(1) }
}

fn saturate(amount: i128) -> i64 {
    i64::try_from(amount).unwrap_or(if amount < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * ONE;
        if self.format == Format::Binary && !small {
            let mut amount = div_up(self.nanos, ONE);
            let mut suffix = "";
            for (name, _) in BINARY {
                if amount % 1024 != 0 {
                    break;
                }
                amount /= 1024;
                suffix = name;
            }
            return write!(f, "{amount}{suffix}");
        }
        let mut amount = self.nanos;
        let mut power = -9;
        while amount % 1000 == 0 && power < 18 {
            amount /= 1000;
            power += 3;
        }
        if self.format == Format::Exponent {
            return if power == 0 { write!(f, "{amount}") } else { write!(f, "{amount}e{power}") };
        }
        let suffix = DECIMAL.iter().find(|(_, p)| *p == power).map_or("", |(name, _)| *name);
        write!(f, "{amount}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, amount: i64) -> Result<Quantity, E> {
                Ok(Quantity::from_whole(amount))
            }

            fn visit_u64<E: de::Error>(self, amount: u64) -> Result<Quantity, E> {
                Ok(Quantity::from_whole(i64::try_from(amount).unwrap_or(i64::MAX)))
            }

            fn visit_f64<E: de::Error>(self, amount: f64) -> Result<Quantity, E> {
                amount.to_string().parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, canonical: &str) {
        let quantity: Quantity = text.parse().unwrap();
        assert_eq!(quantity.to_string(), canonical, "{text}");
        let again: Quantity = canonical.parse().unwrap();
        assert_eq!(again, quantity, "{canonical} is not the same amount");
    }

    #[test]
    fn quantities_are_written_in_canonical_form() {
        check("0", "0");
        check("100m", "100m");
        check("1000m", "1");
        check("0.1", "100m");
        check("1.5Gi", "1536Mi");
        check("1024Ki", "1Mi");
        check("1023", "1023");
        check("100Ki", "100Ki");
        check("1500", "1500");
        check("2000", "2k");
        check("1e3", "1e3");
        check("1E", "1E");
        check("12e6", "12e6");
        check("0.5Ki", "512");
        check("-1.5", "-1500m");
        check("+3", "3");
        check(".5", "500m");
        check("5.", "5");
        check("0.0000000001", "1n");
        check("9223372036854775807", "9223372036854775807");
        check("1e90", "9223372036854775807");
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "-", "1.2.3", "1x", "Mi", "1 Mi", "1mi", "e3", "1e", "0x10", "1KI"] {
            assert_eq!(text.parse::<Quantity>(), Err(ParseQuantityError), "{text}");
        }
    }

    #[test]
    fn amounts_add_and_compare_across_notations() {
        let a: Quantity = "1Gi".parse().unwrap();
        let b: Quantity = "1073741824".parse().unwrap();
        assert_eq!(a, b);
        assert_eq!(a.add(&b).to_string(), "2Gi");
        assert_eq!(Quantity::from_milli(1500).value(), 2);
        assert_eq!(Quantity::from_milli(1500).milli_value(), 1500);
        assert!(Quantity::from_milli(250) < Quantity::from_whole(1));
        assert_eq!(Quantity::from_bytes(1 << 30).divide_up(&"1Mi".parse().unwrap()), 1024);
    }

    #[test]
    fn any_text_parses_or_is_refused_and_round_trips() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            if let Ok(quantity) = String::from_utf8_lossy(bytes).parse::<Quantity>() {
                let written = quantity.to_string();
                let again: Quantity = written.parse().unwrap();
                assert_eq!(again.to_string(), written);
            }
        });
    }
}
