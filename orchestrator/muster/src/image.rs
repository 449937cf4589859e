//! `muster image build|show`, and the boot artefacts of one site.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use builder::{BuildConfig, Freshness};
use cluster::plan::Plan;
use comfy_table::{Table, presets};
use layout::cmdline::SiteArguments;
use layout::manifest::Manifest;

use crate::args::{ImageArgs, ImageBuildArgs, ImageShowArgs, ImageVerb, Output};
use crate::say;
use crate::site::Site;

/// How many packages the table names; JSON names them all.
const PACKAGES_SHOWN: usize = 15;

/// Builds or shows an image.
pub(crate) fn run(args: &ImageArgs) -> Result<()> {
    match &args.verb {
        ImageVerb::Build(args) => build(args),
        ImageVerb::Show(args) => show(args),
    }
}

fn build(args: &ImageBuildArgs) -> Result<()> {
    let own = std::env::current_exe().context("cannot find our own program")?;
    let programs = match &args.programs {
        Some(dir) => dir.clone(),
        None => own.parent().map(Path::to_owned).unwrap_or_default(),
    };
    let config = BuildConfig {
        out: absolute(&args.out)?,
        cache: absolute(&args.cache)?,
        muster: own,
        init: programs.join("init"),
        pause: programs.join("pause"),
        plugin: programs.join("muster-cni"),
        compression_level: args.level,
        epoch: builder::EPOCH_DEFAULT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        keys: absolute(&args.keys)?,
        freshness: if args.latest { Freshness::Latest } else { Freshness::Pinned },
    };
    let manifest = builder::build(&config, |step| {
        let cached = if step.cached { " (as before)" } else { "" };
        say(&format!("image: {} {}{cached}", step.step, step.detail));
    })?;
    writeln!(std::io::stdout(), "image {} is in {}", manifest.version, args.out.display())?;
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("no absolute path for {}", path.display()))
}

fn show(args: &ImageShowArgs) -> Result<()> {
    let manifest = load(&args.dir)?;
    let mut out = std::io::stdout();
    if args.output == Output::Json {
        writeln!(out, "{}", serde_json::to_string_pretty(&manifest)?)?;
        return Ok(());
    }
    writeln!(out, "image {}, kernel {}", manifest.version, manifest.kernel_version)?;
    writeln!(out, "root hash {}\n", manifest.root_hash)?;
    let mut files = Table::new();
    files.load_style(presets::NOTHING).set_header(["FILE", "MB", "SHA-256"]);
    for (name, file) in &manifest.files {
        files.add_row([name.clone(), megabytes(file.size_bytes), file.sha256.clone()]);
    }
    writeln!(out, "{files}\n")?;
    let mut packages: Vec<_> = manifest.packages.iter().collect();
    packages.sort_by_key(|package| std::cmp::Reverse(package.size_bytes));
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["PACKAGE", "VERSION", "MB INSTALLED"]);
    for package in packages.iter().take(PACKAGES_SHOWN) {
        let size = megabytes(package.size_bytes);
        table.add_row([package.name.clone(), package.version.clone(), size]);
    }
    writeln!(out, "{table}")?;
    let rest = packages.len().saturating_sub(PACKAGES_SHOWN);
    writeln!(out, " and {rest} more; --output json names them all")?;
    Ok(())
}

/// Makes what this site's machines boot: CA certificate, command line and signed UKI.
///
/// Returns the kernel's command line.
pub(crate) fn compose_site(
    plan: &Plan,
    site: &Site,
    image: &Path,
    append: Option<&str>,
) -> Result<String> {
    let ca = std::fs::read_to_string(site.path("master/pki/ca.crt"))
        .context("the control plane has made no CA yet")?;
    let seed = plan.seed.address;
    let boot = format!("http://{seed}:{}", plan.seed.http_port);
    let arguments = SiteArguments {
        root: format!("{boot}/image/root.img"),
        api: format!("https://{seed}:{}", plan.seed.api_port),
        ca: runtime::pki::fingerprint(&ca)?,
        boot,
    };
    let dir = site.path("site");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let uki = dir.join("uki.efi");
    runtime::pki::write_public(&dir.join("ca.pem"), &ca)?;
    let words = append.unwrap_or_default();
    let composed = builder::compose_site_uki(image, &arguments, words, &site.path("keys"), &uki)
        .context("cannot make the site's UKI")?;
    runtime::pki::write_public(&dir.join("cmdline"), &composed.command_line)?;
    Ok(composed.command_line)
}

fn load(dir: &Path) -> Result<Manifest> {
    let path = dir.join("manifest.json");
    let text = std::fs::read(&path).with_context(|| {
        format!("{}: no node image; make one with `muster image build`", path.display())
    })?;
    Manifest::parse(&text).with_context(|| format!("{} is damaged", path.display()))
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{}", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}
