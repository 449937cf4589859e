//! The sockets around `boot`: DHCP, TFTP, HTTP with ranges, and reports.
