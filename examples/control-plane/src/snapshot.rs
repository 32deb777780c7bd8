//! Translations as snapshots, computed and encoded once for all proxies that are alike, kept while they are true.
//!
//! [`Snapshots`] belong to one mesh and are safe to ask from many tasks at once. The next mesh takes over every view that
//! its changes do not concern; where only endpoints moved, a view gets other load assignments and keeps all else.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use mesh_xds::server::{EncodedResource, Snapshot, SnapshotBuilder};
use mesh_xds::{Resource, TypeUrl};

use crate::model::{Change, Dependency, Mesh};
use crate::translate::{
    Outbound, Proxy, ViewKey, inbound, inbound_dependencies, outbound, service_endpoints,
};

/// Snapshots of one mesh, by class of proxy.
#[derive(Debug, Default)]
pub struct Snapshots {
    generation: u64,
    mesh: Arc<Mesh>,
    views: Mutex<HashMap<ViewKey, Slot>>,
    classes: Mutex<HashMap<Arc<Class>, Snapshot>>,
}

/// A view that is translated when the first proxy asks for it.
#[derive(Debug, Clone, Default)]
struct Slot {
    view: Arc<OnceLock<Arc<View>>>,
    /// What it was before it was changed: what is still equal is shared with it.
    before: Option<Arc<View>>,
    /// Held by the proxies that were told of it, in this form or an earlier one.
    users: Weak<()>,
}

/// The encoded outbound side of proxies that see the same.
#[derive(Debug)]
struct View {
    /// Changes with everything but load assignments.
    shape: u64,
    shared: Snapshot,
    /// Listeners that depend on which proxy asks: those of headless services' pods.
    per_pod: bool,
    dependencies: Arc<BTreeSet<Dependency>>,
}

/// Proxies of one class are told exactly the same.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Class {
    shape: u64,
    inbound: Vec<u64>,
    own: Vec<IpAddr>,
}

/// What one proxy is told, and why.
#[derive(Debug, Clone)]
pub struct Told {
    snapshot: Snapshot,
    key: ViewKey,
    view: Arc<View>,
    class: Arc<Class>,
    inbound: Arc<BTreeSet<Dependency>>,
    /// Keeps the view from being forgotten.
    _user: Arc<()>,
}

impl Told {
    /// The snapshot.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The same, as it is held by the cache: what is equal to what was there before is the very same set.
    pub fn held_as(self, snapshot: Snapshot) -> Self {
        Self { snapshot, ..self }
    }
}

impl Snapshots {
    /// For this mesh.
    pub fn new(mesh: Arc<Mesh>) -> Self {
        Self { mesh, ..Self::default() }
    }

    /// The mesh that snapshots are made of.
    pub fn mesh(&self) -> &Arc<Mesh> {
        &self.mesh
    }

    /// Counts the meshes that had something else to say than the one before.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The snapshots of a newer mesh, with everything that is still true, and what changed; `None` if nothing that any
    /// proxy is told.
    pub fn next(&self, mesh: Arc<Mesh>) -> (Self, Option<Change>) {
        let change = mesh.changes_since(&self.mesh);
        let views = self.views_after(change.as_ref(), &mesh);
        let shapes: BTreeSet<u64> = views.values().filter_map(|slot| Some(slot.view.get()?.shape)).collect();
        let mut classes = lock(&self.classes).clone();
        // A class that nobody is in any more is held here and in the older map, and nowhere else.
        classes.retain(|class, _| shapes.contains(&class.shape) && Arc::strong_count(class) > 2);
        let generation = self.generation + u64::from(change.is_some());
        (Self { generation, mesh, views: Mutex::new(views), classes: Mutex::new(classes) }, change)
    }

    /// The views that somebody still uses, as they are after a change.
    fn views_after(&self, change: Option<&Change>, mesh: &Mesh) -> HashMap<ViewKey, Slot> {
        let slots: Vec<_> = lock(&self.views).iter().map(|(key, slot)| (key.clone(), slot.clone())).collect();
        let mut next = HashMap::new();
        for (key, slot) in slots {
            let translated = slot.view.get();
            let Some(view) = translated.or(slot.before.as_ref()) else { continue };
            if slot.users.strong_count() == 0 {
                continue;
            }
            let concerned = |change: &Change| change.concerns(view.dependencies.iter());
            let comes_in =
                |change: &Change| change.concerns(outbound(mesh, &key.proxy()).dependencies().iter());
            let after = match change {
                _ if translated.is_none() => slot.to_be(view),
                Some(change) if concerned(change) => match change {
                    Change::Endpoints(changed) => slot.translated(view.with_endpoints(mesh, &key, changed)),
                    Change::Some(_) | Change::All => slot.to_be(view),
                },
                Some(change @ Change::Some(_)) if comes_in(change) => slot.to_be(view),
                _ => Slot { before: None, ..slot.clone() },
            };
            next.insert(key, after);
        }
        next
    }

    /// What a proxy is told. `before` is what it was told last: whatever is still equal is shared with it.
    pub fn of(&self, proxy: &Proxy, before: Option<&Told>) -> Told {
        let mesh = &self.mesh;
        let key = ViewKey::of(mesh, proxy);
        let (slot, user) = {
            let mut views = lock(&self.views);
            let slot = views.entry(key.clone()).or_default();
            let user = slot.user();
            (slot.clone(), user)
        };
        let view = slot.view.get_or_init(|| Arc::new(View::new(mesh, proxy, slot.before.as_deref())));
        let (listener, clusters) = inbound(mesh, proxy);
        let mut own: Vec<EncodedResource> = Vec::new();
        own.extend(EncodedResource::new(&listener));
        own.extend(clusters.iter().filter_map(|cluster| EncodedResource::new(cluster).ok()));
        let class = Class {
            shape: view.shape,
            inbound: own.iter().map(fingerprint).collect(),
            own: if view.per_pod { proxy.ips.clone() } else { Vec::new() },
        };
        let told = |class, shape: &Snapshot| Told {
            snapshot: view.with_load_assignments(shape),
            key,
            view: Arc::clone(view),
            class,
            inbound: Arc::new(inbound_dependencies(mesh, proxy)),
            _user: user,
        };
        let known = |classes: &HashMap<Arc<Class>, Snapshot>| {
            classes.get_key_value(&class).map(|(class, shape)| (Arc::clone(class), shape.clone()))
        };
        if let Some((class, shape)) = known(&lock(&self.classes)) {
            return told(class, &shape);
        }
        // Load assignments are the view's business: a class must not hold those of the moment in which it was made.
        let mut builder = view.shared.edit().share(&Snapshot::default(), &TypeUrl::ENDPOINTS);
        if view.per_pod {
            for listener in outbound(mesh, proxy).listeners(&proxy.ips) {
                insert(&mut builder, &listener);
            }
        }
        for resource in own {
            let known = before.and_then(|b| b.snapshot.get(resource.type_url())?.get(resource.name()));
            let same = known.filter(|known| ***known == resource).cloned();
            builder.insert(same.unwrap_or_else(|| Arc::new(resource)));
        }
        let mut shape = builder.build();
        if let Some(before) = before {
            shape = shape.sharing(&before.snapshot);
        }
        // Perhaps another proxy of the class was faster: its snapshot is everybody's.
        let mut classes = lock(&self.classes);
        let faster = known(&classes);
        let (class, shape) = faster.unwrap_or_else(|| {
            let class = Arc::new(class);
            classes.insert(Arc::clone(&class), shape.clone());
            (class, shape)
        });
        drop(classes);
        told(class, &shape)
    }

    /// Lets go of what nobody uses any more.
    pub fn forget_unused(&self) {
        let mut views = lock(&self.views);
        views.retain(|_, slot| slot.users.strong_count() > 0);
        let shapes: BTreeSet<u64> = views.values().filter_map(|slot| Some(slot.view.get()?.shape)).collect();
        drop(views);
        lock(&self.classes).retain(|class, _| shapes.contains(&class.shape) && Arc::strong_count(class) > 1);
    }

    /// The short way after a change that moved nothing but endpoints: what a proxy was told before, with the load
    /// assignments of its view. `None` where the proxy has to be asked about [again](Self::of).
    pub fn with_moved_endpoints(&self, before: &Told, proxy: &Proxy, change: &Change) -> Option<Told> {
        let view = self.view(&before.key)?;
        if !change.is_endpoints_only()
            || view.shape != before.class.shape
            || self.inbound_is_concerned(before, proxy, change)
        {
            return None;
        }
        Some(Told { snapshot: view.with_load_assignments(&before.snapshot), view, ..before.clone() })
    }

    /// Whether a change to this mesh concerns a proxy that was told `before` of the mesh that came before.
    pub fn is_concerned(&self, before: &Told, proxy: &Proxy, change: &Change) -> bool {
        let same_view = self.view(&before.key).is_some_and(|view| Arc::ptr_eq(&view, &before.view));
        !same_view || self.inbound_is_concerned(before, proxy, change)
    }

    /// Whether a change concerns the server's side of a proxy, as it was or as it is.
    fn inbound_is_concerned(&self, before: &Told, proxy: &Proxy, change: &Change) -> bool {
        change.concerns(before.inbound.iter())
            || change.concerns(inbound_dependencies(&self.mesh, proxy).iter())
    }

    fn view(&self, key: &ViewKey) -> Option<Arc<View>> {
        lock(&self.views).get(key)?.view.get().cloned()
    }
}

impl Slot {
    /// To be translated again.
    fn to_be(&self, before: &Arc<View>) -> Self {
        Self { before: Some(Arc::clone(before)), users: self.users.clone(), ..Self::default() }
    }

    fn translated(&self, view: View) -> Self {
        Self { view: Arc::new(OnceLock::from(Arc::new(view))), before: None, users: self.users.clone() }
    }

    /// One more user, also of a view that nobody used any more.
    fn user(&mut self) -> Arc<()> {
        self.users.upgrade().unwrap_or_else(|| {
            let first = Arc::new(());
            self.users = Arc::downgrade(&first);
            first
        })
    }
}

impl View {
    fn new(mesh: &Mesh, proxy: &Proxy, before: Option<&Self>) -> Self {
        static SHAPES: AtomicU64 = AtomicU64::new(0);
        let world = outbound(mesh, proxy);
        let per_pod = world.has_headless();
        let mut builder = before.map_or_else(Snapshot::builder, |before| before.shared.edit());
        for type_url in [TypeUrl::LISTENER, TypeUrl::ROUTE, TypeUrl::CLUSTER, TypeUrl::ENDPOINTS] {
            builder.clear(&type_url);
        }
        if !per_pod {
            world.listeners(&[]).iter().for_each(|listener| insert(&mut builder, listener));
        }
        world.routes().iter().for_each(|route| insert(&mut builder, route));
        world.clusters().iter().for_each(|cluster| insert(&mut builder, cluster));
        world.endpoints().iter().for_each(|endpoints| insert(&mut builder, endpoints));
        let shape = SHAPES.fetch_add(1, Ordering::Relaxed);
        Self { shape, shared: builder.build(), per_pod, dependencies: Arc::new(world.dependencies()) }
    }

    fn with_endpoints(&self, mesh: &Mesh, key: &ViewKey, changed: &BTreeSet<Dependency>) -> Self {
        let world: Outbound<'_> = outbound(mesh, &key.proxy());
        let mut builder = self.shared.edit();
        for dependency in changed {
            let Dependency::Service(host) = dependency else { continue };
            for assignment in
                world.service(host).iter().flat_map(|service| service_endpoints(&world, service))
            {
                insert(&mut builder, &assignment);
            }
        }
        Self { shared: builder.build(), dependencies: Arc::clone(&self.dependencies), ..*self }
    }

    fn with_load_assignments(&self, told: &Snapshot) -> Snapshot {
        told.edit().share(&self.shared, &TypeUrl::ENDPOINTS).build()
    }
}

fn insert<T: Resource>(builder: &mut SnapshotBuilder, resource: &T) {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is written under these locks is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
