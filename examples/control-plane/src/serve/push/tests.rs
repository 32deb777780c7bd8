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
