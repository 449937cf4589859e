//! `muster store`: look over, save, restore and move what a master stores; and where a master
//! keeps it.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use apiserver::{EtcdOptions, Storage};
use comfy_table::{Table, presets};
use serde_json::json;
use store::transfer::{self, Over, Place};
use store::{Options, Report};

use crate::args::{
    Direction, EtcdArgs, Output, PlaceArgs, StoreArgs, StoreCommandArgs, StoreKind,
    StoreMigrateArgs, StoreRestoreArgs, StoreSnapshotArgs, StoreVerb, StoreVerifyArgs,
};
use crate::daemon::block_on;
use crate::say;

/// What the arguments of `muster master` say about its store.
pub(crate) fn storage(args: &StoreArgs) -> Result<Storage> {
    match args.store {
        StoreKind::Embedded if args.etcd.etcd_endpoints.is_empty() => Ok(Storage::Embedded),
        StoreKind::Embedded => bail!("--etcd-endpoints is for --store etcd"),
        StoreKind::Etcd => Ok(Storage::Etcd(etcd(&args.etcd)?)),
    }
}

fn etcd(args: &EtcdArgs) -> Result<EtcdOptions> {
    if args.etcd_endpoints.is_empty() {
        bail!("a store in etcd needs --etcd-endpoints");
    }
    Ok(EtcdOptions {
        endpoints: args.etcd_endpoints.clone(),
        ca_cert: args.etcd_cacert.clone(),
        identity: args.etcd_cert.clone().zip(args.etcd_key.clone()),
        prefix: args.etcd_prefix.clone(),
    })
}

fn embedded(data_dir: &Path) -> Place {
    Place::Embedded(Options { dir: data_dir.join("store") })
}

fn place(args: &PlaceArgs) -> Result<Place> {
    match &args.data_dir {
        Some(data_dir) => Ok(embedded(data_dir)),
        None => Ok(Place::Etcd(etcd(&args.etcd)?)),
    }
}

/// Runs `muster store`.
pub(crate) fn run(args: &StoreCommandArgs) -> Result<ExitCode> {
    block_on(async {
        match &args.verb {
            StoreVerb::Verify(args) => return verify(args).await,
            StoreVerb::Snapshot(args) => snapshot(args).await?,
            StoreVerb::Restore(args) => restore(args).await?,
            StoreVerb::Migrate(args) => migrate(args).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn verify(args: &StoreVerifyArgs) -> Result<ExitCode> {
    let report = transfer::verify(&place(&args.place)?).await?;
    let text = match args.output {
        Output::Table => table(&report),
        Output::Json => format!("{:#}", render_json(&report)),
    };
    writeln!(std::io::stdout(), "{text}")?;
    for fault in &report.faults {
        say(fault);
    }
    Ok(if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["SHELF", "ITEMS", "BYTES"]);
    for (shelf, count) in &report.shelves {
        table.add_row([shelf.clone(), count.items.to_string(), count.size_bytes.to_string()]);
    }
    format!("{table}\nrevision {}, {} faults", report.revision, report.faults.len())
}

fn render_json(report: &Report) -> serde_json::Value {
    let shelves = report.shelves.iter().map(|(shelf, count)| {
        (shelf.clone(), json!({"items": count.items, "sizeBytes": count.size_bytes}))
    });
    let shelves: serde_json::Map<_, _> = shelves.collect();
    json!({"revision": report.revision, "shelves": shelves, "faults": report.faults})
}

async fn snapshot(args: &StoreSnapshotArgs) -> Result<()> {
    let contents = transfer::read(&place(&args.place)?).await?;
    store::write_snapshot(&contents, &args.file)?;
    let (items, revision) = (contents.items.len(), contents.revision);
    say(&format!("saved {items} objects at revision {revision} in {}", args.file.display()));
    Ok(())
}

async fn restore(args: &StoreRestoreArgs) -> Result<()> {
    let contents = store::read_snapshot(&args.file)?;
    let over = if args.replace { Over::Anything } else { Over::Nothing };
    let revision = contents.revision.saturating_add(args.bump);
    let revision = transfer::fill(&place(&args.place)?, &contents, revision, over).await?;
    let items = contents.items.len();
    say(&format!("restored {items} objects; the store goes on after revision {revision}"));
    Ok(())
}

async fn migrate(args: &StoreMigrateArgs) -> Result<()> {
    let (file, etcd) = (embedded(&args.data_dir), Place::Etcd(etcd(&args.etcd)?));
    let (from, to) = match args.to {
        Direction::Etcd => (file, etcd),
        Direction::Embedded => (etcd, file),
    };
    let (revision, items) = transfer::migrate(&from, &to).await?;
    say(&format!("moved {items} objects; the store goes on after revision {revision}"));
    Ok(())
}
