use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer},
    sign::CertifiedKey,
};
use zeroize::{Zeroize, Zeroizing};

use super::{
    CertificateFacts, MAX_CHAIN, X509Error, certificates_from_pem, certificates_to_pem, check_leaf,
    pem::push_base64_lines, private_key_from_pem,
};
use crate::id::SpiffeId;

/// A private key, DER. Overwritten in memory when it is dropped, never shown by `Debug`.
#[derive(Clone)]
pub struct PrivateKey {
    der: Zeroizing<Vec<u8>>,
    form: KeyForm,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyForm {
    Pkcs8,
    Sec1,
    Pkcs1,
}

impl PrivateKey {
    /// A key in PKCS#8 form.
    pub fn from_pkcs8(der: Vec<u8>) -> Self {
        Self { der: Zeroizing::new(der), form: KeyForm::Pkcs8 }
    }

    /// The key as rustls takes it, borrowed.
    pub fn as_der(&self) -> PrivateKeyDer<'_> {
        let der = self.der.as_slice();
        match self.form {
            KeyForm::Pkcs8 => PrivatePkcs8KeyDer::from(der).into(),
            KeyForm::Sec1 => PrivateSec1KeyDer::from(der).into(),
            KeyForm::Pkcs1 => PrivatePkcs1KeyDer::from(der).into(),
        }
    }

    /// The key's bytes in the form they came in.
    pub fn secret_der(&self) -> &[u8] {
        &self.der
    }

    /// The key in PKCS#8 form, DER, whatever form it came in.
    ///
    /// # Errors
    /// A key that is malformed or neither ECDSA on P-256, P-384 or P-521 nor RSA.
    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, X509Error> {
        use aws_lc_rs::{
            encoding::{AsDer, Pkcs8V1Der},
            rsa,
            signature::{
                ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
                ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair,
            },
        };
        match self.form {
            KeyForm::Pkcs8 => Ok(self.der.clone()),
            KeyForm::Sec1 => [
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                &ECDSA_P384_SHA384_FIXED_SIGNING,
                &ECDSA_P521_SHA512_FIXED_SIGNING,
            ]
            .into_iter()
            .find_map(|curve| EcdsaKeyPair::from_private_key_der(curve, &self.der).ok())
            .and_then(|key| key.to_pkcs8v1().ok())
            .map(|der| Zeroizing::new(der.as_ref().to_vec()))
            .ok_or(X509Error::Key),
            KeyForm::Pkcs1 => {
                let key = rsa::KeyPair::from_der(&self.der).map_err(|_| X509Error::Key)?;
                let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).map_err(|_| X509Error::Key)?;
                Ok(Zeroizing::new(der.as_ref().to_vec()))
            }
        }
    }

    /// The key as PEM.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let label = match self.form {
            KeyForm::Pkcs8 => "PRIVATE KEY",
            KeyForm::Sec1 => "EC PRIVATE KEY",
            KeyForm::Pkcs1 => "RSA PRIVATE KEY",
        };
        // Room for all of it at once: a growing string would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(self.der.len() * 3 / 2 + 128));
        text.push_str(&format!("-----BEGIN {label}-----\n"));
        push_base64_lines(&mut text, &self.der);
        text.push_str(&format!("-----END {label}-----\n"));
        text
    }
}

impl From<PrivateKeyDer<'static>> for PrivateKey {
    fn from(mut key: PrivateKeyDer<'static>) -> Self {
        let form = match &key {
            PrivateKeyDer::Sec1(_) => KeyForm::Sec1,
            PrivateKeyDer::Pkcs1(_) => KeyForm::Pkcs1,
            _ => KeyForm::Pkcs8,
        };
        let der = Zeroizing::new(key.secret_der().to_vec());
        key.zeroize();
        Self { der, form }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

/// A certificate chain with its private key: an X.509-SVID, or a server certificate for DNS names.
///
/// The key is known to belong to the leaf. Held in memory only; the key is overwritten when the last owner drops it.
pub struct Credential {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
    facts: CertificateFacts,
    id: Option<SpiffeId>,
    certified: Arc<CertifiedKey>,
}

impl Credential {
    /// An X.509-SVID: a leaf that obeys the X.509-SVID standard, then its intermediates.
    ///
    /// # Errors
    /// Any rule of the standard that the leaf breaks; a chain that is empty, over [`MAX_CHAIN`] or out of order; a key that
    /// cannot be used or is not the leaf's. Whether a root stands behind the chain is not checked here; roots may be at
    /// its end, as some agents append them.
    pub fn svid(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, X509Error> {
        let mut credential = Self::build(chain, key)?;
        credential.id = Some(check_leaf(&credential.facts)?);
        check_order(&credential.facts, &credential.chain)?;
        Ok(credential)
    }

    /// A server certificate for DNS names, without SPIFFE rules.
    ///
    /// # Errors
    /// A malformed or empty chain, or a key that cannot be used or is not the leaf's.
    pub fn server_certificate(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKey,
    ) -> Result<Self, X509Error> {
        Self::build(chain, key)
    }

    /// An X.509-SVID from PEM texts.
    ///
    /// # Errors
    /// As [`Credential::svid`], and malformed PEM.
    pub fn svid_from_pem(chain: &[u8], key: &[u8]) -> Result<Self, X509Error> {
        Self::svid(certificates_from_pem(chain)?, private_key_from_pem(key)?)
    }

    fn build(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, X509Error> {
        if chain.len() > MAX_CHAIN {
            return Err(X509Error::ChainTooLong { count: chain.len() });
        }
        let facts = CertificateFacts::read(chain.first().ok_or(X509Error::NoCertificate)?)?;
        let signer = any_supported_type(&key.as_der()).map_err(|_| X509Error::Key)?;
        let certified = CertifiedKey::new(chain.clone(), signer);
        certified.keys_match().map_err(|_| X509Error::KeyMismatch)?;
        Ok(Self { chain, key, facts, id: None, certified: Arc::new(certified) })
    }

    /// The SPIFFE ID; `None` for a server certificate.
    pub fn id(&self) -> Option<&SpiffeId> {
        self.id.as_ref()
    }

    /// Leaf first, then intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The chain as PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        certificates_to_pem(&self.chain)
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// What the leaf says.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// The leaf's serial number in lower-case hexadecimal digits.
    pub fn serial(&self) -> &str {
        &self.facts.serial
    }

    /// The first moment of validity.
    pub fn not_before(&self) -> SystemTime {
        self.facts.not_before
    }

    /// The last moment of validity.
    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }

    /// How long the leaf is valid in all.
    pub fn lifetime(&self) -> Duration {
        self.not_after().duration_since(self.not_before()).unwrap_or_default()
    }

    /// Whether `now` lies in the leaf's validity.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before() <= now && now <= self.not_after()
    }

    /// That `now` lies in the leaf's validity: asked of everything that a source publishes.
    pub(crate) fn check_time(&self, now: SystemTime) -> Result<(), X509Error> {
        if now > self.not_after() {
            Err(X509Error::Expired)
        } else if now < self.not_before() {
            Err(X509Error::NotYetValid)
        } else {
            Ok(())
        }
    }

    /// Chain and key as rustls signs with them.
    pub fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

/// Each certificate is issued by the one after it. Only roots, which are issued by themselves, may follow without that.
fn check_order(leaf: &CertificateFacts, chain: &[CertificateDer<'_>]) -> Result<(), X509Error> {
    let mut issuer = leaf.issuer.clone();
    for (place, certificate) in chain.iter().enumerate().skip(1) {
        let facts = CertificateFacts::read(certificate)?;
        if !facts.self_issued && facts.subject != issuer {
            return Err(X509Error::ChainOrder { place });
        }
        issuer = facts.issuer;
    }
    Ok(())
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("id", &self.id)
            .field("serial", &self.facts.serial)
            .field("not_before", &self.facts.not_before)
            .field("not_after", &self.facts.not_after)
            .finish_non_exhaustive()
    }
}
