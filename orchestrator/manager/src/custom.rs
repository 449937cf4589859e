//! Kinds that come and go: those of custom resource definitions, and of servers behind the API.
//!
//! Who belongs to whom, and what is left in a namespace, concerns objects of every kind. The
//! server is asked what it serves whenever a definition changes, and at a slow beat; of each kind
//! that can be listed, watched and deleted a view of the metadata is kept. A kind that is not
//! served any more is forgotten, which says nothing about its objects: only an end that was seen
//! is an end.
//!
//! Tasks: one that asks; for each kind its reflector, and one that passes changes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use control::controller::News;
use objects::intern::Row;
use objects::kind::{KINDS, Kind, by_resource, split_api_version};
use runtime::cache::{Cache, CacheParams};
use runtime::{Client, Resource, report};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::hub::{Cursors, Partial, Source};

/// How often the server is asked although nothing changed: other servers come unannounced.
const BEAT: Duration = Duration::from_secs(30);
/// How long changes of definitions are gathered before the server is asked.
const SETTLE: Duration = Duration::from_millis(100);
/// How long nobody is collected for want of a new kind's first list; upstream's.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server serves beside the built-in kinds.
#[derive(Debug, Default, Clone)]
pub(crate) struct Found {
    /// Kinds that can be listed, watched and deleted.
    pub(crate) kinds: BTreeSet<&'static Kind>,
    /// Groups that did not answer: of those nothing is known.
    pub(crate) silent: BTreeSet<String>,
}

/// One kind, as long as it is served.
struct One {
    /// Told apart from an earlier view of the same kind.
    age: u64,
    since: Instant,
    cache: Cache<Partial>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Held {
    age: u64,
    /// Has the server answered once?
    asked: bool,
    kinds: BTreeMap<&'static Kind, One>,
    /// Kinds that are not served any more, by when that was noticed.
    left: BTreeMap<&'static Kind, u64>,
}

/// The views of kinds that come and go.
pub(crate) struct Customs {
    begun: Instant,
    held: RwLock<Held>,
    bell: watch::Sender<u64>,
}

impl Customs {
    pub(crate) fn new() -> Self {
        let (bell, _) = watch::channel(0);
        Self { begun: Instant::now(), held: RwLock::default(), bell }
    }

    fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes when anything of any of these kinds changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }

    /// The kinds there are now.
    pub(crate) fn kinds(&self) -> Vec<&'static Kind> {
        self.held().kinds.keys().copied().collect()
    }

    /// Finds a kind by what a reference says; any of its versions will do.
    pub(crate) fn by_gvk(&self, api_version: &str, name: &str) -> Option<&'static Kind> {
        let (group, _) = split_api_version(api_version);
        let held = self.held();
        held.kinds.keys().copied().find(|kind| kind.group == group && kind.kind == name)
    }

    /// Does every view show a first list? One that cannot be read is not waited for without end.
    pub(crate) fn settled(&self) -> bool {
        let held = self.held();
        let ready = |one: &One| one.cache.synced() || one.since.elapsed() > PATIENCE;
        (held.asked || self.begun.elapsed() > PATIENCE) && held.kinds.values().all(ready)
    }

    /// Calls with the view of a kind, if there is one.
    pub(crate) fn with<T>(&self, kind: &Kind, then: impl FnOnce(&dyn Source) -> T) -> Option<T> {
        self.held().kinds.get(kind).map(|one| then(&one.cache))
    }

    /// How many objects of a resource there are in a namespace; `None` when nobody knows.
    pub(crate) fn count(&self, resource: &str, namespace: &str) -> Option<usize> {
        let held = self.held();
        let mut kinds = held.kinds.iter();
        let (_, one) = kinds.find(|(kind, _)| kind.qualified_plural() == resource)?;
        one.cache.synced().then(|| one.cache.count(namespace))
    }

    /// What happened to these kinds since the cursors were moved last.
    pub(crate) fn news(&self, cursors: &mut Cursors, into: &mut News) {
        let held = self.held();
        for (kind, one) in held.kinds.iter().filter(|(_, one)| one.cache.synced()) {
            one.cache.news(kind, cursors.of(kind, one.age), true, into);
        }
        for (kind, age) in &held.left {
            let cursor = cursors.of(kind, *age);
            if *cursor == 0 {
                *cursor = 1;
                into.forgotten.push(kind);
            }
        }
    }

    /// Keeps the views up to date with what is served, until `stop`.
    pub(crate) async fn run(
        self: Arc<Self>,
        stop: CancellationToken,
        client: Client,
        mut definitions: Option<watch::Receiver<u64>>,
    ) {
        let mut tasks = JoinSet::new();
        loop {
            let asked = tokio::select! { biased;
                () = stop.cancelled() => return,
                asked = ask(&client) => asked,
            };
            if let Some(found) = asked {
                self.settle(&client, &stop, &found, &mut tasks);
            }
            while tasks.try_join_next().is_some() {}
            tokio::select! { biased;
                () = stop.cancelled() => return,
                () = changed(definitions.as_mut()) => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(BEAT) => (),
            }
        }
    }

    /// Begins views of what is new and ends those of what is gone.
    fn settle(
        &self,
        client: &Client,
        stop: &CancellationToken,
        found: &Found,
        tasks: &mut JoinSet<()>,
    ) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let held = &mut *held;
        held.asked = true;
        let stays = |kind: &Kind| {
            let same = found.kinds.get(kind).is_some_and(|now| now.version == kind.version);
            same || found.silent.contains(kind.group)
        };
        let lost: Vec<&'static Kind> =
            held.kinds.keys().copied().filter(|kind| !stays(kind)).collect();
        for kind in lost {
            if let Some(one) = held.kinds.remove(kind) {
                one.stop.cancel();
            }
            held.age += 1;
            held.left.insert(kind, held.age);
        }
        for kind in &found.kinds {
            if held.kinds.contains_key(kind) {
                continue;
            }
            held.left.remove(kind);
            held.age += 1;
            let stop = stop.child_token();
            let resource = Resource::from(*kind);
            let (cache, reflector) = Cache::new(client.clone(), resource, CacheParams::default());
            tasks.spawn(pass_on(stop.clone(), cache.changes(), self.bell.clone()));
            tasks.spawn(reflector.run(stop.clone()));
            let since = Instant::now();
            held.kinds.insert(kind, One { age: held.age, since, cache, stop });
        }
        self.bell.send_modify(|number| *number += 1);
    }
}

/// Waits for a change of a definition, for ever when those are not looked at.
async fn changed(definitions: Option<&mut watch::Receiver<u64>>) {
    if let Some(definitions) = definitions
        && definitions.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Rings one bell for many.
async fn pass_on(
    stop: CancellationToken,
    mut changes: watch::Receiver<u64>,
    bell: watch::Sender<u64>,
) {
    loop {
        tokio::select! { biased;
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        bell.send_modify(|number| *number += 1);
    }
}

/// Asks which kinds the server serves that are not built in; `None` when it does not answer.
pub(crate) async fn ask(client: &Client) -> Option<Found> {
    let list = read(client, "/apis").await?;
    let mut found = Found::default();
    for group in list.get("groups").and_then(Value::as_array).into_iter().flatten() {
        let name = text(group, "name");
        for version in versions(group) {
            let Some(list) = read(client, &format!("/apis/{name}/{version}")).await else {
                found.silent.insert(name.to_owned());
                continue;
            };
            for kind in read_resources(name, version, &list) {
                // The version that clients should use comes first.
                if !found.kinds.contains(kind) {
                    found.kinds.insert(kind);
                }
            }
        }
    }
    Some(found)
}

/// What the server says at a path; `None` when it says nothing, or no.
async fn read(client: &Client, path: &str) -> Option<Value> {
    match client.raw_get(path).await {
        Ok(answer) if answer.status.is_success() => serde_json::from_slice(&answer.body).ok(),
        Ok(answer) => {
            debug!(path, status = answer.status.as_u16(), "the server does not say what it serves");
            None
        }
        Err(err) => {
            debug!(path, err = report(&err), "cannot ask what the server serves");
            None
        }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The versions of a group, the preferred one first.
fn versions(group: &Value) -> Vec<&str> {
    let preferred = group.get("preferredVersion").map_or("", |one| text(one, "version"));
    let all = group.get("versions").and_then(Value::as_array).into_iter().flatten();
    let mut all: Vec<&str> = all.map(|one| text(one, "version")).collect();
    all.sort_by_key(|version| *version != preferred);
    all
}

/// The kinds of a group and version whose objects can be looked after.
fn read_resources(group: &str, version: &str, list: &Value) -> Vec<&'static Kind> {
    let all = list.get("resources").and_then(Value::as_array).into_iter().flatten();
    let read = |one: &Value| {
        let (plural, name) = (text(one, "name"), text(one, "kind"));
        let verbs = one.get("verbs").and_then(Value::as_array)?;
        let can = |verb: &str| verbs.iter().any(|one| one.as_str() == Some(verb));
        let known = KINDS.iter().any(|kind| kind.group == group && kind.kind == name)
            || by_resource(group, version, plural).is_some();
        if known || plural.contains('/') || !["list", "watch", "delete"].into_iter().all(can) {
            return None;
        }
        let row = Row {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: name.to_owned(),
            plural: plural.to_owned(),
            namespaced: one.get("namespaced").and_then(Value::as_bool).unwrap_or_default(),
            ..Row::default()
        };
        Some(row.intern())
    };
    all.filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_kinds_that_can_be_looked_after_and_are_not_known_are_taken() {
        let all = json!(["create", "delete", "get", "list", "watch"]);
        let list = json!({"resources": [
            {"name": "pumps", "kind": "Pump", "namespaced": true, "verbs": all},
            {"name": "pumps/status", "kind": "Pump", "namespaced": true, "verbs": all},
            {"name": "figures", "kind": "Figure", "namespaced": true, "verbs": ["get", "list"]},
            {"name": "sites", "kind": "Site", "namespaced": false, "verbs": all},
        ]});
        let found: Vec<(String, bool)> = read_resources("example.com", "v2", &list)
            .into_iter()
            .map(|kind| (kind.qualified_plural(), kind.namespaced))
            .collect();
        assert_eq!(
            found,
            [("pumps.example.com".to_owned(), true), ("sites.example.com".to_owned(), false)]
        );
        let known = json!({"resources": [
            {"name": "deployments", "kind": "Deployment", "namespaced": true, "verbs": all},
            {"name": "events", "kind": "Event", "namespaced": true, "verbs": all},
        ]});
        assert_eq!(read_resources("apps", "v1", &known).len(), 1, "the event alone");
        assert_eq!(read_resources("events.k8s.io", "v1", &known).len(), 1, "the deployment alone");
    }

    #[test]
    fn the_preferred_version_comes_first() {
        let group = json!({
            "preferredVersion": {"version": "v1"},
            "versions": [{"version": "v2beta1"}, {"version": "v1"}, {"version": "v1alpha1"}],
        });
        assert_eq!(versions(&group), ["v1", "v2beta1", "v1alpha1"]);
    }
}
