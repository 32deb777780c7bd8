//! DNS clusters: names resolved by the system's resolver, again and again.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use super::ClusterRuntime;
use crate::config::{Discovery, DnsFamily, Endpoint, LoadAssignment, LocalityEndpoints};

/// Starts resolving for a DNS cluster; other clusters need nothing.
pub(super) fn serve(cluster: &Arc<ClusterRuntime>, runtime: &tokio::runtime::Handle) {
    let (hosts, refresh, first_only) = match &cluster.config.discovery {
        Discovery::StrictDns { hosts, refresh } => (hosts.clone(), *refresh, false),
        Discovery::LogicalDns { host, refresh } => (vec![host.clone()], *refresh, true),
        _ => return,
    };
    runtime.spawn(resolve(Arc::downgrade(cluster), hosts, refresh, first_only, cluster.config.dns_family));
}

async fn resolve(
    cluster: Weak<ClusterRuntime>,
    hosts: Vec<(Arc<str>, u16)>,
    refresh: Duration,
    first_only: bool,
    family: DnsFamily,
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
                        of_family(addresses.collect(), family)
                            .into_iter()
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

fn of_family(addresses: Vec<SocketAddr>, family: DnsFamily) -> Vec<SocketAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.iter().partition(|address| address.is_ipv4());
    match family {
        DnsFamily::All => addresses,
        DnsFamily::V4Only => v4,
        DnsFamily::V6Only => v6,
        DnsFamily::V4Preferred => {
            if v4.is_empty() {
                v6
            } else {
                v4
            }
        }
        DnsFamily::V6Preferred => {
            if v6.is_empty() {
                v4
            } else {
                v6
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_chosen() {
        let all: Vec<SocketAddr> = ["[::1]:1", "1.1.1.1:1", "[::2]:1"].map(|a| a.parse().unwrap()).into();
        let (v4, v6) = (vec![all[1]], vec![all[0], all[2]]);
        for (family, from, expected) in [
            (DnsFamily::All, &all, &all),
            (DnsFamily::V4Only, &all, &v4),
            (DnsFamily::V6Only, &all, &v6),
            (DnsFamily::V4Preferred, &all, &v4),
            (DnsFamily::V4Preferred, &v6, &v6),
            (DnsFamily::V6Preferred, &all, &v6),
            (DnsFamily::V6Preferred, &v4, &v4),
            (DnsFamily::V6Only, &v4, &Vec::new()),
        ] {
            assert_eq!(of_family(from.clone(), family), *expected, "{family:?}");
        }
    }
}
