//! Resources into the data path: convert, apply, remember. What is refused leaves its last good form serving.

use mesh_proxy_core::Handle;
use mesh_proxy_core::config::{Cluster, Listener, LoadAssignment, RouteConfiguration};
use mesh_xds::TypeUrl;
use mesh_xds::pb::envoy::config::cluster::v3 as cluster;
use mesh_xds::pb::envoy::config::endpoint::v3 as endpoint;
use mesh_xds::pb::envoy::config::listener::v3 as listener;
use mesh_xds::pb::envoy::config::route::v3 as route;
use mesh_xds::resource::Resource;

use crate::resources::{Origin, Resources};

/// A resource that the data path runs on.
pub trait Applicable: Resource {
    /// Converts and applies; gives back what is wrong with parts of it that is in force all the same.
    ///
    /// # Errors
    /// It cannot be converted or applied.
    fn apply_to(&self, handle: &Handle) -> Result<Vec<String>, String>;
}

impl Applicable for cluster::Cluster {
    fn apply_to(&self, handle: &Handle) -> Result<Vec<String>, String> {
        handle.apply_cluster(Cluster::try_from(self).map_err(text)?).map_err(text)?;
        Ok(Vec::new())
    }
}

impl Applicable for endpoint::ClusterLoadAssignment {
    fn apply_to(&self, handle: &Handle) -> Result<Vec<String>, String> {
        handle.apply_endpoints(LoadAssignment::try_from(self).map_err(text)?).map_err(text)?;
        Ok(Vec::new())
    }
}

impl Applicable for listener::Listener {
    fn apply_to(&self, handle: &Handle) -> Result<Vec<String>, String> {
        handle.apply_listener(Listener::try_from(self).map_err(text)?).map_err(text)?;
        Ok(Vec::new())
    }
}

impl Applicable for route::RouteConfiguration {
    fn apply_to(&self, handle: &Handle) -> Result<Vec<String>, String> {
        let routes = RouteConfiguration::try_from(self).map_err(text)?;
        let invalid = routes.invalid_routes();
        handle.apply_routes(routes).map_err(text)?;
        Ok(invalid)
    }
}

/// Applies one resource and remembers it. The error is what a NACK says about it.
///
/// A route configuration with routes that answer 500 because their action is not valid is applied, and still an error,
/// so that the control plane hears of it.
///
/// # Errors
/// The resource cannot be converted or applied.
pub fn apply<T: Applicable>(
    handle: &Handle,
    resources: &Resources,
    message: &T,
    origin: Origin,
) -> Result<(), String> {
    let (name, any) = (message.resource_name(), message.to_any());
    match message.apply_to(handle) {
        Ok(invalid) if invalid.is_empty() => {
            resources.accept(&T::TYPE, &name, any, origin);
            Ok(())
        }
        Ok(invalid) => {
            let problems = invalid.join("; ");
            resources.accept(&T::TYPE, &name, any.clone(), origin);
            resources.refuse(&T::TYPE, &name, any, problems.clone());
            Err(problems)
        }
        Err(problem) => {
            resources.refuse(&T::TYPE, &name, any, problem.clone());
            Err(problem)
        }
    }
}

/// Removes one resource.
pub fn remove(handle: &Handle, resources: &Resources, kind: &TypeUrl, name: &str) {
    let _was_there = match kind {
        k if *k == TypeUrl::CLUSTER => handle.remove_cluster(name),
        k if *k == TypeUrl::ENDPOINTS => handle.remove_endpoints(name),
        k if *k == TypeUrl::LISTENER => handle.remove_listener(name),
        k if *k == TypeUrl::ROUTE => handle.remove_routes(name),
        _ => false,
    };
    resources.remove(kind, name);
}

fn text(error: impl ToString) -> String {
    error.to_string()
}
