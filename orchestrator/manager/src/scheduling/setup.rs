//! Reads the scheduler's configuration from a file.

use std::path::{Path, PathBuf};

use control::scheduler::{Config, ConfigError};
use serde_json::Value;
use thiserror::Error;

/// The file cannot be used.
#[derive(Debug, Error)]
pub enum SetupError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is neither YAML nor JSON.
    #[error("{path} is no YAML")]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    /// It says what cannot be.
    #[error("{path} is no configuration we can use")]
    Config {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: ConfigError,
    },
}

/// Reads a `KubeSchedulerConfiguration`, YAML or JSON.
///
/// # Errors
///
/// When the file cannot be read or says what cannot be; a person must mend it.
pub fn read_scheduler_config(path: &Path) -> Result<Config, SetupError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SetupError::Read { path: path.to_owned(), source })?;
    let value: Value = serde_saphyr::from_str(&text)
        .map_err(|source| SetupError::Yaml { path: path.to_owned(), source: Box::new(source) })?;
    Config::read(&value).map_err(|source| SetupError::Config { path: path.to_owned(), source })
}
