//! Warnings about namespaces whose Pod Security level the injected containers do not meet.

use mesh_inject::{Cluster, Injector, Request, Settings, annotation as a};
use serde_json::{Value, json};

fn settings(values: Value) -> Settings {
    Settings { values, ..Settings::default() }
}

fn plain() -> Settings {
    settings(json!({}))
}

/// Every injected container is measured by the level that the namespace enforces.
#[test]
fn pod_security_of_every_injected_container() {
    let cni = || settings(json!({"pilot": {"cni": {"enabled": true}}}));
    let rows: Vec<(&str, Settings, &str, &str, &[&str])> = vec![
        ("restricted", plain(), "", "", &["capabilities of istio-init"]),
        ("baseline", plain(), "", "", &["capabilities of istio-init"]),
        ("privileged", plain(), "", "", &[]),
        ("restricted", cni(), "", "", &[]),
        (
            "restricted",
            cni(),
            a::INTERCEPTION_MODE,
            "TPROXY",
            &["istio-proxy does not meet (it adds the capability NET_ADMIN)"],
        ),
        (
            "baseline",
            cni(),
            a::INTERCEPTION_MODE,
            "TPROXY",
            &["istio-proxy does not meet (it adds the capability NET_ADMIN)"],
        ),
        (
            "restricted",
            cni(),
            a::CAP_NET_BIND_SERVICE,
            "true",
            &["istio-proxy does not meet (it runs as user 0)"],
        ),
        ("baseline", cni(), a::CAP_NET_BIND_SERVICE, "true", &[]),
        (
            "restricted",
            plain(),
            a::TEMPLATES,
            "gateway",
            &["istio-proxy does not meet (runAsNonRoot is not set)"],
        ),
        ("baseline", plain(), a::TEMPLATES, "gateway", &[]),
        ("restricted", plain(), a::TEMPLATES, "grpc-agent", &["istio-proxy does not meet (runAsNonRoot"]),
        (
            "restricted",
            plain(),
            a::TEMPLATES,
            "grpc-simple",
            &["grpc-bootstrap-init does not meet (runAsNonRoot"],
        ),
        (
            "restricted",
            settings(
                json!({"pilot": {"cni": {"enabled": true}}, "global": {"proxy": {"seccompProfile": {}}}}),
            ),
            "",
            "",
            &[
                "istio-validation does not meet (it has no seccomp profile)",
                "istio-proxy does not meet (it has no seccomp profile)",
            ],
        ),
        (
            "baseline",
            settings(json!({"pilot": {"cni": {"enabled": true}}, "global": {"proxy": {"privileged": true}}})),
            "",
            "",
            &[
                "istio-validation does not meet (it is privileged)",
                "istio-proxy does not meet (it is privileged)",
            ],
        ),
    ];
    for (level, settings, key, value, expected) in rows {
        let mut pod = json!({"metadata": {"name": "web", "annotations": {}},
            "spec": {"containers": [{"name": "app", "image": "example/app:1"}]}});
        if !key.is_empty() {
            pod["metadata"]["annotations"][key] = json!(value);
        }
        let mut cluster = Cluster::default();
        cluster
            .add_namespace(json!({"metadata": {"name": "shop", "labels": {a::POD_SECURITY_ENFORCE: level}}}));
        let injector = Injector::new(settings).expect("the settings are good");
        let warnings = injector.inject(&Request::new(&pod, "shop", &cluster)).expect("a good pod").warnings;
        let texts: Vec<String> =
            warnings.iter().map(ToString::to_string).filter(|t| t.contains("Pod Security")).collect();
        assert_eq!(texts.len(), expected.len(), "{level} {key}={value}: {texts:?}");
        for (text, expected) in texts.iter().zip(expected) {
            assert!(text.contains(expected) && text.contains(level), "{text}");
        }
    }
}
