//! Name servers under test: ours in a process of its own, and the peers from Debian.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kernel::datagram::{self, BATCH};
use nix::unistd::Pid;
use node::dns::Zone;
use objects::network::Service;
use serde_json::json;
use tempfile::TempDir;

use crate::load;

/// How long a server may take to its first answer.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Which name server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    /// The floor: [`echo`].
    Echo,
    Dnsmasq,
    Unbound,
}

/// A running name server.
pub(crate) struct Server {
    process: Child,
    address: SocketAddr,
    _dir: TempDir,
}

/// The name of a service.
pub(crate) fn name(number: u32) -> String {
    format!("service-{number}.team-{}.svc.cluster.local.", number % 50)
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(172, 24, 0, 0).to_bits() + number)
}

impl Server {
    /// Starts a server with names for so many services, and waits for its first answer.
    pub(crate) fn start(kind: Kind, services: u32) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = match kind {
            Kind::Ours => ours(port, services)?,
            Kind::Echo => {
                let mut command = ours(port, services)?;
                command.arg("--echo");
                command
            }
            Kind::Dnsmasq => dnsmasq(&dir, port, services)?,
            Kind::Unbound => unbound(&dir, port, services)?,
        };
        let log = File::create(dir.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().with_context(|| format!("{:?}", command.get_program()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Self { process, address, _dir: dir };
        load::bind(server.pid()?, 0)?;
        server.await_answer()?;
        Ok(server)
    }

    fn await_answer(&mut self) -> Result<()> {
        let load = load::Load::new(self.address, 1);
        let began = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                let words = std::fs::read_to_string(self._dir.path().join("log"));
                bail!("ended with {status}: {}", words.unwrap_or_default().trim());
            }
            match load.warm_up() {
                Ok(()) => return Ok(()),
                Err(err) if began.elapsed() > START_LIMIT => return Err(err),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.process.id())?))
    }

    /// Processor time used so far: by the program itself, and by the kernel for it.
    pub(crate) fn processor_time(&self) -> Result<(Duration, Duration)> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
        let mut fields = fields.split_whitespace().skip(11);
        // The kernel tells hundredths of seconds, whatever its own tick.
        let mut next = || -> Result<Duration> {
            let ticks = fields.next().context("no times in stat")?.parse::<u64>()?;
            Ok(Duration::from_millis(10 * ticks))
        };
        Ok((next()?, next()?))
    }

    /// Memory in use.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
        Ok(kib.parse::<u64>()? * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; nobody is left to tell.
        let _ended = self.process.kill();
        let _status = self.process.wait();
    }
}

fn ours(port: u16, services: u32) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--serve", &port.to_string(), "--services", &services.to_string()]);
    Ok(command)
}

fn dnsmasq(dir: &TempDir, port: u16, services: u32) -> Result<Command> {
    let hosts = dir.path().join("hosts");
    let line = |number| format!("{} {}\n", address(number), name(number).trim_end_matches('.'));
    std::fs::write(&hosts, (0..services).map(line).collect::<String>())?;
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]);
    command.args(["--listen-address=127.0.0.1", "--bind-interfaces", "--local-ttl=5"]);
    command.args(["--user=root", "--log-facility=-", "--pid-file", "--cache-size=10000"]);
    command.arg(format!("--port={port}")).arg(format!("--addn-hosts={}", hosts.display()));
    Ok(command)
}

fn unbound(dir: &TempDir, port: u16, services: u32) -> Result<Command> {
    let data = |number| format!("  local-data: \"{} 5 A {}\"\n", name(number), address(number));
    let text = format!(
        "server:\n  interface: 127.0.0.1\n  port: {port}\n  num-threads: 1\n  username: \"\"\n  \
         chroot: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  do-daemonize: no\n  \
         local-zone: \"cluster.local.\" static\n{}remote-control:\n  control-enable: no\n",
        (0..services).map(data).collect::<String>()
    );
    let file = dir.path().join("unbound.conf");
    std::fs::write(&file, text)?;
    let mut command = Command::new("unbound");
    command.arg("-d").arg("-c").arg(file);
    Ok(command)
}

/// Serves the same names by the agent's own name server.
pub(crate) fn serve(port: u16, services: u32) -> Result<()> {
    let services: Vec<Arc<Service>> = (0..services)
        .map(|number| {
            let ip = address(number);
            Ok(Arc::new(serde_json::from_value(json!({
                "metadata": {
                    "name": format!("service-{number}"), "namespace": format!("team-{}", number % 50),
                },
                "spec": { "clusterIP": ip, "clusterIPs": [ip], "ports": [{ "port": 80 }] },
            }))?))
        })
        .collect::<Result<_>>()?;
    let mut zone = Zone::new(node::dns::DOMAIN, Vec::new())?;
    zone.behind().replace_services(services);
    anyhow::ensure!(zone.refresh(), "no names");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let address = (Ipv4Addr::LOCALHOST, port);
        let udp = tokio::net::UdpSocket::bind(address).await?;
        let tcp = tokio::net::TcpListener::bind(address).await?;
        agent::dns::serve_zone(zone, udp, tcp).await;
        Ok(())
    })
}

/// Answers every question alike and looks at nothing: what is left is the kernel's work, which no
/// name server on a socket can save.
pub(crate) fn echo(port: u16) -> Result<()> {
    /// An A record of the name in the question.
    const RECORD: [u8; 16] = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 172, 24, 0, 1];
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
    datagram::make_room(&socket, 8 << 20)?;
    let mut buffers = vec![vec![0; 2048].into_boxed_slice(); BATCH];
    let mut come = Vec::with_capacity(BATCH);
    loop {
        // Waits, as the other servers do with a call of their own.
        socket.peek(&mut [0])?;
        if let Err(err) = datagram::receive(&socket, &mut buffers, &mut come) {
            anyhow::ensure!(err.kind() == std::io::ErrorKind::WouldBlock, err);
        }
        for (buffer, (length, _)) in buffers.iter_mut().zip(&come) {
            if let Some(head) = buffer.first_chunk_mut::<8>() {
                // An answer, with one record.
                (head[2], head[7]) = (head[2] | 0x80, 1);
            }
            if let Some(end) = buffer.get_mut(*length..*length + RECORD.len()) {
                end.copy_from_slice(&RECORD);
            }
        }
        let mut letters: Vec<(SocketAddr, &[u8])> = buffers
            .iter()
            .zip(&come)
            .filter_map(|(buffer, (length, client))| {
                Some(((*client)?, buffer.get(..*length + RECORD.len())?))
            })
            .collect();
        letters.sort_unstable_by_key(|(client, bytes)| (*client, bytes.len()));
        // What does not go out is lost, and counted as that.
        for group in letters.chunk_by(|one, other| one.0 == other.0 && one.1.len() == other.1.len())
        {
            let all: Vec<&[u8]> = group.iter().map(|(_, bytes)| *bytes).collect();
            if let Some((client, _)) = group.first()
                && datagram::send_alike(&socket, &all, *client).is_err()
            {
                drop(datagram::send(&socket, all.iter().map(|bytes| (*bytes, *client))));
            }
        }
        come.clear();
    }
}
