#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod commands;
mod flags;
mod machine;
mod probe;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;

pub use flags::{Command, Flags, UsageError};
#[doc(hidden)]
pub use machine::speaks_ipv6;

/// Exit status when rules could not be read, written or found as they should be.
const FAILED: u8 = 1;
/// Exit status when a connection through the rules did not arrive where it should.
const PROBE_FAILED: u8 = 126;
/// Exit status for arguments that make no sense.
const USAGE: u8 = 255;

/// Runs the program with these arguments (without the program's name) and this process's environment.
///
/// Exit status: 0, 1 (rules), 126 (probe), 255 (arguments).
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let args: Result<Vec<String>, OsString> = args.into_iter().map(OsString::into_string).collect();
    let parsed = match args {
        Ok(args) => Flags::parse(&args, &environment),
        Err(wrong) => Err(UsageError::NotText { value: wrong.to_string_lossy().into_owned() }),
    };
    let outcome = match parsed {
        Ok(Some(flags)) => commands::run(&flags),
        Ok(None) => {
            print!("{}", flags::help());
            Ok(())
        }
        Err(error) => Err(Failure { status: USAGE, message: error.to_string() }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, message }) => {
            eprintln!("mesh-init: {message}");
            ExitCode::from(status)
        }
    }
}

/// What a fuzzer feeds to the flag parser: a word on each line, or a variable as `$NAME=value`.
#[doc(hidden)]
pub fn fuzz_flags(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let variable = |line: &str| -> Option<(String, String)> {
        let (name, value) = line.strip_prefix('$')?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    let environment = text.split('\n').filter_map(variable).collect();
    let words = text.split('\n').filter(|line| variable(line).is_none());
    let args: Vec<String> = words.map(str::to_owned).collect();
    if let Ok(Some(flags)) = Flags::parse(&args, &environment)
        && let Ok(intent) = flags.intent()
    {
        let _ = (flags.warnings(), flags.contradictions(&intent));
        mesh_netfilter::fuzzing::fuzz_intent(&intent);
    }
}

/// Why the program ends without success: one line, and the exit status.
#[derive(Debug)]
struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    fn rules(error: impl std::fmt::Display) -> Self {
        Self { status: FAILED, message: error.to_string() }
    }

    fn probe(error: impl std::fmt::Display) -> Self {
        Self { status: PROBE_FAILED, message: error.to_string() }
    }
}
