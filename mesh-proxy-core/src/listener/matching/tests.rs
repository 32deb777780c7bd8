use super::*;
use crate::config::{FilterChain, NetworkFilter, TcpProxy};

fn chain(matches: FilterChainMatch) -> FilterChain {
    let mut chain = FilterChain::new("", vec![NetworkFilter::TcpProxy(TcpProxy::new("t", "c"))]);
    chain.matches = matches;
    chain
}

fn names(all: &[&str]) -> Vec<Arc<str>> {
    all.iter().map(|n| Arc::from(*n)).collect()
}

fn facts(port: u16) -> Facts<'static> {
    Facts {
        destination_ip: [10, 0, 0, 1].into(),
        destination_port: port,
        server_name: "",
        transport: TransportProtocol::RawBuffer,
        application_protocols: &[],
        source_ip: [10, 0, 0, 9].into(),
        source_port: 4000,
    }
}

fn matcher(all: Vec<FilterChainMatch>) -> ChainMatcher {
    ChainMatcher::compile(&all.into_iter().map(chain).collect::<Vec<_>>()).unwrap()
}

#[test]
fn a_narrowed_stage_is_never_left_again() {
    let matcher = matcher(vec![
        FilterChainMatch::default(),
        FilterChainMatch {
            destination_port: Some(80),
            transport_protocol: Some(TransportProtocol::Tls),
            ..FilterChainMatch::default()
        },
    ]);
    // Port 80 narrows to the second chain; that it then fails on the transport does not bring the first one back.
    assert_eq!(matcher.choose(&facts(80)), None);
    assert_eq!(matcher.choose(&facts(81)), Some(0));
    let tls = Facts { transport: TransportProtocol::Tls, ..facts(80) };
    assert_eq!(matcher.choose(&tls), Some(1));
}

#[test]
fn the_most_specific_address_and_name_win() {
    let nets = |text: &str| vec![text.parse().unwrap()];
    let by_address = matcher(vec![
        FilterChainMatch { prefix_ranges: nets("10.0.0.0/8"), ..FilterChainMatch::default() },
        FilterChainMatch { prefix_ranges: nets("10.0.0.0/24"), ..FilterChainMatch::default() },
    ]);
    assert_eq!(by_address.choose(&facts(80)), Some(1));
    let by_name = matcher(vec![
        FilterChainMatch { server_names: names(&["*.com"]), ..FilterChainMatch::default() },
        FilterChainMatch { server_names: names(&["*.example.com"]), ..FilterChainMatch::default() },
        FilterChainMatch { server_names: names(&["a.example.com"]), ..FilterChainMatch::default() },
    ]);
    let named = |name| by_name.choose(&Facts { server_name: name, ..facts(443) });
    assert_eq!(named("a.example.com"), Some(2));
    assert_eq!(named("b.example.com"), Some(1));
    assert_eq!(named("example.com"), Some(0));
    assert_eq!(named("example.org"), None);
}

#[test]
fn the_clients_first_protocol_that_any_chain_names_wins() {
    let matcher = matcher(vec![
        FilterChainMatch { application_protocols: names(&["b"]), ..FilterChainMatch::default() },
        FilterChainMatch { application_protocols: names(&["a"]), ..FilterChainMatch::default() },
        FilterChainMatch::default(),
    ]);
    let offer = |all: &[&str]| {
        let all = names(all);
        matcher.choose(&Facts { application_protocols: &all, ..facts(443) })
    };
    assert_eq!(offer(&["x", "a", "b"]), Some(1));
    assert_eq!(offer(&["b", "a"]), Some(0));
    assert_eq!(offer(&["x"]), Some(2));
    assert_eq!(offer(&[]), Some(2));
}

#[test]
fn source_criteria_are_looked_at() {
    let matcher = matcher(vec![
        FilterChainMatch { source_type: SourceType::SameIpOrLoopback, ..FilterChainMatch::default() },
        FilterChainMatch {
            source_type: SourceType::External,
            source_ports: vec![4000],
            ..Default::default()
        },
    ]);
    assert_eq!(matcher.choose(&facts(80)), Some(1));
    let local = Facts { source_ip: [127, 0, 0, 1].into(), ..facts(80) };
    assert_eq!(matcher.choose(&local), Some(0));
    let other_port = Facts { source_port: 1, ..facts(80) };
    assert_eq!(matcher.choose(&other_port), None);
}

#[test]
fn two_chains_with_the_same_criteria_are_refused() {
    let same = [chain(FilterChainMatch::default()), chain(FilterChainMatch::default())];
    assert_eq!(ChainMatcher::compile(&same).unwrap_err().reason(), "invalid");
}
