//! What operators type, run as they run it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests end at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn muster(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster")).args(args).current_dir(root()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

const LAB: &str = "examples/lab/rack.yaml";
const UNIVERSITY: &str = "examples/university/rack.yaml";

#[test]
fn the_same_file_gives_the_same_bytes() {
    for file in [LAB, UNIVERSITY] {
        for output in ["table", "json"] {
            let plan = || stdout(&muster(&["plan", file, "--output", output]));
            assert_eq!(plan(), plan());
        }
    }
}

#[test]
fn a_plan_names_every_machine_of_the_lab() {
    let plan = stdout(&muster(&["plan", LAB]));
    for word in ["a-master", "a-worker", "b-worker", "10.98.1.11", "172.20.21.0/24", "--plan"] {
        assert!(plan.contains(word), "{word} is not in\n{plan}");
    }
}

#[test]
fn every_problem_is_named_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(root().join(LAB)).unwrap();
    let broken =
        text.replace("gateway: 10.98.1.1", "gateway: 10.99.1.1").replace("uefi-http", "floppy");
    let file = dir.path().join("rack.yaml");
    std::fs::write(&file, broken).unwrap();
    let output = muster(&["plan", &file.to_string_lossy()]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(stderr.contains("racks[0].gateway"), "{stderr}");
    assert!(stderr.contains("machines[2].boot"), "{stderr}");
    assert!(stderr.contains("line "), "{stderr}");
}

#[test]
fn up_refuses_a_plan_that_no_longer_fits() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_string_lossy().into_owned();
    let stale = "0".repeat(64);
    let output = muster(&["up", LAB, "--sim", "--dir", &dir, "--plan", &stale]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(stderr.contains("has changed since it was planned"), "{stderr}");
}

#[test]
fn up_asks_before_it_changes_a_site_that_is_up() {
    let dir = tempfile::tempdir().unwrap();
    let record = r#"{"site":"lab","planHash":"beef","simulated":true,"image":"/nowhere"}"#;
    std::fs::write(dir.path().join("site.json"), record).unwrap();
    let output = muster(&["up", LAB, "--sim", "--dir", &dir.path().to_string_lossy()]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(stderr.contains("is up with plan beef"), "{stderr}");
    assert!(stderr.contains("--plan"), "{stderr}");
}

/// Text without the mark by which ansible-core 2.19 says that it is no template.
fn plain(listed: Value) -> Value {
    match listed {
        Value::Object(mut members) => match members.remove("__ansible_unsafe") {
            Some(text) => text,
            None => members.into_iter().map(|(name, value)| (name, plain(value))).collect(),
        },
        Value::Array(items) => items.into_iter().map(plain).collect(),
        other => other,
    }
}

#[test]
fn the_inventory_plugin_lists_a_site_in_ansibles_own_words() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("site.muster.yml");
    let rack_file = root().join(UNIVERSITY);
    let text = format!("plugin: muster\nrack_file: {}\n", rack_file.display());
    std::fs::write(&source, text).unwrap();
    let output = Command::new("ansible-inventory")
        .arg("-i")
        .arg(&source)
        .arg("--list")
        .env("ANSIBLE_INVENTORY_PLUGINS", root().join("ansible/plugins/inventory"))
        .env("ANSIBLE_INVENTORY_ENABLED", "muster")
        .env("ANSIBLE_LOCAL_TEMP", dir.path())
        .env("MUSTER_BINARY", env!("CARGO_BIN_EXE_muster"))
        .output()
        .expect("ansible-inventory runs; `cargo xtask deps` installs it");
    let listed = plain(serde_json::from_str(&stdout(&output)).unwrap());
    let own: Value =
        serde_json::from_str(&stdout(&muster(&["inventory", "--list", "--file", UNIVERSITY])))
            .unwrap();
    assert_eq!(listed["_meta"]["hostvars"], own["_meta"]["hostvars"]);
    for (group, content) in own.as_object().unwrap() {
        if group.starts_with("rack_") || group == "masters" || group == "workers" {
            assert_eq!(listed[group]["hosts"], content["hosts"], "group {group}");
        }
    }
}

#[test]
fn one_machine_has_the_same_variables_as_in_the_list() {
    let list = stdout(&muster(&["inventory", "--list", "--file", LAB]));
    let list: Value = serde_json::from_str(&list).unwrap();
    let host = stdout(&muster(&["inventory", "--host", "b-worker", "--file", LAB]));
    let host: Value = serde_json::from_str(&host).unwrap();
    assert_eq!(list["_meta"]["hostvars"]["b-worker"], host);
}

/// A master's store is looked over, saved and restored; a second master goes on with it.
#[test]
fn a_store_is_saved_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let verify = |place: &str| -> Value {
        let output = muster(&["store", "verify", "--data-dir", &path(place), "--output", "json"]);
        serde_json::from_str(&stdout(&output)).unwrap()
    };
    assert!(!muster(&["store", "verify", "--data-dir", &path("master")]).status.success());
    let mut master = Command::new(env!("CARGO_BIN_EXE_muster"))
        .args(["master", "--controllers", "none", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(path("master"))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let log = std::io::BufReader::new(master.stderr.take().unwrap());
    let served =
        std::io::BufRead::lines(log).find(|line| line.as_ref().unwrap().contains("served"));
    assert!(served.is_some(), "the master ended early");
    let busy = muster(&["store", "verify", "--data-dir", &path("master")]);
    assert!(!busy.status.success(), "a store in use is left alone");
    master.kill().unwrap();
    master.wait().unwrap();
    let before = verify("master");
    assert_eq!(before["shelves"]["core/namespaces"]["items"], 4);
    stdout(&muster(&["store", "snapshot", &path("file"), "--data-dir", &path("master")]));
    stdout(&muster(&["store", "restore", &path("file"), "--data-dir", &path("other")]));
    let after = verify("other");
    assert_eq!(after["shelves"], before["shelves"]);
    assert!(after["revision"].as_u64() > before["revision"].as_u64());
    let again = muster(&["store", "restore", &path("file"), "--data-dir", &path("other")]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"));
}

#[test]
fn routers_and_ceph_learn_of_the_plan() {
    for (format, words) in [
        ("bird", ["protocol bgp node_12 from node", "net ~ [ 172.20.12.0/24"]),
        ("frr", ["router bgp 65001", "prefix-list muster-node-12 in"]),
        ("text", ["BGP, AS 65001", "4200000012"]),
    ] {
        let text = stdout(&muster(&["export", "tor-config", LAB, "--format", format]));
        for word in words {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }
        let one =
            stdout(&muster(&["export", "tor-config", LAB, "--format", format, "--rack", "b"]));
        assert!(!one.contains("172.20.12.0/24 ") && text.contains(one.trim_end()), "{one}");
    }
    let unknown = muster(&["export", "tor-config", LAB, "--rack", "z"]);
    let words = String::from_utf8_lossy(&unknown.stderr);
    assert!(words.contains("the racks are a, b"), "{words}");
    let commands = stdout(&muster(&["export", "crush", LAB]));
    assert!(commands.contains("ceph osd crush move b-worker root=default rack=b"), "{commands}");
    let places: Value =
        serde_json::from_str(&stdout(&muster(&["export", "crush", LAB, "--output", "json"])))
            .unwrap();
    assert_eq!(places["locations"][0]["host"], "a-master");
}

/// The exit code says whether the three views agree, in both forms.
#[test]
fn a_nodes_own_report_is_shown_and_judged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("routes.json");
    let report = |differences: &str| {
        format!(
            r#"{{"node":"a","protocol":"BGP, AS 1","neighbours":[{{"name":"tor1","kind":"BGP",
            "running":true,"since":"08:00","info":"Established"}}],
            "announced":[{{"destination":"172.20.12.0/24","purpose":"own pods","to":["tor1"]}}],
            "routes":[{{"destination":"172.20.12.0/24","purpose":"own pods","intent":"blackhole",
            "bird":"blackhole","kernel":null}}],"differences":[{differences}]}}"#
        )
    };
    let local = format!("--local={}", file.display());
    std::fs::write(&file, report("")).unwrap();
    let good = muster(&["routes", &local]);
    assert!(stdout(&good).contains("1 of 1 nodes as intended"));
    let bad = r#"{"destination":"172.20.12.0/24","wanted":"blackhole","found":"no route"}"#;
    std::fs::write(&file, report(bad)).unwrap();
    let table = muster(&["routes", &local]);
    let text = String::from_utf8_lossy(&table.stdout);
    assert_eq!(table.status.code(), Some(1));
    assert!(
        text.contains("difference: 172.20.12.0/24: wanted blackhole, found no route"),
        "{text}"
    );
    let json = muster(&["routes", &local, "--output", "json"]);
    let value: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json.status.code(), &value["nodes"][0]["well"]), (Some(1), &Value::Bool(false)));
}
