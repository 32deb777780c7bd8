//! One rule: alternatives of sources, alternatives of operations, and conditions that all must hold.

use mesh_xds::pb::envoy::config::rbac::v3 as pb;
use mesh_xds::pb::envoy::config::rbac::v3::permission::Rule as PermissionRule;
use mesh_xds::pb::envoy::config::rbac::v3::principal::Identifier;

use super::Layer;
use super::values as v;
use crate::resources::{Action, Operation, Rule, RuleCondition, Source};

/// What a rule is translated in.
pub(super) struct Context<'c> {
    pub(super) trust_domain: &'c str,
    pub(super) namespace: &'c str,
    pub(super) layer: Layer,
    pub(super) action: Action,
}

/// The rule asks for something that opaque bytes do not have: it can never allow.
struct NeverMatches;

type Gathered<T> = Result<Vec<T>, NeverMatches>;

impl Context<'_> {
    /// `None` where the rule can never match.
    pub(super) fn policy(&self, rule: &Rule) -> Option<pb::Policy> {
        self.try_policy(rule).ok()
    }

    fn try_policy(&self, rule: &Rule) -> Result<pb::Policy, NeverMatches> {
        let (mut who, mut what) = (Vec::new(), Vec::new());
        for condition in &rule.when {
            self.condition(condition, &mut who, &mut what)?;
        }
        let sources: Vec<_> = if rule.from.is_empty() {
            vec![Vec::new()]
        } else {
            rule.from.iter().map(|from| self.source(&from.source)).collect::<Result<_, _>>()?
        };
        let operations: Vec<_> = if rule.to.is_empty() {
            vec![Vec::new()]
        } else {
            rule.to.iter().map(|to| self.operation(&to.operation)).collect::<Result<_, _>>()?
        };
        let principals = sources.into_iter().map(|mut all| {
            all.extend(who.iter().cloned());
            every_principal(all)
        });
        let permissions = operations.into_iter().map(|mut all| {
            all.extend(what.iter().cloned());
            every_permission(all)
        });
        Ok(pb::Policy {
            permissions: permissions.collect(),
            principals: principals.collect(),
            ..pb::Policy::default()
        })
    }

    /// On opaque bytes an HTTP field is left out of a DENY (which gets wider) and makes an ALLOW unmatchable.
    fn http_only(&self, given: bool) -> Result<bool, NeverMatches> {
        match (self.layer, self.action) {
            _ if !given => Ok(false),
            (Layer::Http, _) => Ok(true),
            (Layer::Tcp, Action::Allow) => Err(NeverMatches),
            (Layer::Tcp, _) => Ok(false),
        }
    }

    fn source(&self, s: &Source) -> Gathered<pb::Principal> {
        let mut all = Vec::new();
        let principal = |value: &str| v::principal(value, self.trust_domain);
        let account = |value: &str| v::service_account(value, self.namespace);
        who(&mut all, &s.principals, &s.not_principals, principal);
        who(&mut all, &s.namespaces, &s.not_namespaces, v::namespace);
        who(&mut all, &s.service_accounts, &s.not_service_accounts, account);
        who(&mut all, &s.ip_blocks, &s.not_ip_blocks, v::direct_ip);
        who(&mut all, &s.remote_ip_blocks, &s.not_remote_ip_blocks, v::remote_ip);
        let given = !s.request_principals.is_empty() || !s.not_request_principals.is_empty();
        if self.http_only(given)? {
            who(&mut all, &s.request_principals, &s.not_request_principals, v::request_principal);
        }
        Ok(all)
    }

    fn operation(&self, o: &Operation) -> Gathered<pb::Permission> {
        let mut all = Vec::new();
        let lists = [(&o.hosts, &o.not_hosts), (&o.methods, &o.not_methods), (&o.paths, &o.not_paths)];
        let given = lists.iter().any(|(yes, no)| !yes.is_empty() || !no.is_empty());
        if self.http_only(given)? {
            what(&mut all, &o.hosts, &o.not_hosts, v::host);
            what(&mut all, &o.methods, &o.not_methods, v::method);
            what(&mut all, &o.paths, &o.not_paths, v::path);
        }
        what(&mut all, &o.ports, &o.not_ports, v::port);
        Ok(all)
    }

    fn condition(
        &self,
        c: &RuleCondition,
        principals: &mut Vec<pb::Principal>,
        permissions: &mut Vec<pb::Permission>,
    ) -> Result<(), NeverMatches> {
        let (yes, no) = (&c.values, &c.not_values);
        let http = c.key.starts_with("request.");
        if http && !self.http_only(true)? {
            return Ok(());
        }
        let bracket = |prefix: &str| c.key.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(']'));
        match c.key.as_str() {
            "source.ip" => who(principals, yes, no, v::direct_ip),
            "remote.ip" => who(principals, yes, no, v::remote_ip),
            "source.namespace" => who(principals, yes, no, v::namespace),
            "source.principal" => who(principals, yes, no, |value| v::principal(value, self.trust_domain)),
            "source.serviceAccount" => {
                who(principals, yes, no, |value| v::service_account(value, self.namespace));
            }
            "source.trustDomain" => who(principals, yes, no, v::trust_domain),
            "request.auth.principal" => who(principals, yes, no, v::request_principal),
            "request.auth.audiences" => who(principals, yes, no, |value| v::claim(&["aud"], value)),
            "request.auth.presenter" => who(principals, yes, no, |value| v::claim(&["azp"], value)),
            "destination.ip" => what(permissions, yes, no, v::destination_ip),
            "destination.port" => what(permissions, yes, no, v::port),
            "connection.sni" => what(permissions, yes, no, v::server_name),
            _ => {
                if let Some(name) = bracket("request.headers[") {
                    who(principals, yes, no, |value| v::header_principal(name, value));
                } else if let Some(path) = bracket("request.auth.claims[") {
                    let path: Vec<&str> = path.split("][").collect();
                    who(principals, yes, no, |value| v::claim(&path, value));
                } else {
                    // Validation lets no other key through; if it did, the rule must not get wider.
                    return Err(NeverMatches);
                }
            }
        }
        Ok(())
    }
}

fn who(
    all: &mut Vec<pb::Principal>,
    values: &[String],
    not_values: &[String],
    one: impl Fn(&str) -> pb::Principal,
) {
    let any = |values: &[String]| {
        let ids = values.iter().map(|value| one(value)).collect();
        pb::Principal { identifier: Some(Identifier::OrIds(pb::principal::Set { ids })) }
    };
    if !values.is_empty() {
        all.push(any(values));
    }
    if !not_values.is_empty() {
        all.push(pb::Principal { identifier: Some(Identifier::NotId(Box::new(any(not_values)))) });
    }
}

fn what(
    all: &mut Vec<pb::Permission>,
    values: &[String],
    not_values: &[String],
    one: impl Fn(&str) -> pb::Permission,
) {
    let any = |values: &[String]| {
        let rules = values.iter().map(|value| one(value)).collect();
        pb::Permission { rule: Some(PermissionRule::OrRules(pb::permission::Set { rules })) }
    };
    if !values.is_empty() {
        all.push(any(values));
    }
    if !not_values.is_empty() {
        all.push(pb::Permission { rule: Some(PermissionRule::NotRule(Box::new(any(not_values)))) });
    }
}

fn every_principal(mut ids: Vec<pb::Principal>) -> pb::Principal {
    if ids.is_empty() {
        ids.push(pb::Principal { identifier: Some(Identifier::Any(true)) });
    }
    pb::Principal { identifier: Some(Identifier::AndIds(pb::principal::Set { ids })) }
}

fn every_permission(mut rules: Vec<pb::Permission>) -> pb::Permission {
    if rules.is_empty() {
        rules.push(pb::Permission { rule: Some(PermissionRule::Any(true)) });
    }
    pb::Permission { rule: Some(PermissionRule::AndRules(pb::permission::Set { rules })) }
}
