//! What policies need of pods and namespaces, and no more: a node holds these for the whole
//! cluster.

use std::collections::BTreeMap;
use std::net::IpAddr;

use objects::{Selector, pod};
use serde::{Deserialize, Deserializer};

/// Labels in as little memory as they need, sorted by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    /// Whether a selector matches.
    #[must_use]
    pub fn are(&self, selector: &Selector) -> bool {
        selector.matches_with(|key| self.get(key))
    }

    fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(name, _)| (**name).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| &**value)
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(labels: I) -> Self {
        let sorted: BTreeMap<String, String> = labels.into_iter().collect();
        let small = |text: String| text.into_boxed_str();
        Self(sorted.into_iter().map(|(key, value)| (small(key), small(value))).collect())
    }
}

/// A namespace and its labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Room {
    /// The namespace's name.
    pub name: Box<str>,
    /// Its labels.
    pub labels: Labels,
}

/// A pod as policies see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guest {
    /// The pod's namespace.
    pub namespace: Box<str>,
    /// The node it is bound to; empty while there is none.
    pub node: Box<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses; empty for a pod that has none of its own: on the host's network, not
    /// started yet, or finished.
    pub addresses: Box<[IpAddr]>,
    /// Its named ports.
    pub ports: Box<[GuestPort]>,
}

/// A port that a pod has given a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPort {
    /// The name.
    pub name: Box<str>,
    /// The protocol as the API says it.
    pub protocol: Box<str>,
    /// The number.
    pub number: u16,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawMeta {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRoom {
    metadata: RawMeta,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawPod {
    metadata: RawMeta,
    spec: pod::PodSpec,
    status: pod::PodStatus,
}

impl<'de> Deserialize<'de> for Room {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let RawMeta { name, labels, .. } = RawRoom::deserialize(from)?.metadata;
        Ok(Self { name: name.into(), labels: labels.into_iter().collect() })
    }
}

impl<'de> Deserialize<'de> for Guest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let RawPod { metadata, spec, status } = RawPod::deserialize(from)?;
        let finished = matches!(status.phase.as_str(), "Succeeded" | "Failed");
        let texts = status.pod_ips.iter().map(|entry| entry.ip.as_str());
        let texts = texts.chain([status.pod_ip.as_str()]).filter(|_| !finished);
        Ok(Self::new(metadata.namespace.as_str(), metadata.labels, &spec, texts))
    }
}

impl Guest {
    /// A pod that has these addresses, whatever its status says.
    #[must_use]
    pub fn of<'a>(pod: &pod::Pod, addresses: impl IntoIterator<Item = &'a str>) -> Self {
        let meta = &pod.metadata;
        Self::new(&meta.namespace, meta.labels.clone(), &pod.spec, addresses)
    }

    fn new<'a>(
        namespace: &str,
        labels: BTreeMap<String, String>,
        spec: &pod::PodSpec,
        addresses: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let own = addresses.into_iter().filter(|_| !spec.host_network);
        let mut addresses: Vec<IpAddr> = own.filter_map(|text| text.parse().ok()).collect();
        addresses.sort();
        addresses.dedup();
        let sidecars = spec
            .init_containers
            .iter()
            .filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let ports = spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
        let named = ports.filter(|port| !port.name.is_empty()).filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            let (name, protocol) = (port.name.as_str().into(), port.protocol.as_str().into());
            Some(GuestPort { name, protocol, number })
        });
        Self {
            namespace: namespace.into(),
            node: spec.node_name.as_str().into(),
            labels: labels.into_iter().collect(),
            addresses: addresses.into(),
            ports: named.collect(),
        }
    }
}
