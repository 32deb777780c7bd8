//! Small drivers, so that a test reads like its statement.

use std::sync::Arc;
use std::time::Duration;

use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use mesh_xds::pb::envoy::config::core::v3::{ConfigSource, Node};
use mesh_xds::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use mesh_xds::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use mesh_xds::pb::envoy::config::route::v3::RouteConfiguration;
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
};
use mesh_xds::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use mesh_xds::pb::google::rpc::Status;
use mesh_xds::server::{DeltaStream, Response, Snapshot, SotwStream, StreamRules};
use mesh_xds::{Any, TypeUrl};
use prost::Message as _;

pub(crate) const NOW: Duration = Duration::from_secs(100);

/// A static cluster; `mark` makes versions differ.
pub(crate) fn cluster(name: &str, mark: &str) -> Cluster {
    Cluster { name: name.to_owned(), alt_stat_name: mark.to_owned(), ..Default::default() }
}

/// A cluster with endpoints of the same name from EDS.
pub(crate) fn eds_cluster(name: &str, mark: &str) -> Cluster {
    let discovery = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
    Cluster { cluster_discovery_type: discovery, ..cluster(name, mark) }
}

pub(crate) fn endpoints(name: &str, mark: u32) -> ClusterLoadAssignment {
    let endpoints = vec![LocalityLbEndpoints { priority: mark, ..Default::default() }];
    ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints, ..Default::default() }
}

pub(crate) fn routes(name: &str, mark: &str) -> RouteConfiguration {
    RouteConfiguration {
        name: name.to_owned(),
        internal_only_headers: vec![mark.to_owned()],
        ..Default::default()
    }
}

pub(crate) fn listener(name: &str, mark: &str) -> Listener {
    Listener { name: name.to_owned(), stat_prefix: mark.to_owned(), ..Default::default() }
}

/// A listener whose routes come from RDS, waited for as long as `timeout` says.
pub(crate) fn rds_listener(name: &str, mark: &str, routes: &str, timeout: Option<Duration>) -> Listener {
    let source = ConfigSource {
        initial_fetch_timeout: timeout.map(|t| prost_types::Duration::try_from(t).unwrap()),
        ..Default::default()
    };
    let rds = Rds { route_config_name: routes.to_owned(), config_source: Some(source) };
    let manager =
        HttpConnectionManager { route_specifier: Some(RouteSpecifier::Rds(rds)), ..Default::default() };
    let any = Any {
        type_url: "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
            .to_owned(),
        value: manager.encode_to_vec(),
    };
    let filters =
        vec![Filter { config_type: Some(filter::ConfigType::TypedConfig(any)), ..Default::default() }];
    Listener { filter_chains: vec![FilterChain { filters, ..Default::default() }], ..listener(name, mark) }
}

pub(crate) fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

pub(crate) fn node() -> Node {
    Node { id: "sidecar~10.0.0.1~a.b~b.svc.cluster.local".to_owned(), ..Default::default() }
}

pub(crate) fn error(message: &str) -> Option<Status> {
    Some(Status { code: 3, message: message.to_owned(), details: Vec::new() })
}

/// The names in a response, in order.
pub(crate) fn names(response: &Response) -> Vec<&str> {
    response.resources.iter().map(|r| &**r.name()).collect()
}

pub(crate) fn removed(response: &Response) -> Vec<&str> {
    response.removed.iter().map(|n| &**n).collect()
}

pub(crate) fn rules() -> Arc<StreamRules> {
    Arc::new(StreamRules::default())
}

/// A State-of-the-World server with a client that says exactly what it is told.
pub(crate) struct Sotw(pub(crate) SotwStream);

impl Sotw {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        Self::with_rules(snapshot, rules())
    }

    pub(crate) fn with_rules(snapshot: Snapshot, rules: Arc<StreamRules>) -> Self {
        let mut stream = SotwStream::new(rules);
        stream.on_snapshot(Arc::new(snapshot));
        Self(stream)
    }

    pub(crate) fn send(&mut self, request: DiscoveryRequest) {
        self.0.on_request(NOW, request).unwrap();
    }

    pub(crate) fn ask(&mut self, type_url: &TypeUrl, names: &[&str], nonce: &str) {
        self.send(DiscoveryRequest {
            type_url: type_url.to_string(),
            resource_names: strings(names),
            response_nonce: nonce.to_owned(),
            ..Default::default()
        });
    }

    pub(crate) fn next(&mut self) -> Option<Response> {
        self.0.next_response(NOW)
    }

    /// Everything the server says until it is silent; each response is acknowledged with the given names.
    pub(crate) fn drain(&mut self, subscription: &dyn Fn(&TypeUrl) -> Vec<String>) -> Vec<Response> {
        let mut all = Vec::new();
        while let Some(response) = self.next() {
            let names = subscription(&response.type_url);
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            self.ask(&response.type_url, &names, &response.nonce);
            all.push(response);
        }
        all
    }

    pub(crate) fn set(&mut self, snapshot: Snapshot) {
        self.0.on_snapshot(Arc::new(snapshot));
    }
}

/// A Delta server with a client that says exactly what it is told.
pub(crate) struct Delta(pub(crate) DeltaStream);

impl Delta {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        Self::with_rules(snapshot, rules())
    }

    pub(crate) fn with_rules(snapshot: Snapshot, rules: Arc<StreamRules>) -> Self {
        let mut stream = DeltaStream::new(rules);
        stream.on_snapshot(Arc::new(snapshot));
        Self(stream)
    }

    pub(crate) fn send(&mut self, request: DeltaDiscoveryRequest) {
        self.0.on_request(NOW, request).unwrap();
    }

    pub(crate) fn subscribe(&mut self, type_url: &TypeUrl, names: &[&str]) {
        self.change(type_url, names, &[]);
    }

    pub(crate) fn change(&mut self, type_url: &TypeUrl, subscribe: &[&str], unsubscribe: &[&str]) {
        self.send(DeltaDiscoveryRequest {
            type_url: type_url.to_string(),
            resource_names_subscribe: strings(subscribe),
            resource_names_unsubscribe: strings(unsubscribe),
            ..Default::default()
        });
    }

    pub(crate) fn ack(&mut self, response: &Response) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.to_string(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        });
    }

    pub(crate) fn next(&mut self) -> Option<Response> {
        self.0.next_response(NOW)
    }

    /// Everything the server says until it is silent, acknowledged.
    pub(crate) fn drain(&mut self) -> Vec<Response> {
        let mut all = Vec::new();
        while let Some(response) = self.next() {
            self.ack(&response);
            all.push(response);
        }
        all
    }

    pub(crate) fn set(&mut self, snapshot: Snapshot) {
        self.0.on_snapshot(Arc::new(snapshot));
    }
}
