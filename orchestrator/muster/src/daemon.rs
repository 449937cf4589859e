//! The daemons: arguments in, services wired, signals heard.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use runtime::cache::ServiceCaches;
use runtime::{Client, Supervisor};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::args::{AgentArgs, BootArgs, ControlArgs, CsiArgs, ManagerArgs, MasterArgs};

/// Runs one future of a command that is not a daemon.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(future)
}

/// Runs the control plane: API server, scheduler and controllers.
pub(crate) fn master(args: MasterArgs) -> Result<()> {
    let config = apiserver::Config {
        data_dir: args.data_dir.clone(),
        listen: args.listen,
        advertise: args.advertise.iter().map(ToString::to_string).collect(),
        service_cidr: args.service_cidr,
        storage: crate::store::storage(&args.store)?,
        identity: args.identity.settings(),
        toleration_seconds: Some(args.control.pod_eviction_timeout),
    };
    let pki = args.data_dir.join("pki");
    let authority = manager::Authority { cert: pki.join("ca.crt"), key: pki.join("ca.key") };
    let kubeconfig = args.data_dir.join("manager.kubeconfig");
    let manager = manager_config(&args.control, kubeconfig, Some(authority))?;
    serve(|stop| async move {
        let server = apiserver::ApiServer::open(stop.clone(), &config).await?;
        let mut tasks: Supervisor<ServiceError> = Supervisor::new(stop.clone());
        if manager.controllers != manager::Choice::none() {
            let metrics = manager.metrics.clone();
            server.measure_also(move || metrics.render());
            tasks.spawn_fallible("manager", async move {
                ServiceError::of(manager::run(stop, manager).await)
            });
        }
        tasks.spawn_fallible("api", async move { ServiceError::of(server.serve().await) });
        Ok(tasks.join().await?)
    })
}

fn manager_config(
    args: &ControlArgs,
    kubeconfig: PathBuf,
    authority: Option<manager::Authority>,
) -> Result<manager::Config> {
    let read = args.scheduler_config.as_deref().map(manager::read_scheduler_config);
    Ok(manager::Config {
        kubeconfig,
        authority,
        timings: cluster::plan::Timings {
            node_monitor_grace_period_seconds: args.node_monitor_grace_period,
            pod_eviction_timeout_seconds: args.pod_eviction_timeout,
        },
        zones: args.zones.rules(),
        controllers: manager::Choice::parse(&args.controllers)?,
        metrics: manager::Metrics::default(),
        window: None,
        load_balancer_pools: args.load_balancer_pool.clone(),
        scheduler: read.transpose()?.unwrap_or_default(),
    })
}

/// Runs scheduler and controllers beside an API server that is up, ours or another.
pub(crate) fn manager(args: ManagerArgs) -> Result<()> {
    let files = args.ca_cert.zip(args.ca_key);
    let authority = files.map(|(cert, key)| manager::Authority { cert, key });
    let config = manager_config(&args.control, args.kubeconfig, authority)?;
    let config = manager::Config { window: args.metrics_listen, ..config };
    serve(|stop| async move { Ok(manager::run(stop, config).await?) })
}

/// What the operator set for this node; the defaults without a file.
fn node_settings(path: Option<&Path>) -> Result<agent::Settings> {
    let Some(path) = path else { return Ok(agent::Settings::default()) };
    let place = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(place)?;
    let value: serde_json::Value = serde_saphyr::from_str(&text).with_context(place)?;
    agent::Settings::decode(&value).map_err(|mistakes| {
        let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}: {}", place(), told.join("; "))
    })
}

/// Runs the storage driver.
pub(crate) fn csi(args: CsiArgs) -> Result<()> {
    let path = args.endpoint.strip_prefix("unix:").context("the endpoint must be unix://PATH")?;
    // Callers write unix://PATH, unix:///PATH and unix:PATH.
    let socket = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
    let node = match args.node {
        Some(node) => node,
        None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
    };
    let (monitors, pool, user, conf) = (args.monitors, args.pool, args.user, args.conf);
    let registry = args.register;
    let split = |one: &String| {
        let (key, value) =
            one.split_once('=').with_context(|| format!("{one} is no DOMAIN=VALUE"))?;
        anyhow::Ok((key.to_owned(), value.to_owned()))
    };
    let topology = args.topology.iter().map(split).collect::<Result<_>>()?;
    let config = drivers::Config { socket, node, monitors, pool, user, conf, registry, topology };
    serve(|stop| async move { Ok(drivers::run(stop, config).await?) })
}

/// Joins the cluster, then runs agent, router, proxy and DNS of this node.
pub(crate) fn agent(args: AgentArgs) -> Result<()> {
    if let (Some(nodes), Some(kubeconfig)) = (args.hollow, &args.kubeconfig) {
        let client = runtime::ClientConfig::from_kubeconfig(kubeconfig)?;
        let config = agent::hollow::HollowConfig::new(client, nodes);
        return serve(|stop| async move { Ok(agent::hollow::run(stop, config).await?) });
    }
    let (told, cluster_dns) = watch::channel(Vec::new());
    let gate = agent::Gate::guarded();
    let served = agent::Served::look();
    let config = agent::Config {
        node_json: args.node,
        cri_socket: args.runtime,
        cluster_dns,
        gate: gate.clone(),
        served: served.clone(),
        mirror_dir: Some("/etc/containerd/certs.d".into()),
        settings: node_settings(args.config.as_deref())?,
        // The plugins of every vendor look there.
        device_dir: Some("/var/lib/kubelet/device-plugins".into()),
        ..agent::Config::default()
    };
    serve(|asked| async move {
        let Some(joined) = agent::join(&asked, &config).await? else { return Ok(()) };
        // The agent passes the signal on, after the pods when the machine shuts down.
        let stop = tokio_util::sync::CancellationToken::new();
        let config = agent::Config { asked, ..config };
        let (client, node) = (joined.client_config.clone(), joined.node.name.clone());
        let mut tasks: Supervisor<ServiceError> = Supervisor::new(stop.clone());
        // The largest lists a node knows: one copy for routes, packets and names.
        let shared = ServiceCaches::follow(&Client::new(client.clone())?, &mut tasks);
        let router = router::Config {
            client: client.clone(),
            node: node.clone(),
            paths: router::Paths::default(),
            services: Some(shared.clone()),
        };
        let dns = agent::services::DnsConfig::new(told);
        let services =
            agent::services::Config { client, node, dns, services: Some(shared), gate, served };
        let signal = stop.clone();
        tasks.spawn_fallible("router", async move {
            ServiceError::of(router::run(signal, router).await)
        });
        let signal = stop.clone();
        tasks.spawn_fallible("services", async move {
            ServiceError::of(agent::services::run(signal, services).await)
        });
        tasks.spawn_fallible("agent", async move {
            ServiceError::of(agent::run_joined(stop, config, joined).await)
        });
        Ok(tasks.join().await?)
    })
}

/// Answers the container runtime as a CNI plugin.
pub(crate) fn cni() -> ExitCode {
    ExitCode::from(router::cni::main(std::io::stdin(), std::env::vars()))
}

/// A service ended with an error; the sister services then stop with it.
#[derive(Debug)]
struct ServiceError(Box<dyn std::error::Error + Send + Sync>);

impl ServiceError {
    fn of<E: std::error::Error + Send + Sync + 'static>(ended: Result<(), E>) -> Result<(), Self> {
        ended.map_err(|err| Self(Box::new(err)))
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for ServiceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Runs the boot server.
pub(crate) fn boot(args: BootArgs) -> Result<()> {
    let (plan, _) = crate::plan::load(&args.plan)?;
    let mut config = bootserver::Config::new(plan, args.image, args.data_dir);
    config.uki = Some(args.site.join("uki.efi"));
    config.ca_pem = Some(args.site.join("ca.pem"));
    config.command_line = read(&args.site.join("cmdline"))?;
    config.kubeconfig = args.kubeconfig;
    serve(|stop| async move { Ok(bootserver::run(stop, config).await?) })
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Runs a service until SIGTERM or SIGINT.
fn serve<F: Future<Output = Result<()>>>(
    service: impl FnOnce(CancellationToken) -> F,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let service = service(stop.clone());
        tokio::pin!(service);
        tokio::select! { biased;
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
            ended = &mut service => return ended,
        }
        stop.cancel();
        service.await
    })
}
