//! What a scenario holds in its hands: the site's directory, the muster executable, the rig.

use std::fmt::Display;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use cluster::plan::Plan;

use super::kubectl::Kubectl;
use super::{Options, Scenario};
use crate::machine::tail;
use crate::{Rig, RigOptions, Stranger};

/// How long `muster up` may wait for machines that are emulated.
pub(super) const UP_LIMIT_SECONDS: &str = "900";
/// Lines of each log shown when a story fails.
const LOG_TAIL_LINES: usize = 40;

/// One scenario's run.
pub(super) struct Story {
    dir: PathBuf,
    file: PathBuf,
    options: Options,
    plan: Plan,
    start: Instant,
    report: String,
}

impl Story {
    /// Reads the plan and clears away what an earlier run left.
    pub(super) fn open(scenario: &Scenario, options: &Options) -> Result<Self> {
        let dir = crate::rig::absolute(&options.dir.join(scenario.name))?;
        let file = options.plan.clone().unwrap_or_else(|| PathBuf::from(scenario.plan));
        let file = crate::rig::absolute(&file)?;
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let plan = Plan::parse(&text).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("{}", lines.join("\n"))
        })?;
        let mut options = options.clone();
        for path in [&mut options.muster, &mut options.image] {
            *path = crate::rig::absolute(path)?;
        }
        let mut story =
            Self { dir, file, options, plan, start: Instant::now(), report: String::new() };
        if story.options.resume {
            return Ok(story);
        }
        story.clear().context("clearing away an earlier run")?;
        if story.dir.exists() {
            fs::remove_dir_all(&story.dir)
                .with_context(|| format!("removing {}", story.dir.display()))?;
        }
        fs::create_dir_all(&story.dir)?;
        story.start = Instant::now();
        Ok(story)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Prints a line of the story, with the time since its start.
    pub(super) fn say(&self, line: impl Display) -> Result<()> {
        let seconds = self.start.elapsed().as_secs();
        writeln!(std::io::stdout(), "{seconds:>5} s  {line}").context("printing")
    }

    /// Prints that something was checked and is true.
    pub(super) fn ok(&self, line: impl Display) -> Result<()> {
        self.say(format_args!("ok: {line}"))
    }

    /// Adds to the report, which is also printed.
    pub(super) fn report(&mut self, text: &str) -> Result<()> {
        self.report += text;
        self.report.push('\n');
        fs::write(self.dir.join("report.md"), &self.report).context("writing the report")?;
        writeln!(std::io::stdout(), "{text}").context("printing")
    }

    /// Copies the image into the story's directory and uses the copy from here on.
    pub(super) fn copy_image(&mut self) -> Result<PathBuf> {
        let copy = self.dir.join("image");
        fs::create_dir_all(&copy)?;
        let entries = fs::read_dir(&self.options.image)
            .with_context(|| format!("reading {}", self.options.image.display()))?;
        for entry in entries {
            let entry = entry?;
            // Caches and the like are not part of the image.
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), copy.join(entry.file_name()))?;
            }
        }
        self.options.image = copy.clone();
        Ok(copy)
    }

    /// Builds the rig that `muster up --sim` will find and use; so captures can begin before the
    /// first machine is switched on.
    pub(super) fn build_rig(&self) -> Result<Rig> {
        self.build_rig_with(Vec::new())
    }

    /// The same, with machines that the plan does not name.
    pub(super) fn build_rig_with(&self, strangers: Vec<Stranger>) -> Result<Rig> {
        let options = RigOptions { strangers, ..RigOptions::new(&self.dir.join("rig")) };
        Rig::build(&self.plan, &options)
    }

    /// Builds the rig and brings its site up, unless the story goes on with one that is up.
    pub(super) fn come_up(&self) -> Result<()> {
        if self.options().resume {
            return Ok(());
        }
        self.build_rig().context("building the racks")?;
        self.muster(&self.up_args(&["--limit", UP_LIMIT_SECONDS, "--skip-check"])?)
    }

    /// The rig of the running site.
    pub(super) fn rig(&self) -> Result<Rig> {
        let dir = self.dir.join("rig");
        Rig::load(&dir)?.with_context(|| format!("no rig in {}", dir.display()))
    }

    /// Runs muster to its end, its words going where ours go.
    pub(super) fn muster(&self, args: &[&str]) -> Result<()> {
        let status = self.muster_command(args).status().context("running muster")?;
        ensure!(status.success(), "muster {} failed ({status})", args.join(" "));
        Ok(())
    }

    /// Runs muster to its end and gives what it printed.
    pub(super) fn muster_output(&self, args: &[&str]) -> Result<String> {
        let output = crate::process::output(&mut self.muster_command(args))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts muster and lets it run.
    pub(super) fn start_muster(&self, args: &[&str], log: &Path) -> Result<Child> {
        let file = fs::File::create(log).with_context(|| format!("making {}", log.display()))?;
        let mut command = self.muster_command(args);
        command.stdout(file.try_clone()?).stderr(file);
        command.spawn().context("running muster")
    }

    fn muster_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.options.muster);
        command.args(args).stdin(Stdio::null());
        command
    }

    /// The arguments of `muster up` for this site, followed by `more`.
    pub(super) fn up_args<'a>(&'a self, more: &[&'a str]) -> Result<Vec<&'a str>> {
        let text = |path: &'a Path| path.to_str().context("a path that is no UTF-8");
        let mut args = vec!["up", text(&self.file)?, "--sim", "--dir", text(&self.dir)?];
        args.extend(["--image", text(&self.options.image)?]);
        args.extend(more);
        Ok(args)
    }

    /// Every kubectl to be tried, the one that tells the story first.
    pub(super) fn kubectls(&self) -> Vec<Kubectl> {
        let config = self.dir.join("kubeconfig");
        let mut programs = self.options.kubectl.clone();
        if programs.is_empty() {
            let tool = |version| format!("target/tools/kubectl-{version}/usr/bin/kubectl");
            programs =
                ["1.32", "1.20", "1.36"].map(|version| PathBuf::from(tool(version))).to_vec();
            programs.retain(|path| path.exists());
        }
        if programs.is_empty() {
            programs.push(PathBuf::from("kubectl"));
        }
        programs.into_iter().map(|program| Kubectl::new(program, config.clone())).collect()
    }

    /// The kubectl that tells the story.
    pub(super) fn kubectl(&self) -> Result<Kubectl> {
        self.kubectls().into_iter().next().context("there is always one kubectl")
    }

    /// Takes the site down, whatever state it is in.
    pub(super) fn clear(&self) -> Result<()> {
        let dir = self.dir.to_str().context("a path that is no UTF-8")?;
        if self.dir.join("site.json").exists() {
            self.muster_output(&["down", "--dir", dir])?;
        }
        // What muster does not know of: a rig that was built before `muster up`.
        if let Some(rig) = Rig::load(&self.dir.join("rig"))? {
            rig.down()?;
        }
        Ok(())
    }

    /// Prints all that helps to see what went wrong.
    pub(super) fn describe(&self) -> Result<()> {
        let mut out = std::io::stdout();
        if let Ok(rig) = self.rig() {
            writeln!(out, "{}", rig.describe())?;
        }
        for dir in ["logs", "rig/log"] {
            let Ok(entries) = fs::read_dir(self.dir.join(dir)) else { continue };
            for entry in entries.filter_map(Result::ok) {
                let text = fs::read(entry.path()).unwrap_or_default();
                let text = tail(&String::from_utf8_lossy(&text), LOG_TAIL_LINES);
                writeln!(out, "--- {}\n{text}", entry.path().display())?;
            }
        }
        if let Ok(kubectl) = self.kubectl() {
            for what in ["nodes,pods,svc,endpoints", "csr", "machines", "events"] {
                let said = kubectl.run(&["get", what, "-A", "-o", "wide"]);
                let said = said.unwrap_or_else(|err| format!("{err:#}"));
                writeln!(out, "--- kubectl get {what}\n{said}")?;
            }
        }
        writeln!(out, "consoles, logs and captures are in {}", self.dir.display())?;
        Ok(())
    }
}
