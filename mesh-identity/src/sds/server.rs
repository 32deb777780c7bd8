use std::{io, path::Path};

use mesh_xds::{
    pb::envoy::config::core::v3::Node,
    server::{
        AdsServer, Authorization, Authorizer, Caller, Grant, ServerConfig, Snapshot, SnapshotCache,
        services::{DiscoveryService, Secrets},
    },
};
use tokio::task::JoinHandle;
use tonic::{
    Status,
    transport::{Server, server::UdsConnectInfo},
};

use super::{
    ROOT, WORKLOAD,
    secrets::{certificate_secret, validation_secret, wipe},
};
use crate::{identity::Identity, workload_api::serve_unix};

/// All callers are one workload: one group.
const GROUP: &str = "workload";

/// Serves one identity's secrets, Delta and State-of-the-World, and every change of them. Dropping it stops following.
#[derive(Debug)]
pub struct SdsServer {
    server: AdsServer,
    following: JoinHandle<()>,
}

impl SdsServer {
    /// Follows `identity` for callers whose process has this user ID. Must be called within a tokio runtime.
    pub fn new(identity: Identity, allowed_uid: u32) -> Self {
        let cache = SnapshotCache::new();
        let server = AdsServer::new(cache.clone(), OneUser(allowed_uid), ServerConfig::default());
        let following = tokio::spawn(follow(identity, cache));
        Self { server, following }
    }

    /// Listens on a Unix socket of mode 0600 until the future is dropped. There is no other way to the private key.
    ///
    /// # Errors
    /// The socket cannot be made, or the server failed.
    pub async fn serve(&self, socket: impl AsRef<Path>) -> io::Result<()> {
        let service = DiscoveryService::<Secrets>::new(self.server.clone());
        serve_unix(socket, 0o600, Server::builder().add_service(service)).await
    }

    /// How many callers are connected.
    pub fn client_count(&self) -> usize {
        self.server.client_count()
    }
}

impl Drop for SdsServer {
    fn drop(&mut self) {
        self.following.abort();
        self.server.shut_down();
    }
}

async fn follow(identity: Identity, cache: SnapshotCache) {
    let mut changes = identity.subscribe();
    loop {
        changes.mark_unchanged();
        let current = identity.current();
        // Nothing while the identity waits: a caller's listener warms until the certificate is there.
        if let (Some(credential), Some(id)) = (&current.credential, current.id()) {
            let mut secret = certificate_secret(WORKLOAD, credential);
            let built = Snapshot::builder().add(&secret);
            wipe(&mut secret);
            let built = built.and_then(|snapshot| match current.bundles.get(id.trust_domain_str()) {
                Some(bundle) => snapshot.add(&validation_secret(ROOT, bundle)),
                None => Ok(snapshot),
            });
            match built {
                Ok(snapshot) => {
                    cache.set(GROUP, snapshot.build());
                }
                Err(error) => tracing::error!(%error, "secrets not published"),
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Lets in processes of one user, by the kernel's word.
#[derive(Debug)]
struct OneUser(u32);

impl Authorizer for OneUser {
    fn authorize<'a>(&'a self, caller: &'a Caller, _: &'a Node) -> Authorization<'a> {
        let credentials = caller.extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        let outcome = match credentials.map(|credentials| credentials.uid()) {
            Some(uid) if uid == self.0 => {
                Ok(Grant { identity: format!("uid {uid}"), group: Some(GROUP.to_owned()) })
            }
            other => {
                tracing::warn!(uid = other, "SDS caller refused");
                Err(Status::permission_denied("this user gets no secrets"))
            }
        };
        Box::pin(std::future::ready(outcome))
    }
}
