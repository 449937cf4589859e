//! The front door: a rig that is built, driven, found again and taken down.

mod router;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster::plan::Plan;
use serde::{Deserialize, Serialize};

use crate::http::{self, Request, Response};
use crate::machine::{Accelerator, DirectBoot, Machine, tail};
use crate::network;
use crate::process::{self, Process};
use crate::topology::{BRIDGE, Stranger, Topology, socket_dir, tag_of};

const STATE_FILE: &str = "state.json";
/// Layout of `state.json`; an older rig is taken down rather than guessed at.
const STATE_VERSION: u32 = 1;
/// A server inside the rig answers at once, or the machine under it is very busy.
const HTTP_LIMIT: Duration = Duration::from_secs(10);
/// Console lines shown of each machine when a wait fails.
const CONSOLE_TAIL_LINES: usize = 15;

/// How a rig is built.
#[derive(Debug, Clone)]
pub struct RigOptions {
    /// Directory of everything the rig keeps: state, consoles, logs, captures.
    pub dir: PathBuf,
    /// What runs the machines; `None` chooses by trying.
    pub accelerator: Option<Accelerator>,
    /// Machines that the plan does not name; a standing rig of the plan is used with its own.
    pub strangers: Vec<Stranger>,
}

impl RigOptions {
    /// Keeps the rig in `dir` and chooses the accelerator by trying.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), accelerator: None, strangers: Vec::new() }
    }
}

/// Where a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// The operator's host.
    Seed,
    /// The ToR router of a rack, which also holds the rack's bridge and taps; with a number behind
    /// the rack's name, another router there (`a2`).
    Tor(&'a str),
}

/// Whether a machine is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Power {
    /// Off, or its QEMU died.
    Off,
    /// On since a time, RFC 3339.
    On {
        /// When it was switched on.
        since: String,
    },
}

/// A simulated site.
///
/// Dropping it leaves everything running; [`Rig::down`] removes it.
#[derive(Debug)]
pub struct Rig {
    dir: PathBuf,
    state: State,
    site: Topology,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    version: u32,
    tag: String,
    accelerator: Accelerator,
    plan: Plan,
    #[serde(default)]
    strangers: Vec<Stranger>,
}

impl Rig {
    /// Builds the rig of a plan: namespaces, cables, routers that have found each other. No
    /// machine is switched on.
    ///
    /// A rig of the same plan that stands and works is used again as it is; one of another plan,
    /// or the remains of one, is taken down first.
    ///
    /// # Errors
    ///
    /// Without root, without the programs of `rig preflight`, or when the routers do not find
    /// each other in time. What was built until then is removed.
    pub fn build(plan: &Plan, options: &RigOptions) -> Result<Self> {
        process::require_root()?;
        fs::create_dir_all(&options.dir)
            .with_context(|| format!("making {}", options.dir.display()))?;
        let dir = absolute(&options.dir)?;
        match Self::load(&dir) {
            Ok(Some(rig)) if rig.state.plan == *plan && rig.is_sound() => return Ok(rig),
            Ok(Some(rig)) => rig.down().context("taking down what stood here before")?,
            Ok(None) => (),
            // Names follow from site and directory, so that `raise` finds its remains all the same.
            Err(err) => {
                tracing::warn!(err = %format!("{err:#}"), "an unreadable rig is built anew");
            }
        }
        let tag = tag_of(&plan.site, &dir);
        let strangers = options.strangers.clone();
        let site = Topology::new(plan, &strangers, &tag)?;
        let accelerator = options.accelerator.unwrap_or_else(Accelerator::choose);
        let plan = plan.clone();
        let state = State { version: STATE_VERSION, tag, accelerator, plan, strangers };
        for name in ["processes", "log", "machines", "captures"] {
            let path = dir.join(name);
            fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        }
        // Noted before anything exists, so that a crash from here on leaves a way to clean up.
        process::save(&dir.join(STATE_FILE), &state)?;
        let rig = Self { dir, state, site };
        match rig.raise() {
            Ok(()) => Ok(rig),
            Err(err) => {
                if let Err(left) = rig.down() {
                    tracing::warn!(err = %format!("{left:#}"), "remains of the rig stay behind");
                }
                Err(err)
            }
        }
    }

    /// Opens the rig that was built in `dir`, by whatever process; `None` when there is none.
    ///
    /// # Errors
    ///
    /// When its state cannot be read.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let dir = absolute(dir)?;
        let Some(state) = process::restore::<State>(&dir.join(STATE_FILE))? else {
            return Ok(None);
        };
        let (found, own) = (state.version, STATE_VERSION);
        ensure!(found == own, "the rig in {} is of layout {found}, not {own}", dir.display());
        let site = Topology::new(&state.plan, &state.strangers, &state.tag)?;
        Ok(Some(Self { dir, state, site }))
    }

    fn raise(&self) -> Result<()> {
        // Remains of a rig whose directory was deleted would be in the way.
        for err in network::remove(&self.site) {
            tracing::warn!(err = %format!("{err:#}"), "could not clear remains");
        }
        let sockets = socket_dir(&self.state.tag);
        fs::create_dir_all(&sockets).with_context(|| format!("making {}", sockets.display()))?;
        network::build(&self.site)?;
        network::start_routers(&self.state.plan, &self.site, &self.state.tag, &self.dir)
    }

    /// Whether namespaces and routers are all there.
    fn is_sound(&self) -> bool {
        let existing = network::existing_namespaces();
        let bird = |rack: &str| network::running(&self.dir, &format!("bird-{rack}")).is_some();
        self.site.namespaces().iter().all(|name| existing.iter().any(|other| other == name))
            && self.site.tors.iter().all(|tor| bird(&tor.name))
    }

    /// Removes everything: machines, daemons, captures, namespaces, cables, the note of it.
    /// Consoles, logs and captured packets stay for whoever wants to read them.
    ///
    /// Safe to call twice, and on a rig that is half there.
    ///
    /// # Errors
    ///
    /// Goes on after a failure and returns what could not be removed.
    pub fn down(&self) -> Result<()> {
        let mut left: Vec<String> = Vec::new();
        for tor in &self.site.tors {
            for machine in &tor.machines {
                self.open_machine(&machine.name)?.power_cut();
            }
        }
        left.extend(network::remove(&self.site).iter().map(|err| format!("{err:#}")));
        let sockets = socket_dir(&self.state.tag);
        for gone in [fs::remove_dir_all(&sockets), fs::remove_dir_all(self.dir.join("processes"))] {
            match gone {
                Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                    left.push(format!("{err}"));
                }
                Ok(()) | Err(_) => (),
            }
        }
        if left.is_empty() {
            match fs::remove_file(self.dir.join(STATE_FILE)) {
                Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                    left.push(format!("{err}"));
                }
                Ok(()) | Err(_) => return Ok(()),
            }
        }
        bail!("could not remove all of the rig: {}", left.join("; "))
    }

    /// The plan it was built from.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.state.plan
    }

    /// Its directory, absolute.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What runs the machines.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.state.accelerator
    }

    /// The seed's address on its link to this host: programs on the host, such as kubectl, reach
    /// the API by it. It must stand in the API server's certificate.
    #[must_use]
    pub fn host_side_address(&self) -> Ipv4Addr {
        self.site.host.seed
    }

    /// The name of a place's network namespace, for `ip netns exec`.
    ///
    /// # Errors
    ///
    /// When the plan has no such rack.
    pub fn namespace(&self, place: Place<'_>) -> Result<&str> {
        match place {
            Place::Seed => Ok(&self.site.seed.namespace),
            Place::Tor(rack) => Ok(&self.site.tor(rack)?.namespace),
        }
    }

    /// A command that runs `program` on the seed, for callers who start and watch it themselves.
    #[must_use]
    pub fn seed_command(&self, program: &Path) -> Command {
        process::inside(&self.site.seed.namespace, &Command::new(program))
    }

    /// Runs a program on the seed to its end and gives its output, whatever its exit code.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn exec_in_seed(&self, command: &Command) -> Result<Output> {
        self.exec(Place::Seed, command)
    }

    /// Runs a program in a place to its end and gives its output, whatever its exit code.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn exec(&self, place: Place<'_>, command: &Command) -> Result<Output> {
        let namespace = self.namespace(place)?;
        let mut command = process::inside(namespace, command);
        command.output().with_context(|| format!("running {command:?}"))
    }

    /// Starts a program on the seed that goes on without us; one that runs under that name
    /// already stays as it is. It logs to `log/NAME.log`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn_daemon_in_seed(&self, name: &str, command: &Command) -> Result<()> {
        network::start(&self.dir, name, &self.site.seed.namespace, command).map(drop)
    }

    /// Stops a program started by [`Rig::spawn_daemon_in_seed`], politely first.
    pub fn stop_daemon(&self, name: &str) {
        if let Some(process) = network::running(&self.dir, name) {
            process.stop();
        }
    }

    /// Kills a program started by [`Rig::spawn_daemon_in_seed`], as a crash would.
    pub fn kill_daemon(&self, name: &str) {
        if let Some(process) = network::running(&self.dir, name) {
            process.kill();
            crate::wait::poll(HTTP_LIMIT, || !process.is_alive());
        }
    }

    /// The process number of a daemon that runs.
    #[must_use]
    pub fn daemon_pid(&self, name: &str) -> Option<i32> {
        network::running(&self.dir, name).map(|process: Process| process.pid)
    }

    /// Where a daemon logs.
    #[must_use]
    pub fn daemon_log(&self, name: &str) -> PathBuf {
        network::log_path(&self.dir, name)
    }

    /// Switches a machine on, and tells the boot server, if one runs, when that was.
    ///
    /// # Errors
    ///
    /// When QEMU does not start.
    pub fn power_on(&self, name: &str) -> Result<()> {
        let machine = self.open_machine(name)?;
        if machine.process().is_some() {
            return Ok(());
        }
        machine.power_on(None)?;
        let report = serde_json::json!({
            "mac": machine.site.mac,
            "uuid": machine.site.uuid,
            "phase": "power",
            "detail": format!("switched on by the rig, {:?}", self.state.accelerator).to_lowercase(),
        });
        if let Err(err) = self.ask_boot_server("/report", Some(&report.to_string())) {
            tracing::debug!(machine = name, err = %format!("{err:#}"), "power-on not reported");
        }
        Ok(())
    }

    /// Switches a machine on with a kernel of our choice, past firmware and network.
    ///
    /// # Errors
    ///
    /// When QEMU does not start.
    pub fn power_on_direct(&self, name: &str, direct: &DirectBoot) -> Result<()> {
        self.open_machine(name)?.power_on(Some(direct))
    }

    /// Pulls a machine's plug.
    ///
    /// # Errors
    ///
    /// When the plan has no such machine.
    pub fn power_cut(&self, name: &str) -> Result<()> {
        self.open_machine(name)?.power_cut();
        Ok(())
    }

    /// Presses a machine's power button, and pulls the plug when that does not help.
    ///
    /// # Errors
    ///
    /// When the plan has no such machine, or its QEMU does not listen.
    pub fn power_off(&self, name: &str) -> Result<()> {
        self.open_machine(name)?.power_off()
    }

    /// Presses a machine's power button; tells whether it goes off by itself within `limit`.
    ///
    /// # Errors
    ///
    /// When the plan has no such machine, or its QEMU does not listen.
    pub fn press_power(&self, name: &str, limit: Duration) -> Result<bool> {
        self.open_machine(name)?.press_power(limit)
    }

    /// The SMBIOS UUID a machine shows, given by the plan or not.
    ///
    /// # Errors
    ///
    /// When the rig has no such machine.
    pub fn uuid(&self, name: &str) -> Result<&str> {
        Ok(&self.site.machine(name)?.1.uuid)
    }

    /// Tells whether a machine is on.
    ///
    /// # Errors
    ///
    /// When the plan has no such machine.
    pub fn power_state(&self, name: &str) -> Result<Power> {
        let since = self.open_machine(name)?.since();
        Ok(since.map_or(Power::Off, |since| Power::On { since }))
    }

    /// CPU seconds a machine's QEMU has used since it was switched on: the figure to compare on
    /// a busy host. `None` while it is off.
    #[must_use]
    pub fn cpu_seconds(&self, name: &str) -> Option<f64> {
        process::cpu_seconds(self.open_machine(name).ok()?.process()?.pid)
    }

    /// Pulls a machine's network cable.
    ///
    /// # Errors
    ///
    /// When the plan has no such machine.
    pub fn cut_cable(&self, name: &str) -> Result<()> {
        self.set_cable(name, "down")
    }

    /// Plugs a machine's network cable in again.
    ///
    /// # Errors
    ///
    /// When the plan has no such machine.
    pub fn mend_cable(&self, name: &str) -> Result<()> {
        self.set_cable(name, "up")
    }

    fn set_cable(&self, name: &str, state: &str) -> Result<()> {
        let (tor, machine) = self.site.machine(name)?;
        process::run("ip", &["-n", &tor.namespace, "link", "set", &machine.tap, state]).map(drop)
    }

    /// Captures what passes a rack's bridge, to `captures/rack-RACK.pcap`.
    ///
    /// # Errors
    ///
    /// When the plan has no such rack or tcpdump does not start.
    pub fn capture_rack(&self, rack: &str) -> Result<PathBuf> {
        self.capture(&format!("rack-{rack}"), rack, BRIDGE)
    }

    /// Captures what passes between the first rack and the others, to `captures/inter-rack.pcap`.
    ///
    /// # Errors
    ///
    /// When there is but one rack or tcpdump does not start.
    pub fn capture_inter_rack(&self) -> Result<PathBuf> {
        let tor = self.site.tors.first().context("a rig has at least one rack")?;
        let (end, _) = self.site.cable_ends(0).next().context("one rack has no inter-rack link")?;
        self.capture("inter-rack", &tor.rack, &end.interface)
    }

    fn capture(&self, name: &str, rack: &str, interface: &str) -> Result<PathBuf> {
        let path = self.dir.join("captures").join(format!("{name}.pcap"));
        let mut tcpdump = process::command("tcpdump");
        // Unbuffered, whole packets, and as root: else the file belongs to another user.
        tcpdump.args(["-i", interface, "-n", "-U", "-s", "0", "-Z", "root", "-w"]).arg(&path);
        let namespace = self.namespace(Place::Tor(rack))?;
        let daemon = format!("capture-{name}");
        network::start(&self.dir, &daemon, namespace, &tcpdump)?;
        let log = self.daemon_log(&daemon);
        crate::wait::await_until("tcpdump to listen", HTTP_LIMIT, || {
            let text = fs::read_to_string(&log).context("reading tcpdump's log")?;
            Ok(if text.contains("listening on") {
                crate::wait::Seen::There(())
            } else {
                crate::wait::Seen::NotYet(text)
            })
        })?;
        Ok(path)
    }

    /// Ends a capture: `rack-RACK` or `inter-rack`. The file is complete when this returns.
    pub fn stop_capture(&self, name: &str) {
        self.stop_daemon(&format!("capture-{name}"));
    }

    /// A machine's console, each line with its wall time.
    ///
    /// # Errors
    ///
    /// When the plan has no such machine.
    pub fn console(&self, name: &str) -> Result<PathBuf> {
        Ok(self.open_machine(name)?.console())
    }

    /// Asks the boot server's HTTP side, from the seed; with `json` the request is a POST.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn ask_boot_server(&self, path: &str, json: Option<&str>) -> Result<Response> {
        let seed = &self.state.plan.seed;
        self.ask(SocketAddrV4::new(seed.address, seed.http_port), path, json)
    }

    /// Sends an HTTP request from the seed to any server, pods included.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn ask(&self, server: SocketAddrV4, path: &str, json: Option<&str>) -> Result<Response> {
        let request = Request { server, path, json, limit: HTTP_LIMIT };
        self.in_seed(|| http::send(request))
    }

    /// Does `work` on a thread in the seed's network.
    ///
    /// # Errors
    ///
    /// When there is no such network, or as `work` says.
    pub(crate) fn in_seed<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let netns = Path::new("/run/netns").join(&self.site.seed.namespace);
        let namespace = kernel::netns::Namespace::open(&netns).context("entering the seed")?;
        namespace.run(work).context("entering the seed")?
    }

    /// All that helps to see why something did not happen: power, routers, what the boot server
    /// knows, the ends of the consoles.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for tor in &self.site.tors {
            if let Some(rack) = self.state.plan.rack(&tor.rack) {
                let said = network::describe_router(&self.state.tag, tor, &rack.routing)
                    .unwrap_or_else(|err| format!("{err:#}\n"));
                text += &format!("--- router {}\n{said}\n", tor.name);
            }
        }
        match self.ask_boot_server("/machines", None) {
            Ok(answer) => text += &format!("--- boot server's machines\n{}\n", answer.body),
            Err(err) => text += &format!("--- boot server: {err:#}\n"),
        }
        let planned = self.state.plan.machines.iter().map(|machine| &machine.name);
        for name in planned.chain(self.state.strangers.iter().map(|one| &one.name)) {
            let power = self.power_state(name);
            text += &format!("--- {name}: {power:?}\n");
            let console = self.console(name).and_then(|path| Ok(fs::read(path)?));
            let console = console.unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            text += &format!("{}\n", tail(&console, CONSOLE_TAIL_LINES));
        }
        text
    }

    fn open_machine(&self, name: &str) -> Result<Machine<'_>> {
        let (tor, site) = self.site.machine(name)?;
        Ok(Machine {
            site,
            namespace: &tor.namespace,
            sim: &self.state.plan.sim,
            accelerator: self.state.accelerator,
            dir: self.dir.join("machines").join(name),
            sockets: socket_dir(&self.state.tag),
        })
    }
}

/// Makes a path absolute without asking that it exist.
pub(crate) fn absolute(dir: &Path) -> Result<PathBuf> {
    std::path::absolute(dir).with_context(|| format!("making {} absolute", dir.display()))
}
