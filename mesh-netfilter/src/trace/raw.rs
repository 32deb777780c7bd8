//! A packet from its bytes.

use std::net::IpAddr;

use pnet::packet::Packet as _;
use pnet::packet::ipv4::Ipv4Packet;
use pnet::packet::ipv6::Ipv6Packet;

use super::packet::{Direction, InvalidPacket, Packet};
use crate::net::Protocol;

/// How many IPv6 extension headers are read before the transport's: more than any sender has a use for.
const EXTENSIONS: usize = 16;

impl Packet {
    /// The packet that these bytes (from the IP header on) are. What is not in the bytes is as in a description that names
    /// nothing: interface `eth0` (or `lo`), no owner, no mark, a new connection.
    ///
    /// # Errors
    /// When the bytes are no IPv4 or IPv6 packet, or end inside a header that is read, or are a later fragment.
    pub fn from_bytes(bytes: &[u8], direction: Direction) -> Result<Self, InvalidPacket> {
        let wrong = |offset, reason| InvalidPacket::Bytes { offset, reason };
        let short = || wrong(bytes.len(), "the packet ends inside a header");
        match bytes.first().map(|first| first >> 4) {
            Some(4) => {
                let header = Ipv4Packet::new(bytes).ok_or_else(short)?;
                let start = usize::from(header.get_header_length()) * 4;
                if start < 20 || start > bytes.len() {
                    return Err(wrong(0, "the header's length is wrong"));
                }
                if header.get_fragment_offset() != 0 {
                    return Err(wrong(6, "a later fragment has no ports"));
                }
                let ends = (IpAddr::V4(header.get_source()), IpAddr::V4(header.get_destination()));
                let protocol = Protocol::from_number(header.get_next_level_protocol().0);
                transport(ends, protocol, &bytes[start..], direction).ok_or_else(short)
            }
            Some(6) => {
                let header = Ipv6Packet::new(bytes).ok_or_else(short)?;
                let ends = (IpAddr::V6(header.get_source()), IpAddr::V6(header.get_destination()));
                let (mut next, mut rest) = (header.get_next_header().0, header.payload());
                for _ in 0..EXTENSIONS {
                    let Some(length) = extension(next, rest) else { break };
                    let length = length.filter(|length| *length <= rest.len()).ok_or_else(short)?;
                    if next == FRAGMENT && u16::from_be_bytes([rest[2], rest[3]]) & 0xfff8 != 0 {
                        return Err(wrong(bytes.len() - rest.len(), "a later fragment has no ports"));
                    }
                    (next, rest) = (rest[0], &rest[length..]);
                }
                transport(ends, Protocol::from_number(next), rest, direction).ok_or_else(short)
            }
            _ => Err(wrong(0, "neither IPv4 nor IPv6")),
        }
    }
}

const FRAGMENT: u8 = 44;

/// How long this IPv6 extension header is; `None` for what is no extension, nothing inside when it is cut off.
fn extension(number: u8, bytes: &[u8]) -> Option<Option<usize>> {
    let unit = match number {
        // Hop-by-hop options, routing, destination options: those that the kernel's matches pass over.
        0 | 43 | 60 => 8,
        FRAGMENT => return Some((bytes.len() >= 8).then_some(8)),
        // Authentication counts in words of four, less two.
        51 => 4,
        _ => return None,
    };
    let fixed = if unit == 4 { 2 } else { 1 };
    Some(bytes.get(1).map(|length| (usize::from(*length) + fixed) * unit))
}

/// Ports are the first four bytes of every protocol that has any.
fn transport(
    (source, destination): (IpAddr, IpAddr),
    protocol: Protocol,
    payload: &[u8],
    direction: Direction,
) -> Option<Packet> {
    let header = match protocol {
        Protocol::Tcp => 20,
        Protocol::Udp => 8,
        Protocol::Other(_) if protocol.has_ports() => 4,
        Protocol::Other(_) => return Some(Packet::new(direction, protocol, (source, 0), (destination, 0))),
    };
    let [a, b, c, d] = *payload.get(..header)?.first_chunk()?;
    let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Some(Packet::new(direction, protocol, (source, from), (destination, to)))
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

    /// An IPv6 packet from `::1` to `::2` with this first header and what follows it.
    fn six(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0_u8; 40];
        (bytes[0], bytes[6], bytes[23], bytes[39]) = (0x60, next, 1, 2);
        bytes[5] = u8::try_from(rest.len()).expect("a short packet");
        bytes.extend_from_slice(rest);
        bytes
    }

    #[test]
    fn extension_headers_are_passed_over() {
        let udp = [0, 53, 0, 80, 0, 8, 0, 0];
        let read = |bytes: &[u8]| Packet::from_bytes(bytes, Direction::In).map(|packet| packet.to_string());
        let want = Ok("udp [::1]:53 > [::2]:80 in via eth0".to_owned());
        // Hop-by-hop, a first fragment, authentication of 12 bytes, then UDP.
        let hop = [44, 0, 0, 0, 0, 0, 0, 0];
        let first = [51, 0, 0, 1, 0, 0, 0, 9];
        let ah = [17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let all = six(0, &[&hop[..], &first, &ah, &udp].concat());
        assert_eq!(read(&all), want);
        for length in 40..all.len() {
            assert!(read(&all[..length]).is_err(), "{length}");
        }
        let later = six(44, &[17, 0, 0, 8, 0, 0, 0, 9, 0, 53, 0, 80, 0, 8, 0, 0]);
        assert!(read(&later).is_err());
    }

    #[test]
    fn ports_are_read_wherever_a_protocol_has_them() {
        for (number, name) in [(33, "dccp"), (132, "sctp"), (136, "udplite")] {
            let read = Packet::from_bytes(&six(number, &[1, 0, 0, 1]), Direction::Out);
            let want = format!("{name} [::1]:256 > [::2]:1 out");
            assert_eq!(read, want.parse());
        }
        assert_eq!(Packet::from_bytes(&six(58, &[]), Direction::In), "ipv6-icmp ::1 > ::2 in".parse());
    }
}
