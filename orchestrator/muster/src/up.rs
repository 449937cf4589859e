//! `muster up` and `muster down`: a site from nothing to Ready, and back.
//!
//! Every step may be killed and run again: what is there is used, what is missing is made.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster::plan::Plan;
use runtime::pki::Kubeconfig;

use crate::args::{Output, SiteArgs, UpArgs};
use crate::ground::{Ground, Simulated};
use crate::process::{self, Daemon, Recipe, Started};
use crate::site::{Record, Site};
use crate::{check, follow, say, status};

/// How long a daemon may take to answer after its start.
const DAEMON_LIMIT: Duration = Duration::from_secs(60);

/// Brings a site up.
pub(crate) fn run(args: &UpArgs) -> Result<()> {
    let (plan, text) = crate::plan::load(&args.file)?;
    let hash = plan.hash();
    let site = Site::make(args.dir.as_deref(), &plan.site)?;
    let _lock = process::lock(site.dir())?;
    check_hash(args, &site, &hash)?;
    let image = std::fs::canonicalize(&args.image).with_context(|| {
        format!("{}: no node image; make one with `muster image build`", args.image.display())
    })?;
    let record = Record {
        site: plan.site.clone(),
        plan_hash: hash.clone(),
        simulated: args.sim,
        image: image.clone(),
    };
    site.remember(&text, &record)?;
    say(&format!("site {}: plan {}, {} machines", plan.site, short(&hash), plan.machines.len()));
    let simulated = if args.sim { Simulated::Yes } else { Simulated::No };
    let ground = Ground::make(&plan, &site, simulated)?;
    let manifest = std::fs::read_to_string(image.join("manifest.json"))
        .with_context(|| format!("{} has no manifest", image.display()))?;
    let up = Up { args, plan: &plan, site: &site, ground: &ground, hash, image, manifest };
    up.start_master()?;
    crate::daemon::block_on(up.register_machines())?;
    up.start_boot_server()?;
    up.power_on()?;
    crate::daemon::block_on(up.finish())
}

/// Takes a site down; goes on past failures and names them all.
pub(crate) fn down(args: &SiteArgs) -> Result<()> {
    let site = Site::find(args)?;
    let _lock = process::lock(site.dir())?;
    let record = site.record()?.context("the site was never up")?;
    let mut failures = Vec::new();
    for name in ["boot", "master"] {
        if let Err(err) = Daemon::new(site.dir(), name).stop() {
            failures.push(format!("{name}: {err:#}"));
        }
    }
    if record.simulated {
        match rig::Rig::load(&site.path("rig")) {
            Ok(Some(rig)) => {
                if let Err(err) = rig.down() {
                    failures.push(format!("simulated rack: {err:#}"));
                }
            }
            Ok(None) => (),
            Err(err) => failures.push(format!("simulated rack: {err:#}")),
        }
        // A simulated site is disposable; its logs stay for whoever wants to look.
        for name in ["master", "boot", "site", "keys", "kubeconfig", "rack.yaml", "site.json"] {
            remove(&site.path(name), &mut failures);
        }
    }
    ensure!(failures.is_empty(), "not everything is down:\n  {}", failures.join("\n  "));
    say(&format!("site {} is down; logs are in {}", record.site, site.path("logs").display()));
    Ok(())
}

fn remove(path: &Path, failures: &mut Vec<String>) {
    let removed =
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    if let Err(err) = removed
        && err.kind() != std::io::ErrorKind::NotFound
    {
        failures.push(format!("{}: {err}", path.display()));
    }
}

/// Refuses a plan that is not the one the operator saw, or not the one that is up.
fn check_hash(args: &UpArgs, site: &Site, hash: &str) -> Result<()> {
    let file = args.file.display();
    if let Some(seen) = &args.plan {
        ensure!(
            seen == hash,
            "{file} has changed since it was planned: --plan says {seen}, the file is {hash} now; \
             look at `muster plan {file}` again"
        );
        return Ok(());
    }
    let Some(record) = site.record()? else { return Ok(()) };
    if record.plan_hash != hash {
        bail!(
            "the site in {} is up with plan {}, and {file} is {hash} now; \
             look at `muster plan {file}`, then say `--plan {hash}` to go on with it",
            site.dir().display(),
            record.plan_hash
        );
    }
    Ok(())
}

/// What the steps share.
struct Up<'a> {
    args: &'a UpArgs,
    plan: &'a Plan,
    site: &'a Site,
    ground: &'a Ground,
    /// The plan's hash.
    hash: String,
    image: PathBuf,
    /// The image's manifest, as it was when this command began.
    manifest: String,
}

impl Up<'_> {
    fn start_master(&self) -> Result<()> {
        let seed = &self.plan.seed;
        let timings = &self.plan.timings;
        let mut command = self.muster()?;
        command.arg("master").arg("--data-dir").arg(self.site.path("master"));
        command.args(["--listen", &format!("0.0.0.0:{}", seed.api_port)]);
        command.args(["--advertise", &seed.address.to_string()]);
        command.args(["--advertise", &self.ground.api_address().to_string()]);
        if let Some(api) = self.plan.networks.api {
            command.args(["--advertise", &api.to_string()]);
        }
        command.args(["--service-cidr", &self.plan.networks.service_cidrs()]);
        for pool in &self.plan.networks.load_balancers {
            command.args(["--load-balancer-pool", &pool.to_string()]);
        }
        let grace = timings.node_monitor_grace_period_seconds.to_string();
        command.args(["--node-monitor-grace-period", &grace]);
        let eviction = timings.pod_eviction_timeout_seconds.to_string();
        command.args(["--pod-eviction-timeout", &eviction]);
        let daemon = self.start("master", command)?;
        let made = self.site.path("master/admin.kubeconfig");
        follow::wait_for("the API server", DAEMON_LIMIT, &daemon, || Ok(made.exists()))?;
        let mut kubeconfig = Kubeconfig::load(&made)?;
        kubeconfig.server = format!("https://{}:{}", self.ground.api_address(), seed.api_port);
        kubeconfig.store(&self.site.path("kubeconfig"))?;
        let client = self.site.client()?;
        follow::wait_for("the API server", DAEMON_LIMIT, &daemon, || {
            let ready = crate::daemon::block_on(async { Ok(client.raw_get("/readyz").await?) });
            Ok(ready.is_ok_and(|answer| answer.status.is_success()))
        })?;
        say(&format!("control plane is up at {}", client.server()));
        Ok(())
    }

    async fn register_machines(&self) -> Result<()> {
        follow::register(&self.site.client()?, self.plan).await
    }

    fn start_boot_server(&self) -> Result<()> {
        let line = crate::image::compose_site(
            self.plan,
            self.site,
            &self.image,
            self.args.append.as_deref(),
        )?;
        let mut command = self.muster()?;
        command.arg("boot").arg("--plan").arg(self.site.path("rack.yaml"));
        command.arg("--data-dir").arg(self.site.path("boot"));
        command.arg("--image").arg(&self.image).arg("--site").arg(self.site.path("site"));
        command.arg("--kubeconfig").arg(self.site.path("master/boot.kubeconfig"));
        let daemon = self.start("boot", command)?;
        let journal = self.site.path("boot");
        follow::wait_for("the boot server", DAEMON_LIMIT, &daemon, || Ok(journal.exists()))?;
        say(&format!("boot server is up; machines get: {line}"));
        Ok(())
    }

    fn power_on(&self) -> Result<()> {
        let mut by_hand = Vec::new();
        for machine in &self.plan.machines {
            if !self.ground.power_on(&machine.name)? {
                by_hand.push(machine.name.as_str());
            }
        }
        if !by_hand.is_empty() {
            say(&format!(
                "power these machines on, booting from the network: {}",
                by_hand.join(", ")
            ));
        }
        Ok(())
    }

    async fn finish(&self) -> Result<()> {
        let client = self.site.client()?;
        let limit = Duration::from_secs(self.args.limit);
        let machines = follow::until_ready(&client, self.plan, limit).await?;
        status::print(&machines, self.args.output)?;
        if !self.args.skip_check {
            self.check_pods(&client).await?;
        }
        let mut out = std::io::stdout();
        if self.args.output == Output::Table {
            writeln!(out, "\n{}", follow::render_nodes(&client).await?)?;
        }
        let dir = self.site.dir().display();
        say(&format!("kubeconfig: {dir}/kubeconfig"));
        say(&format!("take it down with: muster down --dir {dir}"));
        Ok(())
    }

    async fn check_pods(&self, client: &runtime::Client) -> Result<()> {
        say("checking that pods on all nodes reach each other");
        let nodes: Vec<String> = self.plan.machines.iter().map(|m| m.name.clone()).collect();
        let calls = check::reach(client, &nodes).await.context("pods could not be checked")?;
        let rack = |name: &str| {
            self.plan.machine(name).map(|machine| machine.rack.as_str()).unwrap_or_default()
        };
        let mut missed = Vec::new();
        for call in calls {
            let across = if rack(&call.from) == rack(&call.to) { "" } else { ", across racks" };
            let line = format!("{} -> pod {} on {}{across}", call.from, call.address, call.to);
            say(&format!("  {} {line}", if call.answered { "ok    " } else { "MISSED" }));
            if !call.answered {
                missed.push(line);
            }
        }
        ensure!(missed.is_empty(), "pods do not reach each other: {}", missed.join("; "));
        Ok(())
    }

    /// Starts a daemon, or replaces it when it runs by another plan, image, option or program.
    fn start(&self, name: &str, command: Command) -> Result<Daemon> {
        let daemon = Daemon::new(self.site.dir(), name);
        let append = self.args.append.as_deref().unwrap_or_default();
        let recipe = Recipe::new(&command, &program()?, &[&self.hash, &self.manifest, append])?;
        if daemon.start(command, &recipe)? == Started::Replaced {
            say(&format!("{name} ran by another plan, image or program: started anew"));
        }
        Ok(daemon)
    }

    /// Our own program, to be run on the seed.
    fn muster(&self) -> Result<Command> {
        Ok(self.ground.seed_command(&program()?))
    }
}

fn program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find our own program")
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
