use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
};
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::server::IstioCaServer;

/// The service's full name.
pub const SERVICE_NAME: &str = "istio.v1.auth.IstioCertificateService";

pub(super) const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Asks for a certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// The PKCS#10 request, PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// The lifetime asked for, in seconds; zero or less means the CA's default.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// `CertSigner` and `ImpersonatedIdentity`, which node agents use.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<prost_types::Struct>,
}

/// Gives a certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateResponse {
    /// PEM texts: leaf first, then intermediates, root last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// The gRPC server around an [`IstioCaServer`], for `tonic::transport::Server::add_service`.
#[derive(Debug, Clone)]
pub struct CertificateServiceServer {
    inner: Arc<IstioCaServer>,
}

impl CertificateServiceServer {
    /// Serves this CA.
    pub fn new(inner: IstioCaServer) -> Self {
        Self { inner: Arc::new(inner) }
    }
}

impl NamedService for CertificateServiceServer {
    const NAME: &'static str = SERVICE_NAME;
}

/// Requests are one CSR of at most 64 KiB and a little metadata.
const MAX_REQUEST_BYTES: usize = 128 << 10;

type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl Service<http::Request<Body>> for CertificateServiceServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != CREATE_CERTIFICATE {
            return Box::pin(async { Ok(Status::unimplemented("no such method").into_http()) });
        }
        let method = CreateCertificate(self.inner.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(MAX_REQUEST_BYTES);
            Ok(grpc.unary(method, request).await)
        })
    }
}

struct CreateCertificate(Arc<IstioCaServer>);

impl UnaryService<IstioCertificateRequest> for CreateCertificate {
    type Response = IstioCertificateResponse;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        let server = self.0.clone();
        Box::pin(async move { server.create_certificate(request).await.map(Response::new) })
    }
}
