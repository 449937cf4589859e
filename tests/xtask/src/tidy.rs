//! What no compiler checks: floors, file lengths, where `unsafe` may stand, lint files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell;

/// Lines a file may have before its tests.
const LINES_MAX: usize = 600;

/// The only crate that may say `unsafe`.
const UNSAFE_HOME: &str = "routing/kernel";

/// Folders of the top level that need a README.
const FOLDERS: &[&str] =
    &["image", "installer", "orchestrator", "routing", "storage", "ansible", "tests", "examples"];

/// Checks everything and names every fault.
pub(crate) fn tidy() -> Result<()> {
    let metadata = metadata()?;
    let mut faults = check_floors(&metadata)?;
    let sources = rust_files(&shell::root())?;
    for path in &sources {
        faults.extend(check_file(path)?);
    }
    faults.extend(check_lint_files(&metadata)?);
    faults.extend(
        FOLDERS.iter().filter(|folder| !shell::root().join(folder).join("README.md").exists()).map(
            |folder| format!("{folder}/README.md: missing; purpose, invariants, where to start"),
        ),
    );
    if faults.is_empty() {
        shell::say(&format!("tidy: {} source files in order", sources.len()));
        return Ok(());
    }
    for fault in &faults {
        shell::say(fault);
    }
    bail!("tidy found {} faults", faults.len())
}

fn metadata() -> Result<Value> {
    let text = shell::read("cargo", &["metadata", "--no-deps", "--format-version", "1"])?;
    serde_json::from_str(&text).context("cargo metadata printed no JSON")
}

/// Every crate's floor, from the root manifest.
fn floors(metadata: &Value) -> BTreeMap<String, u64> {
    let table = metadata.pointer("/metadata/floors").and_then(Value::as_object);
    let entries = table.into_iter().flatten().filter_map(|(floor, names)| {
        let floor: u64 = floor.parse().ok()?;
        Some(names.as_array()?.iter().filter_map(Value::as_str).map(move |name| (name, floor)))
    });
    entries.flatten().map(|(name, floor)| (name.to_owned(), floor)).collect()
}

fn packages(metadata: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let packages = metadata.get("packages").and_then(Value::as_array).into_iter().flatten();
    packages.filter_map(|package| Some((package.get("name")?.as_str()?, package)))
}

fn check_floors(metadata: &Value) -> Result<Vec<String>> {
    let floors = floors(metadata);
    let mut faults = Vec::new();
    for (name, package) in packages(metadata) {
        let Some(floor) = floors.get(name) else {
            faults
                .push(format!("{name}: stands on no floor; add it to [workspace.metadata.floors]"));
            continue;
        };
        let needs =
            package.get("dependencies").and_then(Value::as_array).context("dependencies")?;
        for need in needs.iter().filter_map(|need| need.get("name")?.as_str()) {
            if let Some(below) = floors.get(need)
                && below >= floor
            {
                faults.push(format!(
                    "{name} (floor {floor}) depends on {need} (floor {below}): only lower floors"
                ));
            }
        }
    }
    Ok(faults)
}

fn check_file(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    let root = shell::root();
    let shown = path.strip_prefix(&root).unwrap_or(path).display().to_string();
    let mut faults = Vec::new();
    let is_test = shown.ends_with("tests.rs") || shown.contains("/tests/");
    let is_table = text.lines().take(5).any(|line| line.contains("tidy: table"));
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    if lines > LINES_MAX && !is_test && !is_table {
        faults.push(format!("{shown}: {lines} lines before its tests; at most {LINES_MAX}"));
    }
    if !text.starts_with("//!") && !shown.ends_with("tests.rs") {
        faults.push(format!("{shown}: has no `//!` header saying what it is"));
    }
    let says_unsafe = text.lines().any(|line| {
        let code = line.split("//").next().unwrap_or_default();
        ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word))
    });
    if says_unsafe && !shown.starts_with(UNSAFE_HOME) && !shown.starts_with("tests/xtask") {
        faults.push(format!("{shown}: unsafe code; only {UNSAFE_HOME} may have it"));
    }
    Ok(faults)
}

/// Crates of floors 0 and 1 share one strict lint file.
fn check_lint_files(metadata: &Value) -> Result<Vec<String>> {
    let floors = floors(metadata);
    let mut first: Option<(PathBuf, String)> = None;
    let mut faults = Vec::new();
    for (name, package) in packages(metadata) {
        if floors.get(name).is_none_or(|floor| *floor > 1) {
            continue;
        }
        let manifest = package.get("manifest_path").and_then(Value::as_str).unwrap_or_default();
        let file = Path::new(manifest).with_file_name(".clippy.toml");
        let Ok(text) = std::fs::read_to_string(&file) else {
            faults.push(format!("{}: missing; floors 0 and 1 share it", file.display()));
            continue;
        };
        match &first {
            None => first = Some((file, text)),
            Some((model, wanted)) if *wanted != text => {
                faults.push(format!("{} differs from {}", file.display(), model.display()));
            }
            Some(_) => (),
        }
    }
    Ok(faults)
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            found.extend(rust_files(&path)?);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
