//! AuthorizationPolicies as RBAC filters, in the order AUDIT, DENY, ALLOW.
//!
//! Everything fails closed: an ALLOW policy that cannot match still exists (and so refuses what no other allows), a
//! field that only HTTP has makes an ALLOW rule unmatchable and a DENY rule wider on opaque bytes.

mod rule;
mod values;

use std::collections::BTreeMap;

use mesh_xds::pb::envoy::config::listener::v3 as listener;
use mesh_xds::pb::envoy::config::rbac::v3 as pb;
use mesh_xds::pb::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use mesh_xds::pb::envoy::extensions::filters::network::rbac::v3 as network_rbac;

use super::Proxy;
use super::proto::{http_filter, network_filter};
use crate::model::{AccessRule, Mesh};
use crate::resources::Action;

/// The policies that concern one workload.
#[derive(Debug)]
pub(super) struct Access<'m> {
    mesh: &'m Mesh,
    rules: Vec<&'m AccessRule>,
}

/// Where rules are evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Http,
    Tcp,
}

/// One filter's worth of rules.
struct Set {
    rules: Option<pb::Rbac>,
    shadow: Option<pb::Rbac>,
    shadow_prefix: &'static str,
}

impl<'m> Access<'m> {
    pub(super) fn of(mesh: &'m Mesh, proxy: &Proxy) -> Self {
        let root = &mesh.settings.root_namespace;
        let rules = mesh
            .access
            .iter()
            .filter(|rule| rule.namespace == *root || rule.namespace == proxy.namespace)
            .filter(|rule| rule.spec.target_ref.is_none() && rule.spec.target_refs.is_empty())
            .filter(|rule| rule.spec.selector.as_ref().is_none_or(|s| s.matches(&proxy.labels)))
            .collect();
        Self { mesh, rules }
    }

    /// For HTTP chains.
    pub(super) fn http_filters(&self) -> Vec<HttpFilter> {
        self.sets(Layer::Http)
            .map(|set| {
                let config = http_rbac::Rbac {
                    rules: set.rules,
                    shadow_rules_stat_prefix: prefix_of(set.shadow.as_ref(), set.shadow_prefix),
                    shadow_rules: set.shadow,
                    ..http_rbac::Rbac::default()
                };
                http_filter("envoy.filters.http.rbac", &config)
            })
            .collect()
    }

    /// For chains of opaque bytes.
    pub(super) fn network_filters(&self) -> Vec<listener::Filter> {
        self.sets(Layer::Tcp)
            .map(|set| {
                let config = network_rbac::Rbac {
                    rules: set.rules,
                    shadow_rules_stat_prefix: prefix_of(set.shadow.as_ref(), set.shadow_prefix),
                    shadow_rules: set.shadow,
                    stat_prefix: "tcp.".to_owned(),
                    ..network_rbac::Rbac::default()
                };
                network_filter("envoy.filters.network.rbac", &config)
            })
            .collect()
    }

    fn sets(&self, layer: Layer) -> impl Iterator<Item = Set> {
        [
            (Action::Audit, pb::rbac::Action::Log, ""),
            (Action::Deny, pb::rbac::Action::Deny, "istio_dry_run_deny_"),
            (Action::Allow, pb::rbac::Action::Allow, "istio_dry_run_allow_"),
        ]
        .into_iter()
        .filter_map(move |(action, wire, shadow_prefix)| {
            let rules = self.rbac(layer, action, wire, false);
            let shadow = self.rbac(layer, action, wire, true);
            (rules.is_some() || shadow.is_some()).then_some(Set { rules, shadow, shadow_prefix })
        })
    }

    /// `None` where no policy has this action; an ALLOW set without rules exists and refuses everything.
    fn rbac(&self, layer: Layer, action: Action, wire: pb::rbac::Action, dry_run: bool) -> Option<pb::Rbac> {
        let chosen: Vec<_> =
            self.rules.iter().filter(|rule| rule.spec.action == action && rule.dry_run == dry_run).collect();
        let mut policies = BTreeMap::new();
        for rule in &chosen {
            for (index, spec) in rule.spec.rules.iter().enumerate() {
                let name = format!("ns[{}]-policy[{}]-rule[{index}]", rule.namespace, rule.name);
                let context = rule::Context {
                    trust_domain: &self.mesh.settings.trust_domain,
                    namespace: &rule.namespace,
                    layer,
                    action,
                };
                if let Some(policy) = context.policy(spec) {
                    policies.insert(name, policy);
                }
            }
        }
        let empty = chosen.is_empty() || (policies.is_empty() && action != Action::Allow);
        (!empty).then(|| pb::Rbac { action: wire.into(), policies, audit_logging_options: None })
    }
}

fn prefix_of(shadow: Option<&pb::Rbac>, prefix: &str) -> String {
    shadow.map(|_| prefix.to_owned()).unwrap_or_default()
}
