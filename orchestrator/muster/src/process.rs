//! Daemons that outlive the command that started them.
//!
//! A daemon is known by its pid file, and believed only when the process with that pid
//! still carries the same start time: pids are used again.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a daemon may take to stop after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// One daemon of a site: its pid file and its log.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    pid_file: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Names a daemon of the site in `dir`.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let log = dir.join("logs").join(format!("{name}.log"));
        Self { pid_file: dir.join("run").join(format!("{name}.pid")), log }
    }

    /// What the daemon says.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it runs.
    pub(crate) fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    /// Starts the daemon in a session of its own, unless it runs.
    pub(crate) fn start(&self, mut command: Command) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        for file in [&self.pid_file, &self.log] {
            let dir = file.parent().context("a daemon's files stand in a directory")?;
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let pid = child.id();
        let started = start_time(pid).context("the daemon was gone at once")?;
        fs::write(&self.pid_file, format!("{pid} {started}\n"))?;
        Ok(())
    }

    /// Stops the daemon and waits until it is gone.
    pub(crate) fn stop(&self) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        let pid = Pid::from_raw(i32::try_from(pid)?);
        // It may be gone already, which is what we want.
        let _gone = kill(pid, Signal::SIGTERM);
        let mut waited = Duration::ZERO;
        while self.is_running() {
            ensure!(
                waited < STOP_LIMIT,
                "process {pid} ignores SIGTERM; see {}",
                self.log.display()
            );
            std::thread::sleep(Duration::from_millis(50));
            waited += Duration::from_millis(50);
        }
        fs::remove_file(&self.pid_file)?;
        Ok(())
    }

    /// The last lines of its log, for an error message.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn pid(&self) -> Option<u32> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        (start_time(pid)? == started).then_some(pid)
    }
}

/// When a live process started, in the kernel's ticks; `None` for the dead and for zombies.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything; fields are counted behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let alive = !matches!(fields.first(), Some(&("Z" | "X")));
    alive.then(|| fields.get(19).map(|ticks| (*ticks).to_owned())).flatten()
}

/// Reserves the site's directory for this command; the lock ends with the returned file.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    let taken = file.try_lock();
    ensure!(taken.is_ok(), "another muster command works on {}", dir.display());
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_started_once_and_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::new(dir.path(), "sleeper");
        let sleeper = || {
            let mut command = Command::new("sleep");
            command.arg("1000");
            command
        };
        assert!(!daemon.is_running());
        daemon.start(sleeper()).unwrap();
        let first = daemon.pid();
        daemon.start(sleeper()).unwrap();
        assert_eq!(daemon.pid(), first);
        daemon.stop().unwrap();
        assert!(!daemon.is_running());
        daemon.stop().unwrap();
    }

    #[test]
    fn a_used_again_pid_is_not_taken_for_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::new(dir.path(), "other");
        fs::create_dir_all(dir.path().join("run")).unwrap();
        fs::write(dir.path().join("run/other.pid"), "1 0\n").unwrap();
        assert!(!daemon.is_running());
    }
}
