//! RBAC policies.

use std::sync::Arc;

use mesh_xds::pb::envoy::{config::rbac::v3 as pb, r#type::matcher::v3 as matcher};

use super::{
    At, Result,
    audit::fields,
    cidr, decode_if,
    matcher::{header, metadata, string},
    missing, port, type_name, unsupported,
};
use crate::config::{Rbac, RbacAction, RbacPolicy, RbacRule, RbacRules};

pub(super) fn rbac(
    rules: Option<&pb::Rbac>,
    shadow: Option<&pb::Rbac>,
    shadow_prefix: &str,
    has_matcher: bool,
) -> Result<Rbac> {
    if has_matcher {
        return Err(unsupported("matcher", "a matcher tree"));
    }
    Ok(Rbac {
        rules: rules.map(|r| rules_of(r).at("rules")).transpose()?,
        shadow_rules: shadow.map(|r| rules_of(r).at("shadow_rules")).transpose()?,
        shadow_stat_prefix: shadow_prefix.into(),
    })
}

fn rules_of(message: &pb::Rbac) -> Result<RbacRules> {
    fields!(message => pb::Rbac { obeyed: [action, policies], refused: [audit_logging_options], });
    let action = match message.action() {
        pb::rbac::Action::Allow => RbacAction::Allow,
        pb::rbac::Action::Deny => RbacAction::Deny,
        pb::rbac::Action::Log => RbacAction::Log,
    };
    let policies = message.policies.iter().map(|(name, policy)| {
        Ok((Arc::from(name.as_str()), self::policy(policy).at(format!("policies[{name:?}]"))?))
    });
    Ok(RbacRules { action, policies: policies.collect::<Result<_>>()? })
}

fn policy(message: &pb::Policy) -> Result<RbacPolicy> {
    fields!(message => pb::Policy {
        obeyed: [permissions, principals],
        refused: [condition, checked_condition, cel_config],
    });
    let permissions =
        message.permissions.iter().map(permission).collect::<Result<Vec<_>>>().at("permissions")?;
    let principals = message.principals.iter().map(principal).collect::<Result<Vec<_>>>().at("principals")?;
    if permissions.is_empty() {
        return Err(missing("permissions"));
    }
    if principals.is_empty() {
        return Err(missing("principals"));
    }
    Ok(RbacPolicy { permissions, principals })
}

fn path(message: &matcher::PathMatcher) -> Result<RbacRule> {
    let matcher::path_matcher::Rule::Path(message) =
        message.rule.as_ref().ok_or_else(|| missing("url_path.path"))?;
    string(message).map(RbacRule::UrlPath).at("url_path")
}

#[allow(deprecated, reason = "the old form is still on the wire")]
fn permission(message: &pb::Permission) -> Result<RbacRule> {
    use mesh_xds::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
    use pb::permission::Rule;
    Ok(match message.rule.as_ref().ok_or_else(|| missing("rule"))? {
        Rule::Any(true) => RbacRule::Any,
        Rule::Any(false) => RbacRule::Not(Box::new(RbacRule::Any)),
        Rule::AndRules(set) => RbacRule::And(set.rules.iter().map(permission).collect::<Result<_>>()?),
        Rule::OrRules(set) => RbacRule::Or(set.rules.iter().map(permission).collect::<Result<_>>()?),
        Rule::NotRule(rule) => RbacRule::Not(Box::new(permission(rule)?)),
        Rule::Header(message) => RbacRule::Header(header(message).at("header")?),
        Rule::UrlPath(message) => path(message)?,
        Rule::DestinationIp(range) => RbacRule::DestinationIp(cidr(range).at("destination_ip")?),
        Rule::DestinationPort(value) => RbacRule::DestinationPort(port("destination_port", *value)?),
        Rule::DestinationPortRange(range) => {
            let bound = |v: i32| port("destination_port_range", u32::try_from(v).unwrap_or(0).min(65_535));
            RbacRule::DestinationPortRange(bound(range.start)?, bound(range.end)?)
        }
        Rule::RequestedServerName(message) => {
            RbacRule::RequestedServerName(string(message).at("requested_server_name")?)
        }
        Rule::Metadata(message) => metadata(message).at("metadata")?,
        Rule::SourcedMetadata(message) => {
            let message = message.metadata_matcher.as_ref().ok_or_else(|| missing("sourced_metadata"))?;
            metadata(message).at("sourced_metadata")?
        }
        Rule::UriTemplate(extension) => {
            let any = extension.typed_config.as_ref().ok_or_else(|| missing("uri_template"))?;
            match decode_if::<UriTemplateMatchConfig>(any)? {
                Some(config) => RbacRule::UriTemplate(config.path_template.as_str().into()),
                None => return Err(unsupported("uri_template", type_name(any))),
            }
        }
        Rule::Matcher(extension) => return Err(unsupported("matcher", &extension.name)),
    })
}

#[allow(deprecated, reason = "the old form is still on the wire")]
fn principal(message: &pb::Principal) -> Result<RbacRule> {
    use pb::principal::Identifier;
    Ok(match message.identifier.as_ref().ok_or_else(|| missing("identifier"))? {
        Identifier::Any(true) => RbacRule::Any,
        Identifier::Any(false) => RbacRule::Not(Box::new(RbacRule::Any)),
        Identifier::AndIds(set) => RbacRule::And(set.ids.iter().map(principal).collect::<Result<_>>()?),
        Identifier::OrIds(set) => RbacRule::Or(set.ids.iter().map(principal).collect::<Result<_>>()?),
        Identifier::NotId(id) => RbacRule::Not(Box::new(principal(id)?)),
        Identifier::Authenticated(message) => RbacRule::Authenticated(
            message.principal_name.as_ref().map(|m| string(m).at("authenticated")).transpose()?,
        ),
        Identifier::SourceIp(range) | Identifier::DirectRemoteIp(range) => {
            RbacRule::DirectRemoteIp(cidr(range).at("direct_remote_ip")?)
        }
        Identifier::RemoteIp(range) => RbacRule::RemoteIp(cidr(range).at("remote_ip")?),
        Identifier::Header(message) => RbacRule::Header(header(message).at("header")?),
        Identifier::UrlPath(message) => path(message)?,
        Identifier::Metadata(message) => metadata(message).at("metadata")?,
        Identifier::FilterState(message) => filter_state(message)?,
        Identifier::SourcedMetadata(message) => {
            let message = message.metadata_matcher.as_ref().ok_or_else(|| missing("sourced_metadata"))?;
            metadata(message).at("sourced_metadata")?
        }
        Identifier::Custom(extension) => return Err(unsupported("custom", &extension.name)),
    })
}

/// Istio names the peer's identity by filter state `io.istio.peer_principal`: the URI SAN without `spiffe://` there.
fn filter_state(message: &matcher::FilterStateMatcher) -> Result<RbacRule> {
    use matcher::filter_state_matcher::Matcher;
    if message.key != "io.istio.peer_principal" {
        return Err(unsupported("filter_state", &message.key));
    }
    match &message.matcher {
        Some(Matcher::StringMatch(message)) => {
            Ok(RbacRule::Authenticated(Some(string(message).at("filter_state")?)))
        }
        _ => Err(unsupported("filter_state", "a match that is not on strings")),
    }
}
