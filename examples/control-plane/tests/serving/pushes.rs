//! Configuration over TLS, and changes on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_xds::client::{AdsClient, Configuration};

use crate::fixture::{Fixture, World, accept, pod, split};

const V1: &str = "outbound|9080|v1|reviews.shop.svc.cluster.local";
const V2: &str = "outbound|9080|v2|reviews.shop.svc.cluster.local";

/// A sidecar of the client's pod with a certificate, and its first configuration.
async fn programmed(fixture: &Fixture) -> (AdsClient, Configuration, World) {
    let identity = fixture.certificate("client", fixture.token("client", "istio-ca")).await.expect("an SVID");
    let client = fixture.client("client", "client", Some(identity)).start().expect("a client");
    let mut configuration = client.configuration(accept);
    let mut world = World::default();
    world.until(&mut configuration, "the first configuration", |w| !w.weights().is_empty()).await;
    (client, configuration, world)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_is_programmed_and_follows_changes() {
    let fixture = Fixture::start().await;
    let (_client, mut configuration, mut world) = programmed(&fixture).await;
    assert_eq!(world.weights(), [(V1.to_owned(), 90), (V2.to_owned(), 10)]);
    for listener in ["virtualInbound", "virtualOutbound", "0.0.0.0_9080"] {
        assert!(world.listeners.contains_key(listener), "{listener}");
    }
    assert_eq!(world.healthy(V1), ["10.0.0.1"]);
    assert_eq!(world.healthy(V2), ["10.0.0.2"]);

    fixture.write("config/split.yaml", &split(50, 50));
    world
        .until(&mut configuration, "the new split", |w| {
            w.weights() == [(V1.to_owned(), 50), (V2.to_owned(), 50)]
        })
        .await;

    world.received.clear();
    fixture.write("status/v2.yaml", &pod("reviews-v2", "reviews", "v2", "10.0.0.2", false));
    world.until(&mut configuration, "the unready pod", |w| w.healthy(V2).is_empty()).await;
    fixture.write("status/v2.yaml", &pod("reviews-v2", "reviews", "v2", "10.0.0.2", true));
    world.until(&mut configuration, "the ready pod", |w| w.healthy(V2) == ["10.0.0.2"]).await;
    assert_eq!(world.received.keys().collect::<Vec<_>>(), [&"endpoints"], "nothing but endpoints travelled");

    // A mistake takes nothing away and is reported; everything else goes on.
    fixture.write("config/split.yaml", &split(1, 99).replace("weight: 1\n", "wait: 1\n"));
    fixture.write("status/v1.yaml", &pod("reviews-v1", "reviews", "v1", "10.0.0.7", true));
    world.until(&mut configuration, "the moved pod", |w| w.healthy(V1) == ["10.0.0.7"]).await;
    assert_eq!(world.weights(), [(V1.to_owned(), 50), (V2.to_owned(), 50)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_enough_for_xds() {
    let fixture = Fixture::start().await;
    let token = fixture.token("client", "istio-ca");
    let client = fixture
        .client("client", "client", None)
        .headers(move |headers| {
            let value = format!("Bearer {token}").parse().map_err(|e| format!("{e}"))?;
            headers.insert("authorization", value);
            Ok(())
        })
        .start()
        .expect("a client");
    let mut configuration = client.configuration(accept);
    let mut world = World::default();
    world.until(&mut configuration, "the first configuration", |w| !w.weights().is_empty()).await;
}

/// Four threads per processor that do nothing but take it away.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn everywhere() -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let count = std::thread::available_parallelism().map_or(2, std::num::NonZero::get) * 4;
        for _ in 0..count {
            let done = Arc::clone(&done);
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(done)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_arrive_however_busy_the_machine_is() {
    let fixture = Fixture::start().await;
    let (_client, mut configuration, mut world) = programmed(&fixture).await;
    let busy = Busy::everywhere();
    // Two files at once, one that people edit and one of the kubelet's, each time another value.
    for round in 1..=6 {
        let ip = format!("10.0.1.{round}");
        fixture.write("config/split.yaml", &split(90 - round, 10 + round));
        fixture.write("status/v1.yaml", &pod("reviews-v1", "reviews", "v1", &ip, true));
        world
            .until(&mut configuration, "an edit", |w| {
                w.healthy(V1) == [ip.as_str()]
                    && w.weights() == [(V1.to_owned(), 90 - round), (V2.to_owned(), 10 + round)]
            })
            .await;
    }
    drop(busy);
    let status = fixture.control().ads().clients();
    assert!(status.iter().all(|client| client.types.values().all(|t| t.error.is_none())), "{status:?}");
}
