//! YAML as `kubectl` reads it, with bounds.

use serde_json::Value;

/// Parse one YAML document to JSON: `0400` is octal, `yes` and `no` are text, duplicate keys are refused, nesting and
/// alias expansion are bounded.
///
/// # Errors
/// The parser's message, with line and column.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { strict_booleans: true, legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let message = error.to_string();
        message.lines().next().unwrap_or("not YAML").to_owned()
    })
}

/// Parse a stream of YAML documents to JSON, under the same rules.
///
/// # Errors
/// The parser's message, with line and column.
pub(crate) fn parse_all(text: &str) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! { strict_booleans: true, legacy_octal_numbers: true };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| error.to_string())
}

/// Write a JSON value as one YAML document that every YAML parser reads back as the same value.
pub(crate) fn write(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => write_map(&mut text, map, 0),
        Value::Array(items) if !items.is_empty() => write_list(&mut text, items, 0),
        scalar => {
            text.push_str(&scalar_text(scalar));
            text.push('\n');
        }
    }
    text
}

fn write_map(text: &mut String, map: &serde_json::Map<String, Value>, indent: usize) {
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort();
    for (i, key) in keys.into_iter().enumerate() {
        if i > 0 {
            pad(text, indent);
        }
        text.push_str(&string_text(key));
        text.push(':');
        match &map[key] {
            Value::Object(inner) if !inner.is_empty() => {
                text.push('\n');
                pad(text, indent + 2);
                write_map(text, inner, indent + 2);
            }
            Value::Array(items) if !items.is_empty() => {
                text.push('\n');
                pad(text, indent);
                write_list(text, items, indent);
            }
            Value::String(long) if block(long) => write_block(text, long, indent + 2),
            scalar => {
                text.push(' ');
                text.push_str(&scalar_text(scalar));
                text.push('\n');
            }
        }
    }
}

fn write_list(text: &mut String, items: &[Value], indent: usize) {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            pad(text, indent);
        }
        text.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => write_map(text, map, indent + 2),
            Value::Array(inner) if !inner.is_empty() => write_list(text, inner, indent + 2),
            scalar => {
                text.push_str(&scalar_text(scalar));
                text.push('\n');
            }
        }
    }
}

fn pad(text: &mut String, indent: usize) {
    text.extend(std::iter::repeat_n(' ', indent));
}

/// Text of several printable lines without anything that block style would change.
fn block(text: &str) -> bool {
    text.trim_end_matches('\n').contains('\n')
        && !text.starts_with([' ', '\n'])
        && !text.ends_with("\n\n")
        && text.chars().all(|c| c == '\n' || (' '..='~').contains(&c))
        && text.lines().all(|line| !line.ends_with(' ') && !line.is_empty())
}

fn write_block(text: &mut String, lines: &str, indent: usize) {
    text.push_str(if lines.ends_with('\n') { " |\n" } else { " |-\n" });
    for line in lines.lines() {
        pad(text, indent);
        text.push_str(line);
        text.push('\n');
    }
}

fn scalar_text(value: &Value) -> String {
    match value {
        Value::String(text) => string_text(text),
        other => other.to_string(),
    }
}

/// Plain where no parser could take it for anything but text, else double-quoted as in JSON.
fn string_text(text: &str) -> String {
    const RESERVED: [&str; 13] =
        ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf", "infinity", "nil"];
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && !text.ends_with(':')
        && text.chars().all(|c| {
            c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '$' | '(' | ')' | '=')
        })
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str());
    if plain {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') =>
            {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_like_kubectl() {
        assert_eq!(parse("a: 0400\nb: yes\nc: 'x'\n").unwrap(), json!({"a":256,"b":"yes","c":"x"}));
        assert!(parse("a: 1\na: 2\n").is_err());
        assert_eq!(parse_all("a: 1\n---\nb: 2\n").unwrap().len(), 2);
    }

    #[test]
    fn writes_what_it_reads() {
        let value = json!({
            "a": ["x", {"b": [], "c": {}}, [["deep"]], 1, -2.5, null, true, "true", "1", "0x1f", "", " ", "-", "a: b", "#"],
            "script": "line one\n  line two\nend\n", "script2": "a\nb", "odd": "\n\n", "trail": "a \nb", "uni": "é\u{85}\u{1f600}",
            "annotations": {"a/b": "{\"x\":1}", "no": "no"},
        });
        assert_eq!(parse(&write(&value)).unwrap(), value);
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[ -~\n]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[ -~]{0,6}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn every_value_survives(value in values()) {
            let text = write(&value);
            prop_assert_eq!(parse(&text).map_err(|e| format!("{e}\n{text}")), Ok(value));
        }
    }
}
