//! Istio's certificate service, `istio.v1.auth.IstioCertificateService`: both ends.

mod client;
mod crl_file;
mod fetcher;
mod pb;
mod server;

#[cfg(test)]
mod tests;

pub(crate) use self::client::chain_of;
pub use self::{
    client::{BearerToken, IstioCaClient, IstioCaError, NoToken, TokenFile},
    fetcher::IstioCaFetcher,
    pb::{CertificateServiceServer, IstioCertificateRequest, IstioCertificateResponse, SERVICE_NAME},
    server::IstioCaServer,
};
