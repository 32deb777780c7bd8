//! Statements about clients.

use std::sync::Arc;
use std::time::Duration;

use mesh_xds::client::{
    Backoff, Change, ClientCore, ClientRequest, ClientResponse, Delivery, Lapse, LapseReason, Names,
    Protocol, RejectedVersion, Rejection, ResourceStatus, Warming,
};
use mesh_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource as Wrapper,
};
use mesh_xds::{Any, Resource, TypeUrl};
use prost::Message as _;

use crate::support::*;

const CDS: TypeUrl = TypeUrl::CLUSTER;
const EDS: TypeUrl = TypeUrl::ENDPOINTS;

/// A client with a server that says exactly what it is told.
struct Client {
    core: ClientCore,
    now: Duration,
    nonce: u32,
}

impl Client {
    fn new(protocol: Protocol) -> Self {
        Self { core: ClientCore::new(protocol, node()), now: NOW, nonce: 0 }
    }

    fn connected(protocol: Protocol) -> Self {
        let mut client = Self::new(protocol);
        client.core.watch(&CDS, Names::all());
        client.core.connected();
        assert_eq!(client.requests().len(), 1);
        client
    }

    fn requests(&mut self) -> Vec<ClientRequest> {
        std::iter::from_fn(|| self.core.next_request(self.now)).collect()
    }

    fn delta(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let delta = |r| match r {
            ClientRequest::Delta(r) => *r,
            ClientRequest::Sotw(r) => panic!("{r:?}"),
        };
        self.requests().into_iter().map(delta).collect()
    }

    fn sotw(&mut self) -> Vec<DiscoveryRequest> {
        let sotw = |r| match r {
            ClientRequest::Sotw(r) => *r,
            ClientRequest::Delta(r) => panic!("{r:?}"),
        };
        self.requests().into_iter().map(sotw).collect()
    }

    /// The server says these resources, in whichever variant the client speaks.
    fn says(&mut self, type_url: &TypeUrl, resources: Vec<Any>) -> Option<Delivery> {
        self.nonce += 1;
        let (type_url, nonce) = (type_url.to_string(), format!("n{}", self.nonce));
        let response = match self.core.protocol() {
            Protocol::Sotw => ClientResponse::Sotw(Box::new(DiscoveryResponse {
                type_url,
                version_info: format!("v{}", self.nonce),
                nonce,
                resources,
                ..Default::default()
            })),
            Protocol::Delta => {
                let version = format!("v{}", self.nonce);
                let wrap = |any: Any| Wrapper {
                    name: mesh_xds::resource::peek_name(&TypeUrl::from(any.type_url.as_str()), &any.value)
                        .unwrap_or_default(),
                    version: version.clone(),
                    resource: Some(any),
                    ..Default::default()
                };
                let resources = resources.into_iter().map(wrap).collect();
                let response = DeltaDiscoveryResponse { type_url, nonce, resources, ..Default::default() };
                ClientResponse::Delta(Box::new(response))
            }
        };
        self.core.on_response(self.now, response)
    }

    /// The answers that went out: nonce and error text.
    fn answers(&mut self) -> Vec<(String, String)> {
        let text = |e: Option<mesh_xds::pb::google::rpc::Status>| e.map(|e| e.message).unwrap_or_default();
        let answer = |r| match r {
            ClientRequest::Delta(r) => (r.response_nonce, text(r.error_detail)),
            ClientRequest::Sotw(r) => (r.response_nonce, text(r.error_detail)),
        };
        self.requests().into_iter().map(answer).collect()
    }

    fn status(&self, type_url: &TypeUrl, name: &str) -> Option<ResourceStatus> {
        let (_, resources) = self.core.resources().find(|(t, _)| *t == type_url)?;
        resources.get(name).map(|r| r.status)
    }
}

const BOTH: [Protocol; 2] = [Protocol::Delta, Protocol::Sotw];

fn ack(nonce: &str) -> (String, String) {
    (nonce.to_owned(), String::new())
}

fn names_of(delivery: &Delivery) -> Vec<&str> {
    delivery.resources.iter().map(|r| r.name.as_str()).collect()
}

#[test]
fn s24_duplicates_are_rejected_and_strangers_ignored() {
    for protocol in BOTH {
        let mut client = Client::connected(protocol);
        let delivery = client.says(&CDS, vec![cluster("a", "1").to_any()]).unwrap();
        client.core.decide(NOW, delivery.id, Vec::new());
        assert_eq!(client.answers(), [ack("n1")]);
        let twice = vec![cluster("b", "1").to_any(), cluster("b", "2").to_any()];
        assert_eq!(client.says(&CDS, twice), None, "nothing of it is delivered, nothing is deleted");
        let answers = client.answers();
        assert_eq!(answers[0].0, "n2");
        assert!(answers[0].1.starts_with("b: appears more than once"), "{answers:?}");
        assert_eq!(client.status(&CDS, "a"), Some(ResourceStatus::Acked));

        // What was not asked for is ignored and acknowledged.
        let mut client = Client::new(protocol);
        client.core.watch(&EDS, Names::of(["mine"]));
        client.core.connected();
        client.requests();
        let both = vec![endpoints("mine", 1).to_any(), endpoints("stranger", 1).to_any()];
        let delivery = client.says(&EDS, both).unwrap();
        assert_eq!(names_of(&delivery), ["mine"]);
        client.core.decide(NOW, delivery.id, Vec::new());
        assert_eq!(client.answers(), [ack("n1")]);
        // A type that nobody watches is answered too.
        assert_eq!(client.says(&CDS, vec![cluster("a", "1").to_any()]), None);
        assert_eq!(client.answers(), [ack("n2")]);
    }
}

#[test]
fn s25_a_nack_keeps_the_previous_version_and_says_why() {
    for protocol in BOTH {
        let mut client = Client::connected(protocol);
        let good = client.says(&CDS, vec![cluster("a", "1").to_any()]).unwrap();
        client.core.decide(NOW, good.id, Vec::new());
        client.requests();
        let bad = client.says(&CDS, vec![cluster("a", "2").to_any()]).unwrap();
        let reason = Rejection { name: "a".to_owned(), reason: "connect_timeout is missing".to_owned() };
        client.core.decide(NOW, bad.id, vec![reason]);
        if protocol == Protocol::Sotw {
            let request = client.sotw().remove(0);
            assert_eq!(request.version_info, "v1", "the last version that was accepted");
            assert_eq!(request.response_nonce, "n2");
            assert_eq!(request.error_detail.unwrap().message, "a: connect_timeout is missing");
        } else {
            assert_eq!(client.answers(), [("n2".to_owned(), "a: connect_timeout is missing".to_owned())]);
        }
        let (_, resources) = client.core.resources().find(|(t, _)| **t == CDS).unwrap();
        let state = &resources["a"];
        assert_eq!((state.status, state.version.as_str()), (ResourceStatus::Nacked, "v1"));
        assert_eq!(state.error.as_ref().unwrap().reason, "connect_timeout is missing");
    }
}

#[test]
fn a_client_knows_what_it_uses_since_when_and_what_it_rejected() {
    for protocol in BOTH {
        let mut client = Client::connected(protocol);
        let good = client.says(&CDS, vec![cluster("a", "1").to_any()]).unwrap();
        let accepted_at = NOW + Duration::from_secs(3);
        client.core.decide(accepted_at, good.id, Vec::new());
        let bad = client.says(&CDS, vec![cluster("a", "2").to_any()]).unwrap();
        let rejected_at = NOW + Duration::from_secs(7);
        let reject = |reason: &str| vec![Rejection { name: "a".to_owned(), reason: reason.to_owned() }];
        client.core.decide(rejected_at, bad.id, reject("no"));
        let state = |client: &Client| client.core.resources().next().unwrap().1["a"].clone();
        let nacked = state(&client);
        assert_eq!((nacked.version.as_str(), nacked.accepted_at), ("v1", Some(accepted_at)));
        let rejected = RejectedVersion { reason: "no".to_owned(), version: "v2".to_owned(), at: rejected_at };
        assert_eq!(nacked.error, Some(rejected));
        // What is bad on its face is known as well as what the consumer rejects.
        let wrong = Any { type_url: EDS.to_string(), value: cluster("a", "3").encode_to_vec() };
        assert_eq!(client.says(&CDS, vec![wrong]), None);
        let error = state(&client).error.unwrap();
        assert_eq!((error.version.as_str(), error.at), ("v3", client.now));
        assert!(error.reason.starts_with("is a "), "{error:?}");
        // The next good version ends it.
        let good = client.says(&CDS, vec![cluster("a", "4").to_any()]).unwrap();
        client.core.decide(rejected_at + Duration::from_secs(1), good.id, Vec::new());
        let acked = state(&client);
        assert_eq!((acked.version.as_str(), acked.error), ("v4", None));
        assert_eq!(acked.accepted_at, Some(rejected_at + Duration::from_secs(1)));
    }
}

#[test]
fn s26_good_resources_apply_and_every_bad_one_is_named() {
    for protocol in BOTH {
        let mut client = Client::connected(protocol);
        let wrong = Any { type_url: EDS.to_string(), value: endpoints("d", 1).to_any().value };
        let all =
            vec![cluster("a", "1").to_any(), cluster("b", "1").to_any(), cluster("c", "1").to_any(), wrong];
        let delivery = client.says(&CDS, all).unwrap();
        assert_eq!(names_of(&delivery), ["a", "b", "c"], "a resource of another type is not offered");
        let reject = |name: &str| Rejection { name: name.to_owned(), reason: "no".to_owned() };
        client.core.decide(NOW, delivery.id, vec![reject("a"), reject("c")]);
        let answers = client.answers();
        for name in ["a: no", "c: no", "d: is a"] {
            assert!(answers[0].1.contains(name), "{answers:?}");
        }
        assert_eq!(client.status(&CDS, "b"), Some(ResourceStatus::Acked));
        assert_eq!(client.status(&CDS, "a"), Some(ResourceStatus::Nacked));
    }
}

#[test]
fn s27_the_old_version_serves_until_the_new_one_is_warm() {
    let mut warming = Warming::new();
    assert!(warming.on_clusters(NOW, vec![Arc::new(eds_cluster("c", "1"))], &[]).is_empty());
    assert_eq!(warming.follow().endpoints.into_iter().collect::<Vec<_>>(), ["c"]);
    let changes = warming.on_endpoints(NOW, vec![Arc::new(endpoints("c", 1))], &[]);
    assert!(matches!(&changes[..], [Change::Cluster { endpoints: Some(_), .. }]), "{changes:?}");
    // An update waits for endpoints that come after it, changed or not, and asks for them.
    assert!(warming.on_clusters(NOW, vec![Arc::new(eds_cluster("c", "2"))], &[]).is_empty());
    assert_eq!(warming.follow().endpoints_again, ["c"]);
    let changes = warming.on_endpoints(NOW, vec![Arc::new(endpoints("c", 1))], &[]);
    assert!(matches!(&changes[..], [Change::Cluster { cluster, .. }] if cluster.alt_stat_name == "2"));

    let listener = |mark: &str, routes: &str| Arc::new(rds_listener("l", mark, routes, None));
    assert!(warming.on_listeners(NOW, vec![listener("1", "r1")], &[]).is_empty());
    let changes = warming.on_routes(NOW, vec![Arc::new(routes("r1", "1"))], &[]);
    assert!(
        matches!(&changes[..], [Change::Listener { routes, .. }] if routes[0].name == "r1"),
        "{changes:?}"
    );
    // New routes: the old listener stays until they come. Known routes: at once.
    assert!(warming.on_listeners(NOW, vec![listener("2", "r2")], &[]).is_empty());
    let changes = warming.on_routes(NOW, vec![Arc::new(routes("r2", "1"))], &[]);
    assert!(matches!(&changes[..], [Change::Listener { listener, .. }] if listener.stat_prefix == "2"));
    assert_eq!(warming.on_listeners(NOW, vec![listener("3", "r2")], &[]).len(), 1);
}

#[test]
fn s27_listeners_wait_for_clusters_that_are_about_to_exist() {
    let mut warming = Warming::new();
    assert!(warming.on_listeners(NOW, vec![Arc::new(listener("l", "1"))], &[]).is_empty());
    assert!(warming.on_clusters(NOW, vec![Arc::new(eds_cluster("c", "1"))], &[]).is_empty());
    let changes = warming.on_endpoints(NOW, vec![Arc::new(endpoints("c", 1))], &[]);
    assert!(matches!(&changes[..], [Change::Cluster { .. }, Change::Listener { .. }]), "{changes:?}");
    // Later: at most MAX_HOLD, since one slow cluster must not stop everything else.
    assert!(warming.on_clusters(NOW, vec![Arc::new(eds_cluster("slow", "1"))], &[]).is_empty());
    assert!(warming.on_listeners(NOW, vec![Arc::new(listener("l", "2"))], &[]).is_empty());
    let until = NOW + mesh_xds::client::MAX_HOLD;
    assert_eq!(warming.next_timer(), Some(until));
    assert!(matches!(&warming.on_timer(until)[..], [Change::Listener { .. }]));
}

#[test]
fn s28_after_a_loss_everything_is_asked_for_again() {
    for protocol in BOTH {
        let mut client = Client::connected(protocol);
        client.core.subscribe(&EDS, ["x", "y"]);
        client.requests();
        let delivery = client.says(&CDS, vec![cluster("a", "1").to_any()]).unwrap();
        client.core.decide(NOW, delivery.id, Vec::new());
        let undecided = client.says(&EDS, vec![endpoints("x", 1).to_any()]).unwrap();
        client.core.disconnected();
        client.core.decide(NOW, undecided.id, Vec::new());
        assert_eq!(client.status(&CDS, "a"), Some(ResourceStatus::Acked), "what was accepted stays");
        assert!(client.requests().is_empty(), "nothing is sent into the void");
        client.core.connected();
        match protocol {
            Protocol::Delta => {
                let requests = client.delta();
                assert_eq!(requests.len(), 2);
                assert_eq!(requests[0].initial_resource_versions["a"], "v1");
                assert_eq!(requests[1].resource_names_subscribe, ["x", "y"]);
                assert!(requests.iter().all(|r| r.response_nonce.is_empty()));
                assert!(requests[0].node.is_some() && requests[1].node.is_none());
            }
            Protocol::Sotw => {
                let requests = client.sotw();
                assert_eq!(requests.len(), 2);
                assert_eq!(
                    (requests[0].version_info.as_str(), requests[0].response_nonce.as_str()),
                    ("v1", "")
                );
                assert_eq!(requests[1].resource_names, ["x", "y"]);
                assert!(requests[0].node.is_some() && requests[1].node.is_none());
            }
        }
    }
    let mut backoff = Backoff::new(1);
    let waits: Vec<_> = (0..10).map(|_| backoff.next_delay()).collect();
    assert!(waits[0] >= Duration::from_millis(250) && waits[0] <= Duration::from_millis(500));
    assert!(waits[9] >= Duration::from_secs(15) && waits[9] <= Duration::from_secs(30));
}

#[test]
fn s28_what_is_accepted_after_the_loss_counts() {
    let lost = || {
        let mut client = Client::connected(Protocol::Delta);
        let first = client.says(&CDS, vec![cluster("a", "1").to_any()]).unwrap();
        client.core.decide(NOW, first.id, Vec::new());
        client.requests();
        let second = client.says(&CDS, vec![cluster("a", "2").to_any()]).unwrap();
        client.core.disconnected();
        (client, second.id)
    };
    let (mut client, second) = lost();
    client.core.decide(NOW, second, Vec::new());
    client.core.connected();
    assert_eq!(client.delta()[0].initial_resource_versions["a"], "v2");
    assert!(client.answers().is_empty(), "there is nobody to answer");
    // Undecided until after the reconnect: it may have either, so it claims neither, and the server says what is true.
    let (mut client, second) = lost();
    client.core.connected();
    assert_eq!(client.delta()[0].initial_resource_versions["a"], "");
    client.core.decide(NOW, second, Vec::new());
    assert!(client.answers().is_empty());
    let (_, resources) = client.core.resources().find(|(t, _)| **t == CDS).unwrap();
    assert_eq!(resources["a"].version, "v2");
}

#[test]
fn what_is_undecided_is_neither_unchanged_nor_forgotten() {
    let mut client = Client::connected(Protocol::Sotw);
    let first = client.says(&CDS, vec![cluster("a", "1").to_any()]).unwrap();
    client.core.decide(NOW, first.id, Vec::new());
    // The second version is not decided yet when the first one comes back, and a new cluster goes as it came.
    let second = client.says(&CDS, vec![cluster("a", "2").to_any(), cluster("b", "1").to_any()]).unwrap();
    let third = client.says(&CDS, vec![cluster("a", "1").to_any()]).unwrap();
    assert!(!third.resources[0].unchanged);
    assert_eq!(third.removed, ["b"]);
    client.core.decide(NOW, second.id, Vec::new());
    client.core.decide(NOW, third.id, Vec::new());
    assert_eq!(client.status(&CDS, "b"), None);
}

#[test]
fn s29_a_missing_resource_is_waited_for_as_long_as_was_said() {
    let mut warming = Warming::new();
    warming.on_clusters(NOW, Vec::new(), &[]);
    let forever = rds_listener("forever", "1", "r", Some(Duration::ZERO));
    let usual = rds_listener("usual", "1", "r", None);
    assert!(warming.on_listeners(NOW, vec![Arc::new(forever), Arc::new(usual)], &[]).is_empty());
    let late = NOW + Duration::from_secs(15);
    assert_eq!(warming.next_timer(), Some(late));
    assert!(warming.on_timer(late - Duration::from_millis(1)).is_empty());
    let changes = warming.on_timer(late);
    assert!(
        matches!(&changes[..], [Change::Listener { listener, routes }] if listener.name == "usual" && routes.is_empty()),
        "{changes:?}"
    );
    assert_eq!(warming.next_timer(), None);
    assert_eq!(warming.waiting().1, ["forever"]);

    for protocol in BOTH {
        let mut client = Client::new(protocol);
        client.core.watch(&EDS, Names::of(["x"]));
        client.core.connected();
        client.requests();
        assert_eq!(client.core.next_timer(), Some(late));
        let lapse = Lapse { type_url: EDS, name: "x".to_owned(), reason: LapseReason::Missing };
        assert_eq!(client.core.on_timer(late), [lapse]);
        assert_eq!(client.status(&EDS, "x"), Some(ResourceStatus::Timeout));
        assert!(client.core.on_timer(late * 2).is_empty(), "said once");
        // It may still come.
        assert_eq!(names_of(&client.says(&EDS, vec![endpoints("x", 1).to_any()]).unwrap()), ["x"]);
    }
    let mut patient = ClientCore::new(Protocol::Delta, node()).with_missing_after(None);
    patient.watch(&EDS, Names::of(["x"]));
    patient.connected();
    while patient.next_request(NOW).is_some() {}
    assert_eq!(patient.next_timer(), None);
}

#[test]
fn s30_time_to_live_and_one_answer_per_nonce() {
    let ttl = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let mut client = Client::connected(Protocol::Delta);
    let say = |client: &mut Client, nonce: &str, resource: Option<Any>, ttl| {
        let wrapper =
            Wrapper { name: "a".to_owned(), version: "1".to_owned(), resource, ttl, ..Default::default() };
        let response = DeltaDiscoveryResponse {
            type_url: CDS.to_string(),
            nonce: nonce.to_owned(),
            resources: vec![wrapper],
            ..Default::default()
        };
        client.core.on_response(client.now, ClientResponse::Delta(Box::new(response)))
    };
    let delivery = say(&mut client, "x", Some(cluster("a", "1").to_any()), ttl(10)).unwrap();
    client.core.decide(NOW, delivery.id, Vec::new());
    assert_eq!(client.answers(), [ack("x")]);
    assert_eq!(client.core.next_timer(), Some(NOW + Duration::from_secs(10)));
    // A heartbeat refreshes the timer, changes nothing, and is acknowledged.
    client.now = NOW + Duration::from_secs(6);
    assert_eq!(say(&mut client, "y", None, ttl(10)), None);
    assert_eq!(client.answers(), [ack("y")]);
    assert!(client.core.on_timer(NOW + Duration::from_secs(12)).is_empty());
    let lapses = client.core.on_timer(NOW + Duration::from_secs(16));
    assert_eq!(lapses, [Lapse { type_url: CDS, name: "a".to_owned(), reason: LapseReason::Expired }]);
    assert_eq!(client.status(&CDS, "a"), None, "gone, as if removed");
    // Said again without a time to live: no timer.
    let delivery = say(&mut client, "z", Some(cluster("a", "1").to_any()), None).unwrap();
    client.core.decide(NOW, delivery.id, Vec::new());
    assert_eq!(client.core.next_timer(), None);

    // Answers leave in the order of their responses, each nonce once, whatever order they are decided in.
    for protocol in BOTH {
        let mut client = Client::connected(protocol);
        let first = client.says(&CDS, vec![cluster("a", "1").to_any()]).unwrap();
        let second = client.says(&CDS, vec![cluster("a", "2").to_any()]).unwrap();
        client.core.decide(NOW, second.id, Vec::new());
        assert!(client.answers().is_empty());
        client.core.decide(NOW, first.id, Vec::new());
        client.core.decide(NOW, first.id, Vec::new());
        assert_eq!(client.answers(), [ack("n1"), ack("n2")]);
    }
}

#[test]
fn s30_state_of_the_world_understands_the_wrapper() {
    use prost::Message as _;
    let wrapper = |resource: Option<Any>| {
        let ttl = Some(prost_types::Duration { seconds: 10, nanos: 0 });
        let wrapper = Wrapper { name: "a".to_owned(), resource, ttl, ..Default::default() };
        let type_url = "type.googleapis.com/envoy.service.discovery.v3.Resource".to_owned();
        Any { type_url, value: wrapper.encode_to_vec() }
    };
    let mut client = Client::connected(Protocol::Sotw);
    let delivery = client.says(&CDS, vec![wrapper(Some(cluster("a", "1").to_any()))]).unwrap();
    assert_eq!(names_of(&delivery), ["a"]);
    client.core.decide(NOW, delivery.id, Vec::new());
    client.now = NOW + Duration::from_secs(6);
    assert_eq!(client.says(&CDS, vec![wrapper(None)]), None, "a heartbeat deletes nothing");
    assert_eq!(client.core.next_timer(), Some(NOW + Duration::from_secs(16)));
}

#[test]
fn state_of_the_world_deletes_by_absence_in_root_types_only() {
    let mut client = Client::connected(Protocol::Sotw);
    let delivery = client.says(&CDS, vec![cluster("a", "1").to_any(), cluster("b", "1").to_any()]).unwrap();
    client.core.decide(NOW, delivery.id, Vec::new());
    let delivery = client.says(&CDS, vec![cluster("a", "1").to_any()]).unwrap();
    assert_eq!(delivery.removed, ["b"]);
    assert!(delivery.resources[0].unchanged);
    client.core.decide(NOW, delivery.id, Vec::new());
    let delivery = client.says(&CDS, vec![]).unwrap();
    assert_eq!(delivery.removed, ["a"]);

    let mut client = Client::new(Protocol::Sotw);
    client.core.watch(&EDS, Names::of(["a", "b"]));
    client.core.connected();
    client.requests();
    let delivery = client.says(&EDS, vec![endpoints("a", 1).to_any(), endpoints("b", 1).to_any()]).unwrap();
    client.core.decide(NOW, delivery.id, Vec::new());
    let delivery = client.says(&EDS, vec![endpoints("a", 2).to_any()]).unwrap();
    assert!(delivery.removed.is_empty());
}

#[test]
fn subscriptions_change_without_acknowledging_what_is_undecided() {
    let mut client = Client::new(Protocol::Sotw);
    client.core.watch(&EDS, Names::of(["a"]));
    client.core.connected();
    client.requests();
    let delivery = client.says(&EDS, vec![endpoints("a", 1).to_any()]).unwrap();
    client.core.subscribe(&EDS, ["b"]);
    assert!(client.sotw().is_empty(), "a request with this nonce would be an ACK");
    client.core.decide(NOW, delivery.id, Vec::new());
    let requests = client.sotw();
    assert_eq!(requests.len(), 1);
    assert_eq!(
        (requests[0].resource_names.clone(), requests[0].response_nonce.as_str()),
        (strings(&["a", "b"]), "n1")
    );

    let mut client = Client::connected(Protocol::Delta);
    let delivery = client.says(&CDS, vec![cluster("a", "1").to_any()]).unwrap();
    client.core.subscribe(&CDS, ["outside"]);
    let request = client.delta().remove(0);
    assert_eq!(request.resource_names_subscribe, ["*", "outside"]);
    assert_eq!(request.response_nonce, "", "a spontaneous request has no nonce");
    client.core.decide(NOW, delivery.id, Vec::new());
    assert_eq!(client.answers(), [ack("n1")]);
}
