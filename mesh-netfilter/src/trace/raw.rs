//! A packet from its bytes.

use std::net::IpAddr;

use pnet::packet::ip::IpNextHeaderProtocol;
use pnet::packet::ipv4::Ipv4Packet;
use pnet::packet::ipv6::Ipv6Packet;
use pnet::packet::{Packet as _, tcp::TcpPacket, udp::UdpPacket};

use super::packet::{Direction, InvalidPacket, Packet};
use crate::net::Protocol;
use crate::ruleset::CtState;

impl Packet {
    /// The packet that these bytes (from the IP header on) are. What is not in the bytes is as in a description that names
    /// nothing: interface `eth0` (or `lo`), no owner, no mark, a new connection.
    ///
    /// # Errors
    /// When the bytes are no IPv4 or IPv6 packet, or end inside a header that is read.
    pub fn from_bytes(bytes: &[u8], direction: Direction) -> Result<Self, InvalidPacket> {
        let short = |offset| InvalidPacket::Bytes { offset, reason: "the packet ends inside a header" };
        match bytes.first().map(|first| first >> 4) {
            Some(4) => {
                let header = Ipv4Packet::new(bytes).ok_or_else(|| short(bytes.len()))?;
                let start = usize::from(header.get_header_length()) * 4;
                if start < 20 || start > bytes.len() {
                    return Err(InvalidPacket::Bytes { offset: 0, reason: "the header's length is wrong" });
                }
                let addresses = (IpAddr::V4(header.get_source()), IpAddr::V4(header.get_destination()));
                if header.get_fragment_offset() != 0 {
                    return Err(InvalidPacket::Bytes { offset: 6, reason: "a later fragment has no ports" });
                }
                let protocol = header.get_next_level_protocol();
                transport(addresses, protocol, &bytes[start..], direction).ok_or_else(|| short(bytes.len()))
            }
            Some(6) => {
                let header = Ipv6Packet::new(bytes).ok_or_else(|| short(bytes.len()))?;
                let addresses = (IpAddr::V6(header.get_source()), IpAddr::V6(header.get_destination()));
                transport(addresses, header.get_next_header(), header.payload(), direction)
                    .ok_or_else(|| short(bytes.len()))
            }
            _ => Err(InvalidPacket::Bytes { offset: 0, reason: "neither IPv4 nor IPv6" }),
        }
    }
}

fn transport(
    (source, destination): (IpAddr, IpAddr),
    protocol: IpNextHeaderProtocol,
    payload: &[u8],
    direction: Direction,
) -> Option<Packet> {
    let protocol = Protocol::from_number(protocol.0);
    let (source_port, destination_port) = match protocol {
        Protocol::Tcp => TcpPacket::new(payload).map(|tcp| (tcp.get_source(), tcp.get_destination()))?,
        Protocol::Udp => UdpPacket::new(payload).map(|udp| (udp.get_source(), udp.get_destination()))?,
        Protocol::Other(_) => (0, 0),
    };
    let local = direction == Direction::Out && destination.is_loopback();
    Some(Packet {
        direction,
        protocol,
        source,
        source_port,
        destination,
        destination_port,
        interface: if local { "lo" } else { "eth0" }.to_owned(),
        uid: None,
        gid: None,
        mark: 0,
        connmark: 0,
        state: CtState::New,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet::packet::ip::IpNextHeaderProtocols::Tcp;
    use pnet::packet::ipv4::MutableIpv4Packet;
    use pnet::packet::tcp::MutableTcpPacket;

    #[test]
    fn a_syn_is_read() {
        let mut bytes = [0_u8; 40];
        let mut ip = MutableIpv4Packet::new(&mut bytes).expect("room");
        ip.set_version(4);
        ip.set_header_length(5);
        ip.set_next_level_protocol(Tcp);
        ip.set_source([10, 0, 0, 5].into());
        ip.set_destination([10, 1, 2, 3].into());
        let mut tcp = MutableTcpPacket::new(&mut bytes[20..]).expect("room");
        tcp.set_source(40000);
        tcp.set_destination(8080);
        let want = "tcp 10.0.0.5:40000 > 10.1.2.3:8080 in".parse();
        assert_eq!(Packet::from_bytes(&bytes, Direction::In), want);
        for length in 0..40 {
            assert!(Packet::from_bytes(&bytes[..length], Direction::In).is_err(), "{length}");
        }
    }
}
