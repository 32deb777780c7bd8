use super::*;
use crate::resources::{Outcome, parse_documents};

pub(crate) fn state(yaml: &str) -> State {
    let mut state = State::default();
    for document in parse_documents(&Arc::from("test.yaml"), yaml) {
        match document.outcome {
            Outcome::Object(object) => {
                state.objects.insert(object.key.clone(), object);
            }
            other => panic!("{other:?}"),
        }
    }
    state
}

#[test]
fn protocols_follow_app_protocol_then_name_then_port() {
    let select = |app: Option<&str>, name: &str, port| Protocol::select(Some("TCP"), app, name, port);
    assert_eq!(select(None, "http-web", 80), Protocol::Http);
    assert_eq!(select(None, "GRPC-web-x", 80), Protocol::GrpcWeb);
    assert_eq!(select(None, "grpc", 80), Protocol::Grpc);
    assert_eq!(select(Some("kubernetes.io/h2c"), "tcp", 80), Protocol::Http2);
    assert_eq!(select(Some("tcp"), "http", 80), Protocol::Tcp);
    assert_eq!(select(None, "web", 3306), Protocol::Tcp);
    assert_eq!(select(None, "", 8080), Protocol::Auto);
    assert_eq!(Protocol::select(Some("UDP"), None, "http", 80), Protocol::Udp);
}

const POLICIES: &str = r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: mesh, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: a, namespace: n}
spec: {mtls: {mode: UNSET}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: w, namespace: n}
spec:
  selector: {matchLabels: {app: x}}
  mtls: {mode: PERMISSIVE}
  portLevelMtls: {8080: {mode: DISABLE}, 9090: {mode: UNSET}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: second, namespace: m}
spec: {mtls: {mode: DISABLE}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: first, namespace: m, creationTimestamp: '2020-01-01T00:00:00Z'}
spec: {mtls: {mode: PERMISSIVE}}
";

#[test]
fn the_most_specific_mode_that_is_set_wins() {
    let mesh = Mesh::build(&state(POLICIES), MeshSettings::default());
    let x: BTreeMap<_, _> = [("app".to_owned(), "x".to_owned())].into();
    let none = BTreeMap::new();
    assert_eq!(mesh.mtls_mode("elsewhere", &none, 80), MtlsMode::Strict);
    assert_eq!(mesh.mtls_mode("n", &none, 80), MtlsMode::Strict, "unset inherits");
    assert_eq!(mesh.mtls_mode("n", &x, 80), MtlsMode::Permissive);
    assert_eq!(mesh.mtls_mode("n", &x, 8080), MtlsMode::Disable);
    assert_eq!(mesh.mtls_mode("n", &x, 9090), MtlsMode::Permissive, "an unset port inherits");
    assert_eq!(mesh.mtls_mode("m", &none, 80), MtlsMode::Permissive, "the oldest counts");
}

const PODS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: n}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: main}, {name: tcp-x, port: 81, targetPort: 8181}]
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: n, labels: {app: web, security.istio.io/tlsMode: istio}}
spec:
  serviceAccountName: alice
  containers: [{name: c, ports: [{name: main, containerPort: 8080}]}]
status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: n, labels: {app: web}}
spec: {serviceAccountName: bob, containers: [{name: c}]}
status: {podIP: 10.0.0.2, phase: Running}
---
apiVersion: v1
kind: Pod
metadata: {name: going, namespace: n, labels: {app: web}, deletionTimestamp: '2026-01-01T00:00:00Z'}
spec: {containers: [{name: c}]}
status: {podIP: 10.0.0.3}
---
apiVersion: v1
kind: Pod
metadata: {name: pending, namespace: n, labels: {app: web}}
spec: {serviceAccountName: carol, containers: [{name: c}]}
";

#[test]
fn endpoints_come_from_pods() {
    let mesh = Mesh::build(&state(PODS), MeshSettings::default());
    let web = mesh.service("web.n.svc.cluster.local").expect("the service");
    let named = &web.endpoints[&80];
    assert_eq!(named.len(), 1, "only the pod that declares the port");
    assert_eq!(
        (named[0].address.as_str(), named[0].port, named[0].healthy, named[0].mtls),
        ("10.0.0.1", 8080, true, true)
    );
    let numbered: Vec<_> =
        web.endpoints[&81].iter().map(|e| (e.address.as_str(), e.healthy, e.mtls)).collect();
    assert_eq!(numbered, [("10.0.0.1", true, true), ("10.0.0.2", false, false)]);
    assert!(web.identities.contains("spiffe://cluster.local/ns/n/sa/carol"), "known before it runs");
}

#[test]
fn slices_beat_selectors() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: n, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.0.0.1], conditions: {ready: false}}]\n";
    let mesh = Mesh::build(&state(&format!("{PODS}{slice}")), MeshSettings::default());
    let web = mesh.service("web.n.svc.cluster.local").expect("the service");
    let all: Vec<_> = web.endpoints.iter().map(|(p, e)| (*p, e.len(), e[0].healthy, e[0].mtls)).collect();
    assert_eq!(all, [(80, 1, false, true)]);
}

#[test]
fn visibility() {
    assert!(exported(&[], "a", "b") && exported(&["*".to_owned()], "a", "b"));
    assert!(exported(&[".".to_owned()], "a", "a") && !exported(&[".".to_owned()], "a", "b"));
    assert!(exported(&["b".to_owned()], "a", "b") && !exported(&["~".to_owned()], "a", "a"));
    assert!(host_covers("*.x.com", "a.x.com") && !host_covers("*.x.com", "x.com") && host_covers("*", "a"));
}
