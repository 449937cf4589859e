//! The CNI plugin as a program of its own: what `muster cni` does, from a file so small that the
//! kernel and the loader are done with it at once. The container runtime starts it twice for every
//! pod, and twice more when the pod goes.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(router::cni::main(std::io::stdin(), std::env::vars()))
}
