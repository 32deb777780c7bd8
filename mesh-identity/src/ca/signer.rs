use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use zeroize::Zeroize;

use super::{
    CaError, CaPem, IssuancePolicy, Issued, KeyKind, RootOptions, request::generate_key,
    request::take_private_key,
};
use crate::{
    clock::WallClock,
    id::{SpiffeId, TrustDomain},
    x509::{
        CertificateFacts, Credential, PeerUsage, PrivateKey, X509Error, certificates_from_pem,
        certificates_to_pem, check_signer, hex, private_key_from_pem, verify_path,
    },
};

/// A signing key with its certificate and the chain above it.
pub(super) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    key: PrivateKey,
    certificate: CertificateDer<'static>,
    /// Certificates between the leaf and the root: the signer itself and those above it; empty for a root.
    intermediates: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    not_after: SystemTime,
}

impl Signer {
    pub(super) fn self_signed(
        trust_domain: &TrustDomain,
        options: &RootOptions,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let mut pair = generate_key(options.key)?;
        let key = take_private_key(&mut pair);
        let serial = random_serial();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let organization = options.organization.as_deref().unwrap_or(trust_domain.as_str());
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let name = format!("{trust_domain} root {}", &hex(serial.as_ref())[..8]);
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::URI(trust_domain.id().as_str().try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial);
        params.not_before = offset(now - IssuancePolicy::default().backdate)?;
        params.not_after = offset(now + options.lifetime)?;
        let certificate = params.self_signed(&pair)?.der().clone();
        Self::assemble(pair, key, certificate.clone(), Vec::new(), certificate)
    }

    /// Loads a signer; also returns every root that the PEM trusts.
    pub(super) fn load(
        pem: &CaPem,
        clock: &WallClock,
    ) -> Result<(Self, Vec<CertificateDer<'static>>), CaError> {
        let key = private_key_from_pem(pem.key.as_bytes())?;
        let mut pair = KeyPair::try_from(&key.as_der()).map_err(|_| X509Error::Key)?;
        // Its own copy of the key's text; it signs without.
        pair.zeroize();
        let certificate = one_certificate(&pem.certificate)?;
        let facts = CertificateFacts::read(&certificate)?;
        check_signer(&facts)?;
        if clock.now() > facts.not_after {
            return Err(X509Error::Expired.into());
        }
        if clock.now() < facts.not_before {
            return Err(X509Error::NotYetValid.into());
        }
        let mut roots = certificates_from_pem(pem.roots.as_bytes())?;
        if roots.is_empty() && facts.self_issued {
            roots.push(certificate.clone());
        }
        if roots.contains(&certificate) {
            return Ok((Self::assemble(pair, key, certificate.clone(), Vec::new(), certificate)?, roots));
        }
        let mut intermediates = certificates_from_pem(pem.chain.as_bytes())?;
        intermediates.retain(|one| *one != certificate && !roots.contains(one));
        for intermediate in &intermediates {
            check_signer(&CertificateFacts::read(intermediate)?)?;
        }
        intermediates.insert(0, certificate.clone());
        let first_root = roots.first().cloned().ok_or(X509Error::UnknownIssuer)?;
        let signer = Self::assemble(pair, key, certificate, intermediates, first_root)?;
        let root = signer.find_root(&roots, clock)?;
        Ok((Self { root, ..signer }, roots))
    }

    fn assemble(
        pair: KeyPair,
        key: PrivateKey,
        certificate: CertificateDer<'static>,
        intermediates: Vec<CertificateDer<'static>>,
        root: CertificateDer<'static>,
    ) -> Result<Self, CaError> {
        let not_after = CertificateFacts::read(&certificate)?.not_after;
        // The certificate must be the key's: building a credential of both says so.
        Credential::server_certificate(vec![certificate.clone()], key.clone())?;
        let issuer = Issuer::from_ca_cert_der(&certificate, pair)?;
        Ok(Self { issuer, key, certificate, intermediates, root, not_after })
    }

    /// The root that stands behind the chain, found by verifying a certificate that was signed for the purpose.
    fn find_root(
        &self,
        roots: &[CertificateDer<'static>],
        clock: &WallClock,
    ) -> Result<CertificateDer<'static>, CaError> {
        let key = generate_key(KeyKind::EcP256)?;
        let now = clock.now();
        let params = self.leaf_params(Duration::from_secs(600), Duration::from_secs(60), now)?;
        let probe = params.signed_by(&key, &self.issuer)?;
        for root in roots {
            check_signer(&CertificateFacts::read(root)?)?;
            let anchor = webpki::anchor_from_trusted_cert(root).map_err(X509Error::from)?;
            let above = &self.intermediates;
            if verify_path(probe.der(), above, &[anchor], &[], PeerUsage::Server, clock.unix_time()).is_ok() {
                return Ok(root.clone());
            }
        }
        Err(X509Error::UnknownIssuer.into())
    }

    pub(super) fn to_pem(&self, trusted: &[CertificateDer<'static>]) -> CaPem {
        CaPem {
            key: self.key.to_pem(),
            certificate: certificates_to_pem([&self.certificate]),
            chain: certificates_to_pem(&self.intermediates),
            roots: certificates_to_pem(trusted),
        }
    }

    pub(super) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(super) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    pub(super) fn issue_svid(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        lifetime: Duration,
        policy: &IssuancePolicy,
        now: SystemTime,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Issued, CaError> {
        let mut params = self.params_under_policy(lifetime, policy, now)?;
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        let (chain, serial, not_after) = self.sign(&params, key)?;
        Ok(Issued { chain, roots, serial, not_after })
    }

    pub(super) fn issue_server(
        &self,
        dns_names: &[String],
        lifetime: Duration,
        policy: &IssuancePolicy,
        now: SystemTime,
    ) -> Result<Credential, CaError> {
        let mut params = self.params_under_policy(lifetime, policy, now)?;
        for name in dns_names {
            let bad = || CaError::DnsName { name: name.clone() };
            rustls::pki_types::DnsName::try_from(name.as_str()).map_err(|_| bad())?;
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(|_| bad())?));
        }
        if dns_names.is_empty() {
            return Err(CaError::DnsName { name: String::new() });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let mut pair = generate_key(KeyKind::EcP256)?;
        let key = take_private_key(&mut pair);
        let (chain, ..) = self.sign(&params, &pair)?;
        Ok(Credential::server_certificate(chain, key)?)
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<(Vec<CertificateDer<'static>>, String, SystemTime), CaError> {
        let leaf = params.signed_by(key, &self.issuer)?;
        let chain = std::iter::once(leaf.der().clone()).chain(self.intermediates.iter().cloned()).collect();
        let serial = params.serial_number.as_ref().map(|serial| hex(serial.as_ref())).unwrap_or_default();
        Ok((chain, serial, params.not_after.into()))
    }

    fn params_under_policy(
        &self,
        lifetime: Duration,
        policy: &IssuancePolicy,
        now: SystemTime,
    ) -> Result<CertificateParams, CaError> {
        let left = self.not_after.duration_since(now).unwrap_or_default();
        if left < policy.min_remaining {
            return Err(CaError::Expiring { left });
        }
        self.leaf_params(lifetime.min(left), policy.backdate, now)
    }

    fn leaf_params(
        &self,
        lifetime: Duration,
        backdate: Duration,
        now: SystemTime,
    ) -> Result<CertificateParams, CaError> {
        let mut params = CertificateParams::default();
        // An empty subject: the name is in the subject alternative name, which is then critical (RFC 5280 4.1.2.6).
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial());
        params.not_before = offset(now - backdate)?;
        params.not_after = offset(now + lifetime)?;
        Ok(params)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// 127 random bits: positive, never zero, 16 bytes in DER without a padding byte.
fn random_serial() -> SerialNumber {
    let mut bytes = [0u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// Whole seconds, which is what X.509 has.
pub(super) fn offset(time: SystemTime) -> Result<OffsetDateTime, CaError> {
    let time = OffsetDateTime::from(time);
    Ok(time.replace_nanosecond(0).unwrap_or(time))
}

fn one_certificate(pem: &str) -> Result<CertificateDer<'static>, CaError> {
    certificates_from_pem(pem.as_bytes())?.into_iter().next().ok_or_else(|| X509Error::NoCertificate.into())
}
