use std::collections::BTreeMap;

use bytes::Bytes;

pub(super) const SERVICE_NAME: &str = "SpiffeWorkloadAPI";
pub(super) const FETCH_X509_SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
pub(super) const FETCH_X509_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchX509Bundles";
pub(super) const FETCH_JWT_SVID: &str = "/SpiffeWorkloadAPI/FetchJWTSVID";
pub(super) const FETCH_JWT_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchJWTBundles";
pub(super) const VALIDATE_JWT_SVID: &str = "/SpiffeWorkloadAPI/ValidateJWTSVID";

/// `X509SVIDRequest`, `X509BundlesRequest` and `JWTBundlesRequest`: all empty.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) svids: Vec<X509Svid>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) crl: Vec<Bytes>,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub(super) federated_bundles: BTreeMap<String, Bytes>,
}

/// Holds a private key: overwritten when dropped, no derived `Debug`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct X509Svid {
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) x509_svid: Bytes,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) x509_svid_key: Vec<u8>,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) bundle: Bytes,
    #[prost(string, tag = "5")]
    pub(super) hint: String,
}

impl Drop for X509Svid {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.x509_svid_key);
    }
}

impl std::fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("X509Svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct X509BundlesResponse {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(super) crl: Vec<Bytes>,
    #[prost(btree_map = "string, bytes", tag = "2")]
    pub(super) bundles: BTreeMap<String, Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct JwtSvidRequest {
    #[prost(string, repeated, tag = "1")]
    pub(super) audience: Vec<String>,
    #[prost(string, tag = "2")]
    pub(super) spiffe_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct JwtSvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) svids: Vec<JwtSvidMessage>,
}

/// Holds a token: no derived `Debug`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct JwtSvidMessage {
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    #[prost(string, tag = "2")]
    pub(super) svid: String,
    #[prost(string, tag = "3")]
    pub(super) hint: String,
}

impl std::fmt::Debug for JwtSvidMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtSvidMessage").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct JwtBundlesResponse {
    #[prost(btree_map = "string, bytes", tag = "1")]
    pub(super) bundles: BTreeMap<String, Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct ValidateJwtSvidRequest {
    #[prost(string, tag = "1")]
    pub(super) audience: String,
    #[prost(string, tag = "2")]
    pub(super) svid: String,
}

impl std::fmt::Debug for ValidateJwtSvidRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ValidateJwtSvidRequest").field("audience", &self.audience).finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ValidateJwtSvidResponse {
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    #[prost(message, optional, tag = "2")]
    pub(super) claims: Option<prost_types::Struct>,
}
