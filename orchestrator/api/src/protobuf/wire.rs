//! The wire format: numbers, runs of bytes, and nothing of what they mean.
//!
//! Lengths are checked against what is there before anything is taken; nothing is allocated.

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// Where and why reading stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes break off or are no message, {left} bytes before the end")]
pub(super) struct WireError {
    /// Bytes that were not read.
    pub(super) left: usize,
}

/// The fields of a message, by number, in the order they come.
pub(super) fn fields(
    mut rest: &[u8],
) -> impl Iterator<Item = Result<(u32, Payload<'_>), WireError>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let left = rest.len();
        let Some((field, after)) = take_field(rest) else {
            rest = &[];
            return Some(Err(WireError { left }));
        };
        rest = after;
        Some(Ok(field))
    })
}

/// A run of numbers without tags.
pub(super) fn varints(mut rest: &[u8]) -> impl Iterator<Item = Result<u64, WireError>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let left = rest.len();
        let Some((number, after)) = take_varint(rest) else {
            rest = &[];
            return Some(Err(WireError { left }));
        };
        rest = after;
        Some(Ok(number))
    })
}

fn take_field(bytes: &[u8]) -> Option<((u32, Payload<'_>), &[u8])> {
    let (tag, rest) = take_varint(bytes)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0)?;
    let (payload, rest) = match tag & 7 {
        0 => {
            let (value, rest) = take_varint(rest)?;
            (Payload::Varint(value), rest)
        }
        1 => {
            let (value, rest) = rest.split_first_chunk()?;
            (Payload::Fixed64(u64::from_le_bytes(*value)), rest)
        }
        2 => {
            let (length, rest) = take_varint(rest)?;
            let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            (Payload::Bytes(value), rest)
        }
        5 => {
            let (value, rest) = rest.split_first_chunk()?;
            (Payload::Fixed32(u32::from_le_bytes(*value)), rest)
        }
        // Groups were never used here.
        _ => return None,
    };
    Some(((number, payload), rest))
}

fn take_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        let shift = u32::try_from(at).ok()?.checked_mul(7)?;
        let bits = u64::from(byte & 0x7f);
        let shifted = bits.checked_shl(shift)?;
        // The tenth byte has room for one bit.
        if shifted >> shift != bits {
            return None;
        }
        value |= shifted;
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(at + 1..)?));
        }
    }
    None
}
