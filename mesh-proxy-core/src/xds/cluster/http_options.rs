//! How a cluster speaks HTTP to its endpoints: the typed extension, and the older fields of the cluster itself.

use std::{sync::Arc, time::Duration};

use mesh_xds::pb::envoy::{
    config::{cluster::v3 as pb, core::v3 as core},
    extensions::upstreams::http::v3 as upstream_http,
};
use pb::cluster::ClusterProtocolSelection;

use crate::config::{Cluster, TransportSocket, UpstreamProtocol};
use crate::xds::{At, Result, audit::fields, decode_if, limit, limit_or, type_name, unsupported};

/// Server names that follow the request (`auto_sni`, `auto_san_validation`) count for every transport.
pub(super) fn server_names(cluster: &mut Cluster, message: &core::UpstreamHttpProtocolOptions) -> Result<()> {
    fields!(message => core::UpstreamHttpProtocolOptions {
        obeyed: [auto_sni, auto_san_validation],
        refused: [override_auto_sni_header],
    });
    let others = cluster.transport_matches.iter_mut().map(|m| &mut m.socket);
    for socket in others.chain([&mut cluster.transport]) {
        if let TransportSocket::Tls(tls) = socket {
            let tls = Arc::make_mut(tls);
            tls.auto_sni |= message.auto_sni;
            tls.auto_san_validation |= message.auto_san_validation;
        }
    }
    Ok(())
}

pub(super) struct HttpOptions {
    pub(super) protocol: UpstreamProtocol,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_requests: Option<u32>,
    pub(super) max_streams: Option<u32>,
    pub(super) max_connection_duration: Option<Duration>,
    pub(super) stream_window: Option<u32>,
    pub(super) connection_window: Option<u32>,
    pub(super) names: Option<core::UpstreamHttpProtocolOptions>,
}

/// What both forms have in common.
fn common_http(message: Option<&core::HttpProtocolOptions>) -> Result<HttpOptions> {
    if let Some(message) = message {
        fields!(message => core::HttpProtocolOptions {
            obeyed: [idle_timeout, max_connection_duration, max_requests_per_connection],
            refused: [
                max_headers_count, max_stream_duration, headers_with_underscores_action, max_response_headers_kb,
            ],
        });
    }
    let hour = Some(Duration::from_secs(3600));
    Ok(HttpOptions {
        protocol: UpstreamProtocol::Http1,
        idle_timeout: limit_or("idle_timeout", message.and_then(|c| c.idle_timeout.as_ref()), hour)?,
        max_requests: message.and_then(|c| c.max_requests_per_connection),
        max_connection_duration: limit(
            "max_connection_duration",
            message.and_then(|c| c.max_connection_duration.as_ref()),
        )?,
        max_streams: None,
        stream_window: None,
        connection_window: None,
        names: None,
    })
}

impl HttpOptions {
    fn http2(&mut self, message: Option<&core::Http2ProtocolOptions>) -> Result<()> {
        let Some(message) = message else { return Ok(()) };
        crate::xds::http::http2_options(message).at("http2_protocol_options")?;
        self.max_streams = message.max_concurrent_streams;
        self.stream_window = message.initial_stream_window_size;
        self.connection_window = message.initial_connection_window_size;
        Ok(())
    }
}

#[allow(deprecated, reason = "old forms are still on the wire")]
pub(super) fn http_options(message: &pb::Cluster) -> Result<HttpOptions> {
    use upstream_http::http_protocol_options::{
        UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    };
    const KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let Some(any) = message.typed_extension_protocol_options.get(KEY) else {
        let mut options = common_http(message.common_http_protocol_options.as_ref())?;
        let http2 = message.http2_protocol_options.as_ref();
        options.http2(http2)?;
        options.names.clone_from(&message.upstream_http_protocol_options);
        options.protocol = match message.protocol_selection() {
            ClusterProtocolSelection::UseDownstreamProtocol => UpstreamProtocol::Downstream,
            ClusterProtocolSelection::UseConfiguredProtocol if http2.is_some() => UpstreamProtocol::Http2,
            ClusterProtocolSelection::UseConfiguredProtocol => UpstreamProtocol::Http1,
        };
        return Ok(options);
    };
    let given = decode_if::<upstream_http::HttpProtocolOptions>(any)?
        .ok_or_else(|| unsupported("typed_extension_protocol_options", type_name(any)))?;
    fields!(&given => upstream_http::HttpProtocolOptions {
        obeyed: [
            common_http_protocol_options, upstream_http_protocol_options, http_filters, upstream_protocol_options,
        ],
        refused: [header_validation_config, outlier_detection, request_mirror_policies, hash_policy, retry_policy],
    });
    if given.http_filters.iter().any(|f| f.name != "envoy.filters.http.upstream_codec") {
        return Err(unsupported("http_filters", "upstream HTTP filters"));
    }
    let mut options = common_http(given.common_http_protocol_options.as_ref())?;
    options.names = given.upstream_http_protocol_options;
    options.protocol = match &given.upstream_protocol_options {
        None => UpstreamProtocol::Http1,
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match &explicit.protocol_config {
            None => UpstreamProtocol::Http1,
            Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                crate::xds::http::http1_options(http1).at("explicit_http_config")?;
                UpstreamProtocol::Http1
            }
            Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
                options.http2(Some(http2)).at("explicit_http_config")?;
                UpstreamProtocol::Http2
            }
            Some(_) => return Err(unsupported("explicit_http_config", "HTTP/3")),
        },
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => {
            fields!(config => upstream_http::http_protocol_options::UseDownstreamHttpConfig {
                obeyed: [http_protocol_options, http2_protocol_options],
                refused: [http3_protocol_options],
            });
            if let Some(http1) = &config.http_protocol_options {
                crate::xds::http::http1_options(http1).at("use_downstream_protocol_config")?;
            }
            options.http2(config.http2_protocol_options.as_ref()).at("use_downstream_protocol_config")?;
            UpstreamProtocol::Downstream
        }
        Some(UpstreamProtocolOptions::AutoConfig(_)) => {
            return Err(unsupported("auto_config", "HTTP by ALPN"));
        }
    };
    Ok(options)
}
