//! Pods without a mesh, in real namespaces: what this kubelet promises of a Pod, how people look at them, and that
//! nothing is left behind.
//!
//! Needs privileges; without them the trials show as ignored, with `MESH_REQUIRE_PEERS=1` they fail.

mod commands;
mod edits;
mod ends;
mod lab;
mod spec;

use libtest_mimic::{Arguments, Trial};

/// A trial's name and what it checks.
type Check = (&'static str, fn() -> lab::Checked);

fn main() {
    let args = Arguments::from_args();
    let missing = lab::command(std::path::Path::new("/dev/null/nowhere"))
        .args(["up", "--no-mesh", "-f", "/proc/self/fdinfo"])
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("missing privileges"));
    let ignored = missing && std::env::var_os("MESH_REQUIRE_PEERS").is_none();
    let trials: [Check; 12] = [
        ("a_pod_gets_what_it_asks_for", spec::a_pod_gets_what_it_asks_for),
        ("restarts_follow_the_policy", spec::restarts_follow_the_policy),
        ("probes_decide", spec::probes_decide),
        ("hooks_and_the_order_of_the_end", spec::hooks_and_the_order_of_the_end),
        ("resources_volumes_and_capabilities", spec::resources_volumes_and_capabilities),
        ("commands_find_their_pod", commands::commands_find_their_pod),
        ("without_privileges_nothing_is_done", commands::without_privileges_nothing_is_done),
        ("edits_are_followed_and_mistakes_survived", edits::edits_are_followed_and_mistakes_survived),
        ("nothing_outlives_a_killed_lab", ends::nothing_outlives_a_killed_lab),
        ("labs_stand_side_by_side", ends::labs_stand_side_by_side),
        ("interrupts_end_it_in_order", ends::interrupts_end_it_in_order),
        ("a_killed_inner_process_ends_it", ends::a_killed_inner_process_ends_it),
    ];
    let trials = trials.map(|(name, check)| Trial::test(name, check).with_ignored_flag(ignored));
    libtest_mimic::run(&args, Vec::from(trials)).exit();
}
