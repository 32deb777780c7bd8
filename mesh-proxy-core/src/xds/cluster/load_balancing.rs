//! Which endpoint is chosen: both forms of the policy, and the slow start of new endpoints.

use mesh_xds::pb::envoy::{
    config::{cluster::v3 as pb, core::v3 as core},
    r#type::v3::Percent,
};
use pb::cluster::{LbConfig, LbPolicy as WireLb};

use crate::xds::{At, Result, audit::fields, decode_if, limit, type_name, unsupported};
use crate::{
    config::{HashFunction, LbPolicy, SlowStart},
    error::ConfigError,
};

pub(super) fn lb(message: &pb::Cluster) -> Result<LbPolicy> {
    if let Some(policy) = &message.load_balancing_policy {
        return typed_lb(policy).map(|(lb, _)| lb).at("load_balancing_policy");
    }
    if let Some(LbConfig::LeastRequestLbConfig(config)) = &message.lb_config {
        fields!(config => pb::cluster::LeastRequestLbConfig {
            obeyed: [choice_count, slow_start_config],
            refused: [active_request_bias],
        });
    }
    Ok(match message.lb_policy() {
        WireLb::RoundRobin => LbPolicy::RoundRobin,
        WireLb::LeastRequest => LbPolicy::LeastRequest {
            choices: match &message.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => config.choice_count.unwrap_or(2).max(2),
                _ => 2,
            },
        },
        WireLb::Random => LbPolicy::Random,
        WireLb::RingHash => {
            let config = match &message.lb_config {
                Some(LbConfig::RingHashLbConfig(config)) => Some(config),
                _ => None,
            };
            let murmur = pb::cluster::ring_hash_lb_config::HashFunction::MurmurHash2 as i32;
            LbPolicy::RingHash {
                min: config.and_then(|c| c.minimum_ring_size).unwrap_or(1024),
                max: config.and_then(|c| c.maximum_ring_size).unwrap_or(8 * 1024 * 1024),
                function: match config {
                    Some(c) if c.hash_function == murmur => HashFunction::Murmur2,
                    _ => HashFunction::XxHash,
                },
            }
        }
        WireLb::Maglev => LbPolicy::Maglev {
            table_size: match &message.lb_config {
                Some(LbConfig::MaglevLbConfig(config)) => config.table_size.unwrap_or(65_537),
                _ => 65_537,
            },
        },
        WireLb::ClusterProvided => LbPolicy::ClusterProvided,
        other => return Err(unsupported("lb_policy", other.as_str_name())),
    })
}

/// The newer form: the first policy that is known here, and its slow start.
fn typed_lb(message: &pb::LoadBalancingPolicy) -> Result<(LbPolicy, Option<SlowStart>)> {
    use mesh_xds::pb::envoy::extensions::load_balancing_policies as lb;
    for policy in &message.policies {
        let any = policy.typed_extension_config.as_ref().and_then(|e| e.typed_config.as_ref());
        let Some(any) = any else { continue };
        if let Some(config) = decode_if::<lb::least_request::v3::LeastRequest>(any)? {
            fields!(&config => lb::least_request::v3::LeastRequest {
                obeyed: [choice_count, slow_start_config],
                refused: [active_request_bias, locality_lb_config, enable_full_scan, selection_method],
            });
            let choices = config.choice_count.unwrap_or(2).max(2);
            let ramp = config.slow_start_config.as_ref().map(typed_ramp).transpose()?;
            return Ok((LbPolicy::LeastRequest { choices }, ramp.flatten()));
        }
        if let Some(config) = decode_if::<lb::round_robin::v3::RoundRobin>(any)? {
            fields!(&config => lb::round_robin::v3::RoundRobin {
                obeyed: [slow_start_config],
                refused: [locality_lb_config],
            });
            let ramp = config.slow_start_config.as_ref().map(typed_ramp).transpose()?;
            return Ok((LbPolicy::RoundRobin, ramp.flatten()));
        }
        match type_name(any) {
            "envoy.extensions.load_balancing_policies.random.v3.Random" => {
                return Ok((LbPolicy::Random, None));
            }
            "envoy.extensions.load_balancing_policies.cluster_provided.v3.ClusterProvided" => {
                return Ok((LbPolicy::ClusterProvided, None));
            }
            _ => {}
        }
    }
    Err(unsupported("policies", "none of these policies"))
}

pub(super) fn slow_start(message: &pb::Cluster) -> Result<Option<SlowStart>> {
    if let Some(policy) = &message.load_balancing_policy {
        return typed_lb(policy).map(|(_, ramp)| ramp).at("load_balancing_policy");
    }
    let config = match &message.lb_config {
        Some(LbConfig::LeastRequestLbConfig(config)) => config.slow_start_config.as_ref(),
        Some(LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.as_ref(),
        _ => None,
    };
    let Some(config) = config else { return Ok(None) };
    ramp(config.slow_start_window.as_ref(), config.aggression.as_ref(), config.min_weight_percent.as_ref())
}

fn typed_ramp(
    config: &mesh_xds::pb::envoy::extensions::load_balancing_policies::common::v3::SlowStartConfig,
) -> Result<Option<SlowStart>> {
    ramp(config.slow_start_window.as_ref(), config.aggression.as_ref(), config.min_weight_percent.as_ref())
}

fn ramp(
    window: Option<&prost_types::Duration>,
    aggression: Option<&core::RuntimeDouble>,
    min_percent: Option<&Percent>,
) -> Result<Option<SlowStart>> {
    let Some(window) = limit("slow_start_window", window)? else { return Ok(None) };
    let aggression = aggression.map_or(1.0, |a| a.default_value);
    if aggression.is_nan() || aggression <= 0.0 {
        return Err(ConfigError::invalid("slow_start_config.aggression", aggression, "must be above 0"));
    }
    let min_percent = min_percent.map_or(10.0, |p| p.value);
    if !(0.0..=100.0).contains(&min_percent) {
        let field = "slow_start_config.min_weight_percent";
        return Err(ConfigError::invalid(field, min_percent, "a percentage is from 0 to 100"));
    }
    Ok(Some(SlowStart { window, aggression, min_percent }))
}
