//! Stock kubectl against our server, as stories in `testdata/kubectl.txt`.
//!
//! Runs with every kubectl that is there: those `cargo xtask` fetches and the host's own.
//! Each runs the whole file against a server of its own. The client of Python programs, which
//! `cargo xtask` fetches too, plays `testdata/client.py`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where its expectation does"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::Cluster;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Python takes its time on a busy machine.
const PYTHON_LIMIT: Duration = Duration::from_secs(120);

/// The stories; read when the test runs, so that changing them needs no build.
fn stories() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    read("kubectl.txt") + &read("extension.txt")
}

/// One command of a story.
#[derive(Debug, Default)]
struct Step {
    line: usize,
    /// Only these versions run it, with commas between; empty for all.
    only: String,
    arguments: String,
    input: String,
    expected: Vec<String>,
    /// What it says is kept under this name, for `${NAME}` later.
    kept_as: Option<String>,
}

/// Reads the stories: `$ arguments`, then `< ` lines of input, then the expected output.
fn steps() -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (at, line) in stories().lines().enumerate() {
        if let Some(command) = line.strip_prefix("$ ") {
            let (only, arguments) = match command.strip_prefix('[') {
                Some(rest) => rest.split_once("] ").unwrap(),
                None => ("", command),
            };
            let (only, arguments) = (only.to_owned(), arguments.to_owned());
            steps.push(Step { line: at + 1, only, arguments, ..Step::default() });
        } else if line.starts_with('#') {
            continue;
        } else if let Some(input) = line.strip_prefix("< ") {
            let step = steps.last_mut().unwrap();
            step.input.push_str(input);
            step.input.push('\n');
        } else if let Some(name) = line.strip_prefix("= ") {
            steps.last_mut().unwrap().kept_as = Some(name.to_owned());
        } else if !line.trim().is_empty() {
            steps.last_mut().unwrap().expected.push(squeeze(line));
        }
    }
    steps
}

/// Columns are padded by what is in them, so runs of blanks count as one.
fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Does a line look as expected? `*` stands for anything.
fn matches(expected: &str, line: &str) -> bool {
    let mut parts = expected.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    let mut open = false;
    while let Some(part) = parts.next() {
        open = true;
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    open || rest.is_empty()
}

/// A line `...` stands for any number of lines.
fn all_match(expected: &[String], lines: &[String]) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((wild, rest)) if wild == "..." => {
            (0..=lines.len()).any(|skip| all_match(rest, &lines[skip..]))
        }
        Some((one, rest)) => match lines.split_first() {
            Some((line, others)) => matches(one, line) && all_match(rest, others),
            None => false,
        },
    }
}

/// The kubectl of a version: the one `cargo xtask` fetched, or the host's own.
fn kubectl(version: &str) -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let fetched = tools.join(format!("kubectl-{version}/usr/bin/kubectl"));
    let own = PathBuf::from("/usr/bin/kubectl");
    [fetched, own].into_iter().enumerate().find_map(|(at, path)| {
        // The host's own is taken for the newest one the stories know.
        (path.exists() && (at == 0 || version == "1.36")).then_some(path)
    })
}

async fn run(kubectl: &Path, cluster: &Cluster, step: &Step) -> Vec<String> {
    let mut child = Command::new(kubectl)
        .args(step.arguments.split_whitespace())
        .env("KUBECONFIG", cluster.path("admin.kubeconfig"))
        .env("HOME", cluster.dir.path())
        .env("TZ", "UTC")
        // What is edited by hand is edited by a stream editor here.
        .env("KUBE_EDITOR", "sed -i s/before/after/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(step.input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = common::soon("kubectl", child.wait_with_output()).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    text.lines().map(squeeze).filter(|line| !line.is_empty()).collect()
}

async fn check(version: &str) {
    let Some(kubectl) = kubectl(version) else { return };
    let cluster = Cluster::start_in_ranges("172.21.0.0/24,fd21::/112").await;
    let mut failures = Vec::new();
    let mut kept: Vec<(String, String)> = Vec::new();
    for mut step in steps() {
        for (name, value) in &kept {
            step.arguments = step.arguments.replace(name, value);
            step.input = step.input.replace(name, value);
        }
        if !step.only.is_empty() && !step.only.split(',').any(|only| only == version) {
            continue;
        }
        let lines = run(&kubectl, &cluster, &step).await;
        if let Some(name) = &step.kept_as {
            kept.push((format!("${{{name}}}"), lines.concat()));
        } else if !all_match(&step.expected, &lines) {
            failures.push(format!(
                "kubectl {version}, line {}: kubectl {}\n--- expected\n{}\n--- got\n{}\n",
                step.line,
                step.arguments,
                step.expected.join("\n"),
                lines.join("\n"),
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_1_20_sees_what_it_expects() {
    check("1.20").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_1_32_sees_what_it_expects() {
    check("1.32").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_1_36_sees_what_it_expects() {
    check("1.36").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client_tells_its_stories() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../../target/tools/python-kubernetes/bin/python");
    if !python.exists() {
        return;
    }
    let cluster = Cluster::start().await;
    let told = Command::new(&python)
        .arg(root.join("tests/testdata/client.py"))
        .arg(cluster.path("admin.kubeconfig"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .kill_on_drop(true)
        .output();
    let told = tokio::time::timeout(PYTHON_LIMIT, told).await.unwrap().unwrap();
    let said = [told.stdout, told.stderr].concat();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&said));
}
