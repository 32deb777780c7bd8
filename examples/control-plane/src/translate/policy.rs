//! The traffic policy of one cluster: layers composed block by block.

use crate::model::TrafficRule;
use crate::resources::{
    ConnectionPool, LoadBalancer, OutlierDetection, RetryBudget, Subset, TlsSettings, TrafficPolicy,
};

/// The blocks in force for one service port and subset.
#[derive(Debug, Clone, Default)]
pub(super) struct Policy<'r> {
    pub(super) load_balancer: Option<&'r LoadBalancer>,
    pub(super) pool: Option<&'r ConnectionPool>,
    pub(super) outlier: Option<&'r OutlierDetection>,
    pub(super) tls: Option<&'r TlsSettings>,
    pub(super) retry_budget: Option<&'r RetryBudget>,
}

/// The rules for one host, merged: subsets united (the first definition of a name wins), the policy of the oldest rule
/// that has one.
#[derive(Debug, Clone, Default)]
pub(super) struct Merged<'r> {
    rules: Vec<&'r TrafficRule>,
}

impl<'r> Merged<'r> {
    pub(super) fn new(rules: Vec<&'r TrafficRule>) -> Self {
        Self { rules }
    }

    /// The rule that gives the metadata its name.
    pub(super) fn first(&self) -> Option<&'r TrafficRule> {
        self.rules.first().copied()
    }

    pub(super) fn subsets(&self) -> Vec<&'r Subset> {
        let mut subsets: Vec<&Subset> = Vec::new();
        for subset in self.rules.iter().flat_map(|rule| &rule.spec.subsets) {
            if !subsets.iter().any(|known| known.name == subset.name) {
                subsets.push(subset);
            }
        }
        subsets
    }

    /// The blocks for `port`, in `subset` if given.
    pub(super) fn policy(&self, port: u16, subset: Option<&'r Subset>) -> Policy<'r> {
        let mut policy = Policy::default();
        let top = self.rules.iter().find_map(|rule| rule.spec.traffic_policy.as_ref());
        for layer in top.into_iter().chain(subset.and_then(|subset| subset.traffic_policy.as_ref())) {
            policy.add(layer, port);
        }
        policy
    }
}

impl<'r> Policy<'r> {
    fn add(&mut self, layer: &'r TrafficPolicy, port: u16) {
        let on_port = layer
            .port_level_settings
            .iter()
            .find(|settings| settings.port.as_ref().is_some_and(|p| p.number == port));
        let blocks = match on_port {
            // A port's settings replace all of their layer, set or not; blocks of lower layers that the layer as a
            // whole would have replaced are replaced as well.
            Some(settings) => {
                let hidden = Self::of(layer);
                self.replace(&hidden, true);
                Policy {
                    load_balancer: settings.load_balancer.as_ref(),
                    pool: settings.connection_pool.as_ref(),
                    outlier: settings.outlier_detection.as_ref(),
                    tls: settings.tls.as_ref(),
                    retry_budget: None,
                }
            }
            None => Self::of(layer),
        };
        self.replace(&blocks, false);
    }

    fn of(layer: &'r TrafficPolicy) -> Self {
        Self {
            load_balancer: layer.load_balancer.as_ref(),
            pool: layer.connection_pool.as_ref(),
            outlier: layer.outlier_detection.as_ref(),
            tls: layer.tls.as_ref(),
            retry_budget: layer.retry_budget.as_ref(),
        }
    }

    /// Takes over every block that `other` sets; with `clear`, as unset.
    fn replace(&mut self, other: &Self, clear: bool) {
        fn take<'r, T>(mine: &mut Option<&'r T>, theirs: Option<&'r T>, clear: bool) {
            if theirs.is_some() {
                *mine = if clear { None } else { theirs };
            }
        }
        take(&mut self.load_balancer, other.load_balancer, clear);
        take(&mut self.pool, other.pool, clear);
        take(&mut self.outlier, other.outlier, clear);
        take(&mut self.tls, other.tls, clear);
        take(&mut self.retry_budget, other.retry_budget, clear);
    }
}
