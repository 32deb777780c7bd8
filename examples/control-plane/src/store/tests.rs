use std::fs;
use std::path::Path;

use super::*;
use crate::resources::{Kind, ObjectKey, Spec};

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new(files: &[(&str, &str)]) -> (Self, Arc<State>) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for sub in ["config", "status"] {
            fs::create_dir(dir.path().join(sub)).expect("mkdir");
        }
        for (name, text) in files {
            fs::write(dir.path().join(name), text).expect("write");
        }
        let mut store = Self::open(dir.path());
        let state = store.poll().expect("the first poll reports");
        (Self { dir, store }, state)
    }

    fn open(dir: &Path) -> Store {
        Store::new(StoreConfig {
            config_dirs: vec![dir.join("config")],
            status_dirs: vec![dir.join("status")],
            domain: "cluster.local".to_owned(),
            last_good: Some(dir.join("last-good.json")),
        })
    }

    fn restart(&mut self) {
        self.store = Self::open(self.dir.path());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces a file as an editor does: by rename, so that every version has an inode of its own.
    fn write(&self, name: &str, text: &str) {
        let temporary = self.path(".new");
        fs::write(&temporary, text).expect("write");
        fs::rename(temporary, self.path(name)).expect("rename");
    }

    /// Polls until something changes; at most as often as settling needs.
    fn settle(&mut self) -> Arc<State> {
        (0..4).find_map(|_| self.store.poll()).expect("a change")
    }
}

fn key(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: n}}\nspec: {{ports: [{{port: 80}}]}}\n"
    )
}

fn route(host: &str, timeout: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r, namespace: n}}\nspec:\n  hosts: [a]\n  http: [{{timeout: {timeout}, route: [{{destination: {{host: {host}}}}}]}}]\n"
    )
}

fn timeout_of(state: &State) -> Option<u64> {
    let object = state.objects.get(&key(Kind::VirtualService, "n", "r"))?;
    let Spec::VirtualService(vs) = &object.spec else { return None };
    vs.http.first()?.timeout.map(|t| t.0.as_secs())
}

#[test]
fn a_bad_version_leaves_the_last_good_one_serving() {
    let (mut fixture, state) =
        Fixture::new(&[("config/a.yaml", &service("a")), ("config/r.yaml", &route("a", "1s"))]);
    assert_eq!((timeout_of(&state), state.rejected.len()), (Some(1), 0));
    fixture.write("config/r.yaml", &route("a", "soon"));
    let state = fixture.settle();
    assert_eq!(timeout_of(&state), Some(1));
    assert_eq!(state.rejected[0].effect, "last good version serves");
    assert_eq!(state.rejected[0].error.field, "spec.http[0].timeout");
    fixture.write("config/r.yaml", &route("a", "3s"));
    let state = fixture.settle();
    assert_eq!((timeout_of(&state), state.rejected.len()), (Some(3), 0));
}

#[test]
fn unreadable_text_keeps_every_object_of_its_file() {
    let both = format!("{}---\n{}", service("a"), route("a", "1s"));
    let (mut fixture, _) = Fixture::new(&[("config/all.yaml", &both)]);
    fixture.write("config/all.yaml", "{{{ not yaml\n");
    let state = fixture.settle();
    assert_eq!(timeout_of(&state), Some(1));
    assert_eq!(state.rejected.len(), 1);
    fs::remove_file(fixture.path("config/all.yaml")).expect("remove");
    assert!(fixture.settle().objects.is_empty());
}

#[test]
fn a_route_to_a_missing_host_waits_for_it() {
    let (mut fixture, state) =
        Fixture::new(&[("config/a.yaml", &service("a")), ("config/r.yaml", &route("b", "1s"))]);
    assert_eq!(timeout_of(&state), None);
    assert_eq!(state.rejected[0].error.reason, "reference");
    assert_eq!(state.rejected[0].error.field, "spec.http[0].route[0].destination.host");
    fixture.write("config/b.yaml", &service("b"));
    let state = fixture.settle();
    assert_eq!((timeout_of(&state), state.rejected.len()), (Some(1), 0));
    fixture.write("config/r.yaml", &route("c", "2s"));
    let state = fixture.settle();
    assert_eq!(timeout_of(&state), Some(1), "the last good version");
}

#[test]
fn the_first_of_two_equal_names_serves() {
    let (mut fixture, state) = Fixture::new(&[
        ("config/b.yaml", &service("a")),
        ("config/c.yaml", &service("a").replace("port: 80", "port: 81")),
    ]);
    let port = |state: &State| match &state.objects[&key(Kind::Service, "n", "a")].spec {
        Spec::Service(service) => service.spec.ports[0].port,
        other => panic!("{other:?}"),
    };
    assert_eq!(port(&state), 80);
    assert_eq!(state.rejected[0].error.reason, "duplicate");
    fixture.write("config/a.yaml", &service("a").replace("port: 80", "port: 82"));
    let state = fixture.settle();
    assert_eq!((port(&state), state.rejected.len()), (80, 2), "a newcomer does not displace what serves");
}

#[test]
fn policies_that_never_were_valid_fail_closed() {
    let pa = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: n}\nspec: {mtls: {mode: STRIKT}}\n";
    let ap = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: q\n  namespace: n\nspec: {selector: {matchLabels: {app: x}}, action: DENI}\n";
    let (mut fixture, state) = Fixture::new(&[("config/p.yaml", pa), ("config/q.yaml", ap)]);
    let treated: Vec<_> = state.fail_closed.iter().map(|f| (f.kind, f.treated_as)).collect();
    assert_eq!(treated, [(Kind::PeerAuthentication, "STRICT"), (Kind::AuthorizationPolicy, "DENY")]);
    let Spec::AuthorizationPolicy(policy) = &state.objects[&key(Kind::AuthorizationPolicy, "n", "q")].spec
    else {
        panic!("kind")
    };
    assert_eq!(policy.selector.as_ref().map(|s| s.match_labels.len()), Some(1));
    fixture.write("config/p.yaml", &pa.replace("STRIKT", "PERMISSIVE"));
    let state = fixture.settle();
    assert_eq!(state.fail_closed.len(), 1);
    fixture.write("config/p.yaml", pa);
    let state = fixture.settle();
    assert_eq!(state.fail_closed.len(), 1, "it was valid once: the last good version serves");
    let Spec::PeerAuthentication(p) = &state.objects[&key(Kind::PeerAuthentication, "n", "p")].spec else {
        panic!("kind")
    };
    assert_eq!(p.mode(), crate::resources::MtlsMode::Permissive);
}

#[test]
fn the_status_directory_adds_without_being_a_duplicate() {
    let with_ip =
        service("a").replace("ports:", "clusterIP: 10.96.0.1, ports:").replace("port: 80", "port: 1");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: n}\nspec: {}\n";
    let (mut fixture, state) = Fixture::new(&[
        ("config/a.yaml", &service("a")),
        ("config/p.yaml", pod),
        ("status/a.json", &with_ip),
    ]);
    assert_eq!(state.rejected, []);
    let Spec::Service(a) = &state.objects[&key(Kind::Service, "n", "a")].spec else { panic!("kind") };
    assert_eq!((a.spec.cluster_ip.as_deref(), a.spec.ports[0].port), (Some("10.96.0.1"), 80));
    let running = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"n"},"spec":{},"status":{"podIP":"10.0.0.9"}}"#;
    fixture.write("status/p.json", running);
    let state = fixture.store.poll().expect("status is read at once");
    let Spec::Pod(p) = &state.objects[&key(Kind::Pod, "n", "p")].spec else { panic!("kind") };
    assert_eq!(p.status.pod_ip.as_deref(), Some("10.0.0.9"));
}

#[test]
fn a_file_is_read_only_once_it_has_settled() {
    let (mut fixture, _) = Fixture::new(&[]);
    let path = fixture.path("config/a.yaml");
    fs::write(&path, "apiVersion: v1\nki").expect("write");
    assert!(fixture.store.poll().is_none());
    fs::write(&path, service("a")).expect("write");
    assert!(fixture.store.poll().is_none());
    let state = fixture.settle();
    assert_eq!((state.objects.len(), state.rejected.len()), (1, 0));
}

#[test]
fn a_restart_takes_nothing_away() {
    let (mut fixture, _) =
        Fixture::new(&[("config/a.yaml", &service("a")), ("config/r.yaml", &route("a", "1s"))]);
    fixture.write("config/r.yaml", &route("a", "soon"));
    assert_eq!(timeout_of(&fixture.settle()), Some(1));
    fixture.restart();
    let state = fixture.store.poll().expect("the first poll reports");
    assert_eq!((timeout_of(&state), state.rejected.len()), (Some(1), 1));
    fs::remove_file(fixture.path("config/r.yaml")).expect("remove");
    assert_eq!(timeout_of(&fixture.settle()), None, "what is deleted is gone");
    fixture.restart();
    assert_eq!(timeout_of(&fixture.store.poll().expect("the first poll reports")), None);
}

#[test]
fn a_directory_that_vanishes_keeps_its_objects() {
    let (mut fixture, _) = Fixture::new(&[("config/a.yaml", &service("a"))]);
    fs::rename(fixture.path("config"), fixture.path("moved")).expect("rename");
    let state = fixture.settle();
    assert_eq!((state.objects.len(), state.rejected.len()), (1, 1));
    assert!(Path::new(&state.rejected[0].error.file).ends_with("config"));
}

#[test]
fn pauses_between_looks_are_bounded() {
    let ms = Duration::from_millis;
    assert_eq!(pause_after(ms(100), ms(1)), ms(100), "a fast look");
    assert_eq!(pause_after(ms(100), ms(20)), ms(400), "many files: a small share of a core");
    assert_eq!(pause_after(ms(100), ms(3000)), ms(500), "a look that was kept from the processor");
    assert_eq!(pause_after(ms(900), ms(3000)), ms(900));
}

#[test]
fn a_policy_that_does_not_even_parse_closes_what_it_might_have_selected() {
    let torn = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: q\n  namespace: n\nspec: {selector: {matchLabels: {app: x\n";
    let json = r#"{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "p", "namespace": "m"}, "spec": {"#;
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: security.istio.io/v1\n  kind: AuthorizationPolicy\n  metadata: {name: l, namespace: k}\n  spec: [\n";
    let other = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"#;
    let files =
        [("config/q.yaml", torn), ("config/p.json", json), ("config/l.yaml", list), ("config/s.json", other)];
    let (_, state) = Fixture::new(&files);
    let mut closed: Vec<_> = state
        .fail_closed
        .iter()
        .map(|f| (f.namespace.as_str(), f.treated_as, f.selector.is_empty()))
        .collect();
    closed.sort_unstable();
    assert_eq!(closed, [("k", "DENY", true), ("m", "STRICT", true), ("n", "DENY", true)]);
    assert_eq!(state.rejected.len(), 4);
    assert_eq!(state.objects.len(), 3, "what denies is in force");
}

#[test]
fn a_policy_that_was_good_serves_on_when_its_text_is_torn() {
    let good = r#"{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "p", "namespace": "n"}, "spec": {"mtls": {"mode": "PERMISSIVE"}}}"#;
    let (mut fixture, state) = Fixture::new(&[("config/p.json", good)]);
    assert_eq!(state.objects.len(), 1);
    let torn = good.get(..good.len() - 10).expect("long enough");
    fixture.write("config/p.json", torn);
    let state = fixture.settle();
    assert_eq!((state.objects.len(), state.fail_closed.len()), (1, 0));
    assert_eq!(state.rejected[0].effect, "last good version serves");
    let kept = &state.objects[&key(Kind::PeerAuthentication, "n", "p")].spec;
    let Spec::PeerAuthentication(p) = kept else { panic!("kind") };
    assert_eq!(p.mode(), crate::resources::MtlsMode::Permissive);
    // A second one in the file that never was good closes beside the first.
    fixture.write("config/p.json", &format!("{good}\n---\n{torn}"));
    let state = fixture.settle();
    assert_eq!((state.objects.len(), state.fail_closed.len()), (2, 1));
}

#[test]
fn a_look_that_was_kept_waiting_does_not_put_off_the_next() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .max_blocking_threads(1)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (fixture, _) = Fixture::new(&[]);
        let mut states = watch(Fixture::open(fixture.dir.path()), POLL_INTERVAL).await;
        // Somebody has the only thread for a second, as on a machine with far more to do than it can.
        let (release, held) = std::sync::mpsc::channel::<()>();
        let holder = tokio::task::spawn_blocking(move || held.recv());
        // The pause begins, the look begins behind the one who holds the thread, a second passes.
        for step in [Duration::ZERO, POLL_INTERVAL * 2, Duration::from_secs(1)] {
            tokio::time::advance(step).await;
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
        drop(release);
        let _ = holder.await;
        fixture.write("config/a.yaml", &service("a"));
        let seen = tokio::time::timeout(Duration::from_secs(3), states.changed()).await;
        seen.expect("the edit is seen in time").expect("the watch goes on");
        assert_eq!(states.borrow().objects.len(), 1);
    });
}
