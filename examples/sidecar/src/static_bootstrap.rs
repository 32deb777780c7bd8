//! Stand-alone: an Envoy bootstrap file with static resources, no agent, no control plane.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use mesh_proxy_core::Handle;
use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use mesh_xds::pb::envoy::config::core::v3::{Address, address, socket_address::PortSpecifier};
use thiserror::Error;

use crate::apply::{Applicable, apply};
use crate::resources::{Origin, Resources};

/// Why a bootstrap file cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a bootstrap.
    #[error("{}: {problem}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        problem: String,
    },
    /// The bootstrap asks for something that only the pod mode has.
    #[error("{field} is not supported in a static bootstrap")]
    Unsupported {
        /// The field.
        field: &'static str,
    },
    /// The admin address is no IP address and port.
    #[error("admin.address must be an IP address and a port")]
    AdminAddress,
    /// A resource was refused.
    #[error("static_resources: {name}: {problem}")]
    Resource {
        /// Its name.
        name: String,
        /// Why.
        problem: String,
    },
}

/// Reads the file in a short-lived way: only the message is kept.
///
/// # Errors
/// The file cannot be read or is not a bootstrap that can be run.
pub fn read(path: &Path) -> Result<Bootstrap, BootstrapError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| BootstrapError::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// The same from text; JSON is YAML too.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str, path: &Path) -> Result<Bootstrap, BootstrapError> {
    let bootstrap: Bootstrap = mesh_xds::json::from_yaml(text)
        .map_err(|error| BootstrapError::Parse { path: path.to_owned(), problem: error.to_string() })?;
    check(&bootstrap)?;
    Ok(bootstrap)
}

fn check(bootstrap: &Bootstrap) -> Result<(), BootstrapError> {
    if bootstrap.dynamic_resources.is_some() {
        return Err(BootstrapError::Unsupported { field: "dynamic_resources" });
    }
    if bootstrap.static_resources.as_ref().is_some_and(|resources| !resources.secrets.is_empty()) {
        return Err(BootstrapError::Unsupported { field: "static_resources.secrets" });
    }
    Ok(())
}

/// The admin server's address, if there is one.
///
/// # Errors
/// It is not an IP address with a port.
pub fn admin_address(bootstrap: &Bootstrap) -> Result<Option<SocketAddr>, BootstrapError> {
    let Some(address) = bootstrap.admin.as_ref().and_then(|admin| admin.address.as_ref()) else {
        return Ok(None);
    };
    socket(address).map(Some).ok_or(BootstrapError::AdminAddress)
}

fn socket(address: &Address) -> Option<SocketAddr> {
    let Some(address::Address::SocketAddress(socket)) = &address.address else { return None };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { return None };
    Some(SocketAddr::new(socket.address.parse().ok()?, u16::try_from(port).ok()?))
}

/// Applies the static resources: clusters first, so that listeners find them.
///
/// # Errors
/// The first resource that is refused: a static configuration is right as a whole or not at all.
pub fn apply_all(
    handle: &Handle,
    resources: &Resources,
    bootstrap: &Bootstrap,
) -> Result<(), BootstrapError> {
    let Some(statics) = &bootstrap.static_resources else { return Ok(()) };
    for cluster in &statics.clusters {
        apply_one(handle, resources, cluster)?;
    }
    for listener in &statics.listeners {
        apply_one(handle, resources, listener)?;
    }
    Ok(())
}

fn apply_one<T: Applicable>(
    handle: &Handle,
    resources: &Resources,
    message: &T,
) -> Result<(), BootstrapError> {
    apply(handle, resources, message, Origin::Static)
        .map_err(|problem| BootstrapError::Resource { name: message.resource_name().into_owned(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        let parse = |text: &str| parse(text, Path::new("b.yaml"));
        let bootstrap = parse(
            "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 9901 } } }\nstatic_resources: {}\n",
        )
        .unwrap();
        assert_eq!(admin_address(&bootstrap).unwrap(), Some(SocketAddr::from(([127, 0, 0, 1], 9901))));
        let error = parse("static_resources:\n  listenerz: []\n").unwrap_err().to_string();
        assert!(error.contains("b.yaml") && error.contains("line 2"), "{error}");
        let error = parse("dynamic_resources: {}\n").unwrap_err().to_string();
        assert!(error.starts_with("dynamic_resources"), "{error}");
        let bootstrap = parse("admin: { address: { pipe: { path: /x } } }\n").unwrap();
        assert!(admin_address(&bootstrap).is_err());
    }
}
