//! What people see: one line per step on the machine's console.

use std::fs;
use std::io::Write;

/// Prints a line with the time since the kernel started.
///
/// A console that takes no bytes must not stop a machine, so failures are ignored.
pub(crate) fn say(text: &str) {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split(' ').next().unwrap_or_default();
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "muster: [{seconds}] {text}"));
    drop(out.flush());
}
