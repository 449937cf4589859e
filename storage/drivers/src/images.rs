//! The images of a Ceph cluster as this driver asks for them: as whoever a request's secrets name.

use std::collections::BTreeMap;
use std::future::Future;

use ceph::{Cluster, Done, Info, Place, Snap};

/// Who asks: secrets of a request, called as ceph-csi calls them.
pub(crate) type Secrets = BTreeMap<String, String>;

/// A way to make and look at images.
pub(crate) trait Images: Send + Sync + 'static {
    fn create(&self, who: &Secrets, at: &Place, size: i64)
    -> impl Future<Output = Done<()>> + Send;
    fn info(&self, who: &Secrets, at: &Place) -> impl Future<Output = Done<Info>> + Send;
    fn list(&self, who: &Secrets, pool: &str) -> impl Future<Output = Done<Vec<String>>> + Send;
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

    async fn list(&self, who: &Secrets, pool: &str) -> Done<Vec<String>> {
        self.by(who).list(pool).await
    }

    async fn remove(&self, who: &Secrets, at: &Place) -> Done<()> {
        self.by(who).remove(at).await
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
}
