//! Tells the container runtime that the cluster's masters keep images.
//!
//! Written at every start, before pods are looked at: the certificate's files are the join's. A
//! node without the runtime's directory for it, or with a file of the operator's own, stays as
//! it is.

use std::io;

use node::mirror::{MARK, render_hosts};
use runtime::report;
use tracing::{info, warn};

use crate::{Config, Joined};

/// Writes the runtime's list of mirrors, if this node is to have one.
pub(crate) async fn apply(config: &Config, joined: &Joined) {
    let Some(dir) = &config.mirror_dir else { return };
    let masters = [joined.client_config.server.clone()];
    let text = render_hosts(&masters, &config.pki_dir);
    let dir = dir.join("_default");
    let path = dir.join("hosts.toml");
    let written = async {
        match tokio::fs::read_to_string(&path).await {
            Ok(old) if old == text => return Ok(false),
            Ok(old) if !old.starts_with(MARK) => return Ok(false),
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            Ok(_) | Err(_) => {}
        }
        tokio::fs::create_dir_all(&dir).await?;
        // The runtime reads it at every pull, so it is never half there.
        let fresh = dir.join("hosts.toml.new");
        tokio::fs::write(&fresh, &text).await?;
        tokio::fs::rename(&fresh, &path).await.map(|()| true)
    };
    match written.await {
        Ok(true) => info!(path = %path.display(), "the runtime asks the masters for images first"),
        Ok(false) => {}
        Err(err) => {
            let path = path.display();
            warn!(%path, err = report(&err), "cannot name the masters as mirrors");
        }
    }
}
