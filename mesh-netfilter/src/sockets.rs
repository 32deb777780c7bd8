//! What a transparent proxy's sockets need: foreign addresses, and marks.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use socket2::{Domain, SockRef};

/// Lets the socket accept connections to, and connect from, addresses that are not this machine's (`IP_TRANSPARENT`), as
/// TPROXY needs. An IPv6 socket gets it for IPv4 too.
///
/// # Errors
/// Without `CAP_NET_ADMIN` (a proxy that is not root needs it as an ambient capability), or when it is no IP socket.
pub fn make_transparent(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    on_each_family(&socket, "IP_TRANSPARENT", |v6| {
        if v6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
    })
}

/// Lets the socket be bound to addresses that this machine does not have (yet) (`IP_FREEBIND`). An IPv6 socket gets it for
/// IPv4 too.
///
/// # Errors
/// When it is no IP socket.
pub fn make_free_bind(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    on_each_family(&socket, "IP_FREEBIND", |v6| {
        if v6 { socket.set_freebind_v6(true) } else { socket.set_freebind_v4(true) }
    })
}

/// Marks every packet that the socket sends (`SO_MARK`).
///
/// # Errors
/// Without `CAP_NET_ADMIN` or `CAP_NET_RAW`.
pub fn set_mark(socket: &impl AsFd, mark: u32) -> io::Result<()> {
    SockRef::from(socket).set_mark(mark).map_err(|error| named(error, "SO_MARK"))
}

fn on_each_family(
    socket: &SockRef<'_>,
    option: &str,
    set: impl Fn(bool) -> io::Result<()>,
) -> io::Result<()> {
    match socket.domain()? {
        Domain::IPV4 => set(false),
        // An IPv6 socket may carry IPv4 connections.
        Domain::IPV6 => set(true).and_then(|()| set(false)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not an IP socket")),
    }
    .map_err(|error| named(error, option))
}

fn named(error: io::Error, option: &str) -> io::Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => {
            io::Error::new(io::ErrorKind::PermissionDenied, format!("{option}: CAP_NET_ADMIN is missing"))
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_socket_binds_anywhere() {
        for (domain, address) in [(Domain::IPV4, "192.0.2.1:0"), (Domain::IPV6, "[::ffff:192.0.2.1]:0")] {
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
            let address: std::net::SocketAddr = address.parse().expect("an address");
            assert!(socket.bind(&address.into()).is_err());
            make_free_bind(&socket).expect("nobody is refused that");
            socket.bind(&address.into()).expect("it is free");
        }
        let (other, _) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert!(make_transparent(&other).is_err());
    }
}
