//! A pod and its neighbourhood: what is outside, and a virtual machine behind the pod, each a network namespace at the end of
//! a cable; with somebody listening wherever a connection may end, who says which port it came to.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::channel;
use std::time::Duration;

use mesh_netfilter::net::{Owner, Protocol};
use mesh_netfilter::ruleset::{Chain, Hook, Match, Rule, TableKind, Target};
use mesh_netfilter::trace::{Direction, Fate, Packet, Verdict};
use mesh_netfilter::{Interception, Netlink, Ruleset};
use socket2::{Domain, Socket, Type};

use crate::netns::{Space, as_owner};
use crate::strategies::{MACHINE_V4, MACHINE_V6, PEER_V4, PEER_V6, POD_V4, POD_V6};

/// Where everything ends that leaves the pod.
const ELSEWHERE: u16 = 9999;
/// Nothing here takes longer, unless packets are lost.
const PATIENCE: Duration = Duration::from_secs(2);
/// Where losing packets is allowed, less is waited for.
const IMPATIENCE: Duration = Duration::from_millis(150);

/// Who connects again and again, while packets may be lost, waits hardly at all: answers take a tenth of that.
const GLANCE: Duration = Duration::from_millis(50);

/// How a connection or datagram ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Somebody on this port answered.
    Port(u16),
    /// Nobody is there.
    Refused,
    /// No answer.
    Silence,
    /// The kernel refused to send.
    Error(i32),
}

/// The namespaces.
pub(crate) struct Pod {
    pub(crate) inside: Space,
    pub(crate) outside: Space,
    /// A virtual machine, for which the pod is the gateway.
    pub(crate) machine: Space,
}

impl Pod {
    /// Builds all; needs to be root, and `ip`.
    pub(crate) fn new() -> Result<Self, String> {
        let (inside, outside, machine) = (Space::new()?, Space::new()?, Space::new()?);
        outside.shell(&format!(
            "ip link add eth0 type veth peer name eth0 netns {}
             ip address add {PEER_V4}/24 dev eth0
             ip address add {PEER_V6}/64 dev eth0 nodad
             ip link set eth0 up
             for net in 198.51.100.0/24 203.0.113.0/24 1.1.1.1 9.9.0.1; do ip route add local $net dev lo; done
             for net in 2001:db8::/32 2001:4860::/32 ::127.0.0.53; do ip -6 route add local $net dev lo; done
             ip route add {MACHINE_V4}/32 via {POD_V4}
             ip -6 route add {MACHINE_V6}/128 via {POD_V6}",
            inside.path
        ))?;
        inside.shell(&format!(
            "ip address add {POD_V4}/24 dev eth0
             ip address add {POD_V6}/64 dev eth0 nodad
             ip link set eth0 up
             ip route add default via {PEER_V4}
             ip -6 route add default via {PEER_V6}
             ip link add vnet0 type veth peer name eth0 netns {}
             ip address add 10.78.0.1/24 dev vnet0
             ip address add fd78::1/64 dev vnet0 nodad
             ip link set vnet0 up
             echo 1 > /proc/sys/net/ipv4/ip_forward
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
            machine.path
        ))?;
        machine.shell(&format!(
            "ip address add {MACHINE_V4}/24 dev eth0
             ip address add {MACHINE_V6}/64 dev eth0 nodad
             ip link set eth0 up
             ip route add default via 10.78.0.1
             ip -6 route add default via fd78::1"
        ))?;
        outside.run(|| {
            let mut base = Chain::base(TableKind::Nat, Hook::Prerouting);
            for protocol in [Match::TCP, Match::UDP] {
                base.rules.push(Rule::new(vec![protocol], Target::Redirect { port: ELSEWHERE }));
            }
            let ruleset = Ruleset { chains: vec![base], ..Ruleset::default() };
            Netlink::open()
                .and_then(|mut kernel| kernel.apply(&ruleset))
                .map_err(|error| error.to_string())?;
            listen(ELSEWHERE, false)?;
            answer(&format!("[::]:{ELSEWHERE}"))
        })?;
        let pod = Self { inside, outside, machine };
        pod.settled()?;
        Ok(pod)
    }

    /// Waits until both ends of the cables answer in both families.
    fn settled(&self) -> Result<(), String> {
        let probe = |space: &Space, address: &str| {
            let target = SocketAddr::new(address.parse().expect("an address"), 1);
            (0..50).any(|_| space.run(move || connect(None, target, PATIENCE)) == Outcome::Port(ELSEWHERE))
        };
        let carries = |space| probe(space, PEER_V4) && probe(space, PEER_V6);
        if carries(&self.inside) && carries(&self.machine) {
            Ok(())
        } else {
            Err("the cables do not carry".to_owned())
        }
    }

    /// Where a packet is sent from.
    pub(crate) fn origin(&self, packet: &Packet) -> &Space {
        match (packet.direction, packet.interface.as_str()) {
            (Direction::Out, _) => &self.inside,
            (Direction::In, "vnet0") => &self.machine,
            (Direction::In, _) => &self.outside,
        }
    }

    /// Puts the proxy and the agent of this intent into the pod. They live as long as the test.
    pub(crate) fn serve(&self, intent: &Interception) -> Result<(), String> {
        let id = |owners: &[Owner]| match owners.first() {
            Some(Owner::Id(id) | Owner::Range(id, _)) => *id,
            _ => 1337,
        };
        let (uid, gid) = (id(&intent.proxy_uids), id(&intent.proxy_gids));
        let ports = [intent.outbound_port, intent.inbound_port];
        self.inside.run(move || {
            as_owner(uid, gid, || {
                ports.iter().try_for_each(|port| listen(*port, true))?;
                listen(15053, false)?;
                answer("127.0.0.1:15053")?;
                answer("[::1]:15053")
            })
        })
    }

    /// Sends what the packet describes, for real. An expected silence is not listened to for long.
    pub(crate) fn send(&self, packet: &Packet, expected: Outcome) -> Outcome {
        let patience = if expected == Outcome::Silence { IMPATIENCE } else { PATIENCE };
        let target = SocketAddr::new(packet.destination, packet.destination_port);
        let source = packet.source;
        let space = self.origin(packet);
        let packet = packet.clone();
        space.run(move || {
            as_owner(packet.uid.unwrap_or(0), packet.gid.unwrap_or(0), || match packet.protocol {
                Protocol::Tcp => connect(Some(source), target, patience),
                _ => ask(source, target, patience),
            })
        })
    }
}

/// What the kernel should do with a packet of this fate.
pub(crate) fn expected(packet: &Packet, fate: Fate, intent: &Interception) -> Outcome {
    match fate.verdict {
        Verdict::Redirected { port } | Verdict::Delivered { port } => Outcome::Port(port),
        Verdict::Dropped => Outcome::Silence,
        Verdict::Accepted => {
            let own = |text: &str| text.parse::<IpAddr>().is_ok_and(|own| own == packet.destination);
            let local = packet.destination.is_loopback() || own(POD_V4) || own(POD_V6) || own("::6");
            let served =
                packet.protocol == Protocol::Tcp && [15001, 15006, 15053].contains(&packet.destination_port);
            match (local, served) {
                (false, _) => Outcome::Port(ELSEWHERE),
                (true, true) => Outcome::Port(packet.destination_port),
                // The refusal is an ICMP message in zone 0 about a datagram in another: it fits no connection.
                (true, false) if fate.zone != 0 && intent.drop_invalid => Outcome::Silence,
                (true, false) => Outcome::Refused,
            }
        }
    }
}

/// Accepts on this port of every address and says which it is.
fn listen(port: u16, transparent: bool) -> Result<(), String> {
    let make = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        if transparent {
            mesh_netfilter::sockets::make_transparent(&socket)?;
        }
        socket.bind(&SocketAddr::new("::".parse().expect("an address"), port).into())?;
        socket.listen(1024)?;
        Ok(socket.into())
    };
    let listener = make().map_err(|error| format!("port {port}: {error}"))?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(&port.to_be_bytes()));
        }
    });
    Ok(())
}

/// Answers datagrams with the port they came to.
fn answer(address: &str) -> Result<(), String> {
    let socket = UdpSocket::bind(address).map_err(|error| format!("{address}: {error}"))?;
    let port = socket.local_addr().map_err(|error| error.to_string())?.port();
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&port.to_be_bytes(), peer);
        }
    });
    Ok(())
}

fn outcome(result: std::io::Result<[u8; 2]>) -> Outcome {
    match result {
        Ok(port) => Outcome::Port(u16::from_be_bytes(port)),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Outcome::Refused,
        Err(error) => match error.raw_os_error() {
            Some(errno) if error.kind() != std::io::ErrorKind::WouldBlock => Outcome::Error(errno),
            _ => Outcome::Silence,
        },
    }
}

fn connect(source: Option<IpAddr>, target: SocketAddr, patience: Duration) -> Outcome {
    let domain = Domain::for_address(target);
    outcome((|| {
        let socket = Socket::new(domain, Type::STREAM, None)?;
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.connect_timeout(&target.into(), patience)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(patience))?;
        let mut port = [0; 2];
        stream.read_exact(&mut port)?;
        Ok(port)
    })())
}

fn ask(source: IpAddr, target: SocketAddr, patience: Duration) -> Outcome {
    outcome((|| {
        let socket = UdpSocket::bind(SocketAddr::new(source, 0))?;
        socket.set_read_timeout(Some(patience))?;
        socket.connect(target)?;
        socket.send(b"?")?;
        let mut port = [0; 2];
        socket.recv(&mut port)?;
        Ok(port)
    })())
}

/// An application's connection that must be captured; to be called inside the pod.
pub(crate) fn captured_connection() -> Outcome {
    let target = SocketAddr::new("1.1.1.1".parse().expect("an address"), 80);
    as_owner(1000, 1000, || connect(None, target, GLANCE))
}

/// A neighbour's connection to the pod that must be captured; to be called outside. Uncaptured it is refused.
pub(crate) fn captured_neighbour() -> Outcome {
    connect(None, SocketAddr::new(POD_V4.parse().expect("an address"), 8080), GLANCE)
}

/// Runs something in a thread of its own, so that what it changes about itself ends with it.
pub(crate) fn apart<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, result) = channel();
    std::thread::spawn(move || {
        let _ = send.send(run());
    });
    result.recv().expect("the thread did not panic")
}
