//! Names that pods and containers carry in the runtime and on the disk.
//!
//! They are how a restarted agent finds its pods again, so they are upstream's and never change.

use std::collections::BTreeMap;

use objects::pod::{Container, Pod};

/// Label: the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: the pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: the container's name in its pod.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: digest of the container's spec, to notice a change.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// Annotation: how often the container was restarted.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: where the container writes its last words.
pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: whether the end of the log may stand in for last words.
pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: the grace the pod asked for, for stopping it when the pod is forgotten.
pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";

/// The labels of a pod's sandbox: the pod's own and the ones it is found by.
#[must_use]
pub fn sandbox_labels(pod: &Pod) -> BTreeMap<String, String> {
    let mut labels = pod.metadata.labels.clone();
    labels.insert(POD_NAME.to_owned(), pod.metadata.name.clone());
    labels.insert(POD_NAMESPACE.to_owned(), pod.metadata.namespace.clone());
    labels.insert(POD_UID.to_owned(), pod.metadata.uid.clone());
    labels
}

/// The labels of a container.
#[must_use]
pub fn container_labels(pod: &Pod, container: &Container) -> BTreeMap<String, String> {
    BTreeMap::from([
        (POD_NAME.to_owned(), pod.metadata.name.clone()),
        (POD_NAMESPACE.to_owned(), pod.metadata.namespace.clone()),
        (POD_UID.to_owned(), pod.metadata.uid.clone()),
        (CONTAINER_NAME.to_owned(), container.name.clone()),
    ])
}

/// The annotations of a container's `attempt`-th life.
#[must_use]
pub fn container_annotations(
    pod: &Pod,
    container: &Container,
    attempt: u32,
) -> BTreeMap<String, String> {
    let policy = match container.termination_message_policy.as_str() {
        "" => "File",
        given => given,
    };
    BTreeMap::from([
        (CONTAINER_HASH.to_owned(), container_hash(container)),
        (RESTART_COUNT.to_owned(), attempt.to_string()),
        (TERMINATION_PATH.to_owned(), termination_path(container).to_owned()),
        (TERMINATION_POLICY.to_owned(), policy.to_owned()),
        (GRACE_PERIOD.to_owned(), grace_seconds(pod).to_string()),
    ])
}

/// Where a container writes its last words.
#[must_use]
pub fn termination_path(container: &Container) -> &str {
    match container.termination_message_path.as_str() {
        "" => "/dev/termination-log",
        given => given,
    }
}

/// The grace a pod asks for, in seconds.
#[must_use]
pub fn grace_seconds(pod: &Pod) -> i64 {
    pod.spec.termination_grace_period_seconds.unwrap_or(30).max(0)
}

/// A digest of the part of a container that may change while its pod lives: the image.
///
/// Not for security. Only name and image are in it, as upstream does: defaults that a newer API
/// adds to the rest must not restart every pod of a cluster.
#[must_use]
pub fn container_hash(container: &Container) -> String {
    let text = format!("{}\n{}", container.name, container.image);
    format!("{:016x}", fnv(text.as_bytes()))
}

/// A digest of several texts, as 32 hexadecimal digits. Not for security.
#[must_use]
pub fn digest(texts: &[&str]) -> String {
    let joined = texts.join("\n");
    let first = fnv(joined.as_bytes());
    let second = fnv(format!("{first:016x}{joined}").as_bytes());
    format!("{first:016x}{second:016x}")
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The directory of a pod's logs below the log root: `NAMESPACE_NAME_UID`.
#[must_use]
pub fn log_directory(namespace: &str, name: &str, uid: &str) -> String {
    format!("{namespace}_{name}_{uid}")
}

/// A container's log below its pod's directory: `CONTAINER/ATTEMPT.log`.
#[must_use]
pub fn log_file(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// The name a pod's containers hear from the kernel: with `setHostnameAsFQDN` the whole one.
///
/// Of a longer one than the kernel takes, the runtime says so.
#[must_use]
pub fn kernel_name(pod: &Pod, domain: &str) -> String {
    let (host, sub) = (host_name(pod), &pod.spec.subdomain);
    if pod.spec.set_hostname_as_fqdn != Some(true) || sub.is_empty() {
        return host;
    }
    format!("{host}.{sub}.{}.svc.{domain}", pod.metadata.namespace)
}

/// The host name a pod's containers see: at most 63 characters, as the kernel allows.
#[must_use]
pub fn host_name(pod: &Pod) -> String {
    let wanted = if pod.spec.hostname.is_empty() { &pod.metadata.name } else { &pod.spec.hostname };
    let cut: String = wanted.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}
