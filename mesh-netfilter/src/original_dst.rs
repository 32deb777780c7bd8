//! Where a captured connection was going.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use nix::errno::Errno;
use socket2::SockRef;

/// Where an accepted connection was going before it was handed to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// It was captured: it was going to this address. A v4-mapped address is given as IPv4.
    Redirected(SocketAddr),
    /// It was going to us: the address is our own.
    Direct(SocketAddr),
}

impl Destination {
    /// The address the peer wanted.
    pub const fn address(self) -> SocketAddr {
        match self {
            Self::Redirected(address) | Self::Direct(address) => address,
        }
    }

    /// Whether the connection was captured.
    pub const fn is_redirected(self) -> bool {
        matches!(self, Self::Redirected(_))
    }
}

/// Something that knows where an accepted connection was going. A proxy takes this instead of asking the kernel itself,
/// so that it can be tested without one.
pub trait OriginalDst: Send + Sync {
    /// Where the connection on this socket was going.
    ///
    /// # Errors
    /// When the socket is not connected any more, or the kernel refuses.
    fn original_dst(&self, socket: &dyn AsFd) -> io::Result<Destination>;
}

/// Asks connection tracking: for connections captured by REDIRECT.
#[derive(Debug, Clone, Copy, Default)]
pub struct Redirected;

impl OriginalDst for Redirected {
    fn original_dst(&self, socket: &dyn AsFd) -> io::Result<Destination> {
        original_dst(&socket.as_fd())
    }
}

/// Takes the socket's own address: TPROXY leaves the packet as it was, so the local address is the destination. What
/// came to `listener` itself is direct.
#[derive(Debug, Clone, Copy)]
pub struct Transparent {
    /// The port the proxy listens on.
    pub listener: u16,
}

impl OriginalDst for Transparent {
    fn original_dst(&self, socket: &dyn AsFd) -> io::Result<Destination> {
        let local = local_address(&SockRef::from(&socket.as_fd()))?;
        Ok(if local.port() == self.listener {
            Destination::Direct(local)
        } else {
            Destination::Redirected(local)
        })
    }
}

/// Always the same answer, for tests.
#[derive(Debug, Clone, Copy)]
pub struct Fixed(pub Destination);

impl OriginalDst for Fixed {
    fn original_dst(&self, _: &dyn AsFd) -> io::Result<Destination> {
        Ok(self.0)
    }
}

/// Where the connection on this socket was going, by connection tracking (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`).
///
/// The kernel also answers for connections that were not redirected, with the local address; and for those that it does
/// not track it answers with an error. Both are [`Destination::Direct`].
///
/// # Errors
/// When the socket is not connected any more, or is no IP socket.
pub fn original_dst(socket: &impl AsFd) -> io::Result<Destination> {
    let socket = SockRef::from(socket);
    let local = local_address(&socket)?;
    // A v4-mapped connection on an IPv6 socket is an IPv4 flow: only the IPv4 option knows it.
    let asked = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = match asked {
        Ok(address) => address.as_socket().map(canonical),
        Err(error) if unknown(&error) => None,
        Err(error) => return Err(error),
    };
    Ok(match original {
        Some(original) if !same(original, local) => Destination::Redirected(original),
        _ => Destination::Direct(local),
    })
}

/// Not tracked, or no address translation in this kernel.
fn unknown(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::ENOPROTOOPT | Errno::ENOTCONN))
}

fn local_address(socket: &SockRef<'_>) -> io::Result<SocketAddr> {
    let not_ip = || io::Error::new(io::ErrorKind::InvalidInput, "not an IP socket");
    socket.local_addr()?.as_socket().map(canonical).ok_or_else(not_ip)
}

/// IPv4 where the address is v4-mapped.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, address.port())),
        IpAddr::V6(_) => address,
    }
}

/// Scope and flow information do not count.
fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip() == b.ip() && a.port() == b.port()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn accepted(bind: &str, connect: impl Fn(u16) -> String) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(bind).expect("a listener");
        let port = listener.local_addr().expect("its address").port();
        let client = TcpStream::connect(connect(port)).expect("a connection");
        (listener.accept().expect("the other end").0, client)
    }

    #[test]
    fn a_direct_connection_is_told_apart() {
        let (server, _client) = accepted("127.0.0.1:0", |port| format!("127.0.0.1:{port}"));
        let local = server.local_addr().expect("its address");
        assert_eq!(Redirected.original_dst(&server).ok(), Some(Destination::Direct(local)));
        assert_eq!(
            Transparent { listener: local.port() }.original_dst(&server).ok(),
            Some(Destination::Direct(local))
        );
        let transparent = Transparent { listener: 1 }.original_dst(&server).ok();
        assert_eq!(transparent, Some(Destination::Redirected(local)));
    }

    #[test]
    fn a_mapped_address_is_ipv4() {
        let (server, _client) = accepted("[::]:0", |port| format!("127.0.0.1:{port}"));
        let destination = original_dst(&server).expect("an answer");
        assert!(destination.address().is_ipv4() && !destination.is_redirected(), "{destination:?}");
    }

    #[test]
    fn other_sockets_are_refused() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert!(original_dst(&socket).is_err());
    }
}
