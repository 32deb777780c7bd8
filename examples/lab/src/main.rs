#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod admission;
mod cli;
mod cluster;
mod control_plane;
mod demo;
mod error;
mod http;
mod inner;
mod inspect;
mod kubelet;
mod lab;
mod netns;
mod network;
mod objects;
mod outer;
mod pod;
mod privilege;
mod role;
mod sandbox;
mod shim;
mod state;
mod tokens;
mod up;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let called_as = args.next().unwrap_or_default();
    if let Some(code) = role::by_name(&called_as, args) {
        return code;
    }
    cli::run()
}
