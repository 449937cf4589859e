//! Images that reach a node only by way of the master: added with `muster images`, pulled by a
//! real containerd.

use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Cluster, is_ready};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn add(tar: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, name, bytes).unwrap();
}

/// A layer that no other image has.
fn layer(word: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["proc", "sys", "dev", "etc", "tmp"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o755);
        tar.append_data(&mut header, name, std::io::empty()).unwrap();
    }
    add(&mut tar, "bin/sh", &std::fs::read("/bin/busybox").unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "bin/sleep", "sh").unwrap();
    add(&mut tar, "word", word.as_bytes());
    tar.into_inner().unwrap()
}

fn config(layer: &[u8]) -> Vec<u8> {
    let shell = ["/bin/sh", "-c", "read word < /word; echo $word; while :; do sleep 60; done"];
    json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": shell},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]}})
    .to_string()
    .into_bytes()
}

/// What `docker save` writes.
fn saved(name: &str, word: &str) -> Vec<u8> {
    let (mut tar, layer) = (tar::Builder::new(Vec::new()), layer(word));
    let list = json!([{"Config": "c.json", "RepoTags": [name], "Layers": ["l/layer.tar"]}]);
    add(&mut tar, "c.json", &config(&layer));
    add(&mut tar, "l/layer.tar", &layer);
    add(&mut tar, "manifest.json", list.to_string().as_bytes());
    tar.into_inner().unwrap()
}

/// An OCI layout with an index of two platforms, of which one came along; packed.
fn layout(name: &str, word: &str) -> Vec<u8> {
    let layer = layer(word);
    let config = config(&layer);
    let part = |bytes: &[u8]| json!({"digest": digest(bytes), "size": bytes.len()});
    let image = json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest(&layer), "size": layer.len()}]})
    .to_string()
    .into_bytes();
    let on = |architecture: &str, mut part: Value| {
        part["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
        part["platform"] = json!({"os": "linux", "architecture": architecture});
        part
    };
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [on("arm64", part(b"elsewhere")), on("amd64", part(&image))]})
    .to_string()
    .into_bytes();
    let mut top = part(&index);
    top["annotations"] = json!({"io.containerd.image.name": name});
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    let list = json!({"schemaVersion": 2, "manifests": [top]});
    add(&mut tar, "index.json", list.to_string().as_bytes());
    for blob in [&layer, &config, &image, &index] {
        add(&mut tar, &format!("blobs/{}", digest(blob).replace(':', "/")), blob);
    }
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&tar.into_inner().unwrap()).unwrap();
    packed.finish().unwrap()
}

async fn muster(cluster: &Cluster, args: &[&str]) -> (bool, String) {
    let out = tokio::process::Command::new(env!("CARGO_BIN_EXE_muster"))
        .arg("images")
        .args(args)
        .arg("--kubeconfig")
        .arg(cluster.data.path().join("admin.kubeconfig"))
        .output()
        .await
        .unwrap();
    let text = [out.stdout, out.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    (out.status.success(), text)
}

async fn done(cluster: &Cluster, args: &[&str]) -> String {
    let (good, text) = muster(cluster, args).await;
    assert!(good, "muster images {args:?}: {text}");
    text
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_run_images_that_only_the_master_has() {
    let Some(cluster) = Cluster::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let one = file("one.tar", &saved("near:1", "carried in"));
    let said = done(&cluster, &["add", text(&one)]).await;
    assert!(said.starts_with("added docker.io/library/near:1@sha256:"), "{said}");
    let said = done(&cluster, &["add", text(&one)]).await;
    assert!(said.contains("of which 0.0 were new"), "{said}");
    let two = file("two.tar.gz", &layout("registry.example:5000/team/app:2", "also"));
    done(&cluster, &["add", text(&two)]).await;
    let list: Value =
        serde_json::from_str(&done(&cluster, &["list", "--output", "json"]).await).unwrap();
    let names: Vec<_> =
        list["images"].as_array().unwrap().iter().map(|image| &image["name"]).collect();
    assert_eq!(names, ["docker.io/library/near", "registry.example:5000/team/app"]);
    assert_eq!(list["images"][1]["platforms"], json!(["linux/amd64"]));
    let table = done(&cluster, &["list"]).await;
    assert!(table.contains("registry.example:5000/team/app  2"), "{table}");

    let names = [("near", "near:1"), ("app", "registry.example:5000/team/app:2")];
    for (pod, image) in names {
        let spec = json!({"nodeName": "w1", "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": image, "imagePullPolicy": "Always"}]});
        cluster.create(pod, spec).await;
    }
    for (pod, _) in names {
        cluster.await_pod(pod, is_ready).await;
    }
    let log = |pod: &str| format!("/api/v1/namespaces/default/pods/{pod}/log");
    for (pod, word) in [("near", "carried in\n"), ("app", "also\n")] {
        assert_eq!(cluster.admin.raw_get(&log(pod)).await.unwrap().body, word);
    }
    let (wrong, absent) = (file("hello.tar", b"hello"), dir.path().join("absent.tar"));
    for (source, why) in [(&wrong, "hello.tar"), (&absent, "there is no such file")] {
        let (good, said) = muster(&cluster, &["add", text(source)]).await;
        assert!(!good && said.contains(why), "{said}");
    }
    done(&cluster, &["remove", "near:1"]).await;
    let (good, said) = muster(&cluster, &["remove", "near:1"]).await;
    assert!(!good && said.contains("the site keeps no such image"), "{said}");
}
