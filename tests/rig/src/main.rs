//! Runs scenarios on simulated racks.
fn main() {}
