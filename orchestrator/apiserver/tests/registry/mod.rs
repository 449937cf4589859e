//! Images put into a master's registry and fetched from it, as clients of registries do.

use bytes::Bytes;
use http::{Method, StatusCode, header};
use runtime::Client;
use runtime::client::RawResponse;
use runtime::pki::{Authority, Sans, Subject, Usage};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::common::{Cluster, LIMIT};

const BYTES: &str = "application/octet-stream";

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

async fn send(client: &Client, method: &str, path: &str, body: &[u8]) -> RawResponse {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    client.raw_send(method, path, BYTES, Bytes::copy_from_slice(body)).await.unwrap()
}

#[track_caller]
fn check(answer: &RawResponse, status: u16, code: &str) {
    let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let said = told.pointer("/errors/0/code").and_then(Value::as_str).unwrap_or_default();
    assert_eq!((answer.status.as_u16(), said), (status, code), "{told}");
}

fn field(answer: &RawResponse, name: header::HeaderName) -> &str {
    answer.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

async fn put_blob(client: &Client, bytes: &[u8]) {
    let path = format!("/v2/team/app/blobs/uploads/?digest={}", digest(bytes));
    check(&send(client, "POST", &path, bytes).await, 201, "");
}

/// An image of these two blobs.
fn manifest(config: &[u8], layer: &[u8]) -> Vec<u8> {
    let part = |bytes: &[u8]| json!({"digest": digest(bytes), "size": bytes.len()});
    json!({"schemaVersion": 2, "config": part(config), "layers": [part(layer)]})
        .to_string()
        .into_bytes()
}

const CONFIG: &[u8] = br#"{"os":"linux","architecture":"amd64"}"#;
const PUT: &str = "/v2/team/app/manifests/1?ns=reg.example:5000";

#[tokio::test]
async fn an_image_goes_in_and_comes_out() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    let layer: Vec<u8> = (0..600_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let image = manifest(CONFIG, &layer);
    // A manifest waits for what it names.
    check(&send(&admin, "PUT", PUT, &image).await, 400, "MANIFEST_BLOB_UNKNOWN");
    put_blob(&admin, CONFIG).await;
    // In pieces, of which one is sent twice and one goes missing.
    let begun = send(&admin, "POST", "/v2/team/app/blobs/uploads/", b"").await;
    check(&begun, 202, "");
    let place = field(&begun, header::LOCATION).to_owned();
    check(&send(&admin, "PATCH", &place, &layer[..100_000]).await, 202, "");
    let state = send(&admin, "GET", &place, b"").await;
    assert_eq!((state.status, field(&state, header::RANGE)), (StatusCode::NO_CONTENT, "0-99999"));
    check(&send(&admin, "PATCH", &place, &layer[100_000..200_000]).await, 202, "");
    let end = format!("{place}?digest={}", digest(&layer));
    check(&send(&admin, "PUT", &end, &layer[200_000..]).await, 201, "");
    let made = send(&admin, "PUT", PUT, &image).await;
    check(&made, 201, "");
    cluster.kill_and_restart().await;
    let admin = cluster.admin();
    let found = send(&admin, "GET", PUT, b"").await;
    assert_eq!((found.status, &found.body[..]), (StatusCode::OK, &image[..]));
    assert_eq!(field(&found, header::CONTENT_TYPE), api_type());
    let head = send(&admin, "HEAD", PUT, b"").await;
    assert_eq!(field(&head, header::CONTENT_LENGTH), image.len().to_string());
    assert_eq!(head.headers["docker-content-digest"], *digest(&image));
    let blob = format!("/v2/any/name/blobs/{}", digest(&layer));
    let whole = send(&admin, "GET", &blob, b"").await;
    assert!(whole.body[..] == layer[..], "{} bytes of {}", whole.body.len(), layer.len());
    let listed: Value =
        serde_json::from_slice(&send(&admin, "GET", "/muster/v1/images", b"").await.body).unwrap();
    let first = &listed["images"][0];
    assert_eq!(first["name"], "reg.example:5000/team/app");
    assert_eq!(first["sizeBytes"], CONFIG.len() + layer.len());
    assert_eq!(first["platforms"], json!(["linux/amd64"]));
    let tags = send(&admin, "GET", "/v2/team/app/tags/list?ns=reg.example:5000", b"").await;
    let tags: Value = serde_json::from_slice(&tags.body).unwrap();
    assert_eq!(tags["tags"], json!(["1"]));
    // The same name in another registry is another image.
    check(&send(&admin, "GET", "/v2/team/app/manifests/1", b"").await, 404, "MANIFEST_UNKNOWN");
    check(&send(&admin, "DELETE", PUT, b"").await, 202, "");
    check(&send(&admin, "GET", PUT, b"").await, 404, "MANIFEST_UNKNOWN");
}

fn api_type() -> &'static str {
    "application/vnd.oci.image.manifest.v1+json"
}

#[tokio::test]
async fn what_breaks_off_leaves_nothing() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    // Bytes that are not what they were announced as.
    let path = format!("/v2/a/blobs/uploads/?digest={}", digest(b"other"));
    check(&send(&admin, "POST", &path, b"these").await, 400, "DIGEST_INVALID");
    for bytes in [b"these".as_slice(), b"other"] {
        let path = format!("/v2/a/blobs/{}", digest(bytes));
        check(&send(&admin, "GET", &path, b"").await, 404, "BLOB_UNKNOWN");
    }
    let begun = send(&admin, "POST", "/v2/a/blobs/uploads/", b"").await;
    let place = field(&begun, header::LOCATION).to_owned();
    check(&send(&admin, "PATCH", &place, &[7; 50_000]).await, 202, "");
    let files = |dir: &str| std::fs::read_dir(cluster.path("images").join(dir)).unwrap().count();
    assert_eq!((files("uploads"), files("blobs/sha256")), (1, 0));
    cluster.kill_and_restart().await;
    let admin = cluster.admin();
    let files = |dir: &str| std::fs::read_dir(cluster.path("images").join(dir)).unwrap().count();
    assert_eq!((files("uploads"), files("blobs/sha256")), (0, 0));
    let end = format!("{place}?digest={}", digest(&[7; 50_000]));
    check(&send(&admin, "PUT", &end, b"").await, 404, "BLOB_UPLOAD_UNKNOWN");
    // A damaged index does not keep the control plane from starting; the blobs are still there.
    put_blob(&admin, CONFIG).await;
    std::fs::write(cluster.path("images/index.json"), "{").unwrap();
    cluster.kill_and_restart().await;
    let path = format!("/v2/a/blobs/{}", digest(CONFIG));
    let found = send(&cluster.admin(), "GET", &path, b"").await;
    assert_eq!(found.body, CONFIG);
}

#[tokio::test]
async fn nodes_read_admins_write_and_strangers_do_neither() {
    let cluster = Cluster::start().await;
    put_blob(&cluster.admin(), CONFIG).await;
    let authority = Authority::load(&cluster.path("pki")).unwrap();
    let subject = Subject::new("system:node:w1", &["system:nodes"]);
    let made = authority.issue(&subject, &Sans::default(), Usage::Client, LIMIT * 100).unwrap();
    let identity = runtime::Identity {
        cert_pem: made.cert_pem.into_bytes(),
        key_pem: made.key_pem.expose().as_bytes().to_vec(),
    };
    let (node, stranger) = (cluster.client(Some(identity)), cluster.client(None));
    let path = format!("/v2/a/blobs/{}", digest(CONFIG));
    for (client, reads, writes) in [(&node, 200, 403), (&stranger, 401, 401)] {
        assert_eq!(send(client, "GET", "/v2/", b"").await.status.as_u16(), reads);
        assert_eq!(send(client, "GET", &path, b"").await.status.as_u16(), reads);
        let begin = send(client, "POST", "/v2/a/blobs/uploads/", b"").await;
        assert_eq!(begin.status.as_u16(), writes);
        assert_eq!(send(client, "PUT", PUT, b"{}").await.status.as_u16(), writes);
        assert_eq!(send(client, "DELETE", PUT, b"").await.status.as_u16(), writes);
        let list = send(client, "GET", "/muster/v1/images", b"").await;
        assert_eq!(list.status.as_u16(), writes);
    }
}
