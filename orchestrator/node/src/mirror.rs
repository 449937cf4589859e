//! Where the container runtime looks for images before it asks the registry they name.
//!
//! Spec: containerd's `hosts.toml`, in the directory `_default` of `config_path`, which stands for
//! every registry without a directory of its own. It names no `server`: after the mirror the
//! registry itself is asked.

use std::path::Path;

/// The first line; a file without it is an operator's, and is left alone.
pub const MARK: &str = "# Written by the node agent, which renews it at every start.";

/// What the runtime is told: the masters that keep images, the authority they are believed by,
/// and the node's own certificate, for strangers get nothing there.
#[must_use]
pub fn render_hosts(masters: &[String], pki: &Path) -> String {
    let file = |name: &str| quoted(&pki.join(name).to_string_lossy());
    let mut text = format!("{MARK}\n");
    for master in masters {
        let host = quoted(master.trim_end_matches('/'));
        text += &format!(
            "\n[host.{host}]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = {}\n  client = \
             [[{}, {}]]\n",
            file("ca.crt"),
            file("node.crt"),
            file("node.key"),
        );
    }
    text
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            letter if letter.is_control() => out += &format!("\\u{:04X}", u32::from(letter)),
            letter => out.push(letter),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_master_is_a_mirror_of_all_registries() {
        let masters = ["https://10.99.0.1:6443/".to_owned(), "https://b:1".to_owned()];
        let text = render_hosts(&masters, Path::new("/run/muster/pki"));
        assert_eq!(
            text,
            format!(
                r#"{MARK}

[host."https://10.99.0.1:6443"]
  capabilities = ["pull", "resolve"]
  ca = "/run/muster/pki/ca.crt"
  client = [["/run/muster/pki/node.crt", "/run/muster/pki/node.key"]]

[host."https://b:1"]
  capabilities = ["pull", "resolve"]
  ca = "/run/muster/pki/ca.crt"
  client = [["/run/muster/pki/node.crt", "/run/muster/pki/node.key"]]
"#
            )
        );
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\u000A""#);
    }
}
