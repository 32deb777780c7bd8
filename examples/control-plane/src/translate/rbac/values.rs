//! Single values of rules as matchers: exact, `prefix*`, `*suffix` or `*` for presence.
#![allow(deprecated, reason = "the proxies in use read these fields, not their successors")]

use mesh_xds::pb::envoy::config::rbac::v3 as pb;
use mesh_xds::pb::envoy::config::rbac::v3::permission::Rule as PermissionRule;
use mesh_xds::pb::envoy::config::rbac::v3::principal::Identifier;
use mesh_xds::pb::envoy::config::route::v3 as route;
use mesh_xds::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use mesh_xds::pb::envoy::r#type::matcher::v3 as matcher;

use super::super::proto;
use crate::resources::parse_cidr;

const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";
/// The trust domain that policies may name whatever the mesh's own is called.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

fn who(identifier: Identifier) -> pb::Principal {
    pb::Principal { identifier: Some(identifier) }
}

fn what(rule: PermissionRule) -> pb::Permission {
    pb::Permission { rule: Some(rule) }
}

fn string(value: &str) -> matcher::StringMatcher {
    if value == "*" {
        proto::regex(".+")
    } else if let Some(suffix) = value.strip_prefix('*') {
        proto::suffix(suffix)
    } else if let Some(prefix) = value.strip_suffix('*') {
        proto::prefix(prefix)
    } else {
        proto::exact(value)
    }
}

/// The value as the inside of a regular expression: `*` at either end is anything.
fn pattern(value: &str) -> String {
    if value == "*" {
        return ".*".to_owned();
    }
    match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(suffix), _) => format!(".*{}", regex::escape(suffix)),
        (None, Some(prefix)) => format!("{}.*", regex::escape(prefix)),
        (None, None) => regex::escape(value),
    }
}

fn authenticated(name: matcher::StringMatcher) -> pb::Principal {
    who(Identifier::Authenticated(pb::principal::Authenticated { principal_name: Some(name) }))
}

/// `cluster.local/ns/x/sa/y`, without `spiffe://`.
pub(super) fn principal(value: &str, trust_domain: &str) -> pb::Principal {
    let value = match value.strip_prefix(DEFAULT_TRUST_DOMAIN).filter(|rest| rest.starts_with('/')) {
        Some(rest) => format!("{trust_domain}{rest}"),
        None => value.to_owned(),
    };
    authenticated(if value == "*" {
        proto::regex(".+")
    } else if let Some(suffix) = value.strip_prefix('*') {
        proto::regex(format!("spiffe://.*{}", regex::escape(suffix)))
    } else if let Some(prefix) = value.strip_suffix('*') {
        proto::prefix(format!("spiffe://{prefix}"))
    } else {
        proto::exact(format!("spiffe://{value}"))
    })
}

pub(super) fn namespace(value: &str) -> pb::Principal {
    authenticated(proto::regex(format!(".*/ns/{}/.*", pattern(value))))
}

/// `ns/sa`, or `sa` of the policy's own namespace.
pub(super) fn service_account(value: &str, own: &str) -> pb::Principal {
    let (namespace, account) = value.split_once('/').unwrap_or((own, value));
    let namespace = regex::escape(namespace);
    authenticated(proto::regex(format!("spiffe://[^/]+/ns/{namespace}/sa/{}", regex::escape(account))))
}

pub(super) fn trust_domain(value: &str) -> pb::Principal {
    authenticated(proto::regex(format!("spiffe://{}/.*", pattern(value))))
}

/// The peer's own address. A value that is no address (validation lets none through) matches nothing.
pub(super) fn direct_ip(value: &str) -> pb::Principal {
    who(match parse_cidr(value) {
        Some(net) => Identifier::DirectRemoteIp(proto::cidr(net)),
        None => nobody(),
    })
}

/// The address that forwarding headers tell.
pub(super) fn remote_ip(value: &str) -> pb::Principal {
    who(match parse_cidr(value) {
        Some(net) => Identifier::RemoteIp(proto::cidr(net)),
        None => nobody(),
    })
}

fn nobody() -> Identifier {
    Identifier::NotId(Box::new(who(Identifier::Any(true))))
}

/// `iss/sub` of a validated token.
pub(super) fn request_principal(value: &str) -> pb::Principal {
    let (issuer, subject) = match value.rsplit_once('/') {
        Some((issuer, subject)) => (issuer.to_owned(), subject.to_owned()),
        None if value.starts_with('*') => ("*".to_owned(), value.to_owned()),
        None => (value.to_owned(), "*".to_owned()),
    };
    let both = vec![metadata(&["iss"], string(&issuer)), metadata(&["sub"], string(&subject))];
    who(Identifier::AndIds(pb::principal::Set { ids: both }))
}

/// A claim of a validated token: equal to the value, or a list with it.
pub(super) fn claim(path: &[&str], value: &str) -> pb::Principal {
    let single = metadata(path, string(value));
    let element = matcher::ValueMatcher {
        match_pattern: Some(matcher::value_matcher::MatchPattern::StringMatch(string(value))),
    };
    let list = matcher::ListMatcher {
        match_pattern: Some(matcher::list_matcher::MatchPattern::OneOf(Box::new(element))),
    };
    let in_list = matcher::value_matcher::MatchPattern::ListMatch(Box::new(list));
    let ids = vec![single, who(Identifier::Metadata(metadata_matcher(path, in_list)))];
    who(Identifier::OrIds(pb::principal::Set { ids }))
}

fn metadata(path: &[&str], value: matcher::StringMatcher) -> pb::Principal {
    let pattern = matcher::value_matcher::MatchPattern::StringMatch(value);
    who(Identifier::Metadata(metadata_matcher(path, pattern)))
}

fn metadata_matcher(
    path: &[&str],
    pattern: matcher::value_matcher::MatchPattern,
) -> matcher::MetadataMatcher {
    let segment = |key: &str| matcher::metadata_matcher::PathSegment {
        segment: Some(matcher::metadata_matcher::path_segment::Segment::Key(key.to_owned())),
    };
    matcher::MetadataMatcher {
        filter: JWT_FILTER.to_owned(),
        path: std::iter::once(&"payload").chain(path).map(|key| segment(key)).collect(),
        value: Some(matcher::ValueMatcher { match_pattern: Some(pattern) }),
        invert: false,
    }
}

fn header(name: &str, value: &str, ignore_case: bool) -> route::HeaderMatcher {
    let specifier = if value == "*" {
        HeaderMatchSpecifier::PresentMatch(true)
    } else {
        let mut matcher = string(value);
        matcher.ignore_case = ignore_case;
        HeaderMatchSpecifier::StringMatch(matcher)
    };
    route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..route::HeaderMatcher::default()
    }
}

pub(super) fn header_principal(name: &str, value: &str) -> pb::Principal {
    who(Identifier::Header(header(name, value, false)))
}

pub(super) fn host(value: &str) -> pb::Permission {
    what(PermissionRule::Header(header(":authority", value, true)))
}

pub(super) fn method(value: &str) -> pb::Permission {
    what(PermissionRule::Header(header(":method", value, false)))
}

/// A path, maybe with `{*}` for one segment and `{**}` for the rest.
pub(super) fn path(value: &str) -> pb::Permission {
    let matcher = if value.contains("{*}") || value.contains("{**}") {
        let escaped = regex::escape(value);
        proto::regex(escaped.replace(r"\{\*\*\}", ".*").replace(r"\{\*\}", "[^/]+"))
    } else {
        string(value)
    };
    let rule = matcher::path_matcher::Rule::Path(matcher);
    what(PermissionRule::UrlPath(matcher::PathMatcher { rule: Some(rule) }))
}

pub(super) fn port(value: &str) -> pb::Permission {
    what(match value.parse::<u16>() {
        Ok(port) => PermissionRule::DestinationPort(port.into()),
        Err(_) => nothing(),
    })
}

pub(super) fn destination_ip(value: &str) -> pb::Permission {
    what(match parse_cidr(value) {
        Some(net) => PermissionRule::DestinationIp(proto::cidr(net)),
        None => nothing(),
    })
}

pub(super) fn server_name(value: &str) -> pb::Permission {
    what(PermissionRule::RequestedServerName(string(value)))
}

fn nothing() -> PermissionRule {
    PermissionRule::NotRule(Box::new(what(PermissionRule::Any(true))))
}
