//! Role-based access control, HTTP and network.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;

use super::{HeaderMatcher, StringMatcher};

/// An RBAC filter: rules that decide, and shadow rules that only count.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rbac {
    /// The deciding rules; without them everything passes.
    pub rules: Option<RbacRules>,
    /// Evaluated for statistics only.
    pub shadow_rules: Option<RbacRules>,
    /// Prefix of the shadow rules' statistics (`istio_dry_run_allow_`).
    pub shadow_stat_prefix: Arc<str>,
}

/// Policies and what a match means.
#[derive(Debug, Clone, PartialEq)]
pub struct RbacRules {
    /// What a match means.
    pub action: RbacAction,
    /// Policies by name; evaluated in name order.
    pub policies: BTreeMap<Arc<str>, RbacPolicy>,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RbacAction {
    /// A match allows; no match denies.
    Allow,
    /// A match denies; no match allows.
    Deny,
    /// Never decides.
    Log,
}

/// A policy matches when one permission and one principal match.
#[derive(Debug, Clone, PartialEq)]
pub struct RbacPolicy {
    /// What is done; any of these.
    pub permissions: Vec<RbacRule>,
    /// By whom; any of these.
    pub principals: Vec<RbacRule>,
}

/// A permission or principal.
#[derive(Debug, Clone, PartialEq)]
pub enum RbacRule {
    /// Everything.
    Any,
    /// All of these.
    And(Vec<Self>),
    /// Any of these.
    Or(Vec<Self>),
    /// The opposite.
    Not(Box<Self>),
    /// A request header; never matches at network level.
    Header(HeaderMatcher),
    /// The path without query; never matches at network level.
    UrlPath(StringMatcher),
    /// The local address of the connection.
    DestinationIp(IpNet),
    /// The local port of the connection.
    DestinationPort(u16),
    /// `start..end` of local ports.
    DestinationPortRange(u16, u16),
    /// The server name of the TLS ClientHello.
    RequestedServerName(StringMatcher),
    /// A value of dynamic metadata: filter name, path of keys, the match (strings and lists of strings).
    Metadata {
        /// The filter's name (`envoy.filters.http.jwt_authn`).
        filter: Arc<str>,
        /// Keys from the outside in.
        path: Vec<Arc<str>>,
        /// The match.
        value: StringMatcher,
        /// Negates.
        invert: bool,
    },
    /// The peer presented a certificate, with this principal (its URI SAN, else DNS SAN, else subject).
    Authenticated(Option<StringMatcher>),
    /// The address of the directly connected peer.
    DirectRemoteIp(IpNet),
    /// The client's address, from `x-forwarded-for` where trusted.
    RemoteIp(IpNet),
    /// The path matches a URI template: `*` or `{*}` one segment, `**` or `{**}` any.
    UriTemplate(Arc<str>),
}
