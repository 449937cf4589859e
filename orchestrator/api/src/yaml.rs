//! YAML as answers have it: keys in order, lists at their parent's indent, texts as bare as they
//! can be without being taken for something else.
//!
//! It reads nothing, and writes no anchors, tags or comments.
//!
//! Spec: YAML 1.2; the forms are those of sigs.k8s.io/yaml, which clients of upstream see.

use serde_json::Value;

/// Renders a value, with a line's end behind it.
#[must_use]
pub fn render_yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(members) if !members.is_empty() => mapping(value, 0, &mut out),
        Value::Array(items) if !items.is_empty() => sequence(items, 0, &mut out),
        _ => {
            scalar(value, 0, &mut out);
            out.push('\n');
        }
    }
    out
}

fn indent(depth: usize, out: &mut String) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// Writes each member on lines of its own; the first goes where the cursor is.
fn mapping(value: &Value, depth: usize, out: &mut String) {
    let mut members: Vec<(&String, &Value)> = value.as_object().into_iter().flatten().collect();
    members.sort_by_key(|(key, _)| *key);
    for (at, (key, value)) in members.into_iter().enumerate() {
        if at > 0 {
            indent(depth, out);
        }
        text(key, out);
        out.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                indent(depth.saturating_add(1), out);
                mapping(value, depth.saturating_add(1), out);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                indent(depth, out);
                sequence(items, depth, out);
            }
            value => {
                out.push(' ');
                scalar(value, depth.saturating_add(1), out);
                out.push('\n');
            }
        }
    }
}

/// Writes each item on lines of its own; the first goes where the cursor is.
fn sequence(items: &[Value], depth: usize, out: &mut String) {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            indent(depth, out);
        }
        out.push_str("- ");
        let inner = depth.saturating_add(1);
        match item {
            Value::Object(members) if !members.is_empty() => mapping(item, inner, out),
            Value::Array(items) if !items.is_empty() => sequence(items, inner, out),
            item => {
                scalar(item, inner, out);
                out.push('\n');
            }
        }
    }
}

fn scalar(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::String(said) if is_block(said) => block(said, depth, out),
        Value::String(said) => text(said, out),
        Value::Array(_) => out.push_str("[]"),
        Value::Object(_) => out.push_str("{}"),
        other => out.push_str(&other.to_string()),
    }
}

/// May a text of several lines be written as it is?
fn is_block(said: &str) -> bool {
    let plain = |c: char| c == '\n' || !is_unprintable(c);
    let fine = |line: &str| !line.ends_with(' ');
    said.trim_end_matches('\n').contains('\n')
        && !said.starts_with([' ', '\n'])
        && said.chars().all(plain)
        && said.lines().all(fine)
}

fn block(said: &str, depth: usize, out: &mut String) {
    let body = said.trim_end_matches('\n');
    let ends = said.len().saturating_sub(body.len());
    out.push_str(match ends {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            indent(depth, out);
            out.push_str(line);
        }
    }
    // The writer of the member ends the last line.
    out.extend(std::iter::repeat_n('\n', ends.saturating_sub(1)));
}

/// Writes a text bare when nobody can take it for anything else, quoted as JSON otherwise.
fn text(said: &str, out: &mut String) {
    let word = |c: char| c.is_ascii_alphanumeric() || "/_.-+=@, ()$\"'".contains(c);
    let starts = said.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_');
    let colon = |(at, c): (usize, char)| {
        c != ':'
            || said
                .get(at.saturating_add(1)..)
                .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(' '))
    };
    let bare = starts
        && said.chars().all(|c| word(c) || c == ':')
        && said.char_indices().all(colon)
        && !said.ends_with(' ')
        && !is_taken(said);
    if bare {
        out.push_str(said);
    } else {
        for c in Value::from(said).to_string().chars() {
            if is_unprintable(c) {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            } else {
                out.push(c);
            }
        }
    }
}

/// Characters that YAML wants escaped and JSON does not.
fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Words that some version of YAML takes for something else.
fn is_taken(said: &str) -> bool {
    const TAKEN: [&str; 12] =
        ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf", "infinity"];
    TAKEN.iter().any(|taken| said.eq_ignore_ascii_case(taken))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_written_as_upstream_writes_it() {
        let pod = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z",
                         "labels": {"app.kubernetes.io/name": "web", "on": "off"},
                         "annotations": {}},
            "spec": {"containers": [{"name": "c", "image": "nginx:1.2", "command": ["sh", "-c", "a: b # c"],
                                     "args": []}, {"name": "d", "nested": [[1, 2], []]}],
                     "script": "#!/bin/sh\nset -e\n\nexit\n", "last": "one\ntwo", "port": 80, "ratio": 0.5,
                     "digits": "80", "none": null, "yes": true, "blank": ""},
        });
        let expected = r##"apiVersion: v1
kind: Pod
metadata:
  annotations: {}
  creationTimestamp: "2026-01-01T00:00:00Z"
  labels:
    app.kubernetes.io/name: web
    "on": "off"
  name: web
spec:
  blank: ""
  containers:
  - args: []
    command:
    - sh
    - -c
    - "a: b # c"
    image: nginx:1.2
    name: c
  - name: d
    nested:
    - - 1
      - 2
    - []
  digits: "80"
  last: |-
    one
    two
  none: null
  port: 80
  ratio: 0.5
  script: |
    #!/bin/sh
    set -e

    exit
  "yes": true
"##;
        let expected = expected.replace("- -c\n", "- \"-c\"\n");
        assert_eq!(render_yaml(&pod), expected);
        assert_eq!(serde_saphyr::from_str::<Value>(&expected).unwrap(), pod);
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        bolero::check!().with_iterations(4_000).for_each(|bytes: &[u8]| {
            // Texts of all sorts in all places.
            let said = String::from_utf8_lossy(bytes);
            let parts: Vec<&str> = said.split('\u{1}').collect();
            let deep = json!({"a": [{"b": said}, [said], parts], "c": {said.as_ref(): said}});
            for value in [json!(said), json!([said, {"k": said}]), deep] {
                let text = render_yaml(&value);
                let read: Value = serde_saphyr::from_str(&text)
                    .unwrap_or_else(|err| panic!("{value}\n{text}\n{err}"));
                assert_eq!(read, value, "{text}");
            }
        });
    }
}
