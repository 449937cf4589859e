//! One simulated machine: QEMU's command line, its power, its console.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cluster::plan::{BootMethod, Sim};
use serde::{Deserialize, Serialize};

use crate::process::{self, Io, Process};
use crate::topology::MachineSite;
use crate::wait;

/// OVMF with a variable store of its own, by Debian's `ovmf`.
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// How long the trial of KVM may take; where it works it takes a tenth of a second.
const TRIAL_LIMIT: Duration = Duration::from_secs(5);
/// Answers of QEMU's control socket come at once or not at all.
const QMP_LIMIT: Duration = Duration::from_secs(5);
/// How long a machine may take to shut itself down before it is switched off.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);

/// Puts wall time in front of each console line. A program of its own, since it must live as
/// long as the machine does, and bash is on every Debian.
const STAMP: &str = r#"while IFS= read -r line || [ -n "$line" ]; do
t=$EPOCHREALTIME; printf '%(%FT%T)T.%sZ %s\n' "${t%.*}" "${t#*.}" "${line%$'\r'}"; done"#;

/// What executes a machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's translator: everywhere, and many times slower.
    Tcg,
}

impl Accelerator {
    /// Chooses KVM where a trial machine really runs with it.
    ///
    /// A device node proves nothing: it may be there and yet refuse, as in many containers.
    #[must_use]
    pub fn choose() -> Self {
        if Path::new("/dev/kvm").exists() && try_kvm() { Self::Kvm } else { Self::Tcg }
    }
}

/// Starts a machine of firmware alone and asks whether it runs.
fn try_kvm() -> bool {
    let Ok(dir) = tempfile::tempdir() else { return false };
    let socket = dir.path().join("trial");
    let mut qemu = process::command("qemu-system-x86_64");
    qemu.args(["-accel", "kvm", "-cpu", "host", "-machine", "q35", "-m", "64", "-display", "none"]);
    qemu.args(["-nodefaults", "-qmp"]).arg(qmp_argument(&socket));
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = qemu.spawn() else { return false };
    let mut runs = false;
    wait::poll(TRIAL_LIMIT, || match (child.try_wait(), qmp(&socket, "query-status")) {
        (Ok(None), Ok(answer)) => {
            runs = answer.contains("\"running\": true");
            true
        }
        (Ok(None), Err(_)) => false,
        (Ok(Some(_)) | Err(_), _) => true,
    });
    // A processor that cannot run firmware stops within milliseconds of its start.
    if runs {
        std::thread::sleep(Duration::from_millis(200));
        runs = qmp(&socket, "query-status").is_ok_and(|text| text.contains("\"running\": true"));
    }
    // Both fail only when it is gone already.
    drop((child.kill(), child.wait()));
    runs
}

/// A machine's files and where it is plugged in.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) site: &'a MachineSite,
    pub(crate) namespace: &'a str,
    pub(crate) sim: &'a Sim,
    pub(crate) accelerator: Accelerator,
    /// Directory of the machine's own files.
    pub(crate) dir: PathBuf,
    /// Directory of sockets.
    pub(crate) sockets: PathBuf,
}

/// A kernel that is loaded by QEMU itself instead of over the network.
#[derive(Debug, Clone)]
pub struct DirectBoot {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub command_line: String,
}

/// What is noted of a machine that was switched on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    process: Process,
    since: String,
}

impl Machine<'_> {
    /// The console's file.
    pub(crate) fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// The process of the machine, when it is on.
    pub(crate) fn process(&self) -> Option<Process> {
        let note: Option<Note> = process::restore(&self.note()).ok().flatten();
        note.map(|note| note.process).filter(|process| process.is_alive())
    }

    /// When it was switched on, as RFC 3339; `None` while it is off.
    pub(crate) fn since(&self) -> Option<String> {
        let note: Note = process::restore(&self.note()).ok().flatten()?;
        note.process.is_alive().then_some(note.since)
    }

    /// Switches it on; a machine that is on stays as it is.
    pub(crate) fn power_on(&self, direct: Option<&DirectBoot>) -> Result<()> {
        if self.process().is_some() {
            return Ok(());
        }
        fs::create_dir_all(&self.dir).with_context(|| format!("making {}", self.dir.display()))?;
        if self.site.boot != BootMethod::Bios && !self.vars().exists() {
            fs::copy(OVMF_VARS, self.vars()).with_context(|| format!("copying {OVMF_VARS}"))?;
        }
        let since = jiff::Timestamp::now().to_string();
        let mut console = Io::log(&self.console())?;
        let mut stamp = process::command("bash");
        stamp.args(["-c", STAMP]).env("LC_ALL", "C").env("TZ", "UTC");
        let (reader, writer) = std::io::pipe().context("making a pipe for the console")?;
        console.stdin = reader.into();
        process::spawn_detached(None, &stamp, console)?;
        let mut lines = writer.try_clone().context("sharing the console's pipe")?;
        writeln!(lines, "--- power on, {:?}", self.accelerator).context("starting the console")?;
        drop(lines);
        let log = Io::log(&self.dir.join("qemu.log"))?;
        let io = Io { stdin: Stdio::null(), stdout: writer.into(), stderr: log.stderr };
        let process = process::spawn_detached(Some(self.namespace), &self.command(direct), io)?;
        process::save(&self.note(), &Note { process, since })?;
        // A wrong argument ends QEMU within a moment; better said now than as a boot that hangs.
        let answered = wait::poll(QMP_LIMIT, || {
            !process.is_alive() || qmp(&self.qmp_socket(), "query-status").is_ok()
        });
        if !answered || !process.is_alive() {
            let log = fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default();
            bail!("QEMU of {} did not start: {}", self.site.name, tail(&log, 5));
        }
        Ok(())
    }

    /// Pulls the plug.
    pub(crate) fn power_cut(&self) {
        if let Some(process) = self.process() {
            process.kill();
            wait::poll(QMP_LIMIT, || !process.is_alive());
        }
    }

    /// Presses the power button, and pulls the plug when that does not help.
    pub(crate) fn power_off(&self) -> Result<()> {
        if !self.press_power(SHUTDOWN_LIMIT)? {
            self.power_cut();
        }
        Ok(())
    }

    /// Presses the power button; tells whether the machine goes off by itself within `limit`.
    pub(crate) fn press_power(&self, limit: Duration) -> Result<bool> {
        let Some(process) = self.process() else { return Ok(true) };
        qmp(&self.qmp_socket(), "system_powerdown")?;
        Ok(wait::poll(limit, || !process.is_alive()))
    }

    fn note(&self) -> PathBuf {
        self.dir.join("qemu.json")
    }

    fn vars(&self) -> PathBuf {
        self.dir.join("vars.fd")
    }

    fn qmp_socket(&self) -> PathBuf {
        self.sockets.join(format!("{}.qmp", self.site.tap))
    }

    /// Renders QEMU's command line.
    fn command(&self, direct: Option<&DirectBoot>) -> Command {
        let MachineSite { name, tap, mac, uuid, serial, boot } = self.site;
        let mut qemu = process::command("qemu-system-x86_64");
        let (accel, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg", "max"),
        };
        qemu.args(["-name", name, "-machine", "q35,graphics=off", "-accel", accel, "-cpu", cpu]);
        qemu.arg("-m").arg(self.sim.memory_mib.to_string());
        qemu.arg("-smp").arg(self.sim.cpus.to_string());
        qemu.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-qmp"]);
        qemu.arg(qmp_argument(&self.qmp_socket()));
        qemu.arg("-smbios")
            .arg(format!("type=1,manufacturer=Muster,product=Rig,uuid={uuid},serial={serial}"));
        // Keys are made in the first seconds: without it a guest waits for entropy.
        qemu.args(["-device", "virtio-rng-pci"]);
        qemu.arg("-netdev").arg(format!("tap,id=n,ifname={tap},script=no,downscript=no"));
        let card = format!("virtio-net-pci,netdev=n,mac={mac}");
        if let Some(direct) = direct {
            qemu.arg("-device").arg(format!("{card},romfile="));
            qemu.arg("-kernel").arg(&direct.kernel).arg("-initrd").arg(&direct.initrd);
            qemu.arg("-append").arg(&direct.command_line).arg("-no-reboot");
            return qemu;
        }
        match boot {
            BootMethod::Bios => {
                // The card's ROM is an iPXE, as on most real cards of QEMU's age.
                qemu.arg("-device").arg(card).args(["-boot", "n"]);
            }
            BootMethod::UefiPxe | BootMethod::UefiHttp => {
                let code = format!("if=pflash,format=raw,readonly=on,file={OVMF_CODE}");
                let vars = format!("if=pflash,format=raw,file={}", self.vars().display());
                qemu.arg("-drive").arg(code).arg("-drive").arg(vars);
                // Without a ROM on the card it is the firmware's own network stack that boots.
                qemu.arg("-device").arg(format!("{card},romfile=,bootindex=1"));
                qemu.args(["-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no"]);
                if *boot == BootMethod::UefiHttp {
                    // Else it tries PXE first, for minutes.
                    qemu.args(["-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=no"]);
                }
            }
        }
        qemu
    }
}

fn qmp_argument(socket: &Path) -> String {
    format!("unix:{},server=on,wait=off", socket.display())
}

/// Sends one command without arguments to a QEMU and gives its answer.
fn qmp(socket: &Path, command: &str) -> Result<String> {
    let stream = UnixStream::connect(socket).context("connecting to QEMU")?;
    stream.set_read_timeout(Some(QMP_LIMIT)).context("setting a time limit")?;
    let mut writer = stream.try_clone().context("sharing a socket")?;
    let mut lines = BufReader::new(stream).lines();
    let mut ask = |command: &str| -> Result<String> {
        writeln!(writer, "{{\"execute\":\"{command}\"}}").context("asking QEMU")?;
        // Events may come before the answer; a handful is all a command can cause.
        for _ in 0..32 {
            let line = lines.next().context("QEMU closed its socket")?.context("reading QEMU")?;
            if line.contains("\"return\"") {
                return Ok(line);
            }
            if line.contains("\"error\"") {
                bail!("QEMU refused {command}: {line}");
            }
        }
        bail!("QEMU did not answer {command}")
    };
    ask("qmp_capabilities")?;
    ask(command)
}

/// The last `count` lines of a text.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(boot: BootMethod) -> String {
        let site = MachineSite {
            name: "one".to_owned(),
            tap: "m1".to_owned(),
            mac: "52:54:00:00:00:01".to_owned(),
            uuid: "00000000-0000-4000-8000-000000000001".to_owned(),
            serial: "S1".to_owned(),
            boot,
        };
        let machine = Machine {
            site: &site,
            namespace: "ns",
            sim: &Sim::default(),
            accelerator: Accelerator::Tcg,
            dir: PathBuf::from("/d"),
            sockets: PathBuf::from("/s"),
        };
        let command = machine.command(None);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn firmware_follows_the_boot_method() {
        let bios = arguments(BootMethod::Bios);
        assert!(bios.contains("-boot n") && !bios.contains("pflash"), "{bios}");
        let pxe = arguments(BootMethod::UefiPxe);
        assert!(pxe.contains("vars.fd") && !pxe.contains("IPv4PXE"), "{pxe}");
        let http = arguments(BootMethod::UefiHttp);
        assert!(http.contains("IPv4PXESupport,string=no"), "{http}");
        for all in [bios, pxe, http] {
            assert!(all.contains("uuid=00000000-0000-4000-8000-000000000001,serial=S1"), "{all}");
        }
    }

    #[test]
    fn the_tail_is_the_end() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("", 2), "");
    }
}
