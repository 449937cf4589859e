//! The network part of this crate for callers without a runtime: init and the CNI plugin.
//!
//! Owns a current-thread runtime, so it is bound to the thread's namespace like its socket.
//! Must not be used on a runtime's thread: waiting there would stop that runtime.

use std::future::Future;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::runtime::{Builder, Runtime};

use crate::netlink::{
    Address, Family, Link, LinkIndex, Netlink, NetlinkError, NextHop, Route, Veth,
};
use crate::netns::{Namespace, NamespaceError};

/// A netlink socket in the calling thread's namespace.
#[derive(Debug)]
pub struct Network {
    netlink: Netlink,
    // Dropped after the socket, whose task it runs.
    runtime: Runtime,
}

impl Network {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|err| NetlinkError::new("start", "runtime", err))?;
        let netlink = runtime.block_on(async { Netlink::open() })?;
        Ok(Self { netlink, runtime })
    }

    /// Opens a socket of another namespace, which it belongs to for good. The thread is in that
    /// namespace only for the moment; unlike [`Namespace::enter`] this needs no thread of its own,
    /// whose start costs a busy machine more than all the work.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered, gives no socket, or cannot be left again; the thread
    /// must do nothing more with the network in the last case.
    pub fn open_in(namespace: &Namespace) -> Result<Self, NamespaceError> {
        let opened = namespace.visit(Self::open)?;
        opened
            .map_err(|source| NamespaceError::Network { path: namespace.path().to_owned(), source })
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// As [`Netlink::links`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.wait(self.netlink.links())
    }

    /// As [`Netlink::link`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        self.wait(self.netlink.link(name))
    }

    /// As [`Netlink::require_link`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn require_link(&self, name: &str) -> Result<Link, NetlinkError> {
        self.wait(self.netlink.require_link(name))
    }

    /// As [`Netlink::set_up`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn set_up(&self, index: LinkIndex) -> Result<(), NetlinkError> {
        self.wait(self.netlink.set_up(index))
    }

    /// As [`Netlink::add_veth`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn add_veth(&self, veth: &Veth<'_>) -> Result<(), NetlinkError> {
        self.wait(self.netlink.add_veth(veth))
    }

    /// As [`Netlink::delete_link`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn delete_link(&self, index: LinkIndex) -> Result<(), NetlinkError> {
        self.wait(self.netlink.delete_link(index))
    }

    /// As [`Netlink::add_address`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn add_address(&self, index: LinkIndex, address: Address) -> Result<(), NetlinkError> {
        self.wait(self.netlink.add_address(index, address))
    }

    /// As [`Netlink::addresses`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn addresses(&self, index: LinkIndex) -> Result<Vec<Address>, NetlinkError> {
        self.wait(self.netlink.addresses(index))
    }

    /// As [`Netlink::replace_route`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.wait(self.netlink.replace_route(route))
    }

    /// As [`Netlink::delete_route`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn delete_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.wait(self.netlink.delete_route(route))
    }

    /// As [`Netlink::routes`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn routes(&self, family: Family) -> Result<Vec<Route>, NetlinkError> {
        self.wait(self.netlink.routes(family))
    }

    /// Sets the default route of the gateway's address family, in place of one there already.
    ///
    /// # Errors
    ///
    /// When the gateway is not on the link or the kernel refuses.
    pub fn set_default_route(&self, index: LinkIndex, gateway: IpAddr) -> Result<(), NetlinkError> {
        let destination = match gateway {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        };
        let hop = NextHop { gateway: Some(gateway), link: Some(index), onlink: false };
        self.replace_route(&Route::via(destination, hop))
    }
}
