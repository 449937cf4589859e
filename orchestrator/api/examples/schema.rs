//! Distils upstream's definitions to `schema/kubernetes.txt`.
//!
//! ```text
//! pip download kubernetes-validate==1.37.0 --no-deps
//! unzip -p kubernetes_validate-*.whl '*/v1.36.0-local/_definitions.json' > definitions.json
//! cd orchestrator/api
//! cargo run -p api --example schema < definitions.json > schema/kubernetes.txt
//! ```

use std::{
    error::Error,
    io::{Read as _, Write as _},
};

/// What stands above the table.
const NOTICE: &str = "\
# The shape of the Kubernetes 1.36 kinds that are served, distilled from the OpenAPI definitions of
# Kubernetes (Copyright The Kubernetes Authors, Apache License 2.0; see NOTICE in this folder).
# Written by `cargo run -p api --example schema`; do not edit.
";

fn main() -> Result<(), Box<dyn Error>> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let definitions = serde_json::from_str(&text)?;
    let table = api::schema::distil(&definitions)?;
    let mut out = std::io::stdout().lock();
    write!(out, "{NOTICE}{table}")?;
    Ok(())
}
