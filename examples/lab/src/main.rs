//! A whole mesh on one Linux machine, in network namespaces.
fn main() {}
