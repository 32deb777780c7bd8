//! Generates the types.
fn main() {}
