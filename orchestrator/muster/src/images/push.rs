//! Sends images to the master's registry.
//!
//! Spec: OCI distribution 1.1, push in pieces. Blobs go first, manifests after all they name.

use std::io::{Read, Seek};

use anyhow::{Context, Result, bail, ensure};
use api::registry::{Digest, Reference};
use bytes::Bytes;
use http::{Method, StatusCode, header};
use runtime::Client;
use runtime::client::RawResponse;
use serde_json::Value;

use super::archive::{Archive, Blob, Image};

/// A piece of a blob: short enough to pass a slow line within a request's time.
const PIECE_BYTES: usize = 4 << 20;
const BYTES: &str = "application/octet-stream";

/// What an image took.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    /// Bytes of configuration and layers.
    pub(super) size_bytes: u64,
    /// Bytes that were not there yet.
    pub(super) sent_bytes: u64,
}

/// Puts an image under a name.
pub(super) async fn push<F: Read + Seek>(
    client: &Client,
    name: &Reference,
    image: &Image,
    archive: &mut Archive<F>,
) -> Result<Pushed> {
    let mut pushed = Pushed::default();
    for blob in &image.blobs {
        pushed.size_bytes += blob.size_bytes;
        if !is_there(client, name, &blob.digest).await? {
            send(client, name, blob, archive).await?;
            pushed.sent_bytes += blob.size_bytes;
        }
    }
    let last = image.manifests.len().saturating_sub(1);
    for (number, (digest, bytes)) in image.manifests.iter().enumerate() {
        let at = match &name.tag {
            Some(tag) if number == last => tag.as_str(),
            _ => digest.as_str(),
        };
        let path = path(name, &format!("manifests/{at}"));
        let answer = client.raw_send(Method::PUT, &path, BYTES, bytes.clone()).await?;
        ensure!(answer.status == StatusCode::CREATED, "{}", refusal(&answer));
    }
    Ok(pushed)
}

/// Takes a name away.
pub(super) async fn remove(client: &Client, name: &Reference) -> Result<()> {
    let at = name.digest.as_ref().map(Digest::as_str).or(name.tag.as_deref());
    let path = path(name, &format!("manifests/{}", at.unwrap_or_default()));
    let answer = client.raw_send(Method::DELETE, &path, BYTES, Bytes::new()).await?;
    ensure!(answer.status.is_success(), "cannot remove {name}: {}", refusal(&answer));
    Ok(())
}

fn path(name: &Reference, rest: &str) -> String {
    format!("/v2/{}/{rest}?ns={}", name.repository, name.registry)
}

async fn is_there(client: &Client, name: &Reference, digest: &Digest) -> Result<bool> {
    let path = path(name, &format!("blobs/{digest}"));
    let answer = client.raw_send(Method::HEAD, &path, BYTES, Bytes::new()).await?;
    match answer.status {
        StatusCode::OK => Ok(true),
        StatusCode::NOT_FOUND => Ok(false),
        status => bail!("the master refuses ({status}); are these an admin's credentials?"),
    }
}

async fn send<F: Read + Seek>(
    client: &Client,
    name: &Reference,
    blob: &Blob,
    archive: &mut Archive<F>,
) -> Result<()> {
    let path = path(name, "blobs/uploads/");
    let answer = client.raw_send(Method::POST, &path, BYTES, Bytes::new()).await?;
    ensure!(answer.status == StatusCode::ACCEPTED, "{}", refusal(&answer));
    let mut place = location(&answer)?;
    let mut reader = archive.reader(blob)?;
    loop {
        let mut piece = Vec::new();
        let limit = u64::try_from(PIECE_BYTES)?;
        reader.by_ref().take(limit).read_to_end(&mut piece).context("reading the archive")?;
        if piece.is_empty() {
            break;
        }
        let answer = client.raw_send(Method::PATCH, &place, BYTES, piece.into()).await?;
        ensure!(answer.status == StatusCode::ACCEPTED, "{}", refusal(&answer));
        place = location(&answer)?;
    }
    let end = format!("{place}?digest={}", blob.digest);
    let answer = client.raw_send(Method::PUT, &end, BYTES, Bytes::new()).await?;
    ensure!(answer.status == StatusCode::CREATED, "{}: {}", blob.digest, refusal(&answer));
    Ok(())
}

fn location(answer: &RawResponse) -> Result<String> {
    let said = answer.headers.get(header::LOCATION).and_then(|place| place.to_str().ok());
    Ok(said.context("the master does not say where to send the image")?.to_owned())
}

/// What the master says when it refuses.
pub(super) fn refusal(answer: &RawResponse) -> String {
    let told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let message = told.pointer("/errors/0/message").or_else(|| told.get("message"));
    match message.and_then(Value::as_str) {
        Some(message) => message.to_owned(),
        None => answer.status.to_string(),
    }
}
