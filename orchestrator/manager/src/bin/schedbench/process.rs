//! Our own programs as processes beside a bench: built if need be, ended with it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::Failure;

/// Longest start, a build included.
const START_MAX: Duration = Duration::from_secs(1200);

/// A process, and the directory it owns, if any; both end with this value.
pub(crate) struct Process {
    child: Child,
    dir: Option<PathBuf>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It holds nothing that must be saved.
        drop(self.child.start_kill());
        if let Some(dir) = &self.dir {
            drop(std::fs::remove_dir_all(dir));
        }
    }
}

impl Process {
    /// How to reach the API server.
    pub(crate) fn kubeconfig(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join("admin.kubeconfig"))
    }
}

/// An example program of a crate: the built one beside us, or by way of cargo.
fn example(package: &str, name: &str) -> Result<Command, Failure> {
    let built = std::env::current_exe()?.parent().map(|dir| dir.join("examples").join(name));
    let mut command = match built.filter(|path| path.exists()) {
        Some(path) => Command::new(path),
        None => {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut command = Command::new(cargo);
            command.args(["run", "--release", "-p", package, "--example", name, "--"]);
            command
        }
    };
    command.env("RUST_LOG", "warn").kill_on_drop(true);
    Ok(command)
}

/// Starts our API server with an empty store and waits until it listens.
pub(crate) async fn serve() -> Result<Process, Failure> {
    let dir = std::env::temp_dir().join(format!("bench-{}", std::process::id()));
    let mut child = example("apiserver", "serve")?.arg(&dir).stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().ok_or("the server has no output")?;
    let served = Process { child, dir: Some(dir) };
    let mut lines = BufReader::new(stdout).lines();
    let first = tokio::time::timeout(START_MAX, lines.next_line()).await??;
    if !first.is_some_and(|line| line.starts_with("https://")) {
        return Err("the server ended before it listened".into());
    }
    Ok(served)
}

/// Starts every controller and the scheduler beside the server of a directory.
#[allow(dead_code, reason = "one of the benches brings its own scheduler")]
pub(crate) fn manage(dir: &Path) -> Result<Process, Failure> {
    let child = example("manager", "manage")?.arg(dir).spawn()?;
    Ok(Process { child, dir: None })
}

#[allow(dead_code, reason = "one of the benches measures itself alone")]
impl Process {
    /// Processor time so far, in hundredths of a second.
    pub(crate) fn ticks(&self) -> Result<f64, Failure> {
        ticks(self.child.id().ok_or("it has ended")?)
    }
}

/// Processor time of a process so far, in hundredths of a second.
pub(crate) fn ticks(pid: u32) -> Result<f64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = text.rsplit_once(')').ok_or("no process")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    // utime and stime are the 14th and 15th of the whole line.
    Ok(number(11).zip(number(12)).map(|(user, system)| user + system).ok_or("no times")?)
}
