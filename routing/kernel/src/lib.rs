//! The one crate that touches the kernel: links, routes, namespaces, nftables, mounts, modules, device mapper.
