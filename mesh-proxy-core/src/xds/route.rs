//! Route configurations, virtual hosts, matches.

use std::sync::Arc;

use mesh_xds::pb::envoy::config::route::v3 as pb;

use super::{
    At, Result, audit::fields, decode_if, filters::per_filter, matcher, missing, route_action, type_name,
    unsupported,
};
use crate::config::{
    HeaderOperations, PathMatch, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
};

pub(super) fn route_configuration(message: &pb::RouteConfiguration) -> Result<RouteConfiguration> {
    fields!(message => pb::RouteConfiguration {
        obeyed: [
            name, virtual_hosts, response_headers_to_add, response_headers_to_remove, request_headers_to_add,
            request_headers_to_remove, ignore_port_in_host_matching, typed_per_filter_config,
        ],
        // A cluster that is not there yet answers 503; direct answers have one bound.
        ignored: [validate_clusters, max_direct_response_body_size_bytes, metadata],
        refused: [
            internal_only_headers, vhds, most_specific_header_mutations_wins, cluster_specifier_plugins,
            request_mirror_policies, ignore_path_parameters_in_path_matching, vhost_header,
        ],
    });
    let virtual_hosts = message
        .virtual_hosts
        .iter()
        .enumerate()
        .map(|(i, m)| virtual_host(m).at(format!("virtual_hosts[{i}]")))
        .collect::<Result<_>>()?;
    Ok(RouteConfiguration {
        name: message.name.as_str().into(),
        virtual_hosts,
        ignore_port_in_host_matching: message.ignore_port_in_host_matching,
        request_headers: matcher::operations(
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
        )?,
        response_headers: matcher::operations(
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
        )?,
        per_filter: per_filter(&message.typed_per_filter_config)?,
    })
}

fn virtual_host(message: &pb::VirtualHost) -> Result<VirtualHost> {
    fields!(message => pb::VirtualHost {
        obeyed: [
            name, domains, routes, require_tls, request_headers_to_add, response_headers_to_add,
            response_headers_to_remove, request_headers_to_remove, include_request_attempt_count,
            typed_per_filter_config, retry_policy, include_attempt_count_in_response,
        ],
        // Statistics, and notes of the control plane.
        ignored: [virtual_clusters, metadata],
        refused: [
            rate_limits, cors, hedge_policy, per_request_buffer_limit_bytes, retry_policy_typed_config,
            matcher, request_mirror_policies, include_is_timeout_retry_header, request_body_buffer_limit,
        ],
    });
    if message.require_tls() != pb::virtual_host::TlsRequirementType::None {
        return Err(unsupported("require_tls", message.require_tls().as_str_name()));
    }
    let routes = message
        .routes
        .iter()
        .enumerate()
        .map(|(i, m)| route(m).map(Arc::new).at(format!("routes[{i}]")))
        .collect::<Result<_>>()?;
    Ok(VirtualHost {
        name: message.name.as_str().into(),
        domains: message.domains.iter().map(|d| d.as_str().into()).collect(),
        routes,
        request_headers: matcher::operations(
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
        )?,
        response_headers: matcher::operations(
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
        )?,
        retry: message
            .retry_policy
            .as_ref()
            .map(|p| route_action::retry_policy(p).map(Arc::new).at("retry_policy"))
            .transpose()?,
        include_request_attempt_count: message.include_request_attempt_count,
        include_attempt_count_in_response: message.include_attempt_count_in_response,
        per_filter: per_filter(&message.typed_per_filter_config)?,
    })
}

/// A route. A bad match is an error of the whole resource; a bad action only makes this route answer 500.
fn route(message: &pb::Route) -> Result<Route> {
    fields!(message => pb::Route {
        obeyed: [
            name, r#match, action, request_headers_to_add, response_headers_to_add,
            response_headers_to_remove, request_headers_to_remove, typed_per_filter_config,
        ],
        // Names for spans and statistics, and notes of the control plane.
        ignored: [metadata, decorator, tracing, stat_prefix],
        refused: [per_request_buffer_limit_bytes, request_body_buffer_limit],
    });
    let matches = route_match(message.r#match.as_ref().ok_or_else(|| missing("match"))?).at("match")?;
    let rest = action_and_headers(message).unwrap_or_else(|error| Rest {
        action: RouteAction::Invalid { reason: error.to_string().into() },
        ..Rest::default()
    });
    Ok(Route {
        name: message.name.as_str().into(),
        matches,
        action: rest.action,
        request_headers: rest.request,
        response_headers: rest.response,
        // A filter's configuration may be a policy: a bad one must not be dropped, and 500 would be a policy too, so the
        // resource is refused as a whole.
        per_filter: per_filter(&message.typed_per_filter_config)?,
    })
}

struct Rest {
    action: RouteAction,
    request: HeaderOperations,
    response: HeaderOperations,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            action: RouteAction::Invalid { reason: "".into() },
            request: HeaderOperations::default(),
            response: HeaderOperations::default(),
        }
    }
}

fn action_and_headers(message: &pb::Route) -> Result<Rest> {
    Ok(Rest {
        action: route_action::action(message.action.as_ref().ok_or_else(|| missing("action"))?)?,
        request: matcher::operations(&message.request_headers_to_add, &message.request_headers_to_remove)?,
        response: matcher::operations(&message.response_headers_to_add, &message.response_headers_to_remove)?,
    })
}

fn route_match(message: &pb::RouteMatch) -> Result<RouteMatch> {
    use mesh_xds::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
    use pb::route_match::PathSpecifier;
    fields!(message => pb::RouteMatch {
        obeyed: [case_sensitive, headers, query_parameters, grpc, runtime_fraction, path_specifier],
        // Routes are chosen once, before any filter could have left metadata or state.
        refused: [tls_context, dynamic_metadata, filter_state],
    });
    let path = match message.path_specifier.as_ref().ok_or_else(|| missing("path_specifier"))? {
        PathSpecifier::Prefix(text) => PathMatch::Prefix(text.as_str().into()),
        PathSpecifier::Path(text) => PathMatch::Exact(text.as_str().into()),
        PathSpecifier::SafeRegex(message) => PathMatch::Regex(matcher::regex(message).at("safe_regex")?),
        PathSpecifier::PathSeparatedPrefix(text) => PathMatch::PathSeparatedPrefix(text.as_str().into()),
        PathSpecifier::ConnectMatcher(_) => PathMatch::Connect,
        PathSpecifier::PathMatchPolicy(extension) => {
            let any = extension.typed_config.as_ref().ok_or_else(|| missing("path_match_policy"))?;
            match decode_if::<UriTemplateMatchConfig>(any)? {
                Some(config) => PathMatch::Regex(template(&config.path_template)?),
                None => return Err(unsupported("path_match_policy", type_name(any))),
            }
        }
    };
    Ok(RouteMatch {
        path,
        case_sensitive: message.case_sensitive.unwrap_or(true),
        headers: matcher::headers(&message.headers, "headers")?,
        query: message
            .query_parameters
            .iter()
            .map(matcher::query)
            .collect::<Result<_>>()
            .at("query_parameters")?,
        grpc: message.grpc.is_some(),
        fraction: message.runtime_fraction.as_ref().map(matcher::runtime_fraction),
    })
}

/// A URI template (`/a/{name}/*/**`) as a regular expression.
fn template(text: &str) -> Result<crate::config::Regex> {
    let mut pattern = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("**") {
            pattern.push_str(".*");
            rest = after;
        } else if let Some(after) = rest.strip_prefix('*') {
            pattern.push_str("[^/]+");
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = after.find('}').ok_or_else(|| unsupported("path_template", text))?;
            pattern.push_str(match after[..end].split_once('=') {
                Some((_, "**")) => ".*",
                None | Some((_, "*")) => "[^/]+",
                Some(_) => return Err(unsupported("path_template", text)),
            });
            rest = &after[end + 1..];
        } else {
            let end = rest.find(['*', '{']).unwrap_or(rest.len());
            pattern.push_str(&regex::escape(&rest[..end]));
            rest = &rest[end..];
        }
    }
    crate::config::Regex::new(&pattern)
}
