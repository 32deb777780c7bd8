//! Who may be which node.

use mesh_identity::auth::{Authenticators, CallerCredentials};
use mesh_xds::pb::envoy::config::core::v3::Node;
use mesh_xds::server::{Authorization, Authorizer, Caller, Grant};
use tonic::Status;

use super::node::NodeInfo;
use super::push::MeshSource;

/// Asks for a token or certificate whose namespace and service account are the node's.
pub(super) struct Gate {
    authenticators: Authenticators,
    mesh: MeshSource,
}

impl Gate {
    pub(super) fn new(authenticators: Authenticators, mesh: MeshSource) -> Self {
        Self { authenticators, mesh }
    }

    async fn check(&self, caller: &Caller, node: &Node) -> Result<Grant, Status> {
        let credentials = CallerCredentials::from_parts(&caller.metadata, &caller.extensions);
        let identity = self.authenticators.authenticate(&credentials).await.map_err(|error| {
            tracing::warn!(node = node.id, reason = error.reason(), %error, "xDS client refused");
            error.to_status()
        })?;
        let node = parse(node)?;
        let denied = |message: String| {
            tracing::warn!(node = node.id, identity = %identity.id, reason = "identity", "xDS client refused: {message}");
            Status::permission_denied(message)
        };
        let Some(name) = identity.id.istio() else {
            return Err(denied(format!("{} names no service account", identity.id)));
        };
        if name.namespace != node.namespace {
            return Err(denied(format!("{} is not of namespace {:?}", identity.id, node.namespace)));
        }
        let mesh = self.mesh.current();
        let registered = mesh.workload(&node.namespace, &node.name).map(|w| w.service_account.as_str());
        for account in node.service_account.as_deref().into_iter().chain(registered) {
            if account != name.service_account {
                return Err(denied(format!("{} is not service account {account:?}", identity.id)));
            }
        }
        tracing::info!(node = node.id, identity = %identity.id, by = identity.method, "xDS client accepted");
        Ok(Grant { identity: identity.id.to_string(), group: Some(self.mesh.register(node)) })
    }
}

impl Authorizer for Gate {
    fn authorize<'a>(&'a self, caller: &'a Caller, node: &'a Node) -> Authorization<'a> {
        Box::pin(self.check(caller, node))
    }
}

/// Lets every node be what it says: for the loopback port that is off by default.
pub(super) struct Open {
    mesh: MeshSource,
}

impl Open {
    pub(super) fn new(mesh: MeshSource) -> Self {
        Self { mesh }
    }
}

impl Authorizer for Open {
    fn authorize<'a>(&'a self, _: &'a Caller, node: &'a Node) -> Authorization<'a> {
        let grant = parse(node).map(|node| Grant {
            identity: "unauthenticated".to_owned(),
            group: Some(self.mesh.register(node)),
        });
        Box::pin(std::future::ready(grant))
    }
}

fn parse(node: &Node) -> Result<NodeInfo, Status> {
    NodeInfo::parse(node).map_err(|message| {
        tracing::warn!(node = node.id, reason = "node", "xDS client refused: {message}");
        Status::invalid_argument(message)
    })
}
