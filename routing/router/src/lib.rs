//! Drives BIRD, wires pods, and checks the kernel's table against the intent.
