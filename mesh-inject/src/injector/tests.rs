use serde_json::json;

use super::*;
use crate::settings::NativeSidecars;
use crate::template::Template;

fn inject(settings: Settings, pod: &Value) -> Result<Injected, InjectError> {
    Injector::new(settings)?.inject(&Request::new(pod, "shop", &Cluster::default()))
}

fn web() -> Value {
    json!({"metadata":{"name":"web-1","labels":{"app":"web"}},
           "spec":{"containers":[{"name":"web","image":"example/web:1","ports":[{"containerPort":8080,"name":"http"}],
           "readinessProbe":{"httpGet":{"path":"/ok","port":"http"},"timeoutSeconds":2}}],"volumes":[{"name":"data","emptyDir":{}}]}})
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    pod::list(pod, list).iter().map(|item| pod::name_of(item).to_owned()).collect()
}

#[test]
fn native_layout_with_our_images() {
    let injected = inject(Settings::default(), &web()).unwrap();
    let pod = &injected.pod;
    assert_eq!(names(pod, "initContainers"), ["istio-init", "istio-proxy"]);
    assert_eq!(names(pod, "containers"), ["web"]);
    let proxy = pod::sidecar(pod).unwrap();
    assert_eq!(proxy["image"], "mesh/mesh-sidecar:0.1.0");
    assert_eq!(proxy["restartPolicy"], "Always");
    assert_eq!(pod["spec"]["initContainers"][0]["image"], "mesh/mesh-init:0.1.0");
    assert_eq!(pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"], "/app-health/web/readyz");
    assert_eq!(pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"], 15020);
    assert_eq!(
        pod::env_value(proxy, "ISTIO_KUBE_APP_PROBERS").unwrap(),
        r#"{"/app-health/web/readyz":{"httpGet":{"path":"/ok","port":8080},"timeoutSeconds":2}}"#
    );
    assert_eq!(names(pod, "volumes").last().unwrap(), "data");
    assert_eq!(pod["metadata"]["annotations"]["prometheus.io/port"], "15020");
    assert!(injected.warnings.is_empty(), "{:?}", injected.warnings);
}

#[test]
fn the_sidecar_passes_restricted_pod_security() {
    let injected = inject(Settings::default(), &web()).unwrap();
    let security = &pod::sidecar(&injected.pod).unwrap()["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["privileged"], false);
    assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(security["runAsNonRoot"], true);
    assert_eq!(security["seccompProfile"], json!({"type": "RuntimeDefault"}));
    let allowed = ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "projected", "secret"];
    for volume in pod::list(&injected.pod, "volumes") {
        let sources = volume.as_object().unwrap().keys().filter(|key| *key != "name");
        assert!(sources.clone().all(|source| allowed.contains(&source.as_str())), "{volume}");
    }
    let values = json!({"global": {"proxy": {"seccompProfile": {}}}});
    let injected = inject(Settings { values, ..Settings::default() }, &web()).unwrap();
    assert!(pod::sidecar(&injected.pod).unwrap()["securityContext"].get("seccompProfile").is_none());
}

#[test]
fn classic_layout_waits_and_orders() {
    let settings = || Settings { native_sidecars: NativeSidecars::Never, ..Settings::default() };
    let mut pod = web();
    pod["spec"]["initContainers"] = json!([{"name":"migrate"}]);
    let injected = inject(settings(), &pod).unwrap();
    assert_eq!(names(&injected.pod, "containers"), ["web", "istio-proxy"]);
    assert_eq!(names(&injected.pod, "initContainers"), ["migrate", "istio-init"]);
    assert!(matches!(&injected.warnings[..], [Warning::InitContainersOutsideMesh { .. }]));
    pod["metadata"]["annotations"] = json!({"proxy.istio.io/config":"holdApplicationUntilProxyStarts: true"});
    let injected = inject(settings(), &pod).unwrap();
    assert_eq!(names(&injected.pod, "containers"), ["istio-proxy", "web"]);
    let hook = &injected.pod["spec"]["containers"][0]["lifecycle"]["postStart"]["exec"]["command"];
    assert_eq!(hook, &json!(["pilot-agent", "wait"]));
}

#[test]
fn a_second_injection_changes_nothing() {
    for native in [NativeSidecars::Always, NativeSidecars::Never] {
        let mut pod = web();
        pod["spec"]["containers"].as_array_mut().unwrap().push(
            json!({"name":"istio-proxy","image":"auto","args":["mine"],"securityContext":{"runAsUser":2000}}),
        );
        let settings = || Settings { native_sidecars: native, ..Settings::default() };
        let once = inject(settings(), &pod).unwrap().pod;
        let proxy = pod::sidecar(&once).unwrap();
        assert_eq!(proxy["args"], json!(["mine"]));
        assert_eq!(proxy["image"], "mesh/mesh-sidecar:0.1.0");
        assert!(
            once["spec"]["initContainers"][0]["args"].to_string().contains("\"-u\",\"2000\"")
                || native == NativeSidecars::Never
        );
        let twice = inject(settings(), &once).unwrap().pod;
        assert_eq!(patch::diff(&once, &twice), Patch::default());
    }
}

#[test]
fn overlays_and_custom_templates() {
    let overlay = "spec:\n  containers:\n  - name: '*'\n    env:\n    - {name: A, value: '1'}\n  - name: istio-proxy\n    env:\n    - {name: B, value: '2'}\n";
    let mut settings = Settings::default();
    settings.templates.insert("extra".into(), Template::overlay("extra", overlay).unwrap());
    settings.templates.insert(
        "typed".into(),
        Template::custom(|context| {
            Ok(json!({"metadata":{"annotations":{"apps": context.app_containers().count().to_string()}}}))
        }),
    );
    settings.aliases.insert("all".into(), vec!["sidecar".into(), "extra".into(), "typed".into()]);
    let mut pod = web();
    pod["metadata"]["annotations"] = json!({"inject.istio.io/templates":"all"});
    let injected = inject(settings.clone(), &pod).unwrap();
    assert_eq!(injected.templates, ["sidecar", "extra", "typed"]);
    assert_eq!(injected.pod["spec"]["containers"][0]["env"], json!([{"name":"A","value":"1"}]));
    assert_eq!(pod::env_value(pod::sidecar(&injected.pod).unwrap(), "B"), Some("2"));
    assert_eq!(injected.pod["metadata"]["annotations"]["apps"], "1");
    pod["metadata"]["annotations"] = json!({"inject.istio.io/templates":"sidecar,none"});
    let error = inject(settings, &pod).unwrap_err();
    assert_eq!(
        error.to_string(),
        "requested template \"none\" not found; have all, extra, gateway, grpc-agent, grpc-simple, sidecar, typed"
    );
}

#[test]
fn go_text_is_refused_by_name_only_when_asked_for() {
    let values = json!({"sidecarInjectorWebhook":{"templates":{"go":"spec: {{ .Spec }}"}}});
    let mut pod = web();
    assert!(inject(Settings::from_values(values.clone()).unwrap(), &pod).is_ok());
    pod["metadata"]["annotations"] = json!({"inject.istio.io/templates":"go"});
    assert!(
        inject(Settings::from_values(values).unwrap(), &pod)
            .unwrap_err()
            .to_string()
            .contains("Go text template")
    );
}

#[test]
fn clashes_are_refused_with_the_field() {
    let mut pod = web();
    pod["spec"]["volumes"] = json!([{"name":"istio-token","secret":{"secretName":"x"}}]);
    let error = inject(Settings::default(), &pod).unwrap_err();
    assert!(error.to_string().contains("istio-token"), "{error}");
    let mut pod = web();
    pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser":1337});
    let settings = Settings { refuse_clashes: true, ..Settings::default() };
    let error = inject(settings, &pod).unwrap_err();
    assert!(error.to_string().contains("spec.containers[0].securityContext.runAsUser"), "{error}");
}

#[test]
fn unresolvable_probe_ports_are_left_alone() {
    let mut pod = web();
    pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] = json!("nowhere");
    let injected = inject(Settings::default(), &pod).unwrap();
    assert_eq!(injected.pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"], "nowhere");
    assert!(matches!(&injected.warnings[..], [Warning::UnknownProbePort { .. }]), "{:?}", injected.warnings);
}

#[test]
fn an_injector_is_shared_between_threads() {
    fn shared<T: Send + Sync + Clone + 'static>(_: &T) {}
    shared(&Injector::new(Settings::default()).unwrap());
}

#[test]
fn settings_are_checked() {
    let wrong = |settings: Settings| Injector::new(settings).unwrap_err().to_string();
    let values = |value: Value| Settings { values: value, ..Settings::default() };
    assert!(
        wrong(values(json!({"global":{"proxy":{"privileged":"perhaps"}}})))
            .contains("values.global.proxy.privileged")
    );
    let mesh = Settings { mesh: json!({"defaultConfig":{"statusPort":99999}}), ..Settings::default() };
    assert!(wrong(mesh).contains("statusPort"));
}

#[test]
fn warnings_about_the_namespace_and_jobs() {
    let mut cluster = Cluster::default();
    cluster.add_namespace(
        json!({"metadata":{"name":"shop","labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}),
    );
    let mut pod = web();
    pod["metadata"]["generateName"] = json!("web-");
    pod["metadata"]["ownerReferences"] =
        json!([{"kind":"Job","name":"web","apiVersion":"batch/v1","controller":true}]);
    let settings = Settings { native_sidecars: NativeSidecars::Never, ..Settings::default() };
    let injected = Injector::new(settings).unwrap().inject(&Request::new(&pod, "shop", &cluster)).unwrap();
    assert!(matches!(
        &injected.warnings[..],
        [Warning::JobWithoutNativeSidecar { .. }, Warning::PodSecurity { .. }]
    ));
}
