//! Which server, whom to trust, and who asks: read completely before the first packet.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::Uri;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use super::error::KubernetesError;

/// Where Kubernetes mounts a pod's service account.
pub(super) const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Everything needed to talk to one API server.
pub(crate) struct Connection {
    /// The server.
    pub(super) server: Server,
    /// TLS; `None` for `http://`, which `kubectl proxy` speaks on loopback.
    pub(super) tls: Option<Tls>,
    /// Bearer token.
    pub(super) token: Option<Token>,
    /// Namespace of the context. Default: `default`.
    pub(crate) namespace: String,
}

/// The address of an API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// Name or address, without the brackets of IPv6.
    pub(super) host: String,
    /// Port. Default: that of the scheme.
    pub(super) port: u16,
    /// Path in front of every request; without a slash at its end, mostly empty.
    pub(super) prefix: String,
    /// `https`?
    pub(super) https: bool,
}

/// How the connection is protected.
pub(super) struct Tls {
    /// The name that the server's certificate must carry.
    pub(super) name: ServerName<'static>,
    /// Roots, and the client's own certificate if it has one.
    pub(super) config: Arc<ClientConfig>,
}

/// A secret that no message shows.
pub(super) struct Token(String);

impl Token {
    /// A token, if the text holds one.
    pub(super) fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The value of an `authorization` header, marked as sensitive; `None` if no header can carry it.
    pub(super) fn header(&self) -> Option<http::HeaderValue> {
        let mut value = http::HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl Server {
    /// Read `https://host[:port][/prefix]` or `http://…`; the error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{text:?} is not a URL: {error}"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("{text:?} must begin with https:// or http://")),
        };
        let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
            return Err(format!("{text:?} names no host"));
        };
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err("a user or a query has no place in the URL".to_owned());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { host, port, prefix: uri.path().trim_end_matches('/').to_owned(), https })
    }

    /// `host:port`, with brackets around an IPv6 address.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.prefix)
    }
}

/// PEM with the field that it came from, for messages.
pub(super) struct Pem {
    /// File in which the field stands.
    pub(super) file: PathBuf,
    /// The field.
    pub(super) field: String,
    /// The text.
    pub(super) bytes: Vec<u8>,
}

impl Pem {
    fn wrong(&self, message: impl Into<String>) -> KubernetesError {
        KubernetesError::Field { file: self.file.clone(), field: self.field.clone(), message: message.into() }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, KubernetesError> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&self.bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| self.wrong(format!("not PEM: {error}")))?;
        if certificates.is_empty() {
            return Err(self.wrong("holds no certificate"));
        }
        Ok(certificates)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, KubernetesError> {
        PrivateKeyDer::from_pem_slice(&self.bytes)
            .map_err(|error| self.wrong(format!("holds no private key: {error}")))
    }
}

impl Tls {
    /// TLS that trusts `roots` alone and shows `client` (certificate, key) when asked.
    pub(super) fn new(
        name: ServerName<'static>,
        roots: &Pem,
        client: Option<(Pem, Pem)>,
    ) -> Result<Self, KubernetesError> {
        let mut store = RootCertStore::empty();
        for certificate in roots.certificates()? {
            store
                .add(certificate)
                .map_err(|error| roots.wrong(format!("holds a certificate that is not usable: {error}")))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| roots.wrong(error.to_string()))?
            .with_root_certificates(store);
        let mut config = match client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(certificate.certificates()?, key.key()?)
                .map_err(|error| certificate.wrong(format!("does not fit its key: {error}")))?,
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { name, config: Arc::new(config) })
    }
}

/// Bytes of a file that `field` names.
pub(super) fn read(file: &Path, field: &str) -> Result<Vec<u8>, KubernetesError> {
    std::fs::read(file).map_err(|source| KubernetesError::Unreadable {
        file: file.to_owned(),
        field: field.to_owned(),
        source,
    })
}

/// The connection of a pod: its service account in `folder`, the server from the environment.
///
/// # Errors
/// [`KubernetesError::NoConfiguration`] outside a cluster, else the variable or file that cannot be used.
pub(super) fn in_cluster(
    variable: impl Fn(&str) -> Option<String>,
    folder: &Path,
) -> Result<Connection, KubernetesError> {
    let host = variable("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty());
    let host = host.ok_or(KubernetesError::NoConfiguration)?;
    let port = match variable("KUBERNETES_SERVICE_PORT") {
        None => 443,
        Some(text) => text.parse().map_err(|_| KubernetesError::Variable {
            name: "KUBERNETES_SERVICE_PORT",
            message: format!("{text:?} is not a port"),
        })?,
    };
    let name = ServerName::try_from(host.clone()).map_err(|_| KubernetesError::Variable {
        name: "KUBERNETES_SERVICE_HOST",
        message: format!("{host:?} is neither a DNS name nor an address"),
    })?;
    let file = folder.join("ca.crt");
    let roots = Pem { bytes: read(&file, "")?, field: "ca.crt".to_owned(), file };
    let token_file = folder.join("token");
    let token = read(&token_file, "")?;
    let token = Token::new(&String::from_utf8_lossy(&token)).ok_or_else(|| KubernetesError::Field {
        file: token_file,
        field: "token".to_owned(),
        message: "is empty".to_owned(),
    })?;
    let namespace = std::fs::read_to_string(folder.join("namespace")).unwrap_or_default();
    let namespace = namespace.trim();
    Ok(Connection {
        server: Server { host, port, prefix: String::new(), https: true },
        tls: Some(Tls::new(name, &roots, None)?),
        token: Some(token),
        namespace: if namespace.is_empty() { "default" } else { namespace }.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers() {
        let server = |text: &str| Server::parse(text).unwrap();
        assert_eq!(server("https://api.example").to_string(), "https://api.example:443");
        assert_eq!(server("https://[::1]:6443/").authority(), "[::1]:6443");
        assert_eq!(server("http://localhost:8001/k8s/clusters/c1/").prefix, "/k8s/clusters/c1");
        for (text, why) in [
            ("api.example:443", "must begin with"),
            ("ftp://api.example", "must begin with"),
            ("https://me@api.example", "no place in the URL"),
            ("https://api.example/?a=b", "no place in the URL"),
            ("https://", "is not a URL"),
            ("", "is not a URL"),
        ] {
            let error = Server::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_pods_own_service_account() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let ask = |host: &'static str, port: &'static str| {
            let variable = move |name: &str| match name {
                "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
                "KUBERNETES_SERVICE_PORT" => Some(port.to_owned()),
                _ => None,
            };
            in_cluster(variable, folder.path()).map_err(|error| error.to_string())
        };
        let error = |host, port| ask(host, port).err().unwrap();
        assert!(error("", "443").contains("no Kubernetes cluster is configured"));
        assert!(error("10.0.0.1", "https").contains("KUBERNETES_SERVICE_PORT: \"https\""));
        assert!(error("a b", "443").contains("KUBERNETES_SERVICE_HOST: \"a b\""));
        assert!(error("10.0.0.1", "443").contains("ca.crt"));
        file("ca.crt", "nothing");
        file("token", "\n");
        assert!(error("10.0.0.1", "443").contains("field `token`: is empty"));
        file("token", "secret\n");
        assert!(error("10.0.0.1", "443").contains("field `ca.crt`: holds no certificate"));
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::new(["x".to_owned()]).unwrap().self_signed(&key).unwrap();
        file("ca.crt", &root.pem());
        let connection = ask("fd00::1", "6443").ok().unwrap();
        assert_eq!(connection.server.to_string(), "https://[fd00::1]:6443");
        assert_eq!(connection.namespace, "default");
        let header = connection.token.unwrap().header().unwrap();
        assert!(header == "Bearer secret" && !format!("{header:?}").contains("secret"));
        file("namespace", "shop");
        assert_eq!(ask("fd00::1", "6443").ok().unwrap().namespace, "shop");
    }
}
