//! The controller half: volumes, snapshots and clones, each found again by the name it was asked
//! under.

use std::collections::BTreeMap;

use ceph::{CephError, Info, Place, Snap};
use csi::Status;
use csi::message::*;
use sha2::{Digest, Sha256};

use crate::images::{Images, Secrets};
use crate::{Driver, required};

/// The size of a volume when none is asked for.
const DEFAULT_BYTES: i64 = 1 << 30;
/// Sizes are rounded up to this: the program counts so.
const STEP_BYTES: i64 = 1 << 20;
/// How many digits of a name's digest are in an image's name.
const DIGEST_DIGITS: usize = 32;
/// How images of this driver begin.
const IMAGE: &str = "csi-vol-";
/// How snapshots of this driver begin.
const SNAP: &str = "csi-snap-";

pub(crate) fn told(err: CephError) -> Status {
    match &err {
        CephError::Missing(_) => Status::not_found(err.to_string()),
        CephError::Exists(_) => Status::already_exists(err.to_string()),
        CephError::Busy(_) => Status::failed_precondition(err.to_string()),
        CephError::Denied(_)
        | CephError::Slow { .. }
        | CephError::Program { .. }
        | CephError::Refused { .. } => Status::internal(err.to_string()),
    }
}

/// The name in the cluster for a name in the API, which may hold anything.
fn named(prefix: &str, name: &str) -> String {
    let digest = hex::encode(Sha256::digest(name.as_bytes()));
    format!("{prefix}{}", digest.get(..DIGEST_DIGITS).unwrap_or(&digest))
}

/// The size to make for what is asked.
fn size(range: Option<&CapacityRange>) -> Result<i64, Status> {
    let (required, limit) = range.map_or((0, 0), |one| (one.required_bytes, one.limit_bytes));
    if required < 0 || limit < 0 || (limit > 0 && required > limit) {
        return Err(Status::out_of_range("the limit is below what is required"));
    }
    let wanted = match (required, limit) {
        (0, 0) => DEFAULT_BYTES,
        (0, limit) => limit.min(DEFAULT_BYTES),
        (required, _) => required,
    };
    let whole = wanted.saturating_add(STEP_BYTES - 1) / STEP_BYTES * STEP_BYTES;
    if limit > 0 && whole > limit {
        return Err(Status::out_of_range("no whole number of MiB is within the limit"));
    }
    Ok(whole)
}

/// Can volumes be used so?
pub(crate) fn check_capabilities(all: &[VolumeCapability]) -> Result<(), Status> {
    if all.is_empty() {
        return Err(Status::invalid_argument("volume capabilities missing in request"));
    }
    all.iter().try_for_each(check_capability)
}

pub(crate) fn check_capability(one: &VolumeCapability) -> Result<(), Status> {
    let invalid = |why: &str| Err(Status::invalid_argument(why));
    if one.block.is_none() && one.mount.is_none() {
        return invalid("neither block nor mount is asked for");
    }
    match one.access_mode.as_ref().map_or(0, |mode| mode.mode) {
        access::SINGLE_NODE_WRITER
        | access::SINGLE_NODE_READER_ONLY
        | access::MULTI_NODE_READER_ONLY
        | access::SINGLE_NODE_SINGLE_WRITER
        | access::SINGLE_NODE_MULTI_WRITER => Ok(()),
        access::MULTI_NODE_SINGLE_WRITER | access::MULTI_NODE_MULTI_WRITER => {
            invalid("an image has one node that writes")
        }
        _ => invalid("access mode missing in request"),
    }
}

impl<I: Images> Driver<I> {
    fn volume(&self, at: &Place, info: &Info) -> Volume {
        let context = [
            ("pool".to_owned(), at.pool.clone()),
            ("image".to_owned(), at.image.clone()),
            ("monitors".to_owned(), self.config.monitors.join(",")),
        ];
        let content_source = info.parent.as_ref().map(|parent| {
            let (image, snap) = (parent.image.clone(), Some(parent.snapshot.clone()));
            let from = Place { pool: at.pool.clone(), image, snap };
            if parent.snapshot.starts_with(SNAP) {
                let snapshot = Some(SnapshotSource { snapshot_id: from.id() });
                return VolumeContentSource { snapshot, volume: None };
            }
            let volume = Some(VolumeSource { volume_id: from.whole().id() });
            VolumeContentSource { snapshot: None, volume }
        });
        Volume {
            capacity_bytes: info.size,
            volume_id: at.id(),
            volume_context: context.into(),
            content_source,
            accessible_topology: Vec::new(),
        }
    }

    pub(crate) async fn make(
        &self,
        request: CreateVolumeRequest,
    ) -> Result<CreateVolumeResponse, Status> {
        required("name", &request.name)?;
        check_capabilities(&request.volume_capabilities)?;
        let size = size(request.capacity_range.as_ref())?;
        let pool = request.parameters.get("pool").cloned().unwrap_or(self.config.pool.clone());
        let at = Place { pool, image: named(IMAGE, &request.name), snap: None };
        let _claim = self.claim(&at.id())?;
        let who = &request.secrets;
        let info = match self.images.info(who, &at).await {
            Ok(info) => info,
            Err(CephError::Missing(_)) => {
                self.fill(who, &at, size, request.volume_content_source.as_ref()).await?;
                self.images.info(who, &at).await.map_err(told)?
            }
            Err(err) => return Err(told(err)),
        };
        let range = request.capacity_range.unwrap_or_default();
        let fits = info.size >= range.required_bytes
            && (range.limit_bytes == 0 || info.size <= range.limit_bytes);
        let mut volume = self.volume(&at, &info);
        if !fits || volume.content_source != request.volume_content_source {
            let why = "a volume of this name exists already with another size or source";
            return Err(Status::already_exists(why));
        }
        volume.volume_context.extend(request.parameters);
        Ok(CreateVolumeResponse { volume: Some(volume) })
    }

    /// Makes an image, empty or from another one.
    async fn fill(
        &self,
        who: &Secrets,
        at: &Place,
        size: i64,
        source: Option<&VolumeContentSource>,
    ) -> Result<(), Status> {
        let Some(source) = source else {
            return self.images.create(who, at, size).await.map_err(told);
        };
        let unknown = || Status::not_found("the source does not exist");
        let (from, temporary) = match (&source.snapshot, &source.volume) {
            (Some(snap), _) => {
                let from = Place::parse(&snap.snapshot_id).filter(|from| from.snap.is_some());
                (from.ok_or_else(unknown)?, false)
            }
            (None, Some(volume)) => {
                let from = Place::parse(&volume.volume_id).ok_or_else(unknown)?;
                (Place { snap: Some(format!("for-{}", at.image)), ..from }, true)
            }
            (None, None) => return Err(Status::invalid_argument("a source without a name")),
        };
        let before = self.images.info(who, &from.whole()).await.map_err(told)?;
        if temporary {
            match self.images.snap(who, &from).await {
                // An earlier try came so far.
                Ok(()) | Err(CephError::Exists(_)) => {}
                Err(err) => return Err(told(err)),
            }
        }
        self.images.clone_of(who, &from, at).await.map_err(told)?;
        if size > before.size {
            self.images.resize(who, at, size).await.map_err(told)?;
        }
        Ok(())
    }

    pub(crate) async fn delete(&self, request: DeleteVolumeRequest) -> Result<Empty, Status> {
        // An id that cannot be ours names nothing that is there.
        let Some(at) = Place::parse(required("volume id", &request.volume_id)?) else {
            return Ok(Empty {});
        };
        let _claim = self.claim(&at.id())?;
        let who = &request.secrets;
        // What was made on the way to a clone goes with its source.
        if let Ok(snaps) = self.images.snaps(who, &at).await {
            for snap in snaps.into_iter().filter(|snap| snap.name.starts_with("for-")) {
                let at = Place { snap: Some(snap.name), ..at.clone() };
                self.images.remove(who, &at).await.map_err(told)?;
            }
        }
        match self.images.remove(who, &at).await {
            Ok(()) | Err(CephError::Missing(_)) => Ok(Empty {}),
            Err(err) => Err(told(err)),
        }
    }

    /// Finds a volume that must be there.
    pub(crate) async fn find(&self, who: &Secrets, id: &str) -> Result<(Place, Info), Status> {
        let missing = || Status::not_found(format!("volume {id} does not exist"));
        let at = Place::parse(required("volume id", id)?).ok_or_else(missing)?;
        let info = self.images.info(who, &at).await.map_err(told)?;
        Ok((at, info))
    }

    pub(crate) async fn list(
        &self,
        request: ListVolumesRequest,
    ) -> Result<ListVolumesResponse, Status> {
        let who = Secrets::new();
        let all = self.images.list(&who, &self.config.pool).await.map_err(told)?;
        let ours: Vec<String> = all.into_iter().filter(|name| name.starts_with(IMAGE)).collect();
        let (names, next_token) = page(ours, request.max_entries, &request.starting_token)?;
        let mut entries = Vec::new();
        for image in names {
            let at = Place { pool: self.config.pool.clone(), image, snap: None };
            match self.images.info(&who, &at).await {
                Ok(info) => {
                    let volume = Some(self.volume(&at, &info));
                    entries.push(ListVolumesEntry { volume, status: None });
                }
                // Deleted since it was listed.
                Err(CephError::Missing(_)) => {}
                Err(err) => return Err(told(err)),
            }
        }
        Ok(ListVolumesResponse { entries, next_token })
    }

    pub(crate) async fn expand(
        &self,
        request: ControllerExpandVolumeRequest,
    ) -> Result<ControllerExpandVolumeResponse, Status> {
        required("volume id", &request.volume_id)?;
        let range = request.capacity_range.as_ref();
        let missing = || Status::invalid_argument("capacity range missing in request");
        let wanted = size(Some(range.ok_or_else(missing)?))?;
        let _claim = self.claim(&request.volume_id)?;
        let (at, info) = self.find(&request.secrets, &request.volume_id).await?;
        if info.size < wanted {
            self.images.resize(&request.secrets, &at, wanted).await.map_err(told)?;
        }
        let node_expansion_required =
            request.volume_capability.is_none_or(|capability| capability.block.is_none());
        let capacity_bytes = info.size.max(wanted);
        Ok(ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required })
    }

    pub(crate) async fn snapshot(
        &self,
        request: CreateSnapshotRequest,
    ) -> Result<CreateSnapshotResponse, Status> {
        required("name", &request.name)?;
        required("source volume id", &request.source_volume_id)?;
        let _claim = self.claim(&request.source_volume_id)?;
        let who = &request.secrets;
        let (source, _) = self.find(who, &request.source_volume_id).await?;
        let name = named(SNAP, &request.name);
        let known = self.all_snaps(who, &source.pool).await?;
        if known.iter().any(|(at, snap)| snap.name == name && *at != source) {
            return Err(Status::already_exists("a snapshot of this name has another source"));
        }
        let at = Place { snap: Some(name.clone()), ..source.clone() };
        match self.images.snap(who, &at).await {
            Ok(()) | Err(CephError::Exists(_)) => {}
            Err(err) => return Err(told(err)),
        }
        let snaps = self.images.snaps(who, &source).await.map_err(told)?;
        let made = snaps.iter().find(|snap| snap.name == name);
        let made = made.ok_or_else(|| Status::internal("the snapshot is not to be seen"))?;
        Ok(CreateSnapshotResponse { snapshot: Some(snapshot(&source, made)) })
    }

    async fn all_snaps(&self, who: &Secrets, pool: &str) -> Result<Vec<(Place, Snap)>, Status> {
        let mut all = Vec::new();
        for image in self.images.list(who, pool).await.map_err(told)? {
            if !image.starts_with(IMAGE) {
                continue;
            }
            let at = Place { pool: pool.to_owned(), image, snap: None };
            match self.images.snaps(who, &at).await {
                Ok(snaps) => {
                    let ours = snaps.into_iter().filter(|snap| snap.name.starts_with(SNAP));
                    all.extend(ours.map(|snap| (at.clone(), snap)));
                }
                Err(CephError::Missing(_)) => {}
                Err(err) => return Err(told(err)),
            }
        }
        Ok(all)
    }

    pub(crate) async fn delete_snap(
        &self,
        request: DeleteSnapshotRequest,
    ) -> Result<Empty, Status> {
        let at = Place::parse(required("snapshot id", &request.snapshot_id)?);
        let Some(at) = at.filter(|at| at.snap.is_some()) else { return Ok(Empty {}) };
        let _claim = self.claim(&at.whole().id())?;
        match self.images.remove(&request.secrets, &at).await {
            Ok(()) | Err(CephError::Missing(_)) => Ok(Empty {}),
            Err(err) => Err(told(err)),
        }
    }

    pub(crate) async fn list_snaps(
        &self,
        request: ListSnapshotsRequest,
    ) -> Result<ListSnapshotsResponse, Status> {
        let all = self.all_snaps(&request.secrets, &self.config.pool).await?;
        let all = all.iter().map(|(source, snap)| snapshot(source, snap));
        let asked = |snap: &Snapshot| {
            (request.snapshot_id.is_empty() || snap.snapshot_id == request.snapshot_id)
                && (request.source_volume_id.is_empty()
                    || snap.source_volume_id == request.source_volume_id)
        };
        let all: Vec<Snapshot> = all.filter(asked).collect();
        let (found, next_token) = page(all, request.max_entries, &request.starting_token)?;
        let entries =
            found.into_iter().map(|snap| ListSnapshotsEntry { snapshot: Some(snap) }).collect();
        Ok(ListSnapshotsResponse { entries, next_token })
    }
}

fn snapshot(source: &Place, snap: &Snap) -> Snapshot {
    let format = "%a %b %d %H:%M:%S %Y";
    let made = jiff::civil::DateTime::strptime(format, &snap.timestamp);
    let made = made.ok().and_then(|time| time.to_zoned(jiff::tz::TimeZone::UTC).ok());
    let seconds = made.map_or(0, |time| time.timestamp().as_second());
    Snapshot {
        size_bytes: snap.size,
        snapshot_id: Place { snap: Some(snap.name.clone()), ..source.clone() }.id(),
        source_volume_id: source.id(),
        creation_time: Some(Timestamp { seconds, nanos: 0 }),
        ready_to_use: true,
        group_snapshot_id: String::new(),
    }
}

/// One page of a list; a token is the place of the next entry.
fn page<T>(all: Vec<T>, max: i32, token: &str) -> Result<(Vec<T>, String), Status> {
    let invalid = || Status::aborted("the starting token is none of ours");
    let from: usize = if token.is_empty() { 0 } else { token.parse().map_err(|_| invalid())? };
    let max = usize::try_from(max).map_err(|_| Status::invalid_argument("negative max_entries"))?;
    let length = all.len();
    if from > length {
        return Err(invalid());
    }
    let count = if max == 0 { length } else { max };
    let next = from.saturating_add(count);
    let token = if next < length { next.to_string() } else { String::new() };
    Ok((all.into_iter().skip(from).take(count).collect(), token))
}

/// The context of a volume as a node is told it.
pub(crate) fn word<'a>(context: &'a BTreeMap<String, String>, key: &str) -> Option<&'a str> {
    context.get(key).map(String::as_str).filter(|word| !word.is_empty())
}
