//! Two pods that Kubernetes would store alike, made alike.

use serde_json::{Map, Value, json};

/// Drop what a typed round trip drops, canonicalise quantities, and parse JSON that hides in text.
pub(crate) fn document(value: &Value) -> Value {
    let mut result = normal(value, "", "");
    let typed = result.get("kind") == Some(&json!("DeploymentConfig"));
    if let Some(object) = result.as_object_mut() {
        let zero = |value: &Value| matches!(value, Value::Bool(false)) || value.as_i64() == Some(0);
        // What the types of a workload print although nobody wrote it.
        if object.get("status").and_then(Value::as_object).is_some_and(|status| status.values().all(zero)) {
            object.remove("status");
        }
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
            && typed
        {
            spec.retain(|_, value| !zero(value));
        }
    }
    result
}

fn normal(value: &Value, key: &str, parent: &str) -> Value {
    match value {
        Value::Object(map) => {
            let mut result = Map::new();
            for (name, inner) in map {
                let inner = normal(inner, name, key);
                let empty = match &inner {
                    Value::Null => true,
                    Value::Object(map) => map.is_empty(),
                    Value::Array(items) => items.is_empty(),
                    Value::Number(number) => name == "initialDelaySeconds" && number.as_i64() == Some(0),
                    Value::String(text) => text.is_empty() && name == "value",
                    Value::Bool(_) => false,
                };
                if !empty {
                    result.insert(name.clone(), inner);
                }
            }
            if result.get("name") == Some(&json!("ISTIO_KUBE_APP_PROBERS"))
                && let Some(Value::String(text)) = result.get("value")
                && let Ok(parsed) = serde_json::from_str::<Value>(text)
            {
                result.insert("value".to_owned(), parsed);
            }
            Value::Object(result)
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| normal(item, key, parent)).collect()),
        Value::String(text) if matches!(parent, "limits" | "requests") => json!(quantity(text)),
        Value::Number(number) if matches!(parent, "limits" | "requests") => {
            json!(quantity(&number.to_string()))
        }
        Value::String(text) if key == "sidecar.istio.io/status" || key == "proxy.istio.io/overrides" => {
            serde_json::from_str::<Value>(text)
                .map_or_else(|_| value.clone(), |parsed| normal(&parsed, "", ""))
        }
        other => other.clone(),
    }
}

/// A quantity as a number of its base unit.
fn quantity(text: &str) -> String {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let scale = match suffix {
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        _ => return text.to_owned(),
    };
    number.parse::<f64>().map_or_else(|_| text.to_owned(), |number| format!("{:.6}", number * scale))
}

/// Where two documents differ, one line per place.
pub(crate) fn differences(ours: &Value, theirs: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", ours, theirs, &mut lines);
    lines
}

fn compare(path: &str, ours: &Value, theirs: &Value, lines: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let null = Value::Null;
                compare(
                    &format!("{path}/{key}"),
                    a.get(key).unwrap_or(&null),
                    b.get(key).unwrap_or(&null),
                    lines,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for i in 0..a.len().max(b.len()) {
                let null = Value::Null;
                compare(&format!("{path}/{i}"), a.get(i).unwrap_or(&null), b.get(i).unwrap_or(&null), lines);
            }
        }
        (a, b) if a == b => {}
        (a, b) => lines.push(format!("{path}: ours {a:.300}, theirs {b:.300}")),
    }
}
