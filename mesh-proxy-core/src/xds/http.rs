//! The HTTP connection manager.

use std::{sync::Arc, time::Duration};

use ::http::HeaderValue;
use mesh_xds::pb::envoy::{
    config::core::v3::{self as core, http_protocol_options::HeadersWithUnderscoresAction},
    extensions::filters::network::http_connection_manager::v3 as pb,
};
use pb::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
    ServerHeaderTransformation, StripPortMode,
};

use super::{
    At, Result, access_log::access_logs, audit::fields, cidr, filters::http_filter, limit, limit_or, missing,
    route, type_name, unsupported,
};
use crate::{
    config::{
        Codec, EscapedSlashes, ForwardClientCert, HeadersWithUnderscores, HttpConnectionManager,
        PathNormalization, RouteSource, ServerHeader, SetClientCertDetails, StripHostPort,
    },
    error::ConfigError,
};

/// Refuses what would not be obeyed.
fn audit(message: &pb::HttpConnectionManager) -> Result<()> {
    fields!(message => pb::HttpConnectionManager {
        obeyed: [
            codec_type, stat_prefix, http_filters, http_protocol_options, http2_protocol_options, server_name,
            access_log, use_remote_address, generate_request_id, forward_client_cert_details,
            set_current_client_cert_details, xff_num_trusted_hops, skip_xff_append, upgrade_configs,
            stream_idle_timeout, internal_address_config, request_timeout, max_request_headers_kb,
            normalize_path, preserve_external_request_id, merge_slashes, server_header_transformation,
            common_http_protocol_options, always_set_request_id_in_response, strip_matching_host_port,
            request_headers_timeout, path_with_escaped_slashes_action, strip_trailing_host_dot,
            route_specifier, strip_port_mode, request_id_extension,
        ],
        // No spans are made (trace headers travel); draining is timed by the proxy; hyper answers
        // `expect: 100-continue`, closes after errors, and never cuts a response for a connection's age.
        ignored: [
            tracing, drain_timeout, delayed_close_timeout, proxy_100_continue,
            stream_error_on_invalid_http_message, add_proxy_protocol_connection_state,
            append_local_overload, http1_safe_max_connection_duration,
        ],
        refused: [
            represent_ipv4_remote_address_as_ipv4_mapped_ipv6, via, local_reply_config,
            path_normalization_options, http3_protocol_options, original_ip_detection_extensions,
            scheme_header_transformation, proxy_status_config, typed_header_validation_config,
            append_x_forwarded_port, early_header_mutation_extensions, access_log_flush_interval,
            flush_access_log_on_new_request, access_log_options, stream_flush_timeout,
            forward_client_cert_matcher,
        ],
        refused_if_true: [add_user_agent],
    });
    if let Some(options) = &message.common_http_protocol_options {
        common_options(options).at("common_http_protocol_options")?;
    }
    if let Some(options) = &message.http_protocol_options {
        http1_options(options).at("http_protocol_options")?;
    }
    if let Some(options) = &message.http2_protocol_options {
        http2_options(options).at("http2_protocol_options")?;
    }
    if let Some(details) = &message.set_current_client_cert_details {
        // Certificates are described when they are verified, and not kept.
        fields!(details => pb::http_connection_manager::SetCurrentClientCertDetails {
            obeyed: [subject, dns, uri],
            refused: [cert, chain],
        });
    }
    for upgrade in &message.upgrade_configs {
        fields!(upgrade => pb::http_connection_manager::UpgradeConfig {
            obeyed: [upgrade_type, enabled],
            refused: [filters],
        });
    }
    let request_id = message.request_id_extension.as_ref().and_then(|e| e.typed_config.as_ref());
    match request_id.map(type_name) {
        None | Some("envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig") => Ok(()),
        Some(other) => Err(unsupported("request_id_extension", other)),
    }
}

fn common_options(message: &core::HttpProtocolOptions) -> Result<()> {
    fields!(message => core::HttpProtocolOptions {
        obeyed: [
            idle_timeout, max_headers_count, max_connection_duration, max_stream_duration,
            headers_with_underscores_action, max_requests_per_connection,
        ],
        refused: [max_response_headers_kb],
    });
    Ok(())
}

/// HTTP/1 towards either side.
pub(super) fn http1_options(message: &core::Http1ProtocolOptions) -> Result<()> {
    fields!(message => core::Http1ProtocolOptions {
        obeyed: [accept_http_10],
        // Absolute targets and any method are taken; trailers pass when announced; upgrades not allowed are not seen.
        ignored: [
            enable_trailers, override_stream_error_on_invalid_http_message, use_balsa_parser,
            allow_custom_methods, ignore_http_11_upgrade, allow_absolute_url,
        ],
        refused: [default_host_for_http_10, header_key_format, allow_chunked_length, send_fully_qualified_url],
    });
    Ok(())
}

/// HTTP/2 towards either side.
pub(super) fn http2_options(message: &core::Http2ProtocolOptions) -> Result<()> {
    fields!(message => core::Http2ProtocolOptions {
        obeyed: [max_concurrent_streams, initial_stream_window_size, initial_connection_window_size],
        // h2 has bounds of its own against floods.
        ignored: [
            hpack_table_size, max_outbound_frames, max_outbound_control_frames,
            max_consecutive_inbound_frames_with_empty_payload, max_inbound_priority_frames_per_stream,
            max_inbound_window_update_frames_per_data_frame_sent, stream_error_on_invalid_http_messaging,
            override_stream_error_on_invalid_http_message, use_oghttp2_codec, max_metadata_size,
        ],
        refused: [allow_connect, allow_metadata, custom_settings_parameters, connection_keepalive],
    });
    Ok(())
}

pub(super) fn manager(message: &pb::HttpConnectionManager) -> Result<HttpConnectionManager> {
    audit(message)?;
    let routes = match message.route_specifier.as_ref().ok_or_else(|| missing("route_specifier"))? {
        RouteSpecifier::Rds(rds) if rds.route_config_name.is_empty() => {
            return Err(missing("rds.route_config_name"));
        }
        RouteSpecifier::Rds(rds) => RouteSource::Rds(rds.route_config_name.as_str().into()),
        RouteSpecifier::RouteConfig(routes) => {
            RouteSource::Inline(Arc::new(route::route_configuration(routes).at("route_config")?))
        }
        RouteSpecifier::ScopedRoutes(_) => return Err(unsupported("scoped_routes", "scoped routes")),
    };
    let mut filters = Vec::new();
    for (i, filter) in message.http_filters.iter().enumerate() {
        filters.extend(http_filter(filter).at(format!("http_filters[{i}]"))?);
    }
    let common = message.common_http_protocol_options.as_ref();
    let http2 = message.http2_protocol_options.as_ref();
    let server_name = match message.server_name.as_str() {
        "" => HeaderValue::from_static("envoy"),
        name => HeaderValue::from_str(name)
            .map_err(|_| ConfigError::invalid("server_name", name, "not allowed in a header"))?,
    };
    let upgrades = message.upgrade_configs.iter().filter(|u| u.enabled.unwrap_or(true));
    let defaults = HttpConnectionManager::new(&message.stat_prefix, routes);
    Ok(HttpConnectionManager {
        codec: match message.codec_type() {
            CodecType::Auto => Codec::Auto,
            CodecType::Http1 => Codec::Http1,
            CodecType::Http2 => Codec::Http2,
            CodecType::Http3 => return Err(unsupported("codec_type", "HTTP/3")),
        },
        filters,
        access_logs: access_logs(&message.access_log)?,
        server_name,
        server_header: match message.server_header_transformation() {
            ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
            ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
            ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
        },
        use_remote_address: message.use_remote_address.unwrap_or(false),
        skip_xff_append: message.skip_xff_append,
        xff_trusted_hops: message.xff_num_trusted_hops,
        forward_client_cert: match message.forward_client_cert_details() {
            ForwardClientCertDetails::Sanitize => ForwardClientCert::Sanitize,
            ForwardClientCertDetails::ForwardOnly => ForwardClientCert::ForwardOnly,
            ForwardClientCertDetails::AppendForward => ForwardClientCert::AppendForward,
            ForwardClientCertDetails::SanitizeSet => ForwardClientCert::SanitizeSet,
            ForwardClientCertDetails::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
        },
        set_client_cert: message.set_current_client_cert_details.as_ref().map_or_else(
            SetClientCertDetails::default,
            |d| SetClientCertDetails { subject: d.subject.unwrap_or(false), dns: d.dns, uri: d.uri },
        ),
        generate_request_id: message.generate_request_id.unwrap_or(true),
        preserve_external_request_id: message.preserve_external_request_id,
        request_id_in_response: message.always_set_request_id_in_response,
        normalization: PathNormalization {
            normalize: message.normalize_path.unwrap_or(false),
            merge_slashes: message.merge_slashes,
            escaped_slashes: match message.path_with_escaped_slashes_action() {
                PathWithEscapedSlashesAction::ImplementationSpecificDefault
                | PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
                PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
                PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
                PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
            },
        },
        upgrades: upgrades.map(|u| u.upgrade_type.to_ascii_lowercase().into()).collect(),
        accept_http_10: message.http_protocol_options.as_ref().is_some_and(|o| o.accept_http_10),
        idle_timeout: limit_or(
            "common_http_protocol_options.idle_timeout",
            common.and_then(|c| c.idle_timeout.as_ref()),
            defaults.idle_timeout,
        )?,
        stream_idle_timeout: limit_or(
            "stream_idle_timeout",
            message.stream_idle_timeout.as_ref(),
            Some(Duration::from_secs(300)),
        )?,
        request_timeout: limit("request_timeout", message.request_timeout.as_ref())?,
        request_headers_timeout: limit("request_headers_timeout", message.request_headers_timeout.as_ref())?,
        max_connection_duration: limit(
            "max_connection_duration",
            common.and_then(|c| c.max_connection_duration.as_ref()),
        )?,
        max_stream_duration: limit(
            "common_http_protocol_options.max_stream_duration",
            common.and_then(|c| c.max_stream_duration.as_ref()),
        )?,
        max_requests_per_connection: common.and_then(|c| c.max_requests_per_connection).unwrap_or(0),
        max_concurrent_streams: http2
            .and_then(|h| h.max_concurrent_streams)
            .unwrap_or(defaults.max_concurrent_streams),
        initial_stream_window: http2.and_then(|h| h.initial_stream_window_size),
        initial_connection_window: http2.and_then(|h| h.initial_connection_window_size),
        max_request_headers_bytes: message
            .max_request_headers_kb
            .map_or(60 * 1024, |kb| kb.saturating_mul(1024)),
        max_request_headers: common.and_then(|c| c.max_headers_count).unwrap_or(100),
        internal_ranges: message
            .internal_address_config
            .as_ref()
            .map(|c| c.cidr_ranges.iter().map(cidr).collect::<Result<Vec<_>>>())
            .transpose()
            .at("internal_address_config")?,
        strip_host_port: match message.strip_port_mode {
            Some(StripPortMode::StripAnyHostPort(true)) => StripHostPort::Any,
            _ if message.strip_matching_host_port => StripHostPort::Matching,
            _ => StripHostPort::Keep,
        },
        strip_trailing_host_dot: message.strip_trailing_host_dot,
        underscores: match common.map(core::HttpProtocolOptions::headers_with_underscores_action) {
            None | Some(HeadersWithUnderscoresAction::Allow) => HeadersWithUnderscores::Allow,
            Some(HeadersWithUnderscoresAction::RejectRequest) => HeadersWithUnderscores::Reject,
            Some(HeadersWithUnderscoresAction::DropHeader) => HeadersWithUnderscores::Drop,
        },
        ..defaults
    })
}
