//! Programs that run beside us: inside a namespace, detached, found again by a later process.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::wait;

/// Debian keeps routing daemons out of a plain user's path.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a program may take to end after a polite request.
const TERM_PATIENCE: Duration = Duration::from_secs(5);

/// A process that stays the same one even when its number is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Start time in clock ticks since the kernel booted, from `/proc/PID/stat`.
    start_ticks: u64,
}

impl Process {
    /// Looks a running process up.
    pub(crate) fn observe(pid: i32) -> Option<Self> {
        let (state, start_ticks) = stat(pid)?;
        (state != 'Z' && state != 'X').then_some(Self { pid, start_ticks })
    }

    /// Tells whether this very process still runs.
    pub(crate) fn is_alive(self) -> bool {
        Self::observe(self.pid) == Some(self)
    }

    /// Ends it at once.
    pub(crate) fn kill(self) {
        self.signal("-KILL");
    }

    /// Asks it to end, and ends it when it does not.
    pub(crate) fn stop(self) {
        self.signal("-TERM");
        let gone = wait::poll(TERM_PATIENCE, || !self.is_alive());
        if !gone {
            self.kill();
        }
    }

    fn signal(self, signal: &str) {
        // Between the look and the kill the number could be reused in theory; start times of
        // processes that we started are minutes old, so only a wrap of all numbers could do it.
        if self.is_alive() {
            let sent = run("kill", &[signal, &self.pid.to_string()]);
            if let Err(err) = sent {
                tracing::debug!(pid = self.pid, err = %err, "process ended before the signal");
            }
        }
    }
}

fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may hold spaces.
    let rest = text.get(text.rfind(')')? + 2..)?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// CPU seconds that a process has used so far, in user and kernel mode.
pub(crate) fn cpu_seconds(pid: i32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = text.get(text.rfind(')')? + 2..)?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks: u32 =
        fields.get(11)?.parse::<u32>().ok()?.checked_add(fields.get(12)?.parse().ok()?)?;
    // The kernel's user-visible tick is 1/100 s on every Linux that runs QEMU for x86.
    Some(f64::from(ticks) / 100.0)
}

/// A command with a path that finds system programs.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", PATH);
    command
}

/// Rewrites `command` so that it runs in network namespace `namespace`.
pub(crate) fn inside(namespace: &str, command: &Command) -> Command {
    let mut wrapped = self::command("ip");
    wrapped.args(["netns", "exec", namespace]).arg(command.get_program()).args(command.get_args());
    copy_surroundings(command, &mut wrapped);
    wrapped
}

fn copy_surroundings(from: &Command, to: &mut Command) {
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
    if let Some(dir) = from.get_current_dir() {
        to.current_dir(dir);
    }
}

/// Runs a program to its end and gives its output; failure carries what it said.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<String> {
    let mut command = command(program);
    command.args(args);
    let output = output(&mut command)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` to its end; failure carries what it said.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let shown = show(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| {
        format!("cannot start {shown}; `rig preflight` installs what is missing")
    })?;
    check(&shown, output)
}

/// Runs a program to its end with `input` on its standard input.
pub(crate) fn run_with_input(program: &str, args: &[&str], input: &str) -> Result<()> {
    let mut command = command(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = show(&command);
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let mut stdin = child.stdin.take().context("a piped standard input")?;
    // Inputs here are a few kilobytes: below what a pipe holds, so writing cannot block.
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().with_context(|| format!("waiting for {shown}"))?;
    check(&shown, output).with_context(|| format!("its input was:\n{input}"))?;
    written.with_context(|| format!("writing to {shown}"))
}

fn check(shown: &str, output: Output) -> Result<Output> {
    if output.status.success() {
        return Ok(output);
    }
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    bail!("{shown} failed ({}): {} {}", output.status, err.trim(), out.trim())
}

/// Starts `command` in a session of its own, so that it outlives us and our terminal.
///
/// The process keeps its number through `setsid` and `ip netns exec`, since both replace
/// themselves. It is reaped for as long as we live.
pub(crate) fn spawn_detached(
    namespace: Option<&str>,
    command: &Command,
    io: Io,
) -> Result<Process> {
    let inner = match namespace {
        Some(namespace) => inside(namespace, command),
        None => {
            let mut same = Command::new(command.get_program());
            same.args(command.get_args()).env("PATH", PATH);
            copy_surroundings(command, &mut same);
            same
        }
    };
    let mut detached = self::command("setsid");
    detached.arg(inner.get_program()).args(inner.get_args());
    copy_surroundings(&inner, &mut detached);
    let shown = show(&detached);
    let child = detached
        .stdin(io.stdin)
        .stdout(io.stdout)
        .stderr(io.stderr)
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let pid = i32::try_from(child.id()).context("process numbers fit 31 bits")?;
    let process = Process::observe(pid);
    reap(child)?;
    process.with_context(|| format!("{shown} ended at once"))
}

/// Where a detached program reads and writes.
pub(crate) struct Io {
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
}

impl Io {
    /// Nothing to read; everything written goes to the end of `log`.
    pub(crate) fn log(log: &Path) -> Result<Self> {
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let again = file.try_clone().context("sharing a log file")?;
        Ok(Self { stdin: Stdio::null(), stdout: file.into(), stderr: again.into() })
    }
}

/// Waits for a child on a thread of its own, so that it never stays behind as a zombie.
fn reap(mut child: Child) -> Result<()> {
    std::thread::Builder::new()
        .name("reaper".to_owned())
        .spawn(move || child.wait())
        .context("starting a thread")?;
    Ok(())
}

/// Every process in a namespace.
pub(crate) fn in_namespace(namespace: &str) -> Vec<Process> {
    let pids = run("ip", &["netns", "pids", namespace]).unwrap_or_default();
    pids.lines().filter_map(|line| Process::observe(line.trim().parse().ok()?)).collect()
}

/// Stops many processes at once: one patience for all of them.
pub(crate) fn stop_all(processes: &[Process]) {
    for process in processes {
        process.signal("-TERM");
    }
    wait::poll(TERM_PATIENCE, || processes.iter().all(|process| !process.is_alive()));
    for process in processes {
        process.kill();
    }
    wait::poll(TERM_PATIENCE, || processes.iter().all(|process| !process.is_alive()));
}

/// Writes a value as JSON, whole or not at all.
pub(crate) fn save<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("rendering JSON")?;
    let fresh = path.with_extension("new");
    fs::write(&fresh, text).with_context(|| format!("writing {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("renaming to {}", path.display()))
}

/// Reads what [`save`] wrote; `None` when it is not there.
pub(crate) fn restore<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err).with_context(|| format!("reading {}", path.display())),
    };
    let value = serde_json::from_str(&text);
    value.map(Some).with_context(|| format!("{} is damaged", path.display()))
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Refuses to go on without root, with a sentence that says what to do.
pub(crate) fn require_root() -> Result<()> {
    let root = nix::unistd::Uid::effective().is_root();
    ensure!(root, "network namespaces and taps need root: run this with sudo");
    Ok(())
}
