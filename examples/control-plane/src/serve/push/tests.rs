use std::time::Duration;

use super::*;
use crate::model::tests::state;
use crate::serve::node::NodeInfo;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: secret, namespace: bank, annotations: {networking.istio.io/exportTo: .}}
spec: {clusterIP: 10.96.0.2, selector: {app: secret}, ports: [{name: http, port: 80}]}
";

fn pod(name: &str, namespace: &str, ready: bool) -> String {
    let ready = if ready { "True" } else { "False" };
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}-1, namespace: {namespace}, labels: {{app: {name}}}}}
status: {{podIP: 10.0.0.1, conditions: [{{type: Ready, status: '{ready}'}}]}}
"
    )
}

/// A control plane's pushing, without ports.
struct World {
    states: watch::Sender<Arc<State>>,
    cache: SnapshotCache,
    source: MeshSource,
    watcher: Watcher,
}

impl World {
    fn new(yaml: &str) -> Self {
        let (states, state) = watch::channel(Arc::new(state(yaml)));
        let cache = SnapshotCache::new();
        let (engine, source, watcher) =
            start(state.clone(), MeshSettings::default(), cache.clone(), Metrics::default());
        tokio::spawn(follow(state, engine));
        Self { states, cache, source, watcher }
    }

    fn set(&self, yaml: &str) {
        self.states.send_replace(Arc::new(state(yaml)));
    }

    fn register(&self, name: &str, namespace: &str) -> (Arc<str>, Node) {
        let node = Node { id: format!("sidecar~10.0.0.9~{name}.{namespace}~x"), ..Node::default() };
        (Arc::from(self.source.register(NodeInfo::parse(&node).expect("a node"))), node)
    }

    /// A client that comes and has its snapshot.
    async fn enter(&self, name: &str, namespace: &str) -> Arc<str> {
        let (group, node) = self.register(name, namespace);
        self.watcher.joined(&group, &node);
        self.until("a snapshot", |w| w.cache.get(&group).is_some()).await;
        group
    }

    /// Waits in the clock's own time: under a paused clock this costs nothing.
    async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let poll = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), poll).await.expect(what);
    }

    fn endpoints(&self, group: &str, cluster: &str) -> Option<String> {
        let snapshot = self.cache.get(group)?;
        snapshot.get(&TypeUrl::ENDPOINTS)?.get(cluster).map(|r| r.version().to_string())
    }
}

const WEB: &str = "outbound|80||web.shop.svc.cluster.local";
const SECRET: &str = "outbound|80||secret.bank.svc.cluster.local";

#[tokio::test]
async fn a_change_reaches_whom_it_concerns_and_nobody_else() {
    let first = [SERVICES, &pod("web", "shop", true), &pod("secret", "bank", true)].concat();
    let world = World::new(&first);
    let (shop, bank) = (world.enter("c", "shop").await, world.enter("c", "bank").await);
    let set = |group: &str| Arc::as_ptr(&world.cache.get(group).expect("a snapshot"));
    let (before, secret) = (set(&shop), world.endpoints(&bank, SECRET));
    assert_eq!(world.endpoints(&shop, SECRET), None, "not exported");

    // The bank's pod fails: the shop does not see it, and what it has is not touched.
    world.set(&[SERVICES, &pod("web", "shop", true), &pod("secret", "bank", false)].concat());
    world.until("the bank's endpoints", |w| w.endpoints(&bank, SECRET) != secret).await;
    assert_eq!(set(&shop), before);

    // The shop's fails: both see that.
    let web = world.endpoints(&shop, WEB);
    assert!(web.is_some() && web == world.endpoints(&bank, WEB));
    world.set(&[SERVICES, &pod("web", "shop", false), &pod("secret", "bank", false)].concat());
    world.until("the shop's endpoints", |w| [&shop, &bank].iter().all(|g| w.endpoints(g, WEB) != web)).await;

    // A service that goes is taken from everybody who had it.
    let (services, _) = SERVICES.split_once("---").expect("two services");
    world.set(services);
    world.until("gone", |w| w.endpoints(&bank, SECRET).is_none()).await;
    assert!(world.endpoints(&bank, WEB).is_some());
}

#[tokio::test]
async fn clients_that_are_alike_hold_the_same_sets_before_and_after_a_change() {
    let world = World::new(&[SERVICES, &pod("web", "shop", true)].concat());
    let mut groups = Vec::new();
    for name in ["a", "b", "c"] {
        groups.push(world.enter(name, "shop").await);
    }
    let sets = |world: &World, group: &str| {
        let snapshot = world.cache.get(group).expect("a snapshot");
        snapshot.types().map(|(type_url, set)| (type_url.clone(), Arc::as_ptr(set))).collect::<Vec<_>>()
    };
    let alike = |world: &World| groups.iter().all(|group| sets(world, group) == sets(world, &groups[0]));
    assert!(alike(&world));
    let before = world.endpoints(&groups[0], WEB);
    world.set(&[SERVICES, &pod("web", "shop", false)].concat());
    let moved = |w: &World| {
        groups.iter().all(|g| w.endpoints(g, WEB).is_some_and(|now| Some(&now) != before.as_ref()))
    };
    world.until("moved endpoints", moved).await;
    assert!(alike(&world));
    // Another account: clusters change as well.
    let account =
        pod("web", "shop", false).replace("\nstatus:", "\nspec: {serviceAccountName: web}\nstatus:");
    let clusters =
        |w: &World, g: &str| w.cache.get(g).and_then(|s| Some(s.get(&TypeUrl::CLUSTER)?.version()));
    let before = clusters(&world, &groups[0]);
    world.set(&[SERVICES, &account].concat());
    world.until("other clusters", |w| groups.iter().all(|g| clusters(w, g) != before)).await;
    assert!(alike(&world));
}

#[tokio::test]
async fn a_node_that_comes_back_while_its_old_stream_ends_is_served() {
    let world = World::new("");
    let (group, node) = world.register("c", "shop");
    world.watcher.joined(&group, &node);
    // The new stream is let in, then the old one's end is noticed, then the new one begins.
    world.register("c", "shop");
    world.watcher.left(&group);
    world.watcher.joined(&group, &node);
    world.until("served", |w| w.cache.get(&group).is_some() && w.source.proxy(&group).is_some()).await;
    world.watcher.left(&group);
    world.until("forgotten", |w| w.cache.get(&group).is_none() && w.source.proxy(&group).is_none()).await;
}

/// The stages of a push, each when the test says so.
struct Stages {
    states: watch::Sender<Arc<State>>,
    translator: Translator,
}

const DENY: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {action: DENY, rules: [{}]}
";

/// The web service with its pod, ready or not, and so many other services.
fn shop(ready: bool, others: u8) -> String {
    let other = |n| {
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: other-{n}, namespace: shop}}
spec: {{clusterIP: 10.97.0.{n}, selector: {{app: other}}, ports: [{{name: http, port: 80}}]}}
"
        )
    };
    [SERVICES.to_owned(), (1..=others).map(other).collect(), pod("web", "shop", ready)].concat()
}

impl Stages {
    fn new(yaml: &str) -> Self {
        let (states, state) = watch::channel(Arc::new(state(yaml)));
        let settings = MeshSettings::default();
        let mesh = Arc::new(Mesh::build(&state.borrow(), settings.clone()));
        let (publish, snapshots) = watch::channel(Arc::new(Snapshots::new(mesh)));
        let (source, cache, metrics) = (MeshSource::new(snapshots), SnapshotCache::new(), Metrics::default());
        Self { states, translator: Translator { state, settings, cache, source, publish, metrics } }
    }

    /// Clients of one namespace, each with its first snapshot.
    async fn enter(&self, count: usize) -> Vec<Arc<str>> {
        let mut groups = Vec::new();
        for number in 0..count {
            let node = Node { id: format!("sidecar~10.0.0.9~c{number}.shop~x"), ..Node::default() };
            let node_info = NodeInfo::parse(&node).expect("a node");
            let group: Arc<str> = Arc::from(self.translator.source.register(node_info));
            self.translator.source.joined(&group, &node);
            groups.push(group);
        }
        self.push(&groups, &Batch::all()).await;
        groups
    }

    async fn change(&self, yaml: &str) -> Option<Batch> {
        self.states.send_replace(Arc::new(state(yaml)));
        self.translator.prepare(()).await
    }

    async fn push(&self, groups: &[Arc<str>], batch: &Batch) {
        for group in groups {
            self.translator.push(Arc::clone(group), batch.clone()).await;
        }
    }

    fn set(&self, group: &str, type_url: &TypeUrl) -> Arc<mesh_xds::server::TypeSnapshot> {
        let snapshot = self.translator.cache.get(group).expect("a snapshot");
        Arc::clone(snapshot.get(type_url).expect("the type"))
    }

    /// How many different sets of listeners, routes, clusters and endpoints they hold.
    fn different(&self, groups: &[Arc<str>]) -> [usize; 4] {
        [TypeUrl::LISTENER, TypeUrl::ROUTE, TypeUrl::CLUSTER, TypeUrl::ENDPOINTS].map(|type_url| {
            let all = groups.iter().map(|group| Arc::as_ptr(&self.set(group, &type_url)));
            all.collect::<std::collections::BTreeSet<_>>().len()
        })
    }
}

#[tokio::test]
async fn a_push_between_two_stages_of_a_newer_change_loses_nothing() {
    let world = Stages::new(&shop(true, 0));
    let groups = world.enter(2).await;
    let [late, other] = [&groups[0], &groups[1]];
    let moved = world.change(&shop(false, 0)).await.expect("a change");
    assert!(moved.change.is_endpoints_only());
    assert_eq!(world.translator.affected(&moved).len(), 2);
    world.push(std::slice::from_ref(other), &moved).await;
    // The policy is prepared, then the queue serves the other client for the older change, then the policy's clients are
    // asked for.
    let deny = world.change(&[shop(false, 0).as_str(), DENY].concat()).await.expect("a change");
    world.push(std::slice::from_ref(late), &moved).await;
    let affected = world.translator.affected(&deny);
    world.push(&affected, &deny).await;
    let source = &world.translator.source;
    let fresh = Snapshots::new(source.current());
    for group in &groups {
        let told = fresh.of(&source.proxy(group).expect("a proxy"), None);
        let listeners = told.snapshot().get(&TypeUrl::LISTENER).map(|set| set.version());
        assert_eq!(Some(world.set(group, &TypeUrl::LISTENER).version()), listeners, "{group}");
    }
}

#[tokio::test]
async fn where_something_is_written_is_no_change() {
    let world = Stages::new(&shop(true, 1));
    let further_down = format!("# a comment\n\n{}", shop(true, 1));
    assert!(world.change(&further_down).await.is_none());
}

#[tokio::test]
async fn clients_share_however_late_they_are_pushed_to() {
    let world = Stages::new(&shop(true, 20));
    let groups = world.enter(8).await;
    assert_eq!(world.different(&groups), [1; 4]);
    let first = Arc::downgrade(&world.set(&groups[0], &TypeUrl::ENDPOINTS));
    // Two changes before anybody hears of one; then one more.
    let mut batch = world.change(&shop(false, 20)).await.expect("a change");
    let elsewhere = shop(false, 20).replace("10.0.0.1,", "10.0.0.2,");
    batch.merge(world.change(&elsewhere).await.expect("a change"));
    world.push(&groups, &batch).await;
    assert_eq!(world.different(&groups), [1; 4]);
    let batch = world.change(&shop(true, 20)).await.expect("a change");
    world.push(&groups, &batch).await;
    assert_eq!(world.different(&groups), [1; 4]);
    assert_eq!(first.strong_count(), 0, "nobody holds what was true at first");
    // Labels begin to matter: other views, of the same content but for one rule.
    let rule = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: r, namespace: shop}
spec: {host: web, workloadSelector: {matchLabels: {app: x}}, trafficPolicy: {tls: {mode: DISABLE}}}
";
    let batch = world.change(&[shop(true, 20).as_str(), rule].concat()).await.expect("a change");
    world.push(&groups, &batch).await;
    assert_eq!(world.different(&groups), [1; 4]);
}

#[tokio::test]
async fn a_newcomer_shares_with_those_who_were_there() {
    let world = Stages::new(&shop(true, 2));
    let mut groups = world.enter(1).await;
    let route = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: r, namespace: shop}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}
";
    let batch = world.change(&[shop(true, 2).as_str(), route].concat()).await.expect("a change");
    let affected = world.translator.affected(&batch);
    world.push(&affected, &batch).await;
    groups.extend(world.enter(2).await);
    assert_eq!(world.different(&groups), [1; 4]);
}
