//! How long rules take: to write as text, to walk, to put into the kernel, to compare. The parts with a kernel need root.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mesh_netfilter::backend::{Backend, Iptables, Variant};
use mesh_netfilter::net::Family;
use mesh_netfilter::routing::Routing;
use mesh_netfilter::text::Restore;
use mesh_netfilter::trace::Packet;
use mesh_netfilter::{Interception, Netlink, Ruleset};
use nix::sched::{CloneFlags, unshare};

fn pure(criterion: &mut Criterion) {
    let intent = Interception::default();
    criterion.bench_function("intent to text", |bencher| {
        bencher.iter(|| Ruleset::from(black_box(&intent)).to_iptables(Family::V4, Restore::NoFlush));
    });
    let ruleset = Ruleset::from(&intent);
    let packet = |text: &str| text.parse::<Packet>().expect("a packet");
    let packets = [
        packet("tcp 10.0.0.5:40000 > 10.1.2.3:8080 out uid 1000 gid 1000"),
        packet("tcp 10.0.0.5:40000 > 10.1.2.3:8080 out uid 1337 gid 1337"),
        packet("tcp 10.0.0.9:40000 > 10.0.0.5:8080 in"),
        packet("tcp 127.0.0.1:40000 > 127.0.0.1:8080 out uid 1000 gid 1000"),
    ];
    let mut group = criterion.benchmark_group("fate");
    group.throughput(Throughput::Elements(packets.len() as u64));
    group.bench_function("four packets", |bencher| {
        bencher.iter(|| {
            packets.iter().filter_map(|packet| ruleset.fate(black_box(packet)).verdict.port()).count()
        });
    });
    group.finish();
}

/// A namespace that nobody else has, for this thread from now on.
fn fresh() -> bool {
    let made = unshare(CloneFlags::CLONE_NEWNET).is_ok();
    made && Routing::open().and_then(|mut routing| routing.loopback_up()).is_ok()
}

fn kernel(criterion: &mut Criterion) {
    if !fresh() {
        eprintln!("the kernel's part needs root");
        return;
    }
    let ruleset = Ruleset::from(&Interception::default());
    let mut group = criterion.benchmark_group("netlink");
    group.sample_size(50);
    group.bench_function("apply in a fresh namespace", |bencher| {
        bencher.iter_batched(
            fresh,
            |_| Netlink::open().and_then(|mut kernel| kernel.apply(&ruleset)),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("replace", |bencher| {
        let mut kernel = Netlink::open().expect("a socket");
        bencher.iter(|| kernel.replace(&ruleset).expect("it was applied before"));
    });
    group.bench_function("verify equal state", |bencher| {
        let mut kernel = Netlink::open().expect("a socket");
        bencher.iter(|| kernel.plan(&ruleset).expect("it can be read"));
    });
    group.finish();
    let mut group = criterion.benchmark_group("programs");
    group.sample_size(10);
    for variant in [Variant::Nft, Variant::Legacy] {
        let name = if variant == Variant::Nft { "iptables-nft" } else { "iptables-legacy" };
        let lock = std::env::temp_dir().join(format!("mesh-netfilter-bench-{}.lock", std::process::id()));
        let mut backend = Iptables::new(variant).lock_file(lock.clone());
        if backend.apply(&ruleset).is_ok() {
            group.bench_function(format!("apply by {name} in a fresh namespace"), |bencher| {
                bencher.iter_batched(fresh, |_| backend.apply(&ruleset), BatchSize::PerIteration);
            });
        }
        let _ = std::fs::remove_file(lock);
    }
    group.finish();
}

criterion_group!(benches, pure, kernel);
criterion_main!(benches);
