use std::collections::BTreeSet;

use proptest::prelude::*;
use prost::Message as _;

use super::*;

/// Services with names, namespaces and ports that are likely to collide.
fn services() -> impl Strategy<Value = String> {
    let one = (
        prop::sample::select(vec!["a", "b", "a-b", "n", "svc"]),
        prop::sample::select(vec!["n", "m", "a"]),
        prop::sample::select(vec!["http", "grpc", "tcp", "x", "tls"]),
        prop::sample::select(vec![80u16, 81, 443]),
        prop::sample::select(vec![
            "",
            "clusterIP: None, ",
            "clusterIP: 10.96.0.1, ",
            "clusterIP: 10.96.0.2, ",
        ]),
    );
    prop::collection::vec(one, 1..12).prop_map(|all| {
        let mut seen = BTreeSet::new();
        all.iter()
            .filter(|(name, namespace, ..)| seen.insert((*name, *namespace)))
            .map(|(name, namespace, protocol, port, ip)| {
                format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{ip}selector: {{app: web}}, ports: [{{name: {protocol}, port: {port}}}]}}\n")
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn names_are_unique_and_references_resolve(yaml in services()) {
        let resources = translated(&yaml, &client());
        for config in &resources.routes {
            let mut domains = BTreeSet::new();
            for host in &config.virtual_hosts {
                prop_assert!(!host.domains.is_empty(), "{} has no name", host.name);
                for domain in &host.domains {
                    prop_assert!(domains.insert(domain.clone()), "{domain} twice in {}", config.name);
                }
            }
        }
        let unique = |names: Vec<&String>| names.len() == names.iter().collect::<BTreeSet<_>>().len();
        prop_assert!(unique(resources.listeners.iter().map(|l| &l.name).collect()));
        prop_assert!(unique(resources.clusters.iter().map(|c| &c.name).collect()));
        prop_assert!(unique(resources.routes.iter().map(|r| &r.name).collect()));
        prop_assert!(unique(resources.endpoints.iter().map(|e| &e.cluster_name).collect()));
        let routes: BTreeSet<_> = resources.routes.iter().map(|r| r.name.as_str()).collect();
        let clusters: BTreeSet<_> = resources.clusters.iter().map(|c| c.name.as_str()).collect();
        for listener in &resources.listeners {
            for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
                let target = target(chain);
                if let Some(name) = target.strip_prefix("http ").filter(|name| !name.starts_with("inline")) {
                    prop_assert!(routes.contains(name), "{name}");
                } else if let Some(name) = target.strip_prefix("tcp ") {
                    prop_assert!(clusters.contains(name), "{name}");
                }
            }
        }
        for eds in &resources.endpoints {
            prop_assert!(clusters.contains(eds.cluster_name.as_str()));
        }
    }

    #[test]
    fn translation_is_deterministic(yaml in services()) {
        let bytes = |resources: &Resources| {
            let mut all = Vec::new();
            resources.listeners.iter().for_each(|m| all.push(m.encode_to_vec()));
            resources.routes.iter().for_each(|m| all.push(m.encode_to_vec()));
            resources.clusters.iter().for_each(|m| all.push(m.encode_to_vec()));
            resources.endpoints.iter().for_each(|m| all.push(m.encode_to_vec()));
            all
        };
        prop_assert_eq!(bytes(&translated(&yaml, &client())), bytes(&translated(&yaml, &client())));
    }
}
