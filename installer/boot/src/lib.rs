//! What to answer a machine that wakes: DHCP, TFTP, boot scripts, inventory. Sans-IO.
