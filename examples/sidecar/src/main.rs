//! The sidecar: agent and proxy in one process.
fn main() {}
