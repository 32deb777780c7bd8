//! Small values shared by several kinds.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer};

/// A duration in Go's notation (`1h30m`, `250ms`, `0.5s`), which is what Istio's YAML uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

impl GoDuration {
    /// Reads Go's notation; `None` for anything else and for negative values.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "0" {
            return Some(Self(Duration::ZERO));
        }
        let mut rest = text;
        let mut total = 0f64;
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let value: f64 = rest.get(..digits)?.parse().ok()?;
            rest = rest.get(digits..)?;
            let (seconds, unit) = [
                ("ns", 1e-9),
                ("us", 1e-6),
                ("µs", 1e-6),
                ("ms", 1e-3),
                ("h", 3600.0),
                ("m", 60.0),
                ("s", 1.0),
            ]
            .iter()
            .find_map(|(unit, factor)| rest.starts_with(unit).then_some((value * factor, unit.len())))?;
            total += seconds;
            rest = rest.get(unit..)?;
        }
        Duration::try_from_secs_f64(total).ok().map(Self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::invalid_value(Unexpected::Str(&text), &"a duration such as 1h30m or 0.25s")
        })
    }
}

/// `selector: {matchLabels: {...}}`, the form of Istio's security kinds.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels that must all be present with these values; empty selects everything.
    #[serde(default, deserialize_with = "null_as_default")]
    pub match_labels: BTreeMap<String, String>,
}

impl LabelSelector {
    /// Whether `labels` carry everything that is asked for.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        subset_of(&self.match_labels, labels)
    }
}

/// Whether every pair of `wanted` is in `labels`.
pub(crate) fn subset_of(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Reads an explicit `null` as the default, as Kubernetes does.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
