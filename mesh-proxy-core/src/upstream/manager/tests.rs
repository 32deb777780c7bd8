use super::*;
use crate::config::{Endpoint, Locality};

fn assignment(weight: u32) -> LoadAssignment {
    let endpoint = |n: u8| Endpoint { weight, ..Endpoint::new(([10, 0, 0, n], 80).into()) };
    let group = |zone: &str, priority: u32| LocalityEndpoints {
        locality: Locality { zone: zone.into(), ..Locality::default() },
        weight: 3,
        priority,
        endpoints: vec![endpoint(2 * priority as u8), endpoint(2 * priority as u8 + 1)],
    };
    LoadAssignment {
        localities: vec![group("a", 0), group("b", 1)],
        overprovisioning_factor: 200,
        ..LoadAssignment::new("eds", [])
    }
}

fn eds(name: &str, service: &str) -> Cluster {
    Cluster::new(name, Discovery::Eds { service_name: service.into() })
}

/// What a cluster has, as it was given.
fn held(manager: &ClusterManager, cluster: &str) -> LoadAssignment {
    manager.get(cluster).unwrap().assignment("eds")
}

#[test]
fn endpoints_outlive_the_clusters_that_have_them() {
    let (manager, stats) = (ClusterManager::default(), Stats::default());
    manager.apply_endpoints(assignment(1)).unwrap();
    manager.apply(eds("one", "eds"), &stats).unwrap();
    assert_eq!(held(&manager, "one"), assignment(1));
    // Another cluster of this service gets them, also when they changed meanwhile.
    manager.apply_endpoints(assignment(2)).unwrap();
    manager.apply(eds("two", "eds"), &stats).unwrap();
    assert_eq!(held(&manager, "one"), assignment(2));
    assert_eq!(held(&manager, "two"), assignment(2));
    // The last one goes, by removal and by another definition: they are there for the next.
    assert!(manager.remove("one", &stats));
    manager.apply(eds("two", "other"), &stats).unwrap();
    assert_eq!(manager.missing(), [Arc::from("other")]);
    manager.apply(eds("three", "eds"), &stats).unwrap();
    assert_eq!(held(&manager, "three"), assignment(2));
    assert!(manager.remove("three", &stats));
    manager.apply(eds("four", "eds"), &stats).unwrap();
    assert_eq!(held(&manager, "four"), assignment(2));
    // Until they are taken away.
    assert!(manager.remove_endpoints("eds"));
    assert!(manager.get("four").unwrap().hosts().all.is_empty());
    manager.apply(eds("five", "eds"), &stats).unwrap();
    assert_eq!(manager.missing(), [Arc::from("eds"), Arc::from("other")]);
    assert!(!manager.get("five").unwrap().warm.load(Relaxed));
}

#[test]
fn a_redefined_cluster_keeps_its_hosts() {
    let (manager, stats) = (ClusterManager::default(), Stats::default());
    manager.apply(eds("one", "eds"), &stats).unwrap();
    manager.apply_endpoints(assignment(1)).unwrap();
    let before = manager.get("one").unwrap().hosts().all.clone();
    let redefined = Cluster { panic_threshold: 0.0, ..eds("one", "eds") };
    manager.apply(redefined, &stats).unwrap();
    let after = manager.get("one").unwrap().hosts().all.clone();
    assert_eq!(before.len(), 4);
    assert!(before.iter().zip(&after).all(|(old, new)| Arc::ptr_eq(old, new)));
}
