//! Matches of VirtualService routes, in Envoy's form.

use mesh_xds::pb::envoy::config::route::v3 as pb;
use mesh_xds::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use mesh_xds::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use mesh_xds::pb::envoy::config::route::v3::route_match::PathSpecifier;
use mesh_xds::pb::envoy::r#type::matcher::v3 as matcher;

use super::proto;
use super::view::View;
use crate::resources::{HttpMatch, StringMatch, scalar_subset};

/// Whether a match can apply to this client at all: its labels, namespace, gateway and port are known beforehand.
pub(super) fn concerns(
    view: &View,
    port: u16,
    m: (&[String], &std::collections::BTreeMap<String, String>, &str, Option<u16>),
) -> bool {
    let (gateways, labels, namespace, wanted) = m;
    let gateway = gateways.is_empty() || gateways.iter().any(|g| g == "mesh");
    // A match with gateways of its own does not look at labels.
    let source = !gateways.is_empty() || scalar_subset(labels, &view.labels);
    let from = namespace.is_empty() || namespace == view.namespace;
    gateway && source && from && wanted.is_none_or(|wanted| wanted == port)
}

/// Whether an HTTP match can apply.
pub(super) fn http_concerns(view: &View, port: u16, m: &HttpMatch) -> bool {
    concerns(view, port, (&m.gateways, &m.source_labels, &m.source_namespace, m.port))
}

/// The match of everything.
pub(super) fn everything() -> pb::RouteMatch {
    pb::RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
        ..pb::RouteMatch::default()
    }
}

/// Whether nothing can follow a route with this match.
pub(super) fn is_catch_all(m: &pb::RouteMatch) -> bool {
    let any_path = match &m.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => prefix == "/",
        Some(PathSpecifier::SafeRegex(regex)) => regex.regex == ".*",
        _ => false,
    };
    any_path && m.headers.is_empty() && m.query_parameters.is_empty()
}

/// One alternative of a route's match.
pub(super) fn route_match(m: &HttpMatch) -> pb::RouteMatch {
    let mut result = everything();
    if let Some(uri) = &m.uri {
        result.path_specifier = Some(match (&uri.exact, &uri.prefix, &uri.regex) {
            (Some(path), ..) => PathSpecifier::Path(path.clone()),
            (_, Some(prefix), _) => PathSpecifier::Prefix(prefix.clone()),
            (_, _, Some(regex)) => PathSpecifier::SafeRegex(proto::regex_matcher(regex.clone())),
            _ => PathSpecifier::Prefix("/".to_owned()),
        });
        result.case_sensitive = Some(!m.ignore_uri_case);
    }
    for (name, value) in &m.headers {
        result.headers.push(header(name, value.as_ref()));
    }
    for (name, value) in &m.without_headers {
        let mut inverted = header(name, value.as_ref());
        inverted.invert_match = true;
        let presence = matches!(inverted.header_match_specifier, Some(HeaderMatchSpecifier::PresentMatch(_)));
        inverted.treat_missing_header_as_empty = !presence;
        result.headers.push(inverted);
    }
    for (name, value) in [(":method", &m.method), (":authority", &m.authority), (":scheme", &m.scheme)] {
        if let Some(value) = value {
            result.headers.push(header(name, Some(value)));
        }
    }
    for (name, value) in &m.query_params {
        let specifier = string(value).map_or(
            QueryParameterMatchSpecifier::PresentMatch(true),
            QueryParameterMatchSpecifier::StringMatch,
        );
        result.query_parameters.push(pb::QueryParameterMatcher {
            name: name.clone(),
            query_parameter_match_specifier: Some(specifier),
        });
    }
    result
}

fn header(name: &str, value: Option<&StringMatch>) -> pb::HeaderMatcher {
    let specifier = value
        .and_then(string)
        .map_or(HeaderMatchSpecifier::PresentMatch(true), HeaderMatchSpecifier::StringMatch);
    pb::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..pb::HeaderMatcher::default()
    }
}

/// `None` where presence is all that is asked for.
pub(super) fn string(value: &StringMatch) -> Option<matcher::StringMatcher> {
    match (&value.exact, &value.prefix, &value.regex) {
        (Some(exact), ..) => Some(proto::exact(exact)),
        (_, Some(prefix), _) if !prefix.is_empty() => Some(proto::prefix(prefix)),
        (_, _, Some(regex)) if regex != "*" => Some(proto::regex(regex)),
        _ => None,
    }
}
