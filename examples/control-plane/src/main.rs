//! `mesh-control`; everything is in the library.

/// Many threads, many short-lived small objects: the system's allocator takes half as long again for an injected pod, and
/// keeps what it has.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    mesh_control::run(std::env::args_os().skip(1))
}
