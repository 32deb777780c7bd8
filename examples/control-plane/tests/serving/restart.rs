//! A control plane that dies and comes back.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use mesh_xds::TypeUrl;
use mesh_xds::client::ResourceState;

use crate::fixture::{DEADLINE, Fixture, World, accept, split};
use crate::injection::get;

type Resources = BTreeMap<TypeUrl, BTreeMap<String, ResourceState>>;

#[tokio::test(flavor = "multi_thread")]
async fn clients_resume_after_a_crash() {
    let mut fixture = Fixture::start().await;
    let identity = fixture.certificate("client", fixture.token("client", "istio-ca")).await.expect("an SVID");
    let roots = fixture.roots();
    let client = fixture.client("client", "client", Some(identity)).start().expect("a client");
    let mut configuration = client.configuration(accept);
    let mut world = World::default();
    world.until(&mut configuration, "the first configuration", |w| !w.weights().is_empty()).await;
    let before = client.resources().await.expect("resources");
    let mode = std::fs::metadata(fixture.path("state/ca-key.pem")).expect("the key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    fixture.config.xds_port = fixture.control().addresses().xds.port();
    fixture.kill();
    let mut connection = client.connection();
    let lost = connection.wait_for(|state| !state.connected);
    tokio::time::timeout(DEADLINE, lost).await.expect("in time").expect("the client runs");
    fixture.run().await;
    assert_eq!(fixture.roots(), roots, "the same CA");

    // Nothing has to be said to it, which is not the same as not having said anything: an operator reads SYNCED.
    let synced = async {
        loop {
            let (_, page) = get(&fixture, "/debug/syncz").await;
            let page: serde_json::Value = serde_json::from_slice(&page).expect("JSON");
            let of = |what: &str| page[0][what].as_str().unwrap_or_default().to_owned();
            let types = ["cluster", "endpoint", "listener", "route"];
            let current = |kind: &&str| {
                let (sent, acked) = (of(&format!("{kind}_sent")), of(&format!("{kind}_acked")));
                of(&format!("{kind}_status")) == "SYNCED" && !sent.is_empty() && sent == acked
            };
            if types.iter().all(current) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, synced).await.expect("SYNCED");
    let said =
        |client: mesh_xds::server::ClientStatus| client.types.values().map(|t| t.responses).sum::<u64>();
    assert_eq!(fixture.control().ads().clients().into_iter().map(said).sum::<u64>(), 0);

    world.received.clear();
    fixture.write("config/split.yaml", &split(50, 50));
    let halves = |w: &World| w.weights().iter().all(|(_, weight)| *weight == 50);
    world.until(&mut configuration, "the change after the restart", halves).await;
    assert_eq!(world.received.keys().collect::<Vec<_>>(), [&"route"], "nothing else was sent again");
    let after = client.resources().await.expect("resources");
    let versions = |all: &Resources| -> Vec<(String, String)> {
        let resources = all.values().flatten().filter(|(name, _)| *name != "9080");
        resources.map(|(name, state)| (name.clone(), state.version.clone())).collect()
    };
    assert_eq!(versions(&before), versions(&after), "versions are hashes of the content");
}
