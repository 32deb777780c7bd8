//! Listeners and filter chains.

use std::{sync::Arc, time::Duration};

use mesh_xds::pb::envoy::{
    config::{core::v3 as core, listener::v3 as pb},
    extensions::filters::listener::tls_inspector::v3::TlsInspector,
};

use super::{
    At, Result, access_log::access_logs, audit::fields, cidr, decode, duration, filters::network_filter,
    limit, missing, port, socket_address, tls, unsupported,
};
use crate::{
    config::{
        Direction, FilterChain, FilterChainMatch, Inspector, Listener, ListenerFilters, PortPredicate,
        SourceType, TransportProtocol,
    },
    error::ConfigError,
};

/// Envoy's default.
const FILTERS_TIMEOUT: Duration = Duration::from_secs(15);

/// Refuses what would not be obeyed.
fn audit(message: &pb::Listener) -> Result<()> {
    fields!(message => pb::Listener {
        obeyed: [
            name, address, filter_chains, use_original_dst, deprecated_v1, listener_filters, transparent,
            listener_filters_timeout, traffic_direction, continue_on_listener_filters_timeout, access_log,
            tcp_backlog_size, default_filter_chain, bind_to_port, stat_prefix, additional_addresses,
        ],
        // Tuning: buffers are bounded, workers share ports, the proxy drains as its owner says.
        ignored: [
            per_connection_buffer_limit_bytes, metadata, drain_type, tcp_fast_open_queue_length,
            connection_balance_config, reuse_port, enable_reuse_port, ignore_global_conn_limit,
            max_connections_to_accept_per_socket_event, bypass_overload_manager,
        ],
        refused: [
            socket_options, udp_listener_config, api_listener, enable_mptcp, filter_chain_matcher,
            fcds_config, listener_specifier,
        ],
        refused_if_true: [freebind],
    });
    for additional in &message.additional_addresses {
        fields!(additional => pb::AdditionalAddress { obeyed: [address], refused: [socket_options], });
    }
    Ok(())
}

pub(super) fn listener(message: &pb::Listener) -> Result<Listener> {
    let mut addresses = vec![socket_address(message.address.as_ref()).at("address")?];
    for (i, additional) in message.additional_addresses.iter().enumerate() {
        addresses.push(socket_address(additional.address.as_ref()).at(format!("additional_addresses[{i}]"))?);
    }
    audit(message)?;
    let filter_chains = message
        .filter_chains
        .iter()
        .enumerate()
        .map(|(i, m)| chain(m).at(format!("filter_chains[{i}]")))
        .collect::<Result<_>>()?;
    let default_filter_chain =
        message.default_filter_chain.as_ref().map(|m| chain(m).at("default_filter_chain")).transpose()?;
    let mut filters = listener_filters(&message.listener_filters)?;
    filters.timeout = match &message.listener_filters_timeout {
        None => Some(FILTERS_TIMEOUT),
        some => limit("listener_filters_timeout", some.as_ref())?,
    };
    filters.continue_on_timeout = message.continue_on_listener_filters_timeout;
    #[allow(deprecated, reason = "the old form is still on the wire")]
    let bind = message.bind_to_port.or_else(|| message.deprecated_v1.as_ref().and_then(|v1| v1.bind_to_port));
    let name = if message.name.is_empty() { addresses[0].to_string() } else { message.name.clone() };
    Ok(Listener {
        name: name.as_str().into(),
        addresses,
        bind_to_port: bind.unwrap_or(true),
        use_original_dst: message.use_original_dst.unwrap_or(false),
        transparent: message.transparent.unwrap_or(false),
        direction: match message.traffic_direction() {
            core::TrafficDirection::Unspecified => Direction::Unspecified,
            core::TrafficDirection::Inbound => Direction::Inbound,
            core::TrafficDirection::Outbound => Direction::Outbound,
        },
        listener_filters: filters,
        filter_chains,
        default_filter_chain,
        access_logs: access_logs(&message.access_log)?,
        stat_prefix: message.stat_prefix.as_str().into(),
        backlog: message.tcp_backlog_size.unwrap_or(4096),
    })
}

fn listener_filters(messages: &[pb::ListenerFilter]) -> Result<ListenerFilters> {
    let mut filters = ListenerFilters::default();
    for (i, message) in messages.iter().enumerate() {
        let place = format!("listener_filters[{i}]");
        let any = match &message.config_type {
            Some(pb::listener_filter::ConfigType::TypedConfig(any)) => Some(any),
            Some(_) => return Err(unsupported(&place, "a filter by discovery")),
            None => None,
        };
        let disabled =
            message.filter_disabled.as_ref().map(predicate).transpose().at(&place)?.unwrap_or_default();
        let kind = any.map_or(message.name.as_str(), super::type_name);
        match kind {
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
            | "envoy.filters.listener.original_dst" => filters.original_dst = true,
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
            | "envoy.filters.listener.tls_inspector" => {
                if let Some(any) = any {
                    tls_inspector(&decode(any).at(&place)?).at(&place)?;
                }
                filters.tls_inspector = Some(Inspector { disabled });
            }
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"
            | "envoy.filters.listener.http_inspector" => {
                filters.http_inspector = Some(Inspector { disabled });
            }
            other => return Err(unsupported(&place, other)),
        }
    }
    Ok(filters)
}

fn tls_inspector(message: &TlsInspector) -> Result<()> {
    fields!(message => TlsInspector {
        obeyed: [],
        // As much as a ClientHello needs is read, at most 16 KiB.
        ignored: [initial_read_buffer_size, max_client_hello_size],
        refused: [close_connection_on_client_hello_parsing_errors],
        refused_if_true: [enable_ja3_fingerprinting, enable_ja4_fingerprinting],
    });
    Ok(())
}

fn predicate(message: &pb::ListenerFilterChainMatchPredicate) -> Result<PortPredicate> {
    use pb::listener_filter_chain_match_predicate::Rule;
    Ok(match message.rule.as_ref().ok_or_else(|| missing("filter_disabled.rule"))? {
        Rule::AnyMatch(true) => PortPredicate::Always,
        Rule::AnyMatch(false) => PortPredicate::Never,
        Rule::NotMatch(inner) => PortPredicate::Not(Box::new(predicate(inner)?)),
        Rule::OrMatch(set) => PortPredicate::Any(set.rules.iter().map(predicate).collect::<Result<_>>()?),
        Rule::AndMatch(set) => PortPredicate::All(set.rules.iter().map(predicate).collect::<Result<_>>()?),
        Rule::DestinationPortRange(range) => {
            // The end is exclusive on the wire.
            let bound = |v: i32| u16::try_from(v.clamp(0, 65_535)).unwrap_or(u16::MAX);
            if range.end <= range.start {
                return Err(ConfigError::invalid("destination_port_range", range.end, "an empty range"));
            }
            PortPredicate::Range(bound(range.start), bound(range.end - 1))
        }
    })
}

fn chain(message: &pb::FilterChain) -> Result<FilterChain> {
    fields!(message => pb::FilterChain {
        obeyed: [filter_chain_match, filters, transport_socket, name, transport_socket_connect_timeout],
        ignored: [metadata],
        refused_if_true: [use_proxy_proto],
    });
    let matches = match &message.filter_chain_match {
        Some(criteria) => chain_match(criteria).at("filter_chain_match")?,
        None => FilterChainMatch::default(),
    };
    let tls =
        message.transport_socket.as_ref().map(|s| tls::downstream(s).at("transport_socket")).transpose()?;
    let mut filters = Vec::new();
    for (i, filter) in message.filters.iter().enumerate() {
        filters.extend(network_filter(filter).at(format!("filters[{i}]"))?);
    }
    let handshake_timeout = match &message.transport_socket_connect_timeout {
        None => Some(Duration::from_secs(15)),
        Some(value) => Some(duration("transport_socket_connect_timeout", value)?),
    };
    Ok(FilterChain {
        name: message.name.as_str().into(),
        matches,
        tls: tls.flatten().map(Arc::new),
        filters,
        handshake_timeout,
    })
}

fn chain_match(message: &pb::FilterChainMatch) -> Result<FilterChainMatch> {
    use pb::filter_chain_match::ConnectionSourceType;
    fields!(message => pb::FilterChainMatch {
        obeyed: [
            prefix_ranges, source_prefix_ranges, source_ports, destination_port, transport_protocol,
            application_protocols, server_names, source_type, direct_source_prefix_ranges,
        ],
        refused: [address_suffix, suffix_len],
    });
    let ranges = |messages: &[core::CidrRange], field: &str| {
        messages.iter().map(|r| cidr(r).at(field)).collect::<Result<Vec<_>>>()
    };
    let server_names = message.server_names.iter().map(|name| {
        let lower = name.to_ascii_lowercase();
        if lower.get(1..).is_some_and(|rest| rest.contains('*')) {
            return Err(ConfigError::invalid(
                "server_names",
                name,
                "a wildcard is only allowed at the start",
            ));
        }
        Ok(Arc::from(lower))
    });
    Ok(FilterChainMatch {
        destination_port: message.destination_port.map(|p| port("destination_port", p)).transpose()?,
        prefix_ranges: ranges(&message.prefix_ranges, "prefix_ranges")?,
        server_names: server_names.collect::<Result<_>>()?,
        transport_protocol: match message.transport_protocol.as_str() {
            "" => None,
            "raw_buffer" => Some(TransportProtocol::RawBuffer),
            "tls" => Some(TransportProtocol::Tls),
            other => return Err(unsupported("transport_protocol", other)),
        },
        application_protocols: message.application_protocols.iter().map(|p| p.as_str().into()).collect(),
        direct_source_prefix_ranges: ranges(
            &message.direct_source_prefix_ranges,
            "direct_source_prefix_ranges",
        )?,
        source_type: match message.source_type() {
            ConnectionSourceType::Any => SourceType::Any,
            ConnectionSourceType::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            ConnectionSourceType::External => SourceType::External,
        },
        source_prefix_ranges: ranges(&message.source_prefix_ranges, "source_prefix_ranges")?,
        source_ports: message.source_ports.iter().map(|p| port("source_ports", *p)).collect::<Result<_>>()?,
    })
}
