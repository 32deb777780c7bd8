//! The init container: writes a pod's interception rules, verifies, cleans and explains them.
fn main() {}
