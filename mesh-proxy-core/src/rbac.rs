//! Evaluation of RBAC rules, for requests and for connections.

use std::{net::IpAddr, sync::Arc};

use http::request;

use crate::{
    config::{RbacAction, RbacRule, RbacRules},
    filter::ConnectionInfo,
};

/// What rules are evaluated on. Without a head, rules about requests never match.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) connection: &'a ConnectionInfo,
    /// The client's address as far as it can be trusted.
    pub(crate) client: IpAddr,
    pub(crate) head: Option<&'a request::Parts>,
    pub(crate) metadata: &'a [(Arc<str>, Arc<str>, Arc<str>)],
}

/// The decision, with the policy that led to a denial.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<'a> {
    Allowed,
    Denied(Option<&'a str>),
}

/// Evaluates: the first policy (by name) of which a permission and a principal match.
pub(crate) fn evaluate<'a>(rules: &'a RbacRules, input: &Input<'_>) -> Verdict<'a> {
    let matched = rules.policies.iter().find(|(_, policy)| {
        policy.permissions.iter().any(|rule| matches(rule, input))
            && policy.principals.iter().any(|rule| matches(rule, input))
    });
    match (rules.action, matched) {
        (RbacAction::Log, _) | (RbacAction::Allow, Some(_)) | (RbacAction::Deny, None) => Verdict::Allowed,
        (RbacAction::Deny, Some((name, _))) => Verdict::Denied(Some(name)),
        (RbacAction::Allow, None) => Verdict::Denied(None),
    }
}

fn matches(rule: &RbacRule, input: &Input<'_>) -> bool {
    let connection = input.connection;
    match rule {
        RbacRule::Any => true,
        RbacRule::And(all) => all.iter().all(|r| matches(r, input)),
        RbacRule::Or(any) => any.iter().any(|r| matches(r, input)),
        RbacRule::Not(rule) => !matches(rule, input),
        RbacRule::Header(header) => input.head.is_some_and(|head| header.matches(head)),
        RbacRule::UrlPath(path) => input.head.is_some_and(|head| path.matches(head.uri.path())),
        RbacRule::UriTemplate(template) => {
            input.head.is_some_and(|head| template_matches(template, head.uri.path()))
        }
        RbacRule::DestinationIp(net) => net.contains(&connection.local.ip()),
        RbacRule::DestinationPort(port) => connection.local.port() == *port,
        RbacRule::DestinationPortRange(start, end) => (*start..*end).contains(&connection.local.port()),
        RbacRule::RequestedServerName(name) => name.matches(connection.server_name.as_deref().unwrap_or("")),
        RbacRule::Metadata { filter, path, value, invert } => {
            let key = path.join(".");
            let found = input.metadata.iter().filter(|(f, k, _)| f == filter && **k == *key);
            found.into_iter().any(|(_, _, v)| value.matches(v)) != *invert
        }
        RbacRule::Authenticated(name) => {
            let Some(peer) = connection.tls.as_ref().and_then(|tls| tls.peer.as_ref()) else { return false };
            name.as_ref().is_none_or(|name| peer.principals().any(|p| name.matches(p)))
        }
        RbacRule::DirectRemoteIp(net) => net.contains(&connection.peer.ip()),
        RbacRule::RemoteIp(net) => net.contains(&input.client),
    }
}

/// `{*}` or `*` is one segment, `{**}` or `**` any number of them; the whole path must match.
fn template_matches(template: &str, path: &str) -> bool {
    fn walk(template: &[&str], path: &[&str]) -> bool {
        match template.split_first() {
            None => path.is_empty(),
            Some((&("{**}" | "**"), rest)) => (0..=path.len()).any(|n| walk(rest, &path[n..])),
            Some((&("{*}" | "*"), rest)) => {
                path.split_first().is_some_and(|(first, tail)| !first.is_empty() && walk(rest, tail))
            }
            Some((literal, rest)) => {
                path.split_first().is_some_and(|(first, tail)| first == literal && walk(rest, tail))
            }
        }
    }
    let template: Vec<&str> = template.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    walk(&template, &path)
}
