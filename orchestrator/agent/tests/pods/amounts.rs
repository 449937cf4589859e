//! Stories of what containers may use: sizes that change while they run, processors of their own.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cri::Runtime;
use serde_json::{Value, json};

use crate::{LIMIT, Node, Settings, first, is_ready, one, path};

fn sized(cpu: &str, memory: &str) -> Value {
    let mut spec = one("sleep 1000");
    let amounts = json!({"cpu": cpu, "memory": memory});
    spec["containers"][0]["resources"] = json!({"requests": amounts, "limits": amounts});
    spec
}

impl Node {
    /// What a command says in a running container.
    async fn ask(&self, name: &str, script: &str) -> String {
        let pod = self.api.get(&path(name)).unwrap();
        let id = first(&pod)["containerID"].as_str().unwrap().to_owned();
        let id = id.strip_prefix("containerd://").unwrap();
        let runtime = Runtime::at(&self.containerd.socket()).unwrap();
        let command = ["sh", "-c", script].map(str::to_owned);
        let answer = runtime.exec_sync(id, &command, Duration::from_secs(20)).await.unwrap();
        String::from_utf8(answer.stdout).unwrap()
    }

    /// The processors a container may use, once they are as wanted.
    async fn await_processors(&self, name: &str, wanted: impl Fn(&BTreeSet<u32>) -> bool) {
        let limit = Instant::now() + LIMIT;
        loop {
            let text = self.ask(name, "grep Cpus_allowed_list /proc/self/status").await;
            let list = text.split_whitespace().last().unwrap_or_default();
            let seen = node::cores::parse(list).unwrap();
            if wanted(&seen) {
                return;
            }
            assert!(Instant::now() < limit, "{name} may use {seen:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_resized_where_it_runs() {
    let Some(mut node) = Node::start().await else { return };
    node.create("grown", sized("100m", "64Mi"));
    let before = node.await_pod("grown", is_ready).await;
    assert_eq!(first(&before)["resources"]["limits"]["cpu"], "100m");
    let quota = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null";
    assert!(node.ask("grown", quota).await.starts_with("10000"));

    node.api.change(&path("grown"), &json!({"spec": sized("200m", "64Mi")}));
    let told = |cpu: &'static str| {
        move |pod: &Value| {
            first(pod)["resources"]["limits"]["cpu"] == cpu
                && first(pod)["allocatedResources"]["cpu"] == cpu
        }
    };
    let after = node.await_pod("grown", told("200m")).await;
    assert_eq!(first(&after)["containerID"], first(&before)["containerID"]);
    assert_eq!(first(&after)["restartCount"], 0);
    assert!(node.ask("grown", quota).await.starts_with("20000"));

    // No machine has so many processors: the pod goes on with what it has.
    node.api.change(&path("grown"), &json!({"spec": sized("100000", "64Mi")}));
    let refused = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        conditions
            .iter()
            .any(|one| one["type"] == "PodResizePending" && one["reason"] == "Infeasible")
    };
    let kept = node.await_pod("grown", refused).await;
    assert!(told("200m")(&kept));

    // What may only change with a restart restarts.
    let mut restarted = sized("200m", "96Mi");
    restarted["containers"][0]["resizePolicy"] =
        json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    node.api.change(&path("grown"), &json!({"spec": restarted}));
    let after =
        node.await_pod("grown", |pod| first(pod)["restartCount"] == 1 && is_ready(pod)).await;
    assert_eq!(first(&after)["resources"]["limits"]["memory"], "96Mi");
    assert!(!refused(&after));
    node.kill_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guaranteed_container_has_processors_of_its_own() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        return println!("skipped: needs two processors");
    }
    let Some(mut node) = Node::start().await else { return };
    node.kill_agent().await;
    let settings = json!({"evictionHard": {}, "imageGCHighThresholdPercent": 100,
        "cpuManagerPolicy": "static", "systemReserved": {"cpu": "1"}});
    node.start_agent_with(Settings::decode(&settings).unwrap());
    node.create("many", one("sleep 1000"));
    node.await_pod("many", is_ready).await;
    node.create("own", sized("1", "64Mi"));
    node.await_pod("own", is_ready).await;
    let text = node.ask("own", "grep Cpus_allowed_list /proc/self/status").await;
    let own = node::cores::parse(text.split_whitespace().last().unwrap()).unwrap();
    assert_eq!(own.len(), 1);
    node.await_processors("many", |seen| seen.is_disjoint(&own)).await;

    // A new agent gives nothing twice; what is given back is shared again.
    node.kill_agent().await;
    node.start_agent_with(Settings::decode(&settings).unwrap());
    node.create("later", one("sleep 1000"));
    node.await_pod("later", is_ready).await;
    node.await_processors("later", |seen| seen.is_disjoint(&own)).await;
    node.api.delete_gracefully(&path("own"), 1);
    node.await_gone("own").await;
    node.await_processors("many", |seen| seen.is_superset(&own)).await;
    node.kill_agent().await;
}
