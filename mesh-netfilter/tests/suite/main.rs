//! What is proven about rules: against Istio's, as invariants over all intents, and against the real kernel.

mod golden;
mod properties;
mod reference;
mod strategies;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = properties::trials();
    trials.extend(golden::trials());
    libtest_mimic::run(&arguments, trials).exit();
}

/// A trial from a function that says what failed.
fn trial(name: impl Into<String>, run: impl FnOnce() -> Result<(), String> + Send + 'static) -> Trial {
    Trial::test(name, move || run().map_err(Failed::from))
}
