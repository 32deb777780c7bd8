use std::sync::Arc;

use rustls::{
    ClientConfig, ServerConfig, SupportedProtocolVersion,
    client::{Resumption, danger::ServerCertVerifier},
    pki_types::CertificateDer,
    server::{NoClientAuth, NoServerSessionStorage, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};

use super::{
    crypto_provider,
    resolver::FollowIdentity,
    verifier::{DnsVerifier, SpiffeVerifier},
};
use crate::{
    authorizer::Authorizer,
    grpc::IncomingTls,
    id::TrustDomain,
    identity::Identity,
    x509::{CertificateFacts, X509Error, certificates_from_pem},
};

/// A server configuration with the defaults of [`ServerTls`]: mutual TLS 1.3, peers that `authorizer` accepts.
///
/// # Errors
/// As [`ServerTls::build`].
pub fn server_config(identity: &Identity, authorizer: Authorizer) -> Result<Arc<ServerConfig>, TlsError> {
    ServerTls::new(identity.clone(), authorizer).build()
}

/// A client configuration with the defaults of [`ClientTls`]: mutual TLS 1.3, servers that `authorizer` accepts.
///
/// # Errors
/// As [`ClientTls::build`].
pub fn client_config(identity: &Identity, authorizer: Authorizer) -> Result<Arc<ClientConfig>, TlsError> {
    ClientTls::spiffe(identity.clone(), authorizer).build()
}

/// Builds server configurations. Clone it to build variants that share one identity.
#[derive(Debug, Clone)]
pub struct ServerTls {
    identity: Identity,
    trust: Option<Identity>,
    client: ClientCertificate,
    offer: Offer,
}

#[derive(Debug, Clone)]
enum ClientCertificate {
    Required(Authorizer),
    Optional(Authorizer),
    NotAsked,
}

impl ServerTls {
    /// A server that presents `identity`, demands a client certificate and accepts the peers of `authorizer`.
    pub fn new(identity: Identity, authorizer: Authorizer) -> Self {
        let client = ClientCertificate::Required(authorizer);
        Self { identity, trust: None, client, offer: Offer::default() }
    }

    /// As [`ServerTls::new`], accepting every peer of the server's own trust domain.
    pub fn for_trust_domain(identity: Identity, own: TrustDomain) -> Self {
        Self::new(identity, Authorizer::trust_domain(own))
    }

    /// A server that asks for no client certificate, for plain TLS.
    pub fn without_client_certificate(identity: Identity) -> Self {
        let client = ClientCertificate::NotAsked;
        Self { identity, trust: None, client, offer: Offer::default() }
    }

    /// Asks for a client certificate and goes on without one; a certificate that is given must still be good. The
    /// control plane's port works so: first contact by token, renewal by certificate.
    #[must_use]
    pub fn optional_client_certificate(mut self) -> Self {
        if let ClientCertificate::Required(authorizer) = self.client {
            self.client = ClientCertificate::Optional(authorizer);
        }
        self
    }

    /// Verifies peers with the bundles of `trust` in place of the presented identity's.
    #[must_use]
    pub fn trust_from(mut self, trust: Identity) -> Self {
        self.trust = Some(trust);
        self
    }

    /// The application protocols to offer, most preferred first. With a list, rustls refuses a client that offers
    /// ALPN and shares none of them (`no_application_protocol`); with none, ALPN is ignored.
    #[must_use]
    pub fn alpn<P: AsRef<[u8]>>(mut self, protocols: impl IntoIterator<Item = P>) -> Self {
        self.offer.alpn = protocols.into_iter().map(|p| p.as_ref().to_vec()).collect();
        self
    }

    /// Allows TLS 1.2 beside TLS 1.3.
    #[must_use]
    pub fn allow_tls12(mut self) -> Self {
        self.offer.tls12 = true;
        self
    }

    /// Builds the configuration. Cheap: no keys are parsed, so one per ALPN list or authorizer is fine.
    ///
    /// # Errors
    /// Only when the provider lacks what the versions need, which ours does not.
    pub fn build(&self) -> Result<Arc<ServerConfig>, TlsError> {
        self.build_with(false)
    }

    /// Builds the configuration for [`tls_incoming`](crate::grpc::tls_incoming), which can do more than a plain one:
    ///
    /// - With [`ServerTls::optional_client_certificate`], a client whose certificate is good in all but that its time
    ///   is over completes the handshake and counts as a client *without* certificate; requests carry the reason
    ///   ([`PeerInfo::expired`](crate::grpc::PeerInfo::expired)), so that a service answers with a status in place of
    ///   a TLS alert. Certificates that are not yet valid, revoked, of another root or not authorized are refused as
    ///   ever, and so is an expired one where a certificate is required.
    /// - The connection of a client whose certificate is revoked is closed when the revocation list arrives.
    ///
    /// The result is no rustls configuration and gives none away: outside `tls_incoming` nobody would look at the
    /// certificate's time.
    ///
    /// # Errors
    /// As [`ServerTls::build`].
    pub fn build_incoming(&self) -> Result<IncomingTls, TlsError> {
        let answer_expired = matches!(self.client, ClientCertificate::Optional(_));
        Ok(IncomingTls::new(self.build_with(answer_expired)?, Some(self.peers_trust().clone())))
    }

    /// The identity whose bundles peers are verified with.
    fn peers_trust(&self) -> &Identity {
        self.trust.as_ref().unwrap_or(&self.identity)
    }

    fn build_with(&self, answer_expired: bool) -> Result<Arc<ServerConfig>, TlsError> {
        let (authorizer, mandatory) = match &self.client {
            ClientCertificate::Required(authorizer) => (Some(authorizer), true),
            ClientCertificate::Optional(authorizer) => (Some(authorizer), false),
            ClientCertificate::NotAsked => (None, false),
        };
        let verifier: Arc<dyn ClientCertVerifier> = match authorizer {
            Some(authorizer) => {
                let (identity, authorizer) = (self.peers_trust().clone(), authorizer.clone());
                Arc::new(SpiffeVerifier { identity, authorizer, mandatory, answer_expired })
            }
            None => Arc::new(NoClientAuth),
        };
        let clock = Arc::new(self.identity.clock().clone());
        let mut config = ServerConfig::builder_with_details(crypto_provider(), clock)
            .with_protocol_versions(self.offer.versions())
            .map_err(TlsError::from)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(FollowIdentity(self.identity.clone())));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols.clone_from(&self.offer.alpn);
        Ok(Arc::new(config))
    }
}

/// Builds client configurations. Clone it to build variants that share one identity.
#[derive(Debug, Clone)]
pub struct ClientTls {
    identity: Option<Identity>,
    server: ServerCheck,
    offer: Offer,
}

#[derive(Debug, Clone)]
enum ServerCheck {
    Spiffe(Identity, Authorizer),
    Dns(Vec<rustls::pki_types::TrustAnchor<'static>>, crate::clock::WallClock),
}

impl ClientTls {
    /// A client that presents `identity` and accepts the servers that `authorizer` names. The server name given to
    /// rustls is sent as SNI and not compared with the certificate.
    pub fn spiffe(identity: Identity, authorizer: Authorizer) -> Self {
        let server = ServerCheck::Spiffe(identity.clone(), authorizer);
        Self { identity: Some(identity), server, offer: Offer::default() }
    }

    /// A client that knows its server by DNS name and the roots of a PEM text, and presents no certificate unless
    /// [`ClientTls::presenting`] says so.
    ///
    /// # Errors
    /// Malformed PEM, or a text without a usable certificate.
    pub fn dns(roots_pem: &[u8], clock: crate::clock::WallClock) -> Result<Self, TlsError> {
        let roots = certificates_from_pem(roots_pem)?;
        Self::dns_with_roots(&roots, clock)
    }

    /// As [`ClientTls::dns`], with roots that are already parsed.
    ///
    /// # Errors
    /// No root, or a root that is not a CA certificate.
    pub fn dns_with_roots(
        roots: &[CertificateDer<'_>],
        clock: crate::clock::WallClock,
    ) -> Result<Self, TlsError> {
        let mut anchors = Vec::new();
        for root in roots {
            if !CertificateFacts::read(root)?.is_ca {
                return Err(X509Error::SignerNotCa.into());
            }
            anchors.push(webpki::anchor_from_trusted_cert(root).map_err(X509Error::from)?.to_owned());
        }
        if anchors.is_empty() {
            return Err(X509Error::NoCertificate.into());
        }
        let server = ServerCheck::Dns(anchors, clock);
        Ok(Self { identity: None, server, offer: Offer::default() })
    }

    /// Presents `identity` when the server asks for a certificate and the identity has a valid one; otherwise goes on
    /// without.
    #[must_use]
    pub fn presenting(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// The application protocols to offer, most preferred first.
    #[must_use]
    pub fn alpn<P: AsRef<[u8]>>(mut self, protocols: impl IntoIterator<Item = P>) -> Self {
        self.offer.alpn = protocols.into_iter().map(|p| p.as_ref().to_vec()).collect();
        self
    }

    /// Allows TLS 1.2 beside TLS 1.3.
    #[must_use]
    pub fn allow_tls12(mut self) -> Self {
        self.offer.tls12 = true;
        self
    }

    /// Builds the configuration. Cheap: no keys are parsed, so one per ALPN list or authorizer is fine.
    ///
    /// # Errors
    /// Only when the provider lacks what the versions need, which ours does not.
    pub fn build(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let (verifier, clock): (Arc<dyn ServerCertVerifier>, _) = match &self.server {
            ServerCheck::Spiffe(identity, authorizer) => {
                let (identity, authorizer) = (identity.clone(), authorizer.clone());
                let clock = identity.clock().clone();
                (
                    Arc::new(SpiffeVerifier { identity, authorizer, mandatory: true, answer_expired: false }),
                    clock,
                )
            }
            ServerCheck::Dns(anchors, clock) => {
                (Arc::new(DnsVerifier { anchors: anchors.clone() }), clock.clone())
            }
        };
        let builder = ClientConfig::builder_with_details(crypto_provider(), Arc::new(clock))
            .with_protocol_versions(self.offer.versions())
            .map_err(TlsError::from)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(FollowIdentity(identity.clone()))),
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols.clone_from(&self.offer.alpn);
        Ok(Arc::new(config))
    }
}

/// What servers and clients offer alike.
#[derive(Debug, Clone, Default)]
struct Offer {
    alpn: Vec<Vec<u8>>,
    tls12: bool,
}

impl Offer {
    fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        const MODERN: &[&SupportedProtocolVersion] = &[&TLS13];
        const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
        if self.tls12 { BOTH } else { MODERN }
    }
}

/// Why a TLS configuration cannot be built.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// Certificates that cannot be used.
    #[error(transparent)]
    Certificate {
        /// What is wrong.
        #[from]
        source: X509Error,
    },
    /// rustls refused the configuration.
    #[error("rustls: {source}")]
    Rustls {
        /// What it said.
        #[from]
        source: rustls::Error,
    },
}

impl TlsError {
    /// A stable label of low cardinality, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Certificate { source } => source.reason(),
            Self::Rustls { .. } => "rustls",
        }
    }
}
