//! Running a program that reads or writes rules.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Why a program did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// It is not on this machine, or cannot be started.
    #[error("{program} cannot be started: {error}")]
    Start {
        /// Which program.
        program: String,
        /// Why, as the system put it.
        error: String,
    },
    /// It ended without success.
    #[error("{program} ended with {status}: {said}{hint}")]
    Failed {
        /// Which program.
        program: String,
        /// How it ended.
        status: String,
        /// What it said first.
        said: String,
        /// What is probably missing.
        hint: &'static str,
    },
}

impl ProgramError {
    /// A stable label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Start { .. } => "no_program",
            Self::Failed { .. } => "program_failed",
        }
    }
}

/// Runs a program with `input`, returns what it printed. `lock` names the lock file for legacy iptables.
pub(super) fn run(
    program: &str,
    arguments: &[&str],
    input: &str,
    lock: Option<&PathBuf>,
) -> Result<String, ProgramError> {
    let start =
        |error: std::io::Error| ProgramError::Start { program: program.to_owned(), error: error.to_string() };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(lock) = lock {
        command.env("XTABLES_LOCKFILE", lock);
    }
    let mut child = command.spawn().map_err(start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("nothing").to_owned();
    Err(ProgramError::Failed {
        program: program.to_owned(),
        status: output.status.code().map_or_else(|| "a signal".to_owned(), |code| format!("status {code}")),
        hint: hint(&stderr),
        said,
    })
}

/// What words in a program's complaint usually mean.
fn hint(said: &str) -> &'static str {
    const HINTS: &[(&str, &str)] = &[
        ("xtables lock", ": another program is changing rules and holds the lock"),
        ("lock file", ": the lock file cannot be made; name a writable place"),
        ("ermission denied", ": CAP_NET_ADMIN or CAP_NET_RAW is missing"),
        ("peration not permitted", ": CAP_NET_ADMIN or CAP_NET_RAW is missing"),
        // What legacy iptables makes of a raw socket that it is refused, and of a table that the kernel does not have.
        ("unable to initialize table", ": CAP_NET_RAW or the table's module is missing"),
        ("owner", ": is module xt_owner missing?"),
        ("REDIRECT", ": is module xt_REDIRECT or nf_nat missing?"),
        ("TPROXY", ": is module xt_TPROXY missing?"),
        ("table `nat'", ": is module iptable_nat missing?"),
        ("table `mangle'", ": is module iptable_mangle missing?"),
        ("table `raw'", ": is module iptable_raw missing?"),
        ("insmod", ": a kernel module is missing"),
        ("No such file", ": is module nf_tables missing?"),
    ];
    HINTS.iter().find(|(word, _)| said.contains(word)).map_or("", |(_, hint)| hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_is_kept() {
        assert_eq!(run("cat", &[], "rules", None), Ok("rules".to_owned()));
        let failed = run("sh", &["-c", "echo 'cannot open lock file' >&2; exit 4"], "", None);
        let error = failed.map_err(|error| error.to_string());
        let want = "sh ended with status 4: cannot open lock file: the lock file cannot be made; name a writable place";
        assert_eq!(error, Err(want.to_owned()));
        assert_eq!(run("no-such-program", &[], "", None).map_err(|error| error.reason()), Err("no_program"));
    }
}
