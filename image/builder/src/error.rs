//! What can go wrong while building an image.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use layout::manifest::ManifestError;
use layout::uki::UkiError;
use thiserror::Error;

/// Says why an image could not be built, shown or signed.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A program is not installed.
    #[error("{tool} is not installed; it is in Debian's package {package}")]
    MissingTool {
        /// The program.
        tool: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program could not be started or its output not be read.
    #[error("cannot run {tool}")]
    Run {
        /// The program.
        tool: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{tool} failed with {status}:\n{output}")]
    Failed {
        /// The program and its arguments.
        tool: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A package's archive cannot be understood.
    #[error("{package} is no readable package")]
    Package {
        /// The package's file.
        package: String,
        /// What the reader said.
        #[source]
        source: io::Error,
    },
    /// apt resolved no package of this name.
    #[error("no package {name} among the downloads")]
    NoPackage {
        /// The name or its start.
        name: String,
    },
    /// A package lacks a file that the image needs.
    #[error("no file {path} in the packages")]
    NoFile {
        /// The path below the root.
        path: String,
    },
    /// A result of an earlier build is damaged; deleting the cache directory mends it.
    #[error("{path} in the cache is damaged; delete the cache directory")]
    Cache {
        /// The damaged file.
        path: PathBuf,
    },
    /// No unified kernel image could be composed.
    #[error("cannot compose the unified kernel image")]
    Uki(#[from] UkiError),
    /// The manifest is wrong.
    #[error("the image's manifest cannot be used")]
    Manifest(#[from] ManifestError),
    /// A key is unusable.
    #[error("{path} is no usable key")]
    Key {
        /// The key's file.
        path: PathBuf,
    },
    /// The manifest's signature does not fit.
    #[error("the signature of {path} is not of the expected key")]
    Signature {
        /// The manifest.
        path: PathBuf,
    },
}

impl BuildError {
    /// Wraps a failure to read `path`.
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    /// Wraps a failure to write `path`.
    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }

    /// Wraps a failure to start or hear `tool`.
    pub(crate) fn run(tool: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let tool = tool.to_owned();
        move |source| Self::Run { tool, source }
    }
}
