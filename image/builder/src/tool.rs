//! Child processes: found before the work starts, heard when they fail.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::BuildError;
use crate::rules::TOOLS;

/// How much of a failed program's output is kept; its end says most.
const OUTPUT_BYTES_MAX: usize = 4000;

/// Checks that every tool is there, before anything is downloaded.
pub(crate) fn check() -> Result<(), BuildError> {
    for (tool, package) in TOOLS {
        if find(tool).is_none() {
            return Err(BuildError::MissingTool { tool, package });
        }
    }
    Ok(())
}

/// A command in the C locale, with administrators' directories in its path.
pub(crate) fn command(tool: &str) -> Command {
    let mut command = Command::new(find(tool).unwrap_or_else(|| tool.into()));
    command.env("LC_ALL", "C.UTF-8").env("PATH", search_path()).stdin(Stdio::null());
    command
}

/// Runs a command to its end and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>, BuildError> {
    let name = describe(command);
    let result = command.output().map_err(BuildError::run(&name))?;
    if result.status.success() {
        return Ok(result.stdout);
    }
    let output = [result.stdout, result.stderr].concat();
    Err(BuildError::Failed { tool: name, status: result.status, output: tail(&output) })
}

/// The program and its arguments, for messages.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let text = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    text.chars().take(400).collect()
}

/// The last part of a program's output, as text.
pub(crate) fn tail(output: &[u8]) -> String {
    let from = output.len().saturating_sub(OUTPUT_BYTES_MAX);
    String::from_utf8_lossy(output.get(from..).unwrap_or_default()).trim().to_owned()
}

fn find(tool: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|dir| dir.join(tool)).find(|path| path.is_file())
}

/// Ordinary users have no `/usr/sbin` in their path, where depmod and veritysetup are.
fn search_path() -> String {
    let path = env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}
