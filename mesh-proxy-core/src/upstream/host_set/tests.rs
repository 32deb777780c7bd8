use super::*;
use crate::config::{Endpoint, Locality, TransportSocket};

fn hosts(level: u32, healthy: usize, unhealthy: usize) -> LocalityHosts {
    let host = |n: usize, health| {
        let address = ([10, level as u8, 0, n as u8], 80).into();
        let endpoint = Endpoint { health, ..Endpoint::new(address) };
        Arc::new(Host::new(endpoint, Arc::<Locality>::default(), level, TransportSocket::Raw, 0))
    };
    let mut all: Vec<_> = (0..healthy).map(|n| host(n, EndpointHealth::Healthy)).collect();
    all.extend((0..unhealthy).map(|n| host(100 + n, EndpointHealth::Unhealthy)));
    LocalityHosts { locality: Arc::default(), hosts: all, weight: 1, priority: level }
}

fn set(levels: &[(usize, usize)], panic: f64) -> HostSet {
    let localities: Vec<_> = (0..).zip(levels).map(|(level, (h, u))| hosts(level, *h, *u)).collect();
    HostSet::build(&localities, 140, panic, false)
}

#[test]
fn traffic_spills_over_as_health_falls() {
    assert_eq!(set(&[(10, 0), (10, 0)], 50.0).loads, [100, 0]);
    // 72 % healthy still counts as 100 % with the factor of 1.4.
    assert_eq!(set(&[(72, 28), (10, 0)], 50.0).loads, [100, 0]);
    assert_eq!(set(&[(5, 5), (10, 0)], 50.0).loads, [70, 30]);
    assert_eq!(set(&[(0, 10), (10, 0)], 50.0).loads, [0, 100]);
    // Both together carry less than everything: normalised.
    let loads = set(&[(1, 4), (1, 4)], 0.0).loads;
    assert_eq!((loads[0] + loads[1], loads[0]), (100, 50));
}

#[test]
fn panic_ignores_health_only_below_the_threshold() {
    assert_eq!(set(&[(3, 7)], 50.0).panic, [true]);
    assert_eq!(set(&[(6, 4)], 50.0).panic, [false]);
    assert_eq!(set(&[(0, 10)], 0.0).panic, [false], "threshold 0 never panics");
    assert_eq!(set(&[(0, 10), (10, 0)], 50.0).panic, [false, false], "the other priority takes over");
    let first = |bound: u64| bound - 1;
    assert!(set(&[(0, 10)], 0.0).group(&first, &|_| false).is_none_or(|g| g.hosts.is_empty()));
    assert_eq!(set(&[(0, 10)], 50.0).group(&first, &|_| false).map(|g| g.hosts.len()), Some(10));
}

#[test]
fn weights_divide_exactly() {
    let mut locality = hosts(0, 0, 0);
    for (n, weight) in [1_u32, 3].into_iter().enumerate() {
        let endpoint = Endpoint { weight, ..Endpoint::new(([10, 0, 0, n as u8], 80).into()) };
        locality.hosts.push(Arc::new(Host::new(
            endpoint,
            Arc::<Locality>::default(),
            0,
            TransportSocket::Raw,
            0,
        )));
    }
    let set = HostSet::build(&[locality], 140, 50.0, false);
    let group = set.group(&|_| 0, &|_| false).unwrap();
    let picks: Vec<u32> = (0..4).map(|point| group.by_weight(|_| point).unwrap().endpoint.weight).collect();
    assert_eq!(picks, [1, 3, 3, 3]);
}
