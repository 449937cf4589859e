//! Objects that are unreadable on disk: enciphered before they reach the store, in memory too,
//! and read only while they are answered.
//!
//! What is sealed says with which key; the store, its copies and its moves need none. A start
//! writes anew what is not sealed by the first key of today: so a new key is put first, the
//! server started again, and the old key may go.
//!
//! The ring of keys belongs to the process: whoever looks at an item may have to open it.
//!
//! Spec: AES-GCM (NIST SP 800-38D) with random nonces; the form of upstream's `aesgcm` provider.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use api::authority::encryption::{Encryption, EncryptionError, NamedKey, Provider};
use bytes::Bytes;
use objects::{Kind, Status};
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use store::{Expect, Item, Write, WriteError};

use crate::server::Server;

/// What stands before everything sealed, followed by the key's name and a colon.
const MARK: &[u8] = b"k8s:enc:aesgcm:v1:";
/// A key opens at most this many seals in the process's ring; old ones make room.
const RING_KEYS_MAX: usize = 256;

/// Why objects cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The configuration cannot be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The configuration cannot be used.
    #[error("cannot use the encryption configuration")]
    Config(#[from] EncryptionError),
    /// A key is missing.
    #[error("{name} was enciphered with a key that the configuration does not have")]
    Locked {
        /// The object.
        name: String,
    },
    /// The store takes no writes.
    #[error("cannot write objects anew with the first key")]
    Write(#[source] WriteError),
    /// There is no randomness.
    #[error("cannot encipher an object")]
    Cipher,
}

struct RingKey {
    named: NamedKey,
    key: LessSafeKey,
}

static RING: RwLock<Vec<Arc<RingKey>>> = RwLock::new(Vec::new());

/// What is sealed, and with what.
#[derive(Debug, Default)]
pub(crate) struct Seals {
    config: Encryption,
}

impl Seals {
    /// Reads the configuration and puts its keys on the ring.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, SealError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| SealError::File { path: path.to_owned(), source })?;
        let config = Encryption::parse(&text)?;
        let mut ring = RING.write().unwrap_or_else(PoisonError::into_inner);
        for named in config.keys() {
            if !ring.iter().any(|have| have.named == *named) {
                ring.push(Arc::new(RingKey { named: named.clone(), key: key_of(named)? }));
            }
        }
        let old = ring.len().saturating_sub(RING_KEYS_MAX);
        ring.drain(..old);
        Ok(Self { config })
    }

    fn writes_with(&self, kind: &Kind) -> Option<&NamedKey> {
        match self.config.providers(kind.group, kind.plural).first() {
            Some(Provider::AesGcm(key)) => Some(key),
            Some(Provider::Identity) | None => None,
        }
    }

    /// An object's bytes as they are to be stored.
    ///
    /// # Errors
    ///
    /// 500 when there is no randomness.
    pub(crate) fn seal(&self, kind: &Kind, name: &str, value: Bytes) -> Result<Bytes, Status> {
        match self.writes_with(kind) {
            None => Ok(value),
            Some(key) => {
                seal(key, name, &value).map_err(|err| Status::internal(runtime::report(&err)))
            }
        }
    }

    /// Is an item stored as it would be now?
    pub(crate) fn is_current(&self, kind: &Kind, item: &Item) -> bool {
        key_name(item.value()) == self.writes_with(kind).map(|key| key.name.as_bytes())
    }
}

fn key_of(named: &NamedKey) -> Result<LessSafeKey, SealError> {
    let algorithm = if named.secret.len() == 16 { &AES_128_GCM } else { &AES_256_GCM };
    let key = UnboundKey::new(algorithm, &named.secret).map_err(|_| SealError::Cipher)?;
    Ok(LessSafeKey::new(key))
}

fn seal(named: &NamedKey, name: &str, value: &[u8]) -> Result<Bytes, SealError> {
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new().fill(&mut nonce).map_err(|_| SealError::Cipher)?;
    let mut text = value.to_vec();
    key_of(named)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(name.as_bytes()),
            &mut text,
        )
        .map_err(|_| SealError::Cipher)?;
    Ok([MARK, named.name.as_bytes(), b":", &nonce, &text].concat().into())
}

/// The name of the key that sealed this; `None` when it is not sealed.
fn key_name(value: &[u8]) -> Option<&[u8]> {
    let rest = value.strip_prefix(MARK)?;
    rest.iter().position(|byte| *byte == b':').and_then(|end| rest.get(..end))
}

/// An item's bytes as they were before they were sealed; empty when no key opens them.
pub(crate) fn opened(item: &Item) -> Cow<'_, [u8]> {
    let value: &[u8] = item.value();
    if !value.starts_with(MARK) {
        return Cow::Borrowed(value);
    }
    if let Some(text) = open(item.name(), value) {
        return Cow::Owned(text);
    }
    tracing::error!(name = item.name(), "no key opens this object");
    Cow::Borrowed(&[])
}

fn open(name: &str, value: &[u8]) -> Option<Vec<u8>> {
    let sealed_by = key_name(value)?;
    let rest = value.get(MARK.len() + sealed_by.len() + 1..)?;
    let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>()?;
    let ring = RING.read().unwrap_or_else(PoisonError::into_inner);
    ring.iter().filter(|have| have.named.name.as_bytes() == sealed_by).find_map(|have| {
        let mut text = text.to_vec();
        let aad = Aad::from(name.as_bytes());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = have.key.open_in_place(nonce, aad, &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    })
}

/// Writes anew what is not sealed as it should be now.
///
/// # Errors
///
/// When something cannot be opened, or the store takes no writes.
pub(crate) async fn renew(server: &Server) -> Result<(), SealError> {
    for kind in objects::kind::KINDS {
        for item in server.items(kind, "") {
            if server.seals.is_current(kind, &item) {
                continue;
            }
            let locked = || SealError::Locked { name: item.name().to_owned() };
            let plain = opened(&item);
            if plain.is_empty() {
                return Err(locked());
            }
            let plain = Bytes::copy_from_slice(&plain);
            let sealed = match server.seals.writes_with(kind) {
                Some(key) => seal(key, item.name(), &plain)?,
                None => plain,
            };
            let write = Write {
                shelf: server.shelf(kind),
                name: item.name().into(),
                expect: Expect::Revision(item.modified()),
                value: Some(sealed),
                head: None,
            };
            match server.store.write(write).await {
                // Whoever was quicker has written it as it should be.
                Ok(_) | Err(WriteError::Conflict { .. }) => {}
                Err(err) => return Err(SealError::Write(err)),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_under_its_own_name_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
                    resources:\n- resources: [secrets]\n  providers:\n  - aesgcm:\n      keys:\n\
                    \x20     - {name: unit, secret: MDEyMzQ1Njc4OWFiY2RlZg==}\n  - identity: {}\n";
        std::fs::write(&path, text).unwrap();
        let seals = Seals::load(Some(&path)).unwrap();
        let kind = &objects::kind::SECRET;
        let plain = Bytes::from_static(b"{\"kind\":\"Secret\"}");
        let sealed = seals.seal(kind, "a/s", plain.clone()).unwrap();
        assert!(sealed.starts_with(b"k8s:enc:aesgcm:v1:unit:"));
        assert_ne!(seals.seal(kind, "a/s", plain.clone()).unwrap(), sealed);
        let item = Item::detached("a/s", sealed.clone(), 1, None);
        assert!(seals.is_current(kind, &item));
        assert_eq!(opened(&item), plain.as_ref());
        assert!(opened(&Item::detached("a/t", sealed.clone(), 1, None)).is_empty());
        let mut broken = sealed.to_vec();
        *broken.last_mut().unwrap() ^= 1;
        assert!(opened(&Item::detached("a/s", broken.into(), 1, None)).is_empty());
        let other = &objects::kind::CONFIG_MAP;
        assert_eq!(seals.seal(other, "a/c", plain.clone()).unwrap(), plain);
        let item = Item::detached("a/s", plain.clone(), 1, None);
        assert!(!seals.is_current(kind, &item) && opened(&item) == plain.as_ref());
    }
}
