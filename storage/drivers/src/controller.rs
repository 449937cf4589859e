//! The controller half: volumes, each found again by the name it was asked under.
//!
//! What a volume was made from is noted at its image: Ceph renames the snapshot behind a copy when
//! it is deleted first.

use std::collections::BTreeMap;

use ceph::{CephError, Info, Parent, Place};
use csi::message::*;
use csi::{Code, Status};
use sha2::{Digest, Sha256};

use crate::images::{Images, Secrets};
use crate::snapshot::SNAP;
use crate::{Driver, IMAGE, required, topology};

/// The size of a volume when none is asked for.
const DEFAULT_BYTES: i64 = 1 << 30;
/// Sizes are rounded up to this: the program counts so.
const STEP_BYTES: i64 = 1 << 20;
/// How many digits of a name's digest are in an image's name.
const DIGEST_DIGITS: usize = 32;
/// How snapshots begin that are made on the way to a copy of a volume.
const MOMENT: &str = "for-";
/// What a node is told when a volume began as a copy.
pub(crate) const COPY: &str = "copy";
/// Under what name it is noted at an image what it was made from.
const SOURCE: &str = "muster.dev/source";

pub(crate) fn told(err: CephError) -> Status {
    match &err {
        CephError::Missing(_) => Status::not_found(err.to_string()),
        CephError::Exists(_) => Status::already_exists(err.to_string()),
        CephError::Busy(_) => Status::failed_precondition(err.to_string()),
        CephError::Denied(_) => Status::permission_denied(err.to_string()),
        CephError::Slow { .. } => Status::deadline_exceeded(err.to_string()),
        CephError::Program { .. } | CephError::Refused { .. } => Status::internal(err.to_string()),
    }
}

/// The name in the cluster for a name in the API, which may hold anything.
pub(crate) fn named(prefix: &str, name: &str) -> String {
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
    pub(crate) fn volume(&self, at: &Place, info: &Info) -> Volume {
        let context = [
            ("pool".to_owned(), at.pool.clone()),
            ("image".to_owned(), at.image.clone()),
            ("monitors".to_owned(), self.config.monitors.join(",")),
        ];
        Volume {
            capacity_bytes: info.size,
            volume_id: at.id(),
            volume_context: context.into(),
            content_source: info.parent.as_ref().map(|parent| source_of(at, parent)),
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
        let wanted = request.accessibility_requirements.as_ref();
        let (pool, reach) = match topology::choose(&request.parameters, wanted)? {
            Some(chosen) => chosen,
            None => {
                let named = request.parameters.get("pool").cloned();
                (named.unwrap_or(self.config.pool.clone()), Vec::new())
            }
        };
        let at = Place { pool, image: named(IMAGE, &request.name), snap: None };
        let _claim = self.claim(&at.id())?;
        let who = &request.secrets;
        let wanted = request.volume_content_source.as_ref();
        let found = match self.images.info(who, &at).await {
            Ok(info) => Some(info),
            Err(CephError::Missing(_)) => None,
            Err(err) => return Err(told(err)),
        };
        let begun = match found.as_ref().and_then(|info| info.parent.as_ref()) {
            // A try that ended in the middle is gone on with, if it was for the same.
            Some(parent) if wanted == Some(&source_of(&at, parent)) => {
                self.images.note(who, &at, SOURCE).await.map_err(told)?.is_none()
            }
            _ => false,
        };
        let info = match found {
            Some(info) if !begun => info,
            _ => {
                self.fill(who, &at, size, wanted).await?;
                self.images.info(who, &at).await.map_err(told)?
            }
        };
        let source = self.source(who, &at, &info).await?;
        let range = request.capacity_range.unwrap_or_default();
        let fits = info.size >= range.required_bytes
            && (range.limit_bytes == 0 || info.size <= range.limit_bytes);
        let mut volume = self.volume(&at, &info);
        volume.content_source = source;
        volume.accessible_topology = reach;
        if !fits || volume.content_source != request.volume_content_source {
            let why = "a volume of this name exists already with another size or source";
            return Err(Status::already_exists(why));
        }
        volume.volume_context.extend(request.parameters);
        if volume.content_source.is_some() {
            // The file system in a copy may be smaller than the copy.
            volume.volume_context.insert(COPY.to_owned(), "true".to_owned());
        }
        Ok(CreateVolumeResponse { volume: Some(volume) })
    }

    /// What a volume was made from: as noted, or as the cluster knows when a try ended between.
    async fn source(
        &self,
        who: &Secrets,
        at: &Place,
        info: &Info,
    ) -> Result<Option<VolumeContentSource>, Status> {
        let Some(parent) = &info.parent else { return Ok(None) };
        let noted = self.images.note(who, at, SOURCE).await.map_err(told)?;
        let noted = noted.and_then(|id| Place::parse(&id)).map(|from| from_place(&from));
        Ok(Some(noted.unwrap_or_else(|| source_of(at, parent))))
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
                (Place { snap: Some(format!("{MOMENT}{}", at.image)), ..from }, true)
            }
            (None, None) => return Err(Status::invalid_argument("a source without a name")),
        };
        let before = self.images.info(who, &from).await;
        let before = match before {
            Err(CephError::Missing(_)) if temporary => self.images.info(who, &from.whole()).await,
            before => before,
        };
        let before = before.map_err(told)?;
        if size < before.size {
            return Err(Status::out_of_range("the volume is smaller than what it is made from"));
        }
        if temporary {
            match self.images.snap(who, &from).await {
                // An earlier try came so far.
                Ok(()) | Err(CephError::Exists(_)) => {}
                Err(err) => return Err(told(err)),
            }
        }
        match self.images.clone_of(who, &from, at).await {
            Ok(()) | Err(CephError::Exists(_)) => {}
            Err(err) => return Err(told(err)),
        }
        if temporary {
            // The copy holds on to what it needs; nobody else shall see it.
            match self.images.remove(who, &from).await {
                Ok(()) | Err(CephError::Missing(_)) => {}
                Err(err) => return Err(told(err)),
            }
        }
        if size > before.size {
            self.images.resize(who, at, size).await.map_err(told)?;
        }
        // Last of all: with it the copy is whole.
        let noted = if temporary { from.whole() } else { from }.id();
        self.images.set_note(who, at, SOURCE, Some(&noted)).await.map_err(told)
    }

    pub(crate) async fn delete(&self, request: DeleteVolumeRequest) -> Result<Empty, Status> {
        // An id that cannot be ours names nothing that is there.
        let Some(at) = Place::parse(required("volume id", &request.volume_id)?) else {
            return Ok(Empty {});
        };
        let _claim = self.claim(&at.id())?;
        let who = &request.secrets;
        if let Some(node) = self.published(who, &at).await?.first() {
            let why = format!("volume {} is published to {node}", at.id());
            return Err(Status::failed_precondition(why));
        }
        // What an unfinished copy left goes with its source.
        if let Ok(snaps) = self.images.snaps(who, &at).await {
            for snap in snaps.into_iter().filter(|snap| snap.name.starts_with(MOMENT)) {
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
        let all = self.images.table(&who, &self.config.pool).await.map_err(told)?;
        let all: Vec<_> = all.into_iter().filter(|row| row.snapshot.is_none()).collect();
        let (rows, next_token) = page(all, request.max_entries, &request.starting_token)?;
        let mut entries = Vec::new();
        for row in rows {
            let at = Place { pool: self.config.pool.clone(), image: row.image, snap: None };
            let info = Info { size: row.size, parent: row.parent };
            let published_node_ids = self.published(&who, &at).await?;
            let volume = Some(Volume {
                content_source: self.source(&who, &at, &info).await?,
                ..self.volume(&at, &info)
            });
            let status = Some(VolumeStatus {
                published_node_ids,
                volume_condition: Some(well("the image is there")),
            });
            entries.push(ListVolumesEntry { volume, status });
        }
        Ok(ListVolumesResponse { entries, next_token })
    }

    /// How much can be made of a class, seen from a place: nothing where no pool is reached from or
    /// volumes cannot be used so, and nothing is promised while the cluster counts nothing.
    pub(crate) async fn capacity(
        &self,
        request: GetCapacityRequest,
    ) -> Result<GetCapacityResponse, Status> {
        let fits = request.volume_capabilities.iter().all(|one| check_capability(one).is_ok());
        let wanted = request
            .accessible_topology
            .map(|place| TopologyRequirement { requisite: vec![place], preferred: Vec::new() });
        let pool = match topology::choose(&request.parameters, wanted.as_ref()) {
            Ok(Some((pool, _))) => Some(pool),
            Ok(None) => {
                let named = request.parameters.get("pool").cloned();
                Some(named.unwrap_or(self.config.pool.clone()))
            }
            Err(status) if status.code() == Code::ResourceExhausted => None,
            Err(status) => return Err(status),
        };
        let available_capacity = match pool.filter(|_| fits) {
            Some(pool) => {
                let room = self.images.room(&Secrets::new(), &pool).await.map_err(told)?;
                room.unwrap_or_default()
            }
            None => 0,
        };
        let minimum_volume_size = Some(Int64Value { value: STEP_BYTES });
        Ok(GetCapacityResponse { available_capacity, minimum_volume_size, ..Default::default() })
    }

    pub(crate) async fn get(
        &self,
        request: ControllerGetVolumeRequest,
    ) -> Result<ControllerGetVolumeResponse, Status> {
        let who = Secrets::new();
        let (at, info) = self.find(&who, &request.volume_id).await?;
        let volume = Some(Volume {
            content_source: self.source(&who, &at, &info).await?,
            ..self.volume(&at, &info)
        });
        let status = Some(VolumeStatus {
            published_node_ids: self.published(&who, &at).await?,
            volume_condition: Some(well("the image is there")),
        });
        Ok(ControllerGetVolumeResponse { volume, status })
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
}

/// The source of a copy, from where the cluster says it came.
fn source_of(at: &Place, parent: &Parent) -> VolumeContentSource {
    let from = Place {
        pool: at.pool.clone(),
        image: parent.image.clone(),
        snap: Some(parent.snapshot.clone()).filter(|name| name.starts_with(SNAP)),
    };
    from_place(&from)
}

fn from_place(from: &Place) -> VolumeContentSource {
    match &from.snap {
        Some(_) => {
            let snapshot = Some(SnapshotSource { snapshot_id: from.id() });
            VolumeContentSource { snapshot, volume: None }
        }
        None => {
            let volume = Some(VolumeSource { volume_id: from.id() });
            VolumeContentSource { snapshot: None, volume }
        }
    }
}

fn well(message: &str) -> VolumeCondition {
    VolumeCondition { abnormal: false, message: message.to_owned() }
}

/// One page of a list; a token is the place of the next entry.
pub(crate) fn page<T>(all: Vec<T>, max: i32, token: &str) -> Result<(Vec<T>, String), Status> {
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
