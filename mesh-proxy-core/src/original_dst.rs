//! Where a redirected connection wanted to go. A trait, so that everything is testable without a kernel.

use std::{fmt, io, net::SocketAddr};

use tokio::net::TcpStream;

/// Answers where a connection was going before it was redirected here.
pub trait OriginalDestination: Send + Sync + fmt::Debug + 'static {
    /// The original destination; `None` when the connection was not redirected (then its local address counts).
    ///
    /// # Errors
    /// Only when the kernel could not be asked; the connection is then closed.
    fn original_destination(&self, stream: &TcpStream) -> io::Result<Option<SocketAddr>>;
}

/// Nothing is ever redirected: the local address is the destination. Also right for TPROXY, where it is the original one.
#[derive(Debug, Clone, Copy, Default)]
pub struct NotRedirected;

impl OriginalDestination for NotRedirected {
    fn original_destination(&self, _stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
        Ok(None)
    }
}

/// Every connection was going to one address: for tests and for single-purpose proxies.
#[derive(Debug, Clone, Copy)]
pub struct Always(pub SocketAddr);

impl OriginalDestination for Always {
    fn original_destination(&self, _stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
        Ok(Some(self.0))
    }
}
