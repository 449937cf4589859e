//! What a request to the registry asks.

use crate::request::decode_path;

use super::reference::{check_tag, split_name};
use super::{Digest, ReferenceError};

/// Which manifest of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// The one a tag points at.
    Tag(String),
    /// The one with this digest.
    Digest(Digest),
}

/// What is done with an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upload {
    /// How far is it?
    State,
    /// Here is more.
    More,
    /// That is all, perhaps with a last piece, and this must be its digest.
    End(Digest),
    /// Forget it.
    Cancel,
}

/// A request, understood. `name` is always registry and repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Is this a registry?
    Base,
    /// Which repositories are there?
    Catalog,
    /// Which tags has a repository?
    Tags {
        /// The repository.
        name: String,
    },
    /// Give a manifest.
    Manifest {
        /// The repository.
        name: String,
        /// Which.
        at: At,
    },
    /// Take a manifest.
    PutManifest {
        /// The repository.
        name: String,
        /// Where it goes.
        at: At,
    },
    /// Forget an image.
    Delete {
        /// The repository.
        name: String,
        /// Which.
        at: At,
    },
    /// Give a blob.
    Blob {
        /// Which.
        digest: Digest,
    },
    /// Take a blob, in one or many pieces.
    Begin {
        /// The repository, as the client wrote it, for the answer's location.
        path: String,
        /// Its digest, when all of it comes with this request.
        digest: Option<Digest>,
    },
    /// Go on with an upload.
    Upload {
        /// The repository, as the client wrote it.
        path: String,
        /// Which upload.
        id: String,
        /// What with it.
        what: Upload,
    },
}

/// A refusal, in the words of the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status.
    pub status: u16,
    /// `NAME_INVALID` and the like.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Failure {
    /// A refusal.
    #[must_use]
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn unsupported() -> Self {
        Self::new(405, "UNSUPPORTED", "the registry does not do this")
    }

    /// The body of the answer.
    #[must_use]
    pub fn render(&self) -> serde_json::Value {
        serde_json::json!({ "errors": [{ "code": self.code, "message": self.message }] })
    }
}

impl From<ReferenceError> for Failure {
    fn from(err: ReferenceError) -> Self {
        let code = match err {
            ReferenceError::Digest(_) => "DIGEST_INVALID",
            ReferenceError::Name(_) => "NAME_INVALID",
            ReferenceError::Tag(_) => "TAG_INVALID",
        };
        Self::new(400, code, err.to_string())
    }
}

/// Understands a request to a path below `/v2`.
///
/// # Errors
///
/// What to answer when it is none of the registry's.
pub fn parse_call(method: &str, path: &str, query: &str) -> Result<Call, Failure> {
    let unknown = || Failure::new(404, "NAME_UNKNOWN", "the registry has no such path");
    let path = decode_path(path);
    let rest = path.strip_prefix("/v2").ok_or_else(unknown)?;
    let reads = matches!(method, "GET" | "HEAD");
    match rest.trim_start_matches('/') {
        "" if reads => return Ok(Call::Base),
        "_catalog" if reads => return Ok(Call::Catalog),
        "" | "_catalog" => return Err(Failure::unsupported()),
        _ => {}
    }
    let rest = rest.strip_prefix('/').ok_or_else(unknown)?;
    let parameter = |key: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(have, _)| *have == key).map(|(_, value)| decode_path(value))
    };
    let whole = |name: &str| -> Result<String, Failure> {
        let said = match parameter("ns").filter(|ns| !ns.is_empty()) {
            Some(ns) => format!("{ns}/{name}"),
            None => name.to_owned(),
        };
        let (registry, repository) = split_name(&said)?;
        Ok(format!("{registry}/{repository}"))
    };
    if let Some(name) = rest.strip_suffix("/tags/list") {
        let name = whole(name)?;
        return if reads { Ok(Call::Tags { name }) } else { Err(Failure::unsupported()) };
    }
    if let Some((path, id)) = rest
        .rsplit_once("/blobs/uploads/")
        .or_else(|| rest.strip_suffix("/blobs/uploads").map(|path| (path, "")))
    {
        whole(path)?;
        let digest = parameter("digest").map(|text| Digest::parse(&text)).transpose()?;
        return upload(method, path.to_owned(), id.to_owned(), digest);
    }
    if let Some((name, digest)) = rest.rsplit_once("/blobs/") {
        whole(name)?;
        let digest = Digest::parse(digest)?;
        return if reads { Ok(Call::Blob { digest }) } else { Err(Failure::unsupported()) };
    }
    let (name, at) = rest.rsplit_once("/manifests/").ok_or_else(unknown)?;
    let name = whole(name)?;
    let at = if at.contains(':') {
        At::Digest(Digest::parse(at)?)
    } else {
        check_tag(at)?;
        At::Tag(at.to_owned())
    };
    match (method, at) {
        ("GET" | "HEAD", at) => Ok(Call::Manifest { name, at }),
        ("PUT", at) => Ok(Call::PutManifest { name, at }),
        ("DELETE", at) => Ok(Call::Delete { name, at }),
        _ => Err(Failure::unsupported()),
    }
}

fn upload(method: &str, path: String, id: String, digest: Option<Digest>) -> Result<Call, Failure> {
    let what = match (method, id.is_empty(), digest) {
        ("POST", true, digest) => return Ok(Call::Begin { path, digest }),
        ("GET", false, _) => Upload::State,
        ("PATCH", false, _) => Upload::More,
        ("PUT", false, Some(digest)) => Upload::End(digest),
        ("PUT", false, None) => {
            return Err(Failure::new(400, "DIGEST_INVALID", "the upload's digest is missing"));
        }
        ("DELETE", false, _) => Upload::Cancel,
        _ => return Err(Failure::unsupported()),
    };
    Ok(Call::Upload { path, id, what })
}

/// Which bytes of a blob a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// All of them.
    Whole,
    /// From the first to the last, both included.
    Part {
        /// The first byte.
        first: u64,
        /// The last byte.
        last: u64,
    },
    /// Some that are not there.
    Beyond,
}

/// Reads a `Range` header for something of `size` bytes. What is not one range of bytes counts
/// for nothing, as RFC 9110 §14.2 allows.
#[must_use]
pub fn parse_range(header: &str, size: u64) -> Range {
    let Some((first, last)) =
        header.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Range::Whole;
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let end = size.saturating_sub(1);
    let (first, last) = match (number(first), number(last), last.is_empty()) {
        (Some(first), None, true) => (first, end),
        (Some(first), Some(last), _) if first <= last => (first, last.min(end)),
        (None, Some(count), _) if first.is_empty() => {
            if count == 0 {
                return Range::Beyond;
            }
            (size.saturating_sub(count), end)
        }
        _ => return Range::Whole,
    };
    if first >= size { Range::Beyond } else { Range::Part { first, last } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> Digest {
        Digest::parse(&format!("sha256:{}", "a".repeat(64))).unwrap()
    }

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let (method, target) = line.split_once(' ').unwrap();
        let target = target.replace("DIGEST", digest().as_str());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let found = match parse_call(method, path, query) {
            Ok(call) => format!("{call:?}"),
            Err(failure) => format!("{} {}", failure.status, failure.code),
        };
        assert_eq!(found.replace(&format!("{:?}", digest()), "DIGEST"), expected, "{line}");
    }

    #[test]
    fn reading_names_registry_and_repository() {
        check("GET /v2/", "Base");
        check("GET /v2", "Base");
        check("GET /v2/_catalog", "Catalog");
        let nginx = r#"name: "docker.io/library/nginx""#;
        check("GET /v2/library/nginx/tags/list?ns=docker.io", &format!("Tags {{ {nginx} }}"));
        for path in [
            "/v2/library/nginx/manifests/1?ns=docker.io",
            "/v2/nginx/manifests/1",
            "/v2/docker.io/library/nginx/manifests/1",
            "/v2/library%2Fnginx/manifests/1?x=y&ns=docker.io",
        ] {
            check(&format!("HEAD {path}"), &format!("Manifest {{ {nginx}, at: Tag(\"1\") }}"));
        }
        check(
            "GET /v2/team/app/manifests/DIGEST?ns=registry.lab%3A5000",
            r#"Manifest { name: "registry.lab:5000/team/app", at: Digest(DIGEST) }"#,
        );
        check(
            "GET /v2/manifests/manifests/manifests/x",
            r#"Manifest { name: "docker.io/manifests/manifests", at: Tag("x") }"#,
        );
        check("GET /v2/a/blobs/DIGEST", "Blob { digest: DIGEST }");
    }

    #[test]
    fn writing_goes_by_uploads() {
        let path = r#"path: "a/b""#;
        check("POST /v2/a/b/blobs/uploads/", &format!("Begin {{ {path}, digest: None }}"));
        let whole = format!("Begin {{ {path}, digest: Some(DIGEST) }}");
        check("POST /v2/a/b/blobs/uploads?digest=DIGEST", &whole);
        for (line, what) in [
            ("GET /v2/a/b/blobs/uploads/7", "State"),
            ("PATCH /v2/a/b/blobs/uploads/7", "More"),
            ("PUT /v2/a/b/blobs/uploads/7?digest=DIGEST", "End(DIGEST)"),
            ("DELETE /v2/a/b/blobs/uploads/7", "Cancel"),
        ] {
            check(line, &format!("Upload {{ {path}, id: \"7\", what: {what} }}"));
        }
        check(
            "PUT /v2/a/manifests/1",
            r#"PutManifest { name: "docker.io/library/a", at: Tag("1") }"#,
        );
        check(
            "DELETE /v2/a/manifests/1",
            r#"Delete { name: "docker.io/library/a", at: Tag("1") }"#,
        );
    }

    #[test]
    fn what_is_not_the_registrys_is_refused() {
        check("POST /v2/", "405 UNSUPPORTED");
        check("GET /v2/a", "404 NAME_UNKNOWN");
        check("GET /v2/A/manifests/1", "400 NAME_INVALID");
        check("GET /v2/../x/manifests/1", "400 NAME_INVALID");
        check("GET /v2/a/manifests/sha256:1", "400 DIGEST_INVALID");
        check("GET /v2/a/manifests/%20", "400 TAG_INVALID");
        check("GET /v2/a/blobs/x", "400 DIGEST_INVALID");
        check("PUT /v2/a/blobs/uploads/7", "400 DIGEST_INVALID");
        check("DELETE /v2/a/blobs/DIGEST", "405 UNSUPPORTED");
        check("POST /v2/a/manifests/DIGEST", "405 UNSUPPORTED");
    }

    #[test]
    fn any_request_is_understood_or_refused() {
        bolero::check!().with_iterations(10_000).for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let (path, query) = text.split_once('?').unwrap_or((&text, ""));
            for method in ["GET", "PUT", "POST", "PATCH", "DELETE"] {
                if let Ok(Call::Manifest { name, .. } | Call::PutManifest { name, .. }) =
                    parse_call(method, &format!("/v2/{path}"), query)
                {
                    assert!(!name.contains(".."), "{name}");
                }
            }
            if let Range::Part { first, last } = parse_range(&text, 100) {
                assert!(first <= last && last < 100);
            }
        });
    }

    #[test]
    fn one_range_of_bytes_is_enough() {
        let part = |first, last| Range::Part { first, last };
        for (header, expected) in [
            ("bytes=0-9", part(0, 9)),
            ("bytes=5-", part(5, 99)),
            ("bytes=90-200", part(90, 99)),
            ("bytes=-10", part(90, 99)),
            ("bytes=-1000", part(0, 99)),
            ("bytes=100-", Range::Beyond),
            ("bytes=-0", Range::Beyond),
            ("bytes=9-5", Range::Whole),
            ("bytes=0-1,5-6", Range::Whole),
            ("bytes=-", Range::Whole),
            ("lines=0-1", Range::Whole),
            ("", Range::Whole),
        ] {
            assert_eq!(parse_range(header, 100), expected, "{header}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Range::Beyond);
    }
}
