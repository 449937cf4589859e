//! The images of a master on its disk, as an OCI image layout: `blobs/sha256/` and `index.json`.
//!
//! Nothing is ever half there. A blob is written below `uploads/`, and gets its name when all of
//! it is on disk and has the digest it was announced with; a manifest is taken when all it names
//! is there; an image is listed when its manifest is. What a kill leaves below `uploads/` the
//! next start removes.
//!
//! Spec: OCI image layout 1.0.

mod index;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use api::registry::{At, Digest, Failure, MANIFEST_BYTES_MAX, Manifest};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256};
use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt as _;

use crate::server::now;

use self::index::{Entry, Index};

/// Uploads at a time; a client does a few at once.
const UPLOADS_MAX: usize = 64;
/// An upload nobody went on with for so long is forgotten.
const UPLOAD_IDLE: Duration = Duration::from_secs(3600);
/// How long a client may pause within a piece.
const PIECE_LIMIT: Duration = Duration::from_secs(60);
/// Blobs younger than this may belong to an image whose manifest is still to come.
const YOUNG: Duration = Duration::from_secs(3600);
/// The room on disk is looked at once in so many bytes.
const ROOM_BEAT_BYTES: u64 = 8 << 20;
/// What images must leave free, for the cluster's own state lies on the same disk.
const RESERVE_BYTES_MAX: u64 = 1 << 30;
/// The same as a part of the disk, for small ones.
const RESERVE_PARTS: u64 = 20;

/// A manifest as it is served.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

/// All images of a master.
#[derive(Debug)]
pub(crate) struct Shelf {
    dir: PathBuf,
    index: Mutex<Index>,
    uploads: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Upload>>>>,
    /// Held from looking at blobs until the index that counts on them is written.
    writing: tokio::sync::Mutex<()>,
}

/// A blob that is coming.
#[derive(Debug)]
struct Upload {
    path: PathBuf,
    file: File,
    hash: Sha256,
    size: u64,
    touched: Instant,
}

impl Drop for Upload {
    fn drop(&mut self) {
        // One that was completed has another name by now.
        let _gone = std::fs::remove_file(&self.path).is_ok();
    }
}

/// The disk did not do what it should.
pub(super) fn broken(err: &io::Error) -> Failure {
    tracing::error!(%err, "the images' directory cannot be used");
    Failure::new(500, "UNKNOWN", format!("the master's disk: {err}"))
}

fn unknown_upload() -> Failure {
    Failure::new(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload; begin again")
}

impl Shelf {
    /// Opens the directory, and clears away uploads that never ended.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir.join("blobs/sha256"))?;
        let uploads = dir.join("uploads");
        match std::fs::remove_dir_all(&uploads) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => std::fs::create_dir(&uploads)?,
        }
        let index = Index::load(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            index: Mutex::new(index),
            uploads: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
        })
    }

    fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// What there is, for people and programs.
    pub(crate) fn list(&self) -> Vec<serde_json::Value> {
        self.index().entries.iter().map(Entry::to_value).collect()
    }

    /// All repositories.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.index().entries.iter().map(|entry| entry.name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// The tags of a repository; `None` when it is not there.
    pub(crate) fn tags(&self, name: &str) -> Option<Vec<String>> {
        let index = self.index();
        let mut mine = index.entries.iter().filter(|entry| entry.name == name).peekable();
        mine.peek()?;
        Some(mine.filter_map(|entry| entry.tag.clone()).collect())
    }

    /// A manifest.
    pub(crate) async fn manifest(&self, name: &str, at: &At) -> Result<Found, Failure> {
        let unknown = || {
            let which = match at {
                At::Tag(tag) => format!("{name}:{tag}"),
                At::Digest(digest) => format!("{name}@{digest}"),
            };
            Failure::new(404, "MANIFEST_UNKNOWN", format!("the site keeps no image {which}"))
        };
        let digest = match at {
            At::Digest(digest) => digest.clone(),
            At::Tag(tag) => self.index().tagged(name, tag).ok_or_else(unknown)?,
        };
        let (bytes, manifest) = self.read_manifest(&digest).await?.ok_or_else(unknown)?;
        Ok(Found { digest, media_type: manifest.media_type().to_owned(), bytes })
    }

    /// Reads a blob that is a manifest; `None` when it is not there, or something else.
    async fn read_manifest(&self, digest: &Digest) -> Result<Option<(Bytes, Manifest)>, Failure> {
        let path = self.path(digest);
        match fs::metadata(&path).await {
            Ok(found) if found.len() > MANIFEST_BYTES_MAX as u64 => return Ok(None),
            Ok(_) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(broken(&err)),
        }
        let bytes = fs::read(&path).await.map_err(|err| broken(&err))?;
        Ok(Manifest::parse(&bytes).ok().map(|manifest| (Bytes::from(bytes), manifest)))
    }

    /// A blob and its size.
    pub(crate) async fn blob(&self, digest: &Digest) -> Result<(File, u64), Failure> {
        let opened = async {
            let file = File::open(self.path(digest)).await?;
            let size = file.metadata().await?.len();
            Ok((file, size))
        };
        opened.await.map_err(|err: io::Error| match err.kind() {
            io::ErrorKind::NotFound => {
                Failure::new(404, "BLOB_UNKNOWN", format!("the site keeps no blob {digest}"))
            }
            _ => broken(&err),
        })
    }

    /// Begins an upload and names it.
    pub(crate) async fn begin(&self) -> Result<String, Failure> {
        self.check_room()?;
        let id = uuid::Uuid::new_v4().to_string();
        let path = self.dir.join("uploads").join(&id);
        let file = File::create_new(&path).await.map_err(|err| broken(&err))?;
        let upload = Upload { path, file, hash: Sha256::new(), size: 0, touched: Instant::now() };
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is locked is being written to.
        uploads.retain(|_, upload| {
            upload.try_lock().map_or(true, |upload| upload.touched.elapsed() < UPLOAD_IDLE)
        });
        if uploads.len() >= UPLOADS_MAX {
            return Err(Failure::new(429, "TOOMANYREQUESTS", "too many uploads at a time"));
        }
        uploads.insert(id.clone(), Arc::new(tokio::sync::Mutex::new(upload)));
        Ok(id)
    }

    fn upload(&self, id: &str) -> Result<Arc<tokio::sync::Mutex<Upload>>, Failure> {
        let uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.get(id).cloned().ok_or_else(unknown_upload)
    }

    /// How many bytes of an upload are here.
    pub(crate) async fn progress(&self, id: &str) -> Result<u64, Failure> {
        Ok(self.upload(id)?.lock().await.size)
    }

    /// Forgets an upload.
    pub(crate) fn cancel(&self, id: &str) -> Result<(), Failure> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.remove(id).map(drop).ok_or_else(unknown_upload)
    }

    /// Adds a piece to an upload and says how long it is now. A piece that breaks off is kept as
    /// far as it came.
    pub(crate) async fn append(
        &self,
        id: &str,
        begins_at: Option<u64>,
        body: Incoming,
    ) -> Result<u64, Failure> {
        let upload = self.upload(id)?;
        let mut upload = upload.lock().await;
        if begins_at.is_some_and(|first| first != upload.size) {
            let why = format!("{} bytes are here; go on from there", upload.size);
            return Err(Failure::new(416, "RANGE_INVALID", why));
        }
        let poured = self.pour(&mut upload, body).await;
        if poured.as_ref().is_err_and(|failure| failure.status >= 500) {
            // Whether what the disk refused is in the file, nobody knows.
            self.cancel(id)?;
        }
        poured.map(|()| upload.size)
    }

    /// Takes a body into an upload.
    async fn pour(&self, upload: &mut Upload, mut body: Incoming) -> Result<(), Failure> {
        let cut = |why: &str| Failure::new(400, "BLOB_UPLOAD_INVALID", why);
        let mut looked = upload.size;
        loop {
            let frame = tokio::time::timeout(PIECE_LIMIT, body.frame()).await;
            let frame = frame.map_err(|_| cut("the upload did not arrive in time"))?;
            let Some(frame) = frame else { return Ok(()) };
            let frame = frame.map_err(|_| cut("the upload ended early"))?;
            let Ok(data) = frame.into_data() else { continue };
            upload.file.write_all(&data).await.map_err(|err| broken(&err))?;
            upload.hash.update(&data);
            upload.size += data.len() as u64;
            upload.touched = Instant::now();
            if upload.size - looked > ROOM_BEAT_BYTES {
                looked = upload.size;
                self.check_room()?;
            }
        }
    }

    /// Takes the last piece of an upload, and the whole if it is what it was announced as.
    pub(crate) async fn finish(
        &self,
        id: &str,
        digest: &Digest,
        body: Incoming,
    ) -> Result<(), Failure> {
        let upload = self.upload(id)?;
        // From here on it is a blob or nothing.
        self.cancel(id)?;
        let mut upload = upload.lock().await;
        self.pour(&mut upload, body).await?;
        let raw: [u8; 32] = std::mem::take(&mut upload.hash).finalize().into();
        let found = Digest::of_raw(&raw);
        if found != *digest {
            let why = format!("announced as {digest}, the bytes are {found}");
            return Err(Failure::new(400, "DIGEST_INVALID", why));
        }
        let kept = async {
            upload.file.flush().await?;
            upload.file.sync_all().await?;
            self.keep(&upload.path, digest).await
        };
        kept.await.map_err(|err| broken(&err))
    }

    /// Gives a complete file its name among the blobs.
    async fn keep(&self, path: &Path, digest: &Digest) -> io::Result<()> {
        fs::rename(path, self.path(digest)).await?;
        File::open(self.dir.join("blobs/sha256")).await?.sync_all().await
    }

    /// Refuses more when the disk gets short.
    fn check_room(&self) -> Result<(), Failure> {
        let room = nix::sys::statvfs::statvfs(&self.dir).map_err(|err| broken(&err.into()))?;
        let all = room.blocks().saturating_mul(room.fragment_size());
        let free = room.blocks_available().saturating_mul(room.fragment_size());
        let reserve = RESERVE_BYTES_MAX.min(all / RESERVE_PARTS);
        if free > reserve {
            return Ok(());
        }
        let why = format!(
            "the master's disk has {} MB left, which are for the cluster's own state; remove \
             images or make room",
            free / 1_000_000
        );
        Err(Failure::new(507, "DENIED", why))
    }

    /// Takes a manifest whose parts are all here.
    pub(crate) async fn put_manifest(
        &self,
        name: &str,
        at: &At,
        bytes: Bytes,
    ) -> Result<Digest, Failure> {
        let manifest = Manifest::parse(&bytes)
            .map_err(|err| Failure::new(400, "MANIFEST_INVALID", runtime::report(&err)))?;
        let raw: [u8; 32] = Sha256::digest(&bytes).into();
        let digest = Digest::of_raw(&raw);
        if let At::Digest(said) = at
            && *said != digest
        {
            let why = format!("announced as {said}, the bytes are {digest}");
            return Err(Failure::new(400, "DIGEST_INVALID", why));
        }
        let _turn = self.writing.lock().await;
        let measured = self.measure(&manifest).await?;
        self.check_room()?;
        let path = self.dir.join("uploads").join(uuid::Uuid::new_v4().to_string());
        let kept = async {
            let mut file = File::create_new(&path).await?;
            file.write_all(&bytes).await?;
            file.flush().await?;
            file.sync_all().await?;
            self.keep(&path, &digest).await
        };
        kept.await.map_err(|err| broken(&err))?;
        let tag = match at {
            At::Tag(tag) => Some(tag.clone()),
            At::Digest(_) => None,
        };
        let entry = Entry {
            name: name.to_owned(),
            tag,
            digest: digest.clone(),
            media_type: manifest.media_type().to_owned(),
            manifest_bytes: bytes.len() as u64,
            size_bytes: measured.size_bytes,
            platforms: measured.platforms,
            added: now().to_string(),
        };
        self.change(|index| index.add(entry, &manifest)).await?;
        tracing::info!(name, digest = digest.as_str(), "an image was added");
        Ok(digest)
    }

    /// Writes a changed index, and takes it for the present one when it is on disk.
    async fn change<T>(&self, change: impl FnOnce(&mut Index) -> T) -> Result<T, Failure> {
        let mut next = self.index().clone();
        let made = change(&mut next);
        let path = self.dir.join("index.json");
        let fresh = self.dir.join("uploads/index.json");
        let text = next.render();
        let written = async {
            let mut file = File::create(&fresh).await?;
            file.write_all(text.as_bytes()).await?;
            file.flush().await?;
            file.sync_all().await?;
            fs::rename(&fresh, &path).await?;
            File::open(&self.dir).await?.sync_all().await
        };
        written.await.map_err(|err| broken(&err))?;
        *self.index() = next;
        Ok(made)
    }

    /// Checks that what a manifest names is here, and adds it up.
    async fn measure(&self, manifest: &Manifest) -> Result<Measured, Failure> {
        let missing = |digest: &Digest| {
            let why = format!("{digest} is named and not here; put it first");
            Failure::new(400, "MANIFEST_BLOB_UNKNOWN", why)
        };
        let mut measured = Measured::default();
        match manifest {
            Manifest::Image { parts, .. } => {
                for part in parts {
                    match fs::metadata(self.path(&part.digest)).await {
                        Ok(found) if found.len() == part.size_bytes => {
                            measured.size_bytes += part.size_bytes;
                        }
                        Ok(found) => {
                            let (digest, said) = (&part.digest, part.size_bytes);
                            let why = format!("{digest} has {} bytes, not {said}", found.len());
                            return Err(Failure::new(400, "SIZE_INVALID", why));
                        }
                        Err(_) if part.is_optional => {}
                        Err(_) => return Err(missing(&part.digest)),
                    }
                }
                if let Some(config) = parts.first() {
                    measured.platforms.extend(self.platform(&config.digest).await);
                }
            }
            Manifest::Index { images, .. } => {
                for image in images {
                    let Some((_, found)) = self.read_manifest(&image.digest).await? else {
                        continue;
                    };
                    let parts = found.parts().iter();
                    measured.size_bytes += parts.map(|part| part.size_bytes).sum::<u64>();
                    if !image.is_optional && !image.platform.is_empty() {
                        measured.platforms.push(image.platform.clone());
                    }
                    measured.images += 1;
                }
                // Whoever brings a part of an index along needs that part only.
                if let (0, Some(first)) = (measured.images, images.first()) {
                    return Err(missing(&first.digest));
                }
            }
        }
        Ok(measured)
    }

    /// What an image's configuration says it runs on.
    async fn platform(&self, config: &Digest) -> Option<String> {
        let path = self.path(config);
        if fs::metadata(&path).await.ok()?.len() > MANIFEST_BYTES_MAX as u64 {
            return None;
        }
        let config: serde_json::Value = serde_json::from_slice(&fs::read(path).await.ok()?).ok()?;
        let text = |key: &str| config.get(key).and_then(serde_json::Value::as_str);
        Some(format!("{}/{}", text("os")?, text("architecture")?))
    }

    /// Forgets an image, and frees what no other needs.
    pub(crate) async fn forget(&self, name: &str, at: &At) -> Result<(), Failure> {
        let _turn = self.writing.lock().await;
        if !self.index().has(name, at) {
            let why = format!("the site keeps no such image of {name}");
            return Err(Failure::new(404, "MANIFEST_UNKNOWN", why));
        }
        self.change(|index| index.forget(name, at)).await?;
        self.sweep().await
    }

    /// Removes blobs that no listed image needs; young ones may be on their way into one.
    async fn sweep(&self) -> Result<(), Failure> {
        let mut left: Vec<Digest> =
            self.index().entries.iter().map(|entry| entry.digest.clone()).collect();
        let mut needed = std::collections::BTreeSet::new();
        while let Some(digest) = left.pop() {
            if needed.insert(digest.hex().to_owned())
                && let Some((_, manifest)) = self.read_manifest(&digest).await?
            {
                left.extend(manifest.parts().iter().map(|part| part.digest.clone()));
            }
        }
        let swept = async {
            let mut entries = fs::read_dir(self.dir.join("blobs/sha256")).await?;
            while let Some(entry) = entries.next_entry().await? {
                let name = entry.file_name();
                let is_needed = name.to_str().is_none_or(|name| needed.contains(name));
                let age = SystemTime::now().duration_since(entry.metadata().await?.modified()?);
                if !is_needed && age.is_ok_and(|age| age > YOUNG) {
                    fs::remove_file(entry.path()).await?;
                }
            }
            Ok(())
        };
        swept.await.map_err(|err: io::Error| broken(&err))
    }
}

/// What an image adds up to.
#[derive(Debug, Default)]
struct Measured {
    size_bytes: u64,
    platforms: Vec<String>,
    images: u64,
}
