//! Certificates for the mutual TLS scenarios: one CA, one SPIFFE leaf per side, in files that every peer reads.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// SPIFFE ID of the client proxy.
pub(crate) const CLIENT_ID: &str = "spiffe://cluster.local/ns/bench/sa/client";
/// SPIFFE ID of the server proxy.
pub(crate) const SERVER_ID: &str = "spiffe://cluster.local/ns/bench/sa/server";

/// The files.
#[derive(Debug, Clone)]
pub(crate) struct Certs {
    pub(crate) root: PathBuf,
    pub(crate) client: (PathBuf, PathBuf),
    pub(crate) server: (PathBuf, PathBuf),
}

/// Writes fresh certificates, valid for a day, for this run only.
pub(crate) fn write(dir: &Path) -> anyhow::Result<Certs> {
    fs::create_dir_all(dir)?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lifetime(&mut params);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let root = dir.join("root.pem");
    fs::write(&root, ca.pem())?;
    let leaf = |name: &str, id: &str| -> anyhow::Result<(PathBuf, PathBuf)> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().context("not an IA5 string")?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        lifetime(&mut params);
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &ca)?;
        let files = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        fs::write(&files.0, cert.pem())?;
        fs::write(&files.1, key.serialize_pem())?;
        Ok(files)
    };
    let client = leaf("client", CLIENT_ID)?;
    let server = leaf("server", SERVER_ID)?;
    Ok(Certs { root, client, server })
}

fn lifetime(params: &mut CertificateParams) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(1);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "mesh-bench");
}
