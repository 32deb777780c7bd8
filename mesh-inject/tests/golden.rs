//! Conformance data that other projects publish, one trial per case. Set `MESH_GOLDEN_DIR` to the folder that holds it;
//! without it the one trial shows as ignored.

mod golden {
    pub(crate) mod cases;
    pub(crate) mod normalise;
    pub(crate) mod patches;
    pub(crate) mod selectors;
    pub(crate) mod tables;
}

use std::path::{Path, PathBuf};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

fn main() {
    let arguments = Arguments::from_args();
    let Some(folder) = std::env::var_os("MESH_GOLDEN_DIR").map(PathBuf::from) else {
        let skipped = Trial::test("golden data (set MESH_GOLDEN_DIR)", || Ok(())).with_ignored_flag(true);
        libtest_mimic::run(&arguments, vec![skipped]).exit();
    };
    let mut trials = golden::cases::trials(&folder.join("inject"));
    trials.extend(golden::selectors::trials(&folder.join("inject")));
    trials.extend(golden::tables::trials(&folder.join("inject/tables")));
    trials.extend(golden::patches::trials(&folder.join("json-patch")));
    let conclusion = libtest_mimic::run(&arguments, trials);
    golden::cases::summary();
    conclusion.exit();
}

/// A JSON file of the golden data; its absence is a failure of the whole suite.
fn json_file(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn text_file(path: &Path) -> Result<String, Failed> {
    std::fs::read_to_string(path).map_err(|error| Failed::from(format!("{}: {error}", path.display())))
}
