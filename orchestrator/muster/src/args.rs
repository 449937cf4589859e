//! The command line, as people read it in `--help`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Turns racks of bare machines into a running cluster.
///
/// Write one file, rack.yaml; see what will happen with `muster plan rack.yaml`; then
/// `muster up rack.yaml`, and power the machines on. With `--sim` the same file drives a
/// simulated rack of QEMU machines on this host.
#[derive(Debug, Parser)]
#[command(name = "muster", version)]
pub(crate) struct Args {
    /// What daemons log, as in `info` or `warn,boot=debug`
    #[arg(long, global = true, env = "MUSTER_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check rack.yaml and show what `up` would do to each machine
    Plan(PlanArgs),
    /// Bring a site up: boot server, control plane, and every machine to Ready
    Up(UpArgs),
    /// Stop what `up` started on this host; with a simulated rack, remove it
    Down(SiteArgs),
    /// Show each machine's way from power-on to Ready, and what holds it up
    Status(StatusArgs),
    /// Let a machine join that the plan does not name, or whose hardware differs
    Approve(ApproveArgs),
    /// Build the node image, or show what is in it
    Image(ImageArgs),
    /// Keep images for containers on the masters, for nodes that reach no registry
    Images(ImagesArgs),
    /// Compare what every node was meant to route with what BIRD and its kernel do
    Routes(RoutesArgs),
    /// Empty a node for maintenance: its traffic leaves first, then its pods
    Drain(crate::drain::DrainArgs),
    /// Open a node to pods and traffic again
    Uncordon(crate::drain::UncordonArgs),
    /// Write what routers and Ceph have to know of rack.yaml
    Export(ExportArgs),
    /// List the machines for Ansible
    Inventory(InventoryArgs),
    /// Run the control plane: API server, store, scheduler and controllers
    Master(Box<MasterArgs>),
    /// Look over, save, restore or move what a master stores
    Store(StoreCommandArgs),
    /// Run the scheduler and controllers alone, beside any API server
    Manager(ManagerArgs),
    /// Run the boot server: DHCP, TFTP and HTTP
    Boot(BootArgs),
    /// Run the node agent; started on nodes by their image
    Agent(AgentArgs),
    /// Run the storage driver for Ceph images (CSI), for this or any other Kubernetes
    Csi(CsiArgs),
    /// Act as a CNI plugin; called by the container runtime
    #[command(hide = true)]
    Cni,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table for people
    Table,
    /// JSON for machines
    Json,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PlanArgs {
    /// The site's rack.yaml
    pub file: PathBuf,
    /// How to print the plan
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UpArgs {
    /// The site's rack.yaml
    pub file: PathBuf,
    /// Simulate the racks on this host: QEMU machines, ToR routers in network namespaces
    #[arg(long)]
    pub sim: bool,
    /// Go on only if the plan still has this hash, as printed by `muster plan`
    #[arg(long, value_name = "HASH")]
    pub plan: Option<String>,
    /// The node image, as made by `muster image build`
    #[arg(long, value_name = "DIR", default_value = "target/image")]
    pub image: PathBuf,
    /// Where the site's state is kept [default: .muster/SITE]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Give up on machines that are not Ready after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub limit: u64,
    /// Words to add to the kernel's command line
    #[arg(long, value_name = "WORDS")]
    pub append: Option<String>,
    /// Do not let probe pods check that every node's pods reach each other
    #[arg(long)]
    pub skip_check: bool,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SiteArgs {
    /// Where the site's state is kept [default: the only site below .muster]
    #[arg(long, value_name = "DIR", env = "MUSTER_DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub site: SiteArgs,
    /// How to print the status
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ApproveArgs {
    /// The machine's name, as `kubectl get csr` shows it after `node-`
    pub name: String,
    #[command(flatten)]
    pub site: SiteArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    pub verb: ImageVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Build the node image from Debian packages; needs root
    Build(ImageBuildArgs),
    /// Show packages, sizes and hashes of an image
    Show(ImageShowArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImageBuildArgs {
    /// Where the image goes
    #[arg(long, value_name = "DIR", default_value = "target/image")]
    pub out: PathBuf,
    /// Where downloaded packages and finished stages are kept
    #[arg(long, value_name = "DIR", default_value = "target/image-cache")]
    pub cache: PathBuf,
    /// The directory of the static `init`, `pause` and `muster-cni` [default: beside muster]
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
    /// zstd level of the root image: 6 builds fast, 15 is for releases
    #[arg(long, default_value_t = 6)]
    pub level: u32,
    /// Where the key that signs the image is kept; made when missing
    #[arg(long, value_name = "DIR", default_value = "target/image-keys")]
    pub keys: PathBuf,
    /// Ask the mirrors for newer packages instead of taking those of the last build
    #[arg(long)]
    pub latest: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImageShowArgs {
    /// The image
    #[arg(default_value = "target/image")]
    pub dir: PathBuf,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImagesArgs {
    #[command(subcommand)]
    pub verb: ImagesVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesVerb {
    /// Put the images of an archive, or one of a registry, where nodes look first
    Add(ImagesAddArgs),
    /// List the images that the site keeps
    List(ImagesListArgs),
    /// Forget an image, and free what no other needs
    Remove(ImagesRemoveArgs),
}

/// Whose images: those of a site of this host, or of a cluster anywhere.
#[derive(Debug, ClapArgs)]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    pub site: SiteArgs,
    /// How to reach the API, and as whom [default: that of the site]
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImagesAddArgs {
    /// An archive, as `docker save`, `podman save`, `skopeo copy` or `ctr export` write it, or the
    /// name of an image, which skopeo then fetches
    #[arg(value_name = "ARCHIVE|REF")]
    pub source: String,
    /// What the image is to be called; for archives that do not say it
    #[arg(long, value_name = "REF")]
    pub name: Option<String>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImagesListArgs {
    /// How to print the list
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImagesRemoveArgs {
    /// The image, by its tag or digest
    #[arg(value_name = "REF")]
    pub name: String,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct InventoryArgs {
    /// Print all groups, hosts and variables
    #[arg(long, conflicts_with = "host", required_unless_present = "host")]
    pub list: bool,
    /// Print the variables of one machine
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// The site's rack.yaml [default: the site that is up]
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub site: SiteArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct MasterArgs {
    /// Where certificates, kubeconfigs and the store are kept
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Address and port to serve the API on
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    pub listen: std::net::SocketAddr,
    /// More addresses that clients reach this master by
    #[arg(long, value_name = "ADDR")]
    pub advertise: Vec<IpAddr>,
    /// The range of service addresses, or one of each family, the usual one first
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "172.21.0.0/24")]
    pub service_cidr: apiserver::ServiceRange,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub identity: crate::identity::IdentityArgs,
    #[command(flatten)]
    pub control: ControlArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ManagerArgs {
    /// How to reach the API server, and as whom
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// The authority that signs nodes' certificates; without it nothing is signed here
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    pub ca_cert: Option<PathBuf>,
    /// The authority's key
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,
    /// Serve /healthz and /metrics there, without a login, as in 127.0.0.1:10257
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_listen: Option<std::net::SocketAddr>,
    #[command(flatten)]
    pub control: ControlArgs,
}

/// How scheduler and controllers work.
#[derive(Debug, ClapArgs)]
pub(crate) struct ControlArgs {
    /// Which controllers run here: all, none, or names with commas between; -NAME takes one away
    #[arg(long, value_name = "LIST", default_value = "all", allow_hyphen_values = true)]
    pub controllers: String,
    /// A KubeSchedulerConfiguration: profiles, plugins, weights
    #[arg(long, value_name = "FILE")]
    pub scheduler_config: Option<PathBuf>,
    /// A range that services of type LoadBalancer get their outside addresses from
    #[arg(long, value_name = "CIDR")]
    pub load_balancer_pool: Vec<ipnet::IpNet>,
    /// Silence after which a node counts as Unknown, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 40)]
    pub node_monitor_grace_period: u32,
    /// How long pods stay on an unreachable node, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub pod_eviction_timeout: u32,
    #[command(flatten)]
    pub zones: crate::zones::ZoneArgs,
}

/// Where a master keeps the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreKind {
    /// In a file of the data directory
    Embedded,
    /// In an etcd cluster, which several masters may share
    Etcd,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StoreArgs {
    /// Where the objects are kept
    #[arg(long, value_enum, default_value_t = StoreKind::Embedded)]
    pub store: StoreKind,
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct EtcdArgs {
    /// The members of the etcd cluster, as in https://10.0.0.1:2379
    #[arg(long, value_name = "URL", value_delimiter = ',', num_args = 1..)]
    pub etcd_endpoints: Vec<String>,
    /// The authority of the members' certificates
    #[arg(long, value_name = "FILE")]
    pub etcd_cacert: Option<PathBuf>,
    /// Our certificate for etcd
    #[arg(long, value_name = "FILE", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// What all keys in etcd begin with
    #[arg(long, value_name = "PATH", default_value = apiserver::EtcdOptions::PREFIX)]
    pub etcd_prefix: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StoreCommandArgs {
    #[command(subcommand)]
    pub verb: StoreVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreVerb {
    /// Check every record, and show what there is
    Verify(StoreVerifyArgs),
    /// Write all there is to one file, to be kept elsewhere; it holds the secrets
    Snapshot(StoreSnapshotArgs),
    /// Make a store of a snapshot
    Restore(StoreRestoreArgs),
    /// Move everything from the file of a master into etcd, or back
    Migrate(StoreMigrateArgs),
}

/// A store, by its place.
#[derive(Debug, ClapArgs)]
pub(crate) struct PlaceArgs {
    /// The data directory of a master that is stopped
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "etcd_endpoints",
        required_unless_present = "etcd_endpoints"
    )]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StoreVerifyArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StoreSnapshotArgs {
    /// The file to write
    pub file: PathBuf,
    #[command(flatten)]
    pub place: PlaceArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StoreRestoreArgs {
    /// The file that `snapshot` wrote
    pub file: PathBuf,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Replace a store that holds something
    #[arg(long)]
    pub replace: bool,
    /// How many revisions may have been given out since the snapshot, at most
    #[arg(long, value_name = "REVISIONS", default_value_t = 1_000_000_000)]
    pub bump: u64,
}

/// Where a store moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Direction {
    /// From the data directory into etcd
    Etcd,
    /// From etcd into the data directory
    Embedded,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StoreMigrateArgs {
    /// The kind of store to move to
    #[arg(long, value_enum)]
    pub to: Direction,
    /// The data directory of a master that is stopped
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BootArgs {
    /// The site's rack.yaml
    #[arg(long, value_name = "FILE")]
    pub plan: PathBuf,
    /// Where leases and events are kept
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The node image
    #[arg(long, value_name = "DIR")]
    pub image: PathBuf,
    /// What `muster up` made for this site: its UKI, CA certificate and command line
    #[arg(long, value_name = "DIR")]
    pub site: PathBuf,
    /// Report machines to the API with this kubeconfig
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CsiArgs {
    /// Where the driver listens: `unix://PATH`
    #[arg(long, value_name = "SOCKET", env = "CSI_ENDPOINT")]
    pub endpoint: String,
    /// The name of this node [default: the host's name]
    #[arg(long, value_name = "NAME", env = "NODE_ID")]
    pub node: Option<String>,
    /// A monitor of the cluster; may be given several times
    #[arg(long = "monitor", value_name = "ADDRESS")]
    pub monitors: Vec<String>,
    /// The pool of volumes whose class names none
    #[arg(long, value_name = "NAME", default_value = "rbd")]
    pub pool: String,
    /// The user of volumes whose secret names none
    #[arg(long, value_name = "NAME", default_value = "admin")]
    pub user: String,
    /// The cluster's configuration, for making images [default: /etc/ceph/ceph.conf]
    #[arg(long, value_name = "FILE")]
    pub conf: Option<PathBuf>,
    /// Make the driver known to the node's agent by a socket in its registry of plugins,
    /// /var/lib/kubelet/plugins_registry on most nodes
    #[arg(long, value_name = "DIR")]
    pub register: Option<PathBuf>,
    /// Where this node is, as `rack=a`; may be given several times
    #[arg(long, value_name = "DOMAIN=VALUE")]
    pub topology: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AgentArgs {
    /// What init learnt about this machine
    #[arg(long, value_name = "FILE", default_value = "/run/muster/node.json")]
    pub node: PathBuf,
    /// The container runtime's socket
    #[arg(long, value_name = "PATH", default_value = "/run/containerd/containerd.sock")]
    pub runtime: PathBuf,
    /// A KubeletConfiguration, as YAML or JSON; evictions, reservations and the like are read
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Act for this many nodes that are not there, for tests of scale
    #[arg(long, value_name = "N", requires = "kubeconfig")]
    pub hollow: Option<u32>,
    /// How hollow nodes reach the API, and as whom
    #[arg(long, value_name = "FILE", requires = "hollow")]
    pub kubeconfig: Option<PathBuf>,
}

/// Compare what every node was meant to route with what BIRD and its kernel do.
///
/// For each node, three views stand side by side: the intent, which follows from the plan; what
/// BIRD would have the kernel do; and what the kernel does. Every point where they disagree is a
/// line of its own, `difference: PREFIX: wanted THIS, found THAT`. The exit code is 0 when there
/// is none and all neighbours are up, so that scripts can ask, too.
///
/// On the operator's host the nodes are asked through the API, simulated ones as well; typed on a
/// node, the command shows that node without asking anybody. An answer is at most ten seconds old.
#[derive(Debug, ClapArgs)]
pub(crate) struct RoutesArgs {
    /// The nodes to show [default: all]
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Read this node's own report instead of asking the API
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = router::SURVEY,
        conflicts_with = "nodes")]
    pub local: Option<PathBuf>,
    #[command(flatten)]
    pub site: SiteArgs,
    /// How to print the routes
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExportArgs {
    #[command(subcommand)]
    pub verb: ExportVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExportVerb {
    /// Write the top-of-rack routers' side of every session
    ///
    /// The configuration takes from each node its own address, its own pod network and service
    /// addresses, and nothing else: that is what keeps a node that lies from taking another's
    /// traffic. Links and sessions between routers are not in rack.yaml and are left to the site.
    TorConfig(TorConfigArgs),
    /// Write the racks as a CRUSH hierarchy, so that Ceph keeps no two copies in one rack
    Crush(CrushArgs),
}

/// How a router's side is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TorFormat {
    /// BIRD 2: bird.conf
    Bird,
    /// FRR 8.4 and later: frr.conf
    Frr,
    /// Words and lists, for any other router
    Text,
}

/// Where a plan comes from.
#[derive(Debug, ClapArgs)]
pub(crate) struct PlanSource {
    /// The site's rack.yaml [default: that of the site that is up]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub site: SiteArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TorConfigArgs {
    #[command(flatten)]
    pub source: PlanSource,
    /// What the router runs
    #[arg(long, value_enum, default_value_t = TorFormat::Bird)]
    pub format: TorFormat,
    /// Only the routers of this rack [default: all racks, one after the other]
    #[arg(long, value_name = "NAME")]
    pub rack: Option<String>,
    /// The router's link to its rack, as the router calls it
    #[arg(long, value_name = "NAME", default_value = "br0")]
    pub interface: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CrushArgs {
    #[command(flatten)]
    pub source: PlanSource,
    /// Commands for an operator, or every machine's place as JSON
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}
