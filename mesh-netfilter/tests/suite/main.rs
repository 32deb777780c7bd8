//! What is proven about rules: against Istio's, as invariants over all intents, and against the real kernel.

mod backends;
mod boundaries;
mod changes;
mod equivalence;
mod golden;
mod istio;
mod istio_nft;
mod kernel;
mod netns;
mod pod;
mod properties;
mod strategies;
mod words;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> std::process::ExitCode {
    if let Some(job) = std::env::var_os(changes::JOB) {
        return changes::child(&job.to_string_lossy());
    }
    let arguments = Arguments::from_args();
    let mut trials = properties::trials();
    trials.extend(equivalence::trials());
    trials.extend(golden::trials());
    trials.extend(kernel::trials());
    trials.extend(backends::trials());
    trials.extend(changes::trials());
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A trial from a function that says what failed.
fn trial(name: impl Into<String>, run: impl FnOnce() -> Result<(), String> + Send + 'static) -> Trial {
    Trial::test(name, move || run().map_err(Failed::from))
}

/// Whether a missing peer is a failure.
fn peers_required() -> bool {
    std::env::var_os("MESH_REQUIRE_PEERS").is_some_and(|value| value == "1")
}
