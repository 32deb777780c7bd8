//! The kernel does what a trace says, whoever wrote the rules: random intents, and random packets that are really sent.

use std::net::IpAddr;
use std::process::{Command, Stdio};

use libtest_mimic::Trial;
use mesh_netfilter::net::{Family, Owner, Protocol};
use mesh_netfilter::routing::{Routing, needs};
use mesh_netfilter::ruleset::CtState;
use mesh_netfilter::text::Restore;
use mesh_netfilter::trace::{Direction, Packet, Verdict};
use mesh_netfilter::{Dns, Interception, Netlink, OwnerGroups, Ruleset};
use proptest::prelude::*;
use proptest::sample::select;

use crate::crafted::{Crafted, Flags};
use crate::netns::{Owners, Space};
use crate::pod::{Pod, expected};
use crate::strategies::{
    MACHINE_V4, MACHINE_V6, PEER_V4, PEER_V6, POD_V4, POD_V6, draw, intents, port, runner,
};
use crate::{peers_required, trial};

/// Intents per way of writing, unless this variable says otherwise; and packets per intent.
const INTENTS: u64 = 30;
pub(crate) const INTENTS_VARIABLE: &str = "MESH_NETFILTER_SUITE_INTENTS";
const PACKETS: u64 = 48;
/// Packets per intent that fit no connection.
const CRAFTED: u64 = 16;

pub(crate) fn trials() -> Vec<Trial> {
    let possible = Space::new().is_ok();
    let writers = [Writer::Netlink, Writer::Nft, Writer::Iptables("nft"), Writer::Iptables("legacy")];
    let trial_of = |writer: Writer| {
        let ignored = !(peers_required() || possible && writer.is_here());
        let name = format!("kernel::agrees_with_the_trace::{}", writer.name());
        trial(name, move || agrees(writer)).with_ignored_flag(ignored)
    };
    writers.map(trial_of).into()
}

/// Who writes the rules.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Writer {
    Netlink,
    Nft,
    Iptables(&'static str),
}

impl Writer {
    fn name(self) -> String {
        match self {
            Self::Netlink => "netlink".into(),
            Self::Nft => "nft".into(),
            Self::Iptables(variant) => format!("iptables-{variant}"),
        }
    }

    pub(crate) fn is_here(self) -> bool {
        let program = match self {
            Self::Netlink => return true,
            Self::Nft => "nft".to_owned(),
            Self::Iptables(variant) => format!("iptables-{variant}-restore"),
        };
        Command::new(program).arg("--version").output().is_ok()
    }

    /// Writes into a namespace without rules.
    fn write(self, ruleset: &Ruleset) -> Result<(), String> {
        match self {
            Self::Netlink => Netlink::open()
                .and_then(|mut kernel| kernel.apply(ruleset))
                .map(drop)
                .map_err(|error| error.to_string()),
            Self::Nft => feed("nft", &["-f", "-"], &ruleset.to_nft()),
            Self::Iptables(variant) => {
                for (program, family) in [("iptables", Family::V4), ("ip6tables", Family::V6)] {
                    let text = ruleset.to_iptables(family, Restore::NoFlush);
                    feed(&format!("{program}-{variant}-restore"), &["--noflush"], &text)?;
                }
                Ok(())
            }
        }
    }
}

pub(crate) fn feed(program: &str, arguments: &[&str], text: &str) -> Result<(), String> {
    use std::io::Write;
    let mut command = Command::new(program);
    // Legacy iptables takes a lock; a namespace of tests has its own.
    command.args(arguments).env("XTABLES_LOCKFILE", lock()).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let written = child.stdin.take().expect("it is piped").write_all(text.as_bytes());
    let output = child.wait_with_output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() && written.is_ok() {
        Ok(())
    } else {
        Err(format!("{program}: {}\n{text}", String::from_utf8_lossy(&output.stderr)))
    }
}

fn lock() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("mesh-netfilter-{}.lock", std::process::id()))
}

/// Where a packet begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Pod,
    Neighbour,
    Machine,
}

/// Packets that can really be sent between the pod, its neighbourhood and a virtual machine.
fn sendable(ipv6: bool, owners: Owners) -> impl Strategy<Value = Packet> {
    let v4 = [
        "127.0.0.1",
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
    ];
    let six = ["::1", POD_V6, PEER_V6, "2001:db8::53", "2001:db8::1", "2001:db8:1::1", "2001:4860::1"];
    let owner = match owners {
        Owners::All => {
            (select(vec![0_u32, 3, 4, 1000, 1337]), select(vec![0_u32, 1, 2, 202, 888, 1000, 1337]))
        }
        Owners::One => (select(vec![0]), select(vec![0])),
    };
    let origin =
        prop_oneof![12 => Just(Origin::Pod), 4 => Just(Origin::Neighbour), 4 => Just(Origin::Machine)];
    let shape = (any::<bool>(), prop::bool::weighted(0.7), origin, prop::bool::weighted(0.2));
    (shape, select(v4.to_vec()), select(six.to_vec()), port(), owner).prop_map(
        move |((is_v6, tcp, origin, as_six), v4, six, port, (uid, gid))| {
            let address = |text: &str| text.parse::<IpAddr>().expect("an address");
            let (mut destination, pod, peer, machine) = if is_v6 {
                (address(six), address(POD_V6), address(PEER_V6), address(MACHINE_V6))
            } else {
                (address(v4), address(POD_V4), address(PEER_V4), address(MACHINE_V4))
            };
            let out = origin == Origin::Pod;
            if origin == Origin::Neighbour || origin == Origin::Machine && destination.is_loopback() {
                destination = pod;
            }
            let local = destination.is_loopback() || destination == pod;
            let source = match (origin, destination.is_loopback()) {
                (Origin::Neighbour, _) => peer,
                (Origin::Machine, _) => machine,
                // What the proxy sends to its application.
                (Origin::Pod, _) if as_six && local && (ipv6 || !is_v6) => {
                    address(if is_v6 { "::6" } else { "127.0.0.6" })
                }
                (Origin::Pod, true) => address(if is_v6 { "::1" } else { "127.0.0.1" }),
                (Origin::Pod, false) => pod,
            };
            let interface = match origin {
                Origin::Pod if local => "lo",
                Origin::Pod | Origin::Neighbour => "eth0",
                Origin::Machine => "vnet0",
            };
            Packet {
                direction: if out { Direction::Out } else { Direction::In },
                protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
                source,
                source_port: 40000,
                destination,
                // Datagrams go where the agent does not listen itself.
                destination_port: if tcp || ![15053, 9999].contains(&port) { port.max(1) } else { 53 },
                interface: interface.to_owned(),
                uid: out.then_some(uid),
                gid: out.then_some(gid),
                mark: 0,
                connmark: 0,
                state: CtState::New,
            }
        },
    )
}

/// What was tried, so that a run says what it proves.
#[derive(Debug, Default)]
struct Tried {
    intents: u64,
    packets: u32,
    datagrams: u32,
    ipv6: u32,
    from_machine: u32,
    /// From a virtual machine to the outbound port.
    machine_captured: u32,
    captured: u32,
    tproxy: u32,
    crafted: u32,
    crafted_dropped: u32,
}

impl Tried {
    fn packet(&mut self, packet: &Packet, verdict: Verdict, intent: &Interception) {
        let one = u32::from;
        let from_machine = packet.interface == "vnet0";
        self.packets += 1;
        self.datagrams += one(packet.protocol == Protocol::Udp);
        self.ipv6 += one(packet.source.is_ipv6());
        self.from_machine += one(from_machine);
        self.machine_captured += one(from_machine && verdict.port() == Some(intent.outbound_port));
        self.captured += one(verdict.port().is_some());
        self.tproxy += one(matches!(verdict, Verdict::Delivered { .. }));
    }

    /// Says it; an error when a kind of packet did not occur at all.
    fn report(&self, writer: Writer, owners: Owners) -> Result<(), String> {
        println!(
            "{}: {} intents, {} packets sent ({} captured, {} by TPROXY; {} datagrams; {} IPv6; {} from a virtual machine, {} of those captured as outbound), {} crafted that fit no connection ({} dropped); {owners}",
            writer.name(),
            self.intents,
            self.packets,
            self.captured,
            self.tproxy,
            self.datagrams,
            self.ipv6,
            self.from_machine,
            self.machine_captured,
            self.crafted,
            self.crafted_dropped,
        );
        let all = [
            self.datagrams,
            self.ipv6,
            self.machine_captured,
            self.captured,
            self.tproxy,
            self.crafted_dropped,
            self.crafted - self.crafted_dropped,
        ];
        if all.contains(&0) { Err(format!("a kind of packet never occurred: {self:?}")) } else { Ok(()) }
    }
}

/// What remains of an intent where only one user exists: everybody is the proxy, or nobody is.
fn for_one_user(mut intent: Interception, seed: u64) -> Interception {
    let own = if seed.is_multiple_of(2) { vec![Owner::Id(0)] } else { Vec::new() };
    if own.is_empty() {
        // The agent would not be told from applications.
        intent.dns = Dns::Off;
    }
    intent.proxy_gids.clone_from(&own);
    intent.proxy_uids = own;
    intent.owner_groups = match intent.owner_groups {
        OwnerGroups::AllExcept(_) => OwnerGroups::AllExcept(Vec::new()),
        OwnerGroups::Only(groups) => OwnerGroups::Only(groups.iter().take(1).map(|_| Owner::Id(0)).collect()),
    };
    intent
}

/// Half of the packets are any; of the others as many as can be found quickly are captured, from wherever or from the
/// virtual machine.
fn biased(number: u64, ruleset: &Ruleset, mut any: impl FnMut() -> Packet) -> Packet {
    let mut packet = any();
    for _ in 0..50 {
        let captured = ruleset.fate(&packet).verdict.port().is_some();
        let machine = packet.interface == "vnet0";
        if matches!((number % 4, captured, machine), (0 | 1, _, _) | (2, true, _) | (3, true, true)) {
            break;
        }
        packet = any();
    }
    packet
}

fn agrees(writer: Writer) -> Result<(), String> {
    let owners = Owners::here();
    let asked = std::env::var(INTENTS_VARIABLE).ok().and_then(|number| number.parse().ok());
    let mut tried = Tried { intents: asked.unwrap_or(INTENTS), ..Tried::default() };
    for seed in 0..tried.intents {
        let mut runner = runner(seed);
        let mut intent = draw(&intents(), &mut runner);
        if seed % 3 == 0 && intent.virtual_interfaces.is_empty() {
            intent.virtual_interfaces = vec!["vnet0".parse().map_err(|error| format!("{error}"))?];
        }
        if owners == Owners::One {
            intent = for_one_user(intent, seed);
        }
        let ruleset = Ruleset::from(&intent);
        let pod = Pod::new()?;
        let (rules, needs) = (ruleset.clone(), needs(&intent));
        pod.inside.run(move || {
            writer.write(&rules)?;
            Routing::open().and_then(|mut routing| routing.apply(&needs)).map_err(|error| error.to_string())
        })?;
        pod.serve(&intent)?;
        let packets = sendable(intent.ipv6, owners);
        let wrong = |packet: &Packet, want: &dyn std::fmt::Debug, got: &dyn std::fmt::Debug| {
            let trace = ruleset.trace(packet);
            format!("seed {seed}: expected {want:?}, the kernel did {got:?}\n{trace}\n{intent:?}")
        };
        for number in 0..PACKETS {
            let any = || draw(&packets, &mut runner);
            let packet = biased(number, &ruleset, any);
            let fate = ruleset.fate(&packet);
            let want = expected(&packet, fate, &intent);
            let got = pod.send(&packet, want);
            if want != got {
                return Err(wrong(&packet, &want, &got));
            }
            tried.packet(&packet, fate.verdict, &intent);
        }
        let crafted = Crafted::new(&pod)?;
        for _ in 0..CRAFTED {
            let mut packet = draw(&packets, &mut runner);
            let flags = draw(&select(Flags::ALL.to_vec()), &mut runner);
            (packet.protocol, packet.state) = (Protocol::Tcp, CtState::Invalid);
            let passes = ruleset.fate(&packet).verdict != Verdict::Dropped;
            let arrived = crafted.send(&packet, flags, passes)?;
            if passes != arrived {
                return Err(wrong(&packet, &(flags, passes), &arrived));
            }
            tried.crafted += 1;
            tried.crafted_dropped += u32::from(!passes);
        }
    }
    tried.report(writer, owners)
}
