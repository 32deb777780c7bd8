//! Single values as protobuf-JSON writes them. What is no value of its kind at all, a list for a number, is left to the
//! reader behind; here is what that would take although the value cannot be kept.

use prost_reflect::Kind;

use super::tree::{Node, Plain, Tree};

/// How much of a text from outside is repeated in a report.
pub(super) const SHOWN: usize = 200;

type Checked = Result<(), String>;

/// An unquoted scalar of YAML where a text is wanted is that text: `1.10`, not 1.1.
pub(super) fn unquoted(node: &mut Node) {
    if let Tree::Plain(_, raw) = &mut node.tree
        && let Some(raw) = raw.take()
    {
        node.tree = Tree::Text(raw.into());
    }
}

/// A number, or a text that is one. The text may have an exponent, and so may an integer, as long as it is one.
pub(super) fn number(node: &mut Node, kind: &Kind) -> Checked {
    let (least, greatest) = match kind {
        Kind::Double => return float(node, false),
        Kind::Float => return float(node, true),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => (i32::MIN.into(), i32::MAX.into()),
        Kind::Uint32 | Kind::Fixed32 => (0, u32::MAX.into()),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => (i64::MIN.into(), i64::MAX.into()),
        _ => (0, u64::MAX.into()),
    };
    let fits = |number: i128, text: &str| {
        if (least..=greatest).contains(&number) { Ok(()) } else { Err(format!("{text} is out of range")) }
    };
    match &mut node.tree {
        Tree::Text(text) => {
            grammar(text)?;
            if text.contains(['.', 'e', 'E']) {
                let number = text.parse().map_err(|_| no_number(text))?;
                let whole = integer(number)?;
                fits(whole, text)?;
                let Some(whole) = i64::try_from(whole).ok().filter(|whole| whole.unsigned_abs() < EXACT)
                else {
                    return Err(format!("{} cannot be read exactly; write all of its digits", shown(text)));
                };
                node.tree = Tree::Plain(Plain::Number(whole.into()), None);
                return Ok(());
            }
            // What is too long for this is too great for everything.
            text.parse()
                .map_or_else(|_| Err(format!("{} is out of range", shown(text))), |whole| fits(whole, text))
        }
        Tree::Plain(Plain::Number(number), _) => {
            let whole = number.as_i128().map_or_else(|| integer(number.as_f64().unwrap_or(f64::NAN)), Ok)?;
            fits(whole, &number.to_string())
        }
        _ => Ok(()),
    }
}

/// Below this every integer has a double of its own.
const EXACT: u64 = 1 << 53;

#[allow(
    clippy::cast_possible_truncation,
    reason = "it has no fraction, and what is too great stays too great"
)]
fn integer(number: f64) -> Result<i128, String> {
    if number.fract() == 0.0 { Ok(number as i128) } else { Err(format!("{number} is no integer")) }
}

/// The three numbers that are not finite are texts, written so and not otherwise; no number becomes one of them.
fn float(node: &Node, single: bool) -> Checked {
    let Tree::Text(text) = &node.tree else { return Ok(()) };
    if let "NaN" | "Infinity" | "-Infinity" = text.as_str() {
        return Ok(());
    }
    grammar(text)?;
    let finite = if single {
        text.parse::<f32>().is_ok_and(f32::is_finite)
    } else {
        text.parse::<f64>().is_ok_and(f64::is_finite)
    };
    if finite { Ok(()) } else { Err(format!("{} is out of range", shown(text))) }
}

/// A number as JSON writes it: no plus, no leading zeros, digits on both sides of the point.
fn grammar(text: &str) -> Checked {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) =
        unsigned.split_once(['e', 'E']).map_or((unsigned, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(w, f)| (w, Some(f)));
    let sound = digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|e| digits(e.strip_prefix(['+', '-']).unwrap_or(e)));
    if sound { Ok(()) } else { Err(no_number(text)) }
}

fn no_number(text: &str) -> String {
    format!("{} is no number", shown(text))
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(SHOWN).collect::<String>())
}

/// Durations and timestamps have nanoseconds and nothing finer; a leap second has no number.
pub(super) fn time(node: &Node, duration: bool) -> Checked {
    let Tree::Text(text) = &node.tree else { return Ok(()) };
    if duration && text.parse::<prost_types::Duration>().is_err() {
        return Err(format!("{} is no duration; those are written as seconds, \"1.5s\"", shown(text)));
    }
    let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
    if fraction.bytes().take_while(u8::is_ascii_digit).count() > 9 {
        return Err(format!("{} is finer than a nanosecond", shown(text)));
    }
    // 2016-12-31T23:59:60Z: the reader would take it for the second before.
    if text.get(16..19) == Some(":60") && text.contains('T') {
        return Err(format!("{} is a leap second", shown(text)));
    }
    Ok(())
}
