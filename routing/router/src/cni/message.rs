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
}

impl Failure {
    pub(super) fn version(message: String) -> Self {
        Self { code: 1, message }
    }

    pub(super) fn unknown_container(message: String) -> Self {
        Self { code: 3, message }
    }

    pub(super) fn environment(message: String) -> Self {
        Self { code: 4, message }
    }

    pub(super) fn io(message: String) -> Self {
        Self { code: 5, message }
    }

    pub(super) fn decode(message: String) -> Self {
        Self { code: 6, message }
    }

    pub(super) fn config(message: String) -> Self {
        Self { code: 7, message }
    }

    /// Worth repeating a little later.
    pub(super) fn later(message: String) -> Self {
        Self { code: 11, message }
    }

    /// The answer to STATUS when no container can be attached.
    pub(super) fn into_unavailable(self) -> Self {
        Self { code: 50, ..self }
    }

    /// Wiring failed, or is not as it should be.
    pub(super) fn wiring(message: String) -> Self {
        Self { code: 100, message }
    }

    pub(super) fn render(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code, "msg": self.message, "details": ""})
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

impl Request {
    /// Reads one call.
    ///
    /// # Errors
    ///
    /// When a parameter is missing or malformed, or the configuration does not decode.
    pub fn parse(env: &BTreeMap<String, String>, input: &[u8]) -> Result<Self, Failure> {
        let get = |name: &str| env.get(name).map(String::as_str).unwrap_or_default();
        let command = get("CNI_COMMAND");
        if command == "VERSION" {
            return Ok(Self::Version);
        }
        let raw: RawConfig = serde_json::from_slice(input)
            .map_err(|err| Failure::decode(format!("the configuration does not decode: {err}")))?;
        let valid = raw.valid_attachments.as_deref().map(owners);
        let config = settings(raw)?;
        match command {
            "STATUS" => return Ok(Self::Status(config)),
            "GC" => {
                let missing = || Failure::config("GC without cni.dev/valid-attachments".to_owned());
                return Ok(Self::Gc { config, valid: valid.ok_or_else(missing)? });
            }
            "ADD" | "DEL" | "CHECK" => (),
            other => {
                return Err(Failure::environment(format!("CNI_COMMAND {other:?} is unknown")));
            }
        }
        let container = identifier(get("CNI_CONTAINERID"))?;
        let interface = link_name(get("CNI_IFNAME"))?;
        let namespace = Some(get("CNI_NETNS")).filter(|path| !path.is_empty()).map(PathBuf::from);
        if namespace.is_none() && command != "DEL" {
            return Err(Failure::environment("CNI_NETNS is missing".to_owned()));
        }
        let call = Call { config, container, interface, namespace };
        Ok(match command {
            "ADD" => Self::Add(call),
            "DEL" => Self::Del(call),
            _ => Self::Check(call),
        })
    }
}

fn settings(raw: RawConfig) -> Result<Settings, Failure> {
    // Before there was the field there was 0.1.0, which we do not speak.
    let version = raw.cni_version.unwrap_or_else(|| "0.1.0".to_owned());
    if !VERSIONS.contains(&version.as_str()) {
        let spoken = VERSIONS.join(", ");
        return Err(Failure::version(format!("CNI version {version} is none of {spoken}")));
    }
    if raw.name.is_empty() {
        return Err(Failure::config("the configuration has no name".to_owned()));
    }
    Ok(Settings {
        version,
        kind: raw.kind,
        pod_network: raw.pod_network.unwrap_or_else(|| POD_NETWORK.into()),
        addresses: raw.addresses.unwrap_or_else(|| ADDRESSES.into()),
        previous: raw.prev_result.filter(|value| !value.is_null()),
    })
}

fn owners(attachments: &[RawAttachment]) -> Vec<Owner> {
    let owner = |one: &RawAttachment| Owner {
        container: one.container_id.clone(),
        interface: one.ifname.clone(),
    };
    attachments.iter().map(owner).collect()
}

/// Spec: a container id begins with a letter or digit, then also `_`, `.`, `-`.
fn identifier(text: &str) -> Result<String, Failure> {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(inside) {
        return Ok(text.to_owned());
    }
    Err(Failure::environment(format!("CNI_CONTAINERID {text:?} is missing or malformed")))
}

/// A name the kernel takes for a link.
fn link_name(text: &str) -> Result<String, Failure> {
    let inside = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | ':');
    let right = (1..=15).contains(&text.len()) && !matches!(text, "." | "..");
    if right && text.chars().all(inside) {
        return Ok(text.to_owned());
    }
    Err(Failure::environment(format!("CNI_IFNAME {text:?} is missing or malformed")))
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
    json!({
        "cniVersion": call.config.version,
        "interfaces": [
            {"name": host, "mac": wired.host_mac},
            {"name": call.interface, "mac": wired.pod_mac, "sandbox": call.namespace},
        ],
        "ips": [with_family(call, ip)],
        "routes": [{"dst": "0.0.0.0/0", "gw": network.gateway}],
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
        "ips": [with_family(call, ip)],
        "dns": {},
    })
}

/// Before 1.0.0 an address names its family.
fn with_family(call: &Call, mut ip: Value) -> Value {
    if call.config.version.starts_with("0.")
        && let Some(fields) = ip.as_object_mut()
    {
        fields.insert("version".to_owned(), json!("4"));
    }
    ip
}

/// Does the earlier result name the address that the container still has?
pub(super) fn check_previous(call: &Call, address: Ipv4Addr) -> Result<(), Failure> {
    let Some(previous) = &call.config.previous else {
        return Err(Failure::config("CHECK without prevResult".to_owned()));
    };
    let ips = previous.get("ips").and_then(Value::as_array);
    let wanted = format!("{address}/32");
    let named = |ip: &Value| ip.get("address").and_then(Value::as_str) == Some(&wanted);
    if ips.is_some_and(|ips| ips.iter().any(named)) {
        return Ok(());
    }
    Err(Failure::wiring(format!("prevResult does not name {wanted}, which the container has")))
}
