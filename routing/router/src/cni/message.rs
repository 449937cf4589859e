//! What the runtime says and hears: parameters, configuration, results, errors.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::address::{AddressError, Owner};
use super::wire::Wired;
use super::{ADDRESSES, Call, POD_NETWORK, Settings};
use crate::pod_network::PodNetwork;

/// Versions spoken, oldest first.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The version of errors about a call whose version is unknown.
const FALLBACK: &str = "1.0.0";

/// One call of the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Attach a container.
    Add(Call),
    /// Detach it.
    Del(Call),
    /// Is it attached as it should be?
    Check(Call),
    /// Could a container be attached now?
    Status(Settings),
    /// Which versions are spoken?
    Version,
    /// Forget all but these attachments.
    Gc {
        /// The plugin's configuration.
        config: Settings,
        /// The attachments that still exist.
        valid: Vec<Owner>,
    },
}

/// A failed call, as the runtime hears it.
///
/// Spec: CNI 1.1.0, section "Error".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    code: u32,
    message: String,
    details: String,
}

impl Failure {
    fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    fn with(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    pub(super) fn version(message: impl Into<String>) -> Self {
        Self::new(1, message)
    }

    pub(super) fn unknown_container(message: String) -> Self {
        Self::new(3, message)
    }

    pub(super) fn environment(message: impl Into<String>) -> Self {
        Self::new(4, message)
    }

    pub(super) fn io(message: String) -> Self {
        Self::new(5, message)
    }

    pub(super) fn decode(message: String) -> Self {
        Self::new(6, message)
    }

    pub(super) fn config(message: impl Into<String>) -> Self {
        Self::new(7, message)
    }

    pub(super) fn namespace(message: impl Into<String>) -> Self {
        Self::new(8, message)
    }

    /// Worth repeating a little later.
    pub(super) fn later(message: String) -> Self {
        Self::new(11, message)
    }

    /// The answer to STATUS when no container can be attached.
    pub(super) fn into_unavailable(self) -> Self {
        Self { code: 50, ..self }
    }

    /// Wiring failed, or is not as it should be.
    pub(super) fn wiring(message: String) -> Self {
        Self::new(100, message)
    }

    pub(super) fn render(&self, version: &str) -> Value {
        let Self { code, message, details } = self;
        json!({"cniVersion": version, "code": code, "msg": message, "details": details})
    }
}

impl From<AddressError> for Failure {
    fn from(err: AddressError) -> Self {
        let message = runtime::report(&err);
        match err {
            AddressError::Full(_) => Self::later(message),
            AddressError::File(_) => Self::io(message),
        }
    }
}

/// The configuration as it stands in the runtime's file; unknown fields are not ours to judge.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConfig {
    #[serde(default)]
    cni_version: Option<String>,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    pod_network: Option<PathBuf>,
    #[serde(default)]
    addresses: Option<PathBuf>,
    #[serde(default)]
    prev_result: Option<Value>,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<RawAttachment>>,
}

#[derive(Debug, Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// Parameters and the commands that cannot do without them, in the order they are named.
const REQUIRED: [(&str, &[&str]); 4] = [
    ("CNI_CONTAINERID", &["ADD", "CHECK", "DEL"]),
    ("CNI_NETNS", &["ADD", "CHECK"]),
    ("CNI_IFNAME", &["ADD", "CHECK", "DEL"]),
    ("CNI_PATH", &["ADD", "CHECK", "DEL", "GC", "STATUS"]),
];
/// The version that brought a command, for those that were not always there.
const SINCE: [(&str, [u32; 3]); 3] =
    [("CHECK", [0, 4, 0]), ("GC", [1, 1, 0]), ("STATUS", [1, 1, 0])];

impl Request {
    /// Reads what needs no configuration: whether all parameters are there that the command needs.
    /// `Some` when that is the whole call.
    ///
    /// # Errors
    ///
    /// With all parameters that are missing.
    pub fn begin(env: &BTreeMap<String, String>) -> Result<Option<Self>, Failure> {
        let get = |name: &str| env.get(name).map(String::as_str).unwrap_or_default();
        let command = get("CNI_COMMAND");
        let nameless = command.is_empty().then_some("CNI_COMMAND");
        let needed = REQUIRED.iter().filter(|(_, commands)| commands.contains(&command));
        let missing = needed.map(|(name, _)| *name).filter(|name| get(name).is_empty());
        let missing: Vec<&str> = nameless.into_iter().chain(missing).collect();
        if !missing.is_empty() {
            let names = missing.join(",");
            return Err(Failure::environment(format!("required env variables [{names}] missing")));
        }
        Ok((command == "VERSION").then_some(Self::Version))
    }

    /// Reads one call.
    ///
    /// # Errors
    ///
    /// When a parameter is missing or malformed, or the configuration does not decode.
    pub fn parse(env: &BTreeMap<String, String>, input: &[u8]) -> Result<Self, Failure> {
        if let Some(whole) = Self::begin(env)? {
            return Ok(whole);
        }
        let get = |name: &str| env.get(name).map(String::as_str).unwrap_or_default();
        let command = get("CNI_COMMAND");
        let raw: RawConfig = serde_json::from_slice(input)
            .map_err(|err| Failure::decode(format!("the configuration does not decode: {err}")))?;
        network_name(&raw.name)?;
        let attached = matches!(command, "ADD" | "CHECK" | "DEL");
        let container = if attached { identifier(get("CNI_CONTAINERID"))? } else { String::new() };
        let interface = if attached { link_name(get("CNI_IFNAME"))? } else { String::new() };
        let valid = raw.valid_attachments.as_deref().map(owners);
        let config = settings(raw, command)?;
        let namespace = Some(get("CNI_NETNS")).filter(|path| !path.is_empty()).map(PathBuf::from);
        let call = Call { config, container, interface, namespace };
        match command {
            "ADD" => Ok(Self::Add(call)),
            "DEL" => Ok(Self::Del(call)),
            "CHECK" => Ok(Self::Check(call)),
            "STATUS" => Ok(Self::Status(call.config)),
            "GC" => {
                let missing = || Failure::config("GC without cni.dev/valid-attachments");
                Ok(Self::Gc { config: call.config, valid: valid.ok_or_else(missing)? })
            }
            other => Err(Failure::environment(format!("unknown CNI_COMMAND: {other}"))),
        }
    }
}

fn settings(raw: RawConfig, command: &str) -> Result<Settings, Failure> {
    // Before there was the field there was 0.1.0, which we do not speak.
    let version = raw.cni_version.unwrap_or_else(|| "0.1.0".to_owned());
    if let Some((_, since)) = SINCE.iter().find(|(name, _)| *name == command) {
        let Some(number) = number_of(&version) else {
            return Err(Failure::decode(format!("CNI version {version:?} is no version")));
        };
        if number < *since {
            return Err(Failure::version(format!("config version does not allow {command}")));
        }
    }
    if !VERSIONS.contains(&version.as_str()) {
        let spoken = VERSIONS.map(|version| format!("{version:?}")).join(" ");
        return Err(Failure::version("incompatible CNI versions")
            .with(format!("config is {version:?}, plugin supports [{spoken}]")));
    }
    Ok(Settings {
        version,
        kind: raw.kind,
        pod_network: raw.pod_network.unwrap_or_else(|| POD_NETWORK.into()),
        addresses: raw.addresses.unwrap_or_else(|| ADDRESSES.into()),
        previous: raw.prev_result.filter(|value| !value.is_null()),
    })
}

/// Up to three numbers with points between them.
fn number_of(version: &str) -> Option<[u32; 3]> {
    let mut number = [0; 3];
    let mut parts = version.split('.');
    for (place, part) in number.iter_mut().zip(parts.by_ref()) {
        *place = part.parse().ok()?;
    }
    parts.next().is_none().then_some(number)
}

fn owners(attachments: &[RawAttachment]) -> Vec<Owner> {
    let owner = |one: &RawAttachment| Owner {
        container: one.container_id.clone(),
        interface: one.ifname.clone(),
    };
    attachments.iter().map(owner).collect()
}

/// Spec: names of networks and ids of containers begin with a letter or digit, then also `_`, `.`,
/// `-`.
fn is_name(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(inside)
}

fn network_name(text: &str) -> Result<(), Failure> {
    if text.is_empty() {
        return Err(Failure::config("missing network name"));
    }
    if !is_name(text) {
        return Err(Failure::config("invalid characters found in network name").with(text));
    }
    Ok(())
}

fn identifier(text: &str) -> Result<String, Failure> {
    if !is_name(text) {
        return Err(Failure::environment("invalid characters in containerID").with(text));
    }
    Ok(text.to_owned())
}

/// A name the kernel takes for a link.
fn link_name(text: &str) -> Result<String, Failure> {
    if text.len() > 15 {
        return Err(Failure::environment("interface name is too long")
            .with("interface name should be less than 16 characters"));
    }
    if matches!(text, "." | "..") {
        return Err(Failure::environment("interface name is . or .."));
    }
    let astray = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':');
    if text.contains(astray) {
        let why = "interface name contains / or : or whitespace characters";
        return Err(Failure::environment(why));
    }
    Ok(text.to_owned())
}

/// The version an error should be written in.
pub(super) fn version_of(input: &[u8]) -> String {
    let asked = serde_json::from_slice::<Value>(input).ok();
    let asked = asked.as_ref().and_then(|value| value.get("cniVersion")).and_then(Value::as_str);
    asked.filter(|version| VERSIONS.contains(version)).unwrap_or(FALLBACK).to_owned()
}

pub(super) fn render_versions() -> Value {
    json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS})
}

/// The result of ADD.
pub(super) fn render_result(
    call: &Call,
    host: &str,
    address: Ipv4Addr,
    network: &PodNetwork,
    wired: &Wired,
) -> Value {
    let ip = json!({
        "address": format!("{address}/32"), "gateway": network.gateway, "interface": 1,
    });
    let mut ips = vec![with_family(call, ip, "4")];
    let mut routes = vec![json!({"dst": "0.0.0.0/0", "gw": network.gateway})];
    if let Some((address, v6)) = network.address_v6(address).zip(network.v6.as_ref()) {
        let ip = json!({
            "address": format!("{address}/128"), "gateway": v6.gateway, "interface": 1,
        });
        ips.push(with_family(call, ip, "6"));
        routes.push(json!({"dst": "::/0", "gw": v6.gateway}));
    }
    json!({
        "cniVersion": call.config.version,
        "interfaces": [
            {"name": host, "mac": wired.host_mac},
            {"name": call.interface, "mac": wired.pod_mac, "sandbox": call.namespace},
        ],
        "ips": ips,
        "routes": routes,
        "dns": {},
    })
}

/// The result of ADD for the loopback link.
pub(super) fn render_loopback(call: &Call) -> Value {
    let ip = json!({"address": "127.0.0.1/8", "interface": 0});
    json!({
        "cniVersion": call.config.version,
        "interfaces": [
            {"name": call.interface, "mac": "00:00:00:00:00:00", "sandbox": call.namespace},
        ],
        "ips": [with_family(call, ip, "4")],
        "dns": {},
    })
}

/// Before 1.0.0 an address names its family.
fn with_family(call: &Call, mut ip: Value, family: &str) -> Value {
    if call.config.version.starts_with("0.")
        && let Some(fields) = ip.as_object_mut()
    {
        fields.insert("version".to_owned(), json!(family));
    }
    ip
}

/// Does the earlier result name the addresses that the container still has?
pub(super) fn check_previous(
    call: &Call,
    address: Ipv4Addr,
    network: &PodNetwork,
) -> Result<(), Failure> {
    let Some(previous) = &call.config.previous else {
        return Err(Failure::config("CHECK without prevResult".to_owned()));
    };
    let ips = previous.get("ips").and_then(Value::as_array);
    let second = network.address_v6(address).map(|address| format!("{address}/128"));
    for wanted in std::iter::once(format!("{address}/32")).chain(second) {
        let named = |ip: &Value| ip.get("address").and_then(Value::as_str) == Some(&wanted);
        if !ips.is_some_and(|ips| ips.iter().any(named)) {
            let why = format!("prevResult does not name {wanted}, which the container has");
            return Err(Failure::wiring(why));
        }
    }
    Ok(())
}
