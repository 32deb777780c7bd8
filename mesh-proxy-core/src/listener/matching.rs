//! Choosing a filter chain: Envoy's staged narrowing, without backtracking.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    config::{FilterChain, FilterChainMatch, SourceType, TransportProtocol},
    error::ConfigError,
};

/// What is known about a connection.
#[derive(Debug, Clone)]
pub(crate) struct Facts<'a> {
    pub(crate) destination_ip: IpAddr,
    pub(crate) destination_port: u16,
    pub(crate) server_name: &'a str,
    pub(crate) transport: TransportProtocol,
    pub(crate) application_protocols: &'a [Arc<str>],
    pub(crate) source_ip: IpAddr,
    pub(crate) source_port: u16,
}

/// Compiled criteria of a listener's chains.
#[derive(Debug)]
pub(crate) struct ChainMatcher {
    criteria: Vec<FilterChainMatch>,
}

impl ChainMatcher {
    /// Compiles; two chains must not have the same criteria.
    pub(crate) fn compile(chains: &[FilterChain]) -> Result<Self, ConfigError> {
        let mut criteria: Vec<FilterChainMatch> = Vec::with_capacity(chains.len());
        for (at, chain) in chains.iter().enumerate() {
            if criteria.contains(&chain.matches) {
                let field = format!("filter_chains[{at}].filter_chain_match");
                return Err(ConfigError::invalid(field, &chain.name, "another chain has the same criteria"));
            }
            criteria.push(chain.matches.clone());
        }
        Ok(Self { criteria })
    }

    /// The index of the chain for a connection.
    ///
    /// At each stage the chains that name a matching value beat those that leave the criterion open, and once a stage
    /// has narrowed the set the others are gone, even if later stages fail.
    pub(crate) fn choose(&self, facts: &Facts<'_>) -> Option<usize> {
        let mut left: Vec<usize> = (0..self.criteria.len()).collect();
        let c = |at: usize| &self.criteria[at];
        narrow(&mut left, |at| exact(c(at).destination_port, facts.destination_port));
        narrow(&mut left, |at| prefix(&c(at).prefix_ranges, facts.destination_ip));
        narrow(&mut left, |at| server_name(&c(at).server_names, facts.server_name));
        narrow(&mut left, |at| exact(c(at).transport_protocol, facts.transport));
        narrow(&mut left, |at| {
            application_protocol(&c(at).application_protocols, facts.application_protocols)
        });
        self.settle_protocol(&mut left, facts);
        narrow(&mut left, |at| prefix(&c(at).direct_source_prefix_ranges, facts.source_ip));
        narrow(&mut left, |at| source_type(c(at).source_type, facts));
        narrow(&mut left, |at| prefix(&c(at).source_prefix_ranges, facts.source_ip));
        narrow(&mut left, |at| {
            let ports = &c(at).source_ports;
            if ports.is_empty() { Fit::Open } else { fit(ports.contains(&facts.source_port)) }
        });
        left.first().copied()
    }

    /// The client's list is walked in its order; the first value that any chain names wins, for all chains.
    fn settle_protocol(&self, left: &mut Vec<usize>, facts: &Facts<'_>) {
        let winner = facts
            .application_protocols
            .iter()
            .find(|offered| left.iter().any(|at| self.criteria[*at].application_protocols.contains(offered)));
        if let Some(winner) = winner {
            left.retain(|at| self.criteria[*at].application_protocols.contains(winner));
        }
    }
}

/// How well a criterion fits; larger is more specific.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// It names values, none of which is the connection's.
    No,
    /// It is open.
    Open,
    /// It names the connection's value, with this specificity.
    Specific(usize),
}

fn narrow(left: &mut Vec<usize>, fit: impl Fn(usize) -> Fit) {
    let Some(best) = left.iter().map(|at| fit(*at)).max() else { return };
    if best == Fit::No {
        left.clear();
    } else {
        left.retain(|at| fit(*at) == best);
    }
}

fn fit(matches: bool) -> Fit {
    if matches { Fit::Specific(0) } else { Fit::No }
}

fn exact<T: PartialEq>(criterion: Option<T>, value: T) -> Fit {
    criterion.map_or(Fit::Open, |c| fit(c == value))
}

fn prefix(ranges: &[IpNet], ip: IpAddr) -> Fit {
    if ranges.is_empty() {
        return Fit::Open;
    }
    let longest =
        ranges.iter().filter(|net| net.contains(&ip)).map(|net| usize::from(net.prefix_len())).max();
    longest.map_or(Fit::No, Fit::Specific)
}

fn server_name(names: &[Arc<str>], name: &str) -> Fit {
    if names.is_empty() {
        return Fit::Open;
    }
    let one = |pattern: &str| match pattern.strip_prefix('*') {
        // `*.example.com` matches `a.example.com`; the longest suffix wins, an exact name beats all.
        Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix)).then_some(suffix.len()),
        None => (pattern == name && !name.is_empty()).then_some(usize::MAX),
    };
    names.iter().filter_map(|n| one(n)).max().map_or(Fit::No, Fit::Specific)
}

fn application_protocol(named: &[Arc<str>], offered: &[Arc<str>]) -> Fit {
    if named.is_empty() { Fit::Open } else { fit(offered.iter().any(|o| named.contains(o))) }
}

fn source_type(criterion: SourceType, facts: &Facts<'_>) -> Fit {
    let local = facts.source_ip.is_loopback() || facts.source_ip == facts.destination_ip;
    match criterion {
        SourceType::Any => Fit::Open,
        SourceType::SameIpOrLoopback => fit(local),
        SourceType::External => fit(!local),
    }
}

#[cfg(test)]
mod tests;
