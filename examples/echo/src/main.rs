//! The test workload: says who called and how.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    mesh_echo::run(std::env::args_os().skip(1))
}
