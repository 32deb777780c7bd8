//! Transport sockets of the mesh's mutual TLS, and of TLS that a DestinationRule asks for.

use mesh_xds::pb::envoy::config::core::v3 as core;
use mesh_xds::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use mesh_xds::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use mesh_xds::pb::envoy::r#type::matcher::v3::StringMatcher;

use super::names::SDS_CLUSTER;
use super::proto::{any, exact, prefix, seconds};
use crate::resources::{TlsMode, TlsSettings};

/// Name of the TLS transport socket.
const TLS_SOCKET: &str = "envoy.transport_sockets.tls";
/// Suites for TLS 1.2 peers; TLS 1.3 has its own.
const CIPHERS: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
];

/// What a chain behind mutual TLS carries; decides the server's ALPN list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carries {
    Http,
    Tcp,
}

/// The server side: any identity of the trust domain, certificate required.
pub(super) fn inbound(trust_domain: &str, carries: Carries) -> core::TransportSocket {
    let alpn: &[&str] = match carries {
        Carries::Http => &["h2", "http/1.1"],
        Carries::Tcp => &["istio-peer-exchange", "h2", "http/1.1"],
    };
    let sans = vec![prefix(format!("spiffe://{trust_domain}/"))];
    let params = tls::TlsParameters {
        tls_minimum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv13.into(),
        cipher_suites: CIPHERS.iter().map(|suite| (*suite).to_owned()).collect(),
        ..tls::TlsParameters::default()
    };
    socket(&tls::DownstreamTlsContext {
        common_tls_context: Some(common(alpn, sans, Some(params))),
        require_client_certificate: Some(true),
        ..tls::DownstreamTlsContext::default()
    })
}

/// The client side of the mesh's own mutual TLS: only the given identities.
pub(super) fn mutual(
    identities: impl Iterator<Item = String>,
    sni: String,
    http2: bool,
) -> core::TransportSocket {
    let alpn: &[&str] =
        if http2 { &["istio-peer-exchange", "istio", "h2"] } else { &["istio-peer-exchange", "istio"] };
    let params = tls::TlsParameters {
        tls_minimum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: tls::tls_parameters::TlsProtocol::TlSv13.into(),
        ..tls::TlsParameters::default()
    };
    socket(&tls::UpstreamTlsContext {
        common_tls_context: Some(common(alpn, identities.map(exact).collect(), Some(params))),
        sni,
        ..tls::UpstreamTlsContext::default()
    })
}

/// TLS origination as a DestinationRule's `SIMPLE` or `MUTUAL` asks for.
pub(super) fn originate(settings: &TlsSettings, http2: bool) -> core::TransportSocket {
    let root = if settings.ca_certificates.is_empty() {
        "file-root:system".to_owned()
    } else {
        format!("file-root:{}", settings.ca_certificates)
    };
    let validation = tls::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(validation(
            settings.subject_alt_names.iter().map(exact).collect(),
            false,
        )),
        validation_context_sds_secret_config: Some(secret(&root)),
        ..tls::common_tls_context::CombinedCertificateValidationContext::default()
    };
    let skip = settings.insecure_skip_verify == Some(true);
    let certificates = (settings.mode == TlsMode::Mutual)
        .then(|| secret(&format!("file-cert:{}~{}", settings.client_certificate, settings.private_key)));
    let context = tls::CommonTlsContext {
        alpn_protocols: if http2 { vec!["h2".to_owned()] } else { Vec::new() },
        tls_certificate_sds_secret_configs: certificates.into_iter().collect(),
        validation_context_type: (!skip)
            .then_some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(validation)),
        ..tls::CommonTlsContext::default()
    };
    socket(&tls::UpstreamTlsContext {
        common_tls_context: Some(context),
        sni: settings.sni.clone(),
        auto_host_sni: settings.sni.is_empty(),
        auto_sni_san_validation: settings.sni.is_empty() && settings.subject_alt_names.is_empty() && !skip,
        ..tls::UpstreamTlsContext::default()
    })
}

/// No TLS.
pub(super) fn raw_buffer() -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(&RawBuffer {}))),
    }
}

fn socket<M: prost::Message + prost::Name>(context: &M) -> core::TransportSocket {
    super::proto::transport_socket(TLS_SOCKET, context)
}

fn common(
    alpn: &[&str],
    sans: Vec<StringMatcher>,
    tls_params: Option<tls::TlsParameters>,
) -> tls::CommonTlsContext {
    let combined = tls::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(validation(sans, true)),
        validation_context_sds_secret_config: Some(secret("ROOTCA")),
        ..tls::common_tls_context::CombinedCertificateValidationContext::default()
    };
    tls::CommonTlsContext {
        tls_params,
        alpn_protocols: alpn.iter().map(|protocol| (*protocol).to_owned()).collect(),
        tls_certificate_sds_secret_configs: vec![secret("default")],
        validation_context_type: Some(
            tls::common_tls_context::ValidationContextType::CombinedValidationContext(combined),
        ),
        ..tls::CommonTlsContext::default()
    }
}

fn validation(sans: Vec<StringMatcher>, uri: bool) -> tls::CertificateValidationContext {
    let kind = if uri {
        tls::subject_alt_name_matcher::SanType::Uri
    } else {
        tls::subject_alt_name_matcher::SanType::Dns
    };
    tls::CertificateValidationContext {
        match_typed_subject_alt_names: sans
            .into_iter()
            .map(|matcher| tls::SubjectAltNameMatcher {
                san_type: kind.into(),
                matcher: Some(matcher),
                ..tls::SubjectAltNameMatcher::default()
            })
            .collect(),
        ..tls::CertificateValidationContext::default()
    }
}

/// A secret from the sidecar's own agent.
fn secret(name: &str) -> tls::SdsSecretConfig {
    let service = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
            core::grpc_service::EnvoyGrpc {
                cluster_name: SDS_CLUSTER.to_owned(),
                ..core::grpc_service::EnvoyGrpc::default()
            },
        )),
        ..core::GrpcService::default()
    };
    let api = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc.into(),
        transport_api_version: core::ApiVersion::V3.into(),
        set_node_on_first_message_only: true,
        grpc_services: vec![service],
        ..core::ApiConfigSource::default()
    };
    tls::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(core::ConfigSource {
            initial_fetch_timeout: seconds(0),
            resource_api_version: core::ApiVersion::V3.into(),
            config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(api)),
            ..core::ConfigSource::default()
        }),
    }
}
