//! The stories of upstream's conformance suite that need no node: those of one kind of object for
//! every kind there is, the others as files below `testdata/conformance`.
//!
//! `testdata/conformance.txt` says which of upstream's tests is played where, or why it is not.

use std::collections::BTreeSet;

use objects::kind::{self, KINDS, Kind};
use serde_json::{Value, json};

use crate::answers::{Player, testdata};
use crate::common::Cluster;

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON: &str = "application/json";
/// Where namespaced objects live.
const NAMESPACE: &str = "life";
/// The label of the objects of one life.
const SELECTOR: &str = "labelSelector=life%3Done";
/// What clients say when they delete, so that no controller is waited for.
const BACKGROUND: &str = r#"{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background","gracePeriodSeconds":0}"#;

/// One valid object of each kind, read by the server as a client sends it.
fn wishes() -> Vec<(&'static Kind, String)> {
    let text = include_str!("../../../api/testdata/objects.yaml");
    let documents = text.split("\n---\n").skip(1).map(str::to_owned);
    documents
        .map(|document| {
            let line = |key: &str| {
                let found = document.lines().find_map(|line| line.strip_prefix(key));
                found.unwrap().trim().to_owned()
            };
            let kind = kind::by_gvk(&line("apiVersion:"), &line("kind:")).unwrap();
            (kind, document)
        })
        .collect()
}

/// The life of one kind's objects, with all that went wrong.
struct Life<'a> {
    player: &'a mut Player,
    kind: &'static Kind,
    wrong: Vec<String>,
}

impl Life<'_> {
    fn path(&self, name: Option<&str>) -> String {
        self.kind.path(Some(NAMESPACE), name)
    }

    fn check(&mut self, what: &str, holds: bool, seen: &Value) {
        if !holds {
            self.wrong.push(format!("{:?}: {what}: {seen}", self.kind));
        }
    }

    async fn ask(&mut self, what: &str, code: u16, request: (&str, &str, &str, &str)) -> Value {
        let (method, path, media, body) = request;
        let (found, answer) = self.player.request(method, path, media, body).await;
        self.check(&format!("{what}: {method} {path} is answered {found}"), found == code, &answer);
        answer
    }

    /// What discovery says of the kind.
    async fn discover(&mut self) {
        let Kind { group, version, plural, .. } = *self.kind;
        let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        if !group.is_empty() {
            let groups = self.ask("groups", 200, ("GET", "/apis", "", "")).await;
            let all = groups["groups"].as_array().cloned().unwrap_or_default();
            let listed = all
                .iter()
                .any(|one| one["name"] == group && one["preferredVersion"]["version"].is_string());
            self.check("its group is listed", listed, &groups);
            let one = self.ask("group", 200, ("GET", &root, "", "")).await;
            let versions = one["versions"].as_array().cloned().unwrap_or_default();
            let there = versions.iter().any(|one| one["version"] == version);
            self.check("its version is listed", there, &one);
        }
        let list = self.ask("list", 200, ("GET", &format!("{root}/{version}"), "", "")).await;
        let rows = list["resources"].as_array().cloned().unwrap_or_default();
        let named = |name: &str| rows.iter().find(|row| row["name"] == name).cloned();
        let verbs = named(plural).unwrap_or_default()["verbs"].to_string();
        let all =
            ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        // Namespaces go one by one.
        let one_by_one = *self.kind == kind::NAMESPACE;
        let has_all = all.iter().all(|verb| {
            verbs.contains(&format!("\"{verb}\"")) != (one_by_one && *verb == "deletecollection")
        });
        self.check("all verbs are listed", has_all, &list);
        if self.kind.has_status {
            let verbs = named(&format!("{plural}/status")).unwrap_or_default()["verbs"].to_string();
            self.check("its status is listed", verbs == r#"["get","patch","update"]"#, &list);
        }
    }

    /// Makes up to three objects.
    async fn create(&mut self, document: &str) -> Vec<String> {
        let names: Vec<String> = match self.kind.kind {
            // Their names follow from what they say.
            "CustomResourceDefinition" => vec!["widgets.example.com".to_owned()],
            "APIService" => vec!["v1alpha1.wardle.example.com".to_owned()],
            "IPAddress" => [7, 8, 9].map(|n| format!("10.0.0.{n}")).to_vec(),
            _ => ["one", "two", "three"].map(str::to_owned).to_vec(),
        };
        for name in &names {
            let metadata = format!("metadata: {{name: {name}, labels: {{life: one}}}}");
            let body: String = document
                .lines()
                .map(|line| if line.starts_with("metadata:") { metadata.as_str() } else { line })
                .map(|line| format!("{line}\n").replace("namespace: a", "namespace: life"))
                .collect();
            let path = self.path(None);
            let made = self.ask("create", 201, ("POST", &path, "application/yaml", &body)).await;
            let fine = made["metadata"]["uid"].is_string() && made["kind"] == self.kind.kind;
            self.check("made", fine, &made);
        }
        names
    }

    async fn read(&mut self, names: &[String]) -> String {
        let path = self.path(Some(&names[0]));
        let one = self.ask("get", 200, ("GET", &path, "", "")).await;
        self.check("got", one["metadata"]["name"] == names[0].as_str(), &one);
        let path = format!("{}?{SELECTOR}", self.path(None));
        let list = self.ask("list", 200, ("GET", &path, "", "")).await;
        let count = list["items"].as_array().map(Vec::len);
        self.check("listed", count == Some(names.len()), &list);
        let everywhere = format!("{}?{SELECTOR}", self.kind.path(None, None));
        let all = self.ask("list all", 200, ("GET", &everywhere, "", "")).await;
        let count = all["items"].as_array().map(Vec::len);
        self.check("listed everywhere", count == Some(names.len()), &all);
        list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()
    }

    /// Awaits an event whose object has an annotation.
    async fn see(&mut self, kind: &str, what: &str, annotation: &str) {
        loop {
            let event = self.player.event("life").await;
            let annotated = event["object"]["metadata"]["annotations"][annotation] == "true";
            if annotated || event["type"] != kind {
                self.check(&format!("{what} is seen"), annotated && event["type"] == kind, &event);
                return;
            }
        }
    }

    /// Awaits what the server itself writes to a new object.
    async fn settle(&mut self, name: &str) {
        let judged = [kind::API_SERVICE, kind::FLOW_SCHEMA, kind::VALIDATING_ADMISSION_POLICY];
        if !judged.contains(self.kind) {
            return;
        }
        let path = self.path(None);
        let path = format!("{path}?watch=true&fieldSelector=metadata.name%3D{name}");
        self.player.watch("settle", &path).await;
        loop {
            let status = self.player.event("settle").await["object"]["status"].clone();
            if status["conditions"].is_array() || status["observedGeneration"].is_number() {
                return;
            }
        }
    }

    /// Patches and replaces, and sees it in the watch.
    async fn change(&mut self, name: &str) {
        let path = self.path(Some(name));
        let patch = r#"{"metadata":{"annotations":{"patched":"true"}}}"#;
        for media in [MERGE, STRATEGIC] {
            let patched = self.ask("patch", 200, ("PATCH", &path, media, patch)).await;
            let fine = patched["metadata"]["annotations"]["patched"] == "true"
                && patched["metadata"]["labels"]["life"] == "one";
            self.check("patched", fine, &patched);
        }
        self.see("MODIFIED", "the patch", "patched").await;
        let mut object = self.ask("get", 200, ("GET", &path, "", "")).await;
        object["metadata"]["annotations"]["updated"] = json!("true");
        let body = object.to_string();
        let updated = self.ask("update", 200, ("PUT", &path, JSON, &body)).await;
        self.check(
            "updated",
            updated["metadata"]["annotations"] == object["metadata"]["annotations"],
            &updated,
        );
        self.see("MODIFIED", "the update", "updated").await;
        let stale = object.to_string();
        self.ask("stale update", 409, ("PUT", &path, JSON, &stale)).await;
    }

    /// Writes the status apart from the rest.
    async fn change_status(&mut self, name: &str) {
        if !self.kind.has_status {
            return;
        }
        let main = self.path(Some(name));
        let path = format!("{main}/status");
        let before = self.ask("get status", 200, ("GET", &path, "", "")).await;
        self.check("status is the object", before["kind"] == self.kind.kind, &before);
        let (field, value, other) = status_of(self.kind);
        let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}},
                           "status": {field: value}});
        let patch = patch.to_string();
        let patched = self.ask("patch status", 200, ("PATCH", &path, MERGE, &patch)).await;
        self.check("status patched", covers(&patched["status"][field], &value), &patched);
        self.check("spec left alone", patched["spec"] == before["spec"], &patched);
        let annotated = patched["metadata"]["annotations"]["patchedstatus"] == "true";
        self.check("annotation by status", annotated == takes_metadata(self.kind), &patched);
        let mut wanted = patched.clone();
        wanted["status"][field] = other.clone();
        wanted["spec"] = json!({});
        // The server may have written to it since.
        wanted["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        let wanted = wanted.to_string();
        let put = format!("{path}?fieldValidation=Ignore");
        let updated = self.ask("update status", 200, ("PUT", &put, JSON, &wanted)).await;
        self.check("status updated", covers(&updated["status"][field], &other), &updated);
        self.check("spec left alone", updated["spec"] == before["spec"], &updated);
        let patch = json!({"status": {field: value}}).to_string();
        let ignored = self.ask("patch main", 200, ("PATCH", &main, MERGE, &patch)).await;
        self.check("status left alone", covers(&ignored["status"][field], &other), &ignored);
    }

    /// Lets go of what finalizers hold; nobody else does it here.
    async fn release(&mut self, name: &str) {
        let path = self.path(Some(name));
        let (code, held) = self.player.request("GET", &path, "", "").await;
        if code == 404 {
            return;
        }
        let going = held["metadata"]["deletionTimestamp"].is_string();
        self.check("what is held is going", going, &held);
        if *self.kind == kind::NAMESPACE {
            let mut held = held.clone();
            held["spec"]["finalizers"] = json!([]);
            let finalize = format!("{path}/finalize");
            self.ask("finalize", 200, ("PUT", &finalize, JSON, &held.to_string())).await;
        } else if held["metadata"]["finalizers"].is_array() {
            let patch = r#"{"metadata":{"finalizers":null}}"#;
            let (code, answer) = self.player.request("PATCH", &path, MERGE, patch).await;
            // The server itself may have been quicker.
            self.check("release", code == 200 || code == 404, &answer);
        }
    }

    async fn end(&mut self, names: &[String]) {
        let path = self.path(Some(&names[0]));
        self.ask("delete", 200, ("DELETE", &path, JSON, BACKGROUND)).await;
        self.release(&names[0]).await;
        self.ask("get deleted", 404, ("GET", &path, "", "")).await;
        loop {
            let event = self.player.event("life").await;
            if event["type"] == "MODIFIED" {
                continue;
            }
            self.check("the deletion is seen", event["type"] == "DELETED", &event);
            break;
        }
        let all = format!("{}?{SELECTOR}", self.path(None));
        let one_by_one = *self.kind == kind::NAMESPACE;
        let code = if one_by_one { 405 } else { 200 };
        self.ask("delete all", code, ("DELETE", &all, JSON, BACKGROUND)).await;
        for name in &names[1..] {
            if one_by_one {
                let path = self.path(Some(name));
                self.ask("delete", 200, ("DELETE", &path, JSON, BACKGROUND)).await;
            }
            self.release(name).await;
        }
        let left = self.ask("list", 200, ("GET", &all, "", "")).await;
        self.check("all are gone", left["items"] == json!([]), &left);
    }
}

/// Is all that is wanted there? The server may add to it.
fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, wanted)| found.get(key).is_some_and(|found| covers(found, wanted))),
        (Value::Array(found), Value::Array(wanted)) => {
            wanted.iter().all(|wanted| found.iter().any(|found| covers(found, wanted)))
        }
        (found, wanted) => found == wanted,
    }
}

/// A field of the kind's status with two values it may have.
fn status_of(kind: &Kind) -> (&'static str, Value, Value) {
    let condition = |name: &str| {
        json!([{"type": name, "status": "True", "reason": "Tried", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}])
    };
    let balancer = |ip: &str| json!({"ingress": [{"ip": ip}]});
    match kind.kind {
        "Machine" | "PersistentVolume" | "PersistentVolumeClaim" => {
            ("phase", json!("Tried"), json!("Bound"))
        }
        "ResourceQuota" => ("used", json!({"pods": "1"}), json!({"pods": "2"})),
        "HorizontalPodAutoscaler" => ("currentReplicas", json!(3), json!(4)),
        "Ingress" | "Service" => ("loadBalancer", balancer("192.0.2.1"), balancer("192.0.2.2")),
        "VolumeAttachment" => ("attached", json!(true), json!(false)),
        "ResourceClaim" => {
            let by = |name: &str| json!([{"resource": "pods", "name": name, "uid": "u"}]);
            ("reservedFor", by("p"), by("q"))
        }
        "CronJob" => {
            let at = |second: u8| json!(format!("2026-01-01T00:00:0{second}Z"));
            ("lastScheduleTime", at(1), at(2))
        }
        "NodeImage" => ("said", json!(true), json!(false)),
        "ValidatingAdmissionPolicy" => ("observedGeneration", json!(1), json!(2)),
        _ => ("conditions", condition("Tried"), condition("TriedAgain")),
    }
}

/// Upstream lets `/status` write metadata of all but these.
fn takes_metadata(kind: &Kind) -> bool {
    let apart = [
        "APIService",
        "CustomResourceDefinition",
        "FlowSchema",
        "PriorityLevelConfiguration",
        "ResourceClaim",
        "ValidatingAdmissionPolicy",
        "VolumeAttachment",
    ];
    !apart.contains(&kind.kind) && kind.group != "muster.dev"
}

#[tokio::test]
async fn every_kind_lives_as_upstream_says() {
    let cluster = Cluster::start().await;
    let mut player = Player::new(&cluster).await;
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let (code, _) =
        player.request("POST", "/api/v1/namespaces", JSON, &namespace.to_string()).await;
    assert_eq!(code, 201);
    let (mut wrong, mut lived) = (Vec::new(), BTreeSet::new());
    for (kind, document) in wishes() {
        let mut life = Life { player: &mut player, kind, wrong: Vec::new() };
        life.discover().await;
        let names = life.create(&document).await;
        life.settle(&names[0]).await;
        let from = life.read(&names).await;
        if life.wrong.is_empty() {
            let path = format!(
                "{}?watch=true&{SELECTOR}&fieldSelector=metadata.name%3D{}&resourceVersion={from}",
                life.path(None),
                names[0],
            );
            life.player.watch("life", &path).await;
            life.change(&names[0]).await;
            life.change_status(&names[0]).await;
            life.end(&names).await;
        }
        wrong.append(&mut life.wrong);
        lived.insert(kind);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(lived.len(), KINDS.len());
}

#[tokio::test]
async fn stories_end_as_upstream_says() {
    let cluster = Cluster::start().await;
    let mut wrong = Vec::new();
    for story in stories() {
        let mut player = Player::new(&cluster).await;
        for said in player.play(&testdata(&format!("conformance/{story}.txt"))).await {
            wrong.push(format!("{story}: {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The files of stories, by name.
fn stories() -> BTreeSet<String> {
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata/conformance");
    let files = std::fs::read_dir(folder).unwrap();
    files
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

/// Each line names one of upstream's tests and, behind ` | `, who plays it.
#[test]
fn every_story_is_told_somewhere() {
    let stories = stories();
    let sources = [
        include_str!("mod.rs"),
        include_str!("../serving.rs"),
        include_str!("../extension/mod.rs"),
        include_str!("../identity/mod.rs"),
        include_str!("../aggregation/mod.rs"),
        include_str!("../history/mod.rs"),
    ];
    let mut told = BTreeSet::new();
    for line in testdata("conformance.txt").lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, by) = line.split_once(" | ").unwrap_or_else(|| panic!("{line}"));
        assert!(told.insert(name.to_owned()), "{name} twice");
        let (how, what) = by.split_once(' ').unwrap_or((by, ""));
        let there = match how {
            "life" => what.split(", ").all(|one| KINDS.iter().any(|kind| kind.kind == one)),
            "story" => stories.contains(what),
            "test" => {
                let wanted = format!("async fn {what}(");
                sources.iter().any(|source| source.contains(&wanted))
            }
            "kubectl" => {
                let step = format!("{what}\n");
                (testdata("kubectl.txt") + &testdata("extension.txt")).contains(&step)
            }
            // What needs controllers is played where they are; the rest says why not.
            "controllers" | "not" => !what.is_empty(),
            _ => false,
        };
        assert!(there, "{line}");
    }
}
