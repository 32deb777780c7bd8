//! The table in the crate's README says what is tested.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const SOURCES: [&str; 4] = [
    include_str!("client.rs"),
    include_str!("secrets.rs"),
    include_str!("server.rs"),
    include_str!("server_delta.rs"),
];
/// What a test has that drives the variant, or something that is the same in both.
const SOTW: [&str; 5] = ["Sotw::", "Protocol::Sotw", "ServerStream::sotw", "in BOTH", "Warming::"];
const DELTA: [&str; 5] = ["Delta::", "Protocol::Delta", "ServerStream::delta", "in BOTH", "Warming::"];

/// Which variants the tests of each statement drive, State of the World first.
fn tested() -> BTreeMap<u32, (bool, bool)> {
    let mut tested = BTreeMap::new();
    for test in SOURCES.iter().flat_map(|source| source.split("\n#[test]\nfn ").skip(1)) {
        let number = test.strip_prefix('s').and_then(|rest| rest.get(..2)?.parse().ok());
        let Some(number) = number else { continue };
        let drives = |words: [&str; 5]| words.iter().any(|word| test.contains(word));
        let (sotw, delta) = tested.entry(number).or_insert((false, false));
        *sotw |= drives(SOTW);
        *delta |= drives(DELTA);
    }
    tested
}

#[test]
fn the_table_of_statements_is_what_is_tested() {
    let readme = include_str!("../../README.md");
    let rows = readme.lines().filter_map(|line| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, number, _, sotw, delta, _] = cells[..] else { return None };
        Some((number.parse::<u32>().ok()?, (sotw == "✓", delta == "✓")))
    });
    let rows: BTreeMap<_, _> = rows.collect();
    assert_eq!(rows.len(), 30, "one row for each statement");
    assert_eq!(rows, tested());
}

/// The text of every Rust file below a folder of the crate.
fn sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "pb") {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn what_the_table_of_bad_input_says_is_tested() {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = String::new();
    ["src", "tests"].iter().for_each(|folder| sources(&crate_root.join(folder), &mut all));
    let readme = include_str!("../../README.md");
    let table = readme.split("\n## ").find(|section| section.starts_with("Bad input")).unwrap();
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 10, "{rows:?}");
    for row in rows {
        let shown_by = row.split('|').nth(3).unwrap();
        let tests: Vec<_> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{row}");
        for test in tests {
            // The name, or its beginning.
            let (name, end) = test.strip_suffix('…').map_or((test, "("), |beginning| (beginning, ""));
            let tested =
                ["fn ", "Trial::test(\""].iter().any(|kind| all.contains(&format!("{kind}{name}{end}")));
            assert!(tested, "{test} in {row}");
        }
    }
}
