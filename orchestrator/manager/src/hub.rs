//! The views: one cache per kind, and how to make a `View` from them.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control::controller::{Controller, News};
use control::view::{Index, Key, PodIndex, RequestFacts, Set, Settings, View};
use control::view_kinds;
use control::wake::{Seen, Touch};
use objects::certificate::CertificateSigningRequest;
use objects::kind::{CUSTOM_KINDS, CUSTOM_RESOURCE_DEFINITION, KINDS, Kind, by_gvk};
use objects::meta::{Object, ObjectMeta};
use objects::pod::Pod;
use runtime::backoff::Backoff;
use runtime::cache::{Cache, CacheParams, Changes};
use runtime::{Client, ClientError, Resource, Supervisor, report};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::custom::Customs;
use crate::leader::LeaseLost;
use crate::scheduling::Feeds;
use crate::signer;

/// How long a loop waits for its view to show its own writes before it goes on without.
pub(crate) const FORGIVE: Duration = Duration::from_secs(60);

/// Any object, as far as garbage collection knows it.
#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
pub(crate) struct Partial {
    metadata: ObjectMeta,
}

impl Seen for Partial {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// How far a loop has read each view.
#[derive(Debug, Default)]
pub(crate) struct Cursors(BTreeMap<&'static Kind, (u64, u64)>);

impl Cursors {
    /// The cursor in a view of a kind; that of an earlier view of it is of no use.
    pub(crate) fn of(&mut self, kind: &'static Kind, age: u64) -> &mut u64 {
        let (had, cursor) = self.0.entry(kind).or_insert((age, 0));
        if *had != age {
            (*had, *cursor) = (age, 0);
        }
        cursor
    }
}

/// A cache whose type does not matter.
pub(crate) trait Source: Send + Sync {
    fn changes(&self) -> watch::Receiver<u64>;
    fn revision(&self) -> u64;
    /// Uid of an object that is not being deleted.
    fn living_uid(&self, namespace: &str, name: &str) -> Option<String>;
    /// How many objects there are in a namespace.
    fn count(&self, namespace: &str) -> usize;
    /// What happened since the cursor; a new list is told object by object if `whole`.
    fn news(&self, kind: &'static Kind, cursor: &mut u64, whole: bool, into: &mut News);
}

impl<T: Seen> Source for Cache<T> {
    fn changes(&self) -> watch::Receiver<u64> {
        Self::changes(self)
    }

    fn revision(&self) -> u64 {
        Self::revision(self)
    }

    fn living_uid(&self, namespace: &str, name: &str) -> Option<String> {
        let object = self.get(namespace, name)?;
        let meta = object.meta();
        meta.deletion_timestamp.is_none().then(|| meta.uid.clone())
    }

    fn count(&self, namespace: &str) -> usize {
        let all = self.snapshot();
        let from = runtime::cache::Key::new(namespace, "");
        all.range(from..).take_while(|(key, _)| key.namespace == namespace).count()
    }

    fn news(&self, kind: &'static Kind, cursor: &mut u64, whole: bool, into: &mut News) {
        let touch = |namespace: &str, name: &str, before, after| Touch {
            kind,
            key: Key::new(namespace, name),
            before,
            after,
        };
        let any = |object: Arc<T>| -> Arc<dyn Seen> { object };
        match self.changes_since(cursor) {
            Changes::These(changes) => into.touches.extend(changes.into_iter().map(|change| {
                let (before, after) = (change.before.map(any), change.after.map(any));
                touch(&change.key.namespace, &change.key.name, before, after)
            })),
            Changes::Everything(all) => {
                into.relisted.push(kind);
                if whole {
                    into.touches.extend(all.iter().map(|(key, object)| {
                        touch(&key.namespace, &key.name, None, Some(any(Arc::clone(object))))
                    }));
                }
            }
        }
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

impl Pending {
    /// The kind that was written.
    pub(crate) const fn kind(&self) -> &'static Kind {
        match self {
            Self::Revision(kind, _) | Self::Gone { kind, .. } => kind,
        }
    }
}

/// A cache with the set made of it, kept up to date change by change and shared by every loop.
struct Shelf<T> {
    /// `None` when the server does not serve the kind.
    cache: Option<Cache<T>>,
    made: Mutex<Made<T>>,
}

struct Made<T> {
    cursor: u64,
    set: Set<T>,
    /// Filled for pods alone.
    pods: PodIndex,
    index: Arc<Index>,
}

impl<T: Object + Seen> Shelf<T> {
    fn new(cache: Option<Cache<T>>) -> Self {
        let (set, pods, index) = (Set::default(), PodIndex::default(), Arc::default());
        Self { cache, made: Mutex::new(Made { cursor: 0, set, pods, index }) }
    }

    fn set(&self) -> Set<T> {
        self.indexed().0
    }

    /// The set with the indexes that belong to exactly these objects.
    fn indexed(&self) -> (Set<T>, Arc<Index>) {
        let Some(cache) = &self.cache else { return Default::default() };
        // A poisoned lock still guards a whole value: the worst is a change seen twice.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let made = &mut *made;
        match cache.changes_since(&mut made.cursor) {
            Changes::These(changes) if changes.is_empty() => (),
            Changes::These(changes) => {
                // Its hold on the pods would make every bucket that is touched a copy.
                made.index = Arc::default();
                for one in changes {
                    note(&mut made.pods, one.before.as_ref(), one.after.as_ref());
                    made.set.put(&one.key.namespace, &one.key.name, one.after);
                }
                made.index = Arc::new(Index::from(made.pods.clone()));
            }
            Changes::Everything(all) => {
                made.set = all.values().cloned().collect();
                made.pods = PodIndex::default();
                for one in all.values() {
                    note(&mut made.pods, None, Some(one));
                }
                made.index = Arc::new(Index::from(made.pods.clone()));
            }
        }
        (made.set.clone(), Arc::clone(&made.index))
    }
}

/// Takes account of a pod; other kinds have no index.
fn note<T: Object>(index: &mut PodIndex, before: Option<&Arc<T>>, after: Option<&Arc<T>>) {
    fn pod<T: Object>(one: &Arc<T>) -> Option<Arc<Pod>> {
        let any: Arc<dyn Any + Send + Sync> = Arc::<T>::clone(one);
        any.downcast().ok()
    }
    if T::KIND == Pod::KIND {
        index.note(before.and_then(pod).as_ref(), after.and_then(pod).as_ref());
    }
}

macro_rules! hub {
    ($($field:ident: $kind:ty,)*) => {
        /// All caches.
        pub(crate) struct Hub {
            $($field: Shelf<$kind>,)*
            csi_nodes: Option<Cache<Value>>,
            sources: BTreeMap<&'static Kind, Box<dyn Source>>,
            served: BTreeSet<&'static Kind>,
            pub(crate) customs: Arc<Customs>,
        }

        impl Hub {
            /// Starts a cache for every kind that is looked at but events.
            pub(crate) fn start(
                client: &Client,
                served: BTreeSet<&'static Kind>,
                looked_at: &BTreeSet<&'static Kind>,
                tasks: &mut Supervisor<LeaseLost>,
            ) -> Self {
                let sources = BTreeMap::new();
                let mut starter = Starter { client, looked_at, tasks, sources };
                $(let $field = starter.object::<$kind>();)*
                for kind in KINDS.iter().copied() {
                    // Events belong to nobody and are many.
                    if kind.kind != "Event" && !starter.sources.contains_key(kind) {
                        let _kept_in_sources: Option<Cache<Partial>> = starter.start(kind);
                    }
                }
                let csi_nodes = starter.start_whole(&objects::kind::CSI_NODE);
                let sources = starter.sources;
                let customs = Arc::new(Customs::new());
                Self { $($field,)* csi_nodes, sources, served, customs }
            }

            /// Puts the sets of these kinds into a view.
            fn fill(&self, view: &mut View, wants: impl Fn(&Kind) -> bool) {
                $(if wants(<$kind as Object>::KIND) {
                    view.$field = self.$field.set();
                })*
                if wants(Pod::KIND) {
                    (view.pods, view.index) = self.pods.indexed();
                }
                if wants(CertificateSigningRequest::KIND) {
                    view.facts = self.facts();
                }
            }
        }
    };
}

view_kinds!(hub);

/// Starts caches one by one.
struct Starter<'a> {
    client: &'a Client,
    looked_at: &'a BTreeSet<&'static Kind>,
    tasks: &'a mut Supervisor<LeaseLost>,
    sources: BTreeMap<&'static Kind, Box<dyn Source>>,
}

impl Starter<'_> {
    fn object<T: Object + Seen>(&mut self) -> Shelf<T> {
        Shelf::new(self.start(T::KIND))
    }

    /// Starts a cache of whole objects, beside the one of their metadata.
    fn start_whole(&mut self, kind: &'static Kind) -> Option<Cache<Value>> {
        if !self.looked_at.contains(kind) {
            return None;
        }
        let resource = Resource::from(kind);
        let (cache, reflector) = Cache::new(self.client.clone(), resource, CacheParams::default());
        let stop = self.tasks.stop();
        self.tasks.spawn(format!("whole view of {}", kind.qualified_plural()), reflector.run(stop));
        Some(cache)
    }

    /// Starts a cache; `None` when nobody looks at the kind, or the server does not serve it.
    fn start<T>(&mut self, kind: &'static Kind) -> Option<Cache<T>>
    where
        T: DeserializeOwned + Seen,
    {
        if !self.looked_at.contains(kind) {
            return None;
        }
        let resource = Resource::from(kind);
        let (cache, reflector) = Cache::new(self.client.clone(), resource, CacheParams::default());
        let stop = self.tasks.stop();
        self.tasks.spawn(format!("view of {}", kind.qualified_plural()), reflector.run(stop));
        self.sources.insert(kind, Box::new(cache.clone()));
        Some(cache)
    }
}

/// Asks which of our kinds the server serves; waits until it answers. `None` when stopped.
pub(crate) async fn served(
    stop: &CancellationToken,
    client: &Client,
) -> Option<BTreeSet<&'static Kind>> {
    let mut backoff = Backoff::default();
    loop {
        match ask_served(client).await {
            Ok(served) if !served.is_empty() => return Some(served),
            Ok(_) => (),
            Err(err) => debug!(err = report(&err), "cannot ask what the server serves"),
        }
        tokio::select! { biased;
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(backoff.step()) => (),
        }
    }
}

async fn ask_served(client: &Client) -> Result<BTreeSet<&'static Kind>, ClientError> {
    let mut resources: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut served = BTreeSet::new();
    for kind in KINDS.iter().chain(CUSTOM_KINDS).copied() {
        let root = if kind.group.is_empty() { "/api" } else { "/apis" };
        let path = format!("{root}/{}", kind.api_version());
        if !resources.contains_key(&path) {
            let answer = client.raw_get(&path).await?;
            let list: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let names = list.get("resources").and_then(Value::as_array).into_iter().flatten();
            let names = names.filter_map(|one| one.get("name").and_then(Value::as_str));
            let names: BTreeSet<String> = names.map(str::to_owned).collect();
            resources.insert(path.clone(), names);
        }
        if resources.get(&path).is_some_and(|names| names.contains(kind.plural)) {
            served.insert(kind);
        }
    }
    Ok(served)
}

/// Of these kinds, those that we may list: a role may be narrow, and who may not look at a kind
/// does without it.
pub(crate) async fn allowed(
    client: &Client,
    kinds: BTreeSet<&'static Kind>,
) -> BTreeSet<&'static Kind> {
    if may_list(client, "*", "*").await {
        return kinds;
    }
    let mut allowed = BTreeSet::new();
    for kind in kinds {
        if may_list(client, kind.group, kind.plural).await {
            allowed.insert(kind);
        } else {
            info!(kind = kind.qualified_plural(), "not allowed to look at a kind");
        }
    }
    allowed
}

/// Asks whether we may list something everywhere; a server that cannot say has no such rules.
async fn may_list(client: &Client, group: &str, resource: &str) -> bool {
    let asked = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "list", "group": group, "resource": resource}},
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let Ok(answer) = client.raw_post(path, &asked).await else { return true };
    let answer: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    answer.pointer("/status/allowed").and_then(Value::as_bool).unwrap_or(true)
}

impl Hub {
    /// What the scheduler reads.
    pub(crate) fn feeds(&self) -> Feeds {
        Feeds {
            pods: self.pods.cache.clone(),
            nodes: self.nodes.cache.clone(),
            namespaces: self.namespaces.cache.clone(),
            claims: self.claims.cache.clone(),
            volumes: self.volumes.cache.clone(),
            classes: self.storage_classes.cache.clone(),
            csi_nodes: self.csi_nodes.clone(),
            budgets: self.budgets.cache.clone(),
            config_maps: self.config_maps.cache.clone(),
        }
    }

    /// Does the server serve everything a controller looks at?
    pub(crate) fn suffices(&self, controller: &Controller) -> bool {
        controller.needs.iter().all(|(kind, _)| self.sources.contains_key(kind))
    }

    /// What a controller looks at.
    pub(crate) fn needs(&self, controller: &Controller) -> Vec<&'static Kind> {
        self.sources.keys().copied().filter(|kind| controller.looks_at(kind)).collect()
    }

    /// Wake-ups for changes of these kinds.
    pub(crate) fn changes(&self, needs: &[&'static Kind]) -> Vec<watch::Receiver<u64>> {
        let sources = needs.iter().filter_map(|kind| self.sources.get(kind));
        sources.map(|source| source.changes()).collect()
    }

    /// What happened to the kinds a controller looks at since it last asked.
    pub(crate) fn news(&self, controller: &Controller, cursors: &mut Cursors) -> News {
        let mut news = News::default();
        let whole = controller.needs.is_empty();
        for (kind, source) in &self.sources {
            if controller.looks_at(kind) {
                source.news(kind, cursors.of(kind, 0), whole, &mut news);
            }
        }
        if whole {
            self.customs.news(cursors, &mut news);
        }
        news
    }

    /// May this controller act on what its views show?
    pub(crate) fn settled(&self, controller: &Controller) -> bool {
        !controller.needs.is_empty() || self.customs.settled()
    }

    /// A kind by what a reference says, whether built in or not.
    pub(crate) fn by_gvk(&self, api_version: &str, kind: &str) -> Option<&'static Kind> {
        by_gvk(api_version, kind).or_else(|| self.customs.by_gvk(api_version, kind))
    }

    /// The kinds whose objects may lie in a namespace.
    pub(crate) fn inside(&self) -> Vec<&'static Kind> {
        let served = self.served.iter().copied().chain(self.customs.kinds());
        served.filter(|kind| kind.namespaced).collect()
    }

    /// Wakes when a definition changes.
    pub(crate) fn definitions(&self) -> Option<watch::Receiver<u64>> {
        Some(self.sources.get(&CUSTOM_RESOURCE_DEFINITION)?.changes())
    }

    /// How many objects of a resource (`secrets`, `pumps.example.com`) there are in a namespace.
    pub(crate) fn count(&self, resource: &str, namespace: &str) -> Option<usize> {
        let mut known = self.sources.iter();
        match known.find(|(kind, _)| kind.qualified_plural() == resource) {
            Some((_, source)) => (source.revision() > 0).then(|| source.count(namespace)),
            None => self.customs.count(resource, namespace),
        }
    }

    /// Makes the view of a controller.
    pub(crate) fn view_of(&self, controller: &Controller, settings: &Settings) -> View {
        let mut view = View { settings: settings.clone(), ..View::default() };
        self.fill(&mut view, |kind| controller.needs.iter().any(|(need, _)| *need == kind));
        view
    }

    /// Does the view of this kind show what was written?
    pub(crate) fn shows(&self, pending: &Pending) -> bool {
        let shows = |source: &dyn Source| match pending {
            Pending::Revision(_, revision) => source.revision() >= *revision,
            Pending::Gone { namespace, name, uid, .. } => {
                source.living_uid(namespace, name).as_ref() != Some(uid)
            }
        };
        match self.sources.get(pending.kind()) {
            Some(source) => shows(&**source),
            None => self.customs.with(pending.kind(), shows).unwrap_or(true),
        }
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

    /// What the bodies of undecided requests say.
    fn facts(&self) -> BTreeMap<String, RequestFacts> {
        let all = self.requests.set();
        let open = all.iter().filter(|one| !one.is_issued() && !one.is_denied());
        open.filter_map(|one| Some((one.metadata.name.clone(), signer::read_facts(one)?))).collect()
    }

    /// A request by name.
    pub(crate) fn request(&self, name: &str) -> Option<Arc<CertificateSigningRequest>> {
        self.requests.set().get("", name).cloned()
    }
}
