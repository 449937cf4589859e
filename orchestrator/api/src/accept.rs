//! In which form the client wants its answer.

use objects::Status;

use crate::{protobuf, request::Request};

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Plain JSON.
    Json,
    /// JSON for a client that asked for YAML, of which it is a part.
    Yaml,
    /// Protobuf.
    Protobuf,
    /// `PartialObjectMetadata` or its list in protobuf, of this version of `meta.k8s.io`.
    PartialProtobuf(MetaVersion),
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

/// The entries of an `Accept` header, the client's favourites first.
fn ranked(accept: &str) -> Vec<Entry<'_>> {
    let mut ranked: Vec<(i64, Entry<'_>)> = accept
        .split(',')
        .zip(entries(accept))
        .map(|(text, entry)| {
            let quality = text.split(';').find_map(|part| part.trim().strip_prefix("q="));
            let quality = quality.and_then(|quality| quality.trim().parse::<f64>().ok());
            // Thousandths are as fine as the header knows.
            let thousandths = (quality.unwrap_or(1.0) * 1000.0).clamp(0.0, 1000.0);
            #[expect(clippy::cast_possible_truncation, reason = "between 0 and 1000")]
            let rank = thousandths as i64;
            (rank, entry)
        })
        .filter(|(rank, _)| *rank > 0)
        .collect();
    ranked.sort_by_key(|(rank, _)| -rank);
    ranked.into_iter().map(|(_, entry)| entry).collect()
}

/// Chooses the first form of an `Accept` header that is served; an empty header means JSON.
///
/// # Errors
///
/// 406 when none is served.
pub fn negotiate(accept: &str) -> Result<Form, Status> {
    choose(accept, false)
}

/// As [`negotiate`], for an answer about a resource, which may have a protobuf form.
///
/// # Errors
///
/// 406 when no form is served.
pub fn negotiate_resource(request: &Request, accept: &str) -> Result<Form, Status> {
    if !accept.contains(protobuf::MEDIA_TYPE) {
        return choose(accept, false);
    }
    // Parts of objects are answered as they are, and clients take JSON instead.
    let whole = matches!(request.subresource.as_str(), "" | "status");
    let has_form = whole && protobuf::has_form(&request.api_version(), request.kind.kind);
    match choose(accept, true)? {
        Form::Protobuf if !has_form => choose(accept, false).or(Ok(Form::Json)),
        form => Ok(form),
    }
}

fn choose(accept: &str, protobuf: bool) -> Result<Form, Status> {
    if accept.trim().is_empty() {
        return Ok(Form::Json);
    }
    for entry in ranked(accept) {
        let partial =
            matches!(entry.as_kind, "PartialObjectMetadata" | "PartialObjectMetadataList");
        match entry.media {
            "application/json" | "application/*" | "*/*" => {}
            "application/yaml" if entry.as_kind.is_empty() => return Ok(Form::Yaml),
            protobuf::MEDIA_TYPE if protobuf && (entry.as_kind.is_empty() || partial) => {}
            _ => continue,
        }
        let in_protobuf = entry.media == protobuf::MEDIA_TYPE;
        let version = match (entry.group, entry.version) {
            ("meta.k8s.io", "v1") => Some(MetaVersion::V1),
            ("meta.k8s.io", "v1beta1") => Some(MetaVersion::V1Beta1),
            _ => None,
        };
        match (entry.as_kind, version) {
            ("", _) if in_protobuf => return Ok(Form::Protobuf),
            ("", _) => return Ok(Form::Json),
            ("Table", Some(version)) => return Ok(Form::Table(version)),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", Some(version)) => {
                let form = if in_protobuf { Form::PartialProtobuf } else { Form::Partial };
                return Ok(form(version));
            }
            _ => {}
        }
    }
    Err(refused())
}

/// 406: what the client accepts is not served.
#[must_use]
pub fn refused() -> Status {
    Status::not_acceptable(
        "only the following media types are accepted: application/json, application/yaml, \
         application/vnd.kubernetes.protobuf",
    )
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
            ("application/json;q=0.1, application/yaml;q=0.9", Some(Form::Yaml)),
            ("application/json;q=0, */*;q=0.5", Some(Form::Json)),
            ("text/html", None),
            ("application/vnd.kubernetes.protobuf", None),
        ] {
            assert_eq!(negotiate(accept).ok(), form, "{accept}");
        }
    }

    #[test]
    fn protobuf_is_for_whole_objects_of_kinds_that_have_it() {
        const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
        let partial = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
        for (path, accept, form) in [
            ("/api/v1/pods", PROTOBUF, Form::Protobuf),
            ("/api/v1/pods", "application/json", Form::Json),
            ("/api/v1/namespaces/a/pods/b/status", PROTOBUF, Form::Protobuf),
            ("/apis/apps/v1/namespaces/a/deployments/b/scale", PROTOBUF, Form::Json),
            ("/apis/muster.dev/v1alpha1/machines", PROTOBUF, Form::Json),
            ("/api/v1/pods", &partial, Form::PartialProtobuf(MetaVersion::V1)),
        ] {
            let Ok(crate::Route::Resource(request)) = crate::parse_request("GET", path, "") else {
                panic!("{path}");
            };
            assert_eq!(negotiate_resource(&request, accept).unwrap(), form, "{path} {accept}");
        }
    }
}
