//! An operator as others write them, with kube-rs and its typed objects, beside our API server and
//! controllers.
//!
//! Its kind is a Pump. What a Pump wants is applied to a ConfigMap that the Pump owns, what has
//! been done stands in the Pump's status, and no Pump goes before it has been drained.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::api::events::v1::Event as Told;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
    ValidationDirective,
};
use kube::core::{GroupVersionKind, NamespaceResourceScope, ObjectMeta, PartialObjectMeta};
use kube::discovery::Scope;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::finalizer::{Event as Step, finalizer};
use kube::runtime::wait::{Condition, await_condition, conditions, delete::delete_and_finalize};
use kube::runtime::{Controller, WatchStreamExt as _, reflector, watcher};
use kube::{Client, Discovery, Resource, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::LIMIT;
use super::control::Site;

const GROUP: &str = "operator.example.com";
const HOME: &str = "works";
/// Under which name the operator writes.
const OPERATOR: &str = "pump-operator";
const FINALIZER: &str = "operator.example.com/drain";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct PumpSpec {
    litres: i32,
    #[serde(default)]
    replicas: i32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PumpStatus {
    #[serde(default)]
    phase: String,
    #[serde(default)]
    observed_generation: i64,
    #[serde(default)]
    replicas: i32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pump {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: PumpSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<PumpStatus>,
}

impl Resource for Pump {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pump".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pumps".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

fn definition() -> Value {
    let whole = json!({"type": "integer", "format": "int32"});
    let schema = json!({"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "required": ["litres"], "properties": {
            "litres": {"type": "integer", "format": "int32", "minimum": 1},
            "replicas": {"type": "integer", "format": "int32", "default": 1}}},
        "status": {"type": "object", "properties": {
            "phase": {"type": "string"}, "replicas": whole,
            "observedGeneration": {"type": "integer", "format": "int64"}}}}});
    let scale = json!({"specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("pumps.{GROUP}")},
        "spec": {
            "group": GROUP, "scope": "Namespaced",
            "names": {"kind": "Pump", "plural": "pumps", "singular": "pump"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}, "scale": scale}}],
        },
    })
}

fn pump(litres: i32) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Pump", "metadata": {"name": "one"},
        "spec": {"litres": litres}})
}

/// What the operator knows, and what it did.
struct Operator {
    client: Client,
    recorder: Recorder,
    drained: Mutex<BTreeSet<String>>,
}

/// One round: what a Pump wants is so, and its status says that it is.
async fn reconcile(
    pump: Arc<Pump>,
    operator: Arc<Operator>,
) -> Result<Action, kube::runtime::finalizer::Error<kube::Error>> {
    let pumps: Api<Pump> = Api::namespaced(operator.client.clone(), HOME);
    finalizer(&pumps, FINALIZER, pump, |step| async {
        match step {
            Step::Apply(pump) => fill(&operator, &pumps, &pump).await,
            Step::Cleanup(pump) => {
                operator.drained.lock().unwrap().insert(pump.name_any());
                Ok(Action::await_change())
            }
        }
    })
    .await
}

async fn fill(operator: &Operator, pumps: &Api<Pump>, pump: &Pump) -> Result<Action, kube::Error> {
    let owner = pump.controller_owner_ref(&()).unwrap();
    let wanted = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": pump.name_any(), "ownerReferences": [owner]},
        "data": {"litres": pump.spec.litres.to_string()}});
    let params = PatchParams::apply(OPERATOR).force();
    let parts: Api<ConfigMap> = Api::namespaced(operator.client.clone(), HOME);
    parts.patch(&pump.name_any(), &params, &Patch::Apply(&wanted)).await?;
    if pump.status.is_none() {
        let event = Event {
            type_: EventType::Normal,
            reason: "Filled".to_owned(),
            note: Some("water runs".to_owned()),
            action: "Fill".to_owned(),
            secondary: None,
        };
        operator.recorder.publish(&event, &pump.object_ref(&())).await?;
    }
    let status = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "Pump", "status": {
        "phase": "Running", "observedGeneration": pump.metadata.generation,
        "replicas": pump.spec.replicas}});
    pumps.patch_status(&pump.name_any(), &params, &Patch::Apply(&status)).await?;
    Ok(Action::await_change())
}

/// Waits for an object to be as wanted; tells what it was last when it never is.
async fn until<K>(api: &Api<K>, name: &str, wanted: impl Condition<K>) -> Option<K>
where
    K: Clone + Debug + Send + for<'a> Deserialize<'a> + Resource + 'static,
{
    match tokio::time::timeout(LIMIT, await_condition(api.clone(), name, wanted)).await {
        Ok(found) => found.unwrap(),
        Err(_) => panic!("{name} never came there; last seen: {:#?}", api.get_opt(name).await),
    }
}

/// The refusal that a call must end with.
#[track_caller]
fn refused<T: Debug>(
    answer: Result<T, kube::Error>,
    code: u16,
    reason: &str,
) -> kube::core::Status {
    match answer {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (code, reason), "{status:?}");
            *status
        }
        other => panic!("{other:?}"),
    }
}

/// Keeps copies of all Pumps as watchers do it: by list and watch, by one stream, by metadata only.
fn keep_copies(client: &Client, tasks: &mut JoinSet<()>) -> [Box<dyn Fn() -> BTreeSet<String>>; 3] {
    let pumps: Api<Pump> = Api::all(client.clone());
    let paged = watcher::Config::default().page_size(1);
    let [listed, streamed] = [paged, watcher::Config::default().streaming_lists()].map(|config| {
        let (reader, writer) = reflector::store();
        let watched = watcher(pumps.clone(), config);
        let filled = reflector::reflector(writer, watched).default_backoff();
        tasks.spawn(filled.for_each(|_| std::future::ready(())));
        let names = move || reader.state().iter().map(|one| one.name_any()).collect();
        Box::new(names) as Box<dyn Fn() -> BTreeSet<String>>
    });
    let (reader, writer) = reflector::store();
    let metas: Api<PartialObjectMeta<Pump>> = Api::all(client.clone());
    let watched = watcher(metas, watcher::Config::default().streaming_lists());
    let filled = reflector::reflector(writer, watched).default_backoff();
    tasks.spawn(filled.for_each(|_| std::future::ready(())));
    let names = move || reader.state().iter().map(|one| one.name_any()).collect();
    [listed, streamed, Box::new(names)]
}

async fn until_copied(copies: &[Box<dyn Fn() -> BTreeSet<String>>; 3], wanted: &[&str]) {
    let wanted: BTreeSet<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
    let limit = std::time::Instant::now() + LIMIT;
    while copies.iter().any(|copy| copy() != wanted) {
        let seen: Vec<_> = copies.iter().map(|copy| copy()).collect();
        assert!(std::time::Instant::now() < limit, "copies have {seen:?} instead of {wanted:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// A server with the operator's kind, and a client of it.
async fn open(site: &Site) -> Client {
    let text = std::fs::read_to_string(site.kubeconfig()).unwrap();
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    let client = Client::try_from(config).unwrap();
    assert_eq!(client.apiserver_version().await.unwrap().major, "1");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let home = Namespace {
        metadata: ObjectMeta { name: Some(HOME.to_owned()), ..ObjectMeta::default() },
        ..Namespace::default()
    };
    namespaces.create(&PostParams::default(), &home).await.unwrap();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply(OPERATOR);
    let name = format!("pumps.{GROUP}");
    let made = definitions.patch(&name, &params, &Patch::Apply(definition())).await.unwrap();
    assert_eq!(made.spec.names.kind, "Pump");
    until(&definitions, &name, conditions::is_crd_established()).await;
    client
}

fn start(client: &Client, tasks: &mut JoinSet<()>) -> Arc<Operator> {
    let recorder = Recorder::new(client.clone(), OPERATOR.into());
    let drained = Mutex::default();
    let operator = Arc::new(Operator { client: client.clone(), recorder, drained });
    let pumps: Api<Pump> = Api::all(client.clone());
    let parts: Api<ConfigMap> = Api::all(client.clone());
    let config = watcher::Config::default();
    let again = |_: Arc<Pump>, _: &_, _| Action::requeue(std::time::Duration::from_millis(100));
    let rounds = Controller::new(pumps, config.clone()).owns(parts, config).run(
        reconcile,
        again,
        Arc::clone(&operator),
    );
    tasks.spawn(rounds.for_each(|_| std::future::ready(())));
    operator
}

fn runs(generation: i64) -> impl Condition<Pump> {
    move |pump: Option<&Pump>| {
        let status = pump.and_then(|one| one.status.as_ref());
        status.is_some_and(|it| it.phase == "Running" && it.observed_generation == generation)
    }
}

fn holds(litres: &'static str) -> impl Condition<ConfigMap> {
    move |part: Option<&ConfigMap>| {
        let data = part.and_then(|one| one.data.as_ref());
        data.is_some_and(|data| data.get("litres").is_some_and(|it| it == litres))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kube_rs_operator_leads_its_objects_from_wish_to_end() {
    let mut site = Site::start().await;
    site.manage_all();
    let client = open(&site).await;
    let mut tasks = JoinSet::new();
    let copies = keep_copies(&client, &mut tasks);
    let operator = start(&client, &mut tasks);
    let pumps: Api<Pump> = Api::namespaced(client.clone(), HOME);
    let parts: Api<ConfigMap> = Api::namespaced(client.clone(), HOME);

    // A wish is fulfilled, told of, and seen by whoever keeps copies.
    let ann = PatchParams::apply("ann");
    let tried = pumps.patch("one", &ann.clone().dry_run(), &Patch::Apply(pump(3))).await.unwrap();
    assert!(tried.spec.replicas == 1 && pumps.get_opt("one").await.unwrap().is_none());
    pumps.patch("one", &ann, &Patch::Apply(pump(3))).await.unwrap();
    let made = until(&pumps, "one", runs(1)).await.unwrap();
    assert_eq!(made.finalizers(), [FINALIZER]);
    let managers: BTreeSet<_> = made
        .managed_fields()
        .iter()
        .map(|one| (one.manager.clone().unwrap(), one.operation.clone().unwrap()))
        .filter(|(manager, _)| manager == "ann" || manager == OPERATOR)
        .collect();
    let applied = ["ann", OPERATOR].map(|one| (one.to_owned(), "Apply".to_owned()));
    assert_eq!(managers, BTreeSet::from(applied));
    let part = until(&parts, "one", holds("3")).await.unwrap();
    assert_eq!(part.owner_references()[0].uid, made.uid().unwrap());
    until_copied(&copies, &["one"]).await;
    let by_pump = ListParams::default().fields("regarding.kind=Pump,reason=Filled");
    let told = Api::<Told>::namespaced(client.clone(), HOME).list(&by_pump).await.unwrap().items;
    assert_eq!(told.first().and_then(|one| one.note.as_deref()), Some("water runs"), "{told:?}");

    // A change is a new generation; what is taken away is put back.
    pumps.patch("one", &ann, &Patch::Apply(pump(5))).await.unwrap();
    until(&pumps, "one", runs(2)).await;
    let part = until(&parts, "one", holds("5")).await.unwrap();
    delete_and_finalize(parts.clone(), "one", &DeleteParams::default()).await.unwrap();
    let other = until(&parts, "one", holds("5")).await.unwrap();
    assert_ne!(other.uid(), part.uid());

    // Another's field is taken by force only, and given back by not naming it.
    let bob = PatchParams::apply("bob");
    let status = refused(pumps.patch("one", &bob, &Patch::Apply(pump(7))).await, 409, "Conflict");
    let causes = &status.details.unwrap().causes;
    assert_eq!(
        (causes[0].reason.as_str(), causes[0].field.as_str()),
        ("FieldManagerConflict", ".spec.litres")
    );
    pumps.patch("one", &bob.clone().force(), &Patch::Apply(pump(7))).await.unwrap();
    until(&pumps, "one", runs(3)).await;
    refused(pumps.patch("one", &ann, &Patch::Apply(pump(5))).await, 409, "Conflict");

    // Its size is changed without knowing its kind.
    let wish = Patch::Merge(json!({"spec": {"replicas": 4}}));
    let scale = pumps.patch_scale("one", &PatchParams::default(), &wish).await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(4));
    until(&pumps, "one", runs(4)).await;
    assert_eq!(pumps.get_scale("one").await.unwrap().status.unwrap().replicas, 4);

    // It goes when it has been drained, and what it owned goes after it.
    let params = DeleteParams::default();
    let stale = Preconditions { uid: Some("another".to_owned()), resource_version: None };
    let other = params.clone().preconditions(stale);
    refused(pumps.delete("one", &other).await, 409, "Conflict");
    let gone = delete_and_finalize(pumps.clone(), "one", &params);
    tokio::time::timeout(LIMIT, gone).await.expect("the pump goes").unwrap();
    assert_eq!(*operator.drained.lock().unwrap(), BTreeSet::from(["one".to_owned()]));
    until(&parts, "one", |part: Option<&ConfigMap>| part.is_none()).await;
    until_copied(&copies, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_rs_finds_kinds_at_run_time_and_handles_their_objects() {
    // Nobody else may add kinds while they are counted.
    let site = Site::start().await;
    let client = open(&site).await;
    let kind = GroupVersionKind::gvk(GROUP, "v1", "Pump");
    let one_by_one = Discovery::new(client.clone()).run().await.unwrap();
    let at_once = Discovery::new(client.clone()).run_aggregated().await.unwrap();
    let mut seen: Vec<BTreeSet<String>> = Vec::new();
    for found in [&one_by_one, &at_once] {
        let (resource, can) = found.resolve_gvk(&kind).unwrap();
        assert_eq!((resource.plural.as_str(), &can.scope), ("pumps", &Scope::Namespaced));
        let under: BTreeSet<_> =
            can.subresources.iter().map(|(one, _)| one.plural.clone()).collect();
        assert_eq!(under, BTreeSet::from(["scale".to_owned(), "status".to_owned()]));
        let groups = found.groups().flat_map(|group| group.recommended_resources());
        seen.push(groups.map(|(one, _)| format!("{} {}", one.api_version, one.plural)).collect());
    }
    assert_eq!(seen[0], seen[1]);

    let (resource, _) = at_once.resolve_gvk(&kind).unwrap();
    let pumps: Api<DynamicObject> = Api::namespaced_with(client.clone(), HOME, &resource);
    let make = |name: &str, litres: i32| {
        DynamicObject::new(name, &resource).data(json!({"spec": {"litres": litres}}))
    };
    for name in ["one", "two", "three"] {
        let made = pumps.create(&PostParams::default(), &make(name, 1)).await.unwrap();
        assert_eq!(made.data["spec"]["replicas"], 1, "defaults are filled in");
    }
    let status =
        refused(pumps.create(&PostParams::default(), &make("none", 0)).await, 422, "Invalid");
    assert_eq!(status.details.unwrap().causes[0].field, "spec.litres");
    let field_validation = Some(ValidationDirective::Strict);
    let strict = PatchParams { field_validation, ..PatchParams::default() };
    let odd = Patch::Merge(json!({"spec": {"colour": "red"}}));
    refused(pumps.patch("one", &strict, &odd).await, 422, "Invalid");

    // Page by page, by metadata, by entry, and all at once.
    let mut params = ListParams::default().limit(2);
    let mut names = Vec::new();
    loop {
        let page = pumps.list(&params).await.unwrap();
        names.extend(page.items.iter().map(|one| one.name_any()));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(names, ["one", "three", "two"]);
    let mark = json!({"metadata": {"labels": {"colour": "red"}}});
    pumps.patch_metadata("one", &PatchParams::default(), &Patch::Merge(mark)).await.unwrap();
    let red = ListParams::default().labels("colour=red");
    let listed = pumps.list_metadata(&red).await.unwrap();
    assert_eq!((listed.items.len(), listed.items[0].name_any()), (1, "one".to_owned()));
    let mut entry = pumps.entry("two").await.unwrap().or_insert(|| make("two", 9));
    entry.get_mut().data["spec"]["litres"] = json!(2);
    entry.commit(&PostParams::default()).await.unwrap();
    assert_eq!(pumps.get("two").await.unwrap().data["spec"]["litres"], 2);
    let all = pumps.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
    all.unwrap();
    assert_eq!(pumps.list(&ListParams::default()).await.unwrap().items.len(), 0);
}
