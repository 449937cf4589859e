//! What a node's boot files and disks look like.
