//! Tells systemd that the node is up.
//!
//! What nobody waits for is ordered behind this unit: the journal, above all. systemd is told when
//! the node is Ready, and after a while in any case, for a machine may wait long for its approval.
//!
//! Spec: sd_notify(3). *Limits*: sockets in the file system only, as the system's own manager has.

use std::convert::Infallible;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use runtime::report;
use tracing::debug;

/// How long those behind us wait for a node that does not become Ready.
const PATIENCE: Duration = Duration::from_secs(90);

/// Tells systemd, if it started us and wants to know; to tell it again changes nothing.
pub(crate) fn tell() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = UnixDatagram::unbound().and_then(|from| from.send_to(b"READY=1", socket));
    if let Err(err) = told {
        debug!(err = report(&err), "systemd was not told that the node is up");
    }
}

/// Tells it after a while, and never ends.
pub(crate) async fn tell_late() -> Infallible {
    tokio::time::sleep(PATIENCE).await;
    tell();
    std::future::pending().await
}
