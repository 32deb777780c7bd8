//! The program as people run it: files in, text out.

mod support;

use mesh_inject::offline::parse_documents;
use mesh_inject::patch::Patch;
use serde_json::Value;

use support::{meshctl, text};

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {mode: '0644', answer: 'yes', script: \"a\\nb\\n\"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: example/web, securityContext: {runAsUser: 1337}}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: other}
spec: {containers: [{name: a}]}
";

fn init_names(deployment: &Value) -> Vec<&str> {
    let list = deployment["spec"]["template"]["spec"]["initContainers"].as_array();
    list.into_iter().flatten().filter_map(|container| container["name"].as_str()).collect()
}

#[test]
fn inject_patch_and_uninject_agree() {
    let input = parse_documents(SHOP).unwrap();
    let injected = meshctl(&["inject", "-f", "-"], SHOP, &[]);
    assert!(injected.status.success(), "{}", text(&injected.stderr));
    assert!(text(&injected.stderr).contains("runAsUser is 1337"), "{}", text(&injected.stderr));
    let documents = parse_documents(&text(&injected.stdout)).unwrap();
    assert_eq!(documents[..2], input[..2]);
    assert_eq!(init_names(&documents[2]), ["istio-init", "istio-proxy"]);

    let patches = text(&meshctl(&["inject", "-f", "-", "-o", "patch"], SHOP, &[]).stdout);
    for ((line, before), after) in patches.lines().zip(&input).zip(&documents) {
        let patch: Patch = serde_json::from_str(line).unwrap();
        assert_eq!(&patch.apply(before).unwrap(), after);
    }
    let list: Value =
        serde_json::from_slice(&meshctl(&["inject", "-f", "-", "-o", "json"], SHOP, &[]).stdout).unwrap();
    assert_eq!(list["items"].as_array().unwrap(), &documents);

    let back = meshctl(&["uninject", "-f", "-"], &text(&injected.stdout), &[]);
    assert_eq!(parse_documents(&text(&back.stdout)).unwrap(), input);
}

#[test]
fn settings_come_from_files_environment_and_flags() {
    let folder = tempfile::tempdir().unwrap();
    let values = folder.path().join("values.json");
    std::fs::write(
        &values,
        r#"{"values":{"global":{"hub":"h","tag":7}},"mesh_configmap":{"trustDomain":"td"}}"#,
    )
    .unwrap();
    let mesh = folder.path().join("mesh.yaml");
    std::fs::write(&mesh, "defaultConfig: {concurrency: 3}\n").unwrap();
    let arguments = |more: &[&str]| {
        let mut all = vec!["inject", "-f", "-", "-o", "json", "--injector-values", values.to_str().unwrap()];
        all.extend(["--mesh-config", mesh.to_str().unwrap(), "--revision", "canary"]);
        all.extend(more);
        let output = meshctl(&all, SHOP, &[("ENABLE_NATIVE_SIDECARS", "false")]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["items"][2].clone()
    };
    let classic = arguments(&[]);
    assert_eq!(init_names(&classic), ["istio-init"]);
    let proxy = &classic["spec"]["template"]["spec"]["containers"][1];
    assert_eq!(proxy["image"], "h/mesh-sidecar:7");
    let env = proxy["env"].to_string();
    assert!(env.contains("{\\\"concurrency\\\":3}") && env.contains("\"td\""), "{env}");
    assert_eq!(classic["spec"]["template"]["metadata"]["annotations"]["istio.io/rev"], "canary");
    assert_eq!(init_names(&arguments(&["--native-sidecars=true"])), ["istio-init", "istio-proxy"]);
}

#[test]
fn check_inject_names_the_webhook_and_the_reason() {
    let output = meshctl(&["check-inject", "-f", "-"], SHOP, &[]);
    let table = text(&output.stdout);
    assert!(table.contains("Deployment shop/web: injected"), "{table}");
    assert!(table.contains("Pod other/plain: NOT injected\n  no webhook selects the pod"), "{table}");
    assert!(table.contains("namespace label istio-injection In [enabled] (it is not set)"), "{table}");
    let output = meshctl(&["check-inject", "-f", "-", "-o", "json", "-n", "shop", "web"], SHOP, &[]);
    let answers: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answers.as_array().unwrap().len(), 1);
    assert_eq!(answers[0]["injected"], true);
    assert!(!meshctl(&["check-inject", "-f", "-", "nobody"], SHOP, &[]).status.success());
}

#[test]
fn refusals_name_field_and_value_and_write_nothing() {
    let bad = SHOP.replace("{labels: {app: web}}", "{annotations: {sidecar.istio.io/proxyCPU: lots}}");
    let output = meshctl(&["inject", "-f", "-"], &bad, &[]);
    assert!(!output.status.success() && output.stdout.is_empty());
    let message = text(&output.stderr);
    assert!(message.contains("sidecar.istio.io/proxyCPU") && message.contains("lots"), "{message}");
    assert!(!meshctl(&["inject", "-f", "-"], "a: [", &[]).status.success());
}

#[test]
fn the_environment_of_istiod_and_the_namespaces_file() {
    let folder = tempfile::tempdir().unwrap();
    let namespaces = folder.path().join("namespaces.yaml");
    std::fs::write(
        &namespaces,
        "{kind: Namespace, metadata: {name: shop, annotations: {openshift.io/sa.scc.uid-range: 1000620000/10000}}}",
    )
    .unwrap();
    let proxy = |arguments: &[&str], env: &[(&str, &str)]| {
        let mut all = vec!["inject", "-f", "-", "-o", "json", "--native-sidecars", "true"];
        all.extend(arguments);
        let output = meshctl(&all, SHOP, env);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        list["items"][2]["spec"]["template"]["spec"]["initContainers"][1].clone()
    };
    let file = ["--namespace-file", namespaces.to_str().unwrap()];
    assert_eq!(proxy(&file, &[])["securityContext"]["runAsUser"], 1337);
    let openshift = proxy(&file, &[("PLATFORM", "openshift")]);
    assert_eq!(openshift["securityContext"]["runAsUser"], 1_000_629_999);
    let compliant = proxy(&[], &[("COMPLIANCE_POLICY", "fips-140-3")])["env"].to_string();
    assert!(compliant.contains("fips-140-3") && compliant.contains("fips140=only"), "{compliant}");
    // So does a node that is too old for native sidecars; `auto` asks them.
    let nodes = folder.path().join("nodes.yaml");
    let old = |version: &str| {
        format!("{{kind: Node, metadata: {{name: n}}, status: {{nodeInfo: {{kubeletVersion: {version}}}}}}}")
    };
    for (version, native) in [("v1.31.2", false), ("v1.33.0", true)] {
        std::fs::write(&nodes, old(version)).unwrap();
        let output = meshctl(
            &["inject", "-f", "-", "-o", "json", "--namespace-file", nodes.to_str().unwrap()],
            SHOP,
            &[],
        );
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(init_names(&list["items"][2]).contains(&"istio-proxy"), native, "{version}");
    }
    // A flag wins over the environment.
    assert_eq!(proxy(&[], &[("ENABLE_NATIVE_SIDECARS", "false")])["name"], "istio-proxy");
}

#[test]
fn folders_single_documents_and_skips() {
    let folder = tempfile::tempdir().unwrap();
    let documents: Vec<&str> = SHOP.split("---").collect();
    std::fs::write(folder.path().join("b.yaml"), documents[2]).unwrap();
    std::fs::write(folder.path().join("a.yml"), documents[1]).unwrap();
    std::fs::write(folder.path().join("notes.txt"), "not: [yaml").unwrap();
    let output = meshctl(&["inject", "-f", folder.path().to_str().unwrap()], "", &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let kinds: Vec<Value> =
        parse_documents(&text(&output.stdout)).unwrap().iter().map(|d| d["kind"].clone()).collect();
    assert_eq!(kinds, ["ConfigMap", "Deployment"], "in the order of the files' names");

    let single = meshctl(&["inject", "-f", "-", "-o", "json"], documents[2], &[]);
    let object: Value = serde_json::from_slice(&single.stdout).unwrap();
    assert_eq!(object["kind"], "Deployment");

    let host = "{kind: DaemonSet, metadata: {name: n, namespace: x}, spec: {template: {spec: {hostNetwork: true, containers: [{name: a}]}}}}";
    let output = meshctl(&["inject", "-f", "-"], host, &[]);
    assert_eq!(parse_documents(&text(&output.stdout)).unwrap(), parse_documents(host).unwrap());
    assert_eq!(
        text(&output.stderr),
        "===> Skipping injection because DaemonSet \"x/n\" has host networking enabled\n"
    );
    for empty in ["", "---\n---\n", "# nothing\n"] {
        let output = meshctl(&["inject", "-f", "-"], empty, &[]);
        assert!(!output.status.success() && text(&output.stderr).contains("no documents found"));
    }
}

/// What mesh-inject's README shows is what the program says, to the letter.
#[test]
fn the_readmes_session() {
    let shown = include_str!("../../../mesh-inject/README.md")
        .split_once("$ meshctl check-inject -f ten-pods.yaml -o short\n")
        .and_then(|(_, rest)| rest.split_once("```"))
        .map(|(session, _)| session)
        .expect("the README shows a session");
    let output = meshctl(&["check-inject", "-f", "-", "-o", "short"], include_str!("ten-pods.yaml"), &[]);
    assert_eq!(text(&output.stderr) + &text(&output.stdout), shown);
    let marks = shown.lines().filter(|line| line.ends_with(": injected") || line.ends_with(": NOT injected"));
    assert_eq!(marks.count(), 10);
}
