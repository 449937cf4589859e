//! Release binaries, the node image, and the lab.

use anyhow::{Result, ensure};

use crate::{deps, shell};

/// Where release binaries land.
pub(crate) fn bin(name: &str) -> String {
    format!("target/{}/release/{name}", deps::TARGET)
}

/// Where the node image lands.
pub(crate) const IMAGE: &str = "target/image";

/// Where the lab keeps its state.
const LAB: &str = ".muster/lab";

/// Builds every shipped binary; one selection of packages, so that features unify once.
pub(crate) fn binaries() -> Result<()> {
    deps::install()?;
    let packages = ["-p", "muster", "-p", "init", "-p", "rig", "-p", "sim"];
    let mut args = vec!["build", "--release", "--locked", "--target", deps::TARGET];
    args.extend(packages);
    shell::run("cargo", &args)
}

/// Builds the node image.
pub(crate) fn image() -> Result<()> {
    shell::run(&bin("muster"), &["image", "build", "--out", IMAGE])
}

/// Builds the image a second time, from nothing, and wants the same bytes.
pub(crate) fn image_again() -> Result<()> {
    let (out, cache) = ("target/image-again", "target/image-again-cache");
    for dir in [out, cache] {
        match std::fs::remove_dir_all(shell::root().join(dir)) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => return Err(err.into()),
            _ => (),
        }
    }
    shell::run(&bin("muster"), &["image", "build", "--out", out, "--cache", cache])?;
    // The manifest holds every file's digest.
    let manifest = |dir: &str| std::fs::read(shell::root().join(dir).join("manifest.json"));
    ensure!(manifest(IMAGE)? == manifest(out)?, "two builds of the image differ: {IMAGE}, {out}");
    shell::say("two builds of the image are the same, byte for byte");
    Ok(())
}

/// Brings the lab up.
pub(crate) fn rack_up() -> Result<()> {
    binaries()?;
    image()?;
    let site = "examples/lab/rack.yaml";
    let args = ["up", site, "--sim", "--image", IMAGE, "--dir", LAB];
    shell::run_as_root(&bin("muster"), &args)?;
    shell::say("tear it down with: cargo xtask rack down");
    Ok(())
}

/// Takes the lab down.
pub(crate) fn rack_down() -> Result<()> {
    shell::run_as_root(&bin("muster"), &["down", "--dir", LAB])
}
