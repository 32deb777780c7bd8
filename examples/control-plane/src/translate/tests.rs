//! Own cases in YAML; what a proxy is told is read back from the messages themselves.

mod clusters;
mod inbound;
mod listeners;
mod properties;
mod rbac;
mod routes;

use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::pb::envoy::config::listener::v3 as pb;
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use mesh_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use prost::Message as _;

use super::*;
use crate::model::MeshSettings;
use crate::model::tests::state;

/// A client in namespace `n`.
fn client() -> Proxy {
    Proxy {
        namespace: "n".to_owned(),
        name: "client".to_owned(),
        labels: [("app".to_owned(), "client".to_owned())].into(),
        ips: vec![[10, 0, 0, 99].into()],
    }
}

fn mesh(yaml: &str) -> Mesh {
    Mesh::build(&state(yaml), MeshSettings::default())
}

fn translated(yaml: &str, proxy: &Proxy) -> Resources {
    translate(&mesh(yaml), proxy)
}

/// `web` in namespace `n` with one port, and a ready pod behind it that has a sidecar.
fn web(port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: n}}\nspec: {{clusterIP: 10.96.0.1, selector: {{app: web}}, ports: [{port}]}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web-0, namespace: n, labels: {{app: web, version: v1, security.istio.io/tlsMode: istio}}}}\nspec: {{serviceAccountName: alice}}\nstatus: {{podIP: 10.0.0.1, conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

/// `web`'s own proxy.
fn server() -> Proxy {
    Proxy {
        namespace: "n".to_owned(),
        name: "web-0".to_owned(),
        labels: [("app".to_owned(), "web".to_owned()), ("version".to_owned(), "v1".to_owned())].into(),
        ips: vec![[10, 0, 0, 1].into()],
    }
}

fn listener<'r>(resources: &'r Resources, name: &str) -> &'r Listener {
    let names: Vec<_> = resources.listeners.iter().map(|l| &l.name).collect();
    resources.listeners.iter().find(|l| l.name == name).unwrap_or_else(|| panic!("{name} not in {names:?}"))
}

fn cluster<'r>(resources: &'r Resources, name: &str) -> &'r Cluster {
    let names: Vec<_> = resources.clusters.iter().map(|c| &c.name).collect();
    resources.clusters.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("{name} not in {names:?}"))
}

fn typed<M: prost::Message + Default>(filter: &pb::Filter) -> M {
    let Some(pb::filter::ConfigType::TypedConfig(any)) = &filter.config_type else { panic!("{filter:?}") };
    M::decode(any.value.as_slice()).expect("decodes")
}

/// What the last filter of a chain does, in one word.
fn target(chain: &pb::FilterChain) -> String {
    use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
    let last = chain.filters.last().expect("a filter");
    if last.name.ends_with("tcp_proxy") {
        return match typed::<TcpProxy>(last).cluster_specifier {
            Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => format!("tcp {name}"),
            Some(tcp_proxy::ClusterSpecifier::WeightedClusters(all)) => {
                let all: Vec<_> = all.clusters.iter().map(|c| format!("{}={}", c.name, c.weight)).collect();
                format!("tcp {}", all.join("+"))
            }
            None => "tcp nowhere".to_owned(),
        };
    }
    match typed::<HttpConnectionManager>(last).route_specifier {
        Some(RouteSpecifier::Rds(rds)) => format!("http {}", rds.route_config_name),
        Some(RouteSpecifier::RouteConfig(routes)) => format!("http inline {}", routes.name),
        _ => "http nowhere".to_owned(),
    }
}

/// A chain in one line: `[port] transport alpn -> what (mtls)`.
fn line(chain: &pb::FilterChain) -> String {
    let m = chain.filter_chain_match.clone().unwrap_or_default();
    let port = m.destination_port.map(|port| format!("{port} ")).unwrap_or_default();
    let protocols = m.application_protocols.join(",");
    let names = m.server_names.join(",");
    let cidrs: Vec<_> = m
        .prefix_ranges
        .iter()
        .map(|r| format!("{}/{}", r.address_prefix, r.prefix_len.unwrap_or_default()))
        .collect();
    let parts = [m.transport_protocol.as_str(), &protocols, &names, &cidrs.join(",")];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let mtls = if chain.transport_socket.is_some() { " mtls" } else { "" };
    format!("{port}{} -> {}{mtls}", parts.join(" "), target(chain))
}

fn lines<'c>(chains: impl IntoIterator<Item = &'c pb::FilterChain>) -> Vec<String> {
    chains.into_iter().map(line).collect()
}
