use std::collections::BTreeMap;

use mesh_xds::push::Merge as _;
use proptest::prelude::*;

use super::*;
use crate::model::MeshSettings;
use crate::model::tests::state;

/// Versions by type and name: what stays the same over a restart.
fn versions(snapshot: &Snapshot) -> BTreeMap<(String, String), String> {
    let of_set = |(type_url, set): (&TypeUrl, &Arc<mesh_xds::server::TypeSnapshot>)| {
        let kind = type_url.short().to_owned();
        let one = |r: &Arc<EncodedResource>| ((kind.clone(), r.name().to_string()), r.version().to_string());
        set.resources().iter().map(one).collect::<Vec<_>>()
    };
    snapshot.types().flat_map(of_set).collect()
}

fn mesh(documents: &[&str]) -> Arc<Mesh> {
    let text = documents.join("\n---\n");
    Arc::new(Mesh::build(&state(&text), MeshSettings::default()))
}

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: n}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}";

fn pod(name: &str, account: &str, ready: bool) -> String {
    let (last, ready) = (name.len(), if ready { "True" } else { "False" });
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: n, labels: {{app: web, security.istio.io/tlsMode: istio}}}}
spec: {{serviceAccountName: {account}}}
status: {{podIP: 10.0.0.{last}, conditions: [{{type: Ready, status: '{ready}'}}]}}"
    )
}

fn proxy(namespace: &str, name: &str) -> Proxy {
    Proxy { namespace: namespace.to_owned(), name: name.to_owned(), ..Proxy::default() }
}

fn service(host: &str) -> Dependency {
    Dependency::Service(host.to_owned())
}

#[test]
fn only_what_changed_is_made_again() {
    let client = proxy("n", "c");
    let one = pod("a", "x", false);
    let first = Snapshots::new(mesh(&[WEB, &one]));
    let before = first.of(&client, None);
    let (same, change) = first.next(mesh(&[WEB, &one]));
    assert_eq!(change, None);
    assert_eq!(same.generation(), 0);
    let (next, change) = same.next(mesh(&[WEB, &pod("a", "x", true)]));
    let change = change.expect("a change");
    assert_eq!(change, Change::Endpoints([service("web.n.svc.cluster.local")].into()));
    let after = next.with_moved_endpoints(&before, &client, &change).expect("the short way");
    let (old, new) = (versions(before.snapshot()), versions(after.snapshot()));
    let differing: Vec<_> = new.iter().filter(|(name, version)| old.get(*name) != Some(*version)).collect();
    assert_eq!(differing.len(), 1, "{differing:?}");
    for type_url in [TypeUrl::CLUSTER, TypeUrl::LISTENER, TypeUrl::ROUTE] {
        let set = |told: &Told| told.snapshot().get(&type_url).map(Arc::as_ptr);
        assert_eq!(set(&before), set(&after), "the very same set");
    }
}

#[test]
fn a_change_is_as_narrow_as_it_can_be_said() {
    let one = pod("a", "x", true);
    let policy = |kind: &str, namespace: &str, spec: &str| {
        format!(
            "\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}"
        )
    };
    let route = "\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r, namespace: n}\nspec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}";
    let other = WEB.replace("name: web", "name: other").replace("10.96.0.1", "10.96.0.2");
    let (n, web) = (|| "n".to_owned(), service("web.n.svc.cluster.local"));
    let base = mesh(&[WEB, &one]);
    let change = |documents: &[&str]| mesh(documents).changes_since(&base);
    let some = |keys: &[Dependency]| Some(Change::Some(keys.iter().cloned().collect()));

    let second = pod("bb", "x", true);
    let new_pod = [web, Dependency::Workload(n(), "bb".to_owned())];
    assert_eq!(change(&[WEB, &one, &second]), Some(Change::Endpoints(new_pod.clone().into())));
    // Another account is another name in the certificates that clients expect: clusters change.
    assert_eq!(change(&[WEB, &one, &pod("bb", "y", true)]), some(&new_pod));
    assert_eq!(change(&[WEB, &one, route]), some(&[Dependency::Route(n(), "r".to_owned())]));
    let added = [service("other.n.svc.cluster.local")];
    assert_eq!(change(&[WEB, &one, &other]), some(&added));
    let deny = policy("AuthorizationPolicy", "n", "{action: DENY}");
    assert_eq!(change(&[WEB, &one, &deny]), some(&[Dependency::Access(n())]));
    let strict = policy("PeerAuthentication", "n", "{mtls: {mode: STRICT}}");
    assert_eq!(change(&[WEB, &one, &strict]), some(&[Dependency::Peers(n())]));
    let strict = policy("PeerAuthentication", "istio-system", "{mtls: {mode: STRICT}}");
    assert_eq!(change(&[WEB, &one, &strict]), Some(Change::All));
}

#[test]
fn a_cluster_without_load_assignment_follows_the_endpoints_that_decide_its_socket() {
    let rule = "\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: n}\nspec: {host: web, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}";
    let (client, meshed) = (proxy("n", "c"), pod("a", "x", true));
    let plain = meshed.replace(", security.istio.io/tlsMode: istio", "");
    let first = Snapshots::new(mesh(&[WEB, rule, &meshed]));
    let before = first.of(&client, None);
    let (next, change) = first.next(mesh(&[WEB, rule, &plain]));
    let change = change.expect("a change");
    let after = next.with_moved_endpoints(&before, &client, &change);
    let after = after.unwrap_or_else(|| next.of(&client, Some(&before)));
    let fresh = Snapshots::new(Arc::clone(next.mesh())).of(&client, None);
    assert_ne!(versions(before.snapshot()), versions(fresh.snapshot()), "TLS, then none");
    assert_eq!(versions(after.snapshot()), versions(fresh.snapshot()));
}

#[test]
fn who_does_not_see_it_is_not_concerned() {
    let hidden =
        WEB.replace("namespace: n}", "namespace: n, annotations: {networking.istio.io/exportTo: .}}");
    let one = pod("a", "x", false);
    let first = Snapshots::new(mesh(&[&hidden, &one]));
    let (inside, outside) = (proxy("n", "c"), proxy("m", "c"));
    let told = [&inside, &outside].map(|proxy| first.of(proxy, None));
    let (next, change) = first.next(mesh(&[&hidden, &pod("a", "x", true)]));
    let change = change.expect("a change");
    assert!(next.is_concerned(&told[0], &inside, &change));
    assert!(!next.is_concerned(&told[1], &outside, &change));
    // Once it is exported it comes into everybody's view.
    let (last, change) = next.next(mesh(&[WEB, &pod("a", "x", true)]));
    assert!(last.is_concerned(&told[1], &outside, &change.expect("a change")));
}

#[test]
fn proxies_that_are_alike_share_also_after_changes() {
    let share = |one: &Told, two: &Told| {
        for (type_url, set) in one.snapshot().types() {
            let other = two.snapshot().get(type_url);
            assert!(other.is_some_and(|other| Arc::ptr_eq(set, other)), "{type_url:?}");
        }
    };
    let first = Snapshots::new(mesh(&[WEB, &pod("a", "x", true)]));
    let (c, d, a) = (proxy("n", "c"), proxy("n", "d"), proxy("n", "a"));
    let (one, two) = (first.of(&c, None), first.of(&d, None));
    share(&one, &two);
    let server = first.of(&a, None);
    assert_ne!(versions(one.snapshot()), versions(server.snapshot()), "the server's side differs");

    // One takes the short way, the other asks again, a third one comes: all hold the same sets.
    let (next, change) = first.next(mesh(&[WEB, &pod("a", "x", false)]));
    let one = next.with_moved_endpoints(&one, &c, &change.expect("a change")).expect("the short way");
    let two = next.of(&d, Some(&two));
    share(&one, &two);
    share(&one, &next.of(&proxy("n", "e"), None));

    let (last, _) = next.next(mesh(&[WEB, &pod("a", "y", false)]));
    let (before, one, two) = (one.clone(), last.of(&c, Some(&one)), last.of(&d, Some(&two)));
    share(&one, &two);
    let route = |told: &Told| told.snapshot().get(&TypeUrl::ROUTE).map(Arc::as_ptr);
    assert_eq!(route(&before), route(&one), "what is equal is still the same set");
}

#[test]
fn what_nobody_uses_is_forgotten() {
    let first = Snapshots::new(mesh(&[WEB]));
    let kept = first.of(&proxy("n", "c"), None);
    drop(first.of(&proxy("m", "c"), None));
    drop(first.of(&proxy("n", "other"), None));
    let (next, _) = first.next(mesh(&[WEB, &pod("a", "x", true)]));
    drop(first);
    assert_eq!(lock(&next.views).len(), 1);
    let (last, _) = next.next(mesh(&[WEB, &pod("a", "x", true)]));
    drop((kept, next));
    let (last, _) = last.next(mesh(&[WEB]));
    assert!(lock(&last.views).is_empty() && lock(&last.classes).is_empty());
}

/// Places where something stands, in one of several forms, or nothing.
fn places() -> Vec<Vec<String>> {
    let service = |name: &str, ns: &str, rest: &str, ip: &str| {
        format!(
            "\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {ns}{rest}}}\nspec: {{clusterIP: {ip}, selector: {{app: {name}}}, ports: [{{name: http, port: 80}}, {{name: tcp, port: 81}}]}}"
        )
    };
    let pod = |name: &str, ns: &str, labels: &str, account: &str, ip: &str, ready: &str| {
        format!(
            "\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {ns}, labels: {{{labels}}}}}\nspec: {{serviceAccountName: {account}}}\nstatus: {{podIP: {ip}, conditions: [{{type: Ready, status: '{ready}'}}]}}"
        )
    };
    let istio = |group: &str, kind: &str, name: &str, ns: &str, spec: &str| {
        format!(
            "\napiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {spec}"
        )
    };
    let net = |kind: &str, name: &str, ns: &str, spec: &str| istio("networking", kind, name, ns, spec);
    let sec = |kind: &str, ns: &str, spec: &str| istio("security", kind, "p", ns, spec);
    let mtls = "security.istio.io/tlsMode: istio";
    vec![
        vec![
            service("web", "n", "", "10.96.0.1"),
            service("web", "n", ", annotations: {networking.istio.io/exportTo: .}", "10.96.0.1"),
            service("web", "n", "", "None"),
        ],
        vec![service("db", "m", "", "10.96.0.2"), service("db", "m", "", "10.96.0.3")],
        vec![
            pod("web-1", "n", &format!("app: web, version: v1, {mtls}"), "a", "10.0.0.1", "True"),
            pod("web-1", "n", &format!("app: web, version: v1, {mtls}"), "a", "10.0.0.1", "False"),
            pod("web-1", "n", "app: web, version: v2", "a", "10.0.0.1", "True"),
            pod("web-1", "n", &format!("app: db, {mtls}"), "b", "10.0.0.1", "True"),
        ],
        vec![
            pod("web-2", "n", &format!("app: web, version: v2, {mtls}"), "a", "10.0.0.2", "True"),
            pod("web-2", "n", "app: web, version: v2", "a", "10.0.0.2", "True"),
            pod("web-2", "n", &format!("app: web, version: v2, {mtls}"), "c", "10.0.0.2", "True"),
        ],
        vec![
            pod("db-1", "m", &format!("app: db, {mtls}"), "d", "10.0.0.3", "True"),
            pod("db-1", "m", &format!("app: db, {mtls}"), "d", "10.0.0.4", "True"),
        ],
        vec![
            net(
                "VirtualService",
                "r",
                "n",
                "{hosts: [web], http: [{route: [{destination: {host: web, subset: v1}}]}]}",
            ),
            net(
                "VirtualService",
                "r",
                "n",
                "{hosts: [web], exportTo: ['.'], http: [{route: [{destination: {host: db.m.svc.cluster.local}}]}]}",
            ),
            net(
                "VirtualService",
                "r",
                "n",
                "{hosts: [web], http: [{match: [{sourceLabels: {version: v1}}], route: [{destination: {host: web}}]}]}",
            ),
        ],
        vec![
            net("DestinationRule", "d", "n", "{host: web, subsets: [{name: v1, labels: {version: v1}}]}"),
            net(
                "DestinationRule",
                "d",
                "n",
                "{host: web, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}",
            ),
            net(
                "DestinationRule",
                "d",
                "n",
                "{host: web, exportTo: ['.'], trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}",
            ),
        ],
        vec![net(
            "DestinationRule",
            "e",
            "istio-system",
            "{host: '*.m.svc.cluster.local', trafficPolicy: {tls: {mode: DISABLE}}}",
        )],
        vec![
            net("Sidecar", "s", "m", "{egress: [{hosts: ['./*']}]}"),
            net(
                "Sidecar",
                "s",
                "m",
                "{egress: [{hosts: ['n/*']}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}",
            ),
            net("Sidecar", "s", "m", "{workloadSelector: {labels: {app: db}}, egress: [{hosts: ['*/*']}]}"),
        ],
        vec![net("Sidecar", "s", "istio-system", "{egress: [{hosts: ['./*', 'n/*']}]}")],
        vec![
            sec("PeerAuthentication", "n", "{mtls: {mode: DISABLE}}"),
            sec(
                "PeerAuthentication",
                "n",
                "{selector: {matchLabels: {version: v1}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}}",
            ),
        ],
        vec![sec("PeerAuthentication", "istio-system", "{mtls: {mode: STRICT}}")],
        vec![
            sec("AuthorizationPolicy", "n", "{action: DENY, rules: [{}]}"),
            sec("AuthorizationPolicy", "n", "{selector: {matchLabels: {version: v2}}}"),
        ],
        vec![sec("AuthorizationPolicy", "istio-system", "{rules: [{to: [{operation: {methods: [GET]}}]}]}")],
        vec![
            service("hl", "n", "", "None"), service("hl", "n", ", annotations: {networking.istio.io/exportTo: 'm,.'}", "None"), service("hl", "n", "", "10.96.0.9"),
        ],
        vec![
            pod("h-1", "n", &format!("app: hl, {mtls}"), "a", "10.0.0.11", "True"),
            pod("h-1", "n", &format!("app: hl, {mtls}"), "a", "10.0.0.12", "True"),
            pod("h-1", "n", "app: hl, version: v1", "a", "10.0.0.11", "False"),
        ],
        vec![
            "\napiVersion: v1\nkind: Pod\nmetadata: {name: pend, namespace: n, labels: {app: web}}\nspec: {containers: [{name: c, ports: [{name: named, containerPort: 90}]}]}".to_owned(),
            "\napiVersion: v1\nkind: Pod\nmetadata: {name: pend, namespace: n, labels: {app: np}}\nspec: {containers: [{name: c, ports: [{name: named, containerPort: 90}]}]}".to_owned(),
            "\napiVersion: v1\nkind: Pod\nmetadata: {name: pend, namespace: n, labels: {app: np}}\nspec: {containers: [{name: c, ports: [{name: named, containerPort: 91}]}]}".to_owned(),
            "\napiVersion: v1\nkind: Pod\nmetadata: {name: pend, namespace: n, labels: {app: np}}\nspec: {containers: [{name: c, ports: [{name: named, containerPort: 91}]}]}\nstatus: {podIP: 10.0.0.21}".to_owned(),
        ],
        vec![
            "\napiVersion: v1\nkind: Service\nmetadata: {name: np, namespace: n}\nspec: {clusterIP: 10.96.0.12, selector: {app: np}, ports: [{name: http, port: 80, targetPort: named}]}".to_owned(),
            "\napiVersion: v1\nkind: Service\nmetadata: {name: np, namespace: n, annotations: {networking.istio.io/exportTo: '~'}}\nspec: {clusterIP: 10.96.0.12, selector: {app: np}, ports: [{name: http, port: 80, targetPort: named}]}".to_owned(),
            "\napiVersion: v1\nkind: Service\nmetadata: {name: np, namespace: n, creationTimestamp: '2020-01-01T00:00:00Z'}\nspec: {clusterIP: 10.96.0.12, selector: {app: web}, ports: [{name: tcp, port: 80, targetPort: named}]}".to_owned(),
        ],
        vec![
            "\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: sl, namespace: m, labels: {kubernetes.io/service-name: db}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.0.0.3], conditions: {ready: true}}]".to_owned(),
            "\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: sl, namespace: m, labels: {kubernetes.io/service-name: db}}\naddressType: IPv4\nports: [{name: http, port: 8081}]\nendpoints: [{addresses: [10.0.0.3], conditions: {ready: false}}, {addresses: [10.0.0.1]}]".to_owned(),
        ],
        vec![
            net("WorkloadEntry", "we", "n", "{address: 10.0.0.31, labels: {app: web}, serviceAccount: vm}"),
            net("WorkloadEntry", "we", "n", "{address: 10.0.0.31, labels: {app: web, version: v2}, locality: r/z, weight: 3}"),
            net("WorkloadEntry", "we", "n", "{address: 10.0.0.11, labels: {app: np}}"),
        ],
        vec![
            net("DestinationRule", "sel", "n", "{host: web, workloadSelector: {matchLabels: {version: v2}}, trafficPolicy: {connectionPool: {http: {http1MaxPendingRequests: 7}}, loadBalancer: {consistentHash: {useSourceIp: true}}}}"),
            net("DestinationRule", "sel", "n", "{host: web, exportTo: [m], trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}}"),
            net("DestinationRule", "sel", "n", "{host: np, trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}}"),
        ],
        vec![
            net("VirtualService", "tcp", "m", "{hosts: [db], tcp: [{route: [{destination: {host: web.n.svc.cluster.local, port: {number: 81}}}]}]}"),
            net("VirtualService", "tcp", "m", "{hosts: [nowhere.example, x.example], http: [{match: [{sourceNamespace: m}], route: [{destination: {host: hl.n.svc.cluster.local}}]}]}"),
        ],
        vec![
            "\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r2, namespace: n, creationTimestamp: '2020-01-01T00:00:00Z'}\nspec: {hosts: [web], http: [{route: [{destination: {host: np}}]}]}".to_owned(),
            "\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r2, namespace: n}\nspec: {hosts: ['*.n.svc.cluster.local'], http: [{route: [{destination: {host: np}}]}]}".to_owned(),
        ],
        vec![
            sec("PeerAuthentication", "m", "{mtls: {mode: DISABLE}}"),
            sec("PeerAuthentication", "m", "{mtls: {mode: STRICT}}"),
        ],
        vec![
            net("ServiceEntry", "y", "n", "{hosts: [y.example], location: MESH_INTERNAL, ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, workloadSelector: {labels: {app: web}}}"),
            net("ServiceEntry", "y", "n", "{hosts: [y.example], addresses: [10.99.0.0/16], ports: [{number: 80, name: t, protocol: TCP}], resolution: NONE}"),
            net("ServiceEntry", "y", "n", "{hosts: [x.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 192.0.2.9}]}"),
        ],
        vec![net("Sidecar", "sn", "n", "{egress: [{hosts: ['n/web.n.svc.cluster.local', 'm/*']}]}"), net("Sidecar", "sn", "n", "{workloadSelector: {labels: {version: v2}}, egress: [{hosts: ['~/*']}]}")],
        vec![
            "\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: dry, namespace: n, annotations: {istio.io/dry-run: 'true'}}\nspec: {action: DENY, rules: [{}]}".to_owned(),
            "\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: dry, namespace: n}\nspec: {action: DENY, rules: [{}]}".to_owned(),
        ],
        vec![
            net(
                "ServiceEntry",
                "x",
                "m",
                "{hosts: [x.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}",
            ),
            net(
                "ServiceEntry",
                "x",
                "m",
                "{hosts: [x.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 192.0.2.1}, {address: 192.0.2.2}]}",
            ),
            net(
                "ServiceEntry",
                "x",
                "m",
                "{hosts: [x.example], exportTo: ['.'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
            ),
            net(
                "ServiceEntry",
                "x",
                "m",
                "{hosts: [web.n.svc.cluster.local], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}",
            ),
        ],
    ]
}

/// One edit: at a place, to a form (one more than there are: nothing), and whether pushes happen afterwards, by client.
type Edit = (usize, usize, u8);

/// A client as the control plane keeps it.
struct Client {
    namespace: &'static str,
    name: &'static str,
    told: Told,
    pending: Option<Change>,
}

impl Client {
    fn proxy(&self, mesh: &Mesh) -> Proxy {
        let known = mesh.workload(self.namespace, self.name);
        let labels = known.map(|w| w.labels.clone()).unwrap_or_default();
        Proxy {
            labels,
            ips: known.map(|w| w.ips.clone()).unwrap_or_default(),
            ..proxy(self.namespace, self.name)
        }
    }

    fn push(&mut self, snapshots: &Snapshots) {
        let Some(change) = self.pending.take() else { return };
        let proxy = self.proxy(snapshots.mesh());
        let moved = snapshots.with_moved_endpoints(&self.told, &proxy, &change);
        self.told = moved.unwrap_or_else(|| snapshots.of(&proxy, Some(&self.told)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever is edited in whatever order, and however late pushes are: whoever is not concerned, or was pushed to, was
    /// told what a control plane that has just started would say.
    #[test]
    fn what_is_kept_equals_what_is_fresh(edits in proptest::collection::vec((0usize..28, 0usize..5, any::<u8>()), 1..24)) {
        let places = places();
        let mut standing = vec![None; places.len()];
        let documents = |standing: &[Option<usize>]| {
            let chosen = standing.iter().zip(&places).filter_map(|(form, forms)| forms.get((*form)?).map(String::as_str));
            mesh(&chosen.collect::<Vec<_>>())
        };
        let mut snapshots = Snapshots::new(documents(&standing));
        let mut clients: Vec<_> = [("n", "web-1"), ("n", "web-2"), ("m", "db-1"), ("m", "lonely"), ("o", "far")]
            .map(|(namespace, name)| Client { namespace, name, told: snapshots.of(&proxy(namespace, name), None), pending: None })
            .into_iter()
            .collect();
        let edits: Vec<Edit> = edits;
        for (place, form, pushed) in edits {
            standing[place % places.len()] = Some(form);
            let (next, change) = snapshots.next(documents(&standing));
            snapshots = next;
            for (index, client) in clients.iter_mut().enumerate() {
                if let Some(change) = &change {
                    let proxy = client.proxy(snapshots.mesh());
                    if client.pending.is_some() || snapshots.is_concerned(&client.told, &proxy, change) {
                        match &mut client.pending {
                            Some(pending) => pending.merge(change.clone()),
                            pending => *pending = Some(change.clone()),
                        }
                    }
                }
                if pushed & (1 << index) != 0 {
                    client.push(&snapshots);
                }
                if client.pending.is_none() {
                    let fresh = Snapshots::new(Arc::clone(snapshots.mesh()));
                    let fresh = fresh.of(&client.proxy(snapshots.mesh()), None);
                    prop_assert_eq!(versions(client.told.snapshot()), versions(fresh.snapshot()), "{} after {:?}", client.name, change);
                }
            }
        }
    }
}
