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
    At, Result, access_log::access_logs, filters::http_filter, limit, limit_or, missing, route, unsupported,
};
use crate::{
    config::{
        Codec, EscapedSlashes, ForwardClientCert, HeadersWithUnderscores, HttpConnectionManager,
        PathNormalization, RouteSource, ServerHeader, SetClientCertDetails, StripHostPort,
    },
    error::ConfigError,
};

pub(super) fn manager(message: &pb::HttpConnectionManager) -> Result<HttpConnectionManager> {
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
