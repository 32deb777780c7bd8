//! Istio's tables about what its program finds out and is told.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use libtest_mimic::{Arguments, Failed, Trial};
use mesh_init::{Flags, speaks_ipv6};
use serde_json::Value;

/// What a row says holds.
type Check = fn(&Value) -> Result<(), String>;

fn main() -> std::process::ExitCode {
    let tables: [(&str, &str, Check); 2] =
        [("config", "TestGetLocalIP", local_address), ("validation", "TestValidateIptablesBinary", binary)];
    let folder = std::env::var_os("MESH_GOLDEN_DIR").map(PathBuf::from);
    let mut trials = Vec::new();
    for (file, test, check) in tables {
        let Some(folder) = &folder else {
            trials.push(Trial::test(test, || Ok(())).with_ignored_flag(true));
            continue;
        };
        let path = folder.join(format!("iptables/tools__common__config__{file}.json"));
        let text = std::fs::read_to_string(path).expect("MESH_GOLDEN_DIR has this file");
        let tables: Value = serde_json::from_str(&text).expect("it is JSON");
        let rows = tables["tests"][test]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|table| table["rows"].as_array());
        let rows: Vec<Value> = rows.flatten().cloned().collect();
        assert!(!rows.is_empty(), "{test} has rows");
        for row in rows {
            let name = format!("{test}::{}", row["name"].as_str().unwrap_or_default());
            trials.push(Trial::test(name, move || check(&row).map_err(Failed::from)));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The row's function makes a list of addresses; they stand in its words.
fn local_address(row: &Value) -> Result<(), String> {
    let words = row["lipas"]["$func"].as_str().unwrap_or_default();
    let quoted = words.split("MustParseAddr(\"").skip(1).filter_map(|rest| rest.split('"').next());
    let addresses: Result<Vec<IpAddr>, _> = quoted.map(str::parse).collect();
    let addresses = addresses.map_err(|error| format!("{words}: {error}"))?;
    let found = speaks_ipv6(&addresses, row["isDS"] == true);
    if found == row["expected"].as_bool() { Ok(()) } else { Err(format!("{addresses:?}: {found:?}")) }
}

fn binary(row: &Value) -> Result<(), String> {
    let input = row["input"].as_str().unwrap_or_default().to_owned();
    let environment = BTreeMap::from([("FORCE_IPTABLES_BINARY".to_owned(), input)]);
    let flags = Flags::parse(&[], &environment).map_err(|error| error.to_string())?;
    let flags = flags.ok_or("no help was asked for")?;
    if flags.intent().is_err() == row["expected"]["error"].is_string() {
        Ok(())
    } else {
        Err(format!("{:?}", flags.intent()))
    }
}
