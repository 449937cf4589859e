//! Stories of control groups: each pod in its own, by its class.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{Node, Settings, first, is_ready, one, path};

/// Where the unified hierarchy is, alone or beside older ones.
fn unified() -> Option<PathBuf> {
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    places.into_iter().find(|place| place.join("cgroup.controllers").is_file())
}

/// Groups that this test made, removed when it ends, however it ends.
struct Swept(String);

impl Drop for Swept {
    fn drop(&mut self) {
        fn remove(dir: &Path) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            drop(std::fs::remove_dir(dir));
        }
        let root = Path::new("/sys/fs/cgroup");
        remove(&root.join(&self.0));
        for hierarchy in std::fs::read_dir(root).into_iter().flatten().flatten() {
            remove(&hierarchy.path().join(&self.0));
        }
    }
}

/// Whether the runtime has put a container into a group, in the hierarchy that it uses.
fn is_in(group: &str, pod: &Value) -> bool {
    let id = first(pod)["containerID"].as_str().unwrap();
    let id = id.strip_prefix("containerd://").unwrap();
    let roots = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(Path::new);
    roots.into_iter().any(|root| root.join(group).join(id).is_dir())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_grouped_by_their_class_and_stay_so() {
    let Some(place) = unified() else { return println!("skipped: needs cgroup v2") };
    let root = format!("muster-test-{}", std::process::id());
    let _swept = Swept(root.clone());
    let Some(mut node) = Node::start().await else { return };
    node.kill_agent().await;
    node.cgroups = Some(place.clone());
    let settings = json!({"evictionHard": {}, "imageGCHighThresholdPercent": 100,
        "cgroupsPerQOS": true, "cgroupRoot": format!("/{root}"), "podPidsLimit": 100});
    let settings = Settings::decode(&settings).unwrap();
    node.start_agent_with(settings.clone());
    let amounts = json!({"cpu": "100m", "memory": "32Mi"});
    let pods = [
        ("whole", "", json!({"limits": amounts})),
        ("part", "burstable/", json!({"requests": amounts})),
        ("rest", "besteffort/", json!({})),
    ];
    let mut before = Vec::new();
    for (name, class, resources) in &pods {
        let mut spec = one("sleep 1000");
        spec["containers"][0]["resources"] = resources.clone();
        node.create(name, spec);
        let pod = node.await_pod(name, is_ready).await;
        let group = format!("{root}/kubepods/{class}poduid-{name}");
        assert!(is_in(&group, &pod), "{group}");
        assert!(place.join(&group).is_dir(), "{group}");
        before.push((group, pod));
    }

    // A new agent knows the groups, and what is in them goes on.
    node.kill_agent().await;
    node.start_agent_with(settings);
    for ((name, _, _), (group, pod)) in pods.iter().zip(&before) {
        let after = node.await_pod(name, is_ready).await;
        assert_eq!(first(&after)["containerID"], first(pod)["containerID"]);
        node.api.delete_gracefully(&path(name), 1);
        node.await_gone(name).await;
        assert!(!place.join(group).exists(), "{group} is still there");
    }
    assert!(place.join(&root).join("kubepods/burstable").is_dir());
    node.kill_agent().await;
}
