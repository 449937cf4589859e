//! Daemons that outlive the command that started them.
//!
//! A daemon is known by its pid file, and believed only when the process with that pid
//! still carries the same start time: pids are used again. The file also says by which
//! [`Recipe`] the daemon was started, so that one that no longer fits is replaced.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

/// How long a daemon may take to stop after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// What a daemon was made from: its command, its program file, and what it reads at start.
///
/// Two equal recipes give the same daemon; a running daemon of another recipe is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recipe(String);

impl Recipe {
    /// Notes the recipe of `command`, which runs `program` and reads `inputs` at start.
    pub(crate) fn new(command: &Command, program: &Path, inputs: &[&str]) -> Result<Self> {
        let file = fs::metadata(program)
            .with_context(|| format!("cannot look at {}", program.display()))?;
        let modified = file.modified()?.duration_since(SystemTime::UNIX_EPOCH)?;
        // Words are told apart by their lengths, so that no two lists read the same.
        let mut digest = Sha256::new();
        let mut note = |word: &[u8]| {
            digest.update(word.len().to_le_bytes());
            digest.update(word);
        };
        note(command.get_program().as_encoded_bytes());
        for argument in command.get_args() {
            note(argument.as_encoded_bytes());
        }
        note(format!("{} {}", file.len(), modified.as_nanos()).as_bytes());
        for input in inputs {
            note(input.as_bytes());
        }
        Ok(Self(hex::encode(digest.finalize())))
    }
}

/// Whether [`Daemon::start`] had to do anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Started {
    /// It ran already, by the same recipe.
    Already,
    /// It was not there.
    Anew,
    /// One of another recipe ran; it was stopped first.
    Replaced,
}

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

    /// Starts the daemon in a session of its own, unless it runs by the same recipe.
    pub(crate) fn start(&self, mut command: Command, recipe: &Recipe) -> Result<Started> {
        let started = match self.pid() {
            Some(_) if self.recipe().as_ref() == Some(recipe) => return Ok(Started::Already),
            Some(_) => {
                self.stop()?;
                Started::Replaced
            }
            None => Started::Anew,
        };
        for file in [&self.pid_file, &self.log] {
            let dir = file.parent().context("a daemon's files stand in a directory")?;
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let pid = child.id();
        let born = start_time(pid).context("the daemon was gone at once")?;
        fs::write(&self.pid_file, format!("{pid} {born} {}\n", recipe.0))?;
        Ok(started)
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
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        let started = words.next()?;
        (start_time(pid)? == started).then_some(pid)
    }

    /// The recipe noted at its start; `None` when nothing was noted.
    fn recipe(&self) -> Option<Recipe> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        text.split_whitespace().nth(2).map(|digest| Recipe(digest.to_owned()))
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

    /// A command that does nothing for long, and its recipe with what it reads.
    fn sleeper(input: &str) -> (Command, Recipe) {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let recipe = Recipe::new(&command, Path::new("/bin/sleep"), &[input]).unwrap();
        (command, recipe)
    }

    #[test]
    fn a_daemon_is_started_once_and_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::new(dir.path(), "sleeper");
        let start = |input| {
            let (command, recipe) = sleeper(input);
            daemon.start(command, &recipe).unwrap()
        };
        assert!(!daemon.is_running());
        assert_eq!(start("plan"), Started::Anew);
        let first = daemon.pid();
        assert_eq!(start("plan"), Started::Already);
        assert_eq!(daemon.pid(), first);
        daemon.stop().unwrap();
        assert!(!daemon.is_running());
        daemon.stop().unwrap();
    }

    #[test]
    fn a_daemon_that_read_something_else_at_its_start_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::new(dir.path(), "sleeper");
        let start = |input| {
            let (command, recipe) = sleeper(input);
            daemon.start(command, &recipe).unwrap()
        };
        assert_eq!(start("old plan"), Started::Anew);
        let first = daemon.pid();
        assert_eq!(start("new plan"), Started::Replaced);
        assert_ne!(daemon.pid(), first);
        assert!(daemon.is_running());
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
