//! Which webhook the API server calls, for every combination of labels.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use mesh_inject::{WebhookOptions, selected_by};
use serde_json::{Value, json};

use crate::{json_file, text_file};

pub(crate) fn trials(folder: &Path) -> Vec<Trial> {
    let data = json_file(&folder.join("webhook-selectors.json"));
    let mut trials = Vec::new();
    for (i, row) in data["rows"].as_array().expect("rows").iter().enumerate() {
        let row = row.clone();
        trials.push(Trial::test(format!("selectors::row {i:02}"), move || select(&row)));
    }
    for (name, options) in [
        ("default", WebhookOptions::default()),
        ("default_auto", WebhookOptions { enable_namespaces_by_default: true, ..WebhookOptions::default() }),
        ("revision_canary", WebhookOptions { revision: "canary".into(), ..WebhookOptions::default() }),
        (
            "tag_default_on_revision_1-31",
            WebhookOptions {
                revision: "1-31".into(),
                tag: Some("default".into()),
                ..WebhookOptions::default()
            },
        ),
        (
            "tag_prod_on_revision_1-31",
            WebhookOptions { revision: "1-31".into(), tag: Some("prod".into()), ..WebhookOptions::default() },
        ),
    ] {
        let expected = data["webhooks"][name].clone();
        trials.push(Trial::test(format!("selectors::object {name}"), move || object(&options, &expected)));
    }
    let golden = folder.join("mutatingwebhook.default.golden.yaml");
    trials.push(Trial::test("selectors::golden object", move || {
        let golden = mesh_inject::offline::parse_documents(&text_file(&golden)?)?.remove(0);
        let ours = WebhookOptions::default().build();
        if ours["webhooks"] != golden["webhooks"] {
            return Err(super::normalise::differences(&ours["webhooks"], &golden["webhooks"])
                .join("\n")
                .into());
        }
        if ours["metadata"]["name"] != golden["metadata"]["name"] {
            Err("another name".into())
        } else {
            Ok(())
        }
    }));
    trials
}

fn select(row: &Value) -> Result<(), Failed> {
    let auto = row["auto"].as_bool().unwrap_or_default();
    let configurations = [
        WebhookOptions { enable_namespaces_by_default: auto, ..WebhookOptions::default() }.build(),
        WebhookOptions { revision: "canary".into(), ..WebhookOptions::default() }.build(),
    ];
    let namespace = json!({"metadata": {"name": "ns", "labels": row["namespace_labels"]}});
    let pod = json!({"metadata": {"labels": row["pod_labels"]}});
    let selected = selected_by(&configurations, &namespace, &pod);
    let expected: Vec<(String, String)> =
        match (row["expect_service"].as_str(), row["expect_webhook"].as_str()) {
            (Some(service), Some(webhook)) => vec![(format!("istio-system/{service}"), webhook.to_owned())],
            _ => Vec::new(),
        };
    let ours: Vec<(String, String)> = selected.into_iter().map(|s| (s.target, s.webhook)).collect();
    if ours == expected { Ok(()) } else { Err(format!("{ours:?} instead of {expected:?}").into()) }
}

fn object(options: &WebhookOptions, expected: &Value) -> Result<(), Failed> {
    let object = options.build();
    let ours: Vec<Value> = object["webhooks"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| {
            json!({
                "name": entry["name"],
                "service": entry["clientConfig"]["service"]["name"],
                "namespaceSelector": entry["namespaceSelector"],
                "objectSelector": entry["objectSelector"],
            })
        })
        .collect();
    let ours = Value::Array(ours);
    if &ours == expected {
        Ok(())
    } else {
        Err(super::normalise::differences(&ours, expected).join("\n").into())
    }
}
