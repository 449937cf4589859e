//! Speaks the container runtime interface (containerd, CRI-O).
