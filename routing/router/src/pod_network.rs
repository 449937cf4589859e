//! What the plugin must know, and the file it stands in.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::json;
use thiserror::Error;

/// The address every pod has as its gateway; each host end of a pod's link holds it.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same of IPv6: the first address of the links' own range, so that no two ends of one link
/// are in doubt who it is.
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The version of the plugin list that the router writes: containerd 1.7 knows it.
const LIST_VERSION: &str = "1.0.0";

/// This node's pod network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodNetwork {
    /// The range pods of this node get their addresses from.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Ipv4Net,
    /// The gateway of every pod.
    pub gateway: Ipv4Addr,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// The node's own address: what pods see when the node talks to them.
    pub node_address: Ipv4Addr,
    /// The same of IPv6; `None` on a site of IPv4 alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<PodNetworkV6>,
}

/// The IPv6 half of a node's pod network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodNetworkV6 {
    /// The range pods of this node get their addresses from.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Ipv6Net,
    /// The gateway of every pod.
    pub gateway: Ipv6Addr,
    /// The node's own address.
    pub node_address: Ipv6Addr,
}

/// A file of the router's or plugin's that could not be read or written.
#[derive(Debug, Error)]
pub enum FileError {
    /// Reading, writing, renaming or removing failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The content is not what it should be.
    #[error("{path} does not decode")]
    Decode {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl FileError {
    pub(crate) fn io(operation: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { operation, path: path.to_owned(), source }
    }

    /// Whether the file is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }
}

impl PodNetwork {
    /// The IPv6 address of the pod that has this one: as far into the one range as into the other.
    /// `None` on a site of IPv4 alone.
    pub(crate) fn address_v6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let range = self.v6.as_ref()?.pod_cidr;
        let offset = u32::from(address).checked_sub(u32::from(self.pod_cidr.network()))?;
        let found = u128::from(range.network()).checked_add(u128::from(offset))?;
        Some(Ipv6Addr::from(found)).filter(|found| range.contains(found))
    }

    /// Renders the file's content.
    #[must_use]
    pub fn render(&self) -> String {
        json!(self).to_string() + "\n"
    }

    /// Reads the file.
    ///
    /// # Errors
    ///
    /// When it is missing ([`FileError::is_missing`]) or does not decode.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let text = fs::read(path).map_err(|err| FileError::io("read", path, err))?;
        let decode = |source| FileError::Decode { path: path.to_owned(), source };
        serde_json::from_slice(&text).map_err(decode)
    }
}

/// Renders the runtime's list of plugins.
pub(crate) fn render_list(pod_network: &Path) -> String {
    let list = json!({
        "cniVersion": LIST_VERSION,
        "name": "muster",
        "plugins": [{"type": "muster-cni", "podNetwork": pod_network}],
    });
    list.to_string() + "\n"
}

/// Replaces a file in one step; its folder is made if need be.
pub(crate) fn write_file(path: &Path, content: &str) -> Result<(), FileError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|err| FileError::io("create", folder, err))?;
    }
    let new = beside(path);
    fs::write(&new, content).map_err(|err| FileError::io("write", &new, err))?;
    fs::rename(&new, path).map_err(|err| FileError::io("replace", path, err))
}

/// Where a file is written before it takes the place of the old one. The dot keeps it from being
/// read as a configuration of its own.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}
