//! Log lines: levels by scope as Istio's and Envoy's flags name them, changeable while running.

use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use crate::args::LogArgs;

/// Scopes that `/logging` lists; each is a Rust module path prefix.
pub const SCOPES: &[&str] = &["mesh_proxy_core", "mesh_sidecar", "mesh_xds", "mesh_identity", "access"];

/// Levels in force, by scope.
#[derive(Debug)]
pub struct Logging {
    levels: Mutex<Vec<(&'static str, LevelFilter)>>,
    handle: Option<reload::Handle<Targets, Registry>>,
}

/// Reads Envoy's and Istio's level names.
pub fn level(name: &str) -> Option<LevelFilter> {
    Some(match name.trim().to_ascii_lowercase().as_str() {
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" | "warning" => LevelFilter::WARN,
        "error" | "critical" | "fatal" => LevelFilter::ERROR,
        "off" | "none" => LevelFilter::OFF,
        _ => return None,
    })
}

/// The first `default:level` or bare level of Istio's `scope:level,…`; other scopes are Istio's own.
fn agent_level(text: &str) -> Option<LevelFilter> {
    text.split(',').find_map(|part| match part.split_once(':') {
        Some(("default" | "all", name)) => level(name),
        Some(_) => None,
        None => level(part),
    })
}

impl Logging {
    /// Starts logging to stdout; a second call in one process only keeps the levels.
    pub fn start(args: &LogArgs) -> Self {
        let agent = args.agent.as_deref().and_then(agent_level).unwrap_or(LevelFilter::INFO);
        let proxy = args.proxy.as_deref().and_then(level).unwrap_or(LevelFilter::WARN);
        let levels: Vec<_> = SCOPES
            .iter()
            .map(|scope| (*scope, if *scope == "mesh_proxy_core" { proxy } else { agent }))
            .collect();
        let (filter, handle) = reload::Layer::new(targets(&levels));
        let registry = tracing_subscriber::registry().with(filter);
        let started = if args.json {
            registry.with(tracing_subscriber::fmt::layer().json()).try_init()
        } else {
            registry.with(tracing_subscriber::fmt::layer().with_ansi(false)).try_init()
        };
        Self { levels: Mutex::new(levels), handle: started.is_ok().then_some(handle) }
    }

    /// Sets one scope, or all of them; false if there is no such scope.
    pub fn set(&self, scope: Option<&str>, level: LevelFilter) -> bool {
        let mut found = false;
        let mut levels = self.levels.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (name, current) in levels.iter_mut() {
            if scope.is_none_or(|scope| scope == *name) {
                *current = level;
                found = true;
            }
        }
        if let Some(handle) = &self.handle {
            let _gone = handle.reload(targets(&levels));
        }
        found
    }

    /// What Envoy's `/logging` prints.
    pub fn list(&self) -> String {
        let levels = self.levels.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut out = String::from("active loggers:\n");
        for (name, level) in levels.iter() {
            let level = if *level == LevelFilter::WARN { "warning".into() } else { level.to_string() };
            out.push_str(&format!("  {name}: {level}\n"));
        }
        out
    }
}

fn targets(levels: &[(&'static str, LevelFilter)]) -> Targets {
    Targets::new().with_default(LevelFilter::WARN).with_targets(levels.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_follow_flags_and_calls() {
        let args = LogArgs { agent: Some("ads:debug,default:error".into()), ..LogArgs::default() };
        let logging = Logging {
            levels: Mutex::new(vec![("mesh_sidecar", agent_level(args.agent.as_deref().unwrap()).unwrap())]),
            handle: None,
        };
        assert!(logging.list().contains("mesh_sidecar: error"));
        assert!(logging.set(Some("mesh_sidecar"), level("warning").unwrap()));
        assert!(logging.list().contains("mesh_sidecar: warning"));
        assert!(!logging.set(Some("filter"), LevelFilter::INFO));
        assert_eq!(level("loud"), None);
    }
}
