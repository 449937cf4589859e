//! Stories of a machine that shuts down under its agent.

use std::process::Command;

use serde_json::{Value, json};

use crate::{Node, Settings, first, is_ready, one};

impl Node {
    /// Asks the agent to stop, while the machine's manager says this of itself.
    async fn ask_to_stop(&mut self, state: &str) {
        let manager = self.containerd.dir().join("systemctl");
        // Another process writes the program: a file that is open for writing cannot be run, and
        // whatever this process starts meanwhile would hold it open for a moment.
        let script = "printf '#!/bin/sh\necho %s\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let written = Command::new("sh").args(["-c", script]).arg(&manager).arg(state).status();
        assert!(written.unwrap().success());
        self.asked.cancel();
        self.agent.join_next().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_end_in_order_when_the_machine_does_and_only_then() {
    let Some(mut node) = Node::start().await else { return };
    node.kill_agent().await;
    let settings = json!({"evictionHard": {}, "imageGCHighThresholdPercent": 100,
        "shutdownGracePeriod": "60s", "shutdownGracePeriodCriticalPods": "30s"});
    let settings = Settings::decode(&settings).unwrap();
    node.start_agent_with(settings.clone());
    let ending = |priority: i64| {
        let mut spec = one("trap 'sleep 0.2; exit 0' TERM; while true; do sleep 0.1; done");
        spec["priority"] = json!(priority);
        spec["terminationGracePeriodSeconds"] = json!(20);
        spec
    };
    node.create("web", ending(0));
    node.create("dns", ending(2_000_001_000));
    let before = node.await_pod("web", is_ready).await;
    node.await_pod("dns", is_ready).await;

    node.ask_to_stop("running").await;
    assert_eq!(node.count("web").await, 1);
    node.start_agent_with(settings);
    let after = node.await_pod("web", is_ready).await;
    assert_eq!(first(&after)["containerID"], first(&before)["containerID"]);

    node.ask_to_stop("stopping").await;
    let ended = |pod: &Value| pod["status"]["phase"] == "Failed";
    let web = node.await_pod("web", ended).await;
    let dns = node.await_pod("dns", ended).await;
    for pod in [&web, &dns] {
        assert_eq!(pod["status"]["reason"], "Terminated");
        let words = "Pod was terminated in response to imminent node shutdown.";
        assert_eq!(pod["status"]["message"], words);
        assert_eq!(first(pod)["state"]["terminated"]["exitCode"], 0);
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        assert!(conditions.iter().any(|one| one["type"] == "DisruptionTarget"), "{conditions:?}");
    }
    let at = |pod: &Value| first(pod)["state"]["terminated"]["finishedAt"].to_string();
    assert!(at(&web) <= at(&dns), "{} {}", at(&web), at(&dns));
    let told = node.api.get("/api/v1/nodes/w1").unwrap();
    let conditions = told["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|one| one["type"] == "Ready").unwrap();
    assert_eq!(ready["status"], "False");
    assert!(ready["message"].as_str().unwrap().contains("node is shutting down"), "{ready}");
}
