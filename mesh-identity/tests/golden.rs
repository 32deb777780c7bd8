//! SPIFFE tables of Istio's own tests, replayed: one trial per row. Reads `MESH_GOLDEN_DIR`; shown as ignored without.

use std::{collections::BTreeSet, path::PathBuf};

use libtest_mimic::{Arguments, Failed, Trial};
use mesh_identity::{SpiffeId, TrustBundle, TrustDomain, id::expand_with_trust_domains};
use serde_json::Value;

const FILE: &str = "spiffe/pkg__spiffe__spiffe.json";

type Check = fn(&Value) -> Result<(), String>;

/// Test, table, and how one row is checked.
const TABLES: &[(&str, Check)] = &[
    ("TestGenSpiffeURI", workload_id),
    ("TestExpandWithTrustDomains", expansion),
    ("TestIdentity", istio_view),
    ("TestRetrieveSpiffeBundleRootCerts", bundle),
];

fn main() {
    let arguments = Arguments::from_args();
    let trials = match std::env::var_os("MESH_GOLDEN_DIR") {
        None => {
            TABLES.iter().map(|(test, _)| Trial::test(*test, || Ok(())).with_ignored_flag(true)).collect()
        }
        Some(directory) => trials(&PathBuf::from(directory).join(FILE)),
    };
    libtest_mimic::run(&arguments, trials).exit();
}

fn trials(path: &PathBuf) -> Vec<Trial> {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let document: Value = serde_json::from_slice(&text).expect("the golden file is JSON");
    let mut trials = Vec::new();
    for (test, check) in TABLES {
        let tables = document["tests"][test].as_array().expect("a known test");
        for (index, row) in tables.iter().flat_map(|t| t["rows"].as_array().expect("rows")).enumerate() {
            let row = row.clone();
            let name = format!("{test}::{index}");
            trials.push(Trial::test(name, move || check(&row).map_err(Failed::from)));
        }
    }
    assert!(trials.len() >= 20, "the golden file lost its rows");
    trials
}

fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name].as_str().unwrap_or_default()
}

fn expect<T: PartialEq + std::fmt::Debug>(got: T, want: T) -> Result<(), String> {
    if got == want { Ok(()) } else { Err(format!("got {got:?}, want {want:?}")) }
}

fn workload_id(row: &Value) -> Result<(), String> {
    let domain = TrustDomain::parse_kubernetes(text(row, "trustDomain")).map_err(|e| e.to_string())?;
    let id = SpiffeId::workload(&domain, text(row, "namespace"), text(row, "serviceAccount"));
    match row["expectedURI"].as_str() {
        Some(uri) => expect(id.map_err(|e| e.to_string())?.as_str(), uri),
        None => expect(id.is_err(), true),
    }
}

fn expansion(row: &Value) -> Result<(), String> {
    let list = |name: &str| -> Vec<String> {
        let values = row[name].as_array().into_iter().flatten();
        values.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (ids, domains) = (list("spiffeURI"), list("trustDomains"));
    let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
    let want: BTreeSet<String> =
        row["want"].as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect();
    expect(expand_with_trust_domains(ids.iter().map(String::as_str), &domains), want)
}

/// Istio's own parser accepts empty names (`/ns//sa/`), which the SPIFFE-ID standard forbids; ours refuses them.
fn istio_view(row: &Value) -> Result<(), String> {
    let id = SpiffeId::parse(text(row, "input")).ok();
    let name = id.as_ref().and_then(SpiffeId::istio);
    let got = name.map(|n| (n.trust_domain, n.namespace, n.service_account));
    let expected = &row["expected"];
    let want = expected.is_object().then(|| {
        (text(expected, "trustDomain"), text(expected, "namespace"), text(expected, "serviceAccount"))
    });
    expect(got, want.filter(|(_, namespace, account)| !namespace.is_empty() && !account.is_empty()))
}

/// The documents of the bundle endpoint test; what only concerns HTTP and its TLS is not part of this crate.
fn bundle(row: &Value) -> Result<(), String> {
    let domain = TrustDomain::parse("foo").map_err(|e| e.to_string())?;
    let parsed = TrustBundle::from_json(domain, text(row, "body").as_bytes());
    let about_http =
        row["statusCode"].as_str() != Some("$http.StatusOK") || text(row, "errContains").starts_with("x509:");
    match row["errContains"].as_str() {
        Some(_) if about_http => Ok(()),
        // Istio refuses a document whose key has no certificate; the standard has it passed over, and nobody is trusted.
        Some(_) => expect(parsed.is_ok_and(|bundle| !bundle.roots().is_empty()), false),
        None => {
            // These roots carry name constraints for DNS, and some no key usage; that the documents' shape is read
            // right shows in the reason, which then speaks of the certificate and not of the document.
            match parsed {
                Ok(bundle) => expect(Some(bundle.roots().len() as u64 >= 1), Some(true)),
                Err(error) => expect(["key_usage", "name_constraints"].contains(&error.reason()), true)
                    .map_err(|_| error.to_string()),
            }
        }
    }
}
