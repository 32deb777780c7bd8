use mesh_xds::pb::envoy::config::rbac::v3 as rbac;
use mesh_xds::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use mesh_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use mesh_xds::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;

use super::*;

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: n}}\nspec: {{{spec}}}\n"
    )
}

/// The RBAC rules of the HTTP and of the opaque chains of an auto port.
fn rules(policies: &str) -> (Vec<rbac::Rbac>, Vec<rbac::Rbac>) {
    let yaml = format!("{}{policies}", web("{name: x, port: 80, targetPort: 8080}"));
    let resources = translated(&yaml, &server());
    let chains: Vec<_> = listener(&resources, "virtualInbound")
        .filter_chains
        .iter()
        .filter(|chain| chain.name == "0.0.0.0_8080")
        .cloned()
        .collect();
    let manager: HttpConnectionManager = typed(chains[0].filters.last().expect("a manager"));
    let http = manager
        .http_filters
        .iter()
        .filter(|filter| filter.name == "envoy.filters.http.rbac")
        .filter_map(|filter| match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => {
                HttpRbac::decode(any.value.as_slice()).expect("decodes").rules
            }
            _ => None,
        })
        .collect();
    let opaque = chains.iter().find(|chain| target(chain).starts_with("tcp")).expect("a chain");
    let tcp = opaque
        .filters
        .iter()
        .filter(|filter| filter.name == "envoy.filters.network.rbac")
        .filter_map(|filter| typed::<NetworkRbac>(filter).rules)
        .collect();
    (http, tcp)
}

#[test]
fn no_policy_no_filter() {
    assert_eq!(rules(""), (Vec::new(), Vec::new()));
    assert_eq!(
        rules(&policy("d", "action: DENY")),
        (Vec::new(), Vec::new()),
        "a DENY without rules does nothing"
    );
}

#[test]
fn an_allow_policy_without_rules_refuses_everything() {
    let (http, tcp) = rules(&policy("a", ""));
    for set in [http, tcp] {
        assert_eq!(set.len(), 1);
        assert_eq!((set[0].action(), set[0].policies.len()), (rbac::rbac::Action::Allow, 0));
    }
}

#[test]
fn actions_come_in_order() {
    let all = [
        policy("a", "rules: [{}]"),
        policy("d", "action: DENY, rules: [{from: [{source: {namespaces: [x]}}]}]"),
        policy("l", "action: AUDIT, rules: [{}]"),
    ];
    let (http, _) = rules(&all.concat());
    let actions: Vec<_> = http.iter().map(rbac::Rbac::action).collect();
    assert_eq!(actions, [rbac::rbac::Action::Log, rbac::rbac::Action::Deny, rbac::rbac::Action::Allow]);
    assert_eq!(http[2].policies.keys().collect::<Vec<_>>(), ["ns[n]-policy[a]-rule[0]"]);
}

#[test]
fn http_fields_on_opaque_bytes_fail_closed() {
    let (http, tcp) = rules(&policy(
        "a",
        "rules: [{to: [{operation: {methods: [GET]}}]}, {from: [{source: {principals: ['*']}}]}]",
    ));
    assert_eq!(http[0].policies.len(), 2);
    assert_eq!(
        tcp[0].policies.keys().collect::<Vec<_>>(),
        ["ns[n]-policy[a]-rule[1]"],
        "the HTTP rule cannot allow"
    );
    let (_, tcp) =
        rules(&policy("d", "action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['8080']}}]}]"));
    let denied = &tcp[0].policies["ns[n]-policy[d]-rule[0]"];
    let Some(rbac::permission::Rule::AndRules(set)) = &denied.permissions[0].rule else {
        panic!("{denied:?}")
    };
    assert_eq!(set.rules.len(), 1, "the method is left out, the port stays");
}

#[test]
fn selection_by_labels_and_root_namespace() {
    let other = policy("o", "selector: {matchLabels: {app: other}}, rules: [{}]");
    assert_eq!(rules(&other).0.len(), 0);
    let root =
        policy("r", "selector: {matchLabels: {app: web}}").replace("namespace: n", "namespace: istio-system");
    assert_eq!(rules(&root).0.len(), 1);
    let elsewhere = policy("e", "").replace("namespace: n", "namespace: m");
    assert_eq!(rules(&elsewhere).0.len(), 0);
    let gateway = policy("g", "targetRefs: [{kind: Gateway, name: x}]");
    assert_eq!(rules(&gateway).0.len(), 0);
}

#[test]
fn values_of_a_field_are_alternatives_and_fields_all_hold() {
    use rbac::principal::Identifier;
    let (http, _) = rules(&policy(
        "a",
        "rules: [{from: [{source: {principals: [cluster.local/ns/n/sa/a, 'x/*'], notNamespaces: [bad]}}], when: [{key: 'request.headers[x]', values: ['1']}]}]",
    ));
    let policy = &http[0].policies["ns[n]-policy[a]-rule[0]"];
    let Some(Identifier::AndIds(all)) = &policy.principals[0].identifier else { panic!("{policy:?}") };
    assert_eq!(all.ids.len(), 3);
    assert!(matches!(&all.ids[0].identifier, Some(Identifier::OrIds(any)) if any.ids.len() == 2));
    assert!(matches!(&all.ids[1].identifier, Some(Identifier::NotId(_))));
}

#[test]
fn a_dry_run_only_reports() {
    let yaml =
        policy("a", "").replace("namespace: n}", "namespace: n, annotations: {istio.io/dry-run: 'true'}}");
    assert_eq!(rules(&yaml).0.len(), 0, "no enforced rules");
}
