use rustls::CommonState;

use crate::x509::PeerIdentity;

/// Who the peer of a live connection is; `None` before the handshake is over, or when the peer presented no X.509-SVID
/// (an optional client certificate, a server known by its DNS name).
///
/// Works for both ends: `rustls::ServerConnection` and `rustls::ClientConnection` dereference to `CommonState`. Only
/// for connections of this module's configurations, which verified the chain during the handshake.
pub fn peer_identity(connection: &CommonState) -> Option<PeerIdentity> {
    if connection.is_handshaking() {
        return None;
    }
    PeerIdentity::of_verified_chain(connection.peer_certificates()?).ok()
}

/// What a live connection agreed on, for logs and admin pages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionFacts {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: Option<&'static str>,
    /// The key exchange group as IANA names it, for example `X25519MLKEM768`.
    pub key_exchange: Option<String>,
    /// The cipher suite as IANA names it.
    pub cipher: Option<String>,
    /// The application protocol.
    pub alpn: Option<Vec<u8>>,
    /// The verified peer.
    pub peer: Option<PeerIdentity>,
}

impl ConnectionFacts {
    /// Reads the facts of a connection whose handshake is over.
    pub fn of(connection: &CommonState) -> Self {
        let version = connection.protocol_version().and_then(|version| match version {
            rustls::ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
            rustls::ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
            _ => None,
        });
        Self {
            version,
            key_exchange: connection
                .negotiated_key_exchange_group()
                .map(|group| format!("{:?}", group.name())),
            cipher: connection.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite())),
            alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
            peer: peer_identity(connection),
        }
    }
}
