//! A real connection through the rules.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use mesh_netfilter::{Destination, Interception, OutboundRanges, net::Owner, original_dst};
use socket2::{Domain, Socket, Type};

use crate::Failure;

/// TEST-NET-1: routed by a default route, owned by nobody.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The proxy's own source address, whose port nobody listens on.
const OWN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// Which connection is made, and where it must arrive.
#[derive(Debug, Clone, Copy)]
struct Probe {
    name: &'static str,
    target: SocketAddr,
    listener: u16,
}

/// Makes a connection that the rules must redirect, and says which.
pub(crate) fn run(intent: &Interception, port: u16, timeout: Duration) -> Result<String, Failure> {
    let probe = choose(intent, nix::unistd::geteuid().as_raw(), port)?;
    let listener = listen(probe.listener).map_err(|error| {
        Failure::probe(format!(
            "port {} of this machine: {error} (is the proxy running already?)",
            probe.listener
        ))
    })?;
    // Dropping the sender ends the wait when the listener gives up.
    let (send, arrived) = mpsc::channel();
    let accept = std::thread::spawn(move || {
        let _ = send.send(listener.accept().and_then(|(stream, _)| original_dst(&stream)));
    });
    let connected = TcpStream::connect_timeout(&probe.target, timeout);
    let arrived = match &connected {
        Ok(_) => arrived.recv_timeout(timeout).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    };
    drop(accept);
    let Probe { name, target, listener } = probe;
    match arrived {
        Ok(Destination::Redirected(original)) if original == target => {
            Ok(format!("{name}: a connection to {target} arrived at port {listener}"))
        }
        Ok(other) => Err(Failure::probe(format!("{name}: a connection to {target} arrived as {other:?}"))),
        Err(error) => Err(Failure::probe(format!(
            "{name}: a connection to {target} did not arrive at port {listener}: {error}"
        ))),
    }
}

/// The connection that fits this user.
fn choose(intent: &Interception, uid: u32, port: u16) -> Result<Probe, Failure> {
    if intent.proxy_uids.iter().any(|owner| owner.contains(uid)) {
        let target = SocketAddr::from((OWN, port));
        return Ok(Probe { name: "as the proxy to its own pod", target, listener: intent.inbound_port });
    }
    let as_proxy = intent.proxy_uids.first().map_or_else(|| "the proxy".to_owned(), Owner::to_string);
    let address = match &intent.outbound {
        OutboundRanges::All => Some(ELSEWHERE),
        OutboundRanges::Only(nets) => nets.iter().find_map(|net| match net {
            ipnet::IpNet::V4(net) if !net.network().is_loopback() => {
                net.hosts().nth(1).or_else(|| Some(net.network()))
            }
            _ => None,
        }),
    };
    let captured = |address: &Ipv4Addr| {
        !intent.outbound_exclude.iter().any(|net| net.contains(&std::net::IpAddr::V4(*address)))
    };
    let Some(address) = address.filter(captured) else {
        return Err(Failure::probe(format!(
            "these rules capture no IPv4 destination of user {uid}; probe as user {as_proxy}"
        )));
    };
    let target = SocketAddr::from((address, port));
    Ok(Probe { name: "as an application to elsewhere", target, listener: intent.outbound_port })
}

/// A listener beside one that may be there, on the address to which the kernel redirects.
fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Also bounds how long `accept` waits.
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.listen(16)?;
    Ok(socket.into())
}
