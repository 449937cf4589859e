//! The key that signs tokens: ECDSA on P-256.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use runtime::pki::{self, PkiError, Secret};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What stands before the point in a P-256 public key (RFC 5480 §2).
const SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Characters of a line of PEM.
const PEM_LINE: usize = 64;

/// Why a key cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file is no P-256 key in PKCS#8.
    #[error("not a P-256 key in PKCS#8 PEM")]
    Malformed,
    /// The system gives no randomness, or the key takes no message.
    #[error("the key cannot be made or used")]
    Unusable,
    /// The file cannot be read or written.
    #[error("the key cannot be kept")]
    Keep(#[from] PkiError),
}

/// A key pair.
pub(crate) struct Key {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    id: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Key {
    /// Reads the key of a file, or makes it.
    pub(crate) fn load_or_make(path: &Path) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        if !path.exists() {
            let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
                .map_err(|_| KeyError::Unusable)?;
            pki::write_secret(path, &Secret::new(render_pem(made.as_ref())))?;
        }
        let der = PrivatePkcs8KeyDer::from_pem_file(path).map_err(|_| KeyError::Malformed)?;
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der(), &random)
            .map_err(|_| KeyError::Malformed)?;
        let spki = [&SPKI_HEAD, pair.public_key().as_ref()].concat();
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(spki));
        Ok(Self { pair, random, id })
    }

    /// The key's name: the hash of its public half, as upstream names keys.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Signs; the signature as tokens carry it.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<String, KeyError> {
        let signature = self.pair.sign(&self.random, message).map_err(|_| KeyError::Unusable)?;
        Ok(URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    /// Is this our signature of the message?
    pub(crate) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key());
        public.verify(message, signature).is_ok()
    }

    /// The public half as a JSON Web Key.
    pub(crate) fn public_jwk(&self) -> Value {
        // An uncompressed point: one byte of form, then both coordinates.
        let point = self.pair.public_key().as_ref().get(1..).unwrap_or_default();
        let (x, y) = point.split_at(point.len() / 2);
        json!({
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }
}

fn render_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = "-----BEGIN PRIVATE KEY-----\n".to_owned();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(PEM_LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stays_the_same_and_knows_its_signatures() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sa.key");
        let made = Key::load_or_make(&path).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let again = Key::load_or_make(&path).unwrap();
        assert_eq!(made.id(), again.id());
        let signature = URL_SAFE_NO_PAD.decode(made.sign(b"text").unwrap()).unwrap();
        assert!(again.verify(b"text", &signature));
        assert!(!again.verify(b"test", &signature));
        std::fs::write(&path, "nonsense").unwrap();
        assert!(matches!(Key::load_or_make(&path), Err(KeyError::Malformed)));
    }
}
