//! `muster inventory`: the machines as Ansible wants them.

use std::io::Write;

use anyhow::{Context, Result};
use cluster::inventory;

use crate::args::InventoryArgs;
use crate::site::Site;

/// Prints all machines, or the variables of one.
pub(crate) fn run(args: &InventoryArgs) -> Result<()> {
    let plan = match &args.file {
        Some(file) => crate::plan::load(file)?.0,
        None => Site::find(&args.site)?.plan()?,
    };
    let answer = match &args.host {
        None => inventory::render_list(&plan),
        Some(name) => inventory::render_host(&plan, name)
            .with_context(|| format!("{name}: no such machine in the plan of {}", plan.site))?,
    };
    writeln!(std::io::stdout(), "{}", answer.trim_end())?;
    Ok(())
}
