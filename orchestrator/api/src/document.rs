//! Documents that are no objects: discovery, OpenAPI, the version.
//!
//! They follow from the table of kinds and the schema alone, so they are made once per process
//! and kept. Clients fetch them at every start; each has an `ETag`, and the OpenAPI v3 group
//! documents are addressed by their hash and may be kept for ever.

mod discovery;
mod entry;
mod gnostic;
mod openapi;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

pub(crate) use discovery::{group_versions, has_reviews, review, versions};
use objects::Status;
use serde_json::{Value, json};

use crate::{accept::entries, custom::Registry, request::DocumentPath};

/// The version of the API that is spoken.
const MINOR: &str = "36";

/// A document and how to send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The `Content-Type`.
    pub content_type: &'static str,
    /// The bytes.
    pub bytes: Arc<[u8]>,
    /// The `ETag`, quotes included; a matching `If-None-Match` is answered with 304.
    pub etag: String,
    /// May the client keep it for ever (its URL carries the hash)?
    pub immutable: bool,
}

/// A form of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    Json,
    Aggregated,
    AggregatedBeta,
    Protobuf,
}

/// A document's bytes and their fingerprint.
type Made = (Arc<[u8]>, String);

/// The documents of one registry that were asked for already. What is served does not change while
/// a registry lives, so each is made once.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    made: Mutex<BTreeMap<String, Made>>,
}

/// Renders a document in a form the `Accept` header names. `query` is the URL's query,
/// `server_address` the `host:port` clients reach this server by.
///
/// # Errors
///
/// 404 for groups that are not served, 406 for forms that are not.
pub fn render_document(
    path: &DocumentPath,
    accept: &str,
    query: &str,
    server_address: &str,
) -> Result<Document, Status> {
    render_document_in(Registry::builtin(), path, accept, query, server_address)
}

/// What can be asked for, as `GET /` lists it.
#[must_use]
pub fn root_paths(registry: &Registry) -> Vec<String> {
    const PLAIN: [&str; 15] = [
        "/.well-known/openid-configuration",
        "/api",
        "/apis",
        "/healthz",
        "/healthz/log",
        "/healthz/ping",
        "/livez",
        "/livez/log",
        "/livez/ping",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    let groups = group_versions(registry).into_iter();
    let remotes = registry.remotes().map(|remote| (remote.group, remote.version));
    let served = groups.chain(remotes).flat_map(|(group, version)| {
        let group_path =
            if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        [format!("{group_path}/{version}"), group_path]
    });
    let all = PLAIN.iter().map(|path| (*path).to_owned()).chain(served);
    all.collect::<std::collections::BTreeSet<String>>().into_iter().collect()
}

/// As [`render_document`], with the kinds of a registry besides the built-in ones.
///
/// # Errors
///
/// As [`render_document`].
pub fn render_document_in(
    registry: &Registry,
    path: &DocumentPath,
    accept: &str,
    query: &str,
    server_address: &str,
) -> Result<Document, Status> {
    let shape = choose(path, accept)?;
    // What names the server's address depends on more than the registry.
    let place = (*path != DocumentPath::CoreVersions).then(|| place(path, shape));
    let made = place.as_ref().and_then(|place| registry.documents.get(place));
    let (bytes, hash) = match made {
        Some(made) => made,
        None => {
            let bytes: Arc<[u8]> = make(registry, path, shape, server_address)?.into();
            let made = (Arc::clone(&bytes), fingerprint(&bytes));
            if let Some(place) = place {
                registry.documents.keep(place, made.clone());
            }
            made
        }
    };
    let content_type = match shape {
        Shape::Json => "application/json",
        Shape::Aggregated => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        Shape::AggregatedBeta => {
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
        }
        Shape::Protobuf => "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
    };
    let immutable = matches!(path, DocumentPath::OpenApiV3Group(..))
        && query.split('&').any(|pair| pair == format!("hash={hash}"));
    Ok(Document { content_type, bytes, etag: format!("\"{hash}\""), immutable })
}

/// Where a document is kept.
fn place(path: &DocumentPath, shape: Shape) -> String {
    format!("{path:?} {shape:?}")
}

/// The first form the client accepts that the document has.
///
/// YAML is made of the JSON form where all answers are; the API's description of itself has none.
fn choose(path: &DocumentPath, accept: &str) -> Result<Shape, Status> {
    let roots = matches!(path, DocumentPath::CoreVersions | DocumentPath::Groups);
    let described = matches!(
        path,
        DocumentPath::OpenApiV2
            | DocumentPath::OpenApiV3
            | DocumentPath::OpenApiV3Group(..)
            | DocumentPath::Version
    );
    if accept.trim().is_empty() {
        return Ok(Shape::Json);
    }
    for entry in entries(accept) {
        let aggregated = entry.as_kind == "APIGroupDiscoveryList";
        let shape = match entry.media {
            "application/json" if aggregated && roots => match entry.version {
                "v2" => Shape::Aggregated,
                "v2beta1" => Shape::AggregatedBeta,
                _ => continue,
            },
            "application/json" | "application/*" | "*/*" if entry.as_kind.is_empty() => Shape::Json,
            "application/yaml" if entry.as_kind.is_empty() && !described => Shape::Json,
            media
                if *path == DocumentPath::OpenApiV2
                    && media.starts_with("application/com.github.proto-openapi.spec.v2") =>
            {
                Shape::Protobuf
            }
            _ => continue,
        };
        return Ok(shape);
    }
    let media = if described { "application/json" } else { "application/json, application/yaml" };
    Err(Status::not_acceptable(format!("only the following media types are accepted: {media}")))
}

impl Shelf {
    fn get(&self, place: &str) -> Option<Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).get(place).cloned()
    }

    fn keep(&self, place: String, made: Made) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(place, made);
    }
}

fn make(
    registry: &Registry,
    path: &DocumentPath,
    shape: Shape,
    server_address: &str,
) -> Result<Vec<u8>, Status> {
    let beta = shape == Shape::AggregatedBeta;
    let value = match path {
        DocumentPath::CoreVersions if shape == Shape::Json => discovery::core(server_address),
        DocumentPath::CoreVersions => discovery::aggregated(registry, true, beta),
        DocumentPath::Groups if shape == Shape::Json => discovery::groups(registry),
        DocumentPath::Groups => discovery::aggregated(registry, false, beta),
        DocumentPath::Group(group) => discovery::group(registry, group),
        DocumentPath::Resources(group, version) => discovery::resources(registry, group, version),
        DocumentPath::OpenApiV2 => {
            if shape == Shape::Protobuf {
                let mut out = gnostic::Gnostic::default();
                openapi::v2(registry, &mut out);
                return Ok(out.finish());
            }
            let mut out = entry::Json::default();
            openapi::v2(registry, &mut out);
            return Ok(out.finish());
        }
        DocumentPath::OpenApiV3 => v3_index(registry)?,
        DocumentPath::OpenApiV3Group(group, version) => match registry.remote(group, version) {
            Some(remote) => remote.openapi_v3.clone().ok_or_else(Status::no_such_path)?,
            None => openapi::v3(registry, group, version),
        },
        DocumentPath::Version => version(),
    };
    serde_json::to_vec(&value).map_err(|err| Status::internal(err.to_string()))
}

/// Where the OpenAPI v3 documents are, each with its hash.
fn v3_index(registry: &Registry) -> Result<Value, Status> {
    let mut paths = serde_json::Map::new();
    for (group, version) in discovery::group_versions(registry) {
        if registry.remote(group, version).is_some_and(|remote| remote.openapi_v3.is_none()) {
            continue;
        }
        let place = discovery::root_path(group, version);
        let path = DocumentPath::OpenApiV3Group(group.to_owned(), version.to_owned());
        // Few are ever read: one that nobody has asked for is not kept for its hash.
        let hash = match registry.documents.get(&self::place(&path, Shape::Json)) {
            Some((_, hash)) => hash,
            None => fingerprint(&make(registry, &path, Shape::Json, "")?),
        };
        let url = format!("/openapi/v3{place}?hash={hash}");
        paths.insert(place.trim_start_matches('/').to_owned(), json!({"serverRelativeURL": url}));
    }
    Ok(json!({"paths": paths}))
}

fn version() -> Value {
    json!({
        "major": "1",
        "minor": MINOR,
        "gitVersion": format!("v1.{MINOR}.0+muster.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": "linux/amd64",
    })
}

/// A short name for bytes; two FNV-1a sums, for caches only.
fn fingerprint(bytes: &[u8]) -> String {
    let sum = |start: u64| {
        bytes
            .iter()
            .fold(start, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    format!("{:016X}{:016X}", sum(0xcbf2_9ce4_8422_2325), sum(0x6c62_272e_07bb_0142))
}

#[cfg(test)]
mod tests;
