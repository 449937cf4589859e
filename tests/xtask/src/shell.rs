//! Child processes, said aloud before they run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Prints one line for the person in front of the screen.
pub(crate) fn say(line: &str) {
    // A closed terminal must not stop a chore.
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// The root of the project.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_owned).unwrap_or_default()
}

/// Runs a program in the project's root; its output goes to the screen.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<()> {
    run_in(&root(), program, args)
}

/// Runs a program in a directory; its output goes to the screen.
pub(crate) fn run_in(dir: &Path, program: &str, args: &[&str]) -> Result<()> {
    say(&format!("$ {program} {}", args.join(" ")));
    let status = Command::new(program)
        .args(args)
        .current_dir(dir)
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(status.success(), "`{program} {}` ended with {status}", args.join(" "));
    Ok(())
}

/// Runs a program as root, by `sudo` when we are not.
pub(crate) fn run_as_root(program: &str, args: &[&str]) -> Result<()> {
    if is_root()? {
        return run(program, args);
    }
    say("this step needs root; sudo may ask for your password");
    let all: Vec<&str> = std::iter::once(program).chain(args.iter().copied()).collect();
    run("sudo", &all)
}

/// Runs a program and returns what it printed; failure is an error with its stderr.
pub(crate) fn read(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .current_dir(root())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program} {}`: {}", args.join(" "), stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn is_root() -> Result<bool> {
    Ok(read("id", &["-u"])?.trim() == "0")
}
