//! The CNI plugin: one process per call of the container runtime.
//!
//! A pod's network is a routed veth: the pod has a `/32` and the gateway 169.254.1.1, the host
//! end holds that gateway and a route to the pod. No bridge, no overlay, no daemon to ask. The
//! router publishes what the plugin needs in a file; addresses are files, too ([`address`]).
//!
//! The same program answers for the type `loopback`, which containerd 1.7 calls for every pod.
//!
//! Spec: CNI 1.1.0 (ADD, DEL, CHECK, STATUS, GC, VERSION), and 0.3.0 to 1.0.0.
//!
//! On a site of two families a pod has an address of each: the IPv6 one lies as far into the node's
//! IPv6 pod network as the other into the other, so only one of them need be remembered.
//!
//! *Limits*: is the first plugin of its list, so a `prevResult` is only checked, not extended.

mod address;
mod message;
mod wire;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use message::{Failure, Request};

use crate::pod_network::PodNetwork;
use address::{Addresses, Owner};

/// Names of pods' host ends begin so.
pub(crate) const LINK_PREFIX: &str = "pod";
/// Where addresses are kept unless the configuration says otherwise.
const ADDRESSES: &str = "/run/muster/ips";
/// Where the router publishes the pod network unless the configuration says otherwise.
const POD_NETWORK: &str = "/run/muster/pod-network.json";
/// A configuration is a few hundred bytes; anything near this is not one.
const INPUT_BYTES_MAX: u64 = 1 << 20;

/// Serves one call: configuration from `stdin`, parameters from `env`, the result to standard
/// output. Returns the exit code.
pub fn main(stdin: impl Read, env: impl IntoIterator<Item = (String, String)>) -> u8 {
    serve(stdin, std::io::stdout(), env)
}

/// As [`main`], with the output given.
pub fn serve(
    stdin: impl Read,
    mut stdout: impl Write,
    env: impl IntoIterator<Item = (String, String)>,
) -> u8 {
    let env: BTreeMap<String, String> = env.into_iter().collect();
    let mut input = Vec::new();
    let outcome = match Request::begin(&env) {
        Ok(None) => match stdin.take(INPUT_BYTES_MAX).read_to_end(&mut input) {
            Ok(_) => Request::parse(&env, &input),
            Err(err) => Err(Failure::io(format!("error reading from stdin: {err}"))),
        },
        Ok(Some(whole)) => Ok(whole),
        Err(failure) => Err(failure),
    };
    let version = message::version_of(&input);
    let outcome = outcome.and_then(|request| answer(&request));
    let (text, code) = match outcome {
        Ok(None) => return 0,
        Ok(Some(value)) => (value.to_string(), 0),
        Err(failure) => (failure.render(&version).to_string(), 1),
    };
    // A runtime that does not listen learns it from the exit code.
    match writeln!(stdout, "{text}") {
        Ok(()) => code,
        Err(_) => 1,
    }
}

fn answer(request: &Request) -> Result<Option<Value>, Failure> {
    if let Request::Add(call) | Request::Del(call) = request {
        wire::not_our_own(call)?;
    }
    match request {
        Request::Version => Ok(Some(message::render_versions())),
        Request::Status(config) => {
            load(&config.pod_network).map_err(Failure::into_unavailable)?;
            Ok(None)
        }
        Request::Add(call) if call.config.is_loopback() => {
            wire::loopback(call).map(|()| Some(message::render_loopback(call)))
        }
        Request::Check(call) if call.config.is_loopback() => wire::loopback(call).map(|()| None),
        Request::Del(call) if call.config.is_loopback() => Ok(None),
        Request::Add(call) => add(call).map(Some),
        Request::Check(call) => check(call).map(|()| None),
        Request::Del(call) => del(call).map(|()| None),
        Request::Gc { config, valid } => {
            let addresses = Addresses::at(&config.addresses);
            for owner in addresses.retain(valid).map_err(Failure::from)? {
                wire::remove(&wire::host_name(&owner.container, &owner.interface))?;
            }
            Ok(None)
        }
    }
}

/// Wires a pod. Called again for the same container, it starts afresh with the same address, so
/// a call that was cut off half-way is mended by its repetition.
fn add(call: &Call) -> Result<Value, Failure> {
    let network = load(&call.config.pod_network)?;
    let addresses = Addresses::at(&call.config.addresses);
    let owner = call.owner();
    let address = addresses.take(&owner, network.pod_cidr).map_err(Failure::from)?;
    let host = wire::host_name(&owner.container, &owner.interface);
    match wire::connect(call, &host, address, &network) {
        Ok(wired) => Ok(message::render_result(call, &host, address, &network, &wired)),
        Err(failure) => {
            // Best effort: the runtime calls DEL after a failed ADD, and GC after that.
            drop(wire::remove(&host));
            drop(addresses.release(&owner));
            Err(failure)
        }
    }
}

/// Is the pod wired as ADD left it?
fn check(call: &Call) -> Result<(), Failure> {
    let network = load(&call.config.pod_network)?;
    let owner = call.owner();
    let found = Addresses::at(&call.config.addresses).find(&owner).map_err(Failure::from)?;
    let Some(address) = found else {
        return Err(Failure::unknown_container(format!("{owner} has no address")));
    };
    message::check_previous(call, address, &network)?;
    wire::check(call, &wire::host_name(&owner.container, &owner.interface), address, &network)
}

/// Takes a pod off the network. Everything may be gone already, the namespace included.
fn del(call: &Call) -> Result<(), Failure> {
    let owner = call.owner();
    wire::remove(&wire::host_name(&owner.container, &owner.interface))?;
    Addresses::at(&call.config.addresses).release(&owner).map_err(Failure::from)
}

fn load(path: &Path) -> Result<PodNetwork, Failure> {
    PodNetwork::load(path).map_err(|err| {
        if err.is_missing() {
            // The router writes it as soon as it knows the node's pod network.
            Failure::later(format!("no pod network yet: {} is not there", path.display()))
        } else {
            Failure::io(runtime::report(&err))
        }
    })
}

/// The plugin's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The version that the result is written in.
    pub version: String,
    /// The plugin's type: ours or `loopback`.
    pub kind: String,
    /// Where the router publishes the pod network.
    pub pod_network: PathBuf,
    /// The folder of addresses.
    pub addresses: PathBuf,
    /// The result of an earlier ADD, for CHECK and DEL.
    pub previous: Option<Value>,
}

impl Settings {
    fn is_loopback(&self) -> bool {
        self.kind == "loopback"
    }
}

/// One container's attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The plugin's configuration.
    pub config: Settings,
    /// The container's id.
    pub container: String,
    /// The name of the link inside the container.
    pub interface: String,
    /// The container's network namespace; may be absent on DEL.
    pub namespace: Option<PathBuf>,
}

impl Call {
    fn owner(&self) -> Owner {
        Owner { container: self.container.clone(), interface: self.interface.clone() }
    }
}

#[cfg(test)]
mod tests;
