use std::sync::Arc;

use super::*;

fn parse(text: &str) -> Vec<Document> {
    parse_documents(&Arc::from("a.yaml"), text)
}

fn rejected(document: &Document) -> (&ResourceError, &Sniffed) {
    match &document.outcome {
        Outcome::Rejected { error, sniffed } => (error, sniffed),
        other => panic!("expected a rejection, got {other:?}"),
    }
}

fn object(document: &Document) -> &Object {
    match &document.outcome {
        Outcome::Object(object) => object,
        other => panic!("expected an object, got {other:?}"),
    }
}

#[test]
fn documents_are_split_with_their_lines() {
    let documents = parse(
        "# a comment\n\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\n# nothing\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: b\n  namespace: a\n",
    );
    assert_eq!(documents.len(), 2);
    assert_eq!(documents[0].origin.line, 3);
    assert_eq!(documents[1].origin.line, 10);
    assert_eq!(object(&documents[1]).key.to_string(), "ServiceAccount a/b");
}

#[test]
fn a_broken_document_leaves_its_neighbours_alone() {
    let documents = parse(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: r\n  namespace: bookinfo\nspec:\n  hosts: [reviews\n  http: {\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n",
    );
    assert_eq!(documents.len(), 3);
    let (error, sniffed) = rejected(&documents[1]);
    assert_eq!(error.reason, "syntax");
    assert!(error.line >= 5, "{error}");
    let key = sniffed.key.as_ref().map(ToString::to_string);
    assert_eq!(key.as_deref(), Some("VirtualService bookinfo/r"));
    assert_eq!(object(&documents[2]).key.name, "b");
}

#[test]
fn an_unknown_field_is_named_with_its_line_and_path() {
    let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r, namespace: n}\nspec:\n  hosts: [reviews]\n  http:\n  - route:\n    - destination:\n        host: reviews\n        subsett: v1\n";
    let documents = parse(text);
    let (error, _) = rejected(&documents[0]);
    assert_eq!((error.reason, error.line), ("schema", 10), "{error}");
    assert_eq!(error.field, "spec.http[0].route[0].destination.subsett", "{error}");
    assert_eq!((error.namespace.as_str(), error.name.as_str()), ("n", "r"));
}

#[test]
fn a_bad_value_is_named_with_its_line() {
    let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r, namespace: n}\nspec:\n  hosts:\n  - reviews\n  http:\n  - match:\n    - uri:\n        regex: '('\n    route:\n    - destination: {host: reviews}\n";
    let documents = parse(text);
    let (error, _) = rejected(&documents[0]);
    assert_eq!((error.reason, error.line), ("value", 9), "{error}");
    assert_eq!(error.field, "spec.http[0].match[0].uri");
}

#[test]
fn kubernetes_kinds_tolerate_unknown_fields_only_inside_spec() {
    let fine = parse(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  whatever: {x: 1}\n  containers: [{name: c, image: i}]\n",
    );
    assert_eq!(object(&fine[0]).key.namespace, "default");
    let misspelt = parse("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspek: {}\n");
    assert!(rejected(&misspelt[0]).0.message.contains("spek"));
    let label = parse("apiVersion: v1\nkind: Pod\nmetadata: {name: p, label: {a: b}}\nspec: {}\n");
    assert_eq!(rejected(&label[0]).0.field, "metadata.label");
}

#[test]
fn other_kinds_are_shown_and_istio_ones_refused() {
    let documents = parse(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: t, namespace: n}\nspec: {}\n---\napiVersion: v1\nkind: Servce\nmetadata: {name: s}\n",
    );
    assert!(matches!(&documents[0].outcome, Outcome::Ignored { what } if what.contains("Deployment")));
    assert_eq!(rejected(&documents[1]).0.reason, "unsupported");
    assert!(rejected(&documents[2]).0.message.contains("Servce"));
}

#[test]
fn what_the_injector_reads() {
    let documents = parse(
        "apiVersion: v1\nkind: Node\nmetadata: {name: n, namespace: ignored}\nspec: {podCIDR: x}\nstatus: {nodeInfo: {kubeletVersion: v1.33.1, osImage: x}}\n---\napiVersion: networking.istio.io/v1beta1\nkind: ProxyConfig\nmetadata: {name: p, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, concurrency: 2, environmentVariables: {A: b}, image: {imageType: debug}}\n---\napiVersion: networking.istio.io/v1beta1\nkind: ProxyConfig\nmetadata: {name: q}\nspec: {concurency: 2}\n",
    );
    let node = object(&documents[0]);
    let Spec::Node(spec) = &node.spec else { panic!("{node:?}") };
    assert_eq!(
        (node.key.namespace.as_str(), spec.status.node_info.kubelet_version.as_str()),
        ("", "v1.33.1")
    );
    let Spec::ProxyConfig(config) = &object(&documents[1]).spec else { panic!("{documents:?}") };
    assert_eq!(config.concurrency, Some(2));
    assert_eq!(config.image.as_ref().map(|image| image.image_type.as_str()), Some("debug"));
    assert!(rejected(&documents[2]).0.message.contains("concurency"));
}

#[test]
fn a_list_is_its_items() {
    let documents = parse(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: b}\n",
    );
    assert_eq!(documents.iter().map(|d| object(d).key.name.clone()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_rejected_policy_keeps_its_selection_where_it_is_readable() {
    let documents = parse(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: n}\nspec:\n  selector:\n    matchLabels: {app: x}\n  mtls: {mode: STRIKT}\n",
    );
    let (error, sniffed) = rejected(&documents[0]);
    assert_eq!(error.field, "spec.mtls.mode", "{error}");
    assert_eq!(sniffed.selector.as_ref().and_then(|s| s.get("app")).map(String::as_str), Some("x"));
}

#[test]
fn an_authorization_policy_may_be_empty() {
    for spec in ["", "spec: {}\n", "spec:\n"] {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: n}}\n{spec}"
        );
        let documents = parse(&text);
        let Spec::AuthorizationPolicy(policy) = &object(&documents[0]).spec else { panic!("kind") };
        assert_eq!((policy.rules.len(), policy.action), (0, Action::Allow));
    }
}

#[test]
fn port_keys_may_be_numbers() {
    let documents = parse(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: n}\nspec:\n  selector: {matchLabels: {app: x}}\n  portLevelMtls:\n    8080: {mode: DISABLE}\n",
    );
    let Spec::PeerAuthentication(pa) = &object(&documents[0]).spec else { panic!("kind") };
    assert_eq!(pa.port_modes().collect::<Vec<_>>(), [(8080, MtlsMode::Disable)]);
}

#[test]
fn durations_are_gos() {
    let ms = |text: &str| GoDuration::parse(text).map(|d| d.0.as_millis());
    assert_eq!(ms("1h30m"), Some(5_400_000));
    assert_eq!(ms("0.25s"), Some(250));
    assert_eq!(ms("250ms"), Some(250));
    assert_eq!(ms("0"), Some(0));
    for bad in ["", "5", "s", "-1s", "1d", "1s2", "1..2s", "1e400h"] {
        assert_eq!(GoDuration::parse(bad), None, "{bad}");
    }
}
