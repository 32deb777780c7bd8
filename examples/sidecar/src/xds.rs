//! The ADS stream: asks for listeners, clusters and what they refer to, applies what is good, names what is not.
//!
//! A resource is converted before it is acknowledged, so a NACK names each bad one with its reason while the others go
//! on; it is applied when what it needs has come. While the control plane is away everything stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_proxy_core::config::{
    Cluster, HttpFilterKind, Listener, LoadAssignment, NetworkFilter, RouteConfiguration,
};
use mesh_xds::TypeUrl;
use mesh_xds::client::{AdsClient, Candidate, Change, ClientError, Connector as XdsConnector, Io, Target};
use mesh_xds::pb::envoy::config::cluster::v3 as cluster;
use mesh_xds::resource::Resource;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::agent::SharedAgent;
use crate::apply::{Applicable, apply, remove};
use crate::control_plane::Connector;
use crate::environment::Environment;
use crate::resources::Origin;

/// Makes the client; it connects when [`run`] asks for something.
///
/// # Errors
/// The discovery address cannot be used.
pub fn client(agent: &SharedAgent) -> Result<Option<AdsClient>, ClientError> {
    let Some(pod) = &agent.pod else { return Ok(None) };
    let connector = Connector::new(pod.env.root_cert_file.clone(), agent.identity().cloned());
    let connector = XdsConnector::new(move |target: Target| {
        let connector = connector.clone();
        async move {
            let uri = match target {
                Target::Http(uri) | Target::Https(uri) => uri,
                Target::Unix(_) => return Err(std::io::ErrorKind::Unsupported.into()),
            };
            Ok(Box::new(connector.open(&uri).await?) as Box<dyn Io>)
        }
    });
    let credentials = Arc::clone(agent);
    AdsClient::builder(agent.bootstrap.node.clone().unwrap_or_default())
        .server(format!("https://{}", pod.env.discovery_address))
        .connector(connector)
        .headers(move |headers| match &credentials.pod {
            Some(pod) => authorize(&pod.env, credentials.identity().is_some_and(|i| i.is_ready()), headers),
            None => Ok(()),
        })
        .start()
        .map(Some)
}

/// Adds the service-account token. With a certificate in the handshake it is not needed, and only missed without one.
fn authorize(env: &Environment, certified: bool, headers: &mut MetadataMap) -> Result<(), String> {
    if let Some(Ok(cluster)) = env.var("ISTIO_META_CLUSTER_ID").map(MetadataValue::try_from) {
        headers.insert("clusterid", cluster);
    }
    match std::fs::read_to_string(&env.token_file) {
        Ok(token) => {
            let value = MetadataValue::try_from(format!("Bearer {}", token.trim()));
            let mut value = value.map_err(|_| "the token is not a header value".to_owned())?;
            value.set_sensitive(true);
            headers.insert("authorization", value);
            Ok(())
        }
        Err(_) if certified => Ok(()),
        Err(error) => Err(format!("{}: {error}", env.token_file.display())),
    }
}

/// Follows the control plane until the client stops.
pub async fn run(agent: SharedAgent, client: AdsClient) {
    let judge = Arc::clone(&agent);
    let mut configuration = client.configuration(move |candidate| accept(&judge, candidate));
    let mut references = References::default();
    let mut connection = client.connection();
    let mut connected = false;
    loop {
        tokio::select! {
            changes = configuration.next() => {
                let Some(changes) = changes else { return };
                for change in changes {
                    references.apply(&agent, change);
                }
                if configuration.is_complete() {
                    agent.life.saw_clusters();
                    agent.life.saw_listeners();
                    agent.check_ready();
                }
            }
            changed = connection.changed() => {
                if changed.is_err() {
                    return;
                }
                let state = connection.borrow_and_update().clone();
                agent.handle.stats().gauge("control_plane.connected_state").set(i64::from(state.connected));
                if state.connected != connected {
                    connected = state.connected;
                    tracing::info!(connected, server = state.server, "control plane");
                }
                if let Some(error) = state.last_error.filter(|_| !state.connected) {
                    tracing::warn!(reason = error.reason(), %error, "not connected to the control plane");
                }
            }
        }
    }
}

/// Converts a resource to find out whether it could be used.
fn accept(agent: &SharedAgent, candidate: Candidate<'_>) -> Result<(), String> {
    match candidate {
        Candidate::Cluster(message) => judge(agent, message, Cluster::try_from(message).map(drop)),
        Candidate::Endpoints(message) => judge(agent, message, LoadAssignment::try_from(message).map(drop)),
        Candidate::Listener(message) => match Listener::try_from(message) {
            Ok(listener) => judge(agent, message, own_filters_only(&listener)),
            Err(error) => judge(agent, message, Err(error)),
        },
        Candidate::Routes(message) => match RouteConfiguration::try_from(message) {
            Ok(routes) => {
                let invalid = routes.invalid_routes();
                if invalid.is_empty() {
                    return judge::<_, &str>(agent, message, Ok(()));
                }
                // Its good routes serve, the others answer 500. Refused all the same, so that its author hears of it;
                // but not the first time, when a listener could not open without it.
                if agent.resources.is_accepted(&TypeUrl::ROUTE, &routes.name) {
                    if let Err(error) = agent.handle.apply_routes(routes) {
                        return judge(agent, message, Err(error));
                    }
                    return judge(agent, message, Err(invalid.join("; ")));
                }
                tracing::error!(routes = %routes.name, problems = invalid.join("; "), "routes that answer 500");
                Ok(())
            }
            Err(error) => judge(agent, message, Err(error)),
        },
        // Secrets come from the agent; none are asked for.
        Candidate::Secret(message) => {
            judge(agent, message, Err("secrets are not taken from the control plane"))
        }
    }
}

/// This program brings no HTTP filters of its own: one that the data path does not know cannot be made, and leaving it
/// out could leave a hole.
fn own_filters_only(listener: &Listener) -> Result<(), String> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    for filter in chains.flat_map(|chain| &chain.filters) {
        let NetworkFilter::Http(manager) = filter else { continue };
        for filter in &manager.filters {
            if let HttpFilterKind::Custom(_) = &filter.kind {
                return Err(format!("http filter {:?} is not known", filter.name));
            }
        }
    }
    Ok(())
}

fn judge<T: Resource, E: ToString>(
    agent: &SharedAgent,
    message: &T,
    verdict: Result<(), E>,
) -> Result<(), String> {
    let name = message.resource_name();
    let (manager, kind) = (manager(&T::TYPE), T::TYPE.short().to_owned());
    match verdict {
        Ok(()) => {
            agent.handle.stats().counter(&format!("{manager}.update_success")).inc();
            Ok(())
        }
        Err(error) => {
            let reason = error.to_string();
            agent.handle.stats().counter(&format!("{manager}.update_rejected")).inc();
            tracing::error!(kind, name = %name, reason, "refused, the last good version stays");
            agent.resources.refuse(&T::TYPE, &name, message.to_any(), reason.clone());
            Err(reason)
        }
    }
}

/// Envoy's prefix for statistics of a type's subscription.
fn manager(kind: &TypeUrl) -> &'static str {
    match kind.short() {
        "LDS" => "listener_manager.lds",
        "CDS" => "cluster_manager.cds",
        "EDS" => "cluster_manager.eds",
        _ => "listener_manager.rds",
    }
}

/// Which endpoints and routes are still referred to, so that those that are not can be forgotten.
#[derive(Debug, Default)]
struct References {
    endpoints_of: BTreeMap<String, String>,
    routes_of: BTreeMap<String, BTreeSet<String>>,
}

impl References {
    fn apply(&mut self, agent: &SharedAgent, change: Change) {
        match change {
            Change::Cluster { cluster, endpoints } => {
                if let Some(endpoints) = endpoints {
                    put(agent, &*endpoints);
                }
                put(agent, &*cluster);
                let old = match service_name(&cluster) {
                    Some(service) => self.endpoints_of.insert(cluster.name.clone(), service),
                    None => self.endpoints_of.remove(&cluster.name),
                };
                self.forget_endpoints(agent, old);
            }
            Change::Endpoints { endpoints, .. } => put(agent, &*endpoints),
            Change::Listener { listener, routes } => {
                for routes in &routes {
                    put(agent, &**routes);
                }
                put(agent, &*listener);
                let names = routes.iter().map(|routes| routes.name.clone()).collect();
                let old = self.routes_of.insert(listener.name.clone(), names);
                self.forget_routes(agent, old);
            }
            Change::Routes(routes) => put(agent, &*routes),
            Change::Secret(_) => {}
            Change::ListenerRemoved(name) => {
                remove(&agent.handle, &agent.resources, &TypeUrl::LISTENER, &name);
                agent.life.note_applied(format!("LDS {name}"), true);
                let old = self.routes_of.remove(&name);
                self.forget_routes(agent, old);
            }
            Change::ClusterRemoved(name) => {
                remove(&agent.handle, &agent.resources, &TypeUrl::CLUSTER, &name);
                let old = self.endpoints_of.remove(&name);
                self.forget_endpoints(agent, old);
            }
        }
    }

    fn forget_endpoints(&self, agent: &SharedAgent, service: Option<String>) {
        if let Some(service) = service
            && !self.endpoints_of.values().any(|used| *used == service)
        {
            remove(&agent.handle, &agent.resources, &TypeUrl::ENDPOINTS, &service);
        }
    }

    fn forget_routes(&self, agent: &SharedAgent, names: Option<BTreeSet<String>>) {
        for name in names.into_iter().flatten() {
            if !self.routes_of.values().any(|used| used.contains(&name)) {
                remove(&agent.handle, &agent.resources, &TypeUrl::ROUTE, &name);
            }
        }
    }
}

/// Applies a resource that was accepted before; what still fails now (a port that is taken) is logged and dumped.
fn put<T: Applicable>(agent: &SharedAgent, message: &T) {
    let name = message.resource_name();
    let applied = apply(&agent.handle, &agent.resources, message, Origin::Dynamic);
    agent.life.note_applied(format!("{} {name}", T::TYPE.short()), applied.is_ok());
    if let Err(error) = applied {
        tracing::error!(kind = T::TYPE.short(), name = %name, error, "not applied");
    }
}

/// The name under which a cluster's endpoints are asked for.
fn service_name(message: &cluster::Cluster) -> Option<String> {
    let eds = message.eds_cluster_config.as_ref()?;
    Some(if eds.service_name.is_empty() { message.name.clone() } else { eds.service_name.clone() })
}
