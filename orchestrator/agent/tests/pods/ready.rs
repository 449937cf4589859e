//! What a node says of itself while it comes up.

use std::time::{Duration, Instant};

use node::service::Progress;
use serde_json::Value;

use crate::{LIMIT, Node};

impl Node {
    /// Waits until the node's condition `Ready` is so, and gives it.
    async fn await_ready(&self, status: &str) -> Value {
        let limit = Instant::now() + LIMIT;
        loop {
            let node = self.api.get("/api/v1/nodes/w1").unwrap_or_default();
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.into_iter().find(|one| one["type"] == "Ready");
            if let Some(ready) = ready.as_ref().filter(|ready| ready["status"] == status) {
                return ready.clone();
            }
            assert!(Instant::now() < limit, "Ready is never {status}; last seen: {ready:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_ready_when_its_services_are_in_force() {
    let Some(mut node) = Node::start().await else { return };
    let ready = node.await_ready("True").await;
    assert_eq!(ready["reason"], "KubeletReady", "nobody loads services here: nothing to wait for");
    node.kill_agent().await;

    let served = agent::Served::awaited();
    // However slow this machine is: for this there is no limit.
    served.tell(Progress::Loading);
    node.served = served.clone();
    node.start_agent();
    let unready = node.await_ready("False").await;
    assert_eq!(unready["reason"], "KubeletNotReady");
    let words = unready["message"].as_str().unwrap();
    assert!(words.contains("service table is not loaded yet"), "{words}");
    served.tell(Progress::Refused("no such file".to_owned()));
    served.tell(Progress::Done);
    let ready = node.await_ready("True").await;
    assert_eq!(ready["message"], "kubelet is posting ready status");
}
