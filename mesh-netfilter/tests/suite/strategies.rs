//! Intents and packets, biased to where rules change their mind.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_netfilter::net::{Interface, Owner, PortRange, Protocol};
use mesh_netfilter::ruleset::CtState;
use mesh_netfilter::trace::{Direction, Packet};
use mesh_netfilter::{Dns, InboundPorts, Interception, Mode, OutboundRanges, OwnerGroups};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRng, TestRunner};

/// The pod's address.
pub(crate) const POD_V4: &str = "10.77.0.2";
/// The pod's address.
pub(crate) const POD_V6: &str = "fd77::2";
/// A neighbour's address.
pub(crate) const PEER_V4: &str = "10.77.0.1";
/// A neighbour's address.
pub(crate) const PEER_V6: &str = "fd77::1";

/// The address of a virtual machine behind the pod.
pub(crate) const MACHINE_V4: &str = "10.78.0.2";
/// The address of a virtual machine behind the pod.
pub(crate) const MACHINE_V6: &str = "fd78::2";

/// The same numbers every time.
pub(crate) fn seeded(seed: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &bytes)
}

/// A runner that draws the same values every time.
pub(crate) fn runner(seed: u64) -> TestRunner {
    TestRunner::new_with_rng(Config::default(), seeded(seed))
}

/// One value of a strategy.
pub(crate) fn draw<S: Strategy>(strategy: &S, runner: &mut TestRunner) -> S::Value {
    strategy.new_tree(runner).expect("these strategies reject nothing").current()
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn range(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).expect("a range")
}

fn ports() -> impl Strategy<Value = Vec<PortRange>> {
    let some = vec![
        PortRange::single(80),
        PortRange::single(3306),
        PortRange::single(53),
        PortRange::single(15008),
        PortRange::single(15021),
        range(8000, 8010),
        range(1, 1023),
        PortRange::single(9090),
    ];
    prop_oneof![3 => subsequence(some, 0..4), 1 => vec((1_u16..20).prop_map(|port| PortRange::single(port + 8000)), 14..30).prop_map(dedup)]
}

fn dedup<T: PartialEq>(values: Vec<T>) -> Vec<T> {
    let mut kept = Vec::new();
    for value in values {
        if !kept.contains(&value) {
            kept.push(value);
        }
    }
    kept
}

fn nets() -> impl Strategy<Value = Vec<IpNet>> {
    let some = [
        "198.51.100.0/24",
        "198.51.100.128/25",
        "203.0.113.7/32",
        "10.77.0.0/16",
        "127.1.0.0/16",
        "2001:db8::/32",
        "2001:db8:1::/48",
        "fd77::/64",
    ];
    subsequence(some.map(net).to_vec(), 0..4)
}

fn owners(choices: &'static [u32]) -> impl Strategy<Value = Vec<Owner>> {
    let ids = subsequence(choices.to_vec(), 1..3).prop_map(|ids| ids.into_iter().map(Owner::Id).collect());
    let range = select(choices.to_vec()).prop_map(|first| vec![Owner::Range(first, first + 1)]);
    prop_oneof![6 => ids, 1 => range]
}

fn groups() -> impl Strategy<Value = OwnerGroups> {
    let some = || {
        subsequence(vec![1000_u32, 202, 888], 0..3).prop_map(|ids| ids.into_iter().map(Owner::Id).collect())
    };
    prop_oneof![
        3 => some().prop_map(OwnerGroups::AllExcept),
        1 => some().prop_map(OwnerGroups::Only),
    ]
}

fn dns() -> impl Strategy<Value = Dns> {
    let servers = ["198.51.100.53", "127.0.0.53", "2001:db8::53", "10.77.0.1"];
    prop_oneof![
        2 => Just(Dns::Off),
        1 => Just(Dns::All { port: 15053 }),
        2 => subsequence(servers.to_vec(), 0..3).prop_map(|servers| Dns::Servers {
            port: 15053,
            servers: servers.into_iter().map(|server| server.parse().expect("an address")).collect(),
        }),
    ]
}

fn interfaces(names: &'static [&'static str]) -> impl Strategy<Value = Vec<Interface>> {
    prop_oneof![
        4 => Just(Vec::new()),
        1 => subsequence(names.to_vec(), 0..names.len()).prop_map(|names| names.into_iter().map(|name| name.parse().expect("a name")).collect()),
    ]
}

/// Any intent.
pub(crate) fn intents() -> impl Strategy<Value = Interception> {
    let inbound = (
        prop_oneof![3 => Just(Mode::Redirect), 1 => Just(Mode::TPROXY)],
        prop_oneof![
            2 => ports().prop_map(InboundPorts::AllExcept),
            2 => ports().prop_map(InboundPorts::Only),
        ],
        prop_oneof![3 => Just(Vec::new()), 1 => nets()],
    );
    let outbound = (
        prop_oneof![2 => Just(OutboundRanges::All), 2 => nets().prop_map(OutboundRanges::Only)],
        nets(),
        ports(),
        ports(),
    );
    let owners = (owners(&[1337, 3, 4]), owners(&[1337, 1, 2]), groups());
    let rest = (
        interfaces(&["eth9", "vnet0"]),
        interfaces(&["vnet0", "vnet1"]),
        dns(),
        any::<bool>(),
        any::<bool>(),
        select(vec!["127.0.0.1/32", "127.0.0.1/8"]),
    );
    (inbound, outbound, owners, rest).prop_map(|(inbound, outbound, owners, rest)| Interception {
        mode: inbound.0,
        inbound: inbound.1,
        inbound_exempt_sources: inbound.2,
        outbound: outbound.0,
        outbound_exclude: outbound.1,
        outbound_ports: outbound.2,
        outbound_exclude_ports: outbound.3,
        proxy_uids: owners.0,
        proxy_gids: owners.1,
        owner_groups: owners.2,
        exclude_interfaces: rest.0,
        virtual_interfaces: rest.1,
        dns: rest.2,
        drop_invalid: rest.3,
        ipv6: rest.4,
        loopback: rest.5.parse().expect("a prefix"),
        ..Interception::default()
    })
}

fn address(v6: bool) -> impl Strategy<Value = IpAddr> {
    let v4 = [
        "127.0.0.1",
        "127.0.0.6",
        "127.0.0.53",
        "127.1.2.3",
        POD_V4,
        PEER_V4,
        "198.51.100.1",
        "198.51.100.53",
        "198.51.100.200",
        "203.0.113.7",
        "203.0.113.8",
        "1.1.1.1",
        "9.9.0.1",
    ];
    let six = [
        "::1",
        "::6",
        POD_V6,
        PEER_V6,
        "2001:db8::53",
        "2001:db8::1",
        "2001:db8:1::1",
        "2001:4860::1",
        "::7f00:35",
    ];
    select(if v6 { six.to_vec() } else { v4.to_vec() }).prop_map(|text| text.parse().expect("an address"))
}

/// Ports at which rules change their mind, and their neighbours.
pub(crate) fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        8 => select(vec![
            53_u16, 80, 3306, 8000, 8005, 8010, 8011, 9090, 15001, 15006, 15008, 15020, 15021, 15053, 15090, 15002, 4000, 5000, 6000,
            7000, 31000, 32000, 1023, 1024, 1111, 2222, 3333, 5555,
        ]),
        1 => any::<u16>(),
    ]
}

/// Any packet that a kernel could see; both owners or none.
pub(crate) fn packets() -> impl Strategy<Value = Packet> {
    let protocol = prop_oneof![
        6 => Just(Protocol::Tcp),
        3 => Just(Protocol::Udp),
        1 => select(vec![Protocol::Other(1), Protocol::Other(58), Protocol::Other(132)]),
    ];
    let addresses = any::<bool>().prop_flat_map(|v6| (address(v6), address(v6)));
    let owner = (
        select(vec![0_u32, 3, 4, 1000, 1337, 1_000_670_000]),
        select(vec![0_u32, 1, 2, 202, 888, 1000, 1337, 5001, 5002, 1_000_670_001]),
    );
    let mark = || select(vec![0_u32, 0, 0, 1337, 1338, 7]);
    let state = prop_oneof![6 => Just(CtState::New), 2 => Just(CtState::Established), 1 => select(CtState::ALL.to_vec())];
    let interface =
        select(vec!["lo", "lo", "eth0", "eth0", "eth1", "eth9", "vnet0", "vnet1", "not-istio-nic"]);
    (
        (any::<bool>(), protocol, addresses, port(), port()),
        (interface, proptest::option::weighted(0.95, owner), mark(), mark(), state),
    )
        .prop_map(|((out, protocol, (source, destination), source_port, destination_port), rest)| {
            let (interface, owner, mark, connmark, state) = rest;
            let direction = if out { Direction::Out } else { Direction::In };
            let owner = owner.filter(|_| out);
            let ports = protocol.has_ports();
            Packet {
                direction,
                protocol,
                source,
                source_port: if ports { source_port } else { 0 },
                destination,
                destination_port: if ports { destination_port } else { 0 },
                interface: interface.to_owned(),
                uid: owner.map(|owner| owner.0),
                gid: owner.map(|owner| owner.1),
                mark,
                connmark,
                state,
            }
        })
}
