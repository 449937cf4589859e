//! What is in an image, as data for whoever prints it.

use std::path::Path;

use layout::manifest::{Manifest, PackageEntry, file};
use serde::Serialize;

use crate::BuildError;
use crate::cache::read_file;

/// How many of the largest packages are named.
const LARGEST: usize = 10;

/// An image at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// The release, its hashes and its packages.
    pub manifest: Manifest,
    /// The files, largest first.
    pub files: Vec<FileShare>,
    /// Kernel, initramfs and root together: what a machine fetches to boot.
    pub boot_bytes: u64,
    /// The packages with the most bytes in root, uncompressed, largest first.
    pub largest_packages: Vec<PackageEntry>,
    /// Bytes of all packages in root, uncompressed.
    pub packages_bytes: u64,
}

/// One file and whether it is what the manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileShare {
    /// File name.
    pub name: String,
    /// Length.
    pub size_bytes: u64,
    /// Lower-case hex SHA-256.
    pub sha256: String,
    /// Whether the file on disk has this length and digest.
    pub intact: bool,
}

/// Reads an image directory and checks every file of it against the manifest.
///
/// # Errors
///
/// When there is no readable manifest. Missing or altered files are told in the result.
pub fn show(image_dir: &Path) -> Result<Overview, BuildError> {
    let manifest = Manifest::parse(&read_file(&image_dir.join(file::MANIFEST))?)?;
    let mut files = Vec::new();
    for (name, entry) in &manifest.files {
        let bytes = read_file(&image_dir.join(name));
        let intact = bytes.is_ok_and(|bytes| manifest.check_file(name, &bytes).is_ok());
        files.push(FileShare {
            name: name.clone(),
            size_bytes: entry.size_bytes,
            sha256: entry.sha256.clone(),
            intact,
        });
    }
    files.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.name.cmp(&b.name)));
    let parts = [file::KERNEL, file::INITRD, file::ROOT];
    let size = |name: &str| manifest.files.get(name).map_or(0, |entry| entry.size_bytes);
    let boot_bytes = parts.map(size).iter().sum();
    let mut largest_packages = manifest.packages.clone();
    largest_packages.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then(a.name.cmp(&b.name)));
    largest_packages.truncate(LARGEST);
    let packages_bytes = manifest.packages.iter().map(|package| package.size_bytes).sum();
    Ok(Overview { manifest, files, boot_bytes, largest_packages, packages_bytes })
}
