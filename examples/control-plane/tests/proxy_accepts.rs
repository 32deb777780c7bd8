//! Whatever the control plane says, our own proxy accepts: every translated resource converts.

use mesh_control::model::{Mesh, MeshSettings};
use mesh_control::resources::{Outcome, parse_documents};
use mesh_control::store::State;
use mesh_control::translate::{Proxy, translate};
use mesh_proxy_core::config::{Cluster, Listener, LoadAssignment, RouteConfiguration};

/// Every kind of port, rule and policy that is translated at all.
const EVERYTHING: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: n}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: grpc, port: 81}
  - {name: grpc-web, port: 82}
  - {name: tcp, port: 83}
  - {name: tls, port: 84}
  - {name: any, port: 85}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: n}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: tcp, port: 5432}, {name: http, port: 90}, {name: x, port: 91}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: n, labels: {app: web, version: v1, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: alice}
status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: n}
spec:
  hosts: [api.example, '*.wild.example']
  addresses: [192.0.2.0/24]
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 8000, name: http, protocol: HTTP}, {number: 9000, name: tcp, protocol: TCP}]
  resolution: NONE
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dns, namespace: n}
spec: {hosts: [dns.example], ports: [{number: 8000, name: http, protocol: HTTP}], resolution: DNS}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: dns, namespace: n}
spec: {host: dns.example, trafficPolicy: {tls: {mode: SIMPLE}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: n}
spec:
  host: web
  trafficPolicy:
    loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 1h}}}
    connectionPool: {tcp: {maxConnections: 10, connectTimeout: 1s, tcpKeepalive: {time: 60s}}, http: {http1MaxPendingRequests: 5, maxRequestsPerConnection: 100, idleTimeout: 1m}}
    outlierDetection: {consecutive5xxErrors: 3, consecutiveGatewayErrors: 2, interval: 5s, baseEjectionTime: 10s, maxEjectionPercent: 50, minHealthPercent: 20}
    portLevelSettings: [{port: {number: 83}, tls: {mode: DISABLE}}, {port: {number: 84}, loadBalancer: {simple: PASSTHROUGH}}]
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 30s}}, tls: {mode: ISTIO_MUTUAL}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: n}
spec:
  hosts: [web, made.up]
  http:
  - match: [{uri: {regex: '/r.*'}, headers: {x: {prefix: a}, y: {}}, withoutHeaders: {z: {exact: b}}, queryParams: {q: {exact: '1'}}, method: {exact: GET}}]
    redirect: {uri: /elsewhere, authority: example.org, redirectCode: 307}
  - match: [{uri: {exact: /d}, ignoreUriCase: true}]
    directResponse: {status: 404, body: {string: no}}
  - match: [{uri: {prefix: /f}}]
    fault: {delay: {fixedDelay: 1s, percentage: {value: 10}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 1}}}
    corsPolicy: {allowOrigins: [{regex: '.*'}], allowMethods: [GET], allowHeaders: [x], maxAge: 1m, allowCredentials: true}
    mirror: {host: web, subset: v2}
    mirrorPercentage: {value: 5}
    rewrite: {uriRegexRewrite: {match: '^/f(.*)', rewrite: '/g\1'}, authority: g}
    headers: {request: {set: {a: b}, add: {c: d}, remove: [e]}, response: {set: {f: g}}}
    retries: {attempts: 3, perTryTimeout: 2s, retryOn: '5xx,reset,503', retryRemoteLocalities: true, backoff: 10ms}
    timeout: 5s
    route: [{destination: {host: web, subset: v1}}]
  - route:
    - {destination: {host: web, subset: v1}, weight: 90, headers: {request: {set: {v: '1'}}}}
    - {destination: {host: web, subset: v2}, weight: 10}
  tcp:
  - match: [{destinationSubnets: [10.0.0.0/8], port: 83}]
    route: [{destination: {host: web, port: {number: 83}}, weight: 1}, {destination: {host: db, port: {number: 5432}}, weight: 1}]
  tls:
  - match: [{port: 84, sniHosts: [web.example]}]
    route: [{destination: {host: web}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: n}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {8080: {mode: STRICT}, 83: {mode: DISABLE}, 9999: {mode: DISABLE}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: n}
spec:
  action: DENY
  rules:
  - from: [{source: {notPrincipals: ['*'], ipBlocks: [192.0.2.0/24], remoteIpBlocks: [2001:db8::/32]}}]
    to: [{operation: {hosts: ['*.example'], methods: [POST], paths: [/admin*, '/x/{*}/y/{**}'], ports: ['8080']}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: n}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/n/sa/a, '*/sa/b', 'c/*'], namespaces: [n, 'x*'], serviceAccounts: [n/a, b]}}]
    when:
    - {key: 'request.headers[x-y]', values: ['a*'], notValues: ['*b']}
    - {key: destination.port, values: ['8080']}
    - {key: connection.sni, values: [a.example]}
    - {key: source.ip, notValues: [198.51.100.7]}
";

fn state(yaml: &str) -> State {
    let mut state = State::default();
    for document in parse_documents(&"all.yaml".into(), yaml) {
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
fn every_translated_resource_converts() {
    let mesh = Mesh::build(&state(EVERYTHING), MeshSettings::default());
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let web = Proxy {
        namespace: "n".to_owned(),
        name: "web-0".to_owned(),
        labels: [label("app", "web"), label("version", "v1")].into(),
        ips: vec![[10, 0, 0, 1].into()],
    };
    let elsewhere = Proxy { namespace: "m".to_owned(), name: "c".to_owned(), ..Proxy::default() };
    let mut refused = Vec::new();
    for proxy in [web, elsewhere] {
        let told = translate(&mesh, &proxy);
        for message in &told.listeners {
            refused.extend(Listener::try_from(message).err().map(|e| format!("{}: {e}", message.name)));
        }
        for message in &told.routes {
            refused.extend(
                RouteConfiguration::try_from(message).err().map(|e| format!("{}: {e}", message.name)),
            );
        }
        for message in &told.clusters {
            refused.extend(Cluster::try_from(message).err().map(|e| format!("{}: {e}", message.name)));
        }
        for message in &told.endpoints {
            let name = &message.cluster_name;
            refused.extend(LoadAssignment::try_from(message).err().map(|e| format!("{name}: {e}")));
        }
    }
    assert_eq!(refused, Vec::<String>::new());
}
