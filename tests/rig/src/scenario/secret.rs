//! Looks for private keys in captured packets.
//!
//! A key can show itself as bytes (DER), as text (PEM), and as text once more encoded (PEM in a
//! kubeconfig). Of each key only the private number is searched: the rest of its file, the public
//! key above all, may well be seen on the wire. Packets cut streams anywhere, so the number is
//! searched in pieces, one of which is whole in any packet that carries most of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Files of a seed that may hold keys are small; disks, captures and logs are not.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Keys of elliptic curves are smaller than this, RSA keys larger, whatever wraps them.
const CURVE_BYTES_MAX: usize = 512;
/// A piece short enough to lie whole in one packet, long enough to be no coincidence.
const PIECE_BYTES: usize = 12;

/// A private key and where it was found.
pub(super) struct Secret {
    pub(super) file: PathBuf,
    number: Vec<u8>,
}

/// Finds every private key in the files below `dir`, except in `skip`.
pub(super) fn find(dir: &Path, skip: &Path) -> Result<Vec<Secret>> {
    let mut secrets = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && entry.path() != skip {
                dirs.push(entry.path());
            } else if kind.is_file() && entry.metadata()?.len() <= FILE_BYTES_MAX {
                let bytes = fs::read(entry.path())?;
                let numbers = numbers(&bytes).into_iter();
                secrets.extend(numbers.map(|number| Secret { file: entry.path(), number }));
            }
        }
    }
    Ok(secrets)
}

/// Names the files whose keys are in `capture`.
///
/// One pass over the capture, which may have hundreds of megabytes: the first two bytes of every
/// piece decide at almost every place that nothing begins there.
pub(super) fn leaked<'a>(secrets: &'a [Secret], capture: &[u8]) -> Vec<&'a Path> {
    let mut pieces: BTreeMap<Vec<u8>, &Path> = BTreeMap::new();
    let mut starts = vec![false; 1 << 16];
    for secret in secrets {
        for form in forms(&secret.number) {
            for piece in form.chunks_exact(PIECE_BYTES) {
                if let Some(start) = start(piece).and_then(|start| starts.get_mut(start)) {
                    *start = true;
                }
                pieces.insert(piece.to_vec(), &secret.file);
            }
        }
    }
    let mut found = BTreeSet::new();
    for window in capture.windows(PIECE_BYTES) {
        let begins = start(window).and_then(|start| starts.get(start)).copied();
        if begins == Some(true) {
            found.extend(pieces.get(window));
        }
    }
    found.into_iter().collect()
}

/// The first two bytes as an index.
fn start(piece: &[u8]) -> Option<usize> {
    Some(usize::from(*piece.first()?) << 8 | usize::from(*piece.get(1)?))
}

/// Tells whether a certificate (PEM) was carried, as bytes or as text: proof that looking works.
pub(super) fn is_seen(pem: &str, capture: &[u8]) -> bool {
    let lines = pem.lines().filter(|line| !line.starts_with('-'));
    let text = lines.clone().any(|line| line.len() >= 40 && contains(capture, line.as_bytes()));
    let der = STANDARD.decode(lines.collect::<String>()).unwrap_or_default();
    text || der.chunks_exact(40).any(|piece| contains(capture, piece))
}

/// The private numbers of every key in a file: DER, PEM, or PEM inside a kubeconfig.
fn numbers(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found: Vec<Vec<u8>> = Vec::new();
    let text = String::from_utf8_lossy(bytes);
    let mut texts = vec![text.to_string()];
    for word in text.split(|letter: char| letter.is_whitespace() || letter == '"') {
        if word.len() > 100
            && let Ok(inner) = STANDARD.decode(word)
        {
            texts.push(String::from_utf8_lossy(&inner).into_owned());
        }
    }
    for text in texts {
        for block in text.split("-----BEGIN ").skip(1).filter(|block| {
            block.split_once("-----").is_some_and(|(label, _)| label.ends_with("PRIVATE KEY"))
        }) {
            let body = block.split("-----").nth(1).unwrap_or_default();
            let body: String = body.split_whitespace().collect();
            found.extend(STANDARD.decode(body).ok().and_then(|der| number(&der)));
        }
    }
    // A bare key file: 32 bytes of seed, or DER without armour.
    if found.is_empty() {
        match bytes {
            [0x30, ..] => found.extend(number(bytes)),
            _ if bytes.len() == 32 => found.push(bytes.to_vec()),
            _ => (),
        }
    }
    found
}

/// The private number of an elliptic-curve or Ed25519 key: its only OCTET STRING of 32, 48 or 66
/// bytes; of an RSA key, whatever lies in its middle, which is one of its primes. An RSA key is
/// told by its size: among so many random bytes, what looks like a mark may be its public number.
fn number(der: &[u8]) -> Option<Vec<u8>> {
    for len in [32_u8, 48, 66].into_iter().filter(|_| der.len() <= CURVE_BYTES_MAX) {
        let mark = [0x04, len];
        let end = 2 + usize::from(len);
        if let Some(found) = der.windows(end).find(|window| window.starts_with(&mark)) {
            return found.get(2..).map(<[u8]>::to_vec);
        }
    }
    der.get(der.len() / 2..der.len() / 2 + 64).map(<[u8]>::to_vec)
}

/// Every form in which a number may travel: bytes, hexadecimal, base64 at each of the three
/// alignments, and that base64 encoded again.
fn forms(number: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![number.to_vec(), hex::encode(number).into_bytes()];
    for once in encodings(number) {
        forms.extend(encodings(&once));
        forms.push(once);
    }
    forms
}

/// Base64 of `bytes` inside something longer, without the ends that depend on the neighbours.
fn encodings(bytes: &[u8]) -> Vec<Vec<u8>> {
    let aligned = |skip: usize| {
        let inner = bytes.get(skip..)?;
        let whole = inner.len() - inner.len() % 3;
        Some(STANDARD.encode(inner.get(..whole)?).into_bytes())
    };
    (0..3).filter_map(aligned).collect()
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return false };
    hay.windows(needle.len()).any(|window| window.first() == Some(first) && window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PKCS#8 of a P-256 key, built by hand around a number.
    fn der(number: &[u8; 32]) -> Vec<u8> {
        let mut der = vec![0x30, 0x41, 0x02, 0x01, 0x00, 0x30, 0x13, 0x30, 0x25, 0x02, 0x01, 0x01];
        der.extend([0x04, 0x20]);
        der.extend(number);
        der.extend([0xa1, 0x44, 0x03, 0x42]);
        der
    }

    fn pem(der: &[u8]) -> String {
        let text = STANDARD.encode(der);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
    }

    fn number() -> [u8; 32] {
        let mut number = [0; 32];
        for (at, byte) in number.iter_mut().enumerate() {
            *byte = u8::try_from(at * 7 % 251 + 3).unwrap();
        }
        number
    }

    #[test]
    fn a_key_is_found_in_every_form_it_travels_in() {
        let der = der(&number());
        let pem = pem(&der);
        let config = format!("client-key-data: {}\n", STANDARD.encode(&pem));
        for file in [pem.as_bytes(), config.as_bytes(), &der] {
            let found = numbers(file);
            assert_eq!(found, [number().to_vec()], "{}", String::from_utf8_lossy(file));
        }
        let secrets = [Secret { file: PathBuf::from("k"), number: number().to_vec() }];
        for sent in [der.clone(), pem.into_bytes(), config.into_bytes(), hex::encode(&der).into()] {
            let capture = [b"before".to_vec(), sent, b"after".to_vec()].concat();
            assert_eq!(leaked(&secrets, &capture).len(), 1);
        }
        assert!(leaked(&secrets, &[7; 4096]).is_empty());
    }

    #[test]
    fn of_a_large_key_a_prime_is_searched_not_what_looks_like_a_mark() {
        let mut der: Vec<u8> =
            (0..1217_u32).map(|at| u8::try_from(at * 31 % 241).unwrap()).collect();
        // By chance, the public number near the beginning holds a mark.
        der[100] = 0x04;
        der[101] = 0x20;
        assert_eq!(super::number(&der), Some(der[608..672].to_vec()));
    }

    #[test]
    fn a_public_key_is_no_secret() {
        let secrets = [Secret { file: PathBuf::from("k"), number: number().to_vec() }];
        let around =
            [der(&number()).split_at(14).0.to_vec(), vec![0xa1, 0x44, 0x03, 0x42]].concat();
        assert!(leaked(&secrets, &around).is_empty());
    }
}
