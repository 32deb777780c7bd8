//! Route tables, compiled: domain lookup, then the first matching route.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use arc_swap::ArcSwapOption;
use http::request;

use super::headers::host;
use crate::{
    config::{
        ClusterSpecifier, HeaderOperations, PathMatch, PerFilterConfig, Route, RouteAction,
        RouteConfiguration, RouteMatch, VirtualHost,
    },
    error::ConfigError,
    worker::Worker,
};

/// Where a connection manager finds its current table; swapped by updates.
#[derive(Debug, Default)]
pub(crate) struct RouteSlot {
    pub(crate) table: ArcSwapOption<RouteTable>,
}

/// A compiled route configuration.
#[derive(Debug)]
pub(crate) struct RouteTable {
    pub(crate) config: Arc<RouteConfiguration>,
    exact: HashMap<Box<str>, usize>,
    /// `*.suffix`, longest first.
    suffixes: Vec<(Box<str>, usize)>,
    /// `prefix.*`, longest first.
    prefixes: Vec<(Box<str>, usize)>,
    any: Option<usize>,
    /// Some route, host or cluster has per-filter configuration.
    pub(crate) per_filter: bool,
}

/// What was chosen for a request.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) host: usize,
    pub(crate) route: Arc<Route>,
    /// Index of the weighted cluster.
    pub(crate) weighted: Option<usize>,
}

impl RouteTable {
    /// Compiles; a domain may appear once.
    pub(crate) fn compile(config: Arc<RouteConfiguration>) -> Result<Self, ConfigError> {
        let mut table = Self {
            exact: HashMap::new(),
            suffixes: Vec::new(),
            prefixes: Vec::new(),
            any: None,
            per_filter: has_per_filter(&config),
            config: Arc::clone(&config),
        };
        for (at, host) in config.virtual_hosts.iter().enumerate() {
            if host.domains.is_empty() {
                return Err(ConfigError::Missing { field: format!("virtual_hosts[{at}].domains") });
            }
            for domain in &host.domains {
                let lower = domain.to_ascii_lowercase();
                let taken = if lower == "*" {
                    table.any.replace(at).is_some()
                } else if let Some(suffix) = lower.strip_prefix('*') {
                    insert(&mut table.suffixes, suffix, at)
                } else if let Some(prefix) = lower.strip_suffix('*') {
                    insert(&mut table.prefixes, prefix, at)
                } else {
                    table.exact.insert(lower.into(), at).is_some()
                };
                if taken {
                    let field = format!("virtual_hosts[{at}].domains");
                    return Err(ConfigError::invalid(field, domain, "the domain appears more than once"));
                }
            }
        }
        table.suffixes.sort_by_key(|(s, _)| std::cmp::Reverse(s.len()));
        table.prefixes.sort_by_key(|(p, _)| std::cmp::Reverse(p.len()));
        Ok(table)
    }

    /// The virtual host and route for a request; `Err(true)` when there is no virtual host.
    pub(crate) fn choose(&self, head: &request::Parts, worker: &Worker) -> Option<Chosen> {
        let at = self.find_host(host(head).unwrap_or(""))?;
        let host = &self.config.virtual_hosts[at];
        let path = head.uri.path();
        let route = host.routes.iter().find(|route| matches(&route.matches, head, path, worker))?;
        let weighted = match &route.action {
            RouteAction::Forward(forward) => choose_weighted(&forward.cluster, worker),
            _ => None,
        };
        Some(Chosen { host: at, route: Arc::clone(route), weighted })
    }

    fn find_host(&self, authority: &str) -> Option<usize> {
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any;
        }
        let name = if self.config.ignore_port_in_host_matching { without_port(authority) } else { authority };
        let name: Cow<'_, str> = if name.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            Cow::Borrowed(name)
        };
        if let Some(at) = self.exact.get(&*name) {
            return Some(*at);
        }
        // A fully qualified name may end in a dot.
        let name = name.strip_suffix('.').unwrap_or(&name);
        if let Some(at) = self.exact.get(name) {
            return Some(*at);
        }
        let longer = |part: &str| name.len() > part.len();
        self.suffixes
            .iter()
            .find(|(s, _)| longer(s) && name.ends_with(&**s))
            .or_else(|| self.prefixes.iter().find(|(p, _)| longer(p) && name.starts_with(&**p)))
            .map(|(_, at)| *at)
            .or(self.any)
    }

    pub(crate) fn host(&self, at: usize) -> &VirtualHost {
        &self.config.virtual_hosts[at]
    }
}

fn insert(list: &mut Vec<(Box<str>, usize)>, part: &str, at: usize) -> bool {
    let taken = list.iter().any(|(known, _)| **known == *part);
    list.push((part.into(), at));
    taken
}

fn has_per_filter(config: &RouteConfiguration) -> bool {
    let of_route = |route: &Route| {
        !route.per_filter.is_empty()
            || match &route.action {
                RouteAction::Forward(f) => match &f.cluster {
                    ClusterSpecifier::Weighted(all) => all.iter().any(|w| !w.per_filter.is_empty()),
                    _ => false,
                },
                _ => false,
            }
    };
    !config.per_filter.is_empty()
        || config
            .virtual_hosts
            .iter()
            .any(|host| !host.per_filter.is_empty() || host.routes.iter().any(|r| of_route(r)))
}

/// `host:port` without the port; an IPv6 address keeps its brackets.
pub(crate) fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') =>
        {
            // `::1` without brackets has no port to strip.
            if host.contains(':') && !host.ends_with(']') { authority } else { host }
        }
        _ => authority,
    }
}

/// Picks by weight.
pub(crate) fn choose_weighted(cluster: &ClusterSpecifier, worker: &Worker) -> Option<usize> {
    let ClusterSpecifier::Weighted(all) = cluster else { return None };
    let total: u64 = all.iter().map(|w| u64::from(w.weight)).sum();
    let mut point = worker.below(total.max(1));
    for (at, choice) in all.iter().enumerate() {
        let weight = u64::from(choice.weight);
        if point < weight {
            return Some(at);
        }
        point -= weight;
    }
    None
}

fn matches(m: &RouteMatch, head: &request::Parts, path: &str, worker: &Worker) -> bool {
    path_matches(m, head, path)
        && (m.headers.is_empty() || m.headers.iter().all(|h| h.matches(head)))
        && (m.query.is_empty() || {
            let query = head.uri.query().unwrap_or("");
            m.query.iter().all(|q| q.matches(query))
        })
        && (!m.grpc || crate::config::is_grpc(head))
        && m.fraction.is_none_or(|f| f.selects(worker.random()))
}

fn path_matches(m: &RouteMatch, head: &request::Parts, path: &str) -> bool {
    let same = |a: &str, b: &str| if m.case_sensitive { a == b } else { a.eq_ignore_ascii_case(b) };
    let begins = |prefix: &str| path.get(..prefix.len()).is_some_and(|start| same(start, prefix));
    match &m.path {
        PathMatch::Prefix(prefix) if &**prefix == "/" => true,
        PathMatch::Prefix(prefix) => begins(prefix),
        PathMatch::Exact(exact) => same(path, exact),
        PathMatch::Regex(regex) => regex.is_match(path),
        PathMatch::PathSeparatedPrefix(prefix) => {
            begins(prefix) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
        }
        PathMatch::Connect => head.method == http::Method::CONNECT,
    }
}

/// Per-filter configuration for a filter, most specific first.
pub(crate) fn per_filter<'a>(
    table: &'a RouteTable,
    host: usize,
    route: &'a Route,
    weighted: Option<usize>,
    filter: &str,
) -> Option<&'a PerFilterConfig> {
    let of_weighted = match (&route.action, weighted) {
        (RouteAction::Forward(f), Some(at)) => match &f.cluster {
            ClusterSpecifier::Weighted(all) => all.get(at).map_or(&[][..], |w| &w.per_filter),
            _ => &[],
        },
        _ => &[],
    };
    let find = |list: &'a [PerFilterConfig]| list.iter().find(|c| &*c.filter == filter);
    find(of_weighted)
        .or_else(|| find(&route.per_filter))
        .or_else(|| find(&table.host(host).per_filter))
        .or_else(|| find(&table.config.per_filter))
}

/// Header operations of a request in the order in which they apply: weighted cluster, route, virtual host, table.
pub(crate) fn header_operations<'a>(
    table: &'a RouteTable,
    chosen: &'a Chosen,
    of: fn(Level<'a>) -> &'a HeaderOperations,
) -> [Option<&'a HeaderOperations>; 4] {
    let weighted = match (&chosen.route.action, chosen.weighted) {
        (RouteAction::Forward(f), Some(at)) => match &f.cluster {
            ClusterSpecifier::Weighted(all) => all.get(at).map(|w| of(Level::Weighted(w))),
            _ => None,
        },
        _ => None,
    };
    let keep = |ops: &'a HeaderOperations| (!ops.is_empty()).then_some(ops);
    [
        weighted.and_then(keep),
        keep(of(Level::Route(&chosen.route))),
        keep(of(Level::Host(table.host(chosen.host)))),
        keep(of(Level::Table(&table.config))),
    ]
}

/// A level that carries header operations.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Level<'a> {
    Weighted(&'a crate::config::WeightedCluster),
    Route(&'a Route),
    Host(&'a VirtualHost),
    Table(&'a RouteConfiguration),
}

/// Request operations of a level.
pub(crate) fn request_operations(level: Level<'_>) -> &HeaderOperations {
    match level {
        Level::Weighted(w) => &w.request_headers,
        Level::Route(r) => &r.request_headers,
        Level::Host(h) => &h.request_headers,
        Level::Table(t) => &t.request_headers,
    }
}

/// Response operations of a level.
pub(crate) fn response_operations(level: Level<'_>) -> &HeaderOperations {
    match level {
        Level::Weighted(w) => &w.response_headers,
        Level::Route(r) => &r.response_headers,
        Level::Host(h) => &h.response_headers,
        Level::Table(t) => &t.response_headers,
    }
}

/// The cluster a route names, unless a header does.
pub(crate) fn cluster_name(route: &Route, weighted: Option<usize>) -> Option<&Arc<str>> {
    let RouteAction::Forward(forward) = &route.action else { return None };
    match &forward.cluster {
        ClusterSpecifier::Name(name) => Some(name),
        ClusterSpecifier::Weighted(all) => all.get(weighted?).map(|w| &w.name),
        ClusterSpecifier::Header(_) => None,
    }
}

#[cfg(test)]
mod tests;
