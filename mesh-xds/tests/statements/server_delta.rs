//! Statements about Delta servers.

use mesh_xds::TypeUrl;
use mesh_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use mesh_xds::server::{Snapshot, SyncState};

use crate::support::*;

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::ENDPOINTS;

fn clusters(names: &[(&str, &str)]) -> Snapshot {
    let add = |b: mesh_xds::server::SnapshotBuilder, (n, m): &(&str, &str)| b.add(&cluster(n, m)).unwrap();
    names.iter().fold(Snapshot::builder().with_type(CDS), add).build()
}

#[test]
fn s12_one_change_of_ten_thousand_sends_one() {
    let all = |mark: &str| {
        let add = |b: mesh_xds::server::SnapshotBuilder, n: u32| {
            let mark = if n == 4711 { mark } else { "same" };
            b.add(&cluster(&format!("c{n:05}"), mark)).unwrap()
        };
        (0..10_000).fold(Snapshot::builder(), add).build()
    };
    let mut server = Delta::new(all("1"));
    server.subscribe(&CDS, &[]);
    let first: usize = server.drain().iter().map(|r| r.resources.len()).sum();
    assert_eq!(first, 10_000);
    server.set(all("2"));
    let said = server.drain();
    assert_eq!(said.len(), 1);
    assert_eq!(names(&said[0]), ["c04711"]);
}

#[test]
fn s13_a_name_that_is_subscribed_to_again_is_said_again() {
    let mut server = Delta::new(clusters(&[("a", "1"), ("b", "1")]));
    server.subscribe(&CDS, &["a"]);
    server.drain();
    server.subscribe(&CDS, &["a"]);
    assert_eq!(names(&server.next().unwrap()), ["a"]);
    // Under a wildcard as well.
    let mut server = Delta::new(clusters(&[("a", "1"), ("b", "1")]));
    server.subscribe(&CDS, &[]);
    server.drain();
    server.subscribe(&CDS, &["a"]);
    assert_eq!(names(&server.next().unwrap()), ["a"]);
    server.set(clusters(&[("a", "1"), ("b", "2")]));
    assert_eq!(names(&server.next().unwrap()), ["b"], "the legacy wildcard stays");
}

#[test]
fn s14_an_ack_may_change_the_subscription_whatever_its_nonce() {
    let mut server = Delta::new(clusters(&[("a", "1"), ("b", "1"), ("c", "1")]));
    server.subscribe(&CDS, &["a"]);
    let first = server.next().unwrap();
    let with = |nonce: &str, name: &str| DeltaDiscoveryRequest {
        type_url: CDS.to_string(),
        response_nonce: nonce.to_owned(),
        resource_names_subscribe: strings(&[name]),
        ..Default::default()
    };
    server.send(with(&first.nonce, "b"));
    let second = server.next().unwrap();
    assert_eq!(names(&second), ["b"]);
    server.send(with(&first.nonce, "c"));
    assert_eq!(names(&server.next().unwrap()), ["c"], "a stale nonce does not void the subscription");
}

#[test]
fn s15_a_client_that_comes_back_hears_only_what_changed() {
    let before = clusters(&[("a", "1"), ("b", "1"), ("gone", "1")]);
    let version = |name: &str| before.get(&CDS).unwrap().get(name).unwrap().version().to_string();
    let have = ["a", "b", "gone"].map(|name| (name.to_owned(), version(name)));
    let request = |names: &[&str]| DeltaDiscoveryRequest {
        type_url: CDS.to_string(),
        initial_resource_versions: have.clone().into(),
        resource_names_subscribe: strings(names),
        ..Default::default()
    };
    // Everything is as it was: not a word.
    for subscription in [&[][..], &["a", "b", "gone"][..]] {
        let mut server = Delta::new(clusters(&[("a", "1"), ("b", "1"), ("gone", "1")]));
        server.send(request(subscription));
        assert_eq!(server.next(), None, "{subscription:?}");
        // One changed, one vanished.
        let mut server = Delta::new(clusters(&[("a", "1"), ("b", "2")]));
        server.send(request(subscription));
        let response = server.next().unwrap();
        assert_eq!((names(&response), removed(&response)), (vec!["b"], vec!["gone"]));
        server.ack(&response);
        assert_eq!(server.next(), None);
    }
    // A version that this server never made is not trusted.
    let mut server = Delta::new(clusters(&[("a", "1")]));
    server.send(DeltaDiscoveryRequest {
        type_url: CDS.to_string(),
        initial_resource_versions: [("a".to_owned(), "2024-01-01/7".to_owned())].into(),
        ..Default::default()
    });
    assert_eq!(names(&server.next().unwrap()), ["a"]);
}

#[test]
fn a_client_that_came_back_with_everything_is_in_sync() {
    let snapshot = || clusters(&[("a", "1"), ("b", "1")]);
    let version = |name: &str| snapshot().get(&CDS).unwrap().get(name).unwrap().version().to_string();
    let back = |have: &[&str], subscribe: &[&str], unsubscribe: &[&str]| DeltaDiscoveryRequest {
        type_url: CDS.to_string(),
        initial_resource_versions: have.iter().map(|name| ((*name).to_owned(), version(name))).collect(),
        resource_names_subscribe: strings(subscribe),
        resource_names_unsubscribe: strings(unsubscribe),
        ..Default::default()
    };
    let status = |server: &Delta| server.0.status().next().unwrap().1.clone();
    for names in [&[][..], &["a"], &["*", "a"]] {
        let mut server = Delta::new(snapshot());
        server.send(back(&["a", "b"], names, &[]));
        assert_eq!(status(&server).state(), SyncState::NotSent, "nothing was compared yet");
        assert_eq!(server.next(), None);
        let now = status(&server);
        assert_eq!((now.state(), now.came_back_current), (SyncState::Synced, true), "{names:?}");
        // What was never sent is not said to be sent or acknowledged; what the client has is known.
        assert_eq!(
            (now.nonce_sent.as_str(), now.nonce_acked.as_str(), now.version_sent.as_str()),
            ("", "", "")
        );
        assert_eq!(now.version_acked, snapshot().get(&CDS).unwrap().version().to_string());
        assert_eq!((now.responses, now.sent_at, now.acked_at), (0, None, None));
        // From the first response on, answers decide.
        server.set(clusters(&[("a", "2"), ("b", "1")]));
        let response = server.next().unwrap();
        assert_eq!(status(&server).state(), SyncState::Stale);
        server.ack(&response);
        assert_eq!(status(&server).state(), SyncState::Synced);
    }
    // Without a snapshot nobody knows what would be current.
    let mut waiting = Delta(mesh_xds::server::DeltaStream::new(rules()));
    waiting.send(back(&["a", "b"], &[], &[]));
    assert_eq!((waiting.next(), status(&waiting).state()), (None, SyncState::NotSent));
    // Nor where the snapshot does not speak of the type.
    let mut silent = Delta::new(Snapshot::builder().build());
    silent.send(back(&["a", "b"], &[], &[]));
    assert_eq!((silent.next(), status(&silent).state()), (None, SyncState::NotSent));
    // Who asks for nothing is ignored, whatever it has.
    let mut nothing = Delta::new(snapshot());
    nothing.send(back(&["a"], &["*"], &["*"]));
    assert_eq!((nothing.next(), status(&nothing).state()), (None, SyncState::Ignored));
    // Who lacks something has to acknowledge it.
    let mut behind = Delta::new(snapshot());
    behind.send(back(&["a"], &[], &[]));
    assert_eq!(names(&behind.next().unwrap()), ["b"]);
    assert_eq!(status(&behind).state(), SyncState::Stale);
}

#[test]
fn a_client_that_came_back_with_what_is_about_to_go_is_not_in_sync() {
    let before = Snapshot::builder().add(&cluster("old", "1")).unwrap().build();
    let after = || {
        let snapshot = Snapshot::builder().with_type(CDS).add(&listener("l", "1")).unwrap();
        snapshot.build()
    };
    let mut server = Delta::new(after());
    // Listeners are asked for and not answered yet, so the removal waits.
    server.subscribe(&TypeUrl::LISTENER, &[]);
    let version = before.get(&CDS).unwrap().get("old").unwrap().version().to_string();
    server.send(DeltaDiscoveryRequest {
        type_url: CDS.to_string(),
        initial_resource_versions: [("old".to_owned(), version)].into(),
        ..Default::default()
    });
    let listeners = server.next().unwrap();
    assert_eq!((&listeners.type_url, server.next()), (&TypeUrl::LISTENER, None));
    let state = |server: &Delta| server.0.status().find(|(t, _)| **t == CDS).unwrap().1.state();
    assert_eq!(state(&server), SyncState::NotSent, "it has a cluster that is gone");
    server.ack(&listeners);
    let clusters = server.next().unwrap();
    assert_eq!(removed(&clusters), ["old"]);
    server.ack(&clusters);
    assert_eq!(state(&server), SyncState::Synced);
}

#[test]
fn in_state_of_the_world_whoever_comes_back_is_answered() {
    let mut server = Sotw::new(clusters(&[("a", "1")]));
    server.send(mesh_xds::pb::envoy::service::discovery::v3::DiscoveryRequest {
        type_url: CDS.to_string(),
        version_info: clusters(&[("a", "1")]).get(&CDS).unwrap().version().to_string(),
        ..Default::default()
    });
    let response = server.next().unwrap();
    let state = |server: &Sotw| server.0.status().next().unwrap().1.state();
    assert_eq!(state(&server), SyncState::Stale, "a version says nothing about names");
    server.ask(&CDS, &[], &response.nonce);
    assert_eq!(state(&server), SyncState::Synced);
}

#[test]
fn s17_leaving_the_wildcard_keeps_explicit_names_in_state_of_the_world() {
    let mut server = Sotw::new(clusters(&[("a", "1"), ("b", "1")]));
    server.ask(&CDS, &["*", "a"], "");
    let all = server.next().unwrap();
    server.ask(&CDS, &["a"], &all.nonce);
    server.set(clusters(&[("a", "2"), ("b", "2")]));
    assert_eq!(names(&server.next().unwrap()), ["a"]);
}

#[test]
fn s17_leaving_the_wildcard_keeps_explicit_names() {
    let mut server = Delta::new(clusters(&[("a", "1"), ("b", "1")]));
    server.subscribe(&CDS, &["*", "a"]);
    server.drain();
    server.change(&CDS, &[], &["*"]);
    assert_eq!(server.next(), None);
    server.set(clusters(&[("a", "2"), ("b", "2")]));
    assert_eq!(names(&server.next().unwrap()), ["a"]);
}

#[test]
fn s17_subscribing_and_leaving_the_wildcard_at_once_starts_empty() {
    // How ztunnel starts on demand.
    let mut server = Delta::new(clusters(&[("a", "1"), ("b", "1")]));
    server.change(&CDS, &["*"], &["*"]);
    assert_eq!(server.next(), None);
    server.subscribe(&CDS, &["b"]);
    assert_eq!(names(&server.next().unwrap()), ["b"]);
}

#[test]
fn s18_under_a_wildcard_the_truth_about_an_unsubscribed_name_is_said_once() {
    let mut server = Delta::new(clusters(&[("a", "1")]));
    server.subscribe(&CDS, &["*", "a", "nowhere"]);
    let response = server.next().unwrap();
    assert_eq!((names(&response), removed(&response)), (vec!["a"], vec!["nowhere"]));
    server.ack(&response);
    server.change(&CDS, &[], &["a", "nowhere"]);
    let response = server.next().unwrap();
    assert_eq!((names(&response), removed(&response)), (vec!["a"], vec!["nowhere"]));
    server.ack(&response);
    assert_eq!(server.next(), None);
    // Without a wildcard nothing has to be said.
    let mut server = Delta::new(clusters(&[("a", "1")]));
    server.subscribe(&CDS, &["a"]);
    server.drain();
    server.change(&CDS, &[], &["a", "never subscribed"]);
    assert_eq!(server.next(), None);
}

#[test]
fn s01_a_wildcard_is_answered_even_with_nothing_once() {
    let mut server = Delta::new(Snapshot::builder().with_type(CDS).build());
    server.subscribe(&CDS, &[]);
    let response = server.next().unwrap();
    assert!(response.resources.is_empty() && response.removed.is_empty());
    server.ack(&response);
    assert_eq!(server.next(), None);
    // A type that is only asked for by name has no wildcard.
    server.subscribe(&EDS, &[]);
    assert_eq!(server.next(), None);
}

#[test]
fn s01_a_large_set_is_said_in_several_responses() {
    let mut rules = mesh_xds::server::StreamRules::default();
    rules.max_response_bytes = 1000;
    let add =
        |b: mesh_xds::server::SnapshotBuilder, n: u32| b.add(&cluster(&format!("c{n:03}"), "1")).unwrap();
    let snapshot = (0..100).fold(Snapshot::builder(), add).build();
    let mut server = Delta::with_rules(snapshot, std::sync::Arc::new(rules));
    server.subscribe(&CDS, &["*", "c007", "missing"]);
    let said = server.drain();
    assert!(said.len() > 5, "{}", said.len());
    let mut all: Vec<_> = said.iter().flat_map(names).collect();
    all.sort_unstable();
    let unique = all.len();
    all.dedup();
    assert_eq!((all.len(), unique), (100, 100));
    assert_eq!(said.iter().flat_map(removed).collect::<Vec<_>>(), ["missing"]);
}
