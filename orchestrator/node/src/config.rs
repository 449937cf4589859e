//! What a container is given besides its program: rights, names, host file, image policy.
//!
//! Spec: upstream's pod and container security contexts (the container's own wins), DNS
//! policies, hosts file, and the default image pull policy.

use objects::pod::{Container, Pod, PodSpec};
use serde_json::Value;

use crate::seen::Verdict;

/// Kernel settings that touch nobody but the pod itself; upstream's list.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Rights of a container, pod and container settings merged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rights {
    /// User id; `None` leaves it to the image.
    pub user: Option<i64>,
    /// Group id; `None` leaves it to the image.
    pub group: Option<i64>,
    /// More groups, the volumes' group among them.
    pub groups: Vec<i64>,
    /// Refuse to start as user 0.
    pub non_root: bool,
    /// All rights of the host.
    pub privileged: bool,
    /// The root file system cannot be written.
    pub read_only_root: bool,
    /// The program can never gain rights by executing another.
    pub no_new_privileges: bool,
    /// Capabilities beyond the runtime's default.
    pub add: Vec<String>,
    /// Capabilities taken from the runtime's default.
    pub drop: Vec<String>,
    /// System call filter; `None` when nothing is said.
    pub seccomp: Option<Profile>,
    /// AppArmor profile; `None` leaves it to the runtime.
    pub app_armor: Option<Profile>,
    /// `/proc` without masks.
    pub unmasked_proc: bool,
}

/// A security profile of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Profile {
    /// None.
    #[default]
    Unconfined,
    /// The runtime's own.
    RuntimeDefault,
    /// A file of the node.
    Localhost(String),
}

/// Resolver settings of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    /// Servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// What the node can say about names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// The node's own resolver.
    pub host: Dns,
    /// Addresses of the cluster's DNS; empty when there is none yet.
    pub cluster: Vec<String>,
    /// The cluster's domain.
    pub domain: String,
}

/// When an image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Before every start.
    Always,
    /// When it is not there.
    IfNotPresent,
    /// Not at all.
    Never,
}

/// Merges the rights of pod and container.
#[must_use]
pub fn rights(spec: &PodSpec, container: &Container) -> Rights {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let capabilities = own.capabilities.unwrap_or_default();
    let mut groups = pod.supplemental_groups;
    groups.extend(pod.fs_group.filter(|group| !groups.contains(group)));
    let privileged = own.privileged == Some(true);
    Rights {
        user: own.run_as_user.or(pod.run_as_user),
        group: own.run_as_group.or(pod.run_as_group),
        groups,
        non_root: own.run_as_non_root.or(pod.run_as_non_root) == Some(true),
        privileged,
        read_only_root: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
        add: capabilities.add,
        drop: capabilities.drop,
        seccomp: own
            .seccomp_profile
            .as_ref()
            .or(pod.seccomp_profile.as_ref())
            .map(|given| profile(Some(given))),
        app_armor: own
            .app_armor_profile
            .as_ref()
            .or(pod.app_armor_profile.as_ref())
            .map(|given| profile(Some(given))),
        unmasked_proc: privileged || own.proc_mount.as_deref() == Some("Unmasked"),
    }
}

/// The kernel settings a pod asks for.
#[must_use]
pub fn sysctls(spec: &PodSpec) -> Vec<(String, String)> {
    let all = spec.security_context.iter().flat_map(|context| &context.sysctls);
    all.filter_map(|entry| {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).map(str::to_owned);
        Some((text("name")?, text("value")?))
    })
    .collect()
}

/// Why a pod may not have the kernel settings it asks for; `None` when it may.
///
/// `allowed` are those that the operator allows besides the safe ones; `*` ends a prefix.
#[must_use]
pub fn refuse_sysctls(spec: &PodSpec, allowed: &[String]) -> Option<Verdict> {
    let refuse = |why: String| {
        let message = format!("Pod was rejected: forbidden sysctl: {why}");
        Some(Verdict { reason: "SysctlForbidden".to_owned(), message, grace_seconds: None })
    };
    for (name, _) in sysctls(spec) {
        let is_named = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *pattern == name,
        };
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !allowed.iter().any(is_named) {
            return refuse(format!("\"{name}\" not allowlisted"));
        }
        if spec.host_network && name.starts_with("net.") {
            return refuse(format!("\"{name}\" not allowed with host net enabled"));
        }
        if spec.host_ipc && (name.starts_with("kernel.shm") || name.starts_with("kernel.msg")) {
            return refuse(format!("\"{name}\" not allowed with host ipc enabled"));
        }
    }
    None
}

/// Why a container that must not run as root would; `None` when it would not.
///
/// `image` is the user the image names: its number, or its name.
#[must_use]
pub fn refuse_root(
    pod: &Pod,
    name: &str,
    rights: &Rights,
    image: (Option<i64>, &str),
) -> Option<String> {
    if !rights.non_root {
        return None;
    }
    let meta = &pod.metadata;
    let place =
        format!("(pod: \"{}_{}({})\", container: {name})", meta.name, meta.namespace, meta.uid);
    match (rights.user, image) {
        (Some(0), _) => Some(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), _) => None,
        (None, (Some(0), _) | (None, "")) => {
            Some(format!("container has runAsNonRoot and image will run as root {place}"))
        }
        (None, (Some(_), _)) => None,
        (None, (None, user)) => Some(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify \
             user is non-root {place}"
        )),
    }
}

/// The pull policy of a container: `Always` for `:latest` or no tag, unless said otherwise.
#[must_use]
pub fn pull_policy(container: &Container) -> PullPolicy {
    match container.image_pull_policy.as_str() {
        "Always" => PullPolicy::Always,
        "Never" => PullPolicy::Never,
        "IfNotPresent" => PullPolicy::IfNotPresent,
        _ if is_latest(&container.image) => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    }
}

fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// The resolver settings of a pod by its policy.
///
/// Without a cluster DNS, `ClusterFirst` pods get the node's resolver, as upstream does.
#[must_use]
pub fn dns(pod: &Pod, names: &Names) -> Dns {
    let policy = match (pod.spec.dns_policy.as_str(), pod.spec.host_network) {
        ("None", _) => "None",
        ("Default", _) => "Default",
        ("ClusterFirstWithHostNet", _) => "ClusterFirst",
        (_, true) => "Default",
        (_, false) => "ClusterFirst",
    };
    let mut dns = match policy {
        "None" => Dns::default(),
        "ClusterFirst" if !names.cluster.is_empty() => {
            let (domain, namespace) = (&names.domain, &pod.metadata.namespace);
            let mut searches =
                vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            searches.extend(names.host.searches.iter().cloned());
            Dns { servers: names.cluster.clone(), searches, options: vec!["ndots:5".to_owned()] }
        }
        _ => names.host.clone(),
    };
    if let Some(more) = &pod.spec.dns_config {
        add_dns(&mut dns, more);
    }
    dns
}

fn add_dns(dns: &mut Dns, more: &Value) {
    let list = |name: &str| {
        let all = more.get(name).and_then(Value::as_array).into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    dns.servers.extend(list("nameservers"));
    dns.searches.extend(list("searches"));
    for option in more.get("options").and_then(Value::as_array).into_iter().flatten() {
        let Some(name) = option.get("name").and_then(Value::as_str) else { continue };
        // An option given here replaces the one of the policy.
        dns.options.retain(|have| have.split(':').next() != Some(name));
        dns.options.push(match option.get("value").and_then(Value::as_str) {
            Some(value) => format!("{name}:{value}"),
            None => name.to_owned(),
        });
    }
}

/// Reads a `resolv.conf`.
#[must_use]
pub fn parse_resolv(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words.next()),
            // The last search line counts.
            Some("search" | "domain") => dns.searches = words.collect(),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

/// The hosts file of a pod with its own network.
#[must_use]
pub fn render_hosts(pod: &Pod, addresses: &[String], host_name: &str, domain: &str) -> String {
    let mut out = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for address in addresses {
        if pod.spec.subdomain.is_empty() {
            out.push_str(&format!("{address}\t{host_name}\n"));
        } else {
            let (sub, namespace) = (&pod.spec.subdomain, &pod.metadata.namespace);
            let full = format!("{host_name}.{sub}.{namespace}.svc.{domain}");
            out.push_str(&format!("{address}\t{full}\t{host_name}\n"));
        }
    }
    for alias in &pod.spec.host_aliases {
        out.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
    }
    out
}

fn profile(value: Option<&Value>) -> Profile {
    let text = |name: &str| value.and_then(|v| v.get(name)).and_then(Value::as_str);
    match text("type") {
        Some("RuntimeDefault") => Profile::RuntimeDefault,
        Some("Localhost") => {
            Profile::Localhost(text("localhostProfile").unwrap_or_default().to_owned())
        }
        _ => Profile::Unconfined,
    }
}

/// The runtime's number of the signal a container wants to be stopped by; 0 is the image's own.
///
/// Spec: CRI's `Signal`, whose numbers are not the kernel's.
#[must_use]
pub fn stop_signal(container: &Container) -> i32 {
    /// In the order of CRI; the first has number 1.
    const NAMES: [&str; 34] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT",
        "KILL", "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM",
        "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
    ];
    let lifecycle = container.lifecycle.as_ref();
    let name = lifecycle.and_then(|all| all.get("stopSignal")?.as_str()).unwrap_or_default();
    let Some(name) = name.strip_prefix("SIG") else { return 0 };
    if let Some(more) = name.strip_prefix("RTMIN") {
        return more.trim_start_matches('+').parse().map_or(35, |more: i32| 35 + more.clamp(0, 15));
    }
    if let Some(less) = name.strip_prefix("RTMAX") {
        return less.trim_start_matches('-').parse().map_or(65, |less: i32| 65 - less.clamp(0, 14));
    }
    let index = NAMES.iter().position(|known| *known == name);
    index.and_then(|index| i32::try_from(index).ok()).map_or(0, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_runtimes_numbers() {
        for (name, number) in [
            ("SIGABRT", 1),
            ("SIGHUP", 8),
            ("SIGKILL", 13),
            ("SIGTERM", 23),
            ("SIGUSR1", 29),
            ("SIGXFSZ", 34),
            ("SIGRTMIN", 35),
            ("SIGRTMIN+15", 50),
            ("SIGRTMAX-14", 51),
            ("SIGRTMAX", 65),
            ("TERM", 0),
            ("", 0),
        ] {
            let container: Container =
                serde_json::from_value(serde_json::json!({"lifecycle": {"stopSignal": name}}))
                    .unwrap();
            assert_eq!(stop_signal(&container), number, "{name}");
        }
    }
    use serde_json::json;

    #[test]
    fn a_tag_decides_when_an_image_is_pulled() {
        let policy = |image: &str| {
            pull_policy(&Container { image: image.to_owned(), ..Container::default() })
        };
        assert_eq!(policy("busybox"), PullPolicy::Always);
        assert_eq!(policy("host:5000/busybox"), PullPolicy::Always);
        assert_eq!(policy("host:5000/busybox:latest"), PullPolicy::Always);
        assert_eq!(policy("host:5000/busybox:1"), PullPolicy::IfNotPresent);
        assert_eq!(policy("busybox@sha256:00"), PullPolicy::IfNotPresent);
    }

    #[test]
    fn the_container_wins_over_the_pod() {
        let spec: PodSpec = serde_json::from_value(json!({
            "securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4],
                "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {"runAsUser": 9, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}}}],
        }))
        .unwrap();
        let rights = rights(&spec, &spec.containers[0]);
        assert_eq!((rights.user, rights.group, rights.groups), (Some(9), Some(2), vec![4, 3]));
        assert!(rights.non_root && rights.no_new_privileges);
        assert_eq!(
            (rights.drop, rights.seccomp),
            (vec!["ALL".to_owned()], Some(Profile::RuntimeDefault))
        );
    }

    #[test]
    fn only_safe_or_allowed_sysctls_are_taken() {
        let check = |name: &str, more: Value, expected: &str| {
            let mut spec = json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let spec: PodSpec = serde_json::from_value(spec).unwrap();
            let refused = refuse_sysctls(&spec, &["kernel.msg*".to_owned()]);
            assert_eq!(refused.map(|verdict| verdict.message).unwrap_or_default(), expected);
        };
        check("net.ipv4.tcp_syncookies", json!({}), "");
        check("kernel.msgmax", json!({}), "");
        check(
            "kernel.sem",
            json!({}),
            "Pod was rejected: forbidden sysctl: \"kernel.sem\" not allowlisted",
        );
        check(
            "net.ipv4.tcp_syncookies",
            json!({"hostNetwork": true}),
            "Pod was rejected: forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled",
        );
        check(
            "kernel.msgmax",
            json!({"hostIPC": true}),
            "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowed with host ipc enabled",
        );
    }

    #[test]
    fn root_is_found_wherever_it_comes_from() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}),
        )
        .unwrap();
        let check = |user: Option<i64>, image: (Option<i64>, &str), expected: &str| {
            let rights = Rights { non_root: true, user, ..Rights::default() };
            let why = refuse_root(&pod, "c", &rights, image).unwrap_or_default();
            let place = " (pod: \"p_n(u)\", container: c)";
            assert_eq!(why.strip_suffix(place).unwrap_or(&why), expected, "{user:?} {image:?}");
        };
        check(Some(0), (Some(5), ""), "container's runAsUser breaks non-root policy");
        check(Some(7), (Some(0), ""), "");
        check(None, (Some(7), ""), "");
        check(None, (Some(0), ""), "container has runAsNonRoot and image will run as root");
        check(None, (None, ""), "container has runAsNonRoot and image will run as root");
        check(
            None,
            (None, "web"),
            "container has runAsNonRoot and image has non-numeric user (web), cannot verify user is non-root",
        );
        let free = Rights { user: Some(0), ..Rights::default() };
        assert_eq!(refuse_root(&pod, "c", &free, (Some(0), "")), None);
    }

    #[test]
    fn a_pods_resolver_follows_its_policy() {
        let names = Names {
            host: parse_resolv("nameserver 10.0.0.1 # ours\nsearch site\noptions edns0\n"),
            cluster: vec!["172.21.0.10".into()],
            domain: "cluster.local".into(),
        };
        let check = |spec: Value, servers: &[&str], searches: &str, options: &str| {
            let pod: Pod =
                serde_json::from_value(json!({"metadata": {"namespace": "ns"}, "spec": spec}))
                    .unwrap();
            let dns = dns(&pod, &names);
            assert_eq!(dns.servers, servers);
            assert_eq!(
                (dns.searches.join(" "), dns.options.join(" ")),
                (searches.into(), options.into())
            );
        };
        let cluster = "ns.svc.cluster.local svc.cluster.local cluster.local site";
        check(json!({}), &["172.21.0.10"], cluster, "ndots:5");
        check(json!({"hostNetwork": true}), &["10.0.0.1"], "site", "edns0");
        check(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"]}}),
            &["1.1.1.1"],
            "",
            "",
        );
        check(
            json!({"dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}),
            &["172.21.0.10"],
            cluster,
            "ndots:2",
        );
    }
}
