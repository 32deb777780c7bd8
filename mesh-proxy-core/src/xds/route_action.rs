//! Actions of routes.

use std::{sync::Arc, time::Duration};

use ::http::{HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use mesh_xds::pb::envoy::config::{core::v3 as core, route::v3 as pb};

use super::{
    At, Result,
    audit::fields,
    duration,
    filters::{per_filter, status},
    limit, matcher, missing, port, unsupported,
};
use crate::{
    config::{
        ClusterSpecifier, DirectResponse, Forward, HashPolicy, HashSource, HostRewrite, MirrorPolicy,
        PathRewrite, Redirect, RetryOn, RetryPolicy, RouteAction, WeightedCluster,
    },
    error::ConfigError,
};

pub(super) fn action(message: &pb::route::Action) -> Result<RouteAction> {
    match message {
        pb::route::Action::Route(action) => {
            forward(action).map(|f| RouteAction::Forward(Box::new(f))).at("route")
        }
        pb::route::Action::Redirect(action) => {
            redirect(action).map(|r| RouteAction::Redirect(Box::new(r))).at("redirect")
        }
        pb::route::Action::DirectResponse(action) => {
            direct(action).map(RouteAction::Direct).at("direct_response")
        }
        pb::route::Action::FilterAction(_) => Err(unsupported("filter_action", "an action by filter")),
        pb::route::Action::NonForwardingAction(_) => {
            Err(unsupported("non_forwarding_action", "an action for servers"))
        }
    }
}

fn header_name(field: &str, text: &str) -> Result<HeaderName> {
    HeaderName::from_bytes(text.to_ascii_lowercase().as_bytes())
        .map_err(|_| ConfigError::invalid(field, text, "not a header name"))
}

fn header_value(field: &str, text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| ConfigError::invalid(field, text, "not allowed in a header"))
}

/// Refuses what would not be obeyed.
fn audit(message: &pb::RouteAction) -> Result<()> {
    fields!(message => pb::RouteAction {
        obeyed: [
            prefix_rewrite, timeout, retry_policy, hash_policy, cluster_not_found_response_code,
            max_grpc_timeout, idle_timeout, upgrade_configs, request_mirror_policies, regex_rewrite,
            max_stream_duration, append_x_forwarded_host, cluster_specifier, host_rewrite_specifier,
        ],
        // QUIC.
        ignored: [early_data_policy],
        refused: [
            metadata_match, priority, rate_limits, cors, internal_redirect_action, hedge_policy,
            grpc_timeout_offset, max_internal_redirects, retry_policy_typed_config, internal_redirect_policy,
            path_rewrite_policy, flush_timeout, path_rewrite,
        ],
        refused_if_true: [include_vh_rate_limits],
    });
    if let Some(duration) = &message.max_stream_duration {
        fields!(duration => pb::route_action::MaxStreamDuration {
            obeyed: [max_stream_duration, grpc_timeout_header_max],
            refused: [grpc_timeout_header_offset],
        });
    }
    for upgrade in &message.upgrade_configs {
        fields!(upgrade => pb::route_action::UpgradeConfig {
            obeyed: [upgrade_type, enabled],
            refused: [connect_config],
        });
    }
    for mirror in &message.request_mirror_policies {
        fields!(mirror => pb::route_action::RequestMirrorPolicy {
            obeyed: [cluster, runtime_fraction, disable_shadow_host_suffix_append],
            ignored: [trace_sampled],
            refused: [cluster_header, request_headers_mutations, host_rewrite_literal],
        });
    }
    Ok(())
}

fn forward(message: &pb::RouteAction) -> Result<Forward> {
    audit(message)?;
    use pb::route_action::{ClusterNotFoundResponseCode, ClusterSpecifier as Wire, HostRewriteSpecifier};
    let cluster = match message.cluster_specifier.as_ref().ok_or_else(|| missing("cluster_specifier"))? {
        Wire::Cluster(name) if name.is_empty() => return Err(missing("cluster")),
        Wire::Cluster(name) => ClusterSpecifier::Name(name.as_str().into()),
        Wire::ClusterHeader(name) => ClusterSpecifier::Header(header_name("cluster_header", name)?),
        Wire::WeightedClusters(all) => weighted(all).at("weighted_clusters")?,
        Wire::ClusterSpecifierPlugin(name) => return Err(unsupported("cluster_specifier_plugin", name)),
        Wire::InlineClusterSpecifierPlugin(_) => {
            return Err(unsupported("inline_cluster_specifier_plugin", "a cluster by plugin"));
        }
    };
    let host_rewrite = match &message.host_rewrite_specifier {
        None => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(text)) => {
            HostRewrite::Literal(header_value("host_rewrite_literal", text)?)
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(true)) => HostRewrite::Endpoint,
        Some(HostRewriteSpecifier::AutoHostRewrite(false)) => HostRewrite::None,
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            HostRewrite::Header(header_name("host_rewrite_header", name)?)
        }
        Some(_) => return Err(unsupported("host_rewrite_specifier", "a rewrite from the path")),
    };
    let rewrite = match &message.regex_rewrite {
        Some(rewrite) => {
            let pattern = rewrite.pattern.as_ref().ok_or_else(|| missing("regex_rewrite.pattern"))?;
            Some(PathRewrite::Regex {
                pattern: matcher::regex(pattern).at("regex_rewrite")?,
                substitution: rewrite.substitution.as_str().into(),
            })
        }
        None if message.prefix_rewrite.is_empty() => None,
        None => Some(PathRewrite::Prefix(message.prefix_rewrite.as_str().into())),
    };
    let stream = message.max_stream_duration.as_ref();
    #[allow(deprecated, reason = "the old form is still on the wire")]
    let old_grpc = message.max_grpc_timeout.as_ref();
    let grpc = stream.and_then(|s| s.grpc_timeout_header_max.as_ref()).or(old_grpc);
    let max_stream = limit("max_stream_duration", stream.and_then(|s| s.max_stream_duration.as_ref()))?;
    // Envoy's own default is 15 s; the wire's zero means none.
    let timeout = match &message.timeout {
        None => Some(Duration::from_secs(15)),
        some => limit("timeout", some.as_ref())?,
    };
    Ok(Forward {
        cluster,
        timeout: [timeout, max_stream].into_iter().flatten().min(),
        idle_timeout: message.idle_timeout.as_ref().map(|d| duration("idle_timeout", d)).transpose()?,
        max_grpc_timeout: grpc.map(|d| duration("max_grpc_timeout", d)).transpose()?,
        retry: message
            .retry_policy
            .as_ref()
            .map(|p| retry_policy(p).map(Arc::new).at("retry_policy"))
            .transpose()?,
        rewrite,
        host_rewrite,
        append_forwarded_host: message.append_x_forwarded_host,
        mirrors: message.request_mirror_policies.iter().map(mirror).collect::<Result<_>>()?,
        hash_policies: message.hash_policy.iter().map(hash_policy).collect::<Result<_>>()?,
        cluster_not_found: match message.cluster_not_found_response_code() {
            ClusterNotFoundResponseCode::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            ClusterNotFoundResponseCode::NotFound => StatusCode::NOT_FOUND,
            ClusterNotFoundResponseCode::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
        },
        upgrades: message
            .upgrade_configs
            .iter()
            .map(|u| (Arc::from(u.upgrade_type.to_ascii_lowercase()), u.enabled.unwrap_or(true)))
            .collect(),
    })
}

fn weighted(message: &pb::WeightedCluster) -> Result<ClusterSpecifier> {
    use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    fields!(message => pb::WeightedCluster {
        obeyed: [clusters],
        // The total is the sum.
        ignored: [runtime_key_prefix, total_weight],
        refused: [random_value_specifier],
    });
    let one = |message: &pb::weighted_cluster::ClusterWeight| {
        fields!(message => pb::weighted_cluster::ClusterWeight {
            obeyed: [
                name, weight, request_headers_to_add, response_headers_to_add, response_headers_to_remove,
                request_headers_to_remove, typed_per_filter_config, host_rewrite_specifier,
            ],
            refused: [metadata_match, cluster_header],
        });
        let host_rewrite = match &message.host_rewrite_specifier {
            Some(HostRewriteSpecifier::HostRewriteLiteral(text)) => {
                Some(header_value("host_rewrite_literal", text)?)
            }
            None => None,
        };
        Ok(WeightedCluster {
            name: message.name.as_str().into(),
            weight: message.weight.unwrap_or(0),
            request_headers: matcher::operations(
                &message.request_headers_to_add,
                &message.request_headers_to_remove,
            )?,
            response_headers: matcher::operations(
                &message.response_headers_to_add,
                &message.response_headers_to_remove,
            )?,
            host_rewrite,
            per_filter: per_filter(&message.typed_per_filter_config)?,
        })
    };
    let clusters = message
        .clusters
        .iter()
        .enumerate()
        .map(|(i, m)| one(m).at(format!("clusters[{i}]")))
        .collect::<Result<Vec<_>>>()?;
    if clusters.iter().all(|c| c.weight == 0) {
        return Err(ConfigError::invalid("clusters", "0", "the weights sum to 0"));
    }
    Ok(ClusterSpecifier::Weighted(clusters))
}

fn mirror(message: &pb::route_action::RequestMirrorPolicy) -> Result<MirrorPolicy> {
    Ok(MirrorPolicy {
        cluster: message.cluster.as_str().into(),
        fraction: message
            .runtime_fraction
            .as_ref()
            .map_or(crate::config::Fraction::ALL, matcher::runtime_fraction),
        shadow_host_suffix: !message.disable_shadow_host_suffix_append,
    })
}

fn hash_policy(message: &pb::route_action::HashPolicy) -> Result<HashPolicy> {
    use pb::route_action::hash_policy::PolicySpecifier;
    let source = match message.policy_specifier.as_ref().ok_or_else(|| missing("hash_policy"))? {
        PolicySpecifier::Header(h) => {
            if h.regex_rewrite.is_some() {
                return Err(unsupported("hash_policy.header.regex_rewrite", "a rewritten header"));
            }
            HashSource::Header(header_name("hash_policy.header_name", &h.header_name)?)
        }
        PolicySpecifier::Cookie(c) => {
            let text = |field: &str, text: &str| {
                // What would end the attribute, or the header, would forge another.
                let plain = text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b';');
                let why = "not allowed in a cookie";
                if plain { Ok(Arc::from(text)) } else { Err(ConfigError::invalid(field, text, why)) }
            };
            let name = header_name("hash_policy.cookie.name", &c.name).map(|_| c.name.as_str().into())?;
            let attributes = c.attributes.iter().map(|a| {
                Ok((
                    text("hash_policy.cookie.attributes.name", &a.name)?,
                    text("hash_policy.cookie.attributes.value", &a.value)?,
                ))
            });
            HashSource::Cookie {
                name,
                ttl: c.ttl.as_ref().map(|t| duration("hash_policy.cookie.ttl", t)).transpose()?,
                path: text("hash_policy.cookie.path", &c.path)?,
                attributes: attributes.collect::<Result<_>>()?,
            }
        }
        PolicySpecifier::ConnectionProperties(c) if c.source_ip => HashSource::SourceIp,
        PolicySpecifier::ConnectionProperties(_) => {
            return Err(ConfigError::invalid("hash_policy.source_ip", false, "nothing would be hashed"));
        }
        PolicySpecifier::QueryParameter(q) => HashSource::Query(q.name.as_str().into()),
        PolicySpecifier::FilterState(_) => return Err(unsupported("hash_policy", "a hash of filter state")),
    };
    Ok(HashPolicy { source, terminal: message.terminal })
}

pub(super) fn retry_policy(message: &pb::RetryPolicy) -> Result<RetryPolicy> {
    use mesh_xds::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
    use pb::retry_policy::{retry_host_predicate, retry_priority};
    fields!(message => pb::RetryPolicy {
        obeyed: [
            retry_on, num_retries, per_try_timeout, retry_priority, retry_host_predicate,
            host_selection_retry_max_attempts, retriable_status_codes, retry_back_off,
        ],
        refused: [
            retriable_headers, retriable_request_headers, rate_limited_retry_back_off,
            retry_options_predicates, per_try_idle_timeout,
        ],
    });
    let codes = message.retriable_status_codes.iter().map(|c| status("retriable_status_codes", *c));
    let mut avoid_previous_hosts = false;
    for predicate in &message.retry_host_predicate {
        let kind = match &predicate.config_type {
            Some(retry_host_predicate::ConfigType::TypedConfig(any)) => super::type_name(any),
            None => predicate.name.as_str(),
        };
        match kind {
            "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            | "envoy.retry_host_predicates.previous_hosts" => avoid_previous_hosts = true,
            other => return Err(unsupported("retry_host_predicate", other)),
        }
    }
    let avoid_previous_priorities = match &message.retry_priority {
        None => None,
        Some(priority) => match &priority.config_type {
            Some(retry_priority::ConfigType::TypedConfig(any)) => {
                match super::decode_if::<PreviousPrioritiesConfig>(any)? {
                    Some(config) => Some(u32::try_from(config.update_frequency).unwrap_or(1).max(1)),
                    None => return Err(unsupported("retry_priority", super::type_name(any))),
                }
            }
            None => return Err(unsupported("retry_priority", &priority.name)),
        },
    };
    let back_off = message.retry_back_off.as_ref();
    let base =
        back_off.and_then(|b| b.base_interval.as_ref()).map(|d| duration("retry_back_off.base_interval", d));
    let base = base.transpose()?.unwrap_or(Duration::from_millis(25));
    let max =
        back_off.and_then(|b| b.max_interval.as_ref()).map(|d| duration("retry_back_off.max_interval", d));
    Ok(RetryPolicy {
        on: RetryOn::parse(&message.retry_on),
        status_codes: codes.collect::<Result<_>>()?,
        num_retries: message.num_retries.unwrap_or(1),
        per_try_timeout: limit("per_try_timeout", message.per_try_timeout.as_ref())?,
        avoid_previous_hosts,
        host_selection_attempts: u32::try_from(message.host_selection_retry_max_attempts).unwrap_or(0).max(1),
        avoid_previous_priorities,
        base_interval: base,
        max_interval: max.transpose()?.unwrap_or(base * 10),
    })
}

fn redirect(message: &pb::RedirectAction) -> Result<Redirect> {
    use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let text = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
    let (path, prefix_rewrite) = match &message.path_rewrite_specifier {
        None => (None, None),
        Some(PathRewriteSpecifier::PathRedirect(path)) => (text(path), None),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => (None, text(prefix)),
        Some(PathRewriteSpecifier::RegexRewrite(_)) => {
            return Err(unsupported("regex_rewrite", "a redirect by pattern"));
        }
    };
    let port = match message.port_redirect {
        0 => None,
        value => Some(port("port_redirect", value)?),
    };
    Ok(Redirect {
        code: match message.response_code() {
            RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
            RedirectResponseCode::Found => StatusCode::FOUND,
            RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
            RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
            RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
        },
        scheme: match &message.scheme_rewrite_specifier {
            None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => text(scheme),
        },
        host: text(&message.host_redirect),
        port,
        path,
        prefix_rewrite,
        strip_query: message.strip_query,
    })
}

fn direct(message: &pb::DirectResponseAction) -> Result<DirectResponse> {
    use core::data_source::Specifier;
    fields!(message => pb::DirectResponseAction { obeyed: [status, body], refused: [body_format], });
    let body = match message.body.as_ref().and_then(|b| b.specifier.as_ref()) {
        None => Bytes::new(),
        Some(Specifier::InlineString(text)) => Bytes::copy_from_slice(text.as_bytes()),
        Some(Specifier::InlineBytes(bytes)) => Bytes::copy_from_slice(bytes),
        Some(_) => return Err(unsupported("body", "a body that is not inline")),
    };
    if body.len() > 1024 * 1024 {
        return Err(ConfigError::invalid("body", body.len(), "at most 1 MiB"));
    }
    Ok(DirectResponse { status: status("status", message.status)?, body })
}
