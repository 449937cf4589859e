//! Racks of QEMU machines and ToR routers in network namespaces, and the scenarios run on them.
