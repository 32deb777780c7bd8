use super::*;
use crate::config::{HeaderMatch, HeaderMatcher, QueryMatch, QueryMatcher, Regex, StringMatcher};

fn worker() -> Arc<Worker> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    Worker::current(0, 1)
}

fn table(hosts: &[&[&str]]) -> Result<RouteTable, ConfigError> {
    let host = |(i, domains): (usize, &&[&str])| VirtualHost {
        name: i.to_string().into(),
        domains: domains.iter().map(|d| Arc::from(*d)).collect(),
        routes: vec![Arc::new(Route::forward("/", "c"))],
        ..VirtualHost::default()
    };
    RouteTable::compile(Arc::new(RouteConfiguration {
        name: "t".into(),
        virtual_hosts: hosts.iter().enumerate().map(host).collect(),
        ignore_port_in_host_matching: true,
        ..RouteConfiguration::default()
    }))
}

fn head(uri: &str, headers: &[(&'static str, &str)]) -> request::Parts {
    let mut request = http::Request::get(uri).body(()).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request.into_parts().0
}

#[test]
fn hosts_match_exactly_then_by_longest_suffix_then_prefix_then_any() {
    let table =
        table(&[&["*"], &["*.com"], &["*.b.com"], &["a.b.com"], &["a.*"], &["[::1]", "10.0.0.1"]]).unwrap();
    let find = |host| table.find_host(host);
    assert_eq!(find("a.b.com"), Some(3));
    assert_eq!(find("A.B.COM:8080"), Some(3));
    assert_eq!(find("a.b.com."), Some(3));
    assert_eq!(find("x.b.com"), Some(2));
    assert_eq!(find("b.com"), Some(1));
    assert_eq!(find("a.org"), Some(4));
    assert_eq!(find("[::1]:80"), Some(5));
    assert_eq!(find("10.0.0.1:80"), Some(5));
    assert_eq!(find("other"), Some(0));
    assert_eq!(find(""), Some(0));
}

#[test]
fn a_domain_may_appear_once() {
    for twice in [["a", "A"], ["*", "*"], ["*.x", "*.x"], ["x.*", "x.*"]] {
        assert!(table(&[&[twice[0]], &[twice[1]]]).is_err(), "{twice:?}");
    }
}

#[test]
fn every_criterion_must_hold() {
    let worker = worker();
    let check = |m: &RouteMatch, head: &request::Parts| matches(m, head, head.uri.path(), &worker);
    let path = |path| RouteMatch { path, ..RouteMatch::default() };
    let prefix = path(PathMatch::Prefix("/foo".into()));
    assert!(check(&prefix, &head("/foobar?x", &[])));
    assert!(!check(&prefix, &head("/Foo", &[])));
    assert!(check(&RouteMatch { case_sensitive: false, ..prefix }, &head("/Foo", &[])));
    let separated = path(PathMatch::PathSeparatedPrefix("/foo".into()));
    assert!(check(&separated, &head("/foo/bar", &[])) && !check(&separated, &head("/foobar", &[])));
    let regex = path(PathMatch::Regex(Regex::new("/a+").unwrap()));
    assert!(check(&regex, &head("/aa?q", &[])) && !check(&regex, &head("/aab", &[])));
    let with = RouteMatch {
        headers: vec![HeaderMatcher {
            name: "x-user".into(),
            value: HeaderMatch::Value(StringMatcher::exact("jo")),
            invert: false,
            missing_as_empty: false,
        }],
        query: vec![QueryMatcher { name: "v".into(), value: QueryMatch::Value(StringMatcher::prefix("1")) }],
        ..RouteMatch::default()
    };
    assert!(check(&with, &head("/?a&v=12", &[("x-user", "jo")])));
    assert!(!check(&with, &head("/?v=2", &[("x-user", "jo")])));
    assert!(!check(&with, &head("/?v=1", &[])));
}
