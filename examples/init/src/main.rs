//! The init container: writes a pod's interception rules, verifies, cleans and explains them.

fn main() -> std::process::ExitCode {
    mesh_init::run(std::env::args_os().skip(1))
}
