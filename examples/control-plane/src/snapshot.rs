//! Translations as snapshots, computed and encoded once for all proxies that are alike.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_xds::server::{EncodedResource, Snapshot};
use mesh_xds::{Resource, TypeUrl};

use crate::model::{Mesh, Service};
use crate::translate::{Outbound, Proxy, ViewKey, inbound, outbound, service_endpoints};

/// What a change asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushKind {
    /// Everything is translated again.
    Full,
    /// Only endpoints of some services changed: their load assignments are made again, all else is shared.
    Endpoints,
    /// Nothing that anyone is told has changed.
    Nothing,
}

impl PushKind {
    /// A label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Endpoints => "endpoints",
            Self::Nothing => "nothing",
        }
    }
}

/// Snapshots of the current mesh, by class of proxy.
#[derive(Debug, Default)]
pub struct Snapshots {
    mesh: Arc<Mesh>,
    views: HashMap<ViewKey, View>,
    classes: HashMap<Class, Snapshot>,
}

/// The encoded outbound side of one view.
#[derive(Debug)]
struct View {
    shared: Snapshot,
    /// Listeners that depend on which proxy asks: those of headless services' pods.
    per_pod: bool,
    generation: u64,
}

/// Proxies of one class are told exactly the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Class {
    view: ViewKey,
    generation: u64,
    inbound: Vec<u64>,
    own: Vec<IpAddr>,
}

impl Snapshots {
    /// For this mesh.
    pub fn new(mesh: Arc<Mesh>) -> Self {
        Self { mesh, ..Self::default() }
    }

    /// The mesh that snapshots are made of.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Goes over to a newer mesh, keeping what is still true.
    pub fn renew(&mut self, mesh: Arc<Mesh>) -> PushKind {
        let kind = match changed_endpoints(&self.mesh, &mesh) {
            None => {
                self.views.clear();
                PushKind::Full
            }
            Some(changed) if changed.is_empty() => PushKind::Nothing,
            Some(changed) => {
                for (key, view) in &mut self.views {
                    view.update(&mesh, key, &changed);
                }
                PushKind::Endpoints
            }
        };
        self.mesh = mesh;
        self.classes.clear();
        kind
    }

    /// The snapshot of one proxy. Proxies that are alike share it.
    pub fn of(&mut self, proxy: &Proxy) -> Snapshot {
        let key = ViewKey::of(&self.mesh, proxy);
        let mesh = &self.mesh;
        let view = self.views.entry(key.clone()).or_insert_with(|| View::new(mesh, proxy));
        let (listener, clusters) = inbound(mesh, proxy);
        let mut own: Vec<EncodedResource> = Vec::new();
        own.extend(EncodedResource::new(&listener));
        own.extend(clusters.iter().filter_map(|cluster| EncodedResource::new(cluster).ok()));
        let class = Class {
            view: key,
            generation: view.generation,
            inbound: own.iter().map(fingerprint).collect(),
            own: if view.per_pod { proxy.ips.clone() } else { Vec::new() },
        };
        if let Some(snapshot) = self.classes.get(&class) {
            return snapshot.clone();
        }
        let mut builder = view.shared.edit();
        if view.per_pod {
            for listener in outbound(mesh, proxy).listeners(&proxy.ips) {
                insert(&mut builder, &listener);
            }
        }
        for resource in own {
            builder.insert(Arc::new(resource));
        }
        let snapshot = builder.build();
        self.classes.insert(class, snapshot.clone());
        snapshot
    }
}

impl View {
    fn new(mesh: &Mesh, proxy: &Proxy) -> Self {
        let world = outbound(mesh, proxy);
        let per_pod = world.has_headless();
        let mut builder = Snapshot::builder()
            .with_type(TypeUrl::LISTENER)
            .with_type(TypeUrl::ROUTE)
            .with_type(TypeUrl::CLUSTER)
            .with_type(TypeUrl::ENDPOINTS);
        if !per_pod {
            world.listeners(&[]).iter().for_each(|listener| insert(&mut builder, listener));
        }
        world.routes().iter().for_each(|route| insert(&mut builder, route));
        world.clusters().iter().for_each(|cluster| insert(&mut builder, cluster));
        world.endpoints().iter().for_each(|endpoints| insert(&mut builder, endpoints));
        Self { shared: builder.build(), per_pod, generation: 0 }
    }

    fn update(&mut self, mesh: &Mesh, key: &ViewKey, changed: &[Arc<Service>]) {
        let proxy =
            Proxy { namespace: key.namespace.clone(), labels: key.labels.clone(), ..Proxy::default() };
        let world: Outbound<'_> = outbound(mesh, &proxy);
        let mut builder = self.shared.edit();
        for service in changed {
            for assignment in service_endpoints(&world, service) {
                insert(&mut builder, &assignment);
            }
        }
        self.shared = builder.build();
        self.generation += 1;
    }
}

fn insert<T: Resource>(builder: &mut mesh_xds::server::SnapshotBuilder, resource: &T) {
    // Everything that is translated has a name.
    if let Ok(encoded) = EncodedResource::new(resource) {
        builder.insert(Arc::new(encoded));
    }
}

fn fingerprint(resource: &EncodedResource) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    resource.name().hash(&mut hasher);
    resource.version().to_string().hash(&mut hasher);
    hasher.finish()
}

/// The services whose EDS endpoints differ, if nothing else does; `None` where more has changed.
fn changed_endpoints(old: &Mesh, new: &Mesh) -> Option<Vec<Arc<Service>>> {
    if !old.same_but_services(new) || old.services.len() != new.services.len() {
        return None;
    }
    let mut changed = Vec::new();
    for (before, after) in old.services.iter().zip(&new.services) {
        if before == after {
            continue;
        }
        // Listeners of headless services and inline endpoints of DNS clusters are not EDS.
        if !before.same_but_endpoints(after) || after.discovery != crate::model::Discovery::Eds {
            return None;
        }
        changed.push(Arc::clone(after));
    }
    Some(changed)
}

/// Versions by type and name: what stays the same over a restart.
pub fn versions(snapshot: &Snapshot) -> BTreeMap<(String, String), String> {
    snapshot
        .types()
        .flat_map(|(type_url, set)| {
            let kind = type_url.short().to_owned();
            set.resources()
                .iter()
                .map(move |r| ((kind.clone(), r.name().to_string()), r.version().to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MeshSettings;
    use crate::model::tests::state;

    fn mesh(pods: &str, rules: &str) -> Arc<Mesh> {
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: n}\nspec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}\n";
        Arc::new(Mesh::build(&state(&format!("{service}{pods}{rules}")), MeshSettings::default()))
    }

    fn pod(name: &str, account: &str, ready: bool) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: n, labels: {{app: web}}}}\nspec: {{serviceAccountName: {account}}}\nstatus: {{podIP: 10.0.0.{}, conditions: [{{type: Ready, status: '{}'}}]}}\n",
            name.len(),
            if ready { "True" } else { "False" }
        )
    }

    const STRICT: &str = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: n}\nspec: {mtls: {mode: STRICT}}\n";

    #[test]
    fn only_what_changed_is_made_again() {
        let proxy = Proxy { namespace: "n".to_owned(), name: "c".to_owned(), ..Proxy::default() };
        let one = pod("a", "x", false);
        let mut snapshots = Snapshots::new(mesh(&one, ""));
        let before = versions(&snapshots.of(&proxy));
        assert_eq!(snapshots.renew(mesh(&one, "")), PushKind::Nothing);
        assert_eq!(snapshots.renew(mesh(&pod("a", "x", true), "")), PushKind::Endpoints);
        let after = versions(&snapshots.of(&proxy));
        let differing: Vec<_> =
            after.iter().filter(|(name, version)| before.get(name) != Some(version)).collect();
        assert_eq!(differing.len(), 1, "{differing:?}");
        let same = [pod("a", "x", true), pod("bb", "x", true)].concat();
        assert_eq!(snapshots.renew(mesh(&same, "")), PushKind::Endpoints);
        assert_eq!(snapshots.renew(mesh("", "")), PushKind::Full, "the set of identities is in the clusters");
        assert_eq!(snapshots.renew(mesh("", STRICT)), PushKind::Full);
    }

    #[test]
    fn an_incremental_snapshot_equals_a_fresh_one() {
        let proxy = Proxy { namespace: "n".to_owned(), name: "c".to_owned(), ..Proxy::default() };
        let mut grown = Snapshots::new(mesh(&pod("a", "x", false), ""));
        let _ = grown.of(&proxy);
        let all = [pod("a", "x", true), pod("bb", "x", true)].concat();
        grown.renew(mesh(&all, ""));
        let mut fresh = Snapshots::new(mesh(&all, ""));
        assert_eq!(versions(&grown.of(&proxy)), versions(&fresh.of(&proxy)));
    }

    #[test]
    fn proxies_that_are_alike_share() {
        let mut snapshots = Snapshots::new(mesh(&pod("a", "x", true), ""));
        let proxy =
            |name: &str| Proxy { namespace: "n".to_owned(), name: name.to_owned(), ..Proxy::default() };
        let (one, two) = (snapshots.of(&proxy("c")), snapshots.of(&proxy("d")));
        for (type_url, set) in one.types() {
            assert!(two.get(type_url).is_some_and(|other| Arc::ptr_eq(set, other)), "{type_url:?}");
        }
        let server = snapshots.of(&proxy("a"));
        assert_ne!(versions(&one), versions(&server), "the server's side differs");
    }
}
