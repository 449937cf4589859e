//! The words of an image registry: references, digests, manifests, and what a request asks.
//!
//! It knows neither disk nor sockets; `apiserver` keeps the bytes and `muster images` sends them.
//! What a request names is always the whole name of an image, registry included: container
//! runtimes that use us as a mirror say the registry they meant in the parameter `ns`.
//!
//! Spec: OCI distribution 1.1 and OCI image 1.1; Docker's image manifest version 2, schema 2.
//!
//! *Limits*: SHA-256 digests only, no referrers, no mounting of blobs between repositories, which
//! share all blobs anyway.

mod call;
mod manifest;
mod reference;

pub use call::{At, Call, Failure, Range, Upload, parse_call, parse_range};
pub use manifest::{Descriptor, MANIFEST_BYTES_MAX, Manifest, ManifestError, media_type};
pub use reference::{Digest, Reference, ReferenceError};
