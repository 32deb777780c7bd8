//! What a port speaks: from `appProtocol`, the port's name, or found out by looking at the bytes.

/// Protocol of a service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// gRPC-Web.
    GrpcWeb,
    /// TLS that is passed through, routed by SNI.
    Tls,
    /// Opaque bytes.
    Tcp,
    /// Not proxied.
    Udp,
    /// To be detected.
    Auto,
}

/// Ports whose servers speak first: detection would wait for ever.
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

impl Protocol {
    /// The protocol of a Kubernetes service port: transport, then `appProtocol`, then the name's prefix.
    pub fn select(transport: Option<&str>, app: Option<&str>, name: &str, port: u16) -> Self {
        if transport == Some("UDP") || transport == Some("SCTP") {
            return Self::Udp;
        }
        let known = match app {
            Some("kubernetes.io/h2c") => Some(Self::Http2),
            Some("kubernetes.io/ws") => Some(Self::Http),
            Some("kubernetes.io/wss") => Some(Self::Tls),
            Some(app) => Self::parse(app).or_else(|| Self::of_name(name)),
            None => Self::of_name(name),
        };
        let detected = if SERVER_FIRST.contains(&port) { Self::Tcp } else { Self::Auto };
        known.unwrap_or(detected)
    }

    fn of_name(name: &str) -> Option<Self> {
        if name.to_ascii_lowercase().starts_with("grpc-web") {
            return Some(Self::GrpcWeb);
        }
        Self::parse(name.split('-').next().unwrap_or_default())
    }

    /// A protocol by its name, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "http" => Self::Http,
            "http2" | "h2c" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "https" | "tls" => Self::Tls,
            "tcp" | "mongo" | "mysql" | "redis" => Self::Tcp,
            "udp" => Self::Udp,
            _ => return None,
        })
    }

    /// HTTP of any version.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// HTTP/2 by declaration.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }
}
