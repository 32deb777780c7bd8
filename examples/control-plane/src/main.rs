//! `mesh-control`; everything is in the library.

fn main() -> std::process::ExitCode {
    mesh_control::run(std::env::args_os().skip(1))
}
