//! The whole test suite, and what CI adds to it.

use anyhow::Result;

use crate::{build, deps, shell, tidy};

/// Lives of the control plane that every run of the tests looks at; a few minutes on two cores.
const SEEDS: &str = "10000";

/// Runs every test there is.
pub(crate) fn test() -> Result<()> {
    build::binaries()?;
    build::image()?;
    build::image_again()?;
    deps::fetch_programs()?;
    shell::run("cargo", &["test", "--locked", "--workspace", "--no-fail-fast"])?;
    shell::run(&build::bin("sim"), &["--seeds", SEEDS])?;
    let rig = build::bin("rig");
    let muster = build::bin("muster");
    let args = ["run", "--all", "--muster", &muster, "--image", build::IMAGE];
    shell::run_as_root(&rig, &args)
}

/// Runs what CI runs, cheapest first.
pub(crate) fn ci() -> Result<()> {
    deps::install()?;
    shell::run("cargo", &["fmt", "--all", "--check"])?;
    tidy::tidy()?;
    let lint = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    shell::run("cargo", &lint)?;
    deps::install_cargo_deny()?;
    // Advisories need a database from the network; the other checks need none.
    shell::run("cargo", &["deny", "--offline", "check", "bans", "licenses", "sources"])?;
    test()
}
