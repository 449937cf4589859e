//! The steps that bring a pod up: volumes, sandbox, containers, each from the pod to CRI's words.
//!
//! A step that fails is noted in the worker's memory and told as an event; when it is tried
//! again is decided in `node`.

mod fetch;
mod rights;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use cri::device::Allocation;
use cri::message::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, Device, DnsConfig, Int64Value,
    KeyValue, LinuxContainerConfig, LinuxContainerResources, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, MountPropagation, NamespaceMode, PodSandboxConfig,
    PodSandboxMetadata, PodSandboxStatusRequest, PortMapping, Protocol, RunPodSandboxRequest,
    StartContainerRequest, UpdateContainerResourcesRequest, UserNamespace,
};
use jiff::Timestamp;
use node::config::{
    Names, Profile, Rights, dns, parse_resolv, refuse_root, render_hosts, rights, stop_signal,
    sysctls,
};
use node::dns::DOMAIN;
use node::env::{Sources, expand, resolve};
use node::field::{field_value, resource_value};
use node::links::service_env;
use node::manifest::local_uid;
use node::names;
use node::plan::CONFIG_ERROR;
use node::resize::{SIZE, Size};
use node::resources::{Limits, limits, overhead, pod_limits};
use node::seen::Volumes;
use objects::meta::Object;
use objects::pod::{Container, Pod};
use runtime::{report, resource};
use tracing::{debug, info, warn};
use volumes::{Facts, Propagation, plan_devices, plan_mounts, plan_volumes};

use crate::slices::Size as Group;
use crate::start::fetch::{claims, fetch};
use crate::start::rights::{namespaces, seccomp, security};
use crate::token::Tokens;
use crate::worker::Worker;
use crate::{Shared, disk, hook, image, observe, policy};

/// The kinds of sandbox there are.
const RUNTIME_CLASSES: resource::Resource =
    resource::Resource::cluster("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses");

/// What was fetched for a pod's volumes and variables.
#[derive(Debug, Default)]
pub(crate) struct Materials {
    sources: Sources,
    tokens: Tokens,
    places: disk::Places,
}

/// Why a container did not start: upstream's reason, and words.
struct Failed(&'static str, String);

/// Makes the pod's volumes and notes the outcome.
pub(crate) async fn volumes(worker: &mut Worker, pod: &Pod) {
    match prepare_volumes(worker, pod).await {
        Ok(()) => worker.memory.volumes = Volumes::Ready,
        Err(message) => {
            worker.shared.events.warning(pod, None, "FailedMount", &message);
            worker.memory.fail_volumes("FailedMount", message, Timestamp::now());
        }
    }
}

/// Fetches what volumes and variables are made of and writes the volumes.
pub(crate) async fn prepare_volumes(worker: &mut Worker, pod: &Pod) -> Result<(), String> {
    let shared = Arc::clone(&worker.shared);
    let tokens = worker.materials.tokens.refresh(&shared, pod);
    // The API answers them side by side.
    let (sources, (), claims) = tokio::try_join!(fetch(&shared, pod), tokens, claims(&shared, pod))
        .map_err(|err| report(&err))?;
    worker.materials.sources = sources;
    let Materials { sources, tokens, .. } = &worker.materials;
    let node = worker.shared.allocatable;
    let facts = Facts {
        config_maps: &sources.config_maps,
        secrets: &sources.secrets,
        claims: &claims,
        field: &|field| field_value(pod, &field.field_path),
        resource: &|field| resource_value(pod, "", field, node),
        token: &|request| tokens.get(request),
    };
    let planned = plan_volumes(pod, facts);
    let places = disk::prepare(&worker.shared, pod, planned).await;
    worker.materials.places = places.map_err(|err| report(&err))?;
    Ok(())
}

/// Makes the pod's sandbox and notes a failure.
pub(crate) async fn sandbox(worker: &mut Worker, pod: &Pod, attempt: u32) {
    let config = sandbox_config(&worker.shared, pod, attempt).await;
    if attempt > 0 {
        let message = "Pod sandbox changed, it will be killed and re-created.";
        worker.shared.events.normal(pod, None, "SandboxChanged", message);
    }
    match run_sandbox(&worker.shared, pod, config).await {
        Ok(()) => info!(pod = pod.key(), uid = worker.uid, attempt, "sandbox runs"),
        Err(err) => {
            let message = format!("Failed to create pod sandbox: {err}");
            warn!(pod = pod.key(), err, "cannot make a sandbox; retrying");
            worker.shared.events.warning(pod, None, "FailedCreatePodSandBox", &message);
            worker.memory.fail_sandbox(message, Timestamp::now());
        }
    }
}

async fn run_sandbox(
    shared: &Shared,
    pod: &Pod,
    mut config: PodSandboxConfig,
) -> Result<(), String> {
    let runtime_handler = runtime_handler(shared, pod).await?;
    let users = shared.users.give(shared, pod, &runtime_handler)?;
    let linux = config.linux.as_mut();
    let security = linux.and_then(|linux| linux.security_context.as_mut());
    if let Some(options) = security.and_then(|security| security.namespace_options.as_mut()) {
        options.userns_options = users;
    }
    shared.slices.apply(shared, pod, Group::Planned).map_err(|err| report(&err))?;
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler };
    let made = shared.runtime.run_pod_sandbox(request).await;
    made.map(drop).map_err(|err| report(&err))
}

/// The runtime's own name for the pod's class; empty for the default.
async fn runtime_handler(shared: &Shared, pod: &Pod) -> Result<String, String> {
    let Some(class) = pod.spec.runtime_class_name.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(String::new());
    };
    match shared.client.get(&RUNTIME_CLASSES, None, class).await {
        Ok(found) => {
            let handler = found.get("handler").and_then(serde_json::Value::as_str);
            Ok(handler.unwrap_or_default().to_owned())
        }
        Err(err) if err.is_not_found() => Err(format!("RuntimeClass \"{class}\" not found")),
        Err(err) => Err(report(&err)),
    }
}

/// Makes and starts a container and notes a failure.
pub(crate) async fn container(
    worker: &mut Worker,
    pod: &Pod,
    (name, sandbox, attempt): (&str, &str, u32),
) {
    let found = node::plan::containers(pod).find(|container| container.name == name);
    let Some(container) = found else { return };
    let before = worker.memory.failures.get(name);
    if before.is_some_and(|failure| failure.reason == CONFIG_ERROR)
        && let Ok(sources) = fetch(&worker.shared, pod).await
    {
        worker.materials.sources = sources;
    }
    match try_start(worker, pod, container, (sandbox, attempt)).await {
        Ok(()) => {
            worker.memory.failures.remove(name);
            info!(pod = pod.key(), container = name, attempt, "container started");
        }
        Err(Failed(reason, message)) => {
            warn!(pod = pod.key(), container = name, reason, message, "container not started");
            // What is wrong with an image was told as an event of its own.
            let words = if reason.contains("Image") { reason } else { message.as_str() };
            worker.shared.events.warning(pod, Some(name), "Failed", &format!("Error: {words}"));
            worker.memory.fail(name, reason, message, Timestamp::now());
        }
    }
}

async fn try_start(
    worker: &Worker,
    pod: &Pod,
    container: &Container,
    (sandbox, attempt): (&str, u32),
) -> Result<(), Failed> {
    let shared = &worker.shared;
    let name = Some(container.name.as_str());
    let sandbox_config = sandbox_config(shared, pod, 0).await;
    let ensured = image::ensure(shared, (pod, container), &sandbox_config).await;
    ensured.map_err(|err| Failed(err.reason(), report(&err)))?;
    let addresses = addresses(worker, sandbox).await?;
    if !policy::pass(&shared.config.gate, pod, &addresses).await {
        let message = "network policies are not in force for the pod yet".to_owned();
        return Err(Failed("CreateContainerError", message));
    }
    let life = (attempt, addresses.as_slice());
    let config = container_config(worker, pod, container, life).await?;
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.to_owned(),
        config: Some(config),
        sandbox_config: Some(sandbox_config),
    };
    let id = shared
        .runtime
        .create_container(request)
        .await
        .map_err(|err| Failed("CreateContainerError", report(&err)))?
        .container_id;
    disk::link_log(shared, pod, (&container.name, attempt), &id);
    shared.events.normal(pod, name, "Created", "Container created");
    // A start that fails leaves a container that has ended with an error, and so is seen.
    match shared.runtime.start_container(StartContainerRequest { container_id: id.clone() }).await {
        Ok(_) => {
            shared.events.normal(pod, name, "Started", "Container started");
            let address = addresses.first().map(String::as_str);
            hook::after_start(shared, pod, (container, &id), address).await;
        }
        Err(err) => shared.events.warning(pod, name, "Failed", &format!("Error: {}", report(&err))),
    }
    Ok(())
}

async fn sandbox_config(shared: &Shared, pod: &Pod, attempt: u32) -> PodSandboxConfig {
    let meta = &pod.metadata;
    let host = Names {
        host: parse_resolv(
            &tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default(),
        ),
        cluster: shared.config.cluster_dns.borrow().clone(),
        domain: DOMAIN.to_owned(),
    };
    let dns = dns(pod, &host);
    let rights = pod.spec.containers.iter().map(|container| rights(&pod.spec, container));
    let privileged = rights.into_iter().any(|rights| rights.privileged);
    let group = pod.spec.security_context.clone().unwrap_or_default();
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        privileged,
        run_as_user: group.run_as_user.map(|value| Int64Value { value }),
        run_as_group: group.run_as_user.and(group.run_as_group).map(|value| Int64Value { value }),
        supplemental_groups: group.supplemental_groups,
        seccomp: Some(seccomp(shared, &Profile::RuntimeDefault)),
        ..LinuxSandboxSecurityContext::default()
    };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            namespace: meta.namespace.clone(),
            attempt,
        }),
        // With the host's network, the host's name is seen.
        hostname: if pod.spec.host_network {
            String::new()
        } else {
            names::kernel_name(pod, DOMAIN)
        },
        log_directory: disk::log_dir(shared, pod).to_string_lossy().into_owned(),
        dns_config: Some(DnsConfig {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        }),
        port_mappings: port_mappings(pod),
        labels: names::sandbox_labels(pod),
        annotations: meta.annotations.clone(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: shared.slices.parent(pod),
            security_context: Some(security),
            sysctls: sysctls(&pod.spec).into_iter().collect(),
            overhead: Some(amounts(overhead(&pod.spec))),
            resources: Some(amounts(pod_limits(&pod.spec))),
        }),
    }
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if pod.spec.host_network {
        return Vec::new();
    }
    let ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
    let map = |port: &objects::pod::ContainerPort| {
        let protocol = match port.protocol.as_str() {
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        Some(PortMapping {
            protocol: i32::from(protocol),
            container_port: i32::try_from(port.container_port).ok()?,
            host_port: i32::try_from(port.host_port.filter(|port| *port > 0)?).ok()?,
            host_ip: port.host_ip.clone(),
        })
    };
    ports.filter_map(map).collect()
}

async fn container_config(
    worker: &Worker,
    pod: &Pod,
    container: &Container,
    (attempt, addresses): (u32, &[String]),
) -> Result<ContainerConfig, Failed> {
    let shared = &worker.shared;
    // Variables may name the pod's address, which the status may not have yet.
    let mut known = pod.clone();
    if let Some(first) = addresses.first() {
        known.status.pod_ip.clone_from(first);
        known.status.host_ip = shared.node.address.to_string();
    }
    let failed = |message: String| Failed(CONFIG_ERROR, message);
    let sources = &worker.materials.sources;
    let known_services = shared.services.list();
    let links = pod.spec.enable_service_links != Some(false);
    let services = known_services.iter().map(|service| &**service);
    let services = service_env(services, &pod.metadata.namespace, links);
    let list = resolve(&known, container, sources, &services, shared.allocatable)
        .map_err(|err| failed(report(&err)))?;
    let env: BTreeMap<String, String> = list.iter().cloned().collect();
    let rights = rights(&pod.spec, container);
    check_user(shared, pod, container, &rights).await?;
    let words = |all: &[String]| all.iter().map(|word| expand(word, &env)).collect::<Vec<_>>();
    let mut security = security(shared, pod, &rights);
    if let Some(target) = container.target_container_name.as_deref().filter(|t| !t.is_empty()) {
        let meta = &pod.metadata;
        let owner = (meta.namespace.as_str(), meta.name.as_str());
        let id = observe::container_id(shared, owner, target).await;
        let id = id.map_err(|err| Failed("CreateContainerError", report(&err)))?;
        let missing = || failed(format!("unable to find target container \"{target}\""));
        let mut namespaces = namespaces(pod);
        namespaces.pid = i32::from(NamespaceMode::Target);
        namespaces.target_id = id.ok_or_else(missing)?;
        security.namespace_options = Some(namespaces);
    }
    let allocations = shared.devices.allocate(shared, &known, container).await.map_err(failed)?;
    let linux = LinuxContainerConfig {
        resources: Some(resources(shared, pod, container)?),
        security_context: Some(security),
    };
    let mut config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(image::spec(&container.image)),
        command: words(&container.command),
        args: words(&container.args),
        working_dir: container.working_dir.clone(),
        envs: list.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
        mounts: mounts(
            (shared, &worker.materials.places),
            pod,
            (container, attempt),
            addresses,
            &env,
        )
        .await?,
        devices: devices(&worker.materials.places, pod, container)?,
        labels: names::container_labels(pod, container),
        annotations: names::container_annotations(pod, container, attempt),
        log_path: names::log_file(&container.name, attempt),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(linux),
        stop_signal: stop_signal(container),
        ..ContainerConfig::default()
    };
    let size = limits(&pod.spec, container, shared.allocatable.memory_bytes);
    config.annotations.insert(SIZE.to_owned(), Size::of(&size).render());
    add_devices(&mut config, allocations);
    if let Some(users) = shared.users.of(local_uid(pod)) {
        set_users(&mut config, users);
    }
    Ok(config)
}

/// Lets a container's users be those of its pod, in what is mounted into it too.
fn set_users(config: &mut ContainerConfig, users: UserNamespace) {
    for mount in &mut config.mounts {
        mount.uid_mappings.clone_from(&users.uids);
        mount.gid_mappings.clone_from(&users.gids);
    }
    let linux = config.linux.as_mut();
    let security = linux.and_then(|linux| linux.security_context.as_mut());
    if let Some(options) = security.and_then(|security| security.namespace_options.as_mut()) {
        options.userns_options = Some(users);
    }
}

/// Adds what a container's devices need.
fn add_devices(config: &mut ContainerConfig, allocations: Vec<Allocation>) {
    for allocation in allocations {
        config.envs.extend(allocation.render_envs());
        config.mounts.extend(allocation.render_mounts());
        config.devices.extend(allocation.devices);
        config.annotations.extend(allocation.annotations);
        config.cdi_devices.extend(allocation.cdi_devices);
    }
}

/// Makes sure that a container which must not run as root does not.
async fn check_user(
    shared: &Shared,
    pod: &Pod,
    container: &Container,
    rights: &Rights,
) -> Result<(), Failed> {
    if !rights.non_root {
        return Ok(());
    }
    let found = image::user(shared, &container.image).await;
    let (uid, user) = found.map_err(|err| Failed(err.reason(), report(&err)))?;
    match refuse_root(pod, &container.name, rights, (uid, &user)) {
        Some(why) => Err(Failed(CONFIG_ERROR, why)),
        None => Ok(()),
    }
}

async fn addresses(worker: &Worker, sandbox: &str) -> Result<Vec<String>, Failed> {
    if let Some(known) = worker.known.addresses(sandbox) {
        return Ok(known.to_vec());
    }
    let shared = &worker.shared;
    let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
    let answer = shared
        .runtime
        .pod_sandbox_status(request)
        .await
        .map_err(|err| Failed("CreateContainerError", report(&err)))?;
    let network = answer.status.unwrap_or_default().network.unwrap_or_default();
    let mut addresses = vec![network.ip];
    addresses.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
    addresses.retain(|address| !address.is_empty());
    Ok(addresses)
}

async fn mounts(
    (shared, places): (&Shared, &disk::Places),
    pod: &Pod,
    (container, attempt): (&Container, u32),
    addresses: &[String],
    env: &BTreeMap<String, String>,
) -> Result<Vec<Mount>, Failed> {
    let failed = |message: String| Failed(CONFIG_ERROR, message);
    let planned = plan_mounts(pod, container, &|text| expand(text, env))
        .map_err(|err| failed(report(&err)))?;
    let mut mounts = Vec::new();
    for (index, planned) in planned.into_iter().enumerate() {
        let place = (container.name.as_str(), index, &planned);
        let path = disk::mount_path(shared, pod, places, place).await;
        let path = path.map_err(|err| failed(report(&err)))?;
        let propagation = match planned.propagation {
            Propagation::Private => MountPropagation::Private,
            Propagation::HostToContainer => MountPropagation::HostToContainer,
            Propagation::Bidirectional => MountPropagation::Bidirectional,
        };
        mounts.push(Mount {
            propagation: i32::from(propagation),
            ..mount(path, planned.container_path, planned.read_only)
        });
    }
    let given = |path: &str| container.volume_mounts.iter().any(|mount| mount.mount_path == path);
    if !pod.spec.host_network && !given("/etc/hosts") {
        let path = disk::hosts_path(shared, &pod.metadata.uid);
        let text = render_hosts(pod, addresses, &names::host_name(pod), DOMAIN);
        let made = disk::write(path.clone(), text, 0o644).await;
        made.map_err(|err| failed(report(&err)))?;
        mounts.push(mount(path, "/etc/hosts".to_owned(), false));
    }
    let words = disk::words_path(shared, &pod.metadata.uid, &container.name, attempt);
    // Any user of the container may say its last words.
    let made = disk::write(words.clone(), String::new(), 0o666).await;
    made.map_err(|err| failed(report(&err)))?;
    mounts.push(mount(words, names::termination_path(container).to_owned(), false));
    Ok(mounts)
}

/// The block devices of a container.
fn devices(places: &disk::Places, pod: &Pod, container: &Container) -> Result<Vec<Device>, Failed> {
    let failed = |message: String| Failed(CONFIG_ERROR, message);
    let planned = plan_devices(pod, container).map_err(|err| failed(report(&err)))?;
    let find = |device: volumes::Device| {
        let missing = || failed(format!("volume {} has no device", device.volume));
        let link = places.get(&device.volume).ok_or_else(missing)?;
        let path = std::fs::canonicalize(link).map_err(|err| failed(report(&err)))?;
        Ok(Device {
            container_path: device.container_path,
            host_path: path.to_string_lossy().into_owned(),
            permissions: "mrw".to_owned(),
        })
    };
    planned.into_iter().map(find).collect()
}

fn mount(host: PathBuf, container_path: String, readonly: bool) -> Mount {
    let host_path = host.to_string_lossy().into_owned();
    Mount { container_path, host_path, readonly, ..Mount::default() }
}

fn resources(
    shared: &Shared,
    pod: &Pod,
    container: &Container,
) -> Result<LinuxContainerResources, Failed> {
    let cpuset_cpus = shared.cores.give(shared, pod, container);
    let cpuset_cpus = cpuset_cpus.map_err(|why| Failed("CreateContainerError", why))?;
    let limits = limits(&pod.spec, container, shared.allocatable.memory_bytes);
    Ok(LinuxContainerResources { cpuset_cpus, ..amounts(limits) })
}

/// Tells the runtime what a running container may use from now on.
pub(crate) async fn resize(worker: &mut Worker, pod: &Pod, (id, name): (String, &str)) {
    let Some(container) = node::plan::containers(pod).find(|one| one.name == name) else { return };
    let shared = &worker.shared;
    let limits = limits(&pod.spec, container, shared.allocatable.memory_bytes);
    // A pod that grows does so before its containers; one that shrinks does so after them.
    if let Err(err) = shared.slices.apply(shared, pod, Group::AtLeastPlanned) {
        debug!(pod = pod.key(), err = report(&err), "cannot write a control group");
    }
    let container_id = id.clone();
    let linux = Some(amounts(limits));
    let request = UpdateContainerResourcesRequest { container_id, linux, ..Default::default() };
    match shared.runtime.update_container_resources(request).await {
        Ok(_) => {
            info!(pod = pod.key(), container = name, "container resized");
            worker.memory.resize_failure = None;
            worker.memory.sizes.insert(id, Size::of(&limits));
        }
        Err(err) => {
            let message = report(&err);
            warn!(pod = pod.key(), container = name, err = message, "cannot resize; retrying");
            shared.events.warning(pod, Some(name), "FailedResize", &message);
            worker.memory.fail_resize(message, Timestamp::now());
        }
    }
}

fn amounts(limits: Limits) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: limits.cpu_period_us,
        cpu_quota: limits.cpu_quota_us,
        cpu_shares: limits.cpu_shares,
        memory_limit_in_bytes: limits.memory_bytes,
        oom_score_adj: limits.oom_score_adj,
        ..LinuxContainerResources::default()
    }
}
