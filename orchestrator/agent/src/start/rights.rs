//! What a container may do, in CRI's words: its user, its capabilities, its namespaces, its filters.

use cri::message::{
    Capability, Int64Value, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption,
    ProfileType, SecurityProfile,
};
use node::config::{Profile, Rights};
use objects::pod::Pod;

use crate::Shared;

/// What an unprivileged container must not see of `/proc` and `/sys`; the usual list.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What it must not write.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub(super) fn namespaces(pod: &Pod) -> NamespaceOption {
    let mode =
        |host: bool, own: NamespaceMode| i32::from(if host { NamespaceMode::Node } else { own });
    let shared = pod.spec.share_process_namespace == Some(true);
    let pid = if shared { NamespaceMode::Pod } else { NamespaceMode::Container };
    NamespaceOption {
        network: mode(pod.spec.host_network, NamespaceMode::Pod),
        pid: mode(pod.spec.host_pid, pid),
        ipc: mode(pod.spec.host_ipc, NamespaceMode::Pod),
        target_id: String::new(),
        userns_options: None,
    }
}

pub(super) fn security(
    shared: &Shared,
    pod: &Pod,
    rights: &Rights,
) -> LinuxContainerSecurityContext {
    let list = |paths: &[&str]| {
        if rights.unmasked_proc {
            Vec::new()
        } else {
            paths.iter().map(|path| (*path).to_owned()).collect()
        }
    };
    let unsaid = if shared.config.settings.seccomp_default {
        Profile::RuntimeDefault
    } else {
        Profile::Unconfined
    };
    let filter = rights.seccomp.as_ref().unwrap_or(&unsaid);
    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: rights.add.clone(),
            drop_capabilities: rights.drop.clone(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: rights.privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: rights.user.map(|value| Int64Value { value }),
        // CRI refuses a group without a user.
        run_as_group: rights.user.and(rights.group).map(|value| Int64Value { value }),
        run_as_username: String::new(),
        readonly_rootfs: rights.read_only_root,
        supplemental_groups: rights.groups.clone(),
        no_new_privs: rights.no_new_privileges,
        masked_paths: list(&MASKED),
        readonly_paths: list(&READ_ONLY),
        seccomp: Some(seccomp(shared, filter)),
        apparmor: rights.app_armor.as_ref().map(security_profile),
    }
}

/// A filter of the node is a file below the agent's own directory.
pub(super) fn seccomp(shared: &Shared, profile: &Profile) -> SecurityProfile {
    let mut profile = security_profile(profile);
    if !profile.localhost_ref.is_empty() {
        let path = shared.config.data_dir.join("seccomp").join(&profile.localhost_ref);
        profile.localhost_ref = path.to_string_lossy().into_owned();
    }
    profile
}

fn security_profile(profile: &Profile) -> SecurityProfile {
    let (kind, localhost_ref) = match profile {
        Profile::Unconfined => (ProfileType::Unconfined, String::new()),
        Profile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        Profile::Localhost(path) => (ProfileType::Localhost, path.clone()),
    };
    SecurityProfile { profile_type: i32::from(kind), localhost_ref }
}
