//! The manifest of a node image: what its files are, and what they were made of.
//!
//! The signature is over the manifest's bytes as they lie in the file, so a manifest is rendered
//! once and never again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// File names inside an image directory.
pub mod file {
    /// The manifest itself.
    pub const MANIFEST: &str = "manifest.json";
    /// Ed25519 signature over the manifest, 64 raw bytes.
    pub const SIGNATURE: &str = "manifest.sig";
    /// Raw Ed25519 public key that made the signature; for people, never for trust.
    pub const PUBLIC_KEY: &str = "manifest.pub";
    /// The kernel.
    pub const KERNEL: &str = "vmlinuz";
    /// The initramfs.
    pub const INITRD: &str = "initrd";
    /// squashfs with its hash tree behind it.
    pub const ROOT: &str = "root.img";
    /// Release UKI: generic command line with the root hash.
    pub const UKI: &str = "uki.efi";
    /// The UEFI stub that UKIs are made of.
    pub const STUB: &str = "stub.efi";
    /// First loader of legacy BIOS machines.
    pub const LOADER_BIOS: &str = "undionly.kpxe";
    /// First loader of UEFI PXE machines.
    pub const LOADER_UEFI: &str = "snponly.efi";
}

/// Manifests are far smaller; more is not parsed at all.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// Says why bytes are no manifest, or a file does not fit one.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Longer than any manifest is.
    #[error("{size_bytes} bytes are more than a manifest has")]
    TooLong {
        /// Length of what was given.
        size_bytes: usize,
    },
    /// Not JSON, or not of this shape.
    #[error("not a manifest")]
    Shape(#[source] serde_json::Error),
    /// A field's value makes no sense.
    #[error("{field} is not {rule}")]
    Value {
        /// The field's name in the file.
        field: String,
        /// What it should be.
        rule: &'static str,
    },
    /// The manifest does not know this file.
    #[error("the manifest names no file {name}")]
    Unknown {
        /// The file asked for.
        name: String,
    },
    /// The file is not what the manifest says.
    #[error("{name} has digest {found}, not {expected}")]
    Differs {
        /// The file.
        name: String,
        /// Digest of the bytes given.
        found: String,
        /// Digest the manifest states.
        expected: String,
    },
}

/// One release of the node image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// What people call this release.
    pub version: String,
    /// Version of the kernel, as `uname -r` says it.
    pub kernel_version: String,
    /// Root of the hash tree, lower-case hex of 32 bytes.
    pub root_hash: String,
    /// Salt of the hash tree, lower-case hex.
    pub salt: String,
    /// Number of 4096-byte blocks of data; the tree's superblock is the next one.
    pub data_blocks: u64,
    /// Every file of the image except manifest and signature.
    pub files: BTreeMap<String, FileEntry>,
    /// The packages in root, by name.
    pub packages: Vec<PackageEntry>,
}

/// Size and digest of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// Length.
    pub size_bytes: u64,
    /// Lower-case hex SHA-256 of the content.
    pub sha256: String,
}

/// One package and how much of it is left in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PackageEntry {
    /// Package name.
    pub name: String,
    /// Full version.
    pub version: String,
    /// Bytes of its files in the image, uncompressed; 0 when all were stripped.
    pub size_bytes: u64,
}

impl FileEntry {
    /// Describes these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let size_bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Self { size_bytes, sha256: hex::encode(Sha256::digest(bytes)) }
    }
}

impl Manifest {
    /// Parses the content of a manifest file and checks its values.
    ///
    /// # Errors
    ///
    /// When the bytes are no manifest. Whether it is *ours* only the signature tells.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong { size_bytes: bytes.len() });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(ManifestError::Shape)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// Renders the file's content; the same manifest gives the same bytes.
    ///
    /// # Errors
    ///
    /// Never in practice: no map has keys that are not text.
    pub fn render(&self) -> Result<Vec<u8>, ManifestError> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(ManifestError::Shape)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Checks that these bytes are the named file of this release.
    ///
    /// # Errors
    ///
    /// When the manifest does not name the file, or its digest differs.
    pub fn check_file(&self, name: &str, bytes: &[u8]) -> Result<(), ManifestError> {
        let Some(entry) = self.files.get(name) else {
            return Err(ManifestError::Unknown { name: name.to_owned() });
        };
        let found = FileEntry::of(bytes);
        if found == *entry {
            return Ok(());
        }
        let (name, expected) = (name.to_owned(), entry.sha256.clone());
        Err(ManifestError::Differs { name, found: found.sha256, expected })
    }

    fn validate(&self) -> Result<(), ManifestError> {
        let hash = |field: &str, text: &str| {
            if is_digest(text) {
                return Ok(());
            }
            Err(ManifestError::Value { field: field.to_owned(), rule: "64 lower-case hex digits" })
        };
        hash("rootHash", &self.root_hash)?;
        hash("salt", &self.salt)?;
        for (name, entry) in &self.files {
            hash(&format!("files.{name}.sha256"), &entry.sha256)?;
            // Names become paths: of directories on our side, of URLs on the other.
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
                let field = format!("files.{name:?}");
                return Err(ManifestError::Value { field, rule: "a plain file name" });
            }
        }
        if self.data_blocks == 0 {
            let field = "dataBlocks".to_owned();
            return Err(ManifestError::Value { field, rule: "positive" });
        }
        Ok(())
    }
}

/// Says whether the text is the lower-case hex of 32 bytes.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        Manifest {
            version: "0.1.0".into(),
            kernel_version: "6.12.1-amd64".into(),
            root_hash: "a".repeat(64),
            salt: "b".repeat(64),
            data_blocks: 10,
            files: [("initrd".to_owned(), FileEntry::of(b"x"))].into(),
            packages: vec![PackageEntry {
                name: "runc".into(),
                version: "1".into(),
                size_bytes: 2,
            }],
        }
    }

    #[test]
    fn what_was_rendered_parses_to_the_same() {
        let bytes = sample().render().unwrap();
        assert_eq!(Manifest::parse(&bytes).unwrap(), sample());
        assert!(String::from_utf8(bytes).unwrap().contains("\"sizeBytes\": 1"));
    }

    #[test]
    fn senseless_values_are_refused() {
        let changes: [fn(&mut Manifest); 5] = [
            |m| m.root_hash = "A".repeat(64),
            |m| m.salt = "b".repeat(63),
            |m| m.data_blocks = 0,
            |m| drop(m.files.insert("../x".into(), FileEntry::of(b""))),
            |m| drop(m.files.insert(String::new(), FileEntry::of(b""))),
        ];
        for change in changes {
            let mut manifest = sample();
            change(&mut manifest);
            assert!(Manifest::parse(&manifest.render().unwrap()).is_err(), "{manifest:?}");
        }
    }

    #[test]
    fn a_changed_file_is_noticed() {
        let manifest = sample();
        assert!(manifest.check_file("initrd", b"x").is_ok());
        assert!(matches!(manifest.check_file("initrd", b"y"), Err(ManifestError::Differs { .. })));
        assert!(matches!(manifest.check_file("other", b"x"), Err(ManifestError::Unknown { .. })));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused() {
        bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
            drop(Manifest::parse(bytes));
        });
    }
}
