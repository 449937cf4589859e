//! Images that the site brought along, served to its nodes as an OCI registry.
//!
//! Nodes without a way to the outside ask here first: containerd takes every master as a mirror
//! of all registries (`?ns=` says which one was meant). Whoever may write `/v2/*` puts images in
//! with the push half of the same protocol, so `muster images add` and `skopeo` both can.
//!
//! Images are no secrets and their integrity comes from digests; all the same one must be a node
//! or have a role to read them, since a node has a certificate anyway, and so strangers still
//! learn nothing from a master.
//!
//! Spec: OCI distribution 1.1, pull and push; `api::registry` says what is left out.
//!
//! *Limits*: each master has what was put into it; nothing copies images between masters.

mod shelf;

use std::sync::Arc;

use api::registry::{At, Call, Digest, Failure, MANIFEST_BYTES_MAX, Range, Upload};
use api::registry::{parse_call, parse_range};
use bytes::Bytes;
use futures_util::{StreamExt as _, future};
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LOCATION, RANGE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use hyper::body::Incoming;
use objects::Status;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::handle::read_limited;
use crate::respond::{self, Answer};
use crate::server::Server;

pub(crate) use shelf::Shelf;

/// Where the list of all images is.
const LIST: &str = "/muster/v1/images";
/// How much of a blob is read at a time.
const PIECE_BYTES: usize = 256 << 10;
const BLOB: &str = "application/octet-stream";
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// Is this path the registry's?
pub(crate) fn is_path(path: &str) -> bool {
    path == LIST || is_stream(path)
}

/// May an answer at this path take as long as the bytes flow?
pub(crate) fn is_stream(path: &str) -> bool {
    path.strip_prefix("/v2").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Answers a request to the registry.
pub(crate) async fn answer(
    server: &Arc<Server>,
    parts: &Parts,
    body: Incoming,
) -> Result<Answer, Status> {
    let path = parts.uri.path();
    if path == LIST {
        if parts.method != Method::GET {
            return Err(api::not_allowed());
        }
        return Ok(respond::json(200, &json!({ "images": server.images.list() })));
    }
    let called = parse_call(parts.method.as_str(), path, parts.uri.query().unwrap_or(""));
    let answered = match called {
        Ok(call) => match call {
            Call::PutManifest { .. } | Call::Begin { .. } | Call::Upload { .. } => {
                take(&server.images, call, &parts.headers, body).await
            }
            call => give(&server.images, call, &parts.headers).await,
        },
        Err(failure) => Err(failure),
    };
    let mut answer =
        answered.unwrap_or_else(|failure| respond::json(failure.status, &failure.render()));
    answer.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    Ok(answer)
}

/// What is asked for, or forgotten.
async fn give(images: &Shelf, call: Call, headers: &HeaderMap) -> Result<Answer, Failure> {
    match call {
        Call::Base => Ok(respond::json(200, &json!({}))),
        Call::Catalog => Ok(respond::json(200, &json!({ "repositories": images.names() }))),
        Call::Tags { name } => {
            let tags = images.tags(&name).ok_or_else(|| unknown_name(&name))?;
            Ok(respond::json(200, &json!({ "name": name, "tags": tags })))
        }
        Call::Manifest { name, at } => manifest(images, &name, at).await,
        Call::Blob { digest } => blob(images, &digest, headers).await,
        Call::Delete { name, at } => {
            images.forget(&name, &at).await?;
            Ok(respond::whole(202, BLOB, Bytes::new()))
        }
        Call::PutManifest { .. } | Call::Begin { .. } | Call::Upload { .. } => {
            Err(Failure::new(405, "UNSUPPORTED", "the registry does not do this"))
        }
    }
}

fn unknown_name(name: &str) -> Failure {
    Failure::new(404, "NAME_UNKNOWN", format!("the site keeps no image {name}"))
}

async fn manifest(images: &Shelf, name: &str, at: At) -> Result<Answer, Failure> {
    let found = images.manifest(name, &at).await?;
    let length = found.bytes.len();
    // A stream is never compressed, so that its length is what HEAD says.
    let bytes = found.bytes;
    let mut answer = respond::stream(BLOB, futures_util::stream::once(future::ready(bytes)));
    let headers = answer.headers_mut();
    if let Ok(kind) = HeaderValue::from_str(&found.media_type) {
        headers.insert(CONTENT_TYPE, kind);
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    identify(headers, &found.digest);
    Ok(answer)
}

async fn blob(images: &Shelf, digest: &Digest, headers: &HeaderMap) -> Result<Answer, Failure> {
    let (mut file, size) = images.blob(digest).await?;
    let wanted = headers.get(RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
    let (code, first, length) = match parse_range(wanted, size) {
        Range::Whole => (StatusCode::OK, 0, size),
        Range::Part { first, last } => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Range::Beyond => {
            let why = format!("the blob has {size} bytes");
            return Err(Failure::new(416, "RANGE_INVALID", why));
        }
    };
    file.seek(std::io::SeekFrom::Start(first)).await.map_err(|err| shelf::broken(&err))?;
    // A disk that fails ends the answer early, and the client misses what its length promised.
    let pieces = ReaderStream::with_capacity(file.take(length), PIECE_BYTES)
        .take_while(|piece| future::ready(piece.is_ok()))
        .map(Result::unwrap_or_default);
    let mut answer = respond::stream(BLOB, pieces);
    *answer.status_mut() = code;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if code == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {first}-{}/{size}", first + length - 1);
        insert(headers, CONTENT_RANGE, &range);
    }
    identify(headers, digest);
    Ok(answer)
}

/// What is put in.
async fn take(
    images: &Shelf,
    call: Call,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Answer, Failure> {
    match call {
        Call::PutManifest { name, at } => {
            let bytes = read_limited(body, 0, MANIFEST_BYTES_MAX).await;
            let bytes = bytes
                .map_err(|status| Failure::new(status.code, "MANIFEST_INVALID", status.message))?;
            let digest = images.put_manifest(&name, &at, bytes).await?;
            let place = format!("/v2/{name}/manifests/{digest}");
            let mut answer = placed(201, &place);
            identify(answer.headers_mut(), &digest);
            Ok(answer)
        }
        Call::Begin { path, digest: None } => {
            let id = images.begin().await?;
            Ok(accepted(&path, &id, 0))
        }
        Call::Begin { path, digest: Some(digest) } => {
            let id = images.begin().await?;
            finish(images, &path, &id, &digest, body).await
        }
        Call::Upload { path, id, what } => match what {
            Upload::State => {
                let mut answer = accepted(&path, &id, images.progress(&id).await?);
                *answer.status_mut() = StatusCode::NO_CONTENT;
                Ok(answer)
            }
            Upload::More => {
                let size = images.append(&id, begins_at(headers), body).await?;
                Ok(accepted(&path, &id, size))
            }
            Upload::End(digest) => finish(images, &path, &id, &digest, body).await,
            Upload::Cancel => {
                images.cancel(&id)?;
                Ok(respond::whole(204, BLOB, Bytes::new()))
            }
        },
        _ => Err(Failure::new(405, "UNSUPPORTED", "the registry does not do this")),
    }
}

async fn finish(
    images: &Shelf,
    path: &str,
    id: &str,
    digest: &Digest,
    body: Incoming,
) -> Result<Answer, Failure> {
    images.finish(id, digest, body).await?;
    let mut answer = placed(201, &format!("/v2/{path}/blobs/{digest}"));
    identify(answer.headers_mut(), digest);
    Ok(answer)
}

/// Where the piece of a client that says so begins: `Content-Range: FIRST-LAST`.
fn begins_at(headers: &HeaderMap) -> Option<u64> {
    let said = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let said = said.trim_start_matches("bytes").trim_start_matches([' ', '=']);
    said.split_once('-')?.0.parse().ok()
}

fn accepted(path: &str, id: &str, size: u64) -> Answer {
    let mut answer = placed(202, &format!("/v2/{path}/blobs/uploads/{id}"));
    let headers = answer.headers_mut();
    insert(headers, UPLOAD_UUID, id);
    insert(headers, RANGE, &format!("0-{}", size.saturating_sub(1)));
    answer
}

fn placed(code: u16, place: &str) -> Answer {
    let mut answer = respond::whole(code, BLOB, Bytes::new());
    insert(answer.headers_mut(), LOCATION, place);
    answer
}

fn identify(headers: &mut HeaderMap, digest: &Digest) {
    insert(headers, CONTENT_DIGEST, digest.as_str());
    insert(headers, ETAG, &format!("\"{digest}\""));
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
