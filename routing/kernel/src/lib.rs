//! The one crate that touches the kernel: links, routes, namespaces, nftables, mounts, disks, keys, modules, device mapper.
//!
//! A door: it does what it is told and decides nothing. Each module is one part of the kernel.
//! The asynchronous side is [`Netlink`]; [`sync::Network`] is the same for programs without a
//! runtime, and [`netns::Namespace::enter`] runs it inside another network namespace.

#![allow(unsafe_code, reason = "the workspace's one place for it; each block says why it holds")]

mod netfilter;
mod netlink;

pub mod conntrack;
pub mod datagram;
pub mod disk;
pub mod keyring;
pub mod loopback;
pub mod module;
pub mod mount;
pub mod netns;
pub mod nft;
pub mod packet;
pub mod rbd;
pub mod share;
pub mod sync;
pub mod sysctl;
pub mod verity;

pub use netlink::{
    Address, AddressScope, Family, Link, LinkIndex, Netlink, NetlinkError, NextHop, Route,
    RouteKind, RouteOrigin, Veth,
};
