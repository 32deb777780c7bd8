//! Peers that nobody here wrote: a real Envoy and gRPC's own xDS client, served by our server.
//!
//! `envoy` is looked for in `MESH_ENVOY` and on the `PATH`, a Python with `grpcio` in `MESH_PYTHON` and as `python3`.
//! A peer that is not there shows its trials as ignored; with `MESH_REQUIRE_PEERS=1` it is a failure.

#[path = "peers/dump.rs"]
mod dump;
#[path = "peers/envoy.rs"]
mod envoy;
#[path = "peers/examples.rs"]
mod examples;
#[path = "peers/grpc.rs"]
mod grpc;
#[path = "support/server_process.rs"]
mod server_process;
#[path = "peers/support.rs"]
mod support;

use std::path::PathBuf;

use libtest_mimic::{Arguments, Failed, Trial};

use support::{Peer, block_on};

fn main() {
    server_process::run_if_child(envoy::content);
    let required = std::env::var_os("MESH_REQUIRE_PEERS").is_some_and(|v| v == "1");
    let trial = |name: &str, peer: &Peer, run: fn(PathBuf) -> Result<(), Failed>| {
        let path = peer.path.clone();
        let missing = format!("{} is not installed", peer.name);
        let trial = Trial::test(name, move || run(path.ok_or(missing)?));
        trial.with_ignored_flag(peer.path.is_none() && !required)
    };
    let (envoy, python) = (support::envoy(), support::python());
    let trials = vec![
        trial("envoy_follows_by_delta", &envoy, |path| block_on(envoy::follows(path, "DELTA_GRPC"))),
        trial("envoy_follows_by_state_of_the_world", &envoy, |path| block_on(envoy::follows(path, "GRPC"))),
        trial("envoy_outlives_killed_servers_by_delta", &envoy, |path| {
            block_on(envoy::outlives_kills(path, "DELTA_GRPC"))
        }),
        trial("envoy_outlives_killed_servers_by_state_of_the_world", &envoy, |path| {
            block_on(envoy::outlives_kills(path, "GRPC"))
        }),
        trial("envoy_admin_pages_survive_our_types", &envoy, |path| block_on(dump::everything(path))),
        trial("envoy_newer_than_the_table_is_read_in_part", &envoy, |path| {
            block_on(dump::newer_than_the_table(path))
        }),
        trial("envoy_serves_the_example", &envoy, |path| block_on(examples::control_plane(path))),
        Trial::test("the_example_prints_every_change", || block_on(examples::watch())),
        Trial::test("examples_are_forty_lines", examples::are_short),
        trial("grpc_calls_through_xds", &python, |path| block_on(grpc::calls(path))),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
