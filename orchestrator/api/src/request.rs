//! What a request asks for: method, path and query as one value.
//!
//! Kubernetes paths are regular, so one parser serves every kind. What the parser refuses it
//! answers with the `Status` upstream would.

mod query;

use std::sync::Arc;
use std::time::Duration;

use objects::{
    FieldSelector, Kind, Selector, Status,
    kind::{self, GroupVersion},
};

use crate::custom::{CustomVersion, Registry};

/// What is done to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Reads one object.
    Get,
    /// Reads many.
    List,
    /// Follows changes.
    Watch,
    /// Makes an object, or posts to a subresource.
    Create,
    /// Replaces one.
    Update,
    /// Changes parts of one.
    Patch,
    /// Removes one.
    Delete,
    /// Removes many.
    DeleteCollection,
}

/// What becomes of fields nobody knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped and named in a warning.
    #[default]
    Warn,
    /// The request fails.
    Strict,
}

/// The query parameters of a request to a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Which objects by label.
    pub label_selector: Selector,
    /// Which objects by field.
    pub field_selector: FieldSelector,
    /// `resourceVersion` as given; empty when absent.
    pub resource_version: String,
    /// `resourceVersionMatch`: empty, `Exact` or `NotOlderThan`.
    pub resource_version_match: String,
    /// At most this many objects in a list; `None` = all.
    pub limit: Option<u64>,
    /// Where to go on with a list; empty = from the start.
    pub continue_token: String,
    /// Send bookmarks in a watch?
    pub allow_watch_bookmarks: bool,
    /// Begin a watch with all objects and a bookmark that ends them?
    pub send_initial_events: Option<bool>,
    /// When the server ends a watch or a list.
    pub timeout_seconds: Option<u64>,
    /// Do everything but store?
    pub dry_run: bool,
    /// Who owns the fields that change.
    pub field_manager: String,
    /// What becomes of unknown fields.
    pub field_validation: FieldValidation,
    /// Take fields from other managers?
    pub force: bool,
    /// Indent the answer?
    pub pretty: bool,
    /// `includeObject` of tables: empty, `None`, `Metadata` or `Object`.
    pub include_object: String,
    /// Seconds a pod gets to end; `None` = its own wish.
    pub grace_period_seconds: Option<i64>,
    /// `Foreground`, `Background` or `Orphan`; empty = the kind's own.
    pub propagation_policy: String,
    /// Every parameter as it came, decoded, for subresources such as `log`.
    pub raw: Vec<(String, String)>,
}

/// A request to a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub verb: Verb,
    /// With which kind.
    pub kind: &'static Kind,
    /// In which group and version the client speaks.
    pub served: GroupVersion,
    /// What the definition of a custom kind says of this version; `None` for built-in kinds.
    pub custom: Option<Arc<CustomVersion>>,
    /// In which namespace; empty for all, or for kinds without.
    pub namespace: String,
    /// Which object; empty for the collection.
    pub name: String,
    /// Which part of it; empty for the object itself.
    pub subresource: String,
    /// What follows the subresource in the path (`proxy`), without a leading slash.
    pub rest: String,
    /// The query parameters.
    pub options: Options,
}

/// A document that is no object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentPath {
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/GROUP`.
    Group(String),
    /// `/api/v1` or `/apis/GROUP/VERSION`: group and version.
    Resources(String, String),
    /// `/openapi/v2`, and its older name for protobuf.
    OpenApiV2,
    /// `/openapi/v3`.
    OpenApiV3,
    /// `/openapi/v3/api/v1` or `/openapi/v3/apis/GROUP/VERSION`: group and version.
    OpenApiV3Group(String, String),
    /// `/version`.
    Version,
}

/// Where a review is posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewPath {
    /// The API group.
    pub group: String,
    /// The resource name, `selfsubjectaccessreviews`.
    pub resource: String,
    /// The kind, `SelfSubjectAccessReview`.
    pub kind: &'static str,
    /// The namespace, for those that are posted to one; else empty.
    pub namespace: String,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// To objects.
    Resource(Box<Request>),
    /// To a document, by GET.
    Document(DocumentPath),
    /// To `/healthz`, `/livez` or `/readyz` (or a check below them).
    Health(String),
    /// To a review: posted, answered, never stored.
    Review(ReviewPath),
    /// Somewhere else: the enrolment door, `/metrics`, or nowhere.
    Other(String),
}

/// Undoes percent-encoding outside of queries; what is no encoding stays as it is.
#[must_use]
pub fn decode_path(text: &str) -> String {
    query::decode(text, false)
}

/// Reads method, path and query (without `?`).
///
/// # Errors
///
/// 404 for resources nobody knows, 405 for verbs a resource does not have, 400 for query
/// parameters that cannot be read.
pub fn parse_request(method: &str, path: &str, query: &str) -> Result<Route, Status> {
    parse_request_in(Registry::builtin(), method, path, query)
}

/// As [`parse_request`], with the kinds of a registry besides the built-in ones.
///
/// # Errors
///
/// As [`parse_request`].
pub fn parse_request_in(
    registry: &Registry,
    method: &str,
    path: &str,
    query: &str,
) -> Result<Route, Status> {
    let trimmed = path.trim_end_matches('/');
    let mut segments = Vec::new();
    for segment in trimmed.split('/').skip(1) {
        segments.push(query::decode(segment, false));
    }
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["api", "v1", rest @ ..] if !rest.is_empty() => {
            resource(registry, method, ("", "v1"), rest, query)
        }
        ["apis", group, version, rest @ ..] if !rest.is_empty() => {
            resource(registry, method, (group, version), rest, query)
        }
        ["healthz" | "livez" | "readyz", ..] => Ok(Route::Health(trimmed.to_owned())),
        other => match document(registry, other) {
            Some(_) if !matches!(method, "GET" | "HEAD") => Err(not_allowed()),
            Some(found) => Ok(Route::Document(found)),
            None => Ok(Route::Other(path.to_owned())),
        },
    }
}

fn document(registry: &Registry, words: &[&str]) -> Option<DocumentPath> {
    let known = |group: &str, version: &str| {
        registry.kinds_in(group, version).next().is_some()
            || crate::document::has_reviews(group, version)
            || registry.remote(group, version).is_some()
    };
    let pair = |group: &str, version: &str| (group.to_owned(), version.to_owned());
    Some(match words {
        ["api"] => DocumentPath::CoreVersions,
        ["api", "v1"] => DocumentPath::Resources(String::new(), "v1".to_owned()),
        ["apis"] => DocumentPath::Groups,
        ["apis", group] if crate::document::versions(registry, group).next().is_some() => {
            DocumentPath::Group((*group).to_owned())
        }
        ["apis", group, version] if !group.is_empty() && known(group, version) => {
            let (group, version) = pair(group, version);
            DocumentPath::Resources(group, version)
        }
        ["openapi", "v2"] | ["swagger-2.0.0.pb-v1" | "swagger.json"] => DocumentPath::OpenApiV2,
        ["openapi", "v3"] => DocumentPath::OpenApiV3,
        ["openapi", "v3", "api", "v1"] => {
            DocumentPath::OpenApiV3Group(String::new(), "v1".to_owned())
        }
        ["openapi", "v3", "apis", group, version] if known(group, version) => {
            let (group, version) = pair(group, version);
            DocumentPath::OpenApiV3Group(group, version)
        }
        ["version"] => DocumentPath::Version,
        _ => return None,
    })
}

fn resource(
    registry: &Registry,
    method: &str,
    (group, version): (&str, &str),
    words: &[&str],
    query: &str,
) -> Result<Route, Status> {
    if let Some(review) = review(group, version, words) {
        return if method == "POST" { Ok(Route::Review(review)) } else { Err(not_allowed()) };
    }
    let (words, watch_path) = match words {
        ["watch", rest @ ..] if !rest.is_empty() => (rest, true),
        _ => (words, false),
    };
    let find =
        |plural: &str| registry.resource(group, version, plural).ok_or_else(Status::no_such_path);
    let ((kind, custom), namespace, tail): (_, &str, &[&str]) = match words {
        // `status` and `finalize` are parts of the namespace itself, all else lives inside it.
        ["namespaces", name, part @ ("status" | "finalize"), ..] if group.is_empty() => {
            (find("namespaces")?, "", &[name, part])
        }
        ["namespaces", namespace, plural, tail @ ..] => (find(plural)?, namespace, tail),
        [plural, tail @ ..] => (find(plural)?, "", tail),
        [] => return Err(Status::no_such_path()),
    };
    let (name, subresource, rest) = match tail {
        [] => ("", "", String::new()),
        [name] => (*name, "", String::new()),
        [name, subresource, rest @ ..] => (*name, *subresource, rest.join("/")),
    };
    if kind.namespaced == namespace.is_empty() && !(kind.namespaced && name.is_empty()) {
        return Err(Status::no_such_path());
    }
    if !subresource.is_empty() && !kind.has_subresource(subresource) {
        return Err(Status::no_such_path());
    }
    // An encoded slash would make one name look like two to whoever joins them again.
    if [namespace, name].iter().any(|part| part.contains('/') || matches!(*part, "." | "..")) {
        return Err(Status::no_such_path());
    }
    let raw = query::parse(query);
    let watch = watch_path || query::flag(&raw, "watch")?.unwrap_or(false);
    let verb = verb(method, name, subresource, watch)?;
    if verb == Verb::Create && kind.namespaced && namespace.is_empty() {
        return Err(not_allowed());
    }
    let options = query::options(kind, verb, raw)?;
    let served = served(kind, group, version);
    let (namespace, name, subresource) =
        (namespace.to_owned(), name.to_owned(), subresource.to_owned());
    Ok(Route::Resource(Box::new(Request {
        verb,
        kind,
        served,
        custom,
        namespace,
        name,
        subresource,
        rest,
        options,
    })))
}

fn review(group: &str, version: &str, words: &[&str]) -> Option<ReviewPath> {
    let (namespace, plural) = match words {
        [plural] => ("", *plural),
        ["namespaces", namespace, plural] => (*namespace, *plural),
        _ => return None,
    };
    let (kind, namespaced) = crate::document::review(group, version, plural)?;
    (namespaced != namespace.is_empty()).then(|| ReviewPath {
        group: group.to_owned(),
        resource: plural.to_owned(),
        kind,
        namespace: namespace.to_owned(),
    })
}

/// The group and version of the row, or of the alias, that the client used.
fn served(kind: &'static Kind, group: &str, version: &str) -> GroupVersion {
    let own = GroupVersion { group: kind.group, version: kind.version };
    let used = |alias: &GroupVersion| (alias.group, alias.version) == (group, version);
    kind.aliases.iter().copied().find(used).unwrap_or(own)
}

pub(crate) fn verb(
    method: &str,
    name: &str,
    subresource: &str,
    watch: bool,
) -> Result<Verb, Status> {
    let collection = name.is_empty();
    Ok(match method {
        "GET" | "HEAD" if !subresource.is_empty() => Verb::Get,
        "GET" | "HEAD" if watch => Verb::Watch,
        "GET" | "HEAD" if collection => Verb::List,
        "GET" | "HEAD" => Verb::Get,
        "POST" if collection || !subresource.is_empty() => Verb::Create,
        "PUT" if !collection => Verb::Update,
        "PATCH" if !collection => Verb::Patch,
        "DELETE" if collection => Verb::DeleteCollection,
        "DELETE" if subresource.is_empty() => Verb::Delete,
        _ => return Err(not_allowed()),
    })
}

/// 405: the resource is there, but not for this.
#[must_use]
pub fn not_allowed() -> Status {
    Status::method_not_allowed("the server does not allow this method on the requested resource")
}

/// Reads a length of time as Go writes it: `1m30s`, `300ms`, `0`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(digits)?;
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(unit)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = number.parse::<f64>().ok()? * seconds;
        total = total.checked_add(Duration::try_from_secs_f64(part).ok()?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

impl Verb {
    /// The word authorization and messages use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// Does it change anything?
    #[must_use]
    pub fn writes(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

impl Request {
    /// `pods`, or `pods/status`: the resource as messages name it.
    #[must_use]
    pub fn resource(&self) -> String {
        if self.subresource.is_empty() {
            self.kind.plural.to_owned()
        } else {
            format!("{}/{}", self.kind.plural, self.subresource)
        }
    }

    /// The `apiVersion` the client speaks.
    #[must_use]
    pub fn api_version(&self) -> String {
        kind::join_api_version(self.served.group, self.served.version)
    }

    /// Does the client speak another version than objects are stored in?
    #[must_use]
    pub fn is_alias(&self) -> bool {
        if let Some(custom) = &self.custom
            && custom.shapes_reads()
        {
            return true;
        }
        (self.served.group, self.served.version) != (self.kind.group, self.kind.version)
    }

    /// Is the request about an object (or collection) itself and not a part of it?
    #[must_use]
    pub fn is_main(&self) -> bool {
        self.subresource.is_empty()
    }
}

#[cfg(test)]
mod tests;
