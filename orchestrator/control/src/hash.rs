//! Short names from content.

/// Letters without vowels and without look-alikes, as upstream uses for generated names.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Returns ten safe letters that depend on `bytes` and `salt` alone (FNV-1a).
pub(crate) fn short(bytes: &[u8], salt: u64) -> String {
    let mut rest = number(bytes, salt);
    let mut name = String::with_capacity(10);
    for _ in 0..10 {
        let letter = usize::try_from(rest % 27).ok().and_then(|place| ALPHABET.get(place));
        name.push(char::from(*letter.unwrap_or(&b'b')));
        rest /= 27;
    }
    name
}

/// Returns a number that depends on `bytes` and `salt` alone.
pub(crate) fn number(bytes: &[u8], salt: u64) -> u64 {
    let salt = salt.to_le_bytes();
    bytes.iter().chain(&salt).fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
