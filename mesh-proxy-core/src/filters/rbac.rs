//! RBAC on requests.

use std::sync::Arc;

use http::{StatusCode, request};

use crate::{
    config::{PerRoute, Rbac},
    filter::{Flow, HttpFilter, LocalReply, RequestContext},
    rbac::{Input, Verdict, evaluate},
    telemetry::{Counter, Stats},
};

#[derive(Debug)]
pub(super) struct RbacFilter {
    name: Arc<str>,
    rbac: Arc<Rbac>,
    allowed: Arc<Counter>,
    denied: Arc<Counter>,
    shadow_allowed: Arc<Counter>,
    shadow_denied: Arc<Counter>,
}

impl RbacFilter {
    pub(super) fn new(name: Arc<str>, rbac: Arc<Rbac>, stats: &Stats, prefix: &str) -> Self {
        let prefix = prefix.trim_end_matches(';');
        let shadow = &rbac.shadow_stat_prefix;
        Self {
            allowed: stats.counter(&format!("http.{prefix}.rbac.allowed")),
            denied: stats.counter(&format!("http.{prefix}.rbac.denied")),
            shadow_allowed: stats.counter(&format!("http.{prefix}.rbac.{shadow}shadow_allowed")),
            shadow_denied: stats.counter(&format!("http.{prefix}.rbac.{shadow}shadow_denied")),
            name,
            rbac,
        }
    }
}

impl HttpFilter for RbacFilter {
    fn on_request(&self, cx: &mut RequestContext, head: &mut request::Parts) -> Flow {
        let own = match cx.per_filter(&self.name).and_then(|own| own.config.as_ref()) {
            Some(PerRoute::Rbac(None)) => return Flow::Continue,
            Some(PerRoute::Rbac(Some(rbac))) => Some(Arc::clone(rbac)),
            _ => None,
        };
        let rbac = own.as_deref().unwrap_or(&self.rbac);
        let connection = Arc::clone(cx.connection());
        let input =
            Input { connection: &connection, client: cx.client, head: Some(head), metadata: &cx.metadata };
        if let Some(rules) = &rbac.shadow_rules {
            match evaluate(rules, &input) {
                Verdict::Allowed => self.shadow_allowed.inc(),
                Verdict::Denied(_) => self.shadow_denied.inc(),
            }
        }
        let Some(rules) = &rbac.rules else { return Flow::Continue };
        match evaluate(rules, &input) {
            Verdict::Allowed => {
                self.allowed.inc();
                Flow::Continue
            }
            Verdict::Denied(policy) => {
                self.denied.inc();
                let policy = policy.unwrap_or("none");
                let details = format!("rbac_access_denied_matched_policy[{policy}]");
                Flow::Reply(Box::new(LocalReply::new(StatusCode::FORBIDDEN, "RBAC: access denied", &details)))
            }
        }
    }
}
