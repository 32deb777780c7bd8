//! The `nft` program.

use super::program::run;
use super::{Backend, BackendError, Kind, shadows};
use crate::plan::{Applied, Change, Plan};
use crate::ruleset::{Chain, Match, Rule, Ruleset, TABLE, Target};
use crate::shadow::Shadow;

const PROGRAM: &str = "nft";

/// The `nft` program (1.0.1 or newer): the whole table in one transaction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nft;

impl Nft {
    fn read(self) -> Result<Option<Ruleset>, BackendError> {
        let tables = run(PROGRAM, &["list", "tables"], "", None)?;
        if !tables.lines().any(|line| line.trim() == format!("table inet {TABLE}")) {
            return Ok(None);
        }
        // Without counters; numbers for priorities and protocols.
        let text = run(PROGRAM, &["-s", "-y", "-p", "list", "table", "inet", TABLE], "", None)?;
        let read = Ruleset::from_nft(&text);
        read.map(Some).map_err(|error| BackendError::Text { program: PROGRAM.to_owned(), error })
    }

    fn change(self, desired: &Ruleset) -> Result<Vec<Change>, BackendError> {
        let wanted = |text: &str| {
            Ruleset::from_nft(text)
                .map_err(|error| BackendError::Text { program: "this crate".to_owned(), error })
        };
        let want = if desired.is_empty() { None } else { Some(wanted(&desired.to_nft())?) };
        let live = self.read()?;
        let table = || format!("inet {TABLE}");
        let (want, live) = match (want, live) {
            (None, None) => return Ok(Vec::new()),
            (None, Some(_)) => return Ok(vec![Change::RemoveTable { table: table() }]),
            (Some(want), None) => (want, Ruleset::default()),
            (Some(want), Some(live)) => (want, live),
        };
        let mut changes = Vec::new();
        if live.chains.is_empty() {
            changes.push(Change::AddTable { table: table() });
        }
        for chain in &want.chains {
            let found = live.chains.iter().find(|found| found.name == chain.name);
            if found.is_none_or(|found| {
                (found.hook, found.table, found.drops) != (chain.hook, chain.table, chain.drops)
            }) {
                changes.push(Change::AddChain { chain: chain.name.to_string() });
            }
            compare(chain, found, &mut changes);
        }
        for chain in
            live.chains.iter().filter(|chain| !want.chains.iter().any(|want| want.name == chain.name))
        {
            changes.push(Change::RemoveChain { chain: chain.name.to_string() });
        }
        Ok(changes)
    }
}

fn compare(want: &Chain, live: Option<&Chain>, changes: &mut Vec<Change>) {
    let normal = |chain: &Chain| chain.rules.iter().map(normal).collect::<Vec<_>>();
    let (wanted, live) = (normal(want), live.map(normal).unwrap_or_default());
    if wanted == live {
        return;
    }
    let chain = || want.name.to_string();
    for rule in live.iter().filter(|rule| !wanted.contains(rule)) {
        changes.push(Change::RemoveRule { chain: chain(), rule: rule.to_string() });
    }
    let before = changes.len();
    for rule in wanted.iter().filter(|rule| !live.contains(rule)) {
        changes.push(Change::AddRule { chain: chain(), rule: rule.to_string() });
    }
    if changes.len() == before {
        changes.push(Change::AddRule { chain: chain(), rule: "the same rules in this order".to_owned() });
    }
}

/// What nft may print in another order or form than it was given.
fn normal(rule: &Rule) -> Rule {
    let mut rule = rule.clone();
    rule.note = "".into();
    for each in &mut rule.matches {
        match each {
            Match::State { states, .. } => states.sort_unstable(),
            Match::SourcePorts { ports, .. } | Match::DestinationPorts { ports, .. } => ports.sort_unstable(),
            _ => {}
        }
    }
    // nft says `tcp` once, wherever it stood.
    rule.matches.sort_by_key(|each| !matches!(each, Match::Protocol { .. }));
    if let Target::Tproxy { .. } = rule.target
        && let Some(family) = rule.matches.iter().find_map(Match::family)
    {
        rule.family = Some(family);
    }
    rule
}

impl Backend for Nft {
    fn kind(&self) -> Kind {
        Kind::Nft
    }

    fn plan(&mut self, desired: &Ruleset) -> Result<Plan, BackendError> {
        Ok(self.change(&desired.resolve_here()?)?.into_iter().collect())
    }

    fn apply(&mut self, desired: &Ruleset) -> Result<Applied, BackendError> {
        let desired = desired.resolve_here()?;
        let changes = self.change(&desired)?.len();
        if changes > 0 {
            let script =
                if desired.is_empty() { format!("delete table inet {TABLE}\n") } else { desired.to_nft() };
            run(PROGRAM, &["-f", "-"], &script, None)?;
        }
        Ok(Applied { changes })
    }

    fn clean(&mut self) -> Result<Applied, BackendError> {
        self.apply(&Ruleset::default())
    }

    fn live(&mut self) -> Result<Option<Ruleset>, BackendError> {
        self.read()
    }

    fn shadows(&mut self, desired: &Ruleset) -> Result<Vec<Shadow>, BackendError> {
        shadows::of_nf_tables(desired)
    }
}
