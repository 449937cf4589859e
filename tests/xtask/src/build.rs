//! Release binaries, the node image, and the lab.

use anyhow::Result;

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
    let packages = ["-p", "muster", "-p", "init", "-p", "rig"];
    let mut args = vec!["build", "--release", "--locked", "--target", deps::TARGET];
    args.extend(packages);
    shell::run("cargo", &args)
}

/// Builds the node image.
pub(crate) fn image() -> Result<()> {
    shell::run(&bin("muster"), &["image", "build", "--out", IMAGE])
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
