//! Sockets and streams. All socket options of the data path are set here.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::config::TcpKeepalive;

mod relay;
mod stream;

pub(crate) use relay::{Ended, Moved, relay};
pub(crate) use stream::Stream;

/// Opens a listening socket. Must be called inside a runtime.
pub(crate) fn listen(
    address: SocketAddr,
    backlog: u32,
    share_port: bool,
    transparent: bool,
) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // `[::]` beside `0.0.0.0` on the same port.
        socket.set_only_v6(true)?;
    }
    if transparent {
        if address.is_ipv6() {
            socket.set_ip_transparent_v6(true)?;
        } else {
            socket.set_ip_transparent_v4(true)?;
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
}

/// Connects, from one of `bind`'s addresses of the same family if there is one.
pub(crate) async fn connect(
    to: SocketAddr,
    bind: &[IpAddr],
    keepalive: Option<TcpKeepalive>,
) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = bind.iter().find(|ip| ip.is_ipv4() == to.is_ipv4()) {
        // The port is chosen at connect time, so that many connections to different peers can share one.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).map_err(io::Error::from)?;
        socket.bind(SocketAddr::new(*from, 0))?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    if let Some(keepalive) = keepalive {
        let mut options = socket2::TcpKeepalive::new();
        if let Some(time) = keepalive.time {
            options = options.with_time(time);
        }
        if let Some(interval) = keepalive.interval {
            options = options.with_interval(interval);
        }
        if let Some(probes) = keepalive.probes {
            options = options.with_retries(probes);
        }
        socket2::SockRef::from(&stream).set_tcp_keepalive(&options)?;
    }
    Ok(stream)
}

/// IPv4 addresses mapped into IPv6 as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Errors after which accepting must pause, because they would repeat at once.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    use nix::errno::Errno;
    error.raw_os_error().is_some_and(|code| {
        [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM].iter().any(|e| *e as i32 == code)
    })
}
