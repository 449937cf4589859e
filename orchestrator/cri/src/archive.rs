//! Brings image archives into containerd by its own services.
//!
//! CRI has no call for archives, and containerd's tool is a program of 27 MB, to be started by a
//! node whose start everybody waits for. What it takes is a handful of calls: blobs into the
//! content store, a name for the whole. A lease holds the blobs until the name does. Layers are
//! unpacked by the runtime when the first container is made of the image.
//!
//! Spec: OCI image format 1.0 (layout, index, manifest, config); `containerd.services.*.v1`.
//!
//! *Limits*: each image of the archive's index is a manifest for this machine; an index within the
//! index is refused. Other runtimes refuse the calls.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::client::{CallError, Runtime, Store, within};
use crate::message::*;

/// The namespace in which CRI looks for images.
const NAMESPACE: &str = "k8s.io";
/// Holds what an import brought until it has a name; one import runs at a time.
const LEASE: &str = "muster-import";
/// A layer travels in pieces of this size; the runtime takes messages of up to 16 MiB.
const PIECE_BYTES: u64 = 4 << 20;
/// Indexes, manifests and configurations are a few kilobytes.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// How often it is looked whether CRI shows an image, and for how long.
const IMAGE_BEAT: Duration = Duration::from_millis(20);
const IMAGE_LIMIT: Duration = Duration::from_secs(60);
/// What an image in an archive is called.
const NAME: &str = "io.containerd.image.name";

/// Why an archive could not be brought in.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The archive cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something in it is not as the format says.
    #[error("{path} is no image archive: {what}")]
    Format {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The runtime refused.
    #[error("the runtime does not take the image")]
    Call(#[from] CallError),
}

/// `index.json`, as far as it is needed.
#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Part>,
}

/// A blob as others speak of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Part,
    layers: Vec<Part>,
}

/// An archive and where its files begin.
#[derive(Debug)]
struct Archive {
    path: PathBuf,
    places: BTreeMap<String, Place>,
}

/// A file within an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    offset: u64,
    size_bytes: u64,
}

impl Runtime {
    /// Brings every image of an OCI archive into containerd, until CRI shows them, and returns
    /// their names; what is there already stays.
    ///
    /// Cancel safety: dropped half way, what was brought is forgotten by the runtime at the next
    /// import's end; the import may be made anew.
    ///
    /// # Errors
    ///
    /// When the archive is not readable as one, or the runtime refuses or cannot be reached.
    pub async fn import_archive(&self, archive: &Path) -> Result<Vec<String>, ImportError> {
        let archive = Archive::open(archive).await?;
        let store = self.store(NAMESPACE, LEASE);
        store.create_lease(CreateLeaseRequest { id: LEASE.to_owned() }).await.or_else(there)?;
        let brought = import(&store, &archive).await;
        let given_back = store.delete_lease(DeleteLeaseRequest { id: LEASE.to_owned() }).await;
        let names = brought?;
        given_back?;
        for name in &names {
            self.await_image(name).await?;
        }
        Ok(names)
    }

    /// Waits until CRI has been told of an image, which the store does a moment after it was named.
    async fn await_image(&self, name: &str) -> Result<(), CallError> {
        let image = Some(ImageSpec { image: name.to_owned(), ..ImageSpec::default() });
        let request = ImageStatusRequest { image, verbose: false };
        let work = async {
            while self.image_status(request.clone()).await?.image.is_none() {
                tokio::time::sleep(IMAGE_BEAT).await;
            }
            Ok(())
        };
        within("ImageStatus", IMAGE_LIMIT, work).await
    }
}

async fn import(store: &Store, archive: &Archive) -> Result<Vec<String>, ImportError> {
    let index: Index = archive.document("index.json").await?;
    let mut names = Vec::new();
    for part in index.manifests {
        let Some(name) = part.annotations.get(NAME).cloned() else {
            return Err(archive.wrong(format!("image {} has no {NAME}", part.digest)));
        };
        import_blobs(store, archive, &part).await?;
        let target = Some(archive.descriptor(&part)?);
        let image = StoreImageRequest { image: Some(StoredImage { name: name.clone(), target }) };
        match store.create_image(image.clone()).await {
            // The name may have been that of another image.
            Err(err) if err.is_there_already() => store.update_image(image).await?,
            other => other?,
        };
        names.push(name);
    }
    Ok(names)
}

async fn import_blobs(store: &Store, archive: &Archive, part: &Part) -> Result<(), ImportError> {
    let manifest: Manifest = archive.document(&blob(&part.digest)).await?;
    // These labels are how the runtime knows what must stay for the sake of what.
    let mut labels = BTreeMap::new();
    let mut refer = |name: String, to: &Part| {
        labels.insert(format!("containerd.io/gc.ref.content.{name}"), to.digest.clone());
    };
    refer("config".to_owned(), &manifest.config);
    for (at, layer) in manifest.layers.iter().enumerate() {
        refer(format!("l.{at}"), layer);
        write(store, archive, layer, BTreeMap::new()).await?;
    }
    write(store, archive, &manifest.config, BTreeMap::new()).await?;
    write(store, archive, part, labels).await
}

/// Puts a blob of the archive into the content store.
async fn write(
    store: &Store,
    archive: &Archive,
    part: &Part,
    labels: BTreeMap<String, String>,
) -> Result<(), ImportError> {
    let place = archive.place(&blob(&part.digest))?;
    let total = signed(place.size_bytes);
    let mut offset = 0;
    loop {
        let data = archive.read(Place {
            offset: place.offset + offset,
            size_bytes: PIECE_BYTES.min(place.size_bytes - offset),
        });
        let data = Bytes::from(data.await?);
        let end = offset + u64::try_from(data.len()).unwrap_or_default();
        let last = end >= place.size_bytes;
        if data.is_empty() && !last {
            return Err(archive.wrong(format!("it ends within {}", part.digest)));
        }
        let action = if last { WriteAction::Commit } else { WriteAction::Write };
        let request = WriteContentRequest {
            action: action.into(),
            r#ref: format!("{LEASE}-{}", part.digest),
            total,
            expected: part.digest.clone(),
            offset: signed(offset),
            data,
            labels: if last { labels.clone() } else { BTreeMap::new() },
        };
        match store.write_content(request).await {
            Err(err) if err.is_there_already() => return Ok(()),
            other => other?,
        }
        if last {
            return Ok(());
        }
        offset = end;
    }
}

/// What is there already need not be made.
fn there(err: CallError) -> Result<Nothing, CallError> {
    if err.is_there_already() { Ok(Nothing {}) } else { Err(err) }
}

/// `sha256:HEX` → its place in an archive.
fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl Archive {
    async fn open(path: &Path) -> Result<Self, ImportError> {
        let from = path.to_owned();
        let places = blocking(move || places(&mut File::open(from)?)).await;
        let failed = |source| ImportError::Read { path: path.to_owned(), source };
        Ok(Self { path: path.to_owned(), places: places.map_err(failed)? })
    }

    fn wrong(&self, what: String) -> ImportError {
        ImportError::Format { path: self.path.clone(), what }
    }

    fn place(&self, name: &str) -> Result<Place, ImportError> {
        self.places.get(name).copied().ok_or_else(|| self.wrong(format!("it lacks {name}")))
    }

    fn descriptor(&self, part: &Part) -> Result<Descriptor, ImportError> {
        let size = signed(self.place(&blob(&part.digest))?.size_bytes);
        let Part { media_type, digest, .. } = part.clone();
        Ok(Descriptor { media_type, digest, size })
    }

    async fn read(&self, place: Place) -> Result<Vec<u8>, ImportError> {
        let path = self.path.clone();
        let bytes = blocking(move || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(place.offset))?;
            let mut bytes = Vec::new();
            file.take(place.size_bytes).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        bytes.await.map_err(|source| ImportError::Read { path: self.path.clone(), source })
    }

    async fn document<T: DeserializeOwned>(&self, name: &str) -> Result<T, ImportError> {
        let place = self.place(name)?;
        if place.size_bytes > DOCUMENT_BYTES_MAX {
            return Err(self.wrong(format!("{name} has {} bytes", place.size_bytes)));
        }
        let bytes = self.read(place).await?;
        serde_json::from_slice(&bytes).map_err(|err| self.wrong(format!("{name}: {err}")))
    }
}

/// Where each file of a tar archive begins.
fn places(archive: &mut (impl Read + Seek)) -> io::Result<BTreeMap<String, Place>> {
    let mut places = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries_with_seek()? {
        let entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let place = Place { offset: entry.raw_file_position(), size_bytes: entry.size() };
        places.insert(name.trim_start_matches("./").to_owned(), place);
    }
    Ok(places)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_where_they_begin() {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in [("./index.json", "{}"), ("blobs/sha256/ab", "hello")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes.as_bytes()).unwrap();
        }
        let bytes = tar.into_inner().unwrap();
        let places = places(&mut io::Cursor::new(&bytes)).unwrap();
        for (name, expected) in [("index.json", "{}"), (&blob("sha256:ab"), "hello")] {
            let Place { offset, size_bytes } = places[name];
            let from = usize::try_from(offset).unwrap();
            let len = usize::try_from(size_bytes).unwrap();
            assert_eq!(&bytes[from..from + len], expected.as_bytes(), "{name}");
        }
    }

    #[test]
    fn any_bytes_are_an_archive_or_refused() {
        bolero::check!().with_iterations(5_000).for_each(|bytes: &[u8]| {
            drop(places(&mut io::Cursor::new(bytes)));
        });
    }
}
