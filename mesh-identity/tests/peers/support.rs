use std::{
    future::Future,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use libtest_mimic::{Failed, Trial};
use mesh_identity::{
    Ca, Credential, Identity, SpiffeId, TrustDomain, WallClock,
    ca::{IssuancePolicy, RootOptions},
};

pub(crate) type Outcome = Result<(), Box<dyn std::error::Error>>;

/// One trial that needs `peer`; ignored when it is missing, unless peers are required.
pub(crate) fn trial<F>(name: &str, present: bool, test: fn() -> F) -> Trial
where
    F: Future<Output = Outcome> + 'static,
{
    let required = std::env::var_os("MESH_REQUIRE_PEERS").is_some_and(|value| value == "1");
    let missing = format!("{name}: the peer is not installed");
    Trial::test(name, move || {
        if !present {
            return Err(Failed::from(missing));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let outcome = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test()).await });
        outcome.map_err(|_| "no end after a minute")?.map_err(|error| Failed::from(error.to_string()))
    })
    .with_ignored_flag(!present && !required)
}

pub(crate) fn is_installed(program: &str) -> bool {
    let probe = Command::new(program).arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    probe.is_ok_and(|status| status.success())
}

pub(crate) const CART: &str = "spiffe://mesh.example/ns/shop/sa/cart";
pub(crate) const WEB: &str = "spiffe://mesh.example/ns/shop/sa/web";

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).expect("a SPIFFE ID")
}

pub(crate) fn new_ca() -> Ca {
    let domain = TrustDomain::parse("mesh.example").expect("a trust domain");
    Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), WallClock::system()).expect("a CA")
}

pub(crate) fn identity(ca: &Ca, name: &str) -> Identity {
    let credential = ca.issue_svid(&id(name), None).expect("an SVID");
    Identity::fixed(Some(credential), ca.bundle_set(), WallClock::system())
}

/// A directory with `root.pem`, and `<name>.pem` and `<name>.key` of credentials. Test keys only.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new(ca: &Ca) -> std::io::Result<Self> {
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("root.pem"), ca.bundle().to_pem())?;
        Ok(Self(directory))
    }

    pub(crate) fn add(&self, name: &str, credential: &Credential) -> std::io::Result<()> {
        std::fs::write(self.path(&format!("{name}.pem")), credential.chain_pem())?;
        std::fs::write(self.path(&format!("{name}.key")), credential.key().to_pem().as_bytes())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
