//! TLS contexts: what a [`TlsProvider`](crate::tls::TlsProvider) is asked for.

use std::{path::PathBuf, sync::Arc};

use super::StringMatcher;

/// Where a certificate or a trust bundle comes from. The provider resolves it; the data path never sees key material.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretRef {
    /// A named secret (SDS): `default`, `ROOTCA`, `file-cert:…`.
    Named(Arc<str>),
    /// A certificate chain and its key in PEM files.
    CertificateFiles {
        /// The chain, leaf first.
        chain: PathBuf,
        /// The private key.
        key: PathBuf,
    },
    /// Trusted roots in a PEM file.
    RootsFile(PathBuf),
    /// Trusted roots as PEM text.
    InlineRoots(Arc<str>),
}

/// A TLS protocol version that rustls speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// The server side of TLS (Envoy's `DownstreamTlsContext`).
#[derive(Debug, Clone, PartialEq)]
pub struct DownstreamTls {
    /// Server certificates.
    pub certificates: Vec<SecretRef>,
    /// Roots for client certificates; `None` asks for no client certificate.
    pub validation: Option<SecretRef>,
    /// Whether a client without a certificate is refused.
    pub require_client_certificate: bool,
    /// Accepted subject alternative names of the client; empty accepts every name under the roots.
    pub subject_alt_names: Vec<StringMatcher>,
    /// ALPN, in preference order. The data path intersects it with the client's offer before the handshake, because
    /// rustls aborts where others go on without ALPN.
    pub alpn: Vec<Arc<str>>,
    /// Lowest version. Default 1.2.
    pub min_version: TlsVersion,
    /// Highest version. Default 1.3.
    pub max_version: TlsVersion,
}

/// The client side of TLS (Envoy's `UpstreamTlsContext`).
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamTls {
    /// The client's certificate, if it presents one.
    pub certificate: Option<SecretRef>,
    /// Roots for the server's certificate; `None` means the system's roots.
    pub validation: Option<SecretRef>,
    /// Accepted subject alternative names of the server. Empty: by mesh rules any name under the roots.
    pub subject_alt_names: Vec<StringMatcher>,
    /// Server name to send; empty sends none.
    pub sni: Arc<str>,
    /// Take the server name from the request's host (`auto_sni`). Default false.
    pub auto_sni: bool,
    /// Verify the server's certificate against the server name as a DNS name (`auto_san_validation`). Default false.
    pub auto_san_validation: bool,
    /// ALPN offered, unless a request's `istio.alpn` override says otherwise.
    pub alpn: Vec<Arc<str>>,
    /// Lowest version. Default 1.2.
    pub min_version: TlsVersion,
    /// Highest version. Default 1.3.
    pub max_version: TlsVersion,
}

impl Default for DownstreamTls {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            validation: None,
            require_client_certificate: false,
            subject_alt_names: Vec::new(),
            alpn: Vec::new(),
            min_version: TlsVersion::V1_2,
            max_version: TlsVersion::V1_3,
        }
    }
}

impl Default for UpstreamTls {
    fn default() -> Self {
        Self {
            certificate: None,
            validation: None,
            subject_alt_names: Vec::new(),
            sni: "".into(),
            auto_sni: false,
            auto_san_validation: false,
            alpn: Vec::new(),
            min_version: TlsVersion::V1_2,
            max_version: TlsVersion::V1_3,
        }
    }
}
