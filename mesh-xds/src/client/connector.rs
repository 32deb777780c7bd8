//! How the client reaches a server: TCP, TLS from a rustls config, or a Unix socket.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use http::Uri;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use super::ads::ClientError;

/// A byte stream to a server.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `http://host:port`: gRPC without TLS.
    Http(Uri),
    /// `https://host:port`: gRPC over TLS.
    Https(Uri),
    /// `unix:///path`: gRPC over a Unix socket.
    Unix(PathBuf),
}

impl Target {
    /// Reads a URI.
    ///
    /// # Errors
    /// [`ClientError::Target`] when it is none of the three forms.
    pub fn parse(uri: &str) -> Result<Self, ClientError> {
        let refuse = |message: &str| ClientError::Target { uri: uri.to_owned(), message: message.to_owned() };
        if let Some(path) = uri.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(refuse("has no path")) } else { Ok(Self::Unix(path.into())) };
        }
        let parsed: Uri = uri.parse().map_err(|e: http::uri::InvalidUri| refuse(&e.to_string()))?;
        match (parsed.scheme_str(), parsed.authority()) {
            (Some("http"), Some(_)) => Ok(Self::Http(parsed)),
            (Some("https"), Some(_)) => Ok(Self::Https(parsed)),
            _ => Err(refuse("is not http://host:port, https://host:port or unix:///path")),
        }
    }

    /// The authority that requests name.
    pub(super) fn authority(&self) -> &str {
        match self {
            Self::Http(uri) | Self::Https(uri) => uri.authority().map_or("localhost", |a| a.as_str()),
            Self::Unix(_) => "localhost",
        }
    }

    fn address(&self) -> (String, u16) {
        let (uri, default) = match self {
            Self::Http(uri) => (uri, 80),
            Self::Https(uri) => (uri, 443),
            Self::Unix(_) => return (String::new(), 0),
        };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        (host, uri.port_u16().unwrap_or(default))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(uri) | Self::Https(uri) => write!(f, "{uri}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Opens byte streams to targets. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    connect: Arc<dyn Fn(Target) -> Connecting + Send + Sync>,
}

impl Connector {
    /// `http` and `unix` targets only; an `https` target is refused.
    #[must_use]
    pub fn plaintext() -> Self {
        Self::new(|target| async move {
            match target {
                Target::Https(uri) => Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("{uri}: no TLS configuration was given"),
                )),
                other => plain(other).await,
            }
        })
    }

    /// TLS for `https` targets; `http` and `unix` targets stay plain.
    ///
    /// The configuration is used as it is, but that it offers ALPN `h2`. Rotation works through its certificate
    /// resolver and verifier. The server is expected to be `server_name`, or the target's host.
    #[must_use]
    pub fn tls(config: Arc<ClientConfig>, server_name: Option<ServerName<'static>>) -> Self {
        let config = if config.alpn_protocols.is_empty() {
            let mut config = ClientConfig::clone(&config);
            config.alpn_protocols = vec![b"h2".to_vec()];
            Arc::new(config)
        } else {
            config
        };
        let connector = TlsConnector::from(config);
        Self::new(move |target| {
            let (connector, server_name) = (connector.clone(), server_name.clone());
            async move {
                if !matches!(target, Target::Https(_)) {
                    return plain(target).await;
                }
                let invalid = |e| io::Error::new(io::ErrorKind::InvalidInput, e);
                let name = match server_name {
                    Some(name) => name,
                    None => ServerName::try_from(target.address().0).map_err(invalid)?,
                };
                let tcp = plain(target).await?;
                Ok(Box::new(connector.connect(name, tcp).await?) as Box<dyn Io>)
            }
        })
    }

    /// Any other way to reach a target.
    pub fn new<F, R>(connect: F) -> Self
    where
        F: Fn(Target) -> R + Send + Sync + 'static,
        R: Future<Output = io::Result<Box<dyn Io>>> + Send + 'static,
    {
        Self { connect: Arc::new(move |target| Box::pin(connect(target))) }
    }

    pub(super) fn connect(&self, target: Target) -> Connecting {
        (self.connect)(target)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

async fn plain(target: Target) -> io::Result<Box<dyn Io>> {
    if let Target::Unix(path) = &target {
        return Ok(Box::new(UnixStream::connect(path).await?));
    }
    let stream = TcpStream::connect(target.address()).await?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        assert_eq!(Target::parse("unix:///run/xds").unwrap(), Target::Unix("/run/xds".into()));
        assert_eq!(Target::parse("http://[::1]:15010").unwrap().address(), ("::1".to_owned(), 15010));
        assert_eq!(Target::parse("https://istiod.istio-system.svc:15012").unwrap().address().1, 15012);
        for bad in ["", "unix:", "istiod:15010", "ftp://x", "http://"] {
            assert_eq!(Target::parse(bad).unwrap_err().reason(), "target", "{bad}");
        }
    }
}
