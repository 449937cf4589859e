//! The two families of addresses, and which of them services and pods have.

use std::net::IpAddr;

use objects::network::Service;
use objects::pod::Pod;

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The families of a service's addresses, the first one first; never empty.
    pub(crate) fn of_service(service: &Service) -> Vec<Self> {
        let named = |name: &String| [Self::V4, Self::V6].into_iter().find(|one| one.name() == name);
        let mut families: Vec<Self> = service.spec.ip_families.iter().filter_map(named).collect();
        if families.is_empty() {
            // Such as a service from before there were two.
            let address: Option<IpAddr> = service.spec.cluster_ip.parse().ok();
            families.push(address.map_or(Self::V4, Self::of));
        }
        families
    }

    /// As services and slices call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The pod's address of this family.
    pub(crate) fn address(self, pod: &Pod) -> Option<&str> {
        let several = pod.status.pod_ips.iter().map(|entry| entry.ip.as_str());
        let mut all = several.chain(std::iter::once(pod.status.pod_ip.as_str()));
        all.find(|text| text.parse().is_ok_and(|address| Self::of(address) == self))
    }
}
