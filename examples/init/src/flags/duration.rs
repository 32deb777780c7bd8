//! Durations as Go writes them.

use std::time::Duration;

const WRONG: &str = "is not a duration such as 5s, 1.5s or 500ms";

/// Reads `5s`, `1m30s`, `1.5h`, `250us`, `0`; every unit from `ns` to `h`.
pub(super) fn duration(word: &str) -> Result<Duration, &'static str> {
    if word.starts_with('-') {
        return Err("is negative");
    }
    let mut rest = word.strip_prefix('+').unwrap_or(word);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(WRONG);
    }
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && fraction.is_empty() {
            return Err(WRONG);
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let unit = unit(&after[..end]).ok_or(WRONG)?;
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| WRONG)? };
        let part = whole.checked_mul(unit).and_then(|part| part.checked_add(share(fraction, unit)));
        total = part.and_then(|part| total.checked_add(part)).ok_or(WRONG)?;
        rest = &after[end..];
    }
    Ok(Duration::from_nanos(total))
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// How many nanoseconds a unit has.
fn unit(name: &str) -> Option<u64> {
    Some(match name {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3600 * 1_000_000_000,
        _ => return None,
    })
}

/// What the digits behind the point are worth.
fn share(fraction: &str, unit: u64) -> u64 {
    let (mut worth, mut total) = (unit, 0);
    for digit in fraction.bytes() {
        worth /= 10;
        total += u64::from(digit - b'0') * worth;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (word, nanos) in [
            ("0", 0),
            ("5s", 5_000_000_000),
            ("+5s", 5_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1h0.25m", 3_615_000_000_000),
            ("300ms", 300_000_000),
            ("10us", 10_000),
            ("10\u{b5}s10\u{3bc}s7ns", 20_007),
        ] {
            assert_eq!(duration(word), Ok(Duration::from_nanos(nanos)), "{word}");
        }
        for word in ["", "+", "5", "s", ".s", "5 s", "5d", "5s5", "-5s", "99999999999h", "1..5s", "\u{b5}"] {
            assert!(duration(word).is_err(), "{word:?}");
        }
    }
}
