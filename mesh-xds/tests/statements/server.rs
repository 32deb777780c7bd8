//! Statements about servers: State of the world, and those that hold for both variants.

use std::sync::Arc;

use mesh_xds::TypeUrl;
use mesh_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use mesh_xds::server::{Request, ServerStream, Snapshot, StreamError, StreamRules, SyncState, UnknownNames};

use crate::support::*;

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::ENDPOINTS;
const LDS: TypeUrl = TypeUrl::LISTENER;
const RDS: TypeUrl = TypeUrl::ROUTE;

fn clusters(names: &[(&str, &str)]) -> Snapshot {
    let add = |b: mesh_xds::server::SnapshotBuilder, (n, m): &(&str, &str)| b.add(&cluster(n, m)).unwrap();
    names.iter().fold(Snapshot::builder().with_type(CDS), add).build()
}

fn assignments(names: &[(&str, u32)]) -> Snapshot {
    let add = |b: mesh_xds::server::SnapshotBuilder, (n, m): &(&str, u32)| b.add(&endpoints(n, *m)).unwrap();
    names.iter().fold(Snapshot::builder().with_type(EDS), add).build()
}

fn status(server: &Sotw, type_url: &TypeUrl) -> mesh_xds::server::TypeStatus {
    server.0.status().find(|(t, _)| *t == type_url).map(|(_, s)| s.clone()).unwrap()
}

#[test]
fn s01_first_cds_request_gets_all_clusters_in_one_response() {
    let mut server = Sotw::new(clusters(&[("a", "1"), ("b", "1"), ("c", "1")]));
    server.ask(&CDS, &[], "");
    let response = server.next().unwrap();
    assert_eq!(names(&response), ["a", "b", "c"]);
    assert!(!response.nonce.is_empty() && !response.version.is_empty());
    assert_eq!(server.next(), None);
}

#[test]
fn s02_an_ack_is_not_answered() {
    let mut server = Sotw::new(clusters(&[("a", "1")]));
    server.ask(&CDS, &[], "");
    let response = server.next().unwrap();
    server.ask(&CDS, &[], &response.nonce);
    assert_eq!(server.next(), None);
    assert_eq!(status(&server, &CDS).state(), SyncState::Synced);
    // Nor when an equal snapshot is set again.
    server.set(clusters(&[("a", "1")]));
    assert_eq!(server.next(), None);

    let mut server = Delta::new(clusters(&[("a", "1")]));
    server.subscribe(&CDS, &[]);
    assert_eq!(server.drain().len(), 1);
    server.set(clusters(&[("a", "1")]));
    assert_eq!(server.next(), None);
}

#[test]
fn s03_a_stale_nonce_changes_nothing() {
    let mut server = Sotw::new(assignments(&[("a", 1), ("b", 1)]));
    server.ask(&EDS, &["a"], "");
    let first = server.next().unwrap();
    server.set(assignments(&[("a", 2), ("b", 1)]));
    let second = server.next().unwrap();
    server.ask(&EDS, &["a", "b"], &first.nonce);
    assert_eq!(server.next(), None, "the stale request is ignored");
    server.ask(&EDS, &["a"], &second.nonce);
    server.set(assignments(&[("a", 2), ("b", 2)]));
    assert_eq!(server.next(), None, "b is not subscribed");
}

#[test]
fn s04_a_nack_waits_for_the_next_change() {
    let mut server = Sotw::new(clusters(&[("a", "bad")]));
    server.ask(&CDS, &[], "");
    let bad = server.next().unwrap();
    server.send(DiscoveryRequest {
        type_url: CDS.to_string(),
        response_nonce: bad.nonce.clone(),
        error_detail: error("a: no"),
        ..Default::default()
    });
    assert_eq!(server.next(), None);
    assert_eq!(status(&server, &CDS).state(), SyncState::Error);
    server.set(clusters(&[("a", "good")]));
    let good = server.next().unwrap();
    assert_ne!(good.nonce, bad.nonce);
    server.ask(&CDS, &[], &good.nonce);
    assert_eq!(status(&server, &CDS).state(), SyncState::Synced);

    let mut server = Delta::new(clusters(&[("a", "bad"), ("b", "1")]));
    server.subscribe(&CDS, &[]);
    let bad = server.next().unwrap();
    server.send(DeltaDiscoveryRequest {
        type_url: CDS.to_string(),
        response_nonce: bad.nonce.clone(),
        error_detail: error("a: no"),
        ..Default::default()
    });
    assert_eq!(server.next(), None);
    server.set(clusters(&[("a", "good"), ("b", "1")]));
    let good = server.next().unwrap();
    assert_eq!(names(&good), ["a"]);
    assert_ne!(good.nonce, bad.nonce);
}

#[test]
fn s05_a_nack_is_told_by_its_error_alone() {
    let mut server = Sotw::new(clusters(&[("a", "1")]));
    server.ask(&CDS, &[], "");
    let response = server.next().unwrap();
    server.send(DiscoveryRequest {
        type_url: CDS.to_string(),
        version_info: response.version.clone(),
        response_nonce: response.nonce,
        error_detail: error("a: no"),
        ..Default::default()
    });
    let status = status(&server, &CDS);
    assert_eq!(status.state(), SyncState::Error);
    assert_eq!(status.error.unwrap().message, "a: no");
    assert_eq!(status.version_acked, "");

    // A Delta request carries no version at all, and an error without a text is a rejection as well.
    let mut server = Delta::new(clusters(&[("a", "1")]));
    server.subscribe(&CDS, &[]);
    let response = server.next().unwrap();
    server.send(DeltaDiscoveryRequest {
        type_url: CDS.to_string(),
        response_nonce: response.nonce,
        error_detail: Some(Default::default()),
        ..Default::default()
    });
    let (_, status) = server.0.status().next().unwrap();
    assert_eq!((status.state(), status.nacks), (SyncState::Error, 1));
}

#[test]
fn s06_an_added_name_is_said_even_if_it_was_said_before() {
    let mut server = Sotw::new(assignments(&[("a", 1), ("b", 1)]));
    server.ask(&EDS, &["a"], "");
    let first = server.next().unwrap();
    server.ask(&EDS, &["b"], &first.nonce);
    let second = server.next().unwrap();
    server.ask(&EDS, &["a", "b"], &second.nonce);
    let third = server.next().unwrap();
    assert!(names(&third).contains(&"a"), "a was sent on this stream already and is sent again");
}

#[test]
fn s07_a_dropped_name_is_not_answered_and_not_followed() {
    let mut server = Sotw::new(assignments(&[("a", 1), ("b", 1)]));
    server.ask(&EDS, &["a", "b"], "");
    let response = server.next().unwrap();
    server.ask(&EDS, &["a"], &response.nonce);
    assert_eq!(server.next(), None);
    server.set(assignments(&[("a", 1), ("b", 2)]));
    assert_eq!(server.next(), None);

    let mut server = Delta::new(assignments(&[("a", 1), ("b", 1)]));
    server.subscribe(&EDS, &["a", "b"]);
    server.drain();
    server.change(&EDS, &[], &["b", "never subscribed"]);
    assert_eq!(server.next(), None);
    server.set(assignments(&[("a", 1), ("b", 2)]));
    assert_eq!(server.next(), None);
}

#[test]
fn s08_an_empty_list_after_names_ends_the_watch() {
    for empty in [&[][..], &[""][..]] {
        let mut server = Sotw::new(assignments(&[("a", 1)]));
        server.ask(&EDS, &["a"], "");
        let response = server.next().unwrap();
        server.ask(&EDS, empty, &response.nonce);
        server.set(assignments(&[("a", 2)]));
        assert_eq!(server.next(), None);
        assert_eq!(status(&server, &EDS).state(), SyncState::Ignored);
    }
    // For a wildcard type it does not mean everything again.
    let mut server = Sotw::new(clusters(&[("a", "1"), ("b", "1")]));
    server.ask(&CDS, &["a"], "");
    let response = server.next().unwrap();
    server.ask(&CDS, &[], &response.nonce);
    server.set(clusters(&[("a", "2"), ("b", "2")]));
    assert_eq!(server.next(), None);
}

#[test]
fn s09_a_missing_resource_follows_when_it_is_created() {
    let mut server = Sotw::new(assignments(&[("a", 1)]));
    server.ask(&EDS, &["a", "late"], "");
    let response = server.next().unwrap();
    assert_eq!(names(&response), ["a"]);
    server.ask(&EDS, &["a", "late"], &response.nonce);
    server.set(assignments(&[("a", 1), ("late", 1)]));
    assert_eq!(names(&server.next().unwrap()), ["late"]);

    let mut server = Delta::new(assignments(&[("a", 1)]));
    server.subscribe(&EDS, &["a", "late"]);
    let response = server.next().unwrap();
    assert_eq!((names(&response), removed(&response)), (vec!["a"], vec!["late"]));
    server.ack(&response);
    server.set(assignments(&[("a", 1), ("late", 1)]));
    let response = server.next().unwrap();
    assert_eq!((names(&response), removed(&response)), (vec!["late"], vec![]));
}

#[test]
fn s09_with_the_empty_policy_an_unknown_name_gets_an_empty_resource() {
    let rules = Arc::new(StreamRules::default().with_empty_unknowns());
    let mut server = Sotw::with_rules(assignments(&[]), rules.clone());
    server.ask(&EDS, &["unknown"], "");
    assert_eq!(names(&server.next().unwrap()), ["unknown"]);
    server.ask(&RDS, &["unknown"], "");
    assert_eq!(names(&server.next().unwrap()), ["unknown"]);
    server.ask(&TypeUrl::SECRET, &["unknown"], "");
    assert_eq!(server.next(), None, "there is no empty secret");

    let mut server = Delta::with_rules(assignments(&[]), rules);
    server.subscribe(&EDS, &["unknown"]);
    let response = server.next().unwrap();
    assert_eq!((names(&response), removed(&response)), (vec!["unknown"], vec![]));
    server.ack(&response);
    server.set(assignments(&[("unknown", 1)]));
    let full = server.next().unwrap();
    assert_eq!(names(&full), ["unknown"]);
    server.ack(&full);
    // What is deleted becomes empty again; a cluster never waits for it.
    server.set(assignments(&[]));
    let response = server.next().unwrap();
    assert_eq!((names(&response), removed(&response)), (vec!["unknown"], vec![]));
    // Types without an empty form are listed as removed under either policy.
    server.subscribe(&TypeUrl::SECRET, &["unknown"]);
    assert_eq!(removed(&server.next().unwrap()), ["unknown"]);
}

#[test]
fn s09_policies_are_chosen_by_type() {
    let mut rules = StreamRules::default();
    rules.unknown_names.insert(RDS, UnknownNames::Empty);
    let mut server = Delta::with_rules(assignments(&[]), Arc::new(rules));
    server.subscribe(&RDS, &["unknown"]);
    server.subscribe(&EDS, &["unknown"]);
    let (eds, rds) = (server.next().unwrap(), server.next().unwrap());
    assert_eq!((names(&eds), removed(&eds)), (vec![], vec!["unknown"]));
    assert_eq!((names(&rds), removed(&rds)), (vec!["unknown"], vec![]));
}

#[test]
fn s10_a_root_type_is_always_complete() {
    let mut server = Sotw::new(clusters(&[("a", "1"), ("b", "1")]));
    let all = |_: &TypeUrl| Vec::new();
    server.ask(&CDS, &[], "");
    assert_eq!(names(&server.drain(&all)[0]), ["a", "b"]);
    server.set(clusters(&[("a", "2"), ("b", "1")]));
    assert_eq!(names(&server.drain(&all)[0]), ["a", "b"]);
    server.set(clusters(&[("a", "2")]));
    assert_eq!(names(&server.drain(&all)[0]), ["a"]);
    server.set(clusters(&[]));
    let last = server.drain(&all);
    assert_eq!(last.len(), 1);
    assert!(names(&last[0]).is_empty(), "the empty set is said, not suppressed");
}

#[test]
fn s11_a_large_partial_response_goes_in_parts_each_answered_before_the_next() {
    let mut tight = StreamRules::default();
    tight.max_response_bytes = 1000;
    let tight = Arc::new(tight);
    let all: Vec<_> = (0..60).map(|n| format!("e{n:03}")).collect();
    let wanted: Vec<_> = all.iter().map(String::as_str).collect();
    let snapshot = |mark: u32| {
        let add = |b: mesh_xds::server::SnapshotBuilder, (n, name): (usize, &&str)| {
            let mark = if n == 59 { mark } else { 1 };
            b.add(&endpoints(name, mark)).unwrap().add(&cluster(name, "1")).unwrap()
        };
        wanted.iter().enumerate().fold(Snapshot::builder(), add).build()
    };
    let mut server = Sotw::with_rules(snapshot(1), tight.clone());
    server.ask(&EDS, &wanted, "");
    let first = server.next().unwrap();
    assert!(first.resources.len() < 30, "{}", first.resources.len());
    assert_eq!(server.next(), None, "the answer to this part would be stale");
    // A change does not wait, and is not said once more with its part.
    server.set(snapshot(2));
    let changed = server.next().unwrap();
    assert_eq!(names(&changed), ["e059"]);
    // A rejected part is answered too.
    server.send(DiscoveryRequest {
        type_url: EDS.to_string(),
        resource_names: strings(&wanted),
        response_nonce: changed.nonce,
        error_detail: error("e059: no"),
        ..Default::default()
    });
    // What is dropped in the meantime is not said.
    let mut said: Vec<String> = names(&first).into_iter().map(str::to_owned).collect();
    let second = server.next().unwrap();
    said.extend(names(&second).into_iter().map(str::to_owned));
    assert_eq!(server.next(), None);
    server.ask(&EDS, &wanted[..59], &second.nonce);
    let rest = server.drain(&|_| strings(&wanted[..59]));
    assert!(!rest.is_empty());
    said.extend(rest.iter().flat_map(names).map(str::to_owned));
    said.sort();
    assert_eq!(said, &all[..59], "each once");
    // Clusters are whole however large they are.
    let mut server = Sotw::with_rules(snapshot(1), tight);
    server.ask(&CDS, &[], "");
    assert_eq!(server.next().unwrap().resources.len(), 60);
}

#[test]
fn s11_endpoints_are_partial_and_their_deletion_is_silent() {
    let mut server = Sotw::new(assignments(&[("a", 1), ("b", 1)]));
    let both = |_: &TypeUrl| strings(&["a", "b"]);
    server.ask(&EDS, &["a", "b"], "");
    server.drain(&both);
    server.set(assignments(&[("a", 1), ("b", 2)]));
    assert_eq!(names(&server.drain(&both)[0]), ["b"]);
    server.set(assignments(&[("a", 1)]));
    assert_eq!(server.next(), None);
}

#[test]
fn s16_an_explicit_star_is_a_wildcard() {
    let mut server = Sotw::new(clusters(&[("a", "1"), ("b", "1")]));
    server.ask(&CDS, &["*", "a"], "");
    let response = server.next().unwrap();
    assert_eq!(names(&response), ["a", "b"]);
    server.ask(&CDS, &["a"], &response.nonce);
    assert_eq!(server.next(), None);
    server.set(clusters(&[("a", "1"), ("b", "2")]));
    assert_eq!(server.next(), None, "b is no longer followed");
    server.set(clusters(&[("a", "2"), ("b", "2")]));
    assert_eq!(names(&server.next().unwrap()), ["a"]);

    let mut server = Delta::new(clusters(&[("a", "1"), ("b", "1")]));
    server.subscribe(&CDS, &["*", "a"]);
    assert_eq!(names(&server.drain()[0]), ["a", "b"]);
    server.change(&CDS, &[], &["*"]);
    assert_eq!(server.next(), None);
    server.set(clusters(&[("a", "1"), ("b", "2")]));
    assert_eq!(server.next(), None, "b is no longer followed");
    server.set(clusters(&[("a", "2"), ("b", "2")]));
    assert_eq!(names(&server.next().unwrap()), ["a"]);
}

#[test]
fn s16_the_worked_sequence_of_subscriptions() {
    let mut server = Sotw::new(clusters(&[("a", "1"), ("b", "1")]));
    server.ask(&CDS, &[], "");
    let all = server.next().unwrap();
    server.ask(&CDS, &["*", "a"], &all.nonce);
    let again = server.next().unwrap();
    assert!(names(&again).contains(&"a"));
    server.ask(&CDS, &["a"], &again.nonce);
    assert_eq!(server.next(), None);
    server.ask(&CDS, &[], &again.nonce);
    server.set(clusters(&[("a", "9"), ("b", "9")]));
    assert_eq!(server.next(), None, "nothing is subscribed");
}

#[test]
fn s19_types_on_one_stream_do_not_disturb_each_other() {
    let both = Snapshot::builder().add(&cluster("c", "1")).unwrap().add(&listener("l", "1")).unwrap().build();
    let mut server = Sotw::new(both.clone());
    server.ask(&CDS, &[], "");
    server.ask(&LDS, &[], "");
    let (cds, lds) = (server.next().unwrap(), server.next().unwrap());
    assert_eq!((&cds.type_url, &lds.type_url), (&CDS, &LDS));
    assert_ne!(cds.nonce, lds.nonce);
    server.send(DiscoveryRequest {
        type_url: LDS.to_string(),
        response_nonce: lds.nonce,
        error_detail: error("l: no"),
        ..Default::default()
    });
    server.ask(&CDS, &[], &cds.nonce);
    assert_eq!(status(&server, &CDS).state(), SyncState::Synced);
    assert_eq!(status(&server, &LDS).state(), SyncState::Error);
    assert_eq!(server.next(), None);

    let mut server = Delta::new(both);
    server.subscribe(&CDS, &[]);
    server.subscribe(&LDS, &[]);
    let (cds, lds) = (server.next().unwrap(), server.next().unwrap());
    assert_ne!(cds.nonce, lds.nonce);
    server.send(DeltaDiscoveryRequest {
        type_url: LDS.to_string(),
        response_nonce: lds.nonce,
        error_detail: error("l: no"),
        ..Default::default()
    });
    server.ack(&cds);
    let states: Vec<_> = server.0.status().map(|(t, s)| (t.short(), s.state())).collect();
    assert_eq!(states, [("CDS", SyncState::Synced), ("LDS", SyncState::Error)]);
    assert_eq!(server.next(), None);
}

#[test]
fn s20_the_node_of_the_first_request_is_the_node_of_all() {
    let request = |node| {
        let request = DeltaDiscoveryRequest { type_url: CDS.to_string(), node, ..Default::default() };
        Request::Delta(Box::new(request))
    };
    let mut stream = ServerStream::delta(rules());
    assert_eq!(stream.on_request(NOW, request(None)), Err(StreamError::NoNode));
    let mut stream = ServerStream::delta(rules());
    stream.on_request(NOW, request(Some(node()))).unwrap();
    stream.on_request(NOW, request(None)).unwrap();
    stream.on_request(NOW, request(Some(node()))).unwrap();
    assert_eq!(stream.node().unwrap().id, node().id);
    let other = mesh_xds::pb::envoy::config::core::v3::Node { id: "victim".to_owned(), ..node() };
    assert_eq!(stream.on_request(NOW, request(Some(other))).unwrap_err().reason(), "node_changed");

    let sotw = |node| {
        let request = DiscoveryRequest { type_url: CDS.to_string(), node, ..Default::default() };
        Request::Sotw(Box::new(request))
    };
    let mut stream = ServerStream::sotw(rules());
    stream.on_request(NOW, sotw(Some(node()))).unwrap();
    stream.on_request(NOW, sotw(None)).unwrap();
    assert_eq!(stream.node().unwrap().id, node().id);
}

/// A snapshot of one chain: listener, routes, cluster, endpoints.
fn chain(mark: &str, number: u32) -> Snapshot {
    Snapshot::builder()
        .add(&eds_cluster("c", mark))
        .and_then(|b| b.add(&endpoints("c", number)))
        .and_then(|b| b.add(&listener("l", mark)))
        .and_then(|b| b.add(&routes("r", mark)))
        .unwrap()
        .build()
}

#[test]
fn s21_a_push_leaves_in_dependency_order() {
    let order = |responses: &[mesh_xds::server::Response]| -> Vec<String> {
        responses.iter().map(|r| r.type_url.short().to_owned()).collect()
    };
    let named = |t: &TypeUrl| match t.short() {
        "EDS" => strings(&["c"]),
        "RDS" => strings(&["r"]),
        _ => Vec::new(),
    };
    let mut server = Sotw::new(chain("1", 1));
    for (type_url, names) in [(&RDS, &["r"][..]), (&LDS, &[]), (&EDS, &["c"]), (&CDS, &[])] {
        server.ask(type_url, names, "");
    }
    assert_eq!(order(&server.drain(&named)), ["CDS", "EDS", "LDS", "RDS"]);
    server.set(chain("2", 2));
    assert_eq!(order(&server.drain(&named)), ["CDS", "EDS", "LDS", "RDS"]);

    let mut server = Delta::new(chain("1", 1));
    for (type_url, names) in [(&RDS, &["r"][..]), (&LDS, &[]), (&EDS, &["c"]), (&CDS, &[])] {
        server.subscribe(type_url, names);
    }
    assert_eq!(order(&server.drain()), ["CDS", "EDS", "LDS", "RDS"]);
    server.set(chain("2", 2));
    assert_eq!(order(&server.drain()), ["CDS", "EDS", "LDS", "RDS"]);
}

#[test]
fn s22_endpoints_follow_their_cluster_even_unchanged() {
    let named = |t: &TypeUrl| if *t == EDS { strings(&["c"]) } else { Vec::new() };
    let mut server = Sotw::new(chain("1", 1));
    server.ask(&CDS, &[], "");
    server.ask(&EDS, &["c"], "");
    server.drain(&named);
    server.set(chain("2", 1));
    let said: Vec<_> = server.drain(&named).into_iter().map(|r| r.type_url).collect();
    assert_eq!(said, [CDS, EDS]);

    let mut server = Delta::new(chain("1", 1));
    server.subscribe(&CDS, &[]);
    server.subscribe(&EDS, &["c"]);
    server.drain();
    server.set(chain("2", 1));
    let said: Vec<_> = server.drain().into_iter().map(|r| r.type_url).collect();
    assert_eq!(said, [CDS, EDS]);
}

#[test]
fn s22_after_a_reconnect_too() {
    // The cluster changed while the client was away, its endpoints did not, and the client says that it has both.
    let before = chain("1", 1);
    let version = |t: &TypeUrl, n: &str| before.get(t).unwrap().get(n).unwrap().version().to_string();
    let resume = |t: &TypeUrl, names: &[&str]| DeltaDiscoveryRequest {
        type_url: t.to_string(),
        resource_names_subscribe: strings(names),
        initial_resource_versions: [("c".to_owned(), version(t, "c"))].into(),
        ..Default::default()
    };
    let mut server = Delta::new(chain("2", 1));
    server.send(resume(&CDS, &[]));
    assert_eq!(names(&server.drain()[0]), ["c"]);
    server.send(resume(&EDS, &["c"]));
    assert_eq!(names(&server.drain()[0]), ["c"], "the cluster warms and waits for its endpoints");
}

#[test]
fn s23_a_cluster_goes_after_what_refers_to_it() {
    let with = |clusters: &[&str], mark: &str| {
        let builder = Snapshot::builder().add(&listener("l", mark)).unwrap().add(&routes("r", mark)).unwrap();
        clusters.iter().fold(builder, |b, name| b.add(&cluster(name, "1")).unwrap()).build()
    };
    let named = |t: &TypeUrl| if *t == RDS { strings(&["r"]) } else { Vec::new() };
    let mut server = Sotw::new(with(&["old"], "1"));
    for (type_url, names) in [(&CDS, &[][..]), (&LDS, &[]), (&RDS, &["r"])] {
        server.ask(type_url, names, "");
    }
    server.drain(&named);
    server.set(with(&["new"], "2"));
    let said = server.drain(&named);
    let order: Vec<_> = said.iter().map(|r| (r.type_url.short(), names(r))).collect();
    let expected =
        [("CDS", vec!["new", "old"]), ("LDS", vec!["l"]), ("RDS", vec!["r"]), ("CDS", vec!["new"])];
    assert_eq!(order, expected);

    let mut server = Delta::new(with(&["old"], "1"));
    server.subscribe(&CDS, &[]);
    server.subscribe(&LDS, &[]);
    server.subscribe(&RDS, &["r"]);
    server.drain();
    server.set(with(&["new"], "2"));
    let (cds, lds, rds) = (server.next().unwrap(), server.next().unwrap(), server.next().unwrap());
    assert_eq!((names(&cds), removed(&cds)), (vec!["new"], vec![]));
    assert_eq!((&lds.type_url, &rds.type_url), (&LDS, &RDS));
    assert_eq!(server.next(), None, "listeners and routes are not answered yet");
    server.ack(&lds);
    server.ack(&rds);
    let last = server.next().unwrap();
    assert_eq!((last.type_url.short(), removed(&last)), ("CDS", vec!["old"]));
}

#[test]
fn s23_without_other_changes_a_removal_leaves_at_once() {
    let mut server = Delta::new(clusters(&[("a", "1"), ("b", "1")]));
    server.subscribe(&CDS, &[]);
    server.drain();
    server.set(clusters(&[("a", "2")]));
    let response = server.next().unwrap();
    assert_eq!((names(&response), removed(&response)), (vec!["a"], vec!["b"]));
}

#[test]
fn s23_endpoints_are_emptied_after_what_leads_to_them() {
    let leads_to = |name: &str| {
        let builder =
            Snapshot::builder().add(&eds_cluster(name, "1")).unwrap().add(&endpoints(name, 1)).unwrap();
        builder.add(&routes("r", name)).unwrap().build()
    };
    let rules = Arc::new(StreamRules::default().with_empty_unknowns());
    let order = |said: &[mesh_xds::server::Response]| -> Vec<String> {
        said.iter()
            .map(|r| format!("{} {}{}", r.type_url.short(), names(r).join(","), removed(r).concat()))
            .collect()
    };
    let mut server = Delta::with_rules(leads_to("old"), rules.clone());
    server.subscribe(&CDS, &[]);
    server.subscribe(&EDS, &["old"]);
    server.subscribe(&RDS, &["r"]);
    server.drain();
    server.set(leads_to("new"));
    assert_eq!(order(&server.drain()), ["CDS new", "RDS r", "CDS old", "EDS old"]);

    let named = |t: &TypeUrl| match t.short() {
        "EDS" => strings(&["old"]),
        "RDS" => strings(&["r"]),
        _ => Vec::new(),
    };
    let mut server = Sotw::with_rules(leads_to("old"), rules);
    for (type_url, names) in [(&CDS, &[][..]), (&EDS, &["old"]), (&RDS, &["r"])] {
        server.ask(type_url, names, "");
    }
    server.drain(&named);
    server.set(leads_to("new"));
    assert_eq!(order(&server.drain(&named)), ["CDS new,old", "RDS r", "CDS new", "EDS old"]);
}
