//! The `iptables` programs.
//!
//! Our chains are made anew as a whole under `--noflush`; of the built-in chains only our jumps are touched. Tables change one
//! after another, so while something of ours is already there, a guardrail drops traffic until the last table is done.

use std::fmt::Write;
use std::path::PathBuf;

use super::program::run;
use super::{Backend, BackendError, Kind, shadows};
use crate::net::Family;
use crate::plan::{Applied, Change, Plan};
use crate::ruleset::{CHAIN_PREFIX, Chain, Rule, Ruleset, TableKind, Target};
use crate::shadow::Shadow;
use crate::text::Restore;

/// The chain that drops everything while tables change.
const GUARD: &str = "MESH_GUARD";
const GUARD_ON: &str = "*filter\n:MESH_GUARD - [0:0]\n-A MESH_GUARD -p tcp -j DROP\n-A MESH_GUARD -p udp -j DROP\n\
                        -I INPUT 1 -j MESH_GUARD\n-I FORWARD 1 -j MESH_GUARD\n-I OUTPUT 1 -j MESH_GUARD\nCOMMIT\n";
/// How often a change is planned anew because somebody else changed rules between reading and writing.
const ATTEMPTS: usize = 8;
/// How long a program waits for the lock unless told otherwise.
const LOCK_SECONDS: u32 = 30;

/// Which `iptables`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// `iptables-nft`: over nf_tables.
    Nft,
    /// `iptables-legacy`: over x_tables.
    Legacy,
    /// `iptables`, whichever that is here.
    Plain,
}

impl Variant {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Nft => "-nft",
            Self::Legacy => "-legacy",
            Self::Plain => "",
        }
    }
}

/// The `iptables` programs of one variant.
#[derive(Debug, Clone)]
pub struct Iptables {
    variant: Variant,
    lock_file: Option<PathBuf>,
    lock_seconds: u32,
}

impl Iptables {
    /// The programs of this variant, with the system's lock file, waiting up to 30 s for it.
    pub const fn new(variant: Variant) -> Self {
        Self { variant, lock_file: None, lock_seconds: LOCK_SECONDS }
    }

    /// Uses this lock file (`XTABLES_LOCKFILE`), for machines whose `/run` cannot be written.
    #[must_use]
    pub fn lock_file(mut self, path: PathBuf) -> Self {
        self.lock_file = Some(path);
        self
    }

    /// Waits this long for the lock.
    #[must_use]
    pub const fn lock_seconds(mut self, seconds: u32) -> Self {
        self.lock_seconds = seconds;
        self
    }

    fn program(&self, family: Family, verb: &str) -> String {
        let name = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{name}{}-{verb}", self.variant.suffix())
    }

    /// Its name, as for the user.
    pub(super) const fn name(&self) -> &'static str {
        Kind::Iptables(self.variant).as_str()
    }

    /// Whether these programs write nf_tables.
    pub(super) fn is_over_nf_tables(&self) -> Result<bool, BackendError> {
        Ok(match self.variant {
            Variant::Nft => true,
            Variant::Legacy => false,
            Variant::Plain => run("iptables", &["--version"], "", None)?.contains("nf_tables"),
        })
    }

    /// Everything that is there, other people's rules too.
    pub(super) fn read(&self, family: Family) -> Result<Ruleset, BackendError> {
        let program = self.program(family, "save");
        let text = run(&program, &[], "", self.lock_file.as_ref())?;
        Ruleset::from_iptables(&text, family).map_err(|error| BackendError::Text { program, error })
    }

    /// Istio's own chains, as `program table chain`.
    /// A family that cannot be read has none.
    pub fn foreign_interception(&self) -> Vec<String> {
        let mut found = Vec::new();
        for family in Family::BOTH {
            let Ok(live) = self.read(family) else { continue };
            let istio = live.chains.iter().filter(|chain| chain.name.starts_with("ISTIO_"));
            found.extend(
                istio.map(|chain| format!("{} {} {}", self.program(family, "save"), chain.table, chain.name)),
            );
        }
        found
    }

    fn write(&self, family: Family, text: &str) -> Result<(), BackendError> {
        let wait = format!("--wait={}", self.lock_seconds);
        run(&self.program(family, "restore"), &["--noflush", &wait], text, self.lock_file.as_ref())?;
        Ok(())
    }

    /// Both families' changes. A family that has no programs here and needs no rules is left alone.
    fn changes(&self, desired: &Ruleset) -> Result<Vec<(Family, FamilyChange)>, BackendError> {
        let desired = desired.resolve_here()?;
        let mut changes = Vec::new();
        for family in Family::BOTH {
            let text = desired.to_iptables(family, Restore::NoFlush);
            let want = Ruleset::from_iptables(&text, family)
                .map_err(|error| BackendError::Text { program: "this crate".to_owned(), error })?;
            match self.read(family) {
                Ok(live) => changes.push((family, FamilyChange::new(&want, &live, family))),
                // Without rules to write, a machine without this family is as it should be.
                Err(BackendError::Program(_)) if want.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(changes)
    }

    fn perform(&self, changes: &[(Family, FamilyChange)]) -> Result<usize, BackendError> {
        let mut done = 0;
        for (family, change) in changes.iter().filter(|(_, change)| !change.steps.is_empty()) {
            let guarded = change.replaces && change.tables.len() > 1;
            if guarded && !change.guard_is_on {
                self.write(*family, GUARD_ON)?;
            }
            for table in &change.tables {
                self.write(*family, table)?;
            }
            if guarded || change.guard_is_on {
                self.write(*family, &guard_off(&self.read(*family)?))?;
            }
            done += change.steps.len();
        }
        Ok(done)
    }
}

/// Removes every jump to the guardrail, and the guardrail.
fn guard_off(live: &Ruleset) -> String {
    let mut text = String::from("*filter\n");
    for chain in live.chains.iter().filter(|chain| chain.table == TableKind::Filter && chain.hook.is_some()) {
        for _ in chain.rules.iter().filter(|rule| rule.target == Target::Jump(GUARD.into())) {
            let _ = writeln!(text, "-D {} -j {GUARD}", chain.name);
        }
    }
    let _ = write!(text, "-F {GUARD}\n-X {GUARD}\nCOMMIT\n");
    text
}

/// What has to change in one family.
#[derive(Debug, Default, PartialEq, Eq)]
struct FamilyChange {
    steps: Vec<Change>,
    /// Restore text per table that changes.
    tables: Vec<String>,
    /// Whether something of ours is there already.
    replaces: bool,
    /// Whether an earlier change was cut off while its guardrail was on.
    guard_is_on: bool,
}

fn is_ours(chain: &Chain) -> bool {
    chain.hook.is_none() && chain.name.starts_with(CHAIN_PREFIX) && chain.name != GUARD
}

fn leads_to_ours(rule: &Rule) -> bool {
    matches!(&rule.target, Target::Jump(name) | Target::Goto(name) if name.starts_with(CHAIN_PREFIX) && name != GUARD)
}

impl FamilyChange {
    fn new(want: &Ruleset, live: &Ruleset, family: Family) -> Self {
        let mut change = Self {
            replaces: live.chains.iter().any(is_ours),
            guard_is_on: live.chain(TableKind::Filter, GUARD).is_some(),
            ..Self::default()
        };
        if change.guard_is_on {
            change.steps.push(Change::RemoveChain { chain: GUARD.to_owned() });
        }
        for table in TableKind::ALL {
            let before = change.steps.len();
            let text = change.table(table, want, live, family);
            if change.steps.len() > before {
                change.tables.push(text);
            }
        }
        change
    }

    /// The steps of one table; their restore text.
    fn table(&mut self, table: TableKind, want: &Ruleset, live: &Ruleset, family: Family) -> String {
        let of = |ruleset: &'_ Ruleset| -> Vec<Chain> {
            ruleset.chains.iter().filter(|chain| chain.table == table).cloned().collect()
        };
        let (want, live) = (of(want), of(live));
        let words = |rule: &Rule| {
            let mut text = String::new();
            let _ = rule.write_iptables(&mut text, family);
            text
        };
        let named = |chain: &Chain| format!("{table} {}", chain.name);
        let (mut declare, mut fill, mut unhook, mut hook, mut remove) =
            (String::new(), String::new(), String::new(), String::new(), String::new());
        for chain in want.iter().filter(|chain| is_ours(chain)) {
            let _ = writeln!(declare, ":{} - [0:0]", chain.name);
            for rule in &chain.rules {
                let _ = writeln!(fill, "-A {} {}", chain.name, words(rule));
            }
            let found = live.iter().find(|found| found.name == chain.name);
            if found.is_none() {
                self.steps.push(Change::AddChain { chain: named(chain) });
            }
            let found = found.map_or(&[][..], |found| &found.rules);
            self.rules(&named(chain), &chain.rules, found, &words);
        }
        for chain in live.iter().filter(|chain| !is_ours(chain)) {
            let wanted = want.iter().find(|want| want.name == chain.name).map_or(&[][..], |want| &want.rules);
            let mut seen: Vec<&Rule> = Vec::new();
            for rule in chain.rules.iter().filter(|rule| leads_to_ours(rule)) {
                let right = wanted.iter().any(|want| want.same_as(rule))
                    && !seen.iter().any(|seen| seen.same_as(rule));
                seen.push(rule);
                if !right {
                    let _ = writeln!(unhook, "-D {} {}", chain.name, words(rule));
                    self.steps.push(Change::RemoveRule { chain: named(chain), rule: words(rule) });
                }
            }
        }
        for chain in want.iter().filter(|chain| !is_ours(chain)) {
            let found =
                live.iter().find(|found| found.name == chain.name).map_or(&[][..], |found| &found.rules);
            for rule in chain.rules.iter().filter(|rule| !found.iter().any(|found| found.same_as(rule))) {
                let _ = writeln!(hook, "-A {} {}", chain.name, words(rule));
                self.steps.push(Change::AddRule { chain: named(chain), rule: words(rule) });
            }
        }
        let residual = |chain: &&Chain| is_ours(chain) && !want.iter().any(|want| want.name == chain.name);
        for chain in live.iter().filter(residual) {
            let _ = writeln!(declare, ":{} - [0:0]", chain.name);
            let _ = writeln!(remove, "-X {}", chain.name);
            self.steps.push(Change::RemoveChain { chain: named(chain) });
        }
        format!("*{table}\n{declare}{fill}{unhook}{hook}{remove}COMMIT\n")
    }

    fn rules(&mut self, chain: &str, want: &[Rule], live: &[Rule], words: &impl Fn(&Rule) -> String) {
        if want.len() == live.len() && want.iter().zip(live).all(|(want, live)| want.same_as(live)) {
            return;
        }
        let chain = || chain.to_owned();
        for rule in live.iter().filter(|live| !want.iter().any(|want| want.same_as(live))) {
            self.steps.push(Change::RemoveRule { chain: chain(), rule: words(rule) });
        }
        let before = self.steps.len();
        for rule in want.iter().filter(|want| !live.iter().any(|live| live.same_as(want))) {
            self.steps.push(Change::AddRule { chain: chain(), rule: words(rule) });
        }
        if self.steps.len() == before {
            // The same rules in another order or number.
            let rule = want.iter().map(words).collect::<Vec<_>>().join(" / ");
            self.steps.push(Change::AddRule { chain: chain(), rule });
        }
    }
}

impl Backend for Iptables {
    fn kind(&self) -> Kind {
        Kind::Iptables(self.variant)
    }

    fn plan(&mut self, desired: &Ruleset) -> Result<Plan, BackendError> {
        Ok(self.changes(desired)?.into_iter().flat_map(|(_, change)| change.steps).collect())
    }

    fn apply(&mut self, desired: &Ruleset) -> Result<Applied, BackendError> {
        let mut changes = self.changes(desired)?;
        let mut attempts = 1;
        loop {
            let error = match self.perform(&changes) {
                Ok(changes) => return Ok(Applied { changes }),
                Err(error) => error,
            };
            // A rule that was to go may have gone; what is refused for itself is refused with the same plan again.
            let now = self.changes(desired)?;
            if now == changes || attempts == ATTEMPTS {
                return Err(error);
            }
            changes = now;
            attempts += 1;
        }
    }

    fn clean(&mut self) -> Result<Applied, BackendError> {
        self.apply(&Ruleset::default())
    }

    fn live(&mut self) -> Result<Option<Ruleset>, BackendError> {
        let all = self.read(Family::V4)?.merge(self.read(Family::V6).unwrap_or_default());
        Ok(all.chains.iter().any(is_ours).then_some(all))
    }

    fn shadows(&mut self, desired: &Ruleset) -> Result<Vec<Shadow>, BackendError> {
        shadows::of_iptables(self, desired)
    }
}
