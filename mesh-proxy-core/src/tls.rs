//! TLS at the edges: rustls configurations come in, certificates of peers are described.
//!
//! The data path never sees keys or trust decisions. It asks a [`TlsProvider`] for a rustls configuration at each
//! handshake (so that a rotated certificate is used at once), sets ALPN on a copy, and describes the peer afterwards.

use std::{fmt, net::IpAddr, sync::Arc};

use rustls::{ClientConfig, ServerConfig, pki_types::CertificateDer};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::config::{DownstreamTls, UpstreamTls};

/// Gives rustls configurations for TLS contexts. Asked at every handshake: keep the answers and swap them on rotation.
///
/// Configurations must be built with an explicit `CryptoProvider`, must verify as the context says, and should not
/// resume sessions across a change of trust.
pub trait TlsProvider: Send + Sync + fmt::Debug + 'static {
    /// The configuration for accepting connections under `context`. ALPN is set by the caller.
    ///
    /// # Errors
    /// [`TlsUnavailable`] while a certificate or a bundle is missing; the connection is then closed.
    fn server_config(&self, context: &Arc<DownstreamTls>) -> Result<Arc<ServerConfig>, TlsUnavailable>;

    /// The configuration for connecting under `context` (certificate, roots, accepted names). ALPN is set by the caller.
    ///
    /// # Errors
    /// [`TlsUnavailable`] while a certificate or a bundle is missing; the request then fails with `UF`.
    fn client_config(&self, context: &Arc<UpstreamTls>) -> Result<Arc<ClientConfig>, TlsUnavailable>;

    /// Whether a peer whose handshake was good is revoked by now: asked once for each new connection, and for every live
    /// one at [`Handle::close_revoked`](crate::Handle::close_revoked). Nobody, unless the provider knows better.
    fn is_revoked(&self, peer: &PeerCertificate) -> bool {
        let _unused = peer;
        false
    }

    /// The SPIFFE ID that we present, for `By=` in `x-forwarded-client-cert` and for inspection.
    fn local_identity(&self) -> Option<Arc<str>>;
}

/// No TLS: every TLS chain and every TLS cluster fails. The default of a [`ProxyBuilder`](crate::ProxyBuilder).
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTls;

impl TlsProvider for NoTls {
    fn server_config(&self, _context: &Arc<DownstreamTls>) -> Result<Arc<ServerConfig>, TlsUnavailable> {
        Err(TlsUnavailable { secret: "TLS provider".into(), reason: "none was given".into() })
    }

    fn client_config(&self, _context: &Arc<UpstreamTls>) -> Result<Arc<ClientConfig>, TlsUnavailable> {
        Err(TlsUnavailable { secret: "TLS provider".into(), reason: "none was given".into() })
    }

    fn local_identity(&self) -> Option<Arc<str>> {
        None
    }
}

/// A secret is not there (yet).
#[derive(Debug, Clone, thiserror::Error)]
#[error("{secret}: {reason}")]
pub struct TlsUnavailable {
    /// Which secret.
    pub secret: String,
    /// Why.
    pub reason: String,
}

/// What is known about a TLS session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsSession {
    /// `TLSv1.3`, `TLSv1.2`.
    pub version: Option<&'static str>,
    /// `TLS13_AES_256_GCM_SHA384`, …
    pub cipher: Option<&'static str>,
    /// `X25519MLKEM768`, …
    pub key_exchange: Option<&'static str>,
    /// Negotiated ALPN.
    pub alpn: Option<Arc<str>>,
    /// The peer's certificate, if it presented one (verified by the configuration in use).
    pub peer: Option<Arc<PeerCertificate>>,
    /// The identity that we present.
    pub local_identity: Option<Arc<str>>,
}

/// The parts of a peer's leaf certificate that policy and telemetry use. Only for certificates that were verified.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerCertificate {
    /// URI subject alternative names.
    pub uri_sans: Vec<Arc<str>>,
    /// DNS subject alternative names.
    pub dns_sans: Vec<Arc<str>>,
    /// Subject, RFC 2253 order as Envoy prints it; empty for SVIDs.
    pub subject: Arc<str>,
    /// SHA-256 of the DER form, lower-case hexadecimal.
    pub sha256: Arc<str>,
    /// Serial number, lower-case hexadecimal.
    pub serial: Arc<str>,
    /// The issuer's name, DER: with the serial it names the certificate for revocation.
    pub issuer: Arc<[u8]>,
}

impl PeerCertificate {
    /// Describes a leaf certificate; `None` when it does not parse.
    #[must_use]
    pub fn from_der(der: &CertificateDer<'_>) -> Option<Self> {
        use sha2::Digest;
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let mut described = Self {
            subject: if cert.subject().iter().next().is_none() {
                "".into()
            } else {
                cert.subject().to_string().into()
            },
            sha256: hex(&sha2::Sha256::digest(der)).into(),
            serial: hex(cert.raw_serial()).into(),
            issuer: cert.issuer().as_raw().into(),
            ..Self::default()
        };
        for extension in cert.extensions() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => described.uri_sans.push((*uri).into()),
                        GeneralName::DNSName(dns) => described.dns_sans.push((*dns).into()),
                        _ => {}
                    }
                }
            }
        }
        Some(described)
    }

    /// The first URI SAN: the SPIFFE ID of a mesh peer.
    #[must_use]
    pub fn spiffe_id(&self) -> Option<&Arc<str>> {
        self.uri_sans.first()
    }

    /// What Envoy calls the authenticated principal: URI SAN, else DNS SAN, else subject.
    pub(crate) fn principals(&self) -> impl Iterator<Item = &str> {
        let (sans, other): (&[Arc<str>], Option<&str>) = if !self.uri_sans.is_empty() {
            (&self.uri_sans, None)
        } else if !self.dns_sans.is_empty() {
            (&self.dns_sans, None)
        } else {
            (&[], Some(&self.subject))
        };
        sans.iter().map(|s| &**s).chain(other)
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Reads the facts of an established session.
pub(crate) fn describe(connection: &rustls::CommonState, local_identity: Option<Arc<str>>) -> TlsSession {
    TlsSession {
        version: match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => Some("TLSv1.3"),
            Some(rustls::ProtocolVersion::TLSv1_2) => Some("TLSv1.2"),
            _ => None,
        },
        cipher: connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()),
        key_exchange: connection.negotiated_key_exchange_group().and_then(|group| group.name().as_str()),
        alpn: connection.alpn_protocol().and_then(|alpn| std::str::from_utf8(alpn).ok()).map(Arc::from),
        peer: connection
            .peer_certificates()
            .and_then(|chain| chain.first())
            .and_then(PeerCertificate::from_der)
            .map(Arc::new),
        local_identity,
    }
}

/// The server name for a handshake: the configured one, else the address.
pub(crate) fn server_name(
    sni: &str,
    address: IpAddr,
) -> Result<rustls::pki_types::ServerName<'static>, TlsUnavailable> {
    if sni.is_empty() {
        return Ok(rustls::pki_types::ServerName::IpAddress(address.into()));
    }
    rustls::pki_types::ServerName::try_from(sni.to_owned())
        .map_err(|error| TlsUnavailable { secret: "server name".into(), reason: format!("{sni:?}: {error}") })
}
