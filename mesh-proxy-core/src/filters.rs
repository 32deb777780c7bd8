//! The built-in HTTP filters: plain structs behind the same trait that users implement.

use std::sync::Arc;

use crate::{
    config::{HttpFilterConfig, HttpFilterKind},
    error::ConfigError,
    filter::HttpFilter,
    proxy::Shared,
};

mod alpn;
mod cors;
mod fault;
mod header_mutation;
mod local_rate_limit;
mod rbac;

/// Makes a filter; `None` for those whose work is built into the data path.
pub(crate) fn make(
    config: &HttpFilterConfig,
    shared: &Shared,
    stat_prefix: &str,
) -> Result<Option<Arc<dyn HttpFilter>>, ConfigError> {
    let name = Arc::clone(&config.name);
    Ok(Some(match &config.kind {
        HttpFilterKind::Router { .. } => {
            return Err(ConfigError::invalid(
                "http_filters",
                &config.name,
                "the router must be the last filter",
            ));
        }
        HttpFilterKind::Telemetry => return Ok(None),
        HttpFilterKind::Rbac(rbac) => {
            Arc::new(rbac::RbacFilter::new(name, Arc::clone(rbac), shared.stats(), stat_prefix))
        }
        HttpFilterKind::AlpnOverride(lists) => Arc::new(alpn::Alpn(lists.clone())),
        HttpFilterKind::Fault(fault) => {
            Arc::new(fault::FaultFilter::new(name, Arc::clone(fault), shared.stats(), stat_prefix))
        }
        HttpFilterKind::Cors => Arc::new(cors::CorsFilter { name }),
        HttpFilterKind::HeaderMutation(mutation) => {
            Arc::new(header_mutation::HeaderMutationFilter { name, mutation: Arc::clone(mutation) })
        }
        HttpFilterKind::LocalRateLimit(limit) => Arc::new(local_rate_limit::LocalRateLimitFilter::new(
            name,
            Arc::clone(limit),
            Arc::clone(shared.stats()),
        )),
        HttpFilterKind::Custom(custom) => {
            let factory = shared.options.factories.iter().find(|f| f.name() == &*custom.factory);
            let factory = factory.ok_or_else(|| ConfigError::Unsupported {
                field: format!("http_filters.{}", config.name),
                kind: custom.factory.to_string(),
            })?;
            factory.create(custom)?
        }
    }))
}
