//! Makes the node image from packages and built files; reproducible, with manifest and signature.
//!
//! Packages are resolved and downloaded by apt, unpacked in memory without running any of their
//! scripts, stripped, and joined with a few files of ours; no root rights and no chroot are
//! needed. What comes out is described by `layout`. Knows nothing of machines, sites or the API.
//!
//! Every step reads its inputs from the step before and is skipped when they did not change, so a
//! new `muster` binary costs only the last steps.

mod base;
mod cache;
mod debian;
mod error;
mod initrd;
mod kernel;
mod oci;
mod root;
mod rules;
mod sign;
mod site;
mod tool;
mod tree;

use std::path::{Path, PathBuf};

use layout::cmdline::{ImageArguments, render_release};
use layout::manifest::{FileEntry, Manifest, PackageEntry, file};
use layout::uki;

pub use error::BuildError;
pub use rules::HOST_PACKAGES;
pub use sign::verify;
pub use site::{SiteUki, compose_site_uki};

use cache::Cache;

/// What to build, from what, and to where.
#[derive(Debug, Clone)]
pub struct BuildConfig {
    /// The image directory that is made or replaced file by file.
    pub out: PathBuf,
    /// Downloads and intermediate results; worth keeping between builds, safe to delete.
    pub cache: PathBuf,
    /// The static `muster` binary.
    pub muster: PathBuf,
    /// The static `init` binary.
    pub init: PathBuf,
    /// The static `pause` binary.
    pub pause: PathBuf,
    /// The static `muster-cni` binary.
    pub plugin: PathBuf,
    /// zstd level of the root: 6 while developing, 15 for a release.
    pub compression_level: u32,
    /// Time stamp of every file, in seconds since 1970; the one clock of a build.
    pub epoch: u32,
    /// What people call this release.
    pub version: String,
    /// Directory of the signing key `image.pk8`; it is made when missing.
    pub keys: PathBuf,
    /// Whether to ask the mirrors for newer packages than the cache was made from.
    pub freshness: Freshness,
}

/// Whether a build may change its package versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Take the versions of the last build, if there was one.
    Pinned,
    /// Ask the mirrors.
    Latest,
}

/// The time stamp used when nobody asks for another one.
pub const EPOCH_DEFAULT: u32 = 1_763_000_000;

/// A step of the build, as told to whoever shows progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, for people.
    pub step: &'static str,
    /// More about it; may be empty.
    pub detail: String,
    /// Whether an earlier result was taken.
    pub cached: bool,
}

/// Builds the image and returns its manifest.
///
/// Blocking, several seconds to minutes; call it from a thread of its own.
///
/// # Errors
///
/// When a tool of [`HOST_PACKAGES`] is missing, packages cannot be downloaded, or the disk is full.
/// Trying again goes on where it stopped.
pub fn build(config: &BuildConfig, progress: impl Fn(Progress)) -> Result<Manifest, BuildError> {
    let progress: &dyn Fn(Progress) = &progress;
    tool::check()?;
    let cache = Cache::open(&config.cache)?;
    let downloads = debian::fetch(&cache, config.freshness, progress)?;
    let base = base::build(&cache, &downloads, progress)?;
    let modules = kernel::build(&cache, &downloads, progress)?;
    let initrd = initrd::build(&cache, config, &modules, progress)?;
    let root = root::build(&cache, config, &base, &modules, &downloads, progress)?;
    say(progress, "writing the image directory", &config.out.display().to_string());
    let mut files = vec![
        (file::KERNEL, downloads.kernel_image()?),
        (file::INITRD, initrd),
        (file::STUB, downloads.stub()?),
        (file::LOADER_BIOS, downloads.loader("undionly.kpxe")?),
        (file::LOADER_UEFI, downloads.loader("snponly.efi")?),
    ];
    let mut manifest = Manifest {
        version: config.version.clone(),
        kernel_version: modules.version.clone(),
        root_hash: root.root_hash.clone(),
        salt: hex::encode(layout::verity::SALT),
        data_blocks: root.data_blocks,
        files: [(file::ROOT.to_owned(), root.entry.clone())].into(),
        packages: packages(&base, &modules),
    };
    let uki = release_uki(&manifest, &files)?;
    files.push((file::UKI, uki));
    std::fs::create_dir_all(&config.out).map_err(BuildError::write(&config.out))?;
    place(&root.path, &config.out.join(file::ROOT))?;
    for (name, bytes) in &files {
        manifest.files.insert((*name).to_owned(), FileEntry::of(bytes));
        cache::write_file(&config.out.join(name), bytes)?;
    }
    sign::write(&manifest, &config.out, &config.keys)?;
    Ok(manifest)
}

fn release_uki(manifest: &Manifest, files: &[(&str, Vec<u8>)]) -> Result<Vec<u8>, BuildError> {
    let bytes = |name: &str| {
        let found = files.iter().find(|(file, _)| *file == name);
        found.map(|(_, bytes)| bytes.as_slice()).unwrap_or_default()
    };
    let parts = uki::Parts {
        os_release: &uki::render_os_release(&manifest.version),
        command_line: &render_release(&ImageArguments::of(manifest)),
        kernel: bytes(file::KERNEL),
        initrd: bytes(file::INITRD),
    };
    Ok(uki::compose(bytes(file::STUB), &parts)?)
}

fn packages(base: &base::Base, modules: &kernel::Modules) -> Vec<PackageEntry> {
    let mut packages = base.packages.clone();
    packages.push(modules.package.clone());
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    packages
}

/// Puts a cached file where it is wanted: as a second name of it if that is possible.
fn place(from: &Path, to: &Path) -> Result<(), BuildError> {
    let temporary = to.with_extension("new");
    drop(std::fs::remove_file(&temporary));
    std::fs::hard_link(from, &temporary)
        .or_else(|_| std::fs::copy(from, &temporary).map(drop))
        .map_err(BuildError::write(&temporary))?;
    std::fs::rename(&temporary, to).map_err(BuildError::write(to))
}

/// Reports the start of a step that does work.
fn say(progress: &dyn Fn(Progress), step: &'static str, detail: &str) {
    progress(Progress { step, detail: detail.to_owned(), cached: false });
}

/// Reports a step whose result was there already.
fn say_cached(progress: &dyn Fn(Progress), step: &'static str) {
    progress(Progress { step, detail: String::new(), cached: true });
}
