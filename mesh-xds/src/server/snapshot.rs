//! Snapshots: everything one group of clients should have, immutable, compared cheaply.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::resource::{Resource, ResourceError, TypeUrl, Version};

use super::encoded::EncodedResource;

/// How many comparisons with older sets a set remembers. Clients of one group are nearly always at the same few.
const REMEMBERED_DIFFS: usize = 8;

/// Everything a group of clients should have: for each type its resources.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    version: Option<Arc<str>>,
    types: BTreeMap<TypeUrl, Arc<TypeSnapshot>>,
}

impl Snapshot {
    /// Starts an empty snapshot.
    #[must_use]
    pub fn builder() -> SnapshotBuilder {
        SnapshotBuilder::default()
    }

    /// Starts a snapshot that differs from this one in what the builder is told; what is not touched is shared.
    #[must_use]
    pub fn edit(&self) -> SnapshotBuilder {
        SnapshotBuilder { version: None, base: self.types.clone(), touched: BTreeMap::new() }
    }

    /// The label that was given with [`SnapshotBuilder::version`].
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The resources of a type; `None` when the snapshot says nothing about it.
    #[must_use]
    pub fn get(&self, type_url: &TypeUrl) -> Option<&Arc<TypeSnapshot>> {
        self.types.get(type_url)
    }

    /// Every type in the snapshot.
    pub fn types(&self) -> impl Iterator<Item = (&TypeUrl, &Arc<TypeSnapshot>)> {
        self.types.iter()
    }

    /// Shares whatever is equal with an older snapshot, so that comparing the two is free where nothing changed.
    /// [`SnapshotCache::set`](super::SnapshotCache::set) does so by itself. What goes from the same older set to the same
    /// newer one gets the same result.
    #[must_use]
    pub fn sharing(mut self, older: &Self) -> Self {
        for (type_url, set) in &mut self.types {
            if let Some(old) = older.types.get(type_url) {
                *set = TypeSnapshot::shared(set, old);
            }
        }
        self
    }
}

/// Builds a [`Snapshot`].
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    version: Option<Arc<str>>,
    base: BTreeMap<TypeUrl, Arc<TypeSnapshot>>,
    touched: BTreeMap<TypeUrl, BTreeMap<Arc<str>, Arc<EncodedResource>>>,
}

impl SnapshotBuilder {
    /// Labels the snapshot: State-of-the-World responses carry the label as their version, Delta responses as
    /// `system_version_info`. Without a label both carry a hash of the type's content.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        self.version = Some(Arc::from(version));
        self
    }

    /// Adds or replaces a resource.
    ///
    /// # Errors
    /// [`ResourceError::NoName`] when it has no name.
    #[expect(clippy::should_implement_trait, reason = "a builder's add cannot be taken for arithmetic")]
    pub fn add<T: Resource>(mut self, resource: &T) -> Result<Self, ResourceError> {
        self.insert(Arc::new(EncodedResource::new(resource)?));
        Ok(self)
    }

    /// Adds or replaces a resource that is encoded already, sharing it.
    pub fn insert(&mut self, resource: Arc<EncodedResource>) {
        self.touch(resource.type_url().clone()).insert(resource.name().clone(), resource);
    }

    /// Removes a resource; a name that is not there is ignored.
    pub fn remove(&mut self, type_url: &TypeUrl, name: &str) {
        self.touch(type_url.clone()).remove(name);
    }

    /// Takes all resources of a type from another snapshot, or drops the type where that one does not mention it. The set
    /// itself is shared: snapshots of many groups that take it from one place stay cheap to compare, and what changed in
    /// it is computed once for all of them. What was said about the type before is forgotten.
    #[must_use]
    pub fn share(mut self, other: &Snapshot, type_url: &TypeUrl) -> Self {
        self.touched.remove(type_url);
        match other.types.get(type_url) {
            Some(set) => self.base.insert(type_url.clone(), set.clone()),
            None => self.base.remove(type_url),
        };
        self
    }

    /// Declares a type, so that a wildcard client is answered with an empty set rather than not at all.
    #[must_use]
    pub fn with_type(mut self, type_url: TypeUrl) -> Self {
        self.touch(type_url);
        self
    }

    /// Drops every resource of a type and keeps the type declared.
    pub fn clear(&mut self, type_url: &TypeUrl) {
        self.touch(type_url.clone()).clear();
    }

    fn touch(&mut self, type_url: TypeUrl) -> &mut BTreeMap<Arc<str>, Arc<EncodedResource>> {
        let base = &self.base;
        self.touched.entry(type_url).or_insert_with_key(|type_url| {
            let resources = base.get(type_url).map(|set| set.resources.as_slice()).unwrap_or_default();
            resources.iter().map(|r| (r.name().clone(), r.clone())).collect()
        })
    }

    /// The finished snapshot.
    #[must_use]
    pub fn build(self) -> Snapshot {
        let mut types = self.base;
        for (type_url, resources) in self.touched {
            let set = Arc::new(TypeSnapshot::new(resources.into_values().collect()));
            let set = types.get(&type_url).map_or_else(|| set.clone(), |old| TypeSnapshot::shared(&set, old));
            types.insert(type_url, set);
        }
        Snapshot { version: self.version, types }
    }
}

/// All resources of one type in one snapshot, in the order of their names.
#[derive(Debug)]
pub struct TypeSnapshot {
    id: u64,
    version: Version,
    resources: Vec<Arc<EncodedResource>>,
    diffs: Mutex<Vec<(u64, Arc<Diff>)>>,
    /// This set as those hold it who came from an older one, by the older one's id.
    shared: Mutex<Vec<(u64, Weak<Self>)>>,
}

/// What has to be said to get from one set to another.
#[derive(Debug, Default)]
pub(super) struct Diff {
    /// New or changed.
    pub(super) changed: Vec<Arc<EncodedResource>>,
    /// No longer there.
    pub(super) removed: Vec<Arc<EncodedResource>>,
}

impl TypeSnapshot {
    /// `resources` is sorted by name and has no name twice.
    fn new(resources: Vec<Arc<EncodedResource>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let version = Version::of_all(resources.iter().map(|r| (&**r.name(), r.version())));
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, version, resources, diffs: Mutex::default(), shared: Mutex::default() }
    }

    /// The set without resources, shared by everybody.
    pub(super) fn empty() -> Arc<Self> {
        static EMPTY: OnceLock<Arc<TypeSnapshot>> = OnceLock::new();
        EMPTY.get_or_init(|| Arc::new(Self::new(Vec::new()))).clone()
    }

    /// A hash over all names and versions.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The resources, in the order of their names.
    #[must_use]
    pub fn resources(&self) -> &[Arc<EncodedResource>] {
        &self.resources
    }

    /// One resource by name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<EncodedResource>> {
        let at = self.resources.binary_search_by(|r| (**r.name()).cmp(name)).ok()?;
        self.resources.get(at)
    }

    /// What changed since `old`; computed once for all clients that come from there.
    pub(super) fn diff_from(&self, old: &Self) -> Arc<Diff> {
        let mut diffs = self.diffs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, diff)) = diffs.iter().find(|(id, _)| *id == old.id) {
            return diff.clone();
        }
        let diff = Arc::new(Diff::between(&old.resources, &self.resources));
        if diffs.len() == REMEMBERED_DIFFS {
            diffs.remove(0);
        }
        diffs.push((old.id, diff.clone()));
        diff
    }

    /// `new`, made of `old`'s parts where they are equal. Where it is so already it stays the set that it is, for others
    /// may hold it too.
    fn shared(new: &Arc<Self>, old: &Arc<Self>) -> Arc<Self> {
        if new.id == old.id || (new.version == old.version && same(&new.resources, &old.resources)) {
            return old.clone();
        }
        // Many groups go this way, and all of them have to hold one set afterwards.
        let mut known = new.shared.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, set)| set.strong_count() > 0);
        if let Some(set) = known.iter().find(|(id, _)| *id == old.id).and_then(|(_, set)| set.upgrade()) {
            return set;
        }
        let set = Self::made_of(new, old);
        if known.len() == REMEMBERED_DIFFS {
            known.remove(0);
        }
        known.push((old.id, Arc::downgrade(&set)));
        set
    }

    fn made_of(new: &Arc<Self>, old: &Self) -> Arc<Self> {
        let mut copied = false;
        let mut share = |r: &Arc<EncodedResource>| match old.get(r.name()) {
            Some(o) if !Arc::ptr_eq(o, r) && o.version() == r.version() && o.ttl() == r.ttl() => {
                copied = true;
                o.clone()
            }
            _ => r.clone(),
        };
        let resources = new.resources.iter().map(&mut share).collect();
        if copied { Arc::new(Self::new(resources)) } else { new.clone() }
    }
}

fn same(a: &[Arc<EncodedResource>], b: &[Arc<EncodedResource>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
}

impl Diff {
    /// Walks both sorted lists once.
    fn between(old: &[Arc<EncodedResource>], new: &[Arc<EncodedResource>]) -> Self {
        let mut diff = Self::default();
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return diff,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(o), Some(n)) if Arc::ptr_eq(o, n) => std::cmp::Ordering::Equal,
                (Some(o), Some(n)) => o.name().cmp(n.name()),
            };
            match order {
                std::cmp::Ordering::Less => diff.removed.extend(old.next().cloned()),
                std::cmp::Ordering::Greater => diff.changed.extend(new.next().cloned()),
                std::cmp::Ordering::Equal => {
                    if let (Some(o), Some(n)) = (old.next(), new.next())
                        && o.version() != n.version()
                    {
                        diff.changed.push(n.clone());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;

    fn snapshot(marks: &[u32]) -> Snapshot {
        let add = |builder: SnapshotBuilder, (n, mark): (usize, &u32)| {
            let cluster =
                Cluster { name: n.to_string(), alt_stat_name: mark.to_string(), ..Default::default() };
            builder.add(&cluster).unwrap()
        };
        marks.iter().enumerate().fold(Snapshot::builder(), add).build()
    }

    fn set(snapshot: &Snapshot) -> &Arc<TypeSnapshot> {
        snapshot.get(&TypeUrl::CLUSTER).unwrap()
    }

    #[test]
    fn what_changed_is_computed_once_for_all_who_come_from_the_same_set() {
        let (old, other, new) = (snapshot(&[1, 1]), snapshot(&[0, 0]), snapshot(&[1, 2]));
        let diff = set(&new).diff_from(set(&old));
        assert_eq!(diff.changed.iter().map(|r| &**r.name()).collect::<Vec<_>>(), ["1"]);
        assert_eq!(set(&new).diff_from(set(&other)).changed.len(), 2);
        assert!(Arc::ptr_eq(&diff, &set(&new).diff_from(set(&old))));
        // Only the newest few are kept.
        for _ in 0..REMEMBERED_DIFFS {
            set(&new).diff_from(set(&snapshot(&[3, 3])));
        }
        assert!(!Arc::ptr_eq(&diff, &set(&new).diff_from(set(&old))));
    }

    #[test]
    fn an_edit_shares_what_it_does_not_touch() {
        let old = snapshot(&[1, 2]);
        let same =
            old.edit().add(&Cluster { name: "0".into(), alt_stat_name: "1".into(), ..Default::default() });
        assert!(Arc::ptr_eq(set(&old), set(&same.unwrap().build())), "nothing changed");
        let next = old.edit().add(&Cluster { name: "0".into(), ..Default::default() }).unwrap().build();
        let resource = |snapshot: &Snapshot, name| set(snapshot).get(name).unwrap().clone();
        assert!(Arc::ptr_eq(&resource(&old, "1"), &resource(&next, "1")));
        assert_ne!(resource(&old, "0").version(), resource(&next, "0").version());
    }

    #[test]
    fn a_set_that_is_taken_over_is_the_very_set() {
        let (one, two) = (snapshot(&[1, 2]), snapshot(&[3]));
        let taken = one.edit().share(&two, &TypeUrl::CLUSTER).build();
        assert!(Arc::ptr_eq(set(&taken), set(&two)));
        let dropped = one.edit().share(&Snapshot::default(), &TypeUrl::CLUSTER).build();
        assert!(dropped.get(&TypeUrl::CLUSTER).is_none());
        // What was inserted before is forgotten, what comes after is added.
        let mark = |name: &str| Cluster { name: name.into(), ..Default::default() };
        let before = one.edit().add(&mark("before")).unwrap().share(&two, &TypeUrl::CLUSTER).build();
        assert!(Arc::ptr_eq(set(&before), set(&two)));
        let after = one.edit().share(&two, &TypeUrl::CLUSTER).add(&mark("after")).unwrap().build();
        assert_eq!(set(&after).resources().len(), 2);
    }

    #[cfg(feature = "server")]
    #[test]
    fn groups_that_go_the_same_way_hold_one_set() {
        use crate::server::SnapshotCache;

        let cache = SnapshotCache::new();
        let first = snapshot(&[1, 2]);
        let next = first.edit().add(&Cluster { name: "0".into(), ..Default::default() }).unwrap().build();
        // The last one is made from the start, of nothing that is there already.
        let afresh = snapshot(&[0, 3]);
        for snapshot in [&first, &next, &afresh] {
            let sets = ["a", "b"].map(|group| cache.set(group, snapshot.clone()));
            assert!(Arc::ptr_eq(set(&sets[0]), set(&sets[1])));
        }
    }
}
