//! The client against a real containerd; skipped only where it cannot run (no root, no containerd).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test program"
)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use cri::Runtime;
use cri::message::*;
use support::{BUSYBOX, Containerd};

fn sandbox(name: &str, logs: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: format!("{name}-uid"),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: logs.into(),
        labels: BTreeMap::from([("io.kubernetes.pod.uid".into(), format!("{name}-uid"))]),
        linux: Some(LinuxPodSandboxConfig::default()),
        ..Default::default()
    }
}

fn container(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: BUSYBOX.into(), ..Default::default() }),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources { cpu_shares: 10, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn await_state(runtime: &Runtime, id: &str, wanted: ContainerState) -> ContainerStatus {
    let mut last = None;
    for _ in 0..300 {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        match runtime.container_status(request).await {
            Ok(answer) if answer.status.as_ref().is_some_and(|s| s.state() == wanted) => {
                return answer.status.unwrap();
            }
            Err(err) if !err.is_unavailable() => panic!("{err:?}"),
            other => last = Some(other),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("container {id} never became {wanted:?}; last seen: {last:?}");
}

#[tokio::test]
async fn a_pod_lives_and_dies_through_the_interface() {
    let Some(mut containerd) = Containerd::start() else { return };
    let runtime = Runtime::at(&containerd.socket()).unwrap();
    let version = runtime.version(VersionRequest::default()).await.unwrap();
    assert_eq!(version.runtime_name, "containerd");
    let status = runtime.status(StatusRequest::default()).await.unwrap().status.unwrap();
    let ready: Vec<(&str, bool)> =
        status.conditions.iter().map(|c| (c.r#type.as_str(), c.status)).collect();
    // Later releases add conditions of their own behind these.
    assert_eq!(ready.get(..2), Some([("RuntimeReady", true), ("NetworkReady", true)].as_slice()));
    let image = |image: &str| ImageStatusRequest {
        image: Some(ImageSpec { image: image.into(), ..Default::default() }),
        verbose: false,
    };
    assert!(runtime.image_status(image(BUSYBOX)).await.unwrap().image.is_some());
    assert!(runtime.image_status(image("muster.dev/none:1")).await.unwrap().image.is_none());

    let logs = containerd.dir().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let config = sandbox("one", logs.to_str().unwrap());
    let request =
        RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let pod = runtime.run_pod_sandbox(request).await.unwrap().pod_sandbox_id;
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
    let seen = runtime.pod_sandbox_status(request).await.unwrap().status.unwrap();
    assert_eq!(seen.network.unwrap().ip, "10.99.0.1");
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(container("main", "echo hello; sleep 1000")),
        sandbox_config: Some(config.clone()),
    };
    let id = runtime.create_container(request).await.unwrap().container_id;
    let request = StartContainerRequest { container_id: id.clone() };
    runtime.start_container(request).await.unwrap();
    await_state(&runtime, &id, ContainerState::Running).await;
    let command = ["/bin/sh".into(), "-c".into(), "echo out; echo err >&2; exit 3".into()];
    let answer = runtime.exec_sync(&id, &command, Duration::from_secs(5)).await.unwrap();
    assert_eq!(
        (answer.stdout, answer.stderr, answer.exit_code),
        (b"out\n".into(), b"err\n".into(), 3)
    );

    // The runtime goes away and comes back: the same client goes on, the container never stopped.
    let before = await_state(&runtime, &id, ContainerState::Running).await.started_at;
    containerd.restart();
    assert_eq!(await_state(&runtime, &id, ContainerState::Running).await.started_at, before);

    runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    let ended = await_state(&runtime, &id, ContainerState::Exited).await;
    assert_eq!(ended.exit_code, 137);
    let log = std::fs::read_to_string(logs.join("main.log")).unwrap();
    assert!(log.ends_with(" stdout F hello\n"), "{log}");
    let request = ListContainersRequest::default();
    assert_eq!(runtime.list_containers(request).await.unwrap().containers.len(), 1);
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.clone() }).await.unwrap();
    let request = RemovePodSandboxRequest { pod_sandbox_id: pod.clone() };
    runtime.remove_pod_sandbox(request.clone()).await.unwrap();
    runtime.remove_pod_sandbox(request).await.unwrap();
    let left = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
    assert!(left.items.is_empty(), "{left:?}");
    let gone = PodSandboxStatusRequest { pod_sandbox_id: pod, verbose: false };
    assert!(runtime.pod_sandbox_status(gone).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn an_absent_runtime_is_named_and_may_come_later() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Runtime::at(&dir.path().join("none.sock")).unwrap();
    let err = runtime.version(VersionRequest::default()).await.unwrap_err();
    assert!(err.is_unavailable(), "{err:?}");
    assert_eq!(err.call, "Version");
}

#[tokio::test]
async fn an_archive_is_brought_in_once_and_refused_when_it_is_none() {
    let Some(containerd) = Containerd::start() else { return };
    let runtime = Runtime::at(&containerd.socket()).unwrap();
    let archive = containerd.dir().join("more.tar");
    // The same layer under another name, and then another image under that name.
    for command in ["/bin/true", "/bin/true", "/bin/id"] {
        std::fs::write(&archive, support::image("muster.dev/more:1", &[command])).unwrap();
        assert_eq!(runtime.import_archive(&archive).await.unwrap(), ["muster.dev/more:1"]);
    }
    let image = Some(ImageSpec { image: "muster.dev/more:1".into(), ..Default::default() });
    let request = ImageStatusRequest { image, verbose: true };
    let seen = runtime.image_status(request.clone()).await.unwrap();
    assert!(seen.image.unwrap().size > 0);

    for (bytes, words) in [(&b"no archive"[..], "read"), (&[0; 1024][..], "lacks index.json")] {
        std::fs::write(&archive, bytes).unwrap();
        let err = runtime.import_archive(&archive).await.unwrap_err();
        assert!(err.to_string().contains(words), "{err}");
    }
}
