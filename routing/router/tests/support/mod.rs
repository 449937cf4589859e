//! What the router's tests share: namespaces, the plugin, a small API server.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests: clippy's leave for tests does not reach them"
)]

#[path = "../../../kernel/tests/alone/mod.rs"]
mod alone;
pub(crate) mod api;

use std::fmt::Write as _;
use std::time::Duration;

use kernel::netns::Namespace;

pub(crate) use alone::*;

/// A call of the plugin inside a node's namespace; returns exit code and output.
pub(crate) fn plugin(
    node: &Namespace,
    command: &str,
    pod: &str,
    config: &str,
) -> (u8, serde_json::Value) {
    let env = [
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", format!("id-{pod}")),
        ("CNI_NETNS", path(pod).display().to_string()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_PATH", "/opt/cni/bin".to_owned()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value));
    let serve = || {
        let mut output = Vec::new();
        let code = router::cni::serve(config.as_bytes(), &mut output, env);
        (code, output)
    };
    let (code, output) = node.run(serve).unwrap();
    let text = String::from_utf8(output).unwrap();
    let value = serde_json::from_str(&text).unwrap_or(serde_json::Value::Null);
    (code, value)
}

/// Formats durations of one kind for a person.
pub(crate) fn figures(mut all: Vec<Duration>) -> String {
    all.sort();
    let at = |share: usize| all[(all.len() - 1) * share / 100];
    let mut text = String::new();
    write!(text, "p50 {:?}, p99 {:?}, n {}", at(50), at(99), all.len()).unwrap();
    text
}
