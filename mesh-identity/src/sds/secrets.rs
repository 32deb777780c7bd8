use mesh_xds::pb::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, Secret, TlsCertificate, secret::Type,
    },
};

use zeroize::Zeroize;

use crate::{
    bundle::TrustBundle,
    id::TrustDomain,
    x509::{Credential, X509Error, certificates_from_pem, crl_to_pem, crls_from_pem, private_key_from_pem},
};

/// A secret that holds roots (and revocation lists) only, under this name. Good for ADS.
pub fn validation_secret(name: &str, bundle: &TrustBundle) -> Secret {
    let crl = bundle.crl_ders().iter().fold(String::new(), |pem, der| pem + &crl_to_pem(der));
    let context = CertificateValidationContext {
        trusted_ca: Some(inline(bundle.to_pem().into_bytes())),
        crl: (!crl.is_empty()).then(|| inline(crl.into_bytes())),
        ..CertificateValidationContext::default()
    };
    Secret { name: name.to_owned(), r#type: Some(Type::ValidationContext(context)) }
}

/// A secret that holds a private key. Not public: only the Unix socket's server makes one.
pub(super) fn certificate_secret(name: &str, credential: &Credential) -> Secret {
    let certificate = TlsCertificate {
        certificate_chain: Some(inline(credential.chain_pem().into_bytes())),
        private_key: Some(inline(credential.key().to_pem().as_bytes().to_vec())),
        ..TlsCertificate::default()
    };
    Secret { name: name.to_owned(), r#type: Some(Type::TlsCertificate(certificate)) }
}

/// Overwrites the private key in a secret that is not needed any more.
pub(super) fn wipe(secret: &mut Secret) {
    if let Some(Type::TlsCertificate(certificate)) = &mut secret.r#type
        && let Some(Specifier::InlineBytes(bytes)) =
            certificate.private_key.as_mut().and_then(|key| key.specifier.as_mut())
    {
        bytes.zeroize();
    }
}

/// Reads chain and key.
pub(super) fn read_certificate(secret: &Secret) -> Result<Credential, SecretError> {
    let Some(Type::TlsCertificate(certificate)) = &secret.r#type else {
        return Err(SecretError::Kind { name: secret.name.clone(), expected: "a TLS certificate" });
    };
    let chain = bytes(&secret.name, certificate.certificate_chain.as_ref())?;
    let key = bytes(&secret.name, certificate.private_key.as_ref())?;
    Ok(Credential::svid(certificates_from_pem(chain)?, private_key_from_pem(key)?)?)
}

/// Roots and revocation lists of a secret that does not say which trust domain they are for.
#[derive(Debug)]
pub(super) struct RootSecret(TrustBundle);

impl RootSecret {
    pub(super) fn bundle(&self, trust_domain: TrustDomain) -> Result<TrustBundle, X509Error> {
        let mut bundle = TrustBundle::new(trust_domain, self.0.roots().iter().cloned())?;
        bundle.set_crls(self.0.crl_ders().iter().map(|der| der.to_vec()))?;
        Ok(bundle)
    }
}

/// Reads the roots, and the revocation lists when there are any.
pub(super) fn read_roots(secret: &Secret) -> Result<RootSecret, SecretError> {
    let Some(Type::ValidationContext(context)) = &secret.r#type else {
        return Err(SecretError::Kind { name: secret.name.clone(), expected: "a validation context" });
    };
    // Checked in full under a name that is nobody's, so that what is accepted makes a bundle for every name.
    let nobody = TrustDomain::parse("invalid").map_err(X509Error::from)?;
    let mut bundle = TrustBundle::from_pem(nobody, bytes(&secret.name, context.trusted_ca.as_ref())?)?;
    if context.crl.is_some() {
        bundle.set_crls(crls_from_pem(bytes(&secret.name, context.crl.as_ref())?)?)?;
    }
    Ok(RootSecret(bundle))
}

/// Only what is in the message itself: a server must not make us read files or environment variables.
fn bytes<'a>(name: &str, source: Option<&'a DataSource>) -> Result<&'a [u8], SecretError> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(Specifier::InlineString(text)) => Ok(text.as_bytes()),
        _ => Err(SecretError::NotInline { name: name.to_owned() }),
    }
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes)), ..DataSource::default() }
}

/// Why a secret was refused; sent back to the server as the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The secret is of another kind.
    #[error("secret {name:?} is not {expected}")]
    Kind {
        /// The secret.
        name: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The data is not in the message.
    #[error("secret {name:?} does not carry its data inline")]
    NotInline {
        /// The secret.
        name: String,
    },
    /// Certificates or keys that are not good.
    #[error(transparent)]
    Certificate {
        /// What is wrong.
        #[from]
        source: X509Error,
    },
    /// A message that cannot be read.
    #[error("malformed secret: {detail}")]
    Malformed {
        /// What the decoder said.
        detail: String,
    },
}

impl SecretError {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Kind { .. } => "kind",
            Self::NotInline { .. } => "not_inline",
            Self::Certificate { source } => source.reason(),
            Self::Malformed { .. } => "malformed",
        }
    }
}
