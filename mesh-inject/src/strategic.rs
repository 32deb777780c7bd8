//! Strategic merge patch, as Kubernetes defines it for Pods.
//!
//! Objects merge key by key; `null` deletes; lists with a merge key merge item by item; every other list is replaced.
//! What a template adds comes first, what only the user has follows, and what both have stays where the user put it.

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
pub fn merge(base: &mut Value, patch: &Value, directives: Directives) -> Result<(), InjectError> {
    Merger { directives, path: Vec::new() }.value(base, patch)
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

struct Merger<'a> {
    directives: Directives,
    path: Vec<&'a str>,
}

enum Directive {
    Merge,
    Replace,
    Delete,
}

impl<'a> Merger<'a> {
    fn value(&mut self, base: &mut Value, patch: &'a Value) -> Result<(), InjectError> {
        match patch {
            Value::Object(patch) => self.object(base, patch),
            other => {
                *base = other.clone();
                Ok(())
            }
        }
    }

    fn object(&mut self, base: &mut Value, patch: &'a Map<String, Value>) -> Result<(), InjectError> {
        match self.directive(patch)? {
            Directive::Replace => {
                *base = Value::Object(self.fresh(patch)?);
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
            && self.directives == Directives::Honour
        {
            target.retain(|key, _| retained.iter().any(|kept| kept == key));
        }
        for (key, value) in patch {
            if self.is_directive(key)? {
                continue;
            }
            if value.is_null() {
                if self.directives == Directives::Honour {
                    target.remove(key);
                }
                continue;
            }
            self.path.push(key);
            match (target.get_mut(key), value) {
                (Some(existing), Value::Array(items)) => match merge_key(key) {
                    Some(merge_key) => self.list(existing, items, merge_key)?,
                    None => *existing = value.clone(),
                },
                (Some(existing), Value::Object(_)) if existing.is_object() => self.value(existing, value)?,
                _ => {
                    let fresh = self.fresh_value(key, value)?;
                    target.insert(key.clone(), fresh);
                }
            }
            self.path.pop();
        }
        Ok(())
    }

    fn list(&mut self, base: &mut Value, patch: &'a [Value], key: &'static str) -> Result<(), InjectError> {
        let original = match base {
            Value::Array(items) => std::mem::take(items),
            _ => Vec::new(),
        };
        if self.directives == Directives::Honour
            && patch.iter().any(|item| item.get("$patch").and_then(Value::as_str) == Some("replace"))
        {
            let kept = patch.iter().filter(|item| item.get("$patch").is_none());
            *base = Value::Array(kept.map(|item| self.fresh_item(item, key)).collect::<Result<_, _>>()?);
            return Ok(());
        }
        for item in &original {
            self.key_of(item, key)?;
        }
        let mut slots: Vec<Option<Value>> = original.into_iter().map(Some).collect();
        // (merged item, its place in the original list)
        let mut merged: Vec<(Value, Option<usize>)> = Vec::with_capacity(patch.len());
        for item in patch {
            let wanted = self.key_of(item, key)?;
            let at =
                slots.iter().position(|slot| slot.as_ref().and_then(|slot| slot.get(key)) == Some(wanted));
            let deleted = self.directives == Directives::Honour
                && item.get("$patch").and_then(Value::as_str) == Some("delete");
            if deleted {
                for slot in &mut slots {
                    if slot.as_ref().and_then(|slot| slot.get(key)) == Some(wanted) {
                        *slot = None;
                    }
                }
                continue;
            }
            match at.and_then(|at| slots[at].take()) {
                Some(mut existing) => {
                    self.value(&mut existing, item)?;
                    merged.push((existing, at));
                }
                // The same key a second time in the patch merges into the first.
                None => match merged.iter_mut().find(|(done, _)| done.get(key) == Some(wanted)) {
                    Some((done, _)) => self.value(done, item)?,
                    None => {
                        let fresh = self.fresh_item(item, key)?;
                        merged.push((fresh, None));
                    }
                },
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

    fn fresh_value(&mut self, key: &str, value: &'a Value) -> Result<Value, InjectError> {
        Ok(match value {
            Value::Object(map) => Value::Object(self.fresh(map)?),
            Value::Array(items) => match merge_key(key) {
                Some(_) => {
                    let mut list = Value::Array(Vec::new());
                    self.list(&mut list, items, merge_key(key).unwrap_or("name"))?;
                    list
                }
                None => value.clone(),
            },
            scalar => scalar.clone(),
        })
    }

    fn fresh_item(&mut self, item: &'a Value, key: &'static str) -> Result<Value, InjectError> {
        self.key_of(item, key)?;
        match item {
            Value::Object(map) => Ok(Value::Object(self.fresh(map)?)),
            other => Ok(other.clone()),
        }
    }

    /// A copy of something that is new: nulls and directives say nothing about what was not there.
    fn fresh(&mut self, map: &'a Map<String, Value>) -> Result<Map<String, Value>, InjectError> {
        let mut copy = Map::new();
        for (key, value) in map {
            if value.is_null() || self.is_directive(key)? {
                continue;
            }
            self.path.push(key);
            let value = self.fresh_value(key, value)?;
            self.path.pop();
            copy.insert(key.clone(), value);
        }
        Ok(copy)
    }

    fn key_of<'v>(&self, item: &'v Value, key: &str) -> Result<&'v Value, InjectError> {
        let found = item.get(key).filter(|value| value.is_string() || value.is_number());
        found.ok_or_else(|| self.error(format!("an item lacks its merge key `{key}`")))
    }

    fn directive(&self, patch: &Map<String, Value>) -> Result<Directive, InjectError> {
        if self.directives == Directives::Drop {
            return Ok(Directive::Merge);
        }
        match patch.get("$patch").map(Value::as_str) {
            None | Some(Some("merge")) => Ok(Directive::Merge),
            Some(Some("replace")) => Ok(Directive::Replace),
            Some(Some("delete")) => Ok(Directive::Delete),
            Some(other) => Err(self.error(format!("unknown $patch {other:?}"))),
        }
    }

    fn is_directive(&self, key: &str) -> Result<bool, InjectError> {
        if !key.starts_with('$') {
            return Ok(false);
        }
        match (self.directives, key) {
            (Directives::Drop, _) | (_, "$patch" | "$retainKeys") => Ok(true),
            (_, other) => Err(self.error(format!("unknown directive {other}"))),
        }
    }

    fn error(&self, message: String) -> InjectError {
        InjectError::Merge { field: self.path.join("."), message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(base: Value, patch: Value) -> Value {
        let mut base = base;
        merge(&mut base, &patch, Directives::Honour).unwrap();
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
        merge(&mut pod, &json!({"$patch":"delete","env":[{"name":"a","value":null}]}), Directives::Drop)
            .unwrap();
        assert_eq!(pod, json!({"env":[{"name":"a"}]}));
        let error =
            merge(&mut json!({}), &json!({"$setElementOrder/env":[]}), Directives::Honour).unwrap_err();
        assert_eq!(error.reason(), "merge");
    }

    #[test]
    fn items_without_key_are_refused_with_their_path() {
        let error = merge(
            &mut json!({}),
            &json!({"spec":{"containers":[{"name":"a","ports":[{"name":"x"}]}]}}),
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

    #[test]
    fn one_port_by_two_protocols_survives() {
        let base =
            json!({"ports":[{"containerPort":53,"protocol":"TCP"},{"containerPort":53,"protocol":"UDP"}]});
        let result = merged(base, json!({"ports":[{"containerPort":15090}]}));
        assert_eq!(result["ports"].as_array().unwrap().len(), 3);
    }
}
