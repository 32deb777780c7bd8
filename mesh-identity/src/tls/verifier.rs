use std::time::UNIX_EPOCH;

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::signature_algorithms;
use crate::{
    authorizer::Authorizer,
    identity::Identity,
    x509::{CertificateFacts, PeerUsage, X509Error, verify_chain},
};

/// Verifies the peer's X.509-SVID against the identity's bundles as they are at each handshake, then authorizes it.
#[derive(Debug)]
pub(super) struct SpiffeVerifier {
    pub(super) identity: Identity,
    pub(super) authorizer: Authorizer,
    pub(super) mandatory: bool,
    /// Lets a client certificate whose only fault is that its time is over complete the handshake.
    pub(super) answer_expired: bool,
}

impl SpiffeVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: PeerUsage,
        now: UnixTime,
    ) -> Result<(), X509Error> {
        let bundles = self.identity.current().bundles.clone();
        let peer = verify_chain(leaf, intermediates, &bundles, usage, now)?;
        self.authorizer.check(&peer)
    }

    /// Whether the leaf's time is over and everything else is good: verified once more as of its own last second,
    /// with the roots, revocation lists and authorizer of now.
    fn only_expired(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), X509Error> {
        let facts = CertificateFacts::read(leaf)?;
        let last = facts.not_after.duration_since(UNIX_EPOCH).map_err(|_| X509Error::Expired)?;
        let last = UnixTime::since_unix_epoch(last);
        // When the leaf still has time, it is a signing certificate that expired.
        if last >= now {
            return Err(X509Error::Expired);
        }
        self.verify(leaf, intermediates, PeerUsage::Client, last)
    }
}

macro_rules! verify_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, &signature_algorithms())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &signature_algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            signature_algorithms().supported_schemes()
        }
    };
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, PeerUsage::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    verify_signatures!();
}

impl ClientCertVerifier for SpiffeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// No hints: roots change under a live configuration, and peers choose by identity, not by issuer.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.verify(end_entity, intermediates, PeerUsage::Client, now) {
            Err(X509Error::Expired) if self.answer_expired => {
                self.only_expired(end_entity, intermediates, now)?;
            }
            outcome => outcome?,
        }
        Ok(ClientCertVerified::assertion())
    }

    verify_signatures!();
}

/// Verifies a server by its DNS name and given roots: the control plane, as a sidecar sees it.
#[derive(Debug)]
pub(super) struct DnsVerifier {
    pub(super) anchors: Vec<TrustAnchor<'static>>,
}

impl ServerCertVerifier for DnsVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        crate::x509::verify_path(end_entity, intermediates, &self.anchors, &[], PeerUsage::Server, now)?;
        let leaf = webpki::EndEntityCert::try_from(end_entity).map_err(X509Error::from)?;
        leaf.verify_is_valid_for_subject_name(server_name)
            .map_err(|_| Error::InvalidCertificate(rustls::CertificateError::NotValidForName))?;
        Ok(ServerCertVerified::assertion())
    }

    verify_signatures!();
}
