//! Bodies: from bytes to a value, with what was unknown or doubled.

use objects::Status;
use serde_json::Value;

use crate::{decode, request::Request};

/// A request's body and the header that says what it is.
#[derive(Debug, Clone, Copy)]
pub struct Body<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// The `Content-Type` header; empty means JSON.
    pub content_type: &'a str,
}

/// A body as a value.
#[derive(Debug, Clone)]
pub(crate) struct Decoded {
    /// The object, without what the schema does not know.
    pub(crate) value: Value,
    /// One warning for each unknown or doubled field.
    pub(crate) warnings: Vec<String>,
}

impl Body<'_> {
    /// The media type without parameters.
    #[must_use]
    pub fn media_type(&self) -> &str {
        match self.content_type.split(';').next().unwrap_or("").trim() {
            "" => "application/json",
            media => media,
        }
    }
}

/// Decodes an object of the request's kind.
pub(crate) fn decode(request: &Request, body: &Body<'_>) -> Result<Decoded, Status> {
    decode::decode_object(request, body)
}

/// Decodes an apply configuration, which is YAML or JSON whatever the header says.
pub(crate) fn decode_apply(request: &Request, body: &Body<'_>) -> Result<Decoded, Status> {
    let yaml = Body { bytes: body.bytes, content_type: "application/yaml" };
    decode::decode_applied(request, &yaml)
}
