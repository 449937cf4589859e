//! The manifest's signature: Ed25519 over the file's bytes.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use layout::manifest::{Manifest, file};
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::BuildError;
use crate::cache::{read_file, write_file};

/// The signing key's file, PKCS #8.
const KEY_FILE: &str = "image.pk8";

/// Writes manifest, signature and public key.
pub(crate) fn write(manifest: &Manifest, out: &Path, keys: &Path) -> Result<(), BuildError> {
    let pair = signing_key(keys)?;
    let bytes = manifest.render()?;
    write_file(&out.join(file::SIGNATURE), pair.sign(&bytes).as_ref())?;
    write_file(&out.join(file::PUBLIC_KEY), pair.public_key().as_ref())?;
    write_file(&out.join(file::MANIFEST), &bytes)
}

/// Reads the manifest of an image directory, if `public_key` signed it.
///
/// # Errors
///
/// When a file is missing, the signature is not of this key, or the manifest makes no sense.
pub fn verify(image_dir: &Path, public_key: &[u8]) -> Result<Manifest, BuildError> {
    let path = image_dir.join(file::MANIFEST);
    let bytes = read_file(&path)?;
    let signature = read_file(&image_dir.join(file::SIGNATURE))?;
    let key = UnparsedPublicKey::new(&ED25519, public_key);
    key.verify(&bytes, &signature).map_err(|_| BuildError::Signature { path })?;
    Ok(Manifest::parse(&bytes)?)
}

fn signing_key(keys: &Path) -> Result<Ed25519KeyPair, BuildError> {
    let path = keys.join(KEY_FILE);
    if !path.exists() {
        fs::create_dir_all(keys).map_err(BuildError::write(keys))?;
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        let document = document.map_err(|_| BuildError::Key { path: path.clone() })?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&path).map_err(BuildError::write(&path))?;
        file.write_all(document.as_ref()).map_err(BuildError::write(&path))?;
    }
    Ed25519KeyPair::from_pkcs8(&read_file(&path)?).map_err(|_| BuildError::Key { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_believed_only_with_the_right_key_and_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let (out, keys) = (dir.path().join("out"), dir.path().join("keys"));
        fs::create_dir_all(&out).unwrap();
        let manifest = Manifest {
            version: "1".into(),
            kernel_version: "6".into(),
            root_hash: "a".repeat(64),
            salt: "b".repeat(64),
            data_blocks: 1,
            files: [].into(),
            packages: Vec::new(),
        };
        write(&manifest, &out, &keys).unwrap();
        let key = fs::read(out.join(file::PUBLIC_KEY)).unwrap();
        assert_eq!(verify(&out, &key).unwrap(), manifest);
        assert!(matches!(verify(&out, &[7; 32]), Err(BuildError::Signature { .. })));
        // The key is made once.
        write(&manifest, &out, &keys).unwrap();
        assert!(verify(&out, &key).is_ok());
        let changed =
            fs::read_to_string(out.join(file::MANIFEST)).unwrap().replace("\"1\"", "\"2\"");
        fs::write(out.join(file::MANIFEST), changed).unwrap();
        assert!(matches!(verify(&out, &key), Err(BuildError::Signature { .. })));
    }
}
