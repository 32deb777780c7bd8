//! The RFC 6902 community suite.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use mesh_inject::patch::{Patch, diff};
use serde_json::Value;

use crate::json_file;

pub(crate) fn trials(folder: &Path) -> Vec<Trial> {
    let mut trials = Vec::new();
    for file in ["tests.json", "spec_tests.json"] {
        let cases = json_file(&folder.join(file));
        for (i, case) in cases.as_array().expect("a list of cases").iter().enumerate() {
            let comment = case["comment"].as_str().or_else(|| case["error"].as_str()).unwrap_or_default();
            let name = format!("patch::{file}::{i:03} {comment}");
            let disabled = case["disabled"].as_bool() == Some(true) || case.get("doc").is_none();
            let case = case.clone();
            trials.push(Trial::test(name, move || run(&case)).with_ignored_flag(disabled));
        }
    }
    trials
}

fn run(case: &Value) -> Result<(), Failed> {
    let document = &case["doc"];
    let applied = Patch::from_json(&case["patch"]).and_then(|patch| patch.apply(document));
    match (applied, case.get("error")) {
        (Ok(result), None) => {
            if let Some(expected) = case.get("expected") {
                if &result != expected {
                    return Err(format!("{result} instead of {expected}").into());
                }
                if &diff(document, expected).apply(document)? != expected {
                    return Err("our own difference does not give the result".into());
                }
            }
            Ok(())
        }
        (Err(_), Some(_)) => Ok(()),
        (Ok(result), Some(error)) => Err(format!("gave {result}, expected the error {error}").into()),
        (Err(error), None) => Err(error.to_string().into()),
    }
}
