//! Distils upstream's field numbers to `schema/protobuf.txt`.
//!
//! ```text
//! cargo download k8s-pb==0.9.0 | tar xz     # or take it from cargo's registry folder
//! cargo run -p api --example protobuf -- k8s-pb-0.9.0/src > orchestrator/api/schema/protobuf.txt
//! ```

#![expect(clippy::disallowed_methods, reason = "a developer's chore reads sources from disk")]

use std::{error::Error, fs, io::Write as _, path::Path};

use api::protobuf::{Sources, distil};

/// What stands above the table.
const NOTICE: &str = "\
# Field numbers of Kubernetes 1.36 messages, distilled from the sources of the crate k8s-pb 0.9.0
# (Apache License 2.0), which are made from the `.proto` files of Kubernetes (Copyright The
# Kubernetes Authors, Apache License 2.0; see NOTICE in this folder).
# Written by `cargo run -p api --example protobuf`; do not edit.
";

fn main() -> Result<(), Box<dyn Error>> {
    let root = std::env::args().nth(1).ok_or("usage: protobuf DIR")?;
    let mut sources = Sources::new();
    collect(Path::new(&root), "io.k8s", &mut sources)?;
    let mut out = std::io::stdout().lock();
    write!(out, "{NOTICE}{}", distil(&sources))?;
    Ok(())
}

fn collect(dir: &Path, prefix: &str, sources: &mut Sources) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Rust has no hyphens in names of modules; the definitions have.
        let name = entry.file_name().to_string_lossy().replace('_', "-");
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{prefix}.{name}"), sources)?;
        } else if name == "mod.rs" {
            sources.insert(prefix.to_owned(), fs::read_to_string(entry.path())?);
        }
    }
    Ok(())
}
