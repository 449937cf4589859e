//! The images of a Ceph cluster as this driver asks for them: as whoever a request's secrets name.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use ceph::{Cluster, Done, Info, Place, Row, Snap};

use crate::IMAGE;

/// How long a fenced client stays fenced: longer than any machine is forgotten and found again.
const FENCE_SECONDS: u32 = 365 * 24 * 3600;

/// Who asks: secrets of a request, called as ceph-csi calls them.
pub(crate) type Secrets = BTreeMap<String, String>;

/// A way to make and look at images.
pub(crate) trait Images: Send + Sync + 'static {
    fn create(&self, who: &Secrets, at: &Place, size: i64)
    -> impl Future<Output = Done<()>> + Send;
    fn info(&self, who: &Secrets, at: &Place) -> impl Future<Output = Done<Info>> + Send;
    /// The driver's own images of a pool, and their snapshots.
    fn table(&self, who: &Secrets, pool: &str) -> impl Future<Output = Done<Vec<Row>>> + Send;
    /// How many bytes more a pool may hold; `None` where nobody counts.
    fn room(&self, who: &Secrets, pool: &str) -> impl Future<Output = Done<Option<i64>>> + Send;
    /// Deletes a snapshot, or an image, though others are made of it.
    fn remove(&self, who: &Secrets, at: &Place) -> impl Future<Output = Done<()>> + Send;
    fn resize(&self, who: &Secrets, at: &Place, size: i64)
    -> impl Future<Output = Done<()>> + Send;
    fn snaps(&self, who: &Secrets, at: &Place) -> impl Future<Output = Done<Vec<Snap>>> + Send;
    fn snap(&self, who: &Secrets, at: &Place) -> impl Future<Output = Done<()>> + Send;
    fn clone_of(
        &self,
        who: &Secrets,
        from: &Place,
        to: &Place,
    ) -> impl Future<Output = Done<()>> + Send;
    /// What is noted at an image under a name.
    fn note(
        &self,
        who: &Secrets,
        at: &Place,
        name: &str,
    ) -> impl Future<Output = Done<Option<String>>> + Send;
    fn set_note(
        &self,
        who: &Secrets,
        at: &Place,
        name: &str,
        text: Option<&str>,
    ) -> impl Future<Output = Done<()>> + Send;
    /// Who can write to an image: address with nonce.
    fn clients(
        &self,
        who: &Secrets,
        at: &Place,
    ) -> impl Future<Output = Done<BTreeSet<String>>> + Send;
    /// Forbids a client to write; returns when the cluster has agreed.
    fn fence(&self, who: &Secrets, client: &str) -> impl Future<Output = Done<()>> + Send;
}

/// A real cluster; its user and key are those of each request.
#[derive(Debug, Clone)]
pub(crate) struct Real(pub(crate) Cluster);

impl Real {
    fn by(&self, who: &Secrets) -> Cluster {
        let user = who.get("userID").cloned().or(self.0.user.clone());
        Cluster { user, key: who.get("userKey").cloned(), ..self.0.clone() }
    }
}

impl Images for Real {
    async fn create(&self, who: &Secrets, at: &Place, size: i64) -> Done<()> {
        self.by(who).create(at, size).await
    }

    async fn info(&self, who: &Secrets, at: &Place) -> Done<Info> {
        self.by(who).info(at).await
    }

    async fn table(&self, who: &Secrets, pool: &str) -> Done<Vec<Row>> {
        let mut all = self.by(who).table(pool).await?;
        all.retain(|row| row.image.starts_with(IMAGE));
        Ok(all)
    }

    async fn room(&self, who: &Secrets, pool: &str) -> Done<Option<i64>> {
        self.by(who).room(pool).await
    }

    async fn remove(&self, who: &Secrets, at: &Place) -> Done<()> {
        let cluster = self.by(who);
        match at.snap {
            Some(_) => cluster.remove(at).await,
            None => cluster.discard(at, IMAGE).await,
        }
    }

    async fn resize(&self, who: &Secrets, at: &Place, size: i64) -> Done<()> {
        self.by(who).resize(at, size).await
    }

    async fn snaps(&self, who: &Secrets, at: &Place) -> Done<Vec<Snap>> {
        self.by(who).snaps(at).await
    }

    async fn snap(&self, who: &Secrets, at: &Place) -> Done<()> {
        self.by(who).snap(at).await
    }

    async fn clone_of(&self, who: &Secrets, from: &Place, to: &Place) -> Done<()> {
        self.by(who).copy(from, to).await
    }

    async fn note(&self, who: &Secrets, at: &Place, name: &str) -> Done<Option<String>> {
        self.by(who).note(at, name).await
    }

    async fn set_note(
        &self,
        who: &Secrets,
        at: &Place,
        name: &str,
        text: Option<&str>,
    ) -> Done<()> {
        self.by(who).set_note(at, name, text).await
    }

    async fn clients(&self, who: &Secrets, at: &Place) -> Done<BTreeSet<String>> {
        self.by(who).clients(at).await
    }

    async fn fence(&self, who: &Secrets, client: &str) -> Done<()> {
        self.by(who).fence(client, FENCE_SECONDS).await
    }
}
