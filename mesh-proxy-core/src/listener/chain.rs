//! Listeners and chains at run time.

use std::sync::Arc;

use super::matching::ChainMatcher;
use crate::{
    config::{Direction, FilterChain, Listener, NetworkFilter, NetworkRbac},
    error::ConfigError,
    http::ManagerRuntime,
    lifecycle::Lifecycle,
    proxy::Shared,
    tcp::TcpRuntime,
    telemetry::{Counter, Gauge, Logs},
};

/// A compiled listener.
#[derive(Debug)]
pub(crate) struct ListenerRuntime {
    pub(crate) config: Arc<Listener>,
    pub(crate) chains: Vec<Arc<ChainRuntime>>,
    pub(crate) default_chain: Option<Arc<ChainRuntime>>,
    pub(crate) matcher: ChainMatcher,
    pub(crate) logs: Logs,
    pub(crate) stats: ListenerStats,
}

/// A compiled chain.
#[derive(Debug)]
pub(crate) struct ChainRuntime {
    pub(crate) config: FilterChain,
    pub(crate) rbac: Vec<NetworkRbac>,
    pub(crate) terminal: Terminal,
    pub(crate) lifecycle: Arc<Lifecycle>,
}

/// What a chain ends in.
#[derive(Debug)]
pub(crate) enum Terminal {
    Tcp(Arc<TcpRuntime>),
    Http(Arc<ManagerRuntime>),
}

/// Statistics of a listener.
#[derive(Debug)]
pub(crate) struct ListenerStats {
    pub(crate) cx_total: Arc<Counter>,
    pub(crate) cx_active: Arc<Gauge>,
    pub(crate) no_filter_chain_match: Arc<Counter>,
    pub(crate) pre_cx_timeout: Arc<Counter>,
    pub(crate) ssl_error: Arc<Counter>,
    pub(crate) ssl_handshake: Arc<Counter>,
}

impl ListenerRuntime {
    /// Compiles a listener. Chains that `old` already has, unchanged, are taken over with their connections.
    pub(crate) fn compile(
        config: Listener,
        old: Option<&Self>,
        shared: &Shared,
    ) -> Result<Self, ConfigError> {
        if config.name.is_empty() {
            return Err(ConfigError::Missing { field: "name".into() });
        }
        if config.addresses.is_empty() {
            return Err(ConfigError::Missing { field: "address".into() });
        }
        let known = |chain: &FilterChain| {
            let old = old.filter(|old| old.config.direction == config.direction)?;
            old.chains.iter().chain(&old.default_chain).find(|c| c.config == *chain).cloned()
        };
        let compile = |(at, chain): (usize, &FilterChain)| match known(chain) {
            Some(chain) => Ok(chain),
            None => ChainRuntime::compile(chain, config.direction, shared)
                .map(Arc::new)
                .map_err(|error| error.within(&format!("filter_chains[{at}]"))),
        };
        let chains = config.filter_chains.iter().enumerate().map(compile).collect::<Result<Vec<_>, _>>()?;
        let default_chain =
            config.default_filter_chain.as_ref().map(|c| compile((usize::MAX, c))).transpose()?;
        let prefix = if config.stat_prefix.is_empty() {
            config.addresses.first().map_or_else(String::new, |a| a.to_string().replace(':', "_"))
        } else {
            config.stat_prefix.to_string()
        };
        let counter = |tail: &str| shared.stats().counter(&format!("listener.{prefix}.{tail}"));
        let stats = ListenerStats {
            cx_total: counter("downstream_cx_total"),
            cx_active: shared.stats().gauge(&format!("listener.{prefix}.downstream_cx_active")),
            no_filter_chain_match: counter("no_filter_chain_match"),
            pre_cx_timeout: counter("downstream_pre_cx_timeout"),
            ssl_error: counter("ssl.connection_error"),
            ssl_handshake: counter("ssl.handshake"),
        };
        Ok(Self {
            matcher: ChainMatcher::compile(&config.filter_chains)?,
            logs: Logs::compile(&config.access_logs, &shared.logs)?,
            config: Arc::new(config),
            chains,
            default_chain,
            stats,
        })
    }

    pub(crate) fn all_chains(&self) -> impl Iterator<Item = &Arc<ChainRuntime>> {
        self.chains.iter().chain(&self.default_chain)
    }
}

impl ChainRuntime {
    fn compile(config: &FilterChain, direction: Direction, shared: &Shared) -> Result<Self, ConfigError> {
        let Some((last, before)) = config.filters.split_last() else {
            return Err(ConfigError::Missing { field: "filters".into() });
        };
        let mut rbac = Vec::new();
        for filter in before {
            match filter {
                NetworkFilter::Rbac(filter) => rbac.push(filter.clone()),
                NetworkFilter::TcpProxy(_) | NetworkFilter::Http(_) => {
                    return Err(ConfigError::invalid(
                        "filters",
                        &config.name,
                        "a terminal filter must be the last",
                    ));
                }
            }
        }
        let terminal = match last {
            NetworkFilter::TcpProxy(tcp) => Terminal::Tcp(Arc::new(TcpRuntime::compile(tcp, shared)?)),
            NetworkFilter::Http(http) => Terminal::Http(Arc::new(ManagerRuntime::compile(http, shared)?)),
            NetworkFilter::Rbac(_) => {
                return Err(ConfigError::invalid(
                    "filters",
                    &config.name,
                    "the last filter must be terminal",
                ));
            }
        };
        let lifecycle = Arc::<Lifecycle>::default();
        if shared.drains(direction) {
            lifecycle.advance(crate::lifecycle::DRAINING);
        }
        Ok(Self { config: config.clone(), rbac, terminal, lifecycle })
    }
}
