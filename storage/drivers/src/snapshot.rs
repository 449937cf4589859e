//! The controller half: snapshots, each found again by the name it was asked under.

use ceph::{CephError, Place, Snap};
use csi::Status;
use csi::message::*;

use crate::controller::{named, page, told};
use crate::images::{Images, Secrets};
use crate::{Driver, required};

/// How snapshots of this driver begin.
pub(crate) const SNAP: &str = "csi-snap-";

impl<I: Images> Driver<I> {
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
        let known = self.images.table(who, &source.pool).await.map_err(told)?;
        let same = |one: &str| one == name;
        if known
            .iter()
            .any(|row| row.snapshot.as_deref().is_some_and(same) && row.image != source.image)
        {
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

    /// The snapshots of some images of a pool.
    async fn snaps_of(
        &self,
        who: &Secrets,
        pool: &str,
        asked: impl Fn(&Place, &str) -> bool,
    ) -> Result<Vec<Snapshot>, Status> {
        let mut all = Vec::new();
        let rows = self.images.table(who, pool).await.map_err(told)?;
        let mut images: Vec<Place> = Vec::new();
        for row in rows {
            let at = Place { pool: pool.to_owned(), image: row.image, snap: None };
            let own = row.snapshot.filter(|name| name.starts_with(SNAP));
            if own.is_some_and(|name| asked(&at, &name)) && images.last() != Some(&at) {
                images.push(at);
            }
        }
        for at in images {
            match self.images.snaps(who, &at).await {
                Ok(snaps) => {
                    let own = |snap: &&Snap| snap.name.starts_with(SNAP) && asked(&at, &snap.name);
                    all.extend(snaps.iter().filter(own).map(|snap| snapshot(&at, snap)));
                }
                // Deleted since it was listed.
                Err(CephError::Missing(_)) => {}
                Err(err) => return Err(told(err)),
            }
        }
        Ok(all)
    }

    pub(crate) async fn get_snap(
        &self,
        request: GetSnapshotRequest,
    ) -> Result<GetSnapshotResponse, Status> {
        let id = required("snapshot id", &request.snapshot_id)?;
        let missing = || Status::not_found(format!("snapshot {id} does not exist"));
        let at = Place::parse(id).ok_or_else(missing)?;
        let snaps = self.images.snaps(&request.secrets, &at.whole()).await.map_err(told)?;
        let found = snaps.iter().find(|snap| Some(&snap.name) == at.snap.as_ref());
        let snapshot = found.map(|snap| snapshot(&at.whole(), snap)).ok_or_else(missing)?;
        Ok(GetSnapshotResponse { snapshot: Some(snapshot) })
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
        let (id, source) = (&request.snapshot_id, &request.source_volume_id);
        let asked = |at: &Place, name: &str| {
            (id.is_empty() || *id == at.at(name.to_owned()).id())
                && (source.is_empty() || *source == at.id())
        };
        // Who asks for one thing says in its id which pool it is in.
        let named = Place::parse(if id.is_empty() { source } else { id });
        let pool = named.map_or(self.config.pool.clone(), |at| at.pool);
        let all = match self.snaps_of(&request.secrets, &pool, asked).await {
            Err(err) if err.code() == csi::Code::NotFound && pool != self.config.pool => Vec::new(),
            all => all?,
        };
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
