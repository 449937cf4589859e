use super::*;
use crate::request::{Route, parse_request};

const NOW: &str = "2026-01-01T01:00:00Z";

/// Prints the table as kubectl does: narrow columns, then the wide ones after a bar.
#[track_caller]
fn check(url: &str, object: Value, expected: &str) {
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let Ok(Route::Resource(request)) = parse_request("GET", path, query) else {
        panic!("{url}");
    };
    let now = NOW.parse().unwrap();
    let table = render_table(&request, [&object], &ListMeta::default(), MetaVersion::V1, true, now);
    let columns = table["columnDefinitions"].as_array().unwrap();
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(columns.len(), cells.len(), "{columns:?} {cells:?}");
    let shown = |wide: i64| -> Vec<String> {
        columns
            .iter()
            .zip(cells)
            .filter(|(column, _)| column["priority"] == wide)
            .map(|(_, cell)| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
            .collect()
    };
    assert_eq!(format!("{} | {}", shown(0).join(" "), shown(1).join(" ")), expected);
}

fn meta(name: &str) -> Value {
    json!({"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"})
}

fn pod(spec: Value, status: Value) -> Value {
    json!({"metadata": meta("p"), "spec": spec, "status": status})
}

#[test]
fn pods_show_one_word_for_their_state() {
    let spec = json!({"containers": [{"name": "a"}], "nodeName": "n"});
    check(
        "/api/v1/pods",
        pod(spec.clone(), json!({"phase": "Pending"})),
        "p 0/1 Pending 0 60m | <none> n <none> <none>",
    );
    check(
        "/api/v1/pods",
        pod(
            spec.clone(),
            json!({"phase": "Running", "podIP": "1.2.3.4", "containerStatuses": [
            {"name": "a", "ready": true, "restartCount": 2, "state": {"running": {}},
             "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:55:00Z"}}}]}),
        ),
        "p 1/1 Running 2 (5m ago) 60m | 1.2.3.4 n <none> <none>",
    );
    check(
        "/api/v1/pods",
        pod(
            spec.clone(),
            json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
        ),
        "p 0/1 CrashLoopBackOff 0 60m | <none> n <none> <none>",
    );
    check(
        "/api/v1/pods",
        pod(
            spec,
            json!({"phase": "Failed", "containerStatuses": [
            {"name": "a", "restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]}),
        ),
        "p 0/1 ExitCode:3 0 60m | <none> n <none> <none>",
    );
    let two =
        json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
    check(
        "/api/v1/pods",
        pod(
            two,
            json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]}),
        ),
        "p 0/1 Init:1/2 0 60m | <none> <none> <none> <none>",
    );
    let mut going = pod(json!({"containers": [{"name": "a"}]}), json!({"phase": "Running"}));
    going["metadata"]["deletionTimestamp"] = json!(NOW);
    check("/api/v1/pods", going, "p 0/1 Terminating 0 60m | <none> <none> <none> <none>");
}

#[test]
fn other_kinds_show_their_columns() {
    check(
        "/api/v1/nodes",
        json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:58:30Z",
            "labels": {"node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Muster"}}}),
        "n Ready,SchedulingDisabled control-plane 90s v1.36.0 | 10.0.0.1 <none> Muster <unknown> <unknown>",
    );
    check(
        "/api/v1/services",
        json!({"metadata": meta("s"), "spec": {"type": "NodePort", "clusterIP": "10.0.0.1",
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}], "selector": {"app": "x"}}}),
        "s NodePort 10.0.0.1 <none> 80:30080/TCP 60m | app=x",
    );
    check(
        "/apis/apps/v1/deployments",
        json!({"metadata": meta("d"), "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "x"}},
            "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}},
            "status": {"readyReplicas": 1, "updatedReplicas": 2}}),
        "d 1/3 2 0 60m | c i app=x",
    );
    check(
        "/apis/muster.dev/v1alpha1/machines",
        json!({"metadata": meta("m"), "spec": {"rack": "a", "role": "worker", "address": "10.0.0.2",
            "mac": "52:54:00:00:00:01", "boot": "bios"}, "status": {"phase": "kernel"}}),
        "m a worker 10.0.0.2 kernel 60m | 52:54:00:00:00:01 bios <none>",
    );
    check(
        "/apis/discovery.k8s.io/v1/endpointslices",
        json!({"metadata": meta("s-1"), "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["1.1.1.1"]}, {"addresses": ["1.1.1.2"]}]}),
        "s-1 IPv4 80 1.1.1.1,1.1.1.2 60m | ",
    );
}

#[test]
fn durations_read_as_kubectl_prints_them() {
    for (seconds, text) in [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (3600, "60m"),
        (4 * 3600 + 60, "4h1m"),
        (9 * 3600, "9h"),
        (3 * 86_400 + 3600, "3d1h"),
        (100 * 86_400, "100d"),
        (800 * 86_400, "2y70d"),
    ] {
        assert_eq!(cells::human_duration(seconds), text);
    }
}

#[test]
fn rows_carry_as_much_of_the_object_as_asked_for() {
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("c"), "data": {}});
    for (query, kind) in [("", "PartialObjectMetadata"), ("?includeObject=Object", "ConfigMap")] {
        let (path, query) = ("/api/v1/configmaps", query.trim_start_matches('?'));
        let Ok(Route::Resource(request)) = parse_request("GET", path, query) else { panic!() };
        let now = NOW.parse().unwrap();
        let meta = ListMeta::default();
        let table = render_table(&request, [&object], &meta, MetaVersion::V1, false, now);
        assert_eq!(table["rows"][0]["object"]["kind"], kind);
        assert_eq!(table["columnDefinitions"], json!([]));
    }
}
