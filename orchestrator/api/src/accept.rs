//! In which form the client wants its answer.

use objects::Status;

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Plain JSON.
    Json,
    /// A `Table` of this version of `meta.k8s.io`.
    Table(MetaVersion),
    /// `PartialObjectMetadata` or its list, of this version of `meta.k8s.io`.
    Partial(MetaVersion),
}

/// A version of `meta.k8s.io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaVersion {
    /// `meta.k8s.io/v1`.
    V1,
    /// `meta.k8s.io/v1beta1`.
    V1Beta1,
}

impl MetaVersion {
    /// The `apiVersion`.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// One entry of an `Accept` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    /// The media type without parameters.
    pub(crate) media: &'a str,
    /// `as=`, `g=`, `v=`.
    pub(crate) as_kind: &'a str,
    pub(crate) group: &'a str,
    pub(crate) version: &'a str,
}

/// The entries of an `Accept` header, in the client's order.
pub(crate) fn entries(accept: &str) -> impl Iterator<Item = Entry<'_>> {
    accept.split(',').map(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let media = parts.next().unwrap_or("");
        let mut found = Entry { media, as_kind: "", group: "", version: "" };
        for part in parts {
            match part.split_once('=') {
                Some(("as", value)) => found.as_kind = value,
                Some(("g", value)) => found.group = value,
                Some(("v", value)) => found.version = value,
                _ => {}
            }
        }
        found
    })
}

/// Chooses the first form of an `Accept` header that is served; an empty header means JSON.
///
/// # Errors
///
/// 406 when none is served.
pub fn negotiate(accept: &str) -> Result<Form, Status> {
    if accept.trim().is_empty() {
        return Ok(Form::Json);
    }
    for entry in entries(accept) {
        if !matches!(entry.media, "application/json" | "application/*" | "*/*") {
            continue;
        }
        let version = match (entry.group, entry.version) {
            ("meta.k8s.io", "v1") => Some(MetaVersion::V1),
            ("meta.k8s.io", "v1beta1") => Some(MetaVersion::V1Beta1),
            _ => None,
        };
        match (entry.as_kind, version) {
            ("", _) => return Ok(Form::Json),
            ("Table", Some(version)) => return Ok(Form::Table(version)),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", Some(version)) => {
                return Ok(Form::Partial(version));
            }
            _ => {}
        }
    }
    Err(Status::not_acceptable(
        "only the following media types are accepted: application/json, also with \
         ;as=Table;g=meta.k8s.io;v=v1 or ;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_is_served_wins() {
        for (accept, form) in [
            ("", Some(Form::Json)),
            ("*/*", Some(Form::Json)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                Some(Form::Table(MetaVersion::V1)),
            ),
            ("application/json;as=Table;v=v9;g=meta.k8s.io, application/json", Some(Form::Json)),
            (
                "application/json;as=Table;g=meta.k8s.io;v=v1beta1",
                Some(Form::Table(MetaVersion::V1Beta1)),
            ),
            ("application/vnd.kubernetes.protobuf, */*", Some(Form::Json)),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Some(Form::Partial(MetaVersion::V1)),
            ),
            ("text/html", None),
        ] {
            assert_eq!(negotiate(accept).ok(), form, "{accept}");
        }
    }
}
