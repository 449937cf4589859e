//! Kernel settings below `/proc/sys`.

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A setting that could not be read or written.
#[derive(Debug, Error)]
#[error("cannot {operation} kernel setting {path}")]
pub struct SysctlError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl SysctlError {
    /// Whether this kernel, or this network namespace, does not have the setting.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.source.kind() == std::io::ErrorKind::NotFound
    }
}

/// Writes a setting named by its path, `net/ipv4/ip_forward`: a dot in an interface's name would
/// make the dotted form ambiguous. A value that is there already is not written again.
///
/// # Errors
///
/// When the kernel has no such setting or refuses the value.
pub fn write(name: &str, value: &str) -> Result<(), SysctlError> {
    let path = Path::new("/proc/sys").join(name);
    if fs::read_to_string(&path).is_ok_and(|current| current.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| SysctlError { operation: "write", path, source })
}

/// Reads a setting, without its line end.
///
/// # Errors
///
/// When the kernel has no such setting.
pub fn read(name: &str) -> Result<String, SysctlError> {
    let path = Path::new("/proc/sys").join(name);
    match fs::read_to_string(&path) {
        Ok(value) => Ok(value.trim().to_owned()),
        Err(source) => Err(SysctlError { operation: "read", path, source }),
    }
}
