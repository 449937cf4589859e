//! Manifests: what an image, or an index of images, is made of.

use serde::Deserialize;
use thiserror::Error;

use super::Digest;

/// A manifest larger than this is refused, as the specification advises.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Parts of one manifest; real ones have at most 127 layers.
const PARTS_MAX: usize = 1024;

/// Media types of manifests.
pub mod media_type {
    /// An image.
    pub const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
    /// Several images, one for each platform.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An image, as Docker writes it.
    pub const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Several images, as Docker writes them.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// What a container is started with.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer, as it is.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// A layer, packed.
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
}

/// A part, by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// The digest of its bytes.
    pub digest: Digest,
    /// How many bytes it has.
    pub size_bytes: u64,
    /// `linux/amd64` and the like; empty when nothing says so.
    pub platform: String,
    /// Does the image live without it being kept here? So it is with layers that may not be
    /// spread, and with what only points at an image.
    pub is_optional: bool,
}

/// What a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// One image: its configuration, then its layers.
    Image {
        /// The media type to serve it with.
        media_type: String,
        /// Configuration and layers.
        parts: Vec<Descriptor>,
    },
    /// Several images.
    Index {
        /// The media type to serve it with.
        media_type: String,
        /// Their manifests.
        images: Vec<Descriptor>,
    },
}

/// Why a manifest cannot be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// It is too long.
    #[error("the manifest has {0} bytes, and may have {MANIFEST_BYTES_MAX}")]
    TooLong(usize),
    /// It has too many parts.
    #[error("the manifest has {0} parts, and may have {PARTS_MAX}")]
    TooMany(usize),
    /// It is no manifest at all.
    #[error("the manifest cannot be read")]
    Read(#[source] serde_json::Error),
    /// It is of a kind that is not known here.
    #[error("manifests of schema {schema} and type {media_type:?} are not known")]
    Unknown {
        /// The schema version.
        schema: u64,
        /// The type it says.
        media_type: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    media_type: String,
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Vec<RawDescriptor>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    ///
    /// When it is too long, or not what the specifications describe.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong(bytes.len()));
        }
        let raw: Raw = serde_json::from_slice(bytes).map_err(ManifestError::Read)?;
        let Raw { schema_version: schema, media_type, config, layers, manifests } = raw;
        let count = layers.len() + manifests.as_ref().map_or(0, Vec::len);
        if count > PARTS_MAX {
            return Err(ManifestError::TooMany(count));
        }
        let said = |default: &str| match media_type.as_str() {
            "" => default.to_owned(),
            said => said.to_owned(),
        };
        match (schema, config, manifests) {
            (2, Some(config), None) if is_image(&media_type) => {
                let parts = std::iter::once(config).chain(layers).map(Descriptor::of).collect();
                Ok(Self::Image { media_type: said(media_type::IMAGE), parts })
            }
            (2, None, Some(manifests)) if is_index(&media_type) => {
                let images = manifests.into_iter().map(Descriptor::of).collect();
                Ok(Self::Index { media_type: said(media_type::INDEX), images })
            }
            _ => Err(ManifestError::Unknown { schema, media_type }),
        }
    }

    /// The media type to serve it with.
    #[must_use]
    pub fn media_type(&self) -> &str {
        match self {
            Self::Image { media_type, .. } | Self::Index { media_type, .. } => media_type,
        }
    }

    /// All that it names.
    #[must_use]
    pub fn parts(&self) -> &[Descriptor] {
        match self {
            Self::Image { parts, .. } => parts,
            Self::Index { images, .. } => images,
        }
    }
}

fn is_image(said: &str) -> bool {
    matches!(said, "" | media_type::IMAGE | media_type::DOCKER_IMAGE)
}

fn is_index(said: &str) -> bool {
    matches!(said, "" | media_type::INDEX | media_type::DOCKER_INDEX)
}

impl Descriptor {
    fn of(raw: RawDescriptor) -> Self {
        let platform = raw.platform.map_or_else(String::new, |platform| {
            let parts = [platform.os, platform.architecture, platform.variant];
            let said: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            said.join("/")
        });
        // Builders put attestations beside images, for a platform that is none.
        let is_optional = raw.media_type.contains("nondistributable")
            || raw.media_type.contains("foreign")
            || platform == "unknown/unknown";
        let RawDescriptor { media_type, digest, size, .. } = raw;
        Self { media_type, digest, size_bytes: size, platform, is_optional }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn part(letter: &str, more: &serde_json::Value) -> serde_json::Value {
        let mut part = json!({"digest": format!("sha256:{}", letter.repeat(64)), "size": 7});
        for (key, value) in more.as_object().into_iter().flatten() {
            part[key] = value.clone();
        }
        part
    }

    #[track_caller]
    fn read(value: &serde_json::Value) -> Manifest {
        Manifest::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_image_has_a_configuration_and_layers() {
        let none = json!({});
        let found = read(&json!({"schemaVersion": 2, "config": part("a", &none),
            "layers": [part("b", &none), part("c", &none)]}));
        assert_eq!(found.media_type(), media_type::IMAGE);
        let digests: Vec<&str> = found.parts().iter().map(|p| &p.digest.as_str()[7..8]).collect();
        assert_eq!(digests, ["a", "b", "c"]);
        let docker = read(&json!({"schemaVersion": 2, "mediaType": media_type::DOCKER_IMAGE,
            "config": part("a", &none), "layers": []}));
        assert_eq!(docker.media_type(), media_type::DOCKER_IMAGE);
    }

    #[test]
    fn an_index_has_platforms_and_what_is_none() {
        let on = |os: &str, arch: &str| json!({"platform": {"os": os, "architecture": arch}});
        let found = read(&json!({"schemaVersion": 2, "manifests": [
            part("a", &on("linux", "amd64")), part("b", &on("unknown", "unknown"))]}));
        assert_eq!(found.media_type(), media_type::INDEX);
        let said: Vec<_> =
            found.parts().iter().map(|p| (p.platform.as_str(), p.is_optional)).collect();
        assert_eq!(said, [("linux/amd64", false), ("unknown/unknown", true)]);
    }

    #[test]
    fn other_documents_are_no_manifests() {
        let none = json!({});
        for (value, why) in [
            (json!({}), "schema 0"),
            (json!({"schemaVersion": 1, "config": part("a", &none)}), "schema 1"),
            (json!({"schemaVersion": 2}), "schema 2"),
            (json!({"schemaVersion": 2, "mediaType": "x/y", "config": part("a", &none)}), "x/y"),
            (json!({"schemaVersion": 2, "config": {"digest": "sha256:0", "size": 1}}), "read"),
            (
                json!({"schemaVersion": 2, "config": part("a", &none),
                "layers": vec![part("b", &none); PARTS_MAX + 1]}),
                "1025 parts",
            ),
        ] {
            let err = Manifest::parse(value.to_string().as_bytes()).unwrap_err().to_string();
            assert!(err.contains(why), "{err} for {why}");
        }
        let long = Manifest::parse(&vec![b' '; MANIFEST_BYTES_MAX + 1]).unwrap_err();
        assert!(matches!(long, ManifestError::TooLong(_)));
    }

    #[test]
    fn any_bytes_are_read_or_refused() {
        bolero::check!().with_iterations(10_000).for_each(|bytes: &[u8]| {
            if let Ok(found) = Manifest::parse(bytes) {
                assert!(found.parts().len() <= PARTS_MAX + 1);
            }
        });
    }
}
