//! DNS clusters: names resolved by the system's resolver, again and again.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::ClusterRuntime;
use crate::config::{Discovery, Endpoint, LoadAssignment, LocalityEndpoints};

/// Starts resolving for a DNS cluster; other clusters need nothing.
pub(super) fn serve(cluster: &Arc<ClusterRuntime>, runtime: &tokio::runtime::Handle) {
    let (hosts, refresh, first_only) = match &cluster.config.discovery {
        Discovery::StrictDns { hosts, refresh } => (hosts.clone(), *refresh, false),
        Discovery::LogicalDns { host, refresh } => (vec![host.clone()], *refresh, true),
        _ => return,
    };
    runtime.spawn(resolve(Arc::downgrade(cluster), hosts, refresh, first_only));
}

async fn resolve(
    cluster: Weak<ClusterRuntime>,
    hosts: Vec<(Arc<str>, u16)>,
    refresh: Duration,
    first_only: bool,
) {
    let mut last = None;
    loop {
        let mut endpoints = Vec::new();
        let mut failed = false;
        for (name, port) in &hosts {
            match tokio::net::lookup_host((&**name, *port)).await {
                Ok(addresses) => {
                    let most = if first_only { 1 } else { usize::MAX };
                    endpoints.extend(
                        addresses
                            .take(most)
                            .map(|a| Endpoint { hostname: Arc::clone(name), ..Endpoint::new(a) }),
                    );
                }
                Err(error) => {
                    failed = true;
                    tracing::debug!(%name, %error, "cannot resolve");
                }
            }
        }
        let Some(cluster) = cluster.upgrade() else { return };
        endpoints.sort_by_key(|e| e.address);
        endpoints.dedup_by_key(|e| e.address);
        // A failure keeps what is known; the first answer, even an empty one, ends warming.
        if (!failed || last.is_none()) && last.as_ref() != Some(&endpoints) {
            last = Some(endpoints.clone());
            let localities = vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }];
            let assignment = LoadAssignment { localities, ..LoadAssignment::new(&cluster.config.name, []) };
            cluster.set_endpoints(&assignment, None);
        }
        drop(cluster);
        tokio::time::sleep(refresh).await;
    }
}
