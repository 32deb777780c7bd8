//! A mesh CA and a TLS provider on top of it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use mesh_proxy_core::{
    config::{DownstreamTls, SecretRef, StringMatcher, UpstreamTls},
    tls::{PeerCertificate, TlsProvider, TlsUnavailable},
};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, SanType};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::WebPkiClientVerifier,
};

/// A certificate authority.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>, Arc<Mutex<BTreeSet<String>>>);

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(), Arc::default())
    }

    /// From now on every provider says so of this identity.
    pub(crate) fn revoke(&self, id: &str) {
        self.1.lock().unwrap().insert(id.to_owned());
    }

    /// A provider with an SVID for `id`.
    pub(crate) fn provider(&self, id: &str) -> Arc<Provider> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        let cert = params.signed_by(&key, &self.0).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(Provider {
            id: id.into(),
            chain: vec![cert.der().clone()],
            key: key.serialize_der(),
            roots: Arc::new(roots),
            revoked: Arc::clone(&self.1),
            crypto: Arc::new(aws_lc_rs::default_provider()),
        })
    }
}

/// Gives configurations of one identity.
#[derive(Debug)]
pub(crate) struct Provider {
    id: Arc<str>,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    roots: Arc<RootCertStore>,
    revoked: Arc<Mutex<BTreeSet<String>>>,
    crypto: Arc<CryptoProvider>,
}

impl Provider {
    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone().into())
    }
}

impl TlsProvider for Provider {
    fn server_config(&self, context: &Arc<DownstreamTls>) -> Result<Arc<ServerConfig>, TlsUnavailable> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.crypto))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if context.require_client_certificate {
            let verifier = WebPkiClientVerifier::builder_with_provider(
                Arc::clone(&self.roots),
                Arc::clone(&self.crypto),
            );
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        Ok(Arc::new(builder.with_single_cert(self.chain.clone(), self.key()).unwrap()))
    }

    fn client_config(&self, context: &Arc<UpstreamTls>) -> Result<Arc<ClientConfig>, TlsUnavailable> {
        let verifier = Verifier {
            roots: Arc::clone(&self.roots),
            crypto: Arc::clone(&self.crypto),
            names: context.subject_alt_names.clone(),
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.crypto))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        Ok(Arc::new(builder.with_client_auth_cert(self.chain.clone(), self.key()).unwrap()))
    }

    fn is_revoked(&self, peer: &PeerCertificate) -> bool {
        assert!(!peer.issuer.is_empty() && !peer.serial.is_empty());
        peer.spiffe_id().is_some_and(|id| self.revoked.lock().unwrap().contains(&**id))
    }

    fn local_identity(&self) -> Option<Arc<str>> {
        Some(Arc::clone(&self.id))
    }
}

#[derive(Debug)]
struct Verifier {
    roots: Arc<RootCertStore>,
    crypto: Arc<CryptoProvider>,
    names: Vec<StringMatcher>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let cert = rustls::server::ParsedCertificate::try_from(leaf)?;
        let algorithms = self.crypto.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &cert,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        let peer = PeerCertificate::from_der(leaf).ok_or(rustls::Error::General("certificate".into()))?;
        let named = |name: &StringMatcher| peer.uri_sans.iter().any(|id| name.matches(id));
        if self.names.is_empty() || self.names.iter().any(named) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}

/// The server side of mutual TLS.
pub(crate) fn inbound_tls(alpn: &[&str]) -> Arc<DownstreamTls> {
    Arc::new(DownstreamTls {
        certificates: vec![SecretRef::Named("default".into())],
        validation: Some(SecretRef::Named("ROOTCA".into())),
        require_client_certificate: true,
        alpn: alpn.iter().map(|p| (*p).into()).collect(),
        ..DownstreamTls::default()
    })
}

/// The client side of mutual TLS, accepting `ids`.
pub(crate) fn outbound_tls(ids: &[&str]) -> Arc<UpstreamTls> {
    Arc::new(UpstreamTls {
        certificate: Some(SecretRef::Named("default".into())),
        validation: Some(SecretRef::Named("ROOTCA".into())),
        subject_alt_names: ids.iter().map(|id| StringMatcher::exact(id)).collect(),
        sni: "outbound_.9080_._.reviews.default.svc.cluster.local".into(),
        alpn: vec!["istio-peer-exchange".into(), "istio".into()],
        ..UpstreamTls::default()
    })
}
