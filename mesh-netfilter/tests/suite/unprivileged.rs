//! Without privileges: in a user namespace, whose root may make network namespaces. With `newuidmap` and a range of ids in
//! `/etc/subuid` it knows several users; without, only one.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use libtest_mimic::Trial;

use crate::agreement::INTENTS_VARIABLE;
use crate::backends::check;
use crate::netns::{Owners, Space};
use crate::{peers_required, trial};

/// Set inside, so that a user namespace that cannot do what it should is not tried again and again.
const INSIDE: &str = "MESH_NETFILTER_SUITE_IN_USER_NAMESPACE";
/// Nobody's id.
const NOBODY: &str = "65534";
/// How the program that makes user namespaces is told to map one user, or all that `/etc/subuid` gives.
const ONE: [&str; 2] = ["--user", "--map-root-user"];
const ALL: [&str; 3] = ["--user", "--map-root-user", "--map-auto"];

pub(crate) fn trials() -> Vec<Trial> {
    let possible =
        nix::unistd::geteuid().is_root() && std::env::var_os(INSIDE).is_none() && Space::new().is_ok();
    let ignored = !(possible && (peers_required() || has_programs()));
    [("one_user", Owners::One), ("several_users", Owners::All)]
        .map(|(name, owners)| {
            trial(format!("kernel::agrees_without_privileges::{name}"), move || agrees(owners))
                .with_ignored_flag(ignored)
        })
        .into()
}

fn has_programs() -> bool {
    ["setpriv", "unshare", "newuidmap"]
        .iter()
        .all(|program| Command::new(program).arg("--version").output().is_ok())
}

/// Begins again in a user namespace when this process may not make network namespaces. Returns only when that is not
/// needed or not possible.
pub(crate) fn enter() -> Option<ExitCode> {
    if std::env::var_os(INSIDE).is_some() {
        println!("in a user namespace: {}", Owners::here());
        return None;
    }
    if nix::unistd::geteuid().is_root() {
        return None;
    }
    let works = |flags: &[&str]| {
        Command::new("unshare")
            .args(flags)
            .args(["--net", "true"])
            .status()
            .is_ok_and(|status| status.success())
    };
    let flags = if works(&ALL) {
        &ALL[..]
    } else if works(&ONE) {
        &ONE[..]
    } else {
        return None;
    };
    let mut again = Command::new("unshare");
    again
        .args(flags)
        .arg("--")
        .args(std::env::current_exe())
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1");
    eprintln!("unshare: {}", again.exec());
    Some(ExitCode::FAILURE)
}

/// A place that nobody can read: the program, where it stands, may be out of reach for others.
struct Copy(PathBuf);

impl Copy {
    fn new(name: &str) -> std::io::Result<Self> {
        let place = std::env::temp_dir().join(format!("mesh-netfilter-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&place)?;
        let copy = Self(place);
        std::fs::set_permissions(&copy.0, std::fs::Permissions::from_mode(0o777))?;
        std::fs::copy(std::env::current_exe()?, copy.0.join("suite"))?;
        for ids in ["subuid", "subgid"] {
            std::fs::write(copy.0.join(ids), format!("{NOBODY}:1000000:65536\n"))?;
        }
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Nobody runs the agreement with the kernel.
fn agrees(owners: Owners) -> Result<(), String> {
    let name = if owners == Owners::One { "one" } else { "several" };
    let copy = Copy::new(name).map_err(|error| format!("a copy of this program: {error}"))?;
    let here = copy.0.display();
    // In a mount namespace, so that the machine's own files stay as they are.
    let ids = match owners {
        Owners::One => {
            "for each in subuid subgid; do [ ! -e /etc/$each ] || mount --bind /dev/null /etc/$each; done"
                .to_owned()
        }
        Owners::All => format!("for each in subuid subgid; do mount --bind {here}/$each /etc/$each; done"),
    };
    let script = format!(
        "{ids}\nexec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups env TMPDIR={here} {here}/suite agrees_with_the_trace --test-threads 2"
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-ec", &script])
        .env(INTENTS_VARIABLE, "12")
        .output()
        .map_err(|error| format!("unshare: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let cases: Vec<&str> =
        said.lines().filter(|line| line.ends_with(&owners.to_string()) && line.contains("intents")).collect();
    check(
        output.status.success() && cases.len() == 4,
        (said.to_string(), String::from_utf8_lossy(&output.stderr)),
    )?;
    cases.iter().for_each(|line| println!("without privileges, {line}"));
    Ok(())
}
