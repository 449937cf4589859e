//! A hundred volumes are asked for at once, and brought to their nodes side by side.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::site::{POD_LIMIT, Site};

/// Volumes, and the pods that share them out.
const VOLUMES: usize = 100;
const PODS: usize = 4;

/// Asks for them, sees them used, and takes them away again.
pub(super) fn at_once(site: &Site<'_>) -> Result<()> {
    site.apply("hundred", &manifest()?)?;
    let start = Instant::now();
    site.kubectl.await_pods("app=hundred", PODS, POD_LIMIT * 2, |_| true)?;
    let seconds = start.elapsed().as_secs_f64();
    let all = site.kubectl.json(&["get", "volumeattachments"])?;
    let all = all.get("items").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let attached = |one: &&Value| {
        one.pointer("/status/attached") == Some(&Value::Bool(true))
            && one.pointer("/status/attachError").is_none()
    };
    let count = all.iter().filter(attached).count();
    ensure!(count >= VOLUMES, "{count} of {VOLUMES} volumes are attached");
    for reason in ["FailedAttachVolume", "ProvisioningFailed"] {
        let selector = format!("reason={reason}");
        let said = site.kubectl.json(&["get", "events", "--field-selector", &selector])?;
        let said = said.get("items").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        // What befell the database before is another story.
        let own = said.iter().find(|one| {
            let name = one.pointer("/involvedObject/name").and_then(Value::as_str);
            name.is_some_and(|name| name.starts_with('h'))
        });
        if let Some(one) = own {
            bail!("{reason}: {one}");
        }
    }
    site.story.ok(format_args!(
        "{VOLUMES} volumes of {PODS} pods are made, attached and mounted in {seconds:.0} s, none \
         failed"
    ))?;
    site.kubectl.run(&["delete", "pod,pvc", "-l", "app=hundred", "--wait=false"])?;
    Ok(())
}

fn manifest() -> Result<String> {
    let mut text = String::new();
    for pod in 0..PODS {
        let own = (0..VOLUMES).filter(|volume| volume % PODS == pod);
        let (mut mounts, mut volumes) = (String::new(), String::new());
        for volume in own {
            writeln!(
                text,
                "---\napiVersion: v1\nkind: PersistentVolumeClaim\n\
                 metadata: {{ name: h{volume}, labels: {{ app: hundred }} }}\n\
                 spec: {{ accessModes: [ReadWriteOnce], storageClassName: ceph, \
                 resources: {{ requests: {{ storage: 16Mi }} }} }}"
            )?;
            writeln!(mounts, "        - {{ name: v{volume}, mountPath: /v/{volume} }}")?;
            writeln!(
                volumes,
                "    - {{ name: v{volume}, persistentVolumeClaim: {{ claimName: h{volume} }} }}"
            )?;
        }
        writeln!(
            text,
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{ name: hundred-{pod}, labels: {{ app: hundred }} }}\n\
             spec:\n  terminationGracePeriodSeconds: 1\n  containers:\n    - name: holder\n\
             \x20     image: muster.dev/busybox:1\n\
             \x20     command: [sh, -c, \"for v in /v/*; do echo here > $v/word || exit 1; done; sync; sleep 100000\"]\n\
             \x20     volumeMounts:\n{mounts}  volumes:\n{volumes}"
        )?;
    }
    Ok(text)
}
