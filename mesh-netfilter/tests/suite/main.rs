//! What is proven about rules: against Istio's, as invariants over all intents, and against the real kernel.

mod agreement;
mod backends;
mod boundaries;
mod changes;
mod crafted;
mod equivalence;
mod golden;
mod istio;
mod istio_nft;
mod kernel;
mod known;
mod netns;
mod pod;
mod properties;
mod restored;
mod shadows;
mod strategies;
mod unprivileged;
mod words;

use libtest_mimic::{Arguments, Failed, Trial};

use netns::Owners;

fn main() -> std::process::ExitCode {
    if let Some(job) = std::env::var_os(changes::JOB) {
        return changes::child(&job.to_string_lossy());
    }
    if let Some(code) = unprivileged::enter() {
        return code;
    }
    let arguments = Arguments::from_args();
    let mut trials = properties::trials();
    trials.extend(equivalence::trials());
    trials.extend(golden::trials());
    trials.extend(agreement::trials());
    trials.extend(unprivileged::trials());
    trials.extend(kernel::trials());
    trials.extend(backends::trials());
    trials.extend(changes::trials());
    trials.extend(shadows::trials());
    trials.extend(restored::trials());
    trials.extend(known::trials());
    if Owners::here() == Owners::One {
        trials = trials.into_iter().map(without_other_users).collect();
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What cannot be tried where the kernel knows one user only: iptables takes no rule about others.
fn without_other_users(trial: Trial) -> Trial {
    let needing = ["iptables", "clean::", "guardrail", "live_rules"];
    let needs = !trial.name().contains("agrees_with_the_trace")
        && needing.iter().any(|part| trial.name().contains(part));
    let ignored = trial.has_ignored_flag() || needs;
    trial.with_ignored_flag(ignored)
}

/// A trial from a function that says what failed.
fn trial(name: impl Into<String>, run: impl FnOnce() -> Result<(), String> + Send + 'static) -> Trial {
    Trial::test(name, move || run().map_err(Failed::from))
}

/// Whether a missing peer is a failure.
fn peers_required() -> bool {
    std::env::var_os("MESH_REQUIRE_PEERS").is_some_and(|value| value == "1")
}
