//! CRC-32C, which finds what a disk has silently changed.
//!
//! Eight bytes at a time by table, so that reading a large store at start is not slowed by it.
//!
//! Spec: RFC 3720, appendix B.4 (Castagnoli, reflected).

const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Table `n` advances a byte by `n` more zero bytes.
const TABLES: [[u32; 256]; 8] = tables();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which checks the bounds")]
const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0_u32; 256]; 8];
    let (mut byte, mut start) = (0_usize, 0_u32);
    while byte < 256 {
        let (mut crc, mut bit) = (start, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
        start += 1;
    }
    let mut n = 1;
    while n < 8 {
        byte = 0;
        while byte < 256 {
            let before = tables[n - 1][byte];
            tables[n][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        n += 1;
    }
    tables
}

/// A checksum that grows with what is fed to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checksum(u32);

impl Checksum {
    pub(crate) fn new() -> Self {
        Self(!0)
    }

    #[must_use]
    pub(crate) fn with(self, bytes: &[u8]) -> Self {
        let mut crc = self.0;
        let (eights, rest) = bytes.as_chunks::<8>();
        for chunk in eights {
            let word = u64::from_le_bytes(*chunk) ^ u64::from(crc);
            let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
            let [t0, t1, t2, t3, t4, t5, t6, t7] = &TABLES;
            crc = at(t7, a) ^ at(t6, b) ^ at(t5, c) ^ at(t4, d);
            crc ^= at(t3, e) ^ at(t2, f) ^ at(t1, g) ^ at(t0, h);
        }
        let [table, ..] = &TABLES;
        for byte in rest {
            let [low, ..] = crc.to_le_bytes();
            crc = (crc >> 8) ^ at(table, low ^ byte);
        }
        Self(crc)
    }

    pub(crate) fn value(self) -> u32 {
        !self.0
    }
}

#[expect(clippy::indexing_slicing, reason = "a byte is always below 256")]
fn at(table: &[u32; 256], byte: u8) -> u32 {
    table[usize::from(byte)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_specification() {
        let check = |bytes: &[u8], expected: u32| {
            assert_eq!(Checksum::new().with(bytes).value(), expected);
            let (left, right) = bytes.split_at(bytes.len() / 3);
            assert_eq!(Checksum::new().with(left).with(right).value(), expected, "in two pieces");
        };
        check(b"", 0);
        check(b"123456789", 0xe306_9283);
        check(&[0; 32], 0x8a91_36aa);
        check(&[0xff; 32], 0x62a8_ab43);
        check(&(0..32).collect::<Vec<u8>>(), 0x46dd_794e);
    }
}
