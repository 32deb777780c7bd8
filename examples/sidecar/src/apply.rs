//! Resources into the data path: decode, convert, apply, remember. What is refused leaves its last good form serving.

use mesh_proxy_core::Handle;
use mesh_proxy_core::config::{Cluster, Listener, LoadAssignment, RouteConfiguration};
use mesh_xds::pb::envoy::config::cluster::v3 as cluster;
use mesh_xds::pb::envoy::config::endpoint::v3 as endpoint;
use mesh_xds::pb::envoy::config::listener::v3 as listener;
use mesh_xds::pb::envoy::config::route::v3 as route;
use mesh_xds::resource::decode;
use mesh_xds::{Any, TypeUrl};

use crate::resources::{Origin, Resources};

/// The types that the data path runs on, in the order in which they are applied.
pub const TYPES: [TypeUrl; 4] = [TypeUrl::CLUSTER, TypeUrl::ENDPOINTS, TypeUrl::LISTENER, TypeUrl::ROUTE];

/// Applies one resource and remembers it. The error is what a NACK says about it.
///
/// A route configuration with routes that answer 500 because their action is not valid is applied, and still an error,
/// so that the control plane hears of it.
///
/// # Errors
/// The resource cannot be decoded, converted or applied.
pub fn apply(
    handle: &Handle,
    resources: &Resources,
    kind: &TypeUrl,
    name: &str,
    version: &str,
    any: &Any,
    origin: Origin,
) -> Result<(), String> {
    match convert(handle, kind, any) {
        Ok(Applied::Whole) => {
            resources.accept(kind, name, version, any.clone(), origin);
            Ok(())
        }
        Ok(Applied::InPart(problems)) => {
            resources.accept(kind, name, version, any.clone(), origin);
            resources.refuse(kind, name, version, any.clone(), problems.clone());
            Err(problems)
        }
        Err(problem) => {
            resources.refuse(kind, name, version, any.clone(), problem.clone());
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

enum Applied {
    Whole,
    InPart(String),
}

fn convert(handle: &Handle, kind: &TypeUrl, any: &Any) -> Result<Applied, String> {
    match kind {
        k if *k == TypeUrl::CLUSTER => {
            let message: cluster::Cluster = decode(any).map_err(text)?;
            handle.apply_cluster(Cluster::try_from(&message).map_err(text)?).map_err(text)?;
        }
        k if *k == TypeUrl::ENDPOINTS => {
            let message: endpoint::ClusterLoadAssignment = decode(any).map_err(text)?;
            handle.apply_endpoints(LoadAssignment::try_from(&message).map_err(text)?).map_err(text)?;
        }
        k if *k == TypeUrl::LISTENER => {
            let message: listener::Listener = decode(any).map_err(text)?;
            handle.apply_listener(Listener::try_from(&message).map_err(text)?).map_err(text)?;
        }
        k if *k == TypeUrl::ROUTE => {
            let message: route::RouteConfiguration = decode(any).map_err(text)?;
            let routes = RouteConfiguration::try_from(&message).map_err(text)?;
            let invalid = routes.invalid_routes();
            handle.apply_routes(routes).map_err(text)?;
            if !invalid.is_empty() {
                return Ok(Applied::InPart(invalid.join("; ")));
            }
        }
        other => return Err(format!("{other} is not used by this proxy")),
    }
    Ok(Applied::Whole)
}

fn text(error: impl ToString) -> String {
    error.to_string()
}
