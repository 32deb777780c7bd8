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
