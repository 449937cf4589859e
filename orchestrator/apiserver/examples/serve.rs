//! Serves the API alone: `cargo run -p apiserver --example serve -- DIR [ADDRESS:PORT]`.

use std::error::Error;
use std::io::Write as _;

use apiserver::{ApiServer, Config, Identity};
use tokio_util::sync::CancellationToken;

// As in `muster`: what is tried and measured here is to be what runs there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    runtime::telemetry::init("info", runtime::telemetry::Format::Text);
    let mut arguments = std::env::args().skip(1);
    let data_dir = arguments.next().ok_or("usage: serve DIR [ADDRESS:PORT]")?.into();
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned()).parse()?;
    let service_cidr = "172.21.0.0/24".parse()?;
    let stop = CancellationToken::new();
    let config = Config {
        data_dir,
        listen,
        advertise: Vec::new(),
        service_cidr,
        storage: apiserver::Storage::Embedded,
        identity: Identity::default(),
        toleration_seconds: Some(300),
    };
    let server = ApiServer::open(stop.clone(), &config).await?;
    writeln!(std::io::stdout(), "https://{}", server.address())?;
    let serving = server.serve();
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        signal = tokio::signal::ctrl_c() => signal?,
    }
    stop.cancel();
    Ok(serving.await?)
}
