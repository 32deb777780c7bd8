//! A trace as a table for people, and as JSON for tools.

use std::fmt::{self, Write};

use super::{Fate, Step, Trace, Verdict};

impl fmt::Display for Trace {
    /// A table: one line per rule, the verdict last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.packet)?;
        let place =
            |step: &Step| format!("{}{} {}#{}", "  ".repeat(step.depth), step.table, step.chain, step.number);
        let places: Vec<String> = self.steps.iter().map(place).collect();
        let wide = places.iter().map(String::len).max().unwrap_or(0);
        let rules = self.steps.iter().map(|step| step.rule.len()).max().unwrap_or(0).min(78);
        for (step, place) in self.steps.iter().zip(places) {
            let sign = match step.matched {
                Some(true) => '✓',
                Some(false) => '·',
                None => '?',
            };
            write!(f, " {sign} {place:wide$}  {:rules$}  {}", step.rule, step.why)?;
            if step.matched == Some(true) && !step.note.is_empty() {
                write!(f, "  ({})", step.note)?;
            }
            f.write_char('\n')?;
        }
        if !self.fate.certain {
            writeln!(
                f,
                " some rules have conditions that are not known here; they were taken as not matching"
            )?;
        }
        write!(f, "=> {}", self.fate)
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verdict)?;
        if self.mark != 0 {
            write!(f, ", mark {:#x}", self.mark)?;
        }
        if self.connmark != 0 {
            write!(f, ", connection's mark {:#x}", self.connmark)?;
        }
        if self.zone != 0 {
            write!(f, ", conntrack zone {}", self.zone)?;
        }
        Ok(())
    }
}

impl Trace {
    /// The same as JSON: `packet`, `steps` (`table`, `chain`, `number`, `rule`, `note`, `matched`, `why`), `verdict`
    /// (`accepted`, `dropped`, `redirected`, `delivered`), `port`, `mark`, `connmark`, `zone`, `certain`.
    pub fn to_json(&self) -> serde_json::Value {
        let steps: Vec<_> = self
            .steps
            .iter()
            .map(|step| {
                serde_json::json!({
                    "table": step.table.as_str(),
                    "chain": step.chain,
                    "number": step.number,
                    "rule": step.rule,
                    "note": step.note,
                    "matched": step.matched,
                    "why": step.why,
                })
            })
            .collect();
        let verdict = match self.fate.verdict {
            Verdict::Accepted => "accepted",
            Verdict::Dropped => "dropped",
            Verdict::Redirected { .. } => "redirected",
            Verdict::Delivered { .. } => "delivered",
        };
        serde_json::json!({
            "packet": self.packet.to_string(),
            "steps": steps,
            "verdict": verdict,
            "port": self.fate.verdict.port(),
            "mark": self.fate.mark,
            "connmark": self.fate.connmark,
            "zone": self.fate.zone,
            "certain": self.fate.certain,
        })
    }
}
