//! Gathers the dump's messages.

use std::time::SystemTime;

use mesh_identity::{Identity, IdentitySnapshot};
use mesh_xds::pb::envoy::admin::v3 as admin;
use mesh_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use mesh_xds::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use mesh_xds::{Any, TypeUrl};
use prost::{Message, Name};
use prost_types::Timestamp;

use crate::resources::{Accepted, Entry, Origin, Refusal, Resources};
use crate::tls::{DEFAULT, ROOTCA};

/// Collects a binary `envoy.admin.v3.ConfigDump`.
pub fn collect(
    bootstrap: &Bootstrap,
    resources: &Resources,
    identity: Option<&Identity>,
    include_eds: bool,
    started: SystemTime,
) -> Vec<u8> {
    let mut configs = vec![
        any(&admin::BootstrapConfigDump {
            bootstrap: Some(bootstrap.clone()),
            last_updated: Some(started.into()),
        }),
        any(&clusters(resources)),
    ];
    if include_eds {
        configs.push(any(&endpoints(resources)));
    }
    configs.push(any(&listeners(resources)));
    configs.push(any(&routes(resources)));
    configs.push(any(&identity.map(|identity| secrets(&identity.current())).unwrap_or_default()));
    admin::ConfigDump { configs }.encode_to_vec()
}

fn any<T: Message + Name>(message: &T) -> Any {
    Any { type_url: T::type_url(), value: message.encode_to_vec() }
}

fn time(at: SystemTime) -> Option<Timestamp> {
    Some(at.into())
}

fn is_static(accepted: &Accepted) -> bool {
    accepted.origin == Origin::Static
}

fn error_state(refusal: Option<&Refusal>) -> Option<admin::UpdateFailureState> {
    refusal.map(|refusal| admin::UpdateFailureState {
        failed_configuration: Some(refusal.resource.clone()),
        last_update_attempt: time(refusal.at),
        details: refusal.details.clone(),
        ..Default::default()
    })
}

fn status(entry: &Entry) -> i32 {
    use admin::ClientResourceStatus as S;
    (match (&entry.accepted, &entry.refusal) {
        (_, Some(_)) => S::Nacked,
        (Some(_), None) => S::Acked,
        (None, None) => S::Requested,
    }) as i32
}

fn clusters(resources: &Resources) -> admin::ClustersConfigDump {
    use admin::clusters_config_dump::{DynamicCluster, StaticCluster};
    let mut out = admin::ClustersConfigDump::default();
    resources.each(&TypeUrl::CLUSTER, |_, entry| match &entry.accepted {
        Some(accepted) if is_static(accepted) => out.static_clusters.push(StaticCluster {
            cluster: Some(accepted.resource.clone()),
            last_updated: time(accepted.at),
        }),
        accepted => out.dynamic_active_clusters.push(DynamicCluster {
            version_info: version(accepted.as_ref()),
            cluster: accepted.as_ref().map(|a| a.resource.clone()),
            last_updated: accepted.as_ref().and_then(|a| time(a.at)),
            error_state: error_state(entry.refusal.as_deref()),
            client_status: status(entry),
        }),
    });
    out
}

fn listeners(resources: &Resources) -> admin::ListenersConfigDump {
    use admin::listeners_config_dump::{DynamicListener, DynamicListenerState, StaticListener};
    let mut out = admin::ListenersConfigDump::default();
    resources.each(&TypeUrl::LISTENER, |name, entry| match &entry.accepted {
        Some(accepted) if is_static(accepted) => out.static_listeners.push(StaticListener {
            listener: Some(accepted.resource.clone()),
            last_updated: time(accepted.at),
        }),
        accepted => out.dynamic_listeners.push(DynamicListener {
            name: name.to_owned(),
            active_state: accepted.as_ref().map(|a| DynamicListenerState {
                version_info: a.version.clone(),
                listener: Some(a.resource.clone()),
                last_updated: time(a.at),
            }),
            error_state: error_state(entry.refusal.as_deref()),
            client_status: status(entry),
            ..DynamicListener::default()
        }),
    });
    out
}

fn routes(resources: &Resources) -> admin::RoutesConfigDump {
    use admin::routes_config_dump::{DynamicRouteConfig, StaticRouteConfig};
    let mut out = admin::RoutesConfigDump::default();
    resources.each(&TypeUrl::ROUTE, |_, entry| match &entry.accepted {
        Some(accepted) if is_static(accepted) => out.static_route_configs.push(StaticRouteConfig {
            route_config: Some(accepted.resource.clone()),
            last_updated: time(accepted.at),
        }),
        accepted => out.dynamic_route_configs.push(DynamicRouteConfig {
            version_info: version(accepted.as_ref()),
            route_config: accepted.as_ref().map(|a| a.resource.clone()),
            last_updated: accepted.as_ref().and_then(|a| time(a.at)),
            error_state: error_state(entry.refusal.as_deref()),
            client_status: status(entry),
        }),
    });
    out
}

fn endpoints(resources: &Resources) -> admin::EndpointsConfigDump {
    use admin::endpoints_config_dump::{DynamicEndpointConfig, StaticEndpointConfig};
    let mut out = admin::EndpointsConfigDump::default();
    resources.each(&TypeUrl::ENDPOINTS, |_, entry| match &entry.accepted {
        Some(accepted) if is_static(accepted) => out.static_endpoint_configs.push(StaticEndpointConfig {
            endpoint_config: Some(accepted.resource.clone()),
            last_updated: time(accepted.at),
        }),
        accepted => out.dynamic_endpoint_configs.push(DynamicEndpointConfig {
            version_info: version(accepted.as_ref()),
            endpoint_config: accepted.as_ref().map(|a| a.resource.clone()),
            last_updated: accepted.as_ref().and_then(|a| time(a.at)),
            error_state: error_state(entry.refusal.as_deref()),
            client_status: status(entry),
        }),
    });
    out
}

fn version(accepted: Option<&Accepted>) -> String {
    accepted.map(|a| a.version.clone()).unwrap_or_default()
}

/// The two secrets of a workload. The private key is not even copied: only its place is shown.
fn secrets(identity: &IdentitySnapshot) -> admin::SecretsConfigDump {
    use admin::secrets_config_dump::DynamicSecret;
    let inline = |text: String| {
        Some(DataSource {
            specifier: Some(Specifier::InlineBytes(text.into_bytes())),
            ..DataSource::default()
        })
    };
    let mut out = admin::SecretsConfigDump::default();
    if let Some(credential) = &identity.credential {
        let secret = Secret {
            name: DEFAULT.into(),
            r#type: Some(secret::Type::TlsCertificate(TlsCertificate {
                certificate_chain: inline(credential.chain_pem()),
                private_key: inline("[redacted]".into()),
                ..TlsCertificate::default()
            })),
        };
        out.dynamic_active_secrets.push(DynamicSecret {
            name: DEFAULT.into(),
            version_info: credential.serial().to_owned(),
            last_updated: time(credential.not_before()),
            secret: Some(any(&secret)),
            ..DynamicSecret::default()
        });
    }
    if !identity.bundles.is_empty() {
        let roots: String = identity.bundles.iter().map(mesh_identity::TrustBundle::to_pem).collect();
        let secret = Secret {
            name: ROOTCA.into(),
            r#type: Some(secret::Type::ValidationContext(CertificateValidationContext {
                trusted_ca: inline(roots),
                ..CertificateValidationContext::default()
            })),
        };
        out.dynamic_active_secrets.push(DynamicSecret {
            name: ROOTCA.into(),
            version_info: identity.revision.to_string(),
            secret: Some(any(&secret)),
            ..DynamicSecret::default()
        });
    }
    out
}
