//! Runs the agent of a made-up node against any API: for trying things out on a workstation.
//!
//! `cargo run -p agent --example lone-agent -- KUBECONFIG|NODE_JSON CRI_SOCKET DIR NAME ADDRESS:PORT`
//!
//! With a kubeconfig the node acts under that identity; with a node description (`*.json`) it
//! joins as a machine does.

use std::error::Error;
use std::net::SocketAddr;

use agent::{Config, Joined, NodeInfo};
use runtime::ClientConfig;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    runtime::telemetry::init("info,agent=debug", runtime::telemetry::Format::Text);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kubeconfig, socket, dir, name, listen] = arguments.as_slice() else {
        return Err("usage: lone-agent KUBECONFIG CRI_SOCKET DIR NAME ADDRESS:PORT".into());
    };
    let listen: SocketAddr = listen.parse()?;
    let dir = std::path::Path::new(dir);
    let config = Config {
        node_json: kubeconfig.into(),
        pki_dir: dir.join("pki"),
        cri_socket: socket.into(),
        data_dir: dir.join("data"),
        log_dir: dir.join("logs"),
        image_dir: dir.join("images"),
        listen,
        console: None,
        ..Config::default()
    };
    let stop = CancellationToken::new();
    let signal = stop.clone();
    let joined =
        if kubeconfig.ends_with(".json") { None } else { Some(pretend(kubeconfig, name, listen)?) };
    let running = async move {
        match joined {
            None => agent::run(stop, config).await,
            Some(joined) => agent::run_joined(stop, config, joined).await,
        }
    };
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => return Ok(ended?),
        pressed = tokio::signal::ctrl_c() => pressed?,
    }
    signal.cancel();
    Ok(running.await?)
}

/// A node that acts under the identity of a kubeconfig.
fn pretend(kubeconfig: &str, name: &str, listen: SocketAddr) -> Result<Joined, Box<dyn Error>> {
    let client_config = ClientConfig::from_kubeconfig(kubeconfig.as_ref())?;
    let node = NodeInfo {
        name: name.to_owned(),
        mac: "02:00:00:00:00:01".to_owned(),
        uuid: String::new(),
        serial: String::new(),
        address: listen.ip(),
        prefix_len: 0,
        gateway: None,
        interface: String::new(),
        api: client_config.server.clone(),
        ca_fingerprint: String::new(),
        boot: "http://127.0.0.1:1".to_owned(),
    };
    Ok(Joined { client_config, node, imports: agent::Imports::default() })
}
