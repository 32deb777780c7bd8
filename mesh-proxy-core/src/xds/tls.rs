//! TLS contexts.

use std::sync::Arc;

use mesh_xds::pb::envoy::{
    config::core::v3 as core,
    extensions::transport_sockets::{
        raw_buffer::v3::RawBuffer,
        tls::v3::{
            CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
            TlsCertificate, TlsParameters, UpstreamTlsContext,
            common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            tls_parameters::TlsProtocol,
        },
    },
};

use super::{At, Result, audit::fields, decode_if, matcher, missing, type_name, unsupported};
use crate::{
    config::{DownstreamTls, SecretRef, StringMatcher, TlsVersion, TransportSocket, UpstreamTls},
    error::ConfigError,
};

/// A chain's transport: `None` is plain text.
pub(super) fn downstream(message: &core::TransportSocket) -> Result<Option<DownstreamTls>> {
    let any = typed_config(message)?;
    if type_name(any) == "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" {
        return Ok(None);
    }
    let Some(context) = decode_if::<DownstreamTlsContext>(any)? else {
        return Err(unsupported("typed_config", type_name(any)));
    };
    fields!(&context => DownstreamTlsContext {
        obeyed: [common_tls_context, require_client_certificate],
        // The provider of TLS configurations rules over resumption and preferences.
        ignored: [
            session_timeout, full_scan_certs_on_sni_mismatch, disable_stateful_session_resumption,
            prefer_client_ciphers,
        ],
        refused_if_true: [require_sni],
        secret: [ocsp_staple_policy, session_ticket_keys_type],
    });
    let common = context.common_tls_context.as_ref().ok_or_else(|| missing("common_tls_context"))?;
    let parts = common_parts(common).at("common_tls_context")?;
    let (min_version, max_version) = versions(common.tls_params.as_ref()).at("common_tls_context")?;
    Ok(Some(DownstreamTls {
        certificates: parts.certificates,
        validation: parts.validation,
        require_client_certificate: context.require_client_certificate.unwrap_or(false),
        subject_alt_names: parts.subject_alt_names,
        alpn: parts.alpn,
        min_version,
        max_version,
    }))
}

/// A cluster's transport.
pub(super) fn upstream(message: &core::TransportSocket) -> Result<TransportSocket> {
    let any = typed_config(message)?;
    if decode_if::<RawBuffer>(any)?.is_some() {
        return Ok(TransportSocket::Raw);
    }
    let Some(context) = decode_if::<UpstreamTlsContext>(any)? else {
        return Err(unsupported("typed_config", type_name(any)));
    };
    fields!(&context => UpstreamTlsContext {
        obeyed: [common_tls_context, sni, auto_host_sni, auto_sni_san_validation],
        ignored: [max_session_keys, enforce_rsa_key_usage],
        refused: [allow_renegotiation],
    });
    let common = context.common_tls_context.as_ref().ok_or_else(|| missing("common_tls_context"))?;
    let parts = common_parts(common).at("common_tls_context")?;
    let (min_version, max_version) = versions(common.tls_params.as_ref()).at("common_tls_context")?;
    Ok(TransportSocket::Tls(Arc::new(UpstreamTls {
        certificate: parts.certificates.into_iter().next(),
        validation: parts.validation,
        subject_alt_names: parts.subject_alt_names,
        sni: context.sni.as_str().into(),
        auto_sni: context.auto_host_sni,
        auto_san_validation: context.auto_sni_san_validation,
        alpn: parts.alpn,
        min_version,
        max_version,
    })))
}

fn typed_config(message: &core::TransportSocket) -> Result<&prost_types::Any> {
    match &message.config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(any)) => Ok(any),
        None => Err(missing("typed_config")),
    }
}

struct Parts {
    certificates: Vec<SecretRef>,
    validation: Option<SecretRef>,
    subject_alt_names: Vec<StringMatcher>,
    alpn: Vec<Arc<str>>,
}

fn common_parts(common: &CommonTlsContext) -> Result<Parts> {
    fields!(common => CommonTlsContext {
        obeyed: [
            tls_params, tls_certificates, alpn_protocols, tls_certificate_sds_secret_configs,
            validation_context_type,
        ],
        secret: [
            tls_certificate_certificate_provider, tls_certificate_certificate_provider_instance,
            custom_handshaker, tls_certificate_provider_instance, key_log, custom_tls_certificate_selector,
        ],
    });
    let named = common.tls_certificate_sds_secret_configs.iter().map(secret);
    let given = common.tls_certificates.iter().map(|c| certificate(c).at("tls_certificates"));
    let certificates = named.map(Ok).chain(given).collect::<Result<_>>()?;
    let (validation, subject_alt_names) = match &common.validation_context_type {
        None => (None, Vec::new()),
        Some(ValidationContextType::ValidationContext(context)) => {
            validation(context).at("validation_context")?
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            (Some(secret(config)), Vec::new())
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            fields!(combined => CombinedCertificateValidationContext {
                obeyed: [default_validation_context, validation_context_sds_secret_config],
                refused: [
                    validation_context_certificate_provider, validation_context_certificate_provider_instance,
                ],
            });
            let (own, names) = match &combined.default_validation_context {
                Some(context) => validation(context).at("combined_validation_context")?,
                None => (None, Vec::new()),
            };
            (combined.validation_context_sds_secret_config.as_ref().map(secret).or(own), names)
        }
        Some(_) => return Err(unsupported("validation_context_type", "this validation context")),
    };
    let alpn = common.alpn_protocols.iter().map(|p| p.as_str().into()).collect();
    Ok(Parts { certificates, validation, subject_alt_names, alpn })
}

fn secret(config: &SdsSecretConfig) -> SecretRef {
    SecretRef::Named(config.name.as_str().into())
}

fn certificate(message: &TlsCertificate) -> Result<SecretRef> {
    use core::data_source::Specifier;
    fields!(message => TlsCertificate {
        obeyed: [certificate_chain, private_key],
        ignored: [watched_directory],
        secret: [password, ocsp_staple, signed_certificate_timestamp, private_key_provider, pkcs12],
    });
    let file =
        |source: Option<&core::DataSource>, field: &str| match source.and_then(|s| s.specifier.as_ref()) {
            Some(Specifier::Filename(path)) => Ok(path.into()),
            Some(_) => Err(unsupported(field, "key material that is not in a file")),
            None => Err(missing(field)),
        };
    Ok(SecretRef::CertificateFiles {
        chain: file(message.certificate_chain.as_ref(), "certificate_chain")?,
        key: file(message.private_key.as_ref(), "private_key")?,
    })
}

#[allow(deprecated, reason = "the old form is still on the wire")]
fn validation(context: &CertificateValidationContext) -> Result<(Option<SecretRef>, Vec<StringMatcher>)> {
    use core::data_source::Specifier;
    // Constraints that are not checked here must not be dropped silently.
    fields!(context => CertificateValidationContext {
        obeyed: [trusted_ca, match_subject_alt_names, match_typed_subject_alt_names],
        ignored: [watched_directory],
        refused: [
            verify_certificate_hash, verify_certificate_spki, crl, allow_expired_certificate,
            trust_chain_verification, custom_validator_config, ca_certificate_provider_instance,
            only_verify_leaf_cert_crl, max_verify_depth, system_root_certs,
        ],
        refused_if_true: [require_signed_certificate_timestamp],
    });
    let roots = match context.trusted_ca.as_ref().and_then(|ca| ca.specifier.as_ref()) {
        None => None,
        Some(Specifier::Filename(path)) => Some(SecretRef::RootsFile(path.into())),
        Some(Specifier::InlineString(text)) => Some(SecretRef::InlineRoots(text.as_str().into())),
        Some(Specifier::InlineBytes(bytes)) => {
            let text = std::str::from_utf8(bytes)
                .map_err(|_| ConfigError::invalid("trusted_ca", "bytes", "not PEM text"))?;
            Some(SecretRef::InlineRoots(text.into()))
        }
        Some(_) => return Err(unsupported("trusted_ca", "this source")),
    };
    let mut names = matcher::strings(&context.match_subject_alt_names, "match_subject_alt_names")?;
    for (i, typed) in context.match_typed_subject_alt_names.iter().enumerate() {
        let place = format!("match_typed_subject_alt_names[{i}]");
        let message = typed.matcher.as_ref().ok_or_else(|| missing(&place))?;
        names.push(matcher::string(message).at(place)?);
    }
    Ok((roots, names))
}

fn versions(params: Option<&TlsParameters>) -> Result<(TlsVersion, TlsVersion)> {
    if let Some(params) = params {
        fields!(params => TlsParameters {
            obeyed: [tls_minimum_protocol_version, tls_maximum_protocol_version],
            // The provider offers only suites and groups that forward secrecy and authenticated encryption have.
            ignored: [cipher_suites, ecdh_curves, signature_algorithms],
            refused: [compliance_policies],
        });
        let max = params.tls_maximum_protocol_version();
        if matches!(max, TlsProtocol::TlSv10 | TlsProtocol::TlSv11) {
            return Err(unsupported("tls_params.tls_maximum_protocol_version", max.as_str_name()));
        }
    }
    let version = |wire: TlsProtocol, auto| match wire {
        TlsProtocol::TlsAuto => auto,
        TlsProtocol::TlSv13 => TlsVersion::V1_3,
        // Versions below 1.2 do not exist here: the lowest there is counts.
        _ => TlsVersion::V1_2,
    };
    Ok(params.map_or((TlsVersion::V1_2, TlsVersion::V1_3), |params| {
        let min = version(params.tls_minimum_protocol_version(), TlsVersion::V1_2);
        let max = version(params.tls_maximum_protocol_version(), TlsVersion::V1_3);
        (min, max.max(min))
    }))
}
