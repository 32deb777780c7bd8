//! TCP segments that fit no connection, made by hand: what is left of a connection that the kernel has forgotten, or was
//! never there.

use std::collections::HashSet;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use mesh_netfilter::trace::Packet;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::{Space, as_owner};
use crate::pod::Pod;

/// Segments that must arrive are waited for this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Segments that must not arrive would have by then.
const IMPATIENCE: Duration = Duration::from_millis(40);
/// A header without options.
const HEADER: usize = 20;
const TCP: i32 = 6;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags(u8);

impl Flags {
    /// A lone acknowledgement, an answer to nothing, a reset of nothing, and nonsense.
    pub(crate) const ALL: [Self; 4] = [Self(0x10), Self(0x12), Self(0x04), Self(0x03)];
}

/// The numbers of segments that arrived anywhere.
#[derive(Debug, Default)]
struct Arrived {
    numbers: Mutex<HashSet<u32>>,
    changed: Condvar,
}

/// Watches all namespaces of a pod for segments.
pub(crate) struct Crafted<'a> {
    pod: &'a Pod,
    arrived: Arc<Arrived>,
    next: AtomicU32,
}

impl<'a> Crafted<'a> {
    /// Begins to watch.
    pub(crate) fn new(pod: &'a Pod) -> Result<Self, String> {
        let arrived = Arc::new(Arrived::default());
        // A lone acknowledgement shall not count as the middle of a connection.
        pod.inside.shell("echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose")?;
        for space in [&pod.inside, &pod.outside, &pod.machine] {
            watch(space, &arrived)?;
        }
        Ok(Self { pod, arrived, next: AtomicU32::new(0x6d65_0000) })
    }

    /// Sends a segment as the packet says; whether it arrived where it was going.
    pub(crate) fn send(&self, packet: &Packet, flags: Flags, expected: bool) -> Result<bool, String> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let segment = segment(packet, flags, number);
        let (source, destination) = (packet.source, packet.destination);
        let owner = (packet.uid.unwrap_or(0), packet.gid.unwrap_or(0));
        self.pod.origin(packet).run(move || {
            as_owner(owner.0, owner.1, || {
                let socket = raw(source)?;
                socket.bind(&SocketAddr::new(source, 0).into())?;
                socket.send_to(&segment, &SocketAddr::new(destination, 0).into())
            })
            .map_err(|error| format!("a segment from {source} to {destination}: {error}"))
        })?;
        let patience = if expected { PATIENCE } else { IMPATIENCE };
        let numbers = self.arrived.numbers.lock().map_err(|_| "a watcher panicked")?;
        let waited =
            self.arrived.changed.wait_timeout_while(numbers, patience, |seen| !seen.contains(&number));
        let (numbers, _) = waited.map_err(|_| "a watcher panicked")?;
        Ok(numbers.contains(&number))
    }
}

fn raw(address: IpAddr) -> std::io::Result<Socket> {
    Socket::new(Domain::for_address(SocketAddr::new(address, 0)), Type::RAW, Some(Protocol::TCP))
}

/// Every TCP segment that is delivered in a namespace, in both families.
fn watch(space: &Space, arrived: &Arc<Arrived>) -> Result<(), String> {
    for address in ["0.0.0.0", "::"] {
        let address: IpAddr = address.parse().expect("an address");
        let mut socket = space.run(move || raw(address)).map_err(|error| format!("a raw socket: {error}"))?;
        let arrived = Arc::clone(arrived);
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok(length) = socket.read(&mut buffer) {
                // IPv4 comes with its header, IPv6 without.
                let start = if address.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
                let number = buffer[..length].get(start + 4..).and_then(|rest| rest.first_chunk());
                if let (Some(number), Ok(mut numbers)) = (number, arrived.numbers.lock()) {
                    numbers.insert(u32::from_be_bytes(*number));
                    arrived.changed.notify_all();
                }
            }
        });
    }
    Ok(())
}

fn segment(packet: &Packet, Flags(flags): Flags, number: u32) -> [u8; HEADER] {
    let mut segment = [0; HEADER];
    segment[0..2].copy_from_slice(&packet.source_port.to_be_bytes());
    segment[2..4].copy_from_slice(&packet.destination_port.to_be_bytes());
    segment[4..8].copy_from_slice(&number.to_be_bytes());
    segment[8..12].copy_from_slice(&1_u32.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    segment[14..16].copy_from_slice(&1024_u16.to_be_bytes());
    let sum = checksum(packet, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// Over the pseudo header (addresses, protocol, length) and the segment.
fn checksum(packet: &Packet, segment: &[u8]) -> u16 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let addresses = [octets(packet.source), octets(packet.destination)].concat();
    let words = |bytes: &[u8]| {
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>()
    };
    let mut sum = words(&addresses) + words(segment) + TCP.unsigned_abs() + HEADER as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
