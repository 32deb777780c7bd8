//! The real kernel: it does what a trace says, for every way of writing rules.

use std::net::IpAddr;
use std::process::{Command, Stdio};

use libtest_mimic::Trial;
use mesh_netfilter::net::{Family, Protocol};
use mesh_netfilter::routing::{Routing, needs};
use mesh_netfilter::ruleset::CtState;
use mesh_netfilter::text::Restore;
use mesh_netfilter::trace::{Direction, Packet};
use mesh_netfilter::{Interception, Netlink, NetlinkError, Ruleset};
use proptest::prelude::*;
use proptest::sample::select;

use crate::netns::Space;
use crate::pod::{Pod, apart, expected};
use crate::strategies::{PEER_V4, PEER_V6, POD_V4, POD_V6, draw, intents, port, runner};
use crate::{peers_required, trial};

/// Intents per way of writing, and packets per intent.
const INTENTS: u64 = 25;
const PACKETS: u64 = 40;

pub(crate) fn trials() -> Vec<Trial> {
    let possible = Space::new();
    let ignored = possible.is_err() && !peers_required();
    let mut trials = Vec::new();
    for writer in [Writer::Netlink, Writer::Nft, Writer::Iptables("nft"), Writer::Iptables("legacy")] {
        let absent = !writer.is_here() && !peers_required();
        let name = format!("kernel::agrees_with_the_trace::{}", writer.name());
        trials.push(trial(name, move || agrees(writer)).with_ignored_flag(ignored || absent));
    }
    type Run = fn() -> Result<(), String>;
    let others: [(&str, Run); 5] = [
        ("second_apply_changes_nothing", idempotent),
        ("any_intent_becomes_any_other", becomes),
        ("clean_leaves_others_alone", clean),
        ("counters_count", counters),
        ("a_missing_capability_is_named", no_permission),
    ];
    trials.extend(others.map(|(name, run)| trial(format!("kernel::{name}"), run).with_ignored_flag(ignored)));
    trials
}

/// Who writes the rules.
#[derive(Debug, Clone, Copy)]
enum Writer {
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

    fn is_here(self) -> bool {
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

fn feed(program: &str, arguments: &[&str], text: &str) -> Result<(), String> {
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

/// Packets that can really be sent between the pod and its neighbourhood.
fn sendable(ipv6: bool) -> impl Strategy<Value = Packet> {
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
    let owner = (select(vec![0_u32, 3, 4, 1000, 1337]), select(vec![0_u32, 1, 2, 202, 888, 1000, 1337]));
    let shape =
        (any::<bool>(), prop::bool::weighted(0.7), prop::bool::weighted(0.75), prop::bool::weighted(0.2));
    (shape, select(v4.to_vec()), select(six.to_vec()), port(), owner).prop_map(
        move |((is_v6, tcp, out, as_six), v4, six, port, (uid, gid))| {
            let address = |text: &str| text.parse::<IpAddr>().expect("an address");
            let (mut destination, pod, peer) = if is_v6 {
                (address(six), address(POD_V6), address(PEER_V6))
            } else {
                (address(v4), address(POD_V4), address(PEER_V4))
            };
            let local = destination.is_loopback() || destination == pod;
            let mut source = match (out, destination.is_loopback()) {
                (false, _) => peer,
                (true, true) if is_v6 => address("::1"),
                (true, true) => address("127.0.0.1"),
                (true, false) => pod,
            };
            if !out {
                destination = pod;
            } else if as_six && local && (ipv6 || !is_v6) {
                // What the proxy sends to its application.
                source = address(if is_v6 { "::6" } else { "127.0.0.6" });
            }
            Packet {
                direction: if out { Direction::Out } else { Direction::In },
                protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
                source,
                source_port: 40000,
                destination,
                // Datagrams go where the agent does not listen itself.
                destination_port: if tcp || ![15053, 9999].contains(&port) { port.max(1) } else { 53 },
                interface: if out && local { "lo" } else { "eth0" }.to_owned(),
                uid: out.then_some(uid),
                gid: out.then_some(gid),
                mark: 0,
                connmark: 0,
                state: CtState::New,
            }
        },
    )
}

fn agrees(writer: Writer) -> Result<(), String> {
    for seed in 0..INTENTS {
        let mut runner = runner(seed);
        let mut intent = draw(&intents(), &mut runner);
        // Interfaces of these names do not exist here; they would only make the rules longer.
        intent.virtual_interfaces.clear();
        let ruleset = Ruleset::from(&intent);
        let pod = Pod::new()?;
        let (rules, needs) = (ruleset.clone(), needs(&intent));
        pod.inside.run(move || {
            writer.write(&rules)?;
            Routing::open().and_then(|mut routing| routing.apply(&needs)).map_err(|error| error.to_string())
        })?;
        pod.serve(&intent)?;
        let packets = sendable(intent.ipv6);
        for _ in 0..PACKETS {
            let packet = draw(&packets, &mut runner);
            let fate = ruleset.fate(&packet);
            let (want, got) = (expected(&packet, fate, &intent), pod.send(&packet));
            if want != got {
                let trace = ruleset.trace(&packet);
                return Err(format!(
                    "seed {seed}: expected {want:?}, the kernel did {got:?}\n{trace}\n{intent:?}"
                ));
            }
        }
    }
    Ok(())
}

fn inside<T: Send + 'static>(
    run: impl FnOnce(&mut Netlink) -> Result<T, NetlinkError> + Send + 'static,
) -> Result<T, String> {
    let space = Space::new()?;
    space.run(move || {
        Netlink::open().and_then(|mut kernel| run(&mut kernel)).map_err(|error| error.to_string())
    })
}

fn check(holds: bool, what: impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{what:?}")) }
}

fn idempotent() -> Result<(), String> {
    for seed in 0..INTENTS {
        let ruleset = Ruleset::from(&draw(&intents(), &mut runner(seed)));
        let (first, second, plan) = inside(move |kernel| {
            Ok((kernel.apply(&ruleset)?.changes, kernel.apply(&ruleset)?.changes, kernel.plan(&ruleset)?))
        })?;
        check(first > 0 && second == 0 && plan.is_empty(), (seed, first, second, plan))?;
    }
    Ok(())
}

fn becomes() -> Result<(), String> {
    for seed in 0..INTENTS {
        let mut runner = runner(seed);
        let rulesets: Vec<Ruleset> = (0..4).map(|_| Ruleset::from(&draw(&intents(), &mut runner))).collect();
        let same = inside(move |kernel| {
            for ruleset in &rulesets {
                kernel.apply(ruleset)?;
                let live = kernel.live()?;
                kernel.clean()?;
                kernel.apply(ruleset)?;
                let fresh = kernel.live()?;
                let sorted = |live: Option<Ruleset>| {
                    let mut chains = live.map(|live| live.chains).unwrap_or_default();
                    // What a rule says about itself is no part of it.
                    chains
                        .iter_mut()
                        .flat_map(|chain| &mut chain.rules)
                        .for_each(|rule| rule.note = "".into());
                    chains.sort_by(|a, b| (a.table, &a.name).cmp(&(b.table, &b.name)));
                    chains
                };
                let (live, fresh) = (sorted(live), sorted(fresh));
                let differs = live.iter().zip(&fresh).find(|(live, fresh)| live != fresh);
                if live.len() != fresh.len() || differs.is_some() {
                    return Ok(Err(format!("seed {seed}: {differs:#?}")));
                }
            }
            Ok(Ok(()))
        })?;
        same?;
    }
    Ok(())
}

const OTHERS: &str = "add table inet others
add chain inet others c { type filter hook input priority 0 ; policy accept ; }
add rule inet others c tcp dport 1 counter drop
add table ip nat
add chain ip nat OUTPUT { type nat hook output priority -100 ; }
add chain ip nat ISTIO_OUTPUT
add rule ip nat OUTPUT tcp dport 2 counter accept
add rule ip nat OUTPUT counter jump ISTIO_OUTPUT
add rule ip nat ISTIO_OUTPUT counter return
add table inet istio-proxy-nat
add chain inet istio-proxy-nat output { type nat hook output priority -100 ; }
";

fn clean() -> Result<(), String> {
    if !Writer::Nft.is_here() && !peers_required() {
        return Ok(());
    }
    let space = Space::new()?;
    let list = || space.shell("nft list ruleset");
    space.run(|| feed("nft", &["-f", "-"], OTHERS))?;
    let before = list()?;
    let foreign = space.run(|| -> Result<_, NetlinkError> {
        let mut kernel = Netlink::open()?;
        kernel.apply(&Ruleset::from(&Interception::default()))?;
        kernel.foreign_interception()
    });
    let foreign = foreign.map_err(|error| error.to_string())?;
    check(foreign == ["ip nat ISTIO_OUTPUT", "inet istio-proxy-nat output"], &foreign)?;
    let with_ours = list()?;
    check(with_ours.contains("table inet mesh") && with_ours != before, &with_ours)?;
    let cleaned = space.run(|| Netlink::open().and_then(|mut kernel| kernel.clean()));
    check(cleaned == Ok(mesh_netfilter::Applied { changes: 1 }), &cleaned)?;
    check(list()? == before, list())?;
    let removed = space.run(|| Netlink::open().and_then(|mut kernel| kernel.remove_foreign_interception()));
    check(removed.is_ok_and(|removed| removed.changes > 0), "removed")?;
    let after = list()?;
    check(
        !after.to_lowercase().contains("istio")
            && after.contains("tcp dport 2")
            && after.contains("table inet others"),
        &after,
    )
}

fn counters() -> Result<(), String> {
    let pod = Pod::new()?;
    let intent = Interception::default();
    pod.serve(&intent)?;
    let ruleset = Ruleset::from(&intent);
    let packet: Packet = format!("tcp {POD_V4}:1 > 1.1.1.1:80 out uid 1000 gid 1000")
        .parse()
        .map_err(|error| format!("{error}"))?;
    let apply = ruleset.clone();
    pod.inside
        .run(move || Netlink::open().and_then(|mut kernel| kernel.apply(&apply)))
        .map_err(|error| error.to_string())?;
    for _ in 0..3 {
        pod.send(&packet);
    }
    let counted = pod.inside.run(move || -> Result<_, NetlinkError> {
        let mut kernel = Netlink::open()?;
        // A second apply must not reset what was counted.
        kernel.apply(&ruleset)?;
        kernel.counters()
    });
    let counted = counted.map_err(|error| error.to_string())?;
    let captured = counted.iter().find(|row| row.rule == "-p tcp -j REDIRECT --to-ports 15001");
    check(captured.is_some_and(|row| row.packets == 3 && row.bytes > 0), &counted)
}

fn no_permission() -> Result<(), String> {
    let space = Space::new()?;
    let refused = space.run(|| {
        // The thread of a namespace passes its own rights on to threads it starts.
        apart(|| {
            caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN)
                .expect("rights can be dropped");
            Netlink::open().and_then(|mut kernel| kernel.apply(&Ruleset::from(&Interception::default())))
        })
    });
    match refused {
        Err(error) if error.to_string().contains("CAP_NET_ADMIN") => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
