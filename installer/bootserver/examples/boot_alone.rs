//! Serves a plan without the rest of Muster: for trying firmware in a network namespace.
//!
//! `serve PLAN.json IMAGE_DIR STATE_DIR COMMAND_LINE [UKI]`

use std::path::PathBuf;

use anyhow::Context;
use bootserver::Config;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let mut next = |what: &'static str| words.next().with_context(|| format!("{what} is missing"));
    let plan = std::fs::read(next("PLAN.json")?)?;
    let plan = serde_json::from_slice(&plan)?;
    let image_dir = PathBuf::from(next("IMAGE_DIR")?);
    let mut config = Config::new(plan, image_dir, PathBuf::from(next("STATE_DIR")?));
    config.command_line = next("COMMAND_LINE")?;
    config.uki = next("UKI").ok().map(PathBuf::from);
    let stop = CancellationToken::new();
    let serving = bootserver::run(stop.clone(), config);
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        asked = tokio::signal::ctrl_c() => asked?,
    }
    stop.cancel();
    Ok(serving.await?)
}
