//! The server's process, found by the socket it listens on.

use std::fs;
use std::net::SocketAddr;

/// Linux counts processor time in hundredths of a second for programs, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process of this machine.
pub(crate) struct Server {
    id: u32,
}

impl Server {
    /// Finds the process that listens at an address; `None` when it is not on this machine or not
    /// ours to see.
    pub(crate) fn find(address: SocketAddr) -> Option<Self> {
        let port = format!(":{:04X}", address.port());
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
        let inode = tables.iter().flatten().flat_map(|table| table.lines()).find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (local, state, inode) = (words.get(1)?, words.get(3)?, words.get(9)?);
            (local.ends_with(&port) && *state == "0A").then(|| format!("socket:[{inode}]"))
        })?;
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.find(|id| holds(*id, &inode)).map(|id| Self { id })
    }

    /// Processor time used so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id)).unwrap_or_default();
        // The name in parentheses may hold blanks, so fields are counted from its end.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks = fields.split_whitespace().skip(11).take(2);
        ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
    }

    /// Memory it holds now.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.unwrap_or(0) << 10
    }
}

fn holds(id: u32, socket: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{id}/fd")) else { return false };
    let mut links = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    links.any(|link| link.as_os_str() == socket)
}
