//! Where a container sees the volumes of its pod.

use objects::pod::{Container, Pod};

use crate::files::clean_path;
use crate::remote::{Mode, text};
use crate::source::{Problem, Source};

/// One volume in one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The volume's name.
    pub volume: String,
    /// Where the container sees it.
    pub container_path: String,
    /// The part of the volume it sees.
    pub sub_path: SubPath,
    /// It cannot be written there.
    pub read_only: bool,
    /// Which way mounts made later travel.
    pub propagation: Propagation,
}

/// The part of a volume a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubPath {
    /// All of it.
    Whole,
    /// What is at this clean relative path; a directory is made when nothing is there.
    Part(String),
}

/// Which way mounts made later travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither.
    Private,
    /// From the node to the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A block device in one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The volume's name.
    pub volume: String,
    /// Where the container sees it.
    pub container_path: String,
}

/// Plans the block devices of a container: its `volumeDevices`.
///
/// # Errors
///
/// When a device names no volume of the pod.
pub fn plan_devices(pod: &Pod, container: &Container) -> Result<Vec<Device>, Problem> {
    let given = container.extra.get("volumeDevices").and_then(serde_json::Value::as_array);
    let plan = |one: &serde_json::Value| {
        let (volume, container_path) = (text(one, "name"), text(one, "devicePath"));
        if !pod.spec.volumes.iter().any(|given| given.name == volume) {
            return Err(Problem::Unknown { name: volume });
        }
        Ok(Device { volume, container_path })
    };
    given.into_iter().flatten().map(plan).collect()
}

/// Checks that containers use each volume as it is: a directory as one, a device as one.
///
/// # Errors
///
/// The first that is used otherwise.
pub fn check_modes(pod: &Pod, volumes: &[crate::source::Volume]) -> Result<(), Problem> {
    let spec = &pod.spec;
    let containers = || spec.init_containers.iter().chain(&spec.containers);
    for volume in volumes {
        let block =
            matches!(&volume.source, Ok(Source::Remote(remote)) if remote.mode == Mode::Block);
        let name = || volume.name.clone();
        let mounted =
            containers().any(|one| one.volume_mounts.iter().any(|mount| mount.name == volume.name));
        if block && mounted {
            return Err(Problem::Mode { name: name(), mode: "Block", field: "volumeMounts" });
        }
        for container in containers() {
            let devices = plan_devices(pod, container)?;
            if !block && devices.iter().any(|device| device.volume == volume.name) {
                let (mode, field) = ("Filesystem", "volumeDevices");
                return Err(Problem::Mode { name: name(), mode, field });
            }
        }
    }
    Ok(())
}

/// Plans the mounts of a container; `expand` replaces `$(NAME)` in `subPathExpr`.
///
/// # Errors
///
/// When a mount names no volume of the pod, or a sub-path leads out of one.
pub fn plan_mounts(
    pod: &Pod,
    container: &Container,
    expand: &dyn Fn(&str) -> String,
) -> Result<Vec<Mount>, Problem> {
    let mut mounts = Vec::new();
    for mount in &container.volume_mounts {
        if !pod.spec.volumes.iter().any(|volume| volume.name == mount.name) {
            return Err(Problem::Unknown { name: mount.name.clone() });
        }
        let wanted = if mount.sub_path_expr.is_empty() {
            mount.sub_path.clone()
        } else {
            expand(&mount.sub_path_expr)
        };
        let sub_path = if wanted.is_empty() {
            SubPath::Whole
        } else {
            SubPath::Part(clean_path(&wanted).ok_or(Problem::Path { path: wanted })?)
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        };
        // Upstream takes a relative mount path as one below the root.
        let container_path = format!("/{}", mount.mount_path.trim_start_matches('/'));
        let (volume, read_only) = (mount.name.clone(), mount.read_only);
        mounts.push(Mount { volume, container_path, sub_path, read_only, propagation });
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(mount: serde_json::Value, expected: &str) {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "volumes": [{"name": "v"}], "containers": [{"name": "a", "volumeMounts": [mount]}]}}))
        .unwrap();
        let expand = |text: &str| text.replace("$(POD)", "p-0");
        let got = match plan_mounts(&pod, &pod.spec.containers[0], &expand) {
            Ok(mounts) => {
                let mount = &mounts[0];
                let part = match &mount.sub_path {
                    SubPath::Whole => "",
                    SubPath::Part(part) => part,
                };
                format!("{}:{part} -> {}", mount.volume, mount.container_path)
            }
            Err(problem) => problem.to_string(),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn mounts_are_planned_or_refused() {
        check(json!({"name": "v", "mountPath": "/data"}), "v: -> /data");
        check(json!({"name": "v", "mountPath": "data", "subPath": "a//./b"}), "v:a/b -> /data");
        check(
            json!({"name": "v", "mountPath": "/d", "subPathExpr": "logs/$(POD)"}),
            "v:logs/p-0 -> /d",
        );
        let rule = "in the volume: must be relative and stay below it";
        check(
            json!({"name": "v", "mountPath": "/d", "subPath": "a/../../b"}),
            &format!("invalid path \"a/../../b\" {rule}"),
        );
        check(
            json!({"name": "v", "mountPath": "/d", "subPath": "/etc"}),
            &format!("invalid path \"/etc\" {rule}"),
        );
        check(
            json!({"name": "w", "mountPath": "/d"}),
            "mount refers to volume \"w\", which the pod does not have",
        );
    }
}
