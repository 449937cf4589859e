use super::*;
use crate::scaling::Observed;
use crate::view::Set;

/// Pods of 100m each that use so many thousandths; returns the size after this round.
#[track_caller]
fn check(spec: Value, used: &[i64], past: &[(i64, i64)], expected: i64) -> Vec<String> {
    check_paced(spec, used, past, &[], expected)
}

/// The same after the size changed so many seconds ago by so much.
#[track_caller]
fn check_paced(
    spec: Value,
    used: &[i64],
    past: &[(i64, i64)],
    changes: &[(i64, i64)],
    expected: i64,
) -> Vec<String> {
    let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
    let mut scaler = json!({
        "metadata": {"name": "s", "namespace": "n", "uid": "u"},
        "spec": {
            "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 10,
            "metrics": [{"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50},
            }}],
        },
    });
    crate::world::merge(&mut scaler["spec"], &spec);
    let deployment = json!({
        "metadata": {"name": "web", "namespace": "n"},
        "spec": {"replicas": used.len(), "selector": {"matchLabels": {"app": "web"}}},
    });
    let mut observed = Observed::default();
    let mut pods = Vec::new();
    for (at, amount) in used.iter().enumerate() {
        let name = format!("web-{at}");
        pods.push(
            serde_json::from_value::<Pod>(json!({
                "metadata": {"name": name, "namespace": "n", "labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]},
                "status": {
                    "phase": "Running", "startTime": "2026-01-01T00:00:00Z",
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }))
            .unwrap(),
        );
        if *amount >= 0 {
            let amounts = [("cpu".to_owned(), *amount)].into();
            let usage =
                Usage { containers: [("c".to_owned(), amounts)].into(), ..Usage::default() };
            observed.usage.insert(("n".to_owned(), name), usage);
        }
    }
    let ago = |seconds: i64| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap();
    let past = past.iter().map(|(seconds, size)| (ago(*seconds), *size)).collect();
    observed.recommendations.insert("u".to_owned(), past);
    let changes = changes.iter().map(|(seconds, by)| (ago(*seconds), *by)).collect();
    observed.changes.insert("u".to_owned(), changes);
    let view = View {
        pods: pods.into_iter().map(Arc::new).collect(),
        deployments: Set::from_iter([Arc::new(serde_json::from_value(deployment).unwrap())]),
        autoscalers: Set::from_iter([Arc::new(serde_json::from_value(scaler).unwrap())]),
        observed: Arc::new(observed),
        ..View::default()
    };
    let steps = reconcile(&view, &Key::new("n", "s"), now);
    let told = words(&steps);
    let mut sizes = steps.actions.iter().filter_map(|action| match action {
        Action::Patch { body, .. } => body.pointer("/spec/replicas").and_then(Value::as_i64),
        _ => None,
    });
    assert_eq!(sizes.next_back().unwrap_or(i64::try_from(used.len()).unwrap()), expected);
    told
}

/// The conditions that are written, and what is told, a line each.
fn words(steps: &Steps) -> Vec<String> {
    let mut lines = Vec::new();
    for action in &steps.actions {
        let Action::Patch { body, note, .. } = action else { continue };
        let conditions = body.pointer("/status/conditions").and_then(Value::as_array);
        for one in conditions.into_iter().flatten() {
            let text = |name: &str| one[name].as_str().unwrap_or("").to_owned();
            lines.push(format!("{} {} {}", text("type"), text("status"), text("reason")));
        }
        lines.extend(note.iter().map(|note| format!("{}: {}", note.reason, note.message)));
    }
    lines.extend(steps.notes.iter().map(|note| format!("{}: {}", note.reason, note.message)));
    lines
}

#[test]
fn the_size_follows_what_is_used() {
    check(json!({}), &[100, 100], &[], 4);
    check(json!({}), &[52, 53], &[], 2);
    check(json!({}), &[90], &[], 2);
    check(json!({"maxReplicas": 3}), &[100, 100], &[], 3);
    check(json!({}), &[20, 20, 20, 20], &[], 2);
    check(json!({"minReplicas": 3}), &[1, 1, 1, 1], &[], 3);
    check(json!({}), &[-1, -1], &[], 2);
}

#[test]
fn unmeasured_pods_damp_a_change() {
    check(json!({}), &[100, -1], &[], 2);
    check(json!({}), &[100, 100, 100, -1], &[], 6);
    check(json!({}), &[10, -1], &[], 2);
}

#[test]
fn shrinking_waits_for_calm_and_growth_keeps_a_pace() {
    check(json!({}), &[20, 20, 20, 20], &[(200, 4)], 4);
    check(json!({}), &[20, 20, 20, 20], &[(400, 4)], 2);
    let calm = json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}});
    check(calm, &[20, 20, 20, 20], &[(200, 4)], 2);
    let slow = json!({"behavior": {"scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}}});
    check(slow, &[20, 20, 20, 20], &[], 3);
    let off = json!({"behavior": {"scaleUp": {"selectPolicy": "Disabled"}}});
    check(off, &[100, 100], &[], 2);
    check(json!({"maxReplicas": 100}), &[500, 500], &[], 6);
}

#[test]
fn a_policy_counts_from_the_size_at_the_beginning_of_its_period() {
    let up = |policies: Value, select: &str| {
        json!({"maxReplicas": 50, "behavior": {"scaleUp": {
            "policies": policies, "selectPolicy": select,
        }}})
    };
    let pods = json!([{"type": "Pods", "value": 3, "periodSeconds": 60}]);
    check_paced(up(pods.clone(), "Max"), &[500; 5], &[], &[], 8);
    check_paced(up(pods.clone(), "Max"), &[500; 5], &[], &[(30, 2)], 6);
    check_paced(up(pods.clone(), "Max"), &[500; 5], &[], &[(30, 3)], 5);
    check_paced(up(pods, "Max"), &[500; 5], &[], &[(90, 3)], 8);
    let both = json!([
        {"type": "Pods", "value": 1, "periodSeconds": 60},
        {"type": "Percent", "value": 50, "periodSeconds": 60},
    ]);
    check_paced(up(both.clone(), "Max"), &[500; 5], &[], &[], 8);
    check_paced(up(both, "Min"), &[500; 5], &[], &[], 6);
    let down = json!({"behavior": {"scaleDown": {
        "stabilizationWindowSeconds": 0,
        "policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}],
    }}});
    check_paced(down.clone(), &[1; 9], &[], &[], 8);
    check_paced(down, &[1; 9], &[], &[(20, -1)], 9);
}

#[test]
fn tolerance_is_what_the_rules_say() {
    check(json!({}), &[54, 54, 54], &[], 3);
    let strict = json!({"behavior": {"scaleUp": {"tolerance": "50m"}}});
    check(strict, &[54, 54, 54], &[], 4);
    let loose = json!({"behavior": {"scaleUp": {"tolerance": "1"}}});
    check(loose, &[90, 90, 90], &[], 3);
}

#[test]
fn limits_hold_also_without_metrics() {
    check(json!({"maxReplicas": 2}), &[-1, -1, -1], &[], 2);
    check(json!({"minReplicas": 4}), &[-1, -1, -1], &[], 4);
}

/// One metric cannot be read: nothing shrinks by the others alone, but it may grow.
#[test]
fn with_a_metric_unknown_nothing_shrinks() {
    let both = json!({"metrics": [
        {"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50},
        }},
        {"type": "Resource", "resource": {
            "name": "memory", "target": {"type": "Utilization", "averageUtilization": 50},
        }},
    ]});
    let told = check(both.clone(), &[20, 20, 20, 20], &[], 4);
    let why = "failed to get memory utilization: unable to get metrics for resource memory: no \
               metrics returned from resource metrics API";
    assert!(told.contains(&"ScalingActive False FailedGetResourceMetric".to_owned()), "{told:?}");
    assert!(told.contains(&format!("FailedGetResourceMetric: {why}")), "{told:?}");
    assert!(
        told.contains(&format!(
            "FailedComputeMetricsReplicas: invalid metrics (1 invalid out of 2), first error is: \
             {why}"
        )),
        "{told:?}"
    );
    check(both, &[100, 100], &[], 4);
}

#[test]
fn a_scaler_says_what_it_does_and_what_holds_it_back() {
    let grow = check(json!({}), &[100, 100], &[], 4);
    assert_eq!(
        grow,
        [
            "SuccessfulRescale: New size: 4; reason: cpu resource utilization (percentage of \
             request) above target",
            "AbleToScale True SucceededRescale",
            "ScalingActive True ValidMetricFound",
            "ScalingLimited False DesiredWithinRange",
        ]
    );
    let has =
        |told: Vec<String>, line: &str| assert!(told.iter().any(|one| one == line), "{told:?}");
    has(check(json!({}), &[52, 53], &[], 2), "AbleToScale True ReadyForNewScale");
    has(check(json!({}), &[20; 4], &[(200, 4)], 4), "AbleToScale True ScaleDownStabilized");
    has(
        check(json!({"maxReplicas": 3}), &[100, 100], &[], 3),
        "ScalingLimited True TooManyReplicas",
    );
    has(
        check(json!({"maxReplicas": 100}), &[500, 500], &[], 6),
        "ScalingLimited True ScaleUpLimit",
    );
    has(
        check(json!({}), &[-1, -1], &[], 2),
        "FailedGetResourceMetric: failed to get cpu utilization: unable to get metrics for resource \
         cpu: no metrics returned from resource metrics API",
    );
    has(
        check(json!({"scaleTargetRef": {"name": "other"}}), &[100], &[], 1),
        "FailedGetScale: deployments.apps \"other\" not found",
    );
    has(
        check(json!({"minReplicas": 4}), &[1], &[], 4),
        "SuccessfulRescale: New size: 4; reason: Current number of replicas below Spec.MinReplicas",
    );
}

#[test]
fn a_share_of_what_is_not_asked_for_is_nothing() {
    let pod = |requests: Value| -> Arc<Pod> {
        let container = json!({"name": "c", "resources": {"requests": requests}});
        let metadata = json!({"name": "p", "namespace": "n"});
        let pod = json!({"metadata": metadata, "spec": {"containers": [container]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    };
    let metric = |container: &str| ResourceMetric {
        name: "cpu".to_owned(),
        container: container.to_owned(),
        ..ResourceMetric::default()
    };
    let (asks, silent) = (pod(json!({"cpu": "1"})), pod(json!({"memory": "1"})));
    assert_eq!(unsaid(&[&asks], &metric("")), None);
    assert_eq!(
        unsaid(&[&asks, &silent], &metric("")).unwrap(),
        "missing request for cpu in container c of Pod p"
    );
    assert_eq!(unsaid(&[&asks], &metric("d")).unwrap(), "container d not found in Pod p");
}
