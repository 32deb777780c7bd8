//! Strategic merge patch, as Kubernetes defines it for Pods.
//!
//! Objects merge key by key; `null` deletes; lists with a merge key merge item by item; every other list is replaced.
//! What a template adds comes first, what only the user has follows, and what both have stays where the user put it.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::error::InjectError;

/// Are `$patch` and its relatives instructions or plain data?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directives {
    /// Templates may use `$patch: replace|delete|merge` and `$retainKeys`.
    Honour,
    /// What users wrote into their pods is data: keys that begin with `$` are dropped, nulls mean "not set".
    Drop,
}

/// Merge `patch` into `base`.
///
/// # Errors
/// [`InjectError::Merge`] when an item of a merge list lacks its key, or a directive is unknown. `base` may be partly
/// merged then; callers work on a copy.
pub fn merge(base: &mut Value, patch: Value, directives: Directives) -> Result<(), InjectError> {
    value(base, patch, directives).map_err(|problem| InjectError::Merge {
        field: problem.path.into_iter().rev().collect::<Vec<_>>().join("."),
        message: problem.message,
    })
}

/// Name of the field by which items of a list are matched, if the list is merged at all.
#[must_use]
pub fn merge_key(list: &str) -> Option<&'static str> {
    Some(match list {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "resourceClaims"
        | "schedulingGates" => "name",
        "volumeMounts" => "mountPath",
        "ports" => "containerPort",
        "volumeDevices" => "devicePath",
        "topologySpreadConstraints" => "topologyKey",
        "hostAliases" => "ip",
        "ownerReferences" => "uid",
        _ => return None,
    })
}

/// What went wrong; the path is collected on the way out, innermost field first.
struct Problem {
    path: Vec<String>,
    message: String,
}

impl Problem {
    fn new(message: String) -> Self {
        Self { path: Vec::new(), message }
    }

    fn inside(mut self, field: &str) -> Self {
        self.path.push(field.to_owned());
        self
    }
}

enum Directive {
    Merge,
    Replace,
    Delete,
}

fn value(base: &mut Value, patch: Value, directives: Directives) -> Result<(), Problem> {
    match patch {
        Value::Object(patch) => object(base, patch, directives),
        other => {
            *base = other;
            Ok(())
        }
    }
}

fn object(base: &mut Value, patch: Map<String, Value>, directives: Directives) -> Result<(), Problem> {
    match directive(&patch, directives)? {
        Directive::Replace => {
            *base = Value::Object(fresh(patch, directives)?);
            return Ok(());
        }
        Directive::Delete => {
            *base = Value::Object(Map::new());
            return Ok(());
        }
        Directive::Merge => {}
    }
    if !base.is_object() {
        *base = Value::Object(Map::new());
    }
    let Value::Object(target) = base else { return Ok(()) };
    if let Some(retained) = patch.get("$retainKeys").and_then(Value::as_array)
        && directives == Directives::Honour
    {
        target.retain(|key, _| retained.iter().any(|kept| kept == key));
    }
    for (key, patch) in patch {
        if is_directive(&key, directives)? {
            continue;
        }
        if patch.is_null() {
            if directives == Directives::Honour {
                target.remove(&key);
            }
            continue;
        }
        match (target.get_mut(&key), patch) {
            (Some(existing), Value::Array(items)) => match merge_key(&key) {
                Some(by) => list(existing, items, by, directives).map_err(|problem| problem.inside(&key))?,
                None => *existing = Value::Array(items),
            },
            (Some(existing), patch @ Value::Object(_)) if existing.is_object() => {
                value(existing, patch, directives).map_err(|problem| problem.inside(&key))?;
            }
            (_, patch) => {
                let fresh = fresh_value(&key, patch, directives).map_err(|problem| problem.inside(&key))?;
                target.insert(key, fresh);
            }
        }
    }
    Ok(())
}

fn list(
    base: &mut Value,
    patch: Vec<Value>,
    key: &'static str,
    directives: Directives,
) -> Result<(), Problem> {
    let original = match base {
        Value::Array(items) => std::mem::take(items),
        _ => Vec::new(),
    };
    let asks = |item: &Value, what: &str| {
        directives == Directives::Honour && item.get("$patch").and_then(Value::as_str) == Some(what)
    };
    if patch.iter().any(|item| asks(item, "replace")) {
        let kept = patch.into_iter().filter(|item| item.get("$patch").is_none());
        *base = Value::Array(kept.map(|item| fresh_item(item, key, directives)).collect::<Result<_, _>>()?);
        return Ok(());
    }
    for item in original.iter().chain(&patch) {
        key_of(item, key)?;
    }
    let steps = plan(&original, &patch, key, |item| asks(item, "delete"));
    let mut slots: Vec<Option<Value>> = original.into_iter().map(Some).collect();
    // (merged item, its place in the original list)
    let mut merged: Vec<(Value, Option<usize>)> = Vec::with_capacity(patch.len());
    for (item, step) in patch.into_iter().zip(steps) {
        match step {
            Step::Delete(places) => places.into_iter().for_each(|at| slots[at] = None),
            Step::Meet(at) => {
                let mut existing = slots[at].take().unwrap_or_default();
                value(&mut existing, item, directives)?;
                merged.push((existing, Some(at)));
            }
            Step::Again(first) => value(&mut merged[first].0, item, directives)?,
            Step::New => merged.push((fresh_item(item, key, directives)?, None)),
        }
    }
    let mut rest = slots.into_iter().enumerate().filter_map(|(at, slot)| Some((at, slot?))).peekable();
    let mut result = Vec::with_capacity(merged.len());
    for (item, place) in merged {
        if let Some(place) = place {
            while let Some((_, earlier)) = rest.next_if(|(at, _)| *at < place) {
                result.push(earlier);
            }
        }
        result.push(item);
    }
    result.extend(rest.map(|(_, item)| item));
    *base = Value::Array(result);
    Ok(())
}

/// What becomes of one item of a patch.
enum Step {
    /// The items at these places of the original go.
    Delete(Vec<usize>),
    /// It merges into the item at this place of the original.
    Meet(usize),
    /// It merges into what an earlier item of the patch became: the same key a second time.
    Again(usize),
    /// It is new.
    New,
}

/// Pair the items of a patch with those of the original by their key, in one walk over both. Of several original items
/// with one key each meets one item of the patch, in order.
fn plan<'v>(
    original: &'v [Value],
    patch: &'v [Value],
    key: &str,
    deletes: impl Fn(&Value) -> bool,
) -> Vec<Step> {
    // First open place of a key, and for each place the next one with the same key.
    let mut open: HashMap<Option<&Value>, usize> = HashMap::with_capacity(original.len());
    let mut next: Vec<Option<usize>> = vec![None; original.len()];
    for (at, item) in original.iter().enumerate().rev() {
        next[at] = open.insert(item.get(key), at);
    }
    let mut done: HashMap<Option<&Value>, usize> = HashMap::new();
    let mut results = 0;
    let step = |item: &'v Value| {
        let by = item.get(key);
        if deletes(item) {
            return Step::Delete(std::iter::successors(open.remove(&by), |at| next[*at]).collect());
        }
        let step = match (open.remove(&by), done.get(&by)) {
            (Some(at), _) => {
                if let Some(following) = next[at] {
                    open.insert(by, following);
                }
                Step::Meet(at)
            }
            (None, Some(first)) => return Step::Again(*first),
            (None, None) => Step::New,
        };
        done.entry(by).or_insert(results);
        results += 1;
        step
    };
    patch.iter().map(step).collect()
}

fn fresh_value(key: &str, mut value: Value, directives: Directives) -> Result<Value, Problem> {
    refresh(key, &mut value, directives)?;
    Ok(value)
}

/// Make a value that is new fit to stand alone, in place: nulls and directives say nothing about what was not there, and
/// items of a merge list with one key are one item.
fn refresh(key: &str, value: &mut Value, directives: Directives) -> Result<(), Problem> {
    match value {
        Value::Object(map) => refresh_map(map, directives),
        Value::Array(items) => match merge_key(key) {
            // Nothing to merge and nothing to obey: every item stays where it is.
            Some(by) if all_differ(items, by) => items.iter_mut().try_for_each(|item| match item {
                Value::Object(map) => refresh_map(map, directives),
                _ => Ok(()),
            }),
            Some(by) => {
                let items = std::mem::take(items);
                list(value, items, by, directives)
            }
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Whether every item has a text of its own under the key, and none has a directive.
fn all_differ(items: &[Value], key: &str) -> bool {
    let mut seen = HashSet::with_capacity(items.len());
    items.iter().all(|item| {
        item.get("$patch").is_none()
            && item.get(key).and_then(Value::as_str).is_some_and(|name| seen.insert(name))
    })
}

fn refresh_map(map: &mut Map<String, Value>, directives: Directives) -> Result<(), Problem> {
    let mut clean = true;
    for (key, value) in map.iter_mut() {
        if value.is_null() || is_directive(key, directives)? {
            clean = false;
        } else {
            refresh(key, value, directives).map_err(|problem| problem.inside(key))?;
        }
    }
    if !clean {
        map.retain(|key, value| !value.is_null() && !key.starts_with('$'));
    }
    Ok(())
}

fn fresh_item(mut item: Value, key: &'static str, directives: Directives) -> Result<Value, Problem> {
    key_of(&item, key)?;
    if let Value::Object(map) = &mut item {
        refresh_map(map, directives)?;
    }
    Ok(item)
}

/// Something that is new, whole.
fn fresh(mut map: Map<String, Value>, directives: Directives) -> Result<Map<String, Value>, Problem> {
    refresh_map(&mut map, directives)?;
    Ok(map)
}

fn key_of(item: &Value, key: &str) -> Result<(), Problem> {
    match item.get(key) {
        Some(Value::String(_) | Value::Number(_)) => Ok(()),
        _ => Err(Problem::new(format!("an item lacks its merge key `{key}`"))),
    }
}

fn directive(patch: &Map<String, Value>, directives: Directives) -> Result<Directive, Problem> {
    if directives == Directives::Drop {
        return Ok(Directive::Merge);
    }
    match patch.get("$patch").map(Value::as_str) {
        None | Some(Some("merge")) => Ok(Directive::Merge),
        Some(Some("replace")) => Ok(Directive::Replace),
        Some(Some("delete")) => Ok(Directive::Delete),
        Some(other) => Err(Problem::new(format!("unknown $patch {other:?}"))),
    }
}

fn is_directive(key: &str, directives: Directives) -> Result<bool, Problem> {
    if !key.starts_with('$') {
        return Ok(false);
    }
    match (directives, key) {
        (Directives::Drop, _) | (_, "$patch" | "$retainKeys") => Ok(true),
        (_, other) => Err(Problem::new(format!("unknown directive {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(base: Value, patch: Value) -> Value {
        let mut base = base;
        merge(&mut base, patch, Directives::Honour).unwrap();
        base
    }

    #[test]
    fn new_items_first_known_items_in_place() {
        let base =
            json!({"env":[{"name":"a","value":"1"},{"name":"b","value":"1"},{"name":"c","value":"1"}]});
        let patch = json!({"env":[{"name":"new"},{"name":"b","value":"2"},{"name":"newer"}]});
        let names: Vec<Value> =
            merged(base, patch)["env"].as_array().unwrap().iter().map(|e| e["name"].clone()).collect();
        assert_eq!(names, ["new", "a", "b", "newer", "c"]);
    }

    #[test]
    fn nulls_delete_and_never_arrive() {
        assert_eq!(merged(json!({"a":1,"b":{"c":1}}), json!({"a":null,"b":{"c":null}})), json!({"b":{}}));
        assert_eq!(
            merged(json!({}), json!({"volumes":[{"name":"v","emptyDir":null}]})),
            json!({"volumes":[{"name":"v"}]})
        );
        let user = json!({"volumes":[{"name":"v","csi":{"driver":"d"}}]});
        assert_eq!(merged(user.clone(), json!({"volumes":[{"name":"v","emptyDir":null}]})), user);
    }

    #[test]
    fn directives() {
        assert_eq!(
            merged(json!({"a":{"x":1}}), json!({"a":{"$patch":"replace","y":2}})),
            json!({"a":{"y":2}})
        );
        assert_eq!(
            merged(
                json!({"env":[{"name":"a"},{"name":"b"}]}),
                json!({"env":[{"$patch":"delete","name":"a"}]})
            ),
            json!({"env":[{"name":"b"}]})
        );
        assert_eq!(
            merged(json!({"env":[{"name":"a"}]}), json!({"env":[{"$patch":"replace"},{"name":"b"}]})),
            json!({"env":[{"name":"b"}]})
        );
        let mut pod = json!({"env":[{"name":"a"}]});
        merge(&mut pod, json!({"$patch":"delete","env":[{"name":"a","value":null}]}), Directives::Drop)
            .unwrap();
        assert_eq!(pod, json!({"env":[{"name":"a"}]}));
        let error =
            merge(&mut json!({}), json!({"$setElementOrder/env":[]}), Directives::Honour).unwrap_err();
        assert_eq!(error.reason(), "merge");
    }

    #[test]
    fn items_without_key_are_refused_with_their_path() {
        let error = merge(
            &mut json!({}),
            json!({"spec":{"containers":[{"name":"a","ports":[{"name":"x"}]}]}}),
            Directives::Honour,
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "strategic merge: field `spec.containers.ports`: an item lacks its merge key `containerPort`"
        );
    }

    #[test]
    fn other_lists_are_replaced() {
        assert_eq!(merged(json!({"args":["a","b"]}), json!({"args":["c"]})), json!({"args":["c"]}));
    }

    /// Of several items with one key each meets one of the patch, in order; what is left over meets the first.
    #[test]
    fn several_items_with_one_key() {
        let base =
            || json!({"ports":[{"containerPort":53,"protocol":"TCP"},{"containerPort":53,"protocol":"UDP"}]});
        let patch = json!({"ports":[{"containerPort":53,"name":"a"},{"containerPort":53,"name":"b"},{"containerPort":53,"hostPort":1}]});
        assert_eq!(
            merged(base(), patch),
            json!({"ports":[
                {"containerPort":53,"protocol":"TCP","name":"a","hostPort":1},
                {"containerPort":53,"protocol":"UDP","name":"b"},
            ]})
        );
        let gone = merged(base(), json!({"ports":[{"containerPort":53,"$patch":"delete"}]}));
        assert_eq!(gone, json!({"ports":[]}));
        let again = json!({"ports":[{"containerPort":53,"$patch":"delete"},{"containerPort":53,"name":"c"}]});
        assert_eq!(merged(base(), again), json!({"ports":[{"containerPort":53,"name":"c"}]}));
    }

    #[test]
    fn one_port_by_two_protocols_survives() {
        let base =
            json!({"ports":[{"containerPort":53,"protocol":"TCP"},{"containerPort":53,"protocol":"UDP"}]});
        let result = merged(base, json!({"ports":[{"containerPort":15090}]}));
        assert_eq!(result["ports"].as_array().unwrap().len(), 3);
    }
}
