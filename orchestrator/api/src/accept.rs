//! In which form the client wants its answer.

use objects::Status;

use crate::{protobuf, request::Request};

const YAML: &str = "application/yaml";

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Plain JSON.
    Json,
    /// YAML: JSON that is written anew on its way out.
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    /// The media type without parameters.
    pub(crate) media: &'a str,
    /// `as=`, `g=`, `v=`.
    pub(crate) as_kind: &'a str,
    pub(crate) group: &'a str,
    pub(crate) version: &'a str,
    /// `stream=`: the form of a watch's events.
    stream: &'a str,
}

impl Entry<'_> {
    /// How narrow its media type is; wildcards come after what they stand for.
    fn breadth(&self) -> u8 {
        match self.media {
            "*/*" => 2,
            media if media.ends_with("/*") => 1,
            _ => 0,
        }
    }

    /// Does it ask for the object as another kind?
    fn converts(&self) -> bool {
        !(self.as_kind.is_empty() && self.group.is_empty() && self.version.is_empty())
    }
}

/// The entries of an `Accept` header, in the client's order.
pub(crate) fn entries(accept: &str) -> impl Iterator<Item = Entry<'_>> {
    accept.split(',').map(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let media = parts.next().unwrap_or("");
        let mut found = Entry { media, ..Entry::default() };
        for part in parts {
            match part.split_once('=') {
                Some(("as", value)) => found.as_kind = value,
                Some(("g", value)) => found.group = value,
                Some(("v", value)) => found.version = value,
                Some(("stream", value)) => found.stream = value,
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
    ranked.sort_by_key(|(rank, entry)| (-rank, entry.breadth()));
    ranked.into_iter().map(|(_, entry)| entry).collect()
}

/// What of a kind can be told in protobuf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InProtobuf {
    Nothing,
    /// Its metadata: so it is with custom kinds, whose fields have no numbers.
    Metadata,
    All,
}

/// Chooses the first form of an `Accept` header that is served; an empty header means JSON.
///
/// # Errors
///
/// 406 when none is served.
pub fn negotiate(accept: &str) -> Result<Form, Status> {
    choose(accept, InProtobuf::Nothing)
}

/// As [`negotiate`], for an answer about a resource, which may have a protobuf form.
///
/// # Errors
///
/// 406 when no form is served.
pub fn negotiate_resource(request: &Request, accept: &str) -> Result<Form, Status> {
    if !accept.contains(protobuf::MEDIA_TYPE) {
        return choose(accept, InProtobuf::Nothing);
    }
    let whole = matches!(request.subresource.as_str(), "" | "status");
    if !protobuf::has_form(&request.api_version(), request.kind.kind) {
        return choose(accept, InProtobuf::Metadata);
    }
    if whole {
        return choose(accept, InProtobuf::All);
    }
    // Parts of objects are answered as they are, and clients take JSON instead.
    choose(accept, InProtobuf::Nothing).or(Ok(Form::Json))
}

fn choose(accept: &str, protobuf: InProtobuf) -> Result<Form, Status> {
    if accept.trim().is_empty() {
        return Ok(Form::Json);
    }
    ranked(accept).iter().find_map(|entry| form_of(entry, protobuf)).ok_or_else(refused)
}

/// The form that one entry asks for, when it is served.
fn form_of(entry: &Entry<'_>, protobuf: InProtobuf) -> Option<Form> {
    let in_protobuf = entry.media == protobuf::MEDIA_TYPE && protobuf != InProtobuf::Nothing;
    let in_yaml = entry.media == YAML;
    let in_json = matches!(entry.media, "application/json" | "application/*" | "*/*");
    if !(in_protobuf || in_yaml || in_json) || !matches!(entry.stream, "" | "watch") {
        return None;
    }
    if !entry.converts() {
        return match (in_protobuf, in_yaml) {
            (true, _) => (protobuf == InProtobuf::All).then_some(Form::Protobuf),
            (_, true) => Some(Form::Yaml),
            _ => Some(Form::Json),
        };
    }
    let version = match (entry.group, entry.version) {
        ("meta.k8s.io", "v1") => MetaVersion::V1,
        ("meta.k8s.io", "v1beta1") => MetaVersion::V1Beta1,
        _ => return None,
    };
    match entry.as_kind {
        "Table" if !in_protobuf => Some(Form::Table(version)),
        "PartialObjectMetadata" | "PartialObjectMetadataList" if in_protobuf => {
            Some(Form::PartialProtobuf(version))
        }
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Some(Form::Partial(version)),
        _ => None,
    }
}

/// Is what a client likes best of all that is served YAML, whatever the object is shown as?
#[must_use]
pub fn wants_yaml(accept: &str) -> bool {
    let best = || {
        let ranked = ranked(accept);
        let best = ranked.iter().find(|entry| form_of(entry, InProtobuf::All).is_some());
        best.is_some_and(|entry| entry.media == YAML)
    };
    accept.contains(YAML) && best()
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
            ("*/*, application/yaml", Some(Form::Yaml)),
            ("application/*, application/yaml", Some(Form::Yaml)),
            ("*/*;q=0.9, application/yaml;q=0.1", Some(Form::Json)),
            ("text/html, application/*;q=0.1", Some(Form::Json)),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Some(Form::Json)),
            ("application/json;stream=watch", Some(Form::Json)),
            ("application/json;stream=other", None),
            ("application/json;charset=utf-8", Some(Form::Json)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io", Some(Form::Table(MetaVersion::V1))),
            ("application/yaml;as=Table;v=v1;g=meta.k8s.io", Some(Form::Table(MetaVersion::V1))),
            ("*/*;as=Table;v=v1;g=meta.k8s.io", Some(Form::Table(MetaVersion::V1))),
            ("application/json;as=Table;v=v1", None),
            ("application/json;as=Table;v=v1;g=example.com", None),
            ("application/json;as=Pod;v=v1;g=meta.k8s.io", None),
            ("application/json;v=v1;g=meta.k8s.io", None),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io;q=0.1, application/json",
                Some(Form::Json),
            ),
            (
                "application/json;as=Other;v=v1;g=meta.k8s.io, \
                 application/json;as=Table;v=v1beta1;g=meta.k8s.io",
                Some(Form::Table(MetaVersion::V1Beta1)),
            ),
            ("application", None),
            ("image/*", None),
            ("text/html", None),
            ("application/vnd.kubernetes.protobuf", None),
        ] {
            assert_eq!(negotiate(accept).ok(), form, "{accept}");
            let yaml = form == Some(Form::Yaml) || accept.starts_with("application/yaml;as=");
            assert_eq!(wants_yaml(accept), yaml, "{accept}");
        }
    }

    #[test]
    fn protobuf_is_for_whole_objects_of_kinds_that_have_it() {
        const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
        const MACHINES: &str = "/apis/muster.dev/v1alpha1/machines";
        let partial = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
        let either = format!("{PROTOBUF}, application/json");
        let table = format!("{PROTOBUF};as=Table;g=meta.k8s.io;v=v1");
        for (path, accept, form) in [
            ("/api/v1/pods", PROTOBUF, Some(Form::Protobuf)),
            ("/api/v1/pods", "application/json", Some(Form::Json)),
            ("/api/v1/pods", &either, Some(Form::Protobuf)),
            ("/api/v1/pods", "*/*, application/vnd.kubernetes.protobuf", Some(Form::Protobuf)),
            ("/api/v1/namespaces/a/pods/b/status", PROTOBUF, Some(Form::Protobuf)),
            ("/apis/apps/v1/namespaces/a/deployments/b/scale", PROTOBUF, Some(Form::Json)),
            (MACHINES, PROTOBUF, None),
            (MACHINES, &either, Some(Form::Json)),
            (MACHINES, &partial, Some(Form::PartialProtobuf(MetaVersion::V1))),
            ("/api/v1/pods", &partial, Some(Form::PartialProtobuf(MetaVersion::V1))),
            ("/api/v1/pods", &table, None),
        ] {
            let Ok(crate::Route::Resource(request)) = crate::parse_request("GET", path, "") else {
                panic!("{path}");
            };
            assert_eq!(negotiate_resource(&request, accept).ok(), form, "{path} {accept}");
        }
    }
}
