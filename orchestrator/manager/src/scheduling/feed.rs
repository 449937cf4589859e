//! From caches to the scheduler's events: what happened since it last looked.

use std::collections::BTreeMap;
use std::sync::Arc;

use control::scheduler::{CRUSH_MAP, Event};
use objects::config::ConfigMap;
use objects::meta::{Object, ObjectMeta};
use objects::namespace::Namespace;
use objects::node::Node;
use objects::pod::Pod;
use objects::policy::PodDisruptionBudget;
use objects::storage::{PersistentVolume, PersistentVolumeClaim, StorageClass};
use runtime::cache::{Cache, Changes, Key};
use serde_json::Value;
use tokio::sync::watch;

/// What the scheduler looks at; a kind the server does not serve has no cache.
#[derive(Default)]
pub(crate) struct Feeds {
    pub(crate) pods: Option<Cache<Pod>>,
    pub(crate) nodes: Option<Cache<Node>>,
    pub(crate) namespaces: Option<Cache<Namespace>>,
    pub(crate) claims: Option<Cache<PersistentVolumeClaim>>,
    pub(crate) volumes: Option<Cache<PersistentVolume>>,
    pub(crate) classes: Option<Cache<StorageClass>>,
    pub(crate) csi_nodes: Option<Cache<Value>>,
    pub(crate) budgets: Option<Cache<PodDisruptionBudget>>,
    pub(crate) config_maps: Option<Cache<ConfigMap>>,
}

/// One cache, read change by change.
struct Reader<T> {
    cache: Cache<T>,
    cursor: u64,
    /// What was told last, for the day a new list comes.
    known: BTreeMap<Key, Arc<T>>,
}

impl<T: Send + Sync + 'static> Reader<T> {
    fn read(&mut self, mut tell: impl FnMut(Option<&Arc<T>>, Option<&Arc<T>>)) {
        match self.cache.changes_since(&mut self.cursor) {
            Changes::These(changes) => {
                for one in changes {
                    tell(one.before.as_ref(), one.after.as_ref());
                    match one.after {
                        Some(after) => self.known.insert(one.key, after),
                        None => self.known.remove(&one.key),
                    };
                }
            }
            Changes::Everything(all) => {
                for (key, before) in std::mem::take(&mut self.known) {
                    if !all.contains_key(&key) {
                        tell(Some(&before), None);
                    }
                }
                for after in all.values() {
                    tell(None, Some(after));
                }
                self.known = BTreeMap::clone(&all);
            }
        }
    }
}

/// All of them, in the order in which they must be read: what others refer to comes first.
pub(crate) struct Feed {
    wakes: Vec<watch::Receiver<u64>>,
    namespaces: Option<Reader<Namespace>>,
    classes: Option<Reader<StorageClass>>,
    volumes: Option<Reader<PersistentVolume>>,
    claims: Option<Reader<PersistentVolumeClaim>>,
    csi_nodes: Option<Reader<Value>>,
    budgets: Option<Reader<PodDisruptionBudget>>,
    config_maps: Option<Reader<ConfigMap>>,
    nodes: Option<Reader<Node>>,
    pods: Option<Reader<Pod>>,
}

fn reader<T: Send + Sync + 'static>(
    cache: Option<Cache<T>>,
    wakes: &mut Vec<watch::Receiver<u64>>,
) -> Option<Reader<T>> {
    let cache = cache?;
    wakes.push(cache.changes());
    Some(Reader { cache, cursor: 0, known: BTreeMap::new() })
}

/// Events of a kind that is told by its whole object, or by its name when it is gone.
fn by_meta<T: Object>(
    reader: Option<&mut Reader<T>>,
    events: &mut Vec<Event>,
    is: impl Fn(Arc<T>) -> Event,
    gone: impl Fn(&ObjectMeta) -> Event,
) {
    let Some(reader) = reader else { return };
    reader.read(|before, after| match (before, after) {
        (_, Some(after)) => events.push(is(Arc::clone(after))),
        (Some(before), None) => events.push(gone(before.meta())),
        (None, None) => (),
    });
}

impl Feed {
    pub(crate) fn new(feeds: Feeds) -> Self {
        let mut wakes = Vec::new();
        Self {
            namespaces: reader(feeds.namespaces, &mut wakes),
            classes: reader(feeds.classes, &mut wakes),
            volumes: reader(feeds.volumes, &mut wakes),
            claims: reader(feeds.claims, &mut wakes),
            csi_nodes: reader(feeds.csi_nodes, &mut wakes),
            budgets: reader(feeds.budgets, &mut wakes),
            config_maps: reader(feeds.config_maps, &mut wakes),
            nodes: reader(feeds.nodes, &mut wakes),
            pods: reader(feeds.pods, &mut wakes),
            wakes,
        }
    }

    /// Waits for the first lists.
    pub(crate) async fn wait_synced(&mut self) {
        for wake in &mut self.wakes {
            // The sender lives as long as the cache, which we hold.
            let _open = wake.wait_for(|revision| *revision > 0).await;
        }
    }

    /// Waits until anything changed. Cancel safety: safe.
    pub(crate) async fn changed(&mut self) {
        let waits = self.wakes.iter_mut().map(|wake| Box::pin(wake.changed()));
        let waits: Vec<_> = waits.collect();
        if waits.is_empty() {
            std::future::pending::<()>().await;
        }
        let _first = futures_util::future::select_all(waits).await;
    }

    /// What happened since the last time.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let told = &mut events;
        let named = |meta: &ObjectMeta| (meta.namespace.clone(), meta.name.clone());
        by_meta(self.namespaces.as_mut(), told, Event::Namespace, |meta| {
            Event::NamespaceGone(meta.name.clone())
        });
        by_meta(self.classes.as_mut(), told, Event::StorageClass, |meta| {
            Event::StorageClassGone(meta.name.clone())
        });
        by_meta(self.volumes.as_mut(), told, Event::Volume, |meta| {
            Event::VolumeGone(meta.name.clone())
        });
        by_meta(self.claims.as_mut(), told, Event::Claim, |meta| {
            let (namespace, name) = named(meta);
            Event::ClaimGone(namespace, name)
        });
        self.read_csi_nodes(told);
        by_meta(self.budgets.as_mut(), told, Event::Budget, |meta| {
            let (namespace, name) = named(meta);
            Event::BudgetGone(namespace, name)
        });
        self.read_crush_map(told);
        by_meta(self.nodes.as_mut(), told, Event::Node, |meta| Event::NodeGone(meta.name.clone()));
        self.read_pods(told);
        events
    }

    fn read_csi_nodes(&mut self, events: &mut Vec<Event>) {
        let Some(reader) = &mut self.csi_nodes else { return };
        reader.read(|before, after| match (before, after) {
            (_, Some(after)) => events.push(Event::CsiNode(Arc::clone(after))),
            (Some(before), None) => {
                let name = before.pointer("/metadata/name").and_then(Value::as_str);
                events.push(Event::CsiNodeGone(name.unwrap_or_default().to_owned()));
            }
            (None, None) => (),
        });
    }

    fn read_crush_map(&mut self, events: &mut Vec<Event>) {
        let Some(reader) = &mut self.config_maps else { return };
        let ours = |map: &Arc<ConfigMap>| {
            (map.metadata.namespace.as_str(), map.metadata.name.as_str()) == CRUSH_MAP
        };
        reader.read(|before, after| match (before, after) {
            (_, Some(after)) if ours(after) => {
                events.push(Event::CrushMap(Some(Arc::clone(after))));
            }
            (Some(before), None) if ours(before) => events.push(Event::CrushMap(None)),
            _ => (),
        });
    }

    fn read_pods(&mut self, events: &mut Vec<Event>) {
        let Some(reader) = &mut self.pods else { return };
        reader.read(|before, after| {
            // Another pod of the same name is another pod.
            let uid = before.map(|pod| &pod.metadata.uid);
            if let Some(uid) = uid.filter(|uid| after.is_none_or(|new| new.metadata.uid != **uid)) {
                events.push(Event::PodGone(uid.clone()));
            }
            events.extend(after.map(|pod| Event::Pod(Arc::clone(pod))));
        });
    }
}
