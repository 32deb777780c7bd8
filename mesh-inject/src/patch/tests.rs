use proptest::prelude::*;
use serde_json::json;

use super::*;

fn patch(value: Value) -> Patch {
    Patch::from_json(&value).unwrap()
}

#[test]
fn prepending_is_one_operation() {
    let a = json!({"containers":[{"name":"a","image":"x"},{"name":"b"}]});
    let b = json!({"containers":[{"name":"new"},{"name":"a","image":"y"},{"name":"b"}]});
    assert_eq!(
        serde_json::to_value(diff(&a, &b)).unwrap(),
        json!([
            {"op":"add","path":"/containers/0","value":{"name":"new"}},
            {"op":"replace","path":"/containers/1/image","value":"y"},
        ])
    );
}

#[test]
fn escaping_and_nulls() {
    let a = json!({"annotations":{"a/b":"1","m~n":"1","gone":null}});
    let b = json!({"annotations":{"a/b":"2","m~n":null,"":"empty key"}});
    let patch = diff(&a, &b);
    assert_eq!(patch.apply(&a).unwrap(), b);
    let text = serde_json::to_string(&patch).unwrap();
    assert!(
        text.contains("/annotations/a~1b") && text.contains("/annotations/m~0n") && text.contains("null"),
        "{text}"
    );
}

#[test]
fn failures_name_the_operation_and_change_nothing() {
    let document = json!({"a":[1,2]});
    let error = patch(json!([{"op":"add","path":"/a/-","value":3},{"op":"remove","path":"/a/3"}]))
        .apply(&document)
        .unwrap_err();
    assert!(matches!(error, PatchError::Index { operation: 1, .. }), "{error:?}");
    let error = patch(json!([{"op":"test","path":"/a/0","value":2}])).apply(&document).unwrap_err();
    assert_eq!(error.reason(), "test_failed");
    assert!(patch(json!([{"op":"test","path":"/a/0","value":1.0}])).apply(&document).is_ok());
    let error = patch(json!([{"op":"move","from":"/a","path":"/a/0"}])).apply(&document).unwrap_err();
    assert_eq!(error.reason(), "into_itself");
    assert!(Patch::from_json(&json!([{"op":"add","path":"/a"}])).is_err());
    assert!(Patch::from_json(&json!([{"op":"spam","path":"/a"}])).is_err());
    assert!(Patch::from_json(&json!([{"op":"remove","path":"a"}])).is_err());
    assert!(Patch::from_json(&json!([{"op":"remove","path":"/a~2"}])).is_err());
}

#[test]
fn copies_are_bounded() {
    let doubling: Vec<Value> = (0..40).map(|_| json!({"op":"copy","from":"","path":"/a/-"})).collect();
    let error = patch(Value::Array(doubling)).apply(&json!({"a":[]})).unwrap_err();
    assert_eq!(error.reason(), "too_large");
}

#[test]
fn guards_notice_other_peoples_changes() {
    let a = json!({"x":1,"y":[{"name":"n","v":1}]});
    let b = json!({"x":2,"y":[]});
    let guarded = diff(&a, &b).guarded(&a);
    assert_eq!(guarded.apply(&a).unwrap(), b);
    assert_eq!(guarded.apply(&json!({"x":3,"y":[{"name":"n","v":1}]})).unwrap_err().reason(), "test_failed");
}

fn documents() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..4).prop_map(Value::from),
        "[a-c/~]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-c/~]{0,2}", inner.clone(), 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
            prop::collection::vec(("[a-d]", inner), 0..6).prop_map(|items| {
                Value::Array(items.into_iter().map(|(name, v)| json!({"name": name, "v": v})).collect())
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn applying_the_difference_gives_the_target(a in documents(), b in documents()) {
        let patch = diff(&a, &b);
        prop_assert_eq!(&patch.apply(&a).unwrap(), &b);
        prop_assert_eq!(&patch.guarded(&a).apply(&a).unwrap(), &b);
        prop_assert!(diff(&a, &a).is_empty());
        let oracle: json_patch::Patch = serde_json::from_value(serde_json::to_value(&patch).unwrap()).unwrap();
        let mut other = a;
        json_patch::patch(&mut other, &oracle).unwrap();
        prop_assert_eq!(other, b);
    }
}
