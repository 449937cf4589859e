//! `muster export`: what routers and Ceph have to know of a site's plan.

use std::io::Write;

use anyhow::{Context, Result};
use cluster::plan::Plan;
use routes::export::{Format, crush_locations, render_crush, render_tors};

use crate::args::{
    CrushArgs, ExportArgs, ExportVerb, Output, PlanSource, TorConfigArgs, TorFormat,
};
use crate::site::Site;

/// Prints what was asked for.
pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    let text = match &args.verb {
        ExportVerb::TorConfig(args) => tor_config(args)?,
        ExportVerb::Crush(args) => crush(args)?,
    };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

fn load(source: &PlanSource) -> Result<Plan> {
    match &source.file {
        Some(file) => Ok(crate::plan::load(file)?.0),
        None => Site::find(&source.site)?.plan(),
    }
}

fn tor_config(args: &TorConfigArgs) -> Result<String> {
    let plan = load(&args.source)?;
    let format = match args.format {
        TorFormat::Bird => Format::Bird,
        TorFormat::Frr => Format::Frr,
        TorFormat::Text => Format::Text,
    };
    let text = render_tors(&plan, args.rack.as_deref(), &args.interface, format);
    text.with_context(|| {
        let names: Vec<&str> = plan.racks.iter().map(|rack| rack.name.as_str()).collect();
        let asked = args.rack.as_deref().unwrap_or_default();
        format!("no rack {asked:?} in site {}; the racks are {}", plan.site, names.join(", "))
    })
}

fn crush(args: &CrushArgs) -> Result<String> {
    let plan = load(&args.source)?;
    Ok(match args.output {
        Output::Table => render_crush(&plan),
        Output::Json => {
            let locations = serde_json::json!({ "locations": crush_locations(&plan) });
            serde_json::to_string_pretty(&locations)?
        }
    })
}
