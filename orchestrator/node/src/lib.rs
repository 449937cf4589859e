//! A node's decisions about its pods, services and names.
