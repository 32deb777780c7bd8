use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::CertificateDer;

use super::{Ca, CaError, signer::offset};
use crate::bundle::serial_bytes;

/// How long a revocation list says it is current. Lists are replaced as a whole, so this is only advice.
const LIST_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a CA revoked: one list per issuer.
#[derive(Debug, Default)]
pub struct Revocation {
    number: u64,
    revoked: Vec<(String, SystemTime)>,
    lists: Vec<(CertificateDer<'static>, Vec<u8>)>,
}

impl Revocation {
    pub(super) fn lists(&self) -> impl Iterator<Item = &[u8]> {
        self.lists.iter().map(|(_, der)| der.as_slice())
    }

    pub(super) fn forget_issuer(&mut self, issuer: &CertificateDer<'_>) {
        self.lists.retain(|(of, _)| of != issuer);
    }
}

impl Ca {
    /// The serial numbers of all that was revoked. [`Ca::to_pem`] does not hold them: whoever stores a CA stores these
    /// beside it and gives them to [`Ca::revoke`] after [`Ca::load`].
    pub fn revoked_serials(&self) -> Vec<String> {
        self.lock().revocation.revoked.iter().map(|(serial, _)| serial.clone()).collect()
    }

    /// Revokes certificates by serial number (hexadecimal digits), whichever of the CA's signers made them, one that was
    /// replaced since the CA was loaded included, and publishes the new lists in the bundle. Those who follow the bundle then refuse the certificates, and close
    /// connections of live peers (see [`ClosedWhenRevoked`](crate::tls::ClosedWhenRevoked)).
    ///
    /// # Errors
    /// A serial that is not hexadecimal, or signing failed.
    pub fn revoke<S: AsRef<str>>(&self, serials: impl IntoIterator<Item = S>) -> Result<(), CaError> {
        let now = self.clock.now();
        let mut roots = self.lock();
        roots.forget_expired(now);
        let mut revoked = roots.revocation.revoked.clone();
        for serial in serials {
            let serial = serial.as_ref();
            if serial_bytes(serial).is_none() {
                return Err(CaError::Internal { detail: format!("serial {serial:?} is not hexadecimal") });
            }
            if !revoked.iter().any(|(known, _)| known == serial) {
                revoked.push((serial.to_owned(), now));
            }
        }
        let number = roots.revocation.number + 1;
        let entry = |(serial, time): &(String, SystemTime)| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from(serial_bytes(serial).unwrap_or_default()),
                revocation_time: offset(*time)?,
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            })
        };
        let params = CertificateRevocationListParams {
            this_update: offset(now)?,
            next_update: offset(now + LIST_LIFETIME)?,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect::<Result<_, CaError>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        // One list per signer, all with the same serials: serials are random, so they meet nobody else's certificate.
        let mut lists = Vec::new();
        for signer in roots.issuers() {
            let list = params.signed_by(signer.issuer())?.der().to_vec();
            lists.push((signer.certificate().clone(), list));
        }
        for (issuer, list) in lists {
            roots.revocation.forget_issuer(&issuer);
            roots.revocation.lists.push((issuer, list));
        }
        roots.revocation.revoked = revoked;
        roots.revocation.number = number;
        self.publish(&roots)?;
        Ok(())
    }
}
