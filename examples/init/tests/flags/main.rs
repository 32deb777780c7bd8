//! Every flag and environment variable of `istio-iptables`, and ours: what each sets, which source wins, what is refused, and
//! that nothing is applied then.

mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use mesh_init::Flags;
use mesh_netfilter::Interception;

use crate::rows::{Row, rows};

/// What a command line and an environment come to, or the exit status and the line that is printed.
fn outcome(args: &[&str], environment: &[(&str, &str)]) -> Result<(Flags, Interception), (u8, String)> {
    let args: Vec<String> = args.iter().map(|word| (*word).to_owned()).collect();
    let environment: BTreeMap<String, String> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let flags = Flags::parse(&args, &environment).map_err(|error| (255, error.to_string()))?;
    let flags = flags.ok_or_else(|| (0, "help".to_owned()))?;
    let intent = flags.intent().map_err(|line| (1, line))?;
    Ok((flags, intent))
}

impl Row {
    fn seen(&self, args: &[&str], environment: &[(&str, &str)]) -> Result<String, String> {
        let all = [self.beside, args].concat();
        let (flags, intent) = outcome(&all, environment)
            .map_err(|(status, line)| format!("{all:?} {environment:?}: status {status}: {line}"))?;
        Ok((self.see)(&flags, &intent))
    }

    fn expect(&self, args: &[&str], environment: &[(&str, &str)], want: &str) -> Result<(), String> {
        let seen = self.seen(args, environment)?;
        if seen == want {
            Ok(())
        } else {
            Err(format!("{args:?} {environment:?} come to {seen:?}, not to {want:?}"))
        }
    }

    /// Every way to write it, and which of two ways wins.
    fn sets(&self) -> Result<(), String> {
        self.expect(&[], &[], self.unset)?;
        let (one, other) = (self.one, self.other);
        let long = |value: &str| format!("--{}={value}", self.long);
        for (value, want) in [one, other] {
            self.expect(&[&long(value)], &[], want)?;
            if let Some(short) = self.short {
                self.expect(&[&format!("-{short}={value}")], &[], want)?;
            }
            if self.unset != "false" && self.status != 255 {
                self.expect(&[&format!("--{}", self.long), value], &[], want)?;
                if let Some(short) = self.short {
                    self.expect(&[&format!("-{short}"), value], &[], want)?;
                }
            }
            for variable in self.variables {
                self.expect(&[], &[(variable, value)], want)?;
                // The command line wins.
                self.expect(&[&long(one.0)], &[(variable, value)], one.1)?;
                self.expect(&[&long(other.0)], &[(variable, value)], other.1)?;
            }
        }
        self.order()
    }

    /// The last word wins, and the strongest variable; no other name of a variable counts.
    fn order(&self) -> Result<(), String> {
        let (one, other) = (self.one, self.other);
        let long = |value: &str| format!("--{}={value}", self.long);
        if self.long != "dns-server" {
            self.expect(&[&long(one.0), &long(other.0)], &[], other.1)?;
        }
        if let [weak, strong] = self.variables {
            self.expect(&[], &[(weak, one.0), (strong, other.0)], other.1)?;
            self.expect(&[], &[(weak, other.0), (strong, one.0)], one.1)?;
        }
        if self.variables.is_empty() {
            let name = self.long.replace('-', "_").to_ascii_uppercase();
            self.expect(&[], &[(&name, one.0)], self.unset)?;
        }
        Ok(())
    }

    /// Wrong values are refused in one line that names them and where they stood; the command line can overrule a wrong
    /// variable.
    fn refuses(&self) -> Result<(), String> {
        for wrong in self.wrong {
            let flag = format!("--{}", self.long);
            let long = format!("{flag}={wrong}");
            self.refused(&[&long], &[], &flag, wrong)?;
            for variable in self.variables {
                if wrong.is_empty() && self.status == 255 {
                    continue;
                }
                self.refused(&[], &[(variable, wrong)], variable, wrong)?;
                let right = format!("{flag}={}", self.one.0);
                self.expect(&[&right], &[(variable, wrong)], self.one.1)?;
            }
        }
        if self.status == 255 {
            for variable in self.variables {
                self.expect(&[], &[(variable, "")], self.unset)?;
            }
        }
        Ok(())
    }

    fn refused(
        &self,
        args: &[&str],
        environment: &[(&str, &str)],
        place: &str,
        wrong: &str,
    ) -> Result<(), String> {
        let all = [self.beside, args].concat();
        let Err((status, line)) = outcome(&all, environment) else {
            return Err(format!("{all:?} {environment:?} are taken"));
        };
        // A list is refused for its first wrong item.
        let item = wrong.split(',').any(|item| line.contains(&format!("{item:?}")));
        if status != self.status || !line.starts_with(&format!("{place}: ")) || !item || line.contains('\n') {
            return Err(format!("{all:?} {environment:?} end with {status}: {line}"));
        }
        match possible().then(|| program(&all, environment)) {
            None => Ok(()),
            Some((code, said, kernel)) => {
                let expected = format!("mesh-init: {line}\n");
                if code == Some(i32::from(status)) && said == expected && kernel.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{all:?} {environment:?}: the program ends with {code:?}: {said}{kernel}"))
                }
            }
        }
    }

    fn warns(&self) -> Result<(), String> {
        let Some(want) = self.warning else { return Ok(()) };
        let long = format!("--{}={}", self.long, self.one.0);
        let places = [(vec![long.as_str()], Vec::new(), format!("--{}", self.long))].into_iter().chain(
            self.variables.iter().map(|name| (Vec::new(), vec![(*name, self.one.0)], (*name).to_owned())),
        );
        for (args, environment, place) in places {
            let all = [self.beside, &args].concat();
            let (flags, intent) = outcome(&all, &environment).map_err(|(_, line)| line)?;
            let said = [flags.warnings(), flags.contradictions(&intent)].concat();
            if !said.iter().any(|line| line.starts_with(&format!("{place}: ")) && line.contains(want)) {
                return Err(format!("{all:?} {environment:?} only warn {said:?}"));
            }
        }
        Ok(())
    }
}

/// Whether namespaces can be made here.
fn possible() -> bool {
    let required = std::env::var_os("MESH_REQUIRE_PEERS").is_some_and(|value| value == "1");
    required
        || nix::unistd::geteuid().is_root()
            && ["unshare", "nft"].iter().all(|name| Command::new(name).arg("--version").output().is_ok())
}

/// Runs the program in a fresh namespace: its exit status, what it says, and what the kernel holds afterwards.
fn program(args: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let output = Command::new("unshare")
        .args(["-n", "sh", "-c", "\"$0\" \"$@\" >&2; status=$?; nft list ruleset; exit $status"])
        .arg(env!("CARGO_BIN_EXE_mesh-init"))
        .args(args)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(environment.iter().copied())
        .output()
        .expect("unshare was found");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stderr), text(&output.stdout))
}

fn help() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-init")).arg("--help").output().expect("it runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `--help` has every flag of the table and no other, each with its variables and annotation.
fn help_is_the_table() -> Result<(), String> {
    let help = help();
    let mut said: BTreeMap<&str, String> = BTreeMap::new();
    let mut last = "";
    for line in help.lines() {
        if let Some((_, long)) = line.split_once(" --").filter(|_| line.starts_with("  ")) {
            last = long.split_whitespace().next().unwrap_or_default();
        }
        said.entry(last).or_default().push_str(line);
    }
    let rows = rows();
    // The agent's own, which pod templates pass along; accepted without effect.
    let agent: BTreeSet<&str> =
        said.keys().filter(|name| name.starts_with("log_") || **name == "vklog").copied().collect();
    for row in &rows {
        let Some(text) = said.remove(row.long) else {
            return Err(format!("{} is not in the help", row.long));
        };
        let missing = row
            .variables
            .iter()
            .chain([&row.annotation])
            .find(|word| !text.contains(**word))
            .copied()
            .or_else(|| {
                row.short.filter(|short| !text.contains(&format!("-{short}, "))).map(|_| "the letter")
            });
        if let Some(missing) = missing {
            return Err(format!("{} is without {missing}: {text}", row.long));
        }
    }
    said.retain(|name, _| !name.is_empty() && !agent.contains(name));
    if said.is_empty() && agent.len() == 7 {
        Ok(())
    } else {
        Err(format!("without a row: {:?}", said.keys()))
    }
}

/// The same runs leave rules where nothing is wrong.
fn right_arguments_are_applied() -> Result<(), String> {
    let (code, said, kernel) = program(&["--enable-ipv6=false", "-i", "*"], &[]);
    if code == Some(0) && kernel.contains("table inet mesh") {
        Ok(())
    } else {
        Err(format!("{said}{kernel}"))
    }
}

/// Words, switches and variables that ask for different things.
fn commands() -> Result<(), String> {
    for (args, environment, want) in [
        (&["plan"][..], &[][..], "Plan false"),
        (&["istio-iptables"], &[], "Apply false"),
        (&["istio-iptables", "verify", "-n"], &[], "Verify true"),
        (&["apply", "--dry-run"], &[], "Plan true"),
        (&["--cleanup-only", "--dry-run"], &[], "Clean true"),
        (&["--dry-run", "--cleanup-only"], &[], "Clean true"),
        (&["plan", "--cleanup-only"], &[], "Clean true"),
        (&["clean", "-n"], &[], "Clean true"),
        (&["--dry-run=false"], &[("DRY_RUN", "true")], "Apply false"),
        (&["--cleanup-only=false"], &[("CLEANUP_ONLY", "1")], "Apply false"),
        (&["counters", "--cleanup-only"], &[], "Counters false"),
    ] {
        let (flags, _) = outcome(args, environment).map_err(|(_, line)| line)?;
        let found = format!("{:?} {}", flags.command, flags.dry_run);
        if found != want {
            return Err(format!("{args:?} {environment:?} are {found}, not {want}"));
        }
    }
    Ok(())
}

fn main() -> std::process::ExitCode {
    let trial = |name: String, run: fn() -> Result<(), String>| {
        Trial::test(name, move || run().map_err(Failed::from))
    };
    let mut trials = vec![
        trial("help_is_the_table".into(), help_is_the_table),
        trial("commands".into(), commands),
        trial("right_arguments_are_applied".into(), right_arguments_are_applied)
            .with_ignored_flag(!possible()),
    ];
    for row in rows() {
        let name = format!("flag::{}", row.long);
        trials.push(Trial::test(name, move || {
            row.sets().and_then(|()| row.refuses()).and_then(|()| row.warns()).map_err(Failed::from)
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
