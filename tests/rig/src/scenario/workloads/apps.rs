//! Applications: what is deployed, updated, scaled and started by the clock.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{LIMIT, Site};
use crate::wait::{Seen, await_until};

/// A page, a backend and a database with a volume: a word put in comes out again, also after the
/// database was killed.
pub(super) fn three_tiers_keep_a_word(site: &Site) -> Result<()> {
    site.apply("tiers", include_str!("tiers.yaml"))?;
    for (selector, count) in [("app=database", 1), ("app=backend", 2), ("app=ui", 1)] {
        site.kubectl.await_pods(selector, count, LIMIT, |_| true)?;
    }
    // The page's only pod is on another machine: every node answers for a node port.
    let ui = site.node_port("ui", "b-worker")?;
    site.await_answer(ui, "/cgi-bin/ui?put=harbour", "page: kept")?;
    site.await_answer(ui, "/cgi-bin/ui?get", "page: harbour")?;
    site.story.ok("three tiers keep a word; the page answers on a node without a pod of it")?;
    let uid = |pod: &Value| pod.pointer("/metadata/uid").cloned();
    let before = uid(&site.kubectl.json(&["get", "pod", "database-0"])?);
    site.delete(&["pod", "database-0"])?;
    await_until("another database-0", LIMIT, || {
        let pod = site.kubectl.json(&["get", "pod", "database-0"])?;
        Ok(if uid(&pod) == before { Seen::NotYet(pod.to_string()) } else { Seen::There(()) })
    })?;
    site.kubectl.await_pods("app=database", 1, LIMIT, |pod| pod.name == "database-0")?;
    site.await_answer(ui, "/cgi-bin/ui?get", "page: harbour")?;
    site.story.ok("the database, deleted, comes back under its name with its volume")?;
    site.delete(&["statefulset/database", "deployment/backend", "deployment/ui"])?;
    site.delete(&["service/database", "service/backend", "service/ui", "configmap/tiers"])
}

/// What a user under way has heard.
#[derive(Debug, Default)]
struct Heard {
    answers: u64,
    versions: BTreeSet<String>,
    failures: Vec<String>,
}

/// Rolls an update out and back while somebody asks without pause.
pub(super) fn an_update_under_load_loses_nothing(site: &Site) -> Result<()> {
    site.apply("shop", include_str!("shop.yaml"))?;
    site.kubectl.await_pods("app=shop", 3, LIMIT, |_| true)?;
    let doors = ["a-master", "b-worker"].map(|machine| site.node_port("shop", machine));
    let [near, far] = doors;
    let doors = [near?, far?];
    for door in doors {
        site.await_answer(door, "/", "one")?;
    }
    let heard = Mutex::new(Heard::default());
    let done = AtomicBool::new(false);
    let rolled = std::thread::scope(|scope| {
        for door in doors {
            let (heard, done) = (&heard, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let answer = site.rig.ask(door, "/", None);
                    let Ok(mut heard) = heard.lock() else { return };
                    match answer {
                        Ok(answer) if answer.status == 200 => {
                            heard.answers += 1;
                            heard.versions.insert(answer.body.trim().to_owned());
                        }
                        Ok(answer) => heard.failures.push(format!("{answer:?}")),
                        Err(err) => heard.failures.push(format!("{err:#}")),
                    }
                }
            });
        }
        let rolled = roll(site);
        done.store(true, Ordering::Relaxed);
        rolled
    });
    rolled?;
    let heard = heard.into_inner().context("a user of the shop fell over")?;
    let Heard { answers, versions, failures } = heard;
    let versions: Vec<String> = versions.into_iter().collect();
    ensure!(failures.is_empty(), "{} of {answers} requests lost: {failures:?}", failures.len());
    ensure!(versions == ["one", "two"], "heard versions {versions:?}");
    site.story.ok(format_args!("an update and its rollback lost none of {answers} requests"))?;
    site.delete(&["deployment/shop", "service/shop"])
}

fn roll(site: &Site) -> Result<()> {
    let status = ["rollout", "status", "deployment/shop", "--timeout=300s", "--request-timeout=0"];
    site.kubectl.run(&["set", "env", "deployment/shop", "VERSION=two"])?;
    site.kubectl.run(&status)?;
    let history = site.kubectl.run(&["rollout", "history", "deployment/shop"])?;
    ensure!(history.lines().any(|line| line.starts_with("2 ")), "history: {history}");
    site.kubectl.run(&["rollout", "undo", "deployment/shop"])?;
    site.kubectl.run(&status)?;
    let shop = site.kubectl.json(&["get", "deployment", "shop"])?;
    let version = shop.pointer("/spec/template/spec/containers/0/env/0/value");
    ensure!(version.and_then(Value::as_str) == Some("one"), "after undo: {version:?}");
    Ok(())
}

/// A ReplicationController, scaled, exposed, chosen by labels.
pub(super) fn old_controllers_scale_and_are_exposed(site: &Site) -> Result<()> {
    site.apply("old", include_str!("old.yaml"))?;
    site.kubectl.await_pods("app=old", 1, LIMIT, |_| true)?;
    site.kubectl.run(&["scale", "rc", "old", "--replicas=2"])?;
    let pods = site.kubectl.await_pods("app=old", 2, LIMIT, |_| true)?;
    let expose = ["expose", "rc", "old", "--port=80", "--target-port=8080", "--type=NodePort"];
    site.kubectl.run(&expose)?;
    let names: BTreeSet<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    let door = site.node_port("old", "a-worker")?;
    let first = await_until("the exposed controller", LIMIT, || {
        let answer = site.rig.ask(door, "/", None)?;
        let name = answer.body.trim().to_owned();
        let ours = names.contains(name.as_str());
        Ok(if ours { Seen::There(name) } else { Seen::NotYet(format!("{answer:?}")) })
    })?;
    // A pod whose label is taken away is no longer one of them: another takes its place.
    site.kubectl.run(&["label", "pod", &first, "app-"])?;
    let again = site.kubectl.await_pods("app=old", 2, LIMIT, |_| true)?;
    ensure!(again.iter().all(|pod| pod.name != first), "{first} is still counted: {again:?}");
    await_until("the answers to leave the pod without label", LIMIT, || {
        let mut heard = BTreeSet::new();
        for _ in 0..12 {
            heard.insert(site.rig.ask(door, "/", None)?.body.trim().to_owned());
        }
        let left = !heard.contains(&first) && heard.len() == 2;
        Ok(if left { Seen::There(()) } else { Seen::NotYet(format!("{heard:?}")) })
    })?;
    site.story.ok("scale rc, expose and labels tie pods, controller and service together")?;
    site.delete(&["rc/old", "service/old", &format!("pod/{first}")])
}

/// A HorizontalPodAutoscaler adds a replica to what is busier than it asked for.
pub(super) fn a_scaler_follows_the_load(site: &Site) -> Result<()> {
    site.apply("busy", include_str!("busy.yaml"))?;
    site.kubectl.await_pods("app=busy", 1, LIMIT, |_| true)?;
    let autoscale = ["autoscale", "deployment", "busy", "--min=1", "--max=2", "--cpu-percent=80"];
    site.kubectl.run(&autoscale)?;
    site.kubectl.await_pods("app=busy", 2, LIMIT, |_| true)?;
    let top = await_until("kubectl top", LIMIT, || {
        let top = site.kubectl.run(&["top", "pods", "-l", "app=busy", "--no-headers"])?;
        Ok(if top.lines().count() == 2 { Seen::There(top) } else { Seen::NotYet(top) })
    })?;
    let scaler = site.kubectl.json(&["get", "hpa", "busy"])?;
    let events =
        site.kubectl.run(&["get", "events", "--field-selector", "reason=SuccessfulRescale"])?;
    ensure!(events.contains("busy"), "no event tells of the new size: {events}\n{scaler}");
    site.story.ok(format_args!("a scaler adds a replica to busy pods:\n{}", top.trim_end()))?;
    site.delete(&["hpa/busy", "deployment/busy"])
}

/// A CronJob fires, its Job completes, its log can be read.
pub(super) fn the_clock_starts_a_job(site: &Site) -> Result<()> {
    site.apply("tick", include_str!("tick.yaml"))?;
    let job = await_until("the clock to start a job that completes", LIMIT, || {
        let list = site.kubectl.json(&["get", "jobs"])?;
        let items = list.get("items").and_then(Value::as_array).context("a list of jobs")?;
        let done =
            |job: &&Value| job.pointer("/status/succeeded").and_then(Value::as_u64) == Some(1);
        let name = |job: &Value| job.pointer("/metadata/name")?.as_str().map(str::to_owned);
        Ok(match items.iter().find(done).and_then(name) {
            Some(name) => Seen::There(name),
            None => Seen::NotYet(list.to_string()),
        })
    })?;
    let log = site.kubectl.run(&["logs", &format!("job/{job}")])?;
    ensure!(log.trim() == "tock", "the job's log: {log:?}");
    site.story.ok(format_args!("a CronJob fired: {job} completed"))?;
    site.delete(&["cronjob/tick"])
}
