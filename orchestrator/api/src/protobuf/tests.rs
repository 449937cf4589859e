use super::*;

/// Writes messages the way upstream does, for the tests.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn varint(mut self, mut number: u64) -> Self {
        while number >= 0x80 {
            self.0.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
            number >>= 7;
        }
        self.0.push(u8::try_from(number).unwrap());
        self
    }

    fn number(self, field: u64, value: i64) -> Self {
        self.varint(field << 3).varint(value.cast_unsigned())
    }

    fn bytes(self, field: u64, value: &[u8]) -> Self {
        let mut written = self.varint(field << 3 | 2).varint(value.len() as u64);
        written.0.extend_from_slice(value);
        written
    }

    fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    fn message(self, field: u64, value: Self) -> Self {
        self.bytes(field, &value.0)
    }
}

fn w() -> Writer {
    Writer::default()
}

fn body(api_version: &str, kind: &str, message: Writer) -> Vec<u8> {
    let unknown =
        w().message(1, w().text(1, api_version).text(2, kind)).message(2, message).text(3, "");
    [MAGIC, &unknown.0].concat()
}

#[track_caller]
fn check(api_version: &str, kind: &str, message: Writer, expected: Value) {
    let mut expected = expected;
    expected["apiVersion"] = json!(api_version);
    expected["kind"] = json!(kind);
    assert_eq!(decode(&body(api_version, kind, message)).unwrap(), expected);
}

#[test]
fn what_go_cannot_leave_out_is_left_out() {
    // As `kubectl create namespace work` sends it.
    let meta = w().text(1, "work").text(2, "").text(3, "").text(4, "").text(5, "").text(6, "");
    let meta = meta.number(7, 0).message(8, w());
    let namespace = w().message(1, meta).message(2, w()).message(3, w().text(1, ""));
    check("v1", "Namespace", namespace, json!({"metadata": {"name": "work"}}));
}

#[test]
fn maps_times_bytes_and_lists_are_read() {
    let entry = |key: &str, value: &str| w().text(1, key).text(2, value);
    let meta = w()
        .text(1, "a")
        .message(8, w().number(1, 1_600_000_000))
        .message(11, entry("app", "x"))
        .message(11, entry("tier", ""))
        .text(14, "one")
        .text(14, "two");
    let secret = w().message(1, meta).message(2, entry("key", "hello")).text(3, "Opaque");
    check(
        "v1",
        "Secret",
        secret,
        json!({
            "metadata": {
                "name": "a", "creationTimestamp": "2020-09-13T12:26:40Z",
                "labels": {"app": "x", "tier": ""}, "finalizers": ["one", "two"],
            },
            "data": {"key": "aGVsbG8="},
            "type": "Opaque",
        }),
    );
}

#[test]
fn messages_that_json_flattens_are_flattened() {
    // Volume{name, VolumeSource{emptyDir}}, Probe{handler{httpGet{path, port}}, periodSeconds}.
    let volume = w().text(1, "tmp").message(2, w().message(2, w().text(1, "")));
    let get = w().text(1, "/x").message(2, w().number(1, 0).number(2, 80).text(3, ""));
    let probe = w().message(1, w().message(2, get)).number(2, 0).number(3, 5);
    let container = w().text(1, "main").text(2, "i").message(10, probe).message(8, w());
    let spec = w().message(1, volume).message(2, container).number(4, 0).number(11, 0);
    check(
        "v1",
        "Pod",
        w().message(2, spec),
        json!({"spec": {
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "containers": [{
                "name": "main", "image": "i",
                "livenessProbe": {"httpGet": {"path": "/x", "port": 80}, "timeoutSeconds": 5},
            }],
            "terminationGracePeriodSeconds": 0,
        }}),
    );
}

#[test]
fn zero_replicas_are_said_and_negative_numbers_survive() {
    let spec = w().number(1, 0).number(6, -1);
    check(
        "apps/v1",
        "Deployment",
        w().message(2, spec),
        json!({"spec": {"replicas": 0, "revisionHistoryLimit": -1}}),
    );
}

#[test]
fn every_type_of_the_schema_that_upstream_has_is_in_the_table() {
    let missing: Vec<&str> = schema::builtin()
        .types()
        .iter()
        .map(|shape| shape.name)
        .filter(|name| name.starts_with("io.k8s.") && numbers(name).is_none())
        .collect();
    assert!(missing.len() < 12, "{missing:?}");
    let fields: usize = NUMBERS.values().map(BTreeMap::len).sum();
    assert!(fields > 1000, "{fields}");
}

#[test]
fn broken_bodies_are_errors() {
    for bytes in [
        &b""[..],
        b"k8s\0",
        b"k8s\0\x0a\x10",
        b"k8s\0\x0a\x02\x0a\x00",
        b"k8s\0\x0a\x08\x0a\x02v1\x12\x02No",
        b"{}",
    ] {
        assert_eq!(decode(bytes).unwrap_err().code, 400);
    }
}

#[test]
fn hostile_bytes_never_panic() {
    bolero::check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        let pod = body("v1", "Pod", Writer(bytes.to_vec()));
        let _outcome = (decode(bytes), decode(&pod));
    });
}

#[test]
fn a_definition_keeps_its_unions_and_zeros() {
    fn varint(out: &mut Vec<u8>, number: usize) {
        let mut number = number;
        while number >= 0x80 {
            out.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
            number >>= 7;
        }
        out.push(u8::try_from(number).unwrap());
    }
    fn bytes(number: usize, inner: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        varint(&mut out, (number << 3) | 2);
        varint(&mut out, inner.len());
        out.extend_from_slice(inner);
        out
    }
    fn flag(number: usize, value: u8) -> Vec<u8> {
        let mut out = Vec::new();
        varint(&mut out, number << 3);
        out.push(value);
        out
    }
    let join = |parts: &[Vec<u8>]| parts.concat();
    let text = bytes(5, b"string");
    let items = bytes(24, &bytes(1, &text));
    let open = bytes(30, &flag(1, 1));
    let map = bytes(30, &join(&[flag(1, 1), bytes(2, &text)]));
    let preserve = flag(38, 1);
    let default = bytes(8, &bytes(1, b"3"));
    let least = join(&[flag(14, 0), flag(18, 0)]);
    let rule = bytes(44, &join(&[bytes(1, b"true"), bytes(2, b"")]));
    let entry = |name: &[u8], schema: &[u8]| bytes(29, &join(&[bytes(1, name), bytes(2, schema)]));
    let schema = join(&[
        bytes(5, b"object"),
        entry(b"list", &join(&[bytes(5, b"array"), items])),
        entry(b"map", &map),
        entry(b"open", &open),
        entry(b"n", &join(&[default, least])),
        preserve,
        rule,
    ]);
    let version = join(&[
        bytes(1, b"v1"),
        flag(2, 1),
        flag(3, 1),
        bytes(4, &bytes(1, &schema)),
        bytes(5, &bytes(1, b"")),
    ]);
    let spec = bytes(7, &version);
    let kind = b"CustomResourceDefinition";
    let meta = join(&[bytes(1, b"apiextensions.k8s.io/v1"), bytes(2, kind)]);
    let body = join(&[b"k8s\0".to_vec(), bytes(1, &meta), bytes(2, &bytes(2, &spec))]);
    let read = decode(&body).unwrap();
    let version = &read["spec"]["versions"][0];
    assert_eq!(version["subresources"], json!({"status": {}}));
    assert_eq!(
        version["schema"]["openAPIV3Schema"],
        json!({
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": true,
            "x-kubernetes-validations": [{"rule": "true"}],
            "properties": {
                "list": {"type": "array", "items": {"type": "string"}},
                "map": {"additionalProperties": {"type": "string"}},
                "open": {"additionalProperties": true},
                "n": {"default": 3, "minLength": 0},
            },
        })
    );
    assert!(!has_form("apiextensions.k8s.io/v1", "CustomResourceDefinition"));
}
