//! Runs the agent of a made-up node against any API: for trying things out on a workstation.
//!
//! `cargo run -p agent --example lone-agent -- KUBECONFIG CRI_SOCKET DIR NAME ADDRESS:PORT`

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
    let client_config = ClientConfig::from_kubeconfig(kubeconfig.as_ref())?;
    let listen: SocketAddr = listen.parse()?;
    let node = NodeInfo {
        name: name.clone(),
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
    let dir = std::path::Path::new(dir);
    let config = Config {
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
    let running = agent::run_joined(stop, config, Joined { client_config, node });
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => return Ok(ended?),
        pressed = tokio::signal::ctrl_c() => pressed?,
    }
    signal.cancel();
    Ok(running.await?)
}
