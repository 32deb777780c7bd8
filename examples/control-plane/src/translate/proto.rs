//! Short constructors for the messages that are needed everywhere.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_xds::pb::envoy::config::core::v3 as core;
use mesh_xds::pb::envoy::config::listener::v3 as listener;
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use mesh_xds::pb::envoy::r#type::matcher::v3 as matcher;
use mesh_xds::pb::envoy::r#type::v3 as kind;
use prost::{Message, Name};
use prost_types::value::Kind;
use prost_types::{Any, Struct, Value};

pub(super) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(super) fn duration(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: value.subsec_nanos().cast_signed(),
    }
}

pub(super) fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub(super) fn address(ip: &str, port: u16) -> core::Address {
    core::Address { address: Some(core::address::Address::SocketAddress(socket_address(ip, port))) }
}

pub(super) fn socket_address(ip: &str, port: u16) -> core::SocketAddress {
    core::SocketAddress {
        address: ip.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
        ..core::SocketAddress::default()
    }
}

pub(super) fn cidr(net: ipnet::IpNet) -> core::CidrRange {
    core::CidrRange { address_prefix: net.network().to_string(), prefix_len: Some(net.prefix_len().into()) }
}

/// Resources of this kind come over the same aggregated stream; wait for them as long as it takes.
pub(super) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        initial_fetch_timeout: seconds(0),
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..core::ConfigSource::default()
    }
}

pub(super) fn network_filter<M: Message + Name>(name: &str, config: &M) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(any(config))),
    }
}

pub(super) fn listener_filter<M: Message + Name>(name: &str, config: &M) -> listener::ListenerFilter {
    listener::ListenerFilter {
        name: name.to_owned(),
        filter_disabled: None,
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(any(config))),
    }
}

pub(super) fn http_filter<M: Message + Name>(name: &str, config: &M) -> hcm::HttpFilter {
    http_filter_any(name, any(config))
}

pub(super) fn http_filter_any(name: &str, config: Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..hcm::HttpFilter::default()
    }
}

pub(super) fn transport_socket<M: Message + Name>(name: &str, config: &M) -> core::TransportSocket {
    core::TransportSocket {
        name: name.to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(config))),
    }
}

fn pattern(pattern: matcher::string_matcher::MatchPattern) -> matcher::StringMatcher {
    matcher::StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}

pub(super) fn exact(text: impl Into<String>) -> matcher::StringMatcher {
    pattern(matcher::string_matcher::MatchPattern::Exact(text.into()))
}

pub(super) fn prefix(text: impl Into<String>) -> matcher::StringMatcher {
    pattern(matcher::string_matcher::MatchPattern::Prefix(text.into()))
}

pub(super) fn suffix(text: impl Into<String>) -> matcher::StringMatcher {
    pattern(matcher::string_matcher::MatchPattern::Suffix(text.into()))
}

pub(super) fn regex(text: impl Into<String>) -> matcher::StringMatcher {
    pattern(matcher::string_matcher::MatchPattern::SafeRegex(regex_matcher(text)))
}

pub(super) fn regex_matcher(text: impl Into<String>) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex: text.into(), engine_type: None }
}

/// Per cent as millionths.
pub(super) fn fraction(percent: f64) -> kind::FractionalPercent {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "validated to be within 0 and 100"
    )]
    let numerator = (percent * 10_000.0).round() as u32;
    kind::FractionalPercent {
        numerator,
        denominator: kind::fractional_percent::DenominatorType::Million.into(),
    }
}

pub(super) fn text(value: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(value.into())) }
}

pub(super) fn structure<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
}

pub(super) fn nested(value: Struct) -> Value {
    Value { kind: Some(Kind::StructValue(value)) }
}

pub(super) fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(prost_types::ListValue { values })) }
}

/// Metadata in the given namespaces; `None` when there are none.
pub(super) fn metadata(namespaces: BTreeMap<String, Struct>) -> Option<core::Metadata> {
    (!namespaces.is_empty())
        .then(|| core::Metadata { filter_metadata: namespaces, typed_filter_metadata: BTreeMap::new() })
}
