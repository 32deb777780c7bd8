//! Probes of the application that the kubelet sends to the agent.
//!
//! Under STRICT mutual TLS the kubelet could not reach the application. The injector therefore rewrites its probes to
//! `/app-health/<container>/<kind>` on the agent's port and hands the originals over in ISTIO_KUBE_APP_PROBERS; the
//! agent calls the pod's own address from 127.0.0.6, which interception leaves alone.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use thiserror::Error;
use tokio::time::timeout;

use crate::http::{Outgoing, Reply, text};

/// Kinds of handlers, by the last path segment.
const KINDS: &[(&str, &[&str])] =
    &[("app-health", &["livez", "readyz", "startupz"]), ("app-lifecycle", &["prestopz", "poststartz"])];
/// Largest body of a probe's answer that is read.
const ANSWER_LIMIT: usize = 64 << 10;
/// Kubernetes' default timeout of a probe.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// Upper bound of a probe's timeout.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// The application's own probes, by rewritten path.
#[derive(Debug, Default)]
pub struct AppProbes {
    probes: BTreeMap<String, Probe>,
    target: Option<IpAddr>,
}

/// Why ISTIO_KUBE_APP_PROBERS was refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AppProbeError {
    /// The variable is not the JSON that the injector writes.
    #[error("ISTIO_KUBE_APP_PROBERS is not a map of probes: {0}")]
    Json(#[from] serde_json::Error),
    /// A key is no path of a rewritten probe.
    #[error("ISTIO_KUBE_APP_PROBERS: {path:?} is not /app-health/<container>/{{livez,readyz,startupz}}")]
    Path {
        /// The key.
        path: String,
    },
    /// An entry does not have exactly one handler.
    #[error("ISTIO_KUBE_APP_PROBERS: {path:?} has {count} handlers, one is needed")]
    Handlers {
        /// The key.
        path: String,
        /// How many it has.
        count: usize,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocketProbe>,
    grpc: Option<Grpc>,
    #[serde(default)]
    timeout_seconds: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    path: String,
    port: u16,
    #[serde(default)]
    host: String,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Option<Vec<NameValue>>,
}

#[derive(Debug, Deserialize)]
struct NameValue {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
struct TcpSocketProbe {
    port: u16,
}

#[derive(Debug, Deserialize)]
struct Grpc {
    port: u16,
    service: Option<String>,
}

impl AppProbes {
    /// Reads the variable; `target` is the pod's address.
    ///
    /// # Errors
    /// It is not what the injector writes.
    pub fn parse(variable: &str, target: IpAddr) -> Result<Self, AppProbeError> {
        if variable.trim().is_empty() {
            return Ok(Self::default());
        }
        let probes: BTreeMap<String, Probe> = serde_json::from_str(variable)?;
        for (path, probe) in &probes {
            if !is_probe_path(path) {
                return Err(AppProbeError::Path { path: path.clone() });
            }
            let count = usize::from(probe.http_get.is_some())
                + usize::from(probe.tcp_socket.is_some())
                + usize::from(probe.grpc.is_some());
            if count != 1 {
                return Err(AppProbeError::Handlers { path: path.clone(), count });
            }
        }
        Ok(Self { probes, target: Some(target) })
    }

    /// Runs the probe that was rewritten to `path`; 404 if there is none, 500 if it fails.
    pub async fn run(&self, path: &str, headers: &http::HeaderMap) -> Reply {
        let (Some(probe), Some(target)) = (self.probes.get(path), self.target) else {
            return text(StatusCode::NOT_FOUND, "no such probe\n");
        };
        let wait = match probe.timeout_seconds {
            0 => DEFAULT_TIMEOUT,
            seconds => Duration::from_secs(seconds).min(MAX_TIMEOUT),
        };
        match timeout(wait, probe.run(target, headers)).await {
            Ok(Ok(status)) => text(status, Bytes::new()),
            Ok(Err(error)) => {
                tracing::debug!(path, %error, "application probe failed");
                text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
            }
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("no answer within {wait:?}\n")),
        }
    }
}

fn is_probe_path(path: &str) -> bool {
    let mut parts = path.split('/');
    let (Some(""), Some(family), Some(container), Some(kind), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    !container.is_empty() && KINDS.iter().any(|(name, kinds)| *name == family && kinds.contains(&kind))
}

impl Probe {
    async fn run(&self, target: IpAddr, headers: &http::HeaderMap) -> io::Result<StatusCode> {
        let out = |port: u16| Outgoing {
            address: SocketAddr::new(target, port),
            source: Some(source_for(target)),
            limit: ANSWER_LIMIT,
        };
        if let Some(get) = &self.http_get {
            get.run(&out(get.port), headers).await
        } else if let Some(tcp) = &self.tcp_socket {
            out(tcp.port).connect().await.map(|_| StatusCode::OK)
        } else if let Some(grpc) = &self.grpc {
            grpc.run(&out(grpc.port)).await
        } else {
            Err(io::Error::other("the probe has no handler"))
        }
    }
}

/// The address that the sidecar's own inbound connections come from.
fn source_for(target: IpAddr) -> IpAddr {
    match target {
        IpAddr::V4(_) => Ipv4Addr::new(127, 0, 0, 6).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into(),
    }
}

impl HttpGet {
    async fn run(&self, out: &Outgoing, headers: &http::HeaderMap) -> io::Result<StatusCode> {
        let request = self.request(out.address, headers)?;
        let answer = if self.scheme.eq_ignore_ascii_case("https") {
            let name = rustls_pki_types::ServerName::IpAddress(out.address.ip().into());
            let connector = tokio_rustls::TlsConnector::from(insecure::config()?);
            let stream = connector.connect(name, out.connect().await?).await?;
            out.exchange(stream, request).await?
        } else {
            out.send(request).await?
        };
        Ok(answer.status())
    }

    fn request(&self, address: SocketAddr, probe: &http::HeaderMap) -> io::Result<Request<Full<Bytes>>> {
        let path = if self.path.starts_with('/') { self.path.clone() } else { format!("/{}", self.path) };
        let mut request = Request::get(path).body(Full::default()).map_err(io::Error::other)?;
        let headers = request.headers_mut();
        for (name, value) in probe {
            if !matches!(
                name,
                &header::HOST | &header::CONNECTION | &header::TRANSFER_ENCODING | &header::CONTENT_LENGTH
            ) {
                headers.append(name.clone(), value.clone());
            }
        }
        let mut host = if self.host.is_empty() { address.to_string() } else { self.host.clone() };
        for NameValue { name, value } in self.http_headers.iter().flatten() {
            if name.eq_ignore_ascii_case("host") {
                host.clone_from(value);
            } else {
                let name: HeaderName = name.parse().map_err(io::Error::other)?;
                headers.insert(name, HeaderValue::from_str(value).map_err(io::Error::other)?);
            }
        }
        headers.insert(header::HOST, HeaderValue::from_str(&host).map_err(io::Error::other)?);
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        Ok(request)
    }
}

impl Grpc {
    /// `grpc.health.v1.Health/Check`; healthy means SERVING.
    async fn run(&self, out: &Outgoing) -> io::Result<StatusCode> {
        let stream = TokioIo::new(out.connect().await?);
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .map_err(io::Error::other)?;
        let request = Request::post(format!("http://{}/grpc.health.v1.Health/Check", out.address))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Full::new(health_request(self.service.as_deref().unwrap_or_default())))
            .map_err(io::Error::other)?;
        let exchange = async {
            let (parts, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
            let body = Limited::new(body, out.limit).collect().await.map_err(io::Error::other)?;
            let status = body
                .trailers()
                .and_then(|t| t.get("grpc-status"))
                .or_else(|| parts.headers.get("grpc-status"));
            let status = status.and_then(|s| s.to_str().ok()).unwrap_or("2").to_owned();
            Ok::<_, io::Error>((status, body.to_bytes()))
        };
        tokio::pin!(exchange);
        let (status, body) = tokio::select! {
            biased;
            done = &mut exchange => done?,
            _ended = connection => exchange.await?,
        };
        if status != "0" {
            return Err(io::Error::other(format!("grpc-status {status}")));
        }
        match health_status(body) {
            Some(1) => Ok(StatusCode::OK),
            other => Err(io::Error::other(format!("health status {other:?}, not SERVING"))),
        }
    }
}

/// A length-prefixed `HealthCheckRequest{service = 1}`; names longer than 127 bytes use a two-byte length.
fn health_request(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(service.len() + 3);
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length > 0x7f {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(message);
    frame.into()
}

/// `status` of a length-prefixed `HealthCheckResponse{status = 1}`.
fn health_status(mut body: Bytes) -> Option<u8> {
    if body.remaining() < 5 || body.get_u8() != 0 {
        return None;
    }
    let length = usize::try_from(body.get_u32()).ok()?;
    match body.get(..length)? {
        [] => Some(0),
        [0x08, status] => Some(*status),
        _ => None,
    }
}

/// TLS without verification: what the kubelet does for probes of scheme HTTPS, to the pod's own address only.
mod insecure {
    use std::io;
    use std::sync::Arc;

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::CryptoProvider;
    use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

    #[derive(Debug)]
    struct AnyCertificate(Arc<CryptoProvider>);

    impl ServerCertVerifier for AnyCertificate {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls12_signature(
                message,
                cert,
                dss,
                &self.0.signature_verification_algorithms,
            )
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls13_signature(
                message,
                cert,
                dss,
                &self.0.signature_verification_algorithms,
            )
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }

    pub(super) fn config() -> io::Result<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Call, Handler, serve};
    use std::sync::Arc;
    use tokio::net::TcpListener;

    struct App;

    impl Handler for App {
        async fn call(self: Arc<Self>, call: Call) -> Reply {
            let host = call.headers.get("host").and_then(|h| h.to_str().ok()).unwrap_or_default();
            let good =
                call.path == "/ok" && host == "app.example" && call.peer.ip() == IpAddr::from([127, 0, 0, 6]);
            text(if good { StatusCode::OK } else { StatusCode::IM_A_TEAPOT }, host.to_owned())
        }
    }

    #[tokio::test]
    async fn http_and_tcp_probes_are_forwarded() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(serve(listener, Arc::new(App)));
        let variable = format!(
            r#"{{"/app-health/app/readyz":{{"httpGet":{{"path":"ok","port":{port},"scheme":"HTTP",
                "httpHeaders":[{{"name":"Host","value":"app.example"}}]}},"timeoutSeconds":5}},
               "/app-health/app/livez":{{"tcpSocket":{{"port":{port}}}}},
               "/app-health/app/startupz":{{"httpGet":{{"path":"/no","port":{port}}}}},
               "/app-health/off/livez":{{"tcpSocket":{{"port":1}}}}}}"#
        );
        let probes = AppProbes::parse(&variable, IpAddr::from([127, 0, 0, 1])).unwrap();
        let headers = http::HeaderMap::new();
        for (path, status) in [
            ("/app-health/app/readyz", 200),
            ("/app-health/app/livez", 200),
            ("/app-health/app/startupz", 418),
            ("/app-health/off/livez", 500),
            ("/app-health/app/other", 404),
        ] {
            assert_eq!(probes.run(path, &headers).await.status().as_u16(), status, "{path}");
        }
        server.abort();
    }

    #[test]
    fn what_the_injector_cannot_have_written_is_refused() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        for bad in [
            "[]",
            r#"{"/app-health/a/livez":{}}"#,
            r#"{"/app-health/a/livez":{"tcpSocket":{"port":"http"}}}"#,
            r#"{"/app-health//livez":{"tcpSocket":{"port":1}}}"#,
            r#"{"/app-health/a/prestopz":{"tcpSocket":{"port":1}}}"#,
            r#"{"/app-health/a/livez":{"tcpSocket":{"port":1},"grpc":{"port":1}}}"#,
        ] {
            assert!(AppProbes::parse(bad, ip).is_err(), "{bad}");
        }
        assert!(AppProbes::parse("", ip).is_ok());
    }

    #[test]
    fn health_messages() {
        assert_eq!(health_request("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(health_request(&"x".repeat(200)).get(5..8), Some(&[0x0a, 0xc8, 1][..]));
        assert_eq!(health_status(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1])), Some(1));
        assert_eq!(health_status(Bytes::from_static(&[0, 0, 0, 0, 0])), Some(0));
        assert_eq!(health_status(Bytes::from_static(&[0, 0, 0, 0, 9, 8, 1])), None);
    }
}
