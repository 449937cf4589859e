//! A document of OpenAPI version 2, entry by entry.

use serde_json::{Value, json};

/// Takes the entries of a document one by one: as values the whole would be a multiple of its
/// bytes, and a server that has shown it once would stay that large.
pub(super) trait Sink {
    /// A path and what can be done there.
    fn path(&mut self, path: &str, item: &Value);
    /// A type; each comes once.
    fn definition(&mut self, name: &str, shape: &Value);
}

/// Who speaks, in both versions.
pub(super) fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.36.0"})
}

/// A document of version 2 in JSON.
#[derive(Default)]
pub(super) struct Json {
    paths: Vec<u8>,
    definitions: Vec<u8>,
}

impl Json {
    pub(super) fn finish(self) -> Vec<u8> {
        let head = format!("{{\"swagger\":\"2.0\",\"info\":{},\"paths\":{{", info());
        let (paths, definitions) = (self.paths, self.definitions);
        [head.as_bytes(), &paths, b"},\"definitions\":{", &definitions, b"}}"].concat()
    }
}

impl Sink for Json {
    fn path(&mut self, path: &str, item: &Value) {
        write_entry(&mut self.paths, path, item);
    }

    fn definition(&mut self, name: &str, shape: &Value) {
        write_entry(&mut self.definitions, name, shape);
    }
}

fn write_entry(out: &mut Vec<u8>, name: &str, value: &Value) {
    if !out.is_empty() {
        out.push(b',');
    }
    out.extend_from_slice(json!(name).to_string().as_bytes());
    out.push(b':');
    // Writing JSON values into memory cannot fail.
    let _written = serde_json::to_writer(out, value).is_ok();
}
