//! `muster status`: each machine's road, and what holds it up.

use std::io::Write;

use anyhow::{Context, Result};
use objects::machine::Machine;
use runtime::Client;
use runtime::client::ListParams;
use runtime::resource::MACHINES;

use crate::args::{Output, StatusArgs};
use crate::site::Site;
use crate::waterfall::{self, Progress};

/// Prints the waterfall.
pub(crate) fn run(args: &StatusArgs) -> Result<()> {
    let site = Site::find(&args.site)?;
    let client = site.client()?;
    let machines = crate::daemon::block_on(observe(&client))?;
    print(&machines, args.output)
}

/// Prints machines the way that was asked for.
pub(crate) fn print(machines: &[Progress], output: Output) -> Result<()> {
    let mut out = std::io::stdout();
    match output {
        Output::Table => writeln!(out, "{}", waterfall::render_table(machines))?,
        Output::Json => {
            writeln!(out, "{}", serde_json::to_string_pretty(&waterfall::render_json(machines))?)?;
        }
    }
    Ok(())
}

/// Reads every machine from the API.
pub(crate) async fn observe(client: &Client) -> Result<Vec<Progress>> {
    let list = client.list(&MACHINES, None, &ListParams::default()).await;
    let list = list.context("cannot ask the API for machines; is `muster master` up?")?;
    let machines = list.items.into_iter().map(|item| {
        let machine: Machine = serde_json::from_value(item).context("an unreadable Machine")?;
        Ok(Progress::new(&machine))
    });
    machines.collect()
}
