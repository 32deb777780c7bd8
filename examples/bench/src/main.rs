//! The same load through us and through our peers.
fn main() {}
