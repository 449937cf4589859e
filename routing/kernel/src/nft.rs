//! nftables: scripts by way of the `nft` program, elements of sets and maps straight over netlink.
//!
//! A script is one transaction: all of it happens or none. Which rules there are is decided by
//! whoever renders the script. Starting the program takes milliseconds; [`Elements`] are for what
//! changes often.

mod element;

use std::process::Stdio;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

pub use crate::netfilter::Family;
pub use element::{
    Element, ElementError, Elements, Held, HeldValue, Parts, Place, Transaction, Value,
};

/// Ten thousand services load in under a second, but the first transaction after power-on also
/// loads the kernel's modules, which took an overloaded emulator more than half a minute.
const LIMIT: Duration = Duration::from_secs(120);

/// Why an nftables transaction did not happen.
#[derive(Debug, Error)]
pub enum NftError {
    /// The program cannot be run.
    #[error("cannot run nft")]
    Run(#[source] std::io::Error),
    /// The kernel or the program refused; nothing was changed.
    #[error("nft refused: {message}")]
    Refused {
        /// What it said.
        message: String,
    },
    /// No answer in time.
    #[error("nft did not answer within {} s", LIMIT.as_secs())]
    Timeout,
}

/// Applies a script in one transaction.
///
/// Cancel safety: when dropped, the program is killed; the transaction happens whole or not.
///
/// # Errors
///
/// When the program cannot be run, refuses, or gives no answer; nothing is changed then.
pub async fn apply(script: &str) -> Result<(), NftError> {
    run(&["-f", "-"], script).await.map(|_| ())
}

/// The definition of a table in nft's words; `None` when there is no such table.
///
/// # Errors
///
/// As [`apply`].
pub async fn list_table(family: &str, table: &str) -> Result<Option<String>, NftError> {
    match run(&["list", "table", family, table], "").await {
        Ok(text) => Ok(Some(text)),
        Err(NftError::Refused { message }) if message.contains("No such file or directory") => {
            Ok(None)
        }
        Err(err) => Err(err),
    }
}

/// Whether there is a table, without reading what it holds.
///
/// # Errors
///
/// As [`apply`].
pub async fn has_table(family: &str, table: &str) -> Result<bool, NftError> {
    let wanted = format!("table {family} {table}");
    Ok(run(&["list", "tables"], "").await?.lines().any(|line| line.trim() == wanted))
}

async fn run(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let work = async {
        let mut child = Command::new("nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(NftError::Run)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that stops reading early has a reason, which its exit and words tell.
            let written = stdin.write_all(input.as_bytes()).await;
            if let Err(err) = written
                && err.kind() != std::io::ErrorKind::BrokenPipe
            {
                return Err(NftError::Run(err));
            }
        }
        child.wait_with_output().await.map_err(NftError::Run)
    };
    let output = tokio::time::timeout(LIMIT, work).await.map_err(|_| NftError::Timeout)??;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NftError::Refused { message })
}
