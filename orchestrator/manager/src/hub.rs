//! The views: one cache per kind, and how to make a `View` from them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use control::view::{Index, Reference, RequestFacts, Set, Settings, View};
use objects::certificate::CertificateSigningRequest;
use objects::kind::{KINDS, Kind};
use objects::lease::Lease;
use objects::machine::Machine;
use objects::meta::{Object, ObjectMeta};
use objects::namespace::Namespace;
use objects::network::{EndpointSlice, Endpoints, Service};
use objects::node::Node;
use objects::pod::Pod;
use objects::workload::{Deployment, ReplicaSet};
use runtime::cache::{Cache, CacheParams};
use runtime::{Client, Resource, Supervisor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::leader::LeaseLost;
use crate::signer;

/// How long a loop waits at a time for its view to show its own writes.
const CATCH_UP: Duration = Duration::from_secs(5);
/// How long it does so at all before it goes on without.
const FORGIVE: Duration = Duration::from_secs(60);

/// Any object, as far as garbage collection knows it.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Partial {
    metadata: ObjectMeta,
}

/// Any object, whole.
#[derive(Deserialize, Serialize, Default)]
#[serde(default)]
struct Loose {
    metadata: ObjectMeta,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Whatever has metadata.
trait Meta {
    fn meta(&self) -> &ObjectMeta;
}

impl Meta for Partial {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Meta for Loose {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl<T: Object> Meta for T {
    fn meta(&self) -> &ObjectMeta {
        Object::meta(self)
    }
}

/// A cache whose type does not matter.
trait Source: Send + Sync {
    fn changes(&self) -> watch::Receiver<u64>;
    /// Uid of an object that is not being deleted.
    fn living_uid(&self, namespace: &str, name: &str) -> Option<String>;
    fn references(&self, kind: &'static Kind, into: &mut Vec<Reference>);
}

impl<T: Meta + Send + Sync> Source for Cache<T> {
    fn changes(&self) -> watch::Receiver<u64> {
        Self::changes(self)
    }

    fn living_uid(&self, namespace: &str, name: &str) -> Option<String> {
        let object = self.get(namespace, name)?;
        let meta = object.meta();
        meta.deletion_timestamp.is_none().then(|| meta.uid.clone())
    }

    fn references(&self, kind: &'static Kind, into: &mut Vec<Reference>) {
        let all = self.list();
        into.extend(all.iter().map(|object| Reference {
            kind,
            meta: Arc::new(ObjectMeta {
                // Garbage collection looks at neither, and they are the bulk.
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                ..object.meta().clone()
            }),
        }));
    }
}

/// What a loop must see before it plans again.
#[derive(Debug, Clone)]
pub(crate) enum Pending {
    /// A write of this revision.
    Revision(&'static Kind, u64),
    /// The end, or the beginning of the end, of an object.
    Gone {
        /// Its kind.
        kind: &'static Kind,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
}

/// A loop's writes that its view may not show yet.
#[derive(Debug, Default)]
pub(crate) struct Unseen {
    writes: Vec<Pending>,
    since: Option<Instant>,
}

impl Extend<Pending> for Unseen {
    fn extend<I: IntoIterator<Item = Pending>>(&mut self, writes: I) {
        self.writes.extend(writes);
        if !self.writes.is_empty() {
            self.since.get_or_insert_with(Instant::now);
        }
    }
}

/// The view does not show a loop's own writes yet.
#[derive(Debug, Error)]
#[error("the view does not show our last writes yet")]
pub(crate) struct Behind;

/// A cache with the set last made of it, shared by every loop until something changes.
struct Shelf<T> {
    cache: Cache<T>,
    made: Mutex<(u64, Set<T>, Arc<Index>)>,
}

impl<T: Object> Shelf<T> {
    fn new(cache: Cache<T>) -> Self {
        Self { cache, made: Mutex::new((0, Set::default(), Arc::default())) }
    }

    fn set(&self) -> Set<T> {
        self.indexed().0
    }

    /// The set with the indexes that belong to exactly these objects.
    fn indexed(&self) -> (Set<T>, Arc<Index>) {
        // A poisoned lock still guards a whole value: it is replaced in one step.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        // The revision is read first: what comes in between is seen again the next time.
        let revision = self.cache.revision();
        if made.0 != revision {
            *made = (revision, self.cache.list().into_iter().collect(), Arc::default());
        }
        (made.1.clone(), Arc::clone(&made.2))
    }
}

/// All caches.
pub(crate) struct Hub {
    pods: Shelf<Pod>,
    nodes: Shelf<Node>,
    leases: Shelf<Lease>,
    namespaces: Shelf<Namespace>,
    services: Shelf<Service>,
    endpoints: Shelf<Endpoints>,
    slices: Shelf<EndpointSlice>,
    deployments: Shelf<Deployment>,
    replica_sets: Shelf<ReplicaSet>,
    replication_controllers: Cache<Loose>,
    machines: Shelf<Machine>,
    requests: Shelf<CertificateSigningRequest>,
    sources: BTreeMap<&'static str, (&'static Kind, Box<dyn Source>)>,
}

/// Starts caches one by one.
struct Starter<'a> {
    client: &'a Client,
    tasks: &'a mut Supervisor<LeaseLost>,
    sources: BTreeMap<&'static str, (&'static Kind, Box<dyn Source>)>,
}

impl Starter<'_> {
    fn object<T: Object + Meta>(&mut self) -> Shelf<T> {
        Shelf::new(self.start(T::KIND))
    }

    fn start<T>(&mut self, kind: &'static Kind) -> Cache<T>
    where
        T: DeserializeOwned + Meta + Send + Sync + 'static,
    {
        let resource = Resource::from(kind);
        let (cache, reflector) = Cache::new(self.client.clone(), resource, CacheParams::default());
        let stop = self.tasks.stop();
        self.tasks.spawn(format!("view of {}", kind.plural), reflector.run(stop));
        self.sources.insert(kind.plural, (kind, Box::new(cache.clone())));
        cache
    }
}

impl Hub {
    /// Starts a cache for every kind but events.
    pub(crate) fn start(client: &Client, tasks: &mut Supervisor<LeaseLost>) -> Self {
        let mut starter = Starter { client, tasks, sources: BTreeMap::new() };
        let mut hub = Self {
            pods: starter.object(),
            nodes: starter.object(),
            leases: starter.object(),
            namespaces: starter.object(),
            services: starter.object(),
            endpoints: starter.object(),
            slices: starter.object(),
            deployments: starter.object(),
            replica_sets: starter.object(),
            replication_controllers: starter.start(&objects::kind::REPLICATION_CONTROLLER),
            machines: starter.object(),
            requests: starter.object(),
            sources: BTreeMap::new(),
        };
        for kind in KINDS.iter().copied() {
            // Events belong to nobody and are many.
            if kind.kind != "Event" && !starter.sources.contains_key(kind.plural) {
                let _kept_in_sources: Cache<Partial> = starter.start(kind);
            }
        }
        hub.sources = starter.sources;
        hub
    }

    /// Wake-ups for changes of these kinds.
    ///
    /// One that looks at all is not woken by leases: heartbeats neither own nor are owned anew.
    pub(crate) fn changes(&self, needs: &[&'static Kind]) -> Vec<watch::Receiver<u64>> {
        let mut changes: Vec<_> = Vec::new();
        for (plural, (_, source)) in &self.sources {
            let named = needs.iter().any(|kind| kind.plural == *plural);
            if named || (needs.is_empty() && *plural != "leases") {
                changes.push(source.changes());
            }
        }
        changes
    }

    /// Waits for the first lists; `false` when stopped before.
    pub(crate) async fn wait_synced(
        &self,
        stop: &CancellationToken,
        needs: &[&'static Kind],
    ) -> bool {
        let changes = self.changes(needs);
        for mut change in changes {
            tokio::select! { biased;
                () = stop.cancelled() => return false,
                // The sender lives as long as we do.
                _ = change.wait_for(|revision| *revision > 0) => (),
            }
        }
        true
    }

    /// Waits, within a limit, until the views show what was just written.
    ///
    /// # Errors
    ///
    /// [`Behind`] when they do not yet: planning now could do everything twice. After a minute
    /// it is forgiven, because a view that far behind has been made anew.
    pub(crate) async fn catch_up(&self, unseen: &mut Unseen) -> Result<(), Behind> {
        let Some(since) = unseen.since else { return Ok(()) };
        let wait = async {
            for one in &unseen.writes {
                self.seen(one).await;
            }
        };
        let late = tokio::time::timeout(CATCH_UP, wait).await.is_err();
        if late && since.elapsed() < FORGIVE {
            return Err(Behind);
        }
        *unseen = Unseen::default();
        Ok(())
    }

    async fn seen(&self, pending: &Pending) {
        let kind = match pending {
            Pending::Revision(kind, _) | Pending::Gone { kind, .. } => kind,
        };
        let Some((_, source)) = self.sources.get(kind.plural) else { return };
        let mut changes = source.changes();
        // The sender lives as long as we do.
        let _open = changes
            .wait_for(|seen| match pending {
                Pending::Revision(_, revision) => seen >= revision,
                Pending::Gone { namespace, name, uid, .. } => {
                    source.living_uid(namespace, name).as_ref() != Some(uid)
                }
            })
            .await;
    }

    /// Makes the view of a loop; garbage collection (no needs) gets metadata of everything.
    pub(crate) fn view(&self, needs: &[&'static Kind], settings: &Settings) -> View {
        let mut view = View { settings: settings.clone(), ..View::default() };
        if needs.is_empty() {
            for (kind, source) in self.sources.values() {
                source.references(kind, &mut view.references);
            }
        }
        for need in needs {
            match need.kind {
                "Pod" => (view.pods, view.index) = self.pods.indexed(),
                "Node" => view.nodes = self.nodes.set(),
                "Lease" => view.leases = self.leases.set(),
                "Namespace" => view.namespaces = self.namespaces.set(),
                "Service" => view.services = self.services.set(),
                "Endpoints" => view.endpoints = self.endpoints.set(),
                "EndpointSlice" => view.slices = self.slices.set(),
                "Deployment" => view.deployments = self.deployments.set(),
                "ReplicaSet" => view.replica_sets = self.replica_sets.set(),
                "ReplicationController" => {
                    let all = self.replication_controllers.list();
                    let read = all.iter().filter_map(|one| as_replica_set(one));
                    view.replication_controllers = read.map(Arc::new).collect();
                }
                "Machine" => view.machines = self.machines.set(),
                "CertificateSigningRequest" => {
                    view.requests = self.requests.set();
                    view.facts = self.facts();
                }
                _ => (),
            }
        }
        view
    }

    /// What the bodies of undecided requests say.
    fn facts(&self) -> BTreeMap<String, RequestFacts> {
        let all = self.requests.set();
        let open = all.iter().filter(|one| !one.is_issued() && !one.is_denied());
        open.filter_map(|one| Some((one.metadata.name.clone(), signer::read_facts(one)?))).collect()
    }

    /// A request by name.
    pub(crate) fn request(&self, name: &str) -> Option<Arc<CertificateSigningRequest>> {
        self.requests.cache.get("", name)
    }
}

/// Reads a replication controller as a replica set: only the selector is written differently.
fn as_replica_set(one: &Loose) -> Option<ReplicaSet> {
    let mut value = serde_json::to_value(one).ok()?;
    let spec = value.get_mut("spec")?.as_object_mut()?;
    let selector = match spec.get("selector") {
        Some(selector) if selector.as_object().is_some_and(|map| !map.is_empty()) => {
            selector.clone()
        }
        _ => spec.get("template")?.pointer("/metadata/labels")?.clone(),
    };
    spec.insert("selector".to_owned(), json!({ "matchLabels": selector }));
    ReplicaSet::decode(&value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replication_controller_reads_as_a_replica_set() {
        let loose = |spec: Value| {
            serde_json::from_value::<Loose>(
                json!({"kind": "ReplicationController", "metadata": {"name": "a"}, "spec": spec}),
            )
            .unwrap()
        };
        let template = json!({"metadata": {"labels": {"app": "t"}}});
        let own = as_replica_set(&loose(json!({"selector": {"app": "s"}, "replicas": 2}))).unwrap();
        assert_eq!(own.spec.selector.unwrap().match_labels["app"], "s");
        assert_eq!(own.spec.replicas, Some(2));
        let from_template = as_replica_set(&loose(json!({ "template": template }))).unwrap();
        assert_eq!(from_template.spec.selector.unwrap().match_labels["app"], "t");
        assert!(as_replica_set(&loose(json!({}))).is_none());
    }
}
