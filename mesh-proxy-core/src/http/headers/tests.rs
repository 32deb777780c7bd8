use super::*;
use crate::config::{HttpConnectionManager, RouteSource};

fn forwarded(lines: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append(names::FORWARDED_FOR, line.parse().unwrap());
    }
    headers
}

#[test]
fn the_clients_address_is_counted_from_the_trusted_end() {
    let peer: IpAddr = "10.0.0.9".parse().unwrap();
    let lines = &["1.1.1.1, 2.2.2.2", "3.3.3.3"];
    for (own, hops, expected) in [
        (true, 0, "10.0.0.9"),
        (true, 1, "3.3.3.3"),
        (true, 2, "2.2.2.2"),
        (true, 4, "10.0.0.9"),
        (false, 0, "3.3.3.3"),
        (false, 1, "2.2.2.2"),
        (false, 2, "1.1.1.1"),
        (false, 3, "10.0.0.9"),
    ] {
        let found = client_address(&forwarded(lines), own, hops, peer);
        assert_eq!(found, expected.parse::<IpAddr>().unwrap(), "{own} {hops}");
    }
    for odd in ["", "unknown", "1.1.1.1:80", "1.1.1.1;2.2.2.2"] {
        assert_eq!(client_address(&forwarded(&[odd]), false, 0, peer), peer, "{odd}");
    }
    assert_eq!(client_address(&HeaderMap::new(), false, 0, peer), peer);
}

#[test]
fn every_line_of_a_list_is_kept_when_something_is_appended() {
    let mut headers = forwarded(&["1.1.1.1", "2.2.2.2"]);
    append_forwarded_for(&mut headers, "3.3.3.3".parse().unwrap());
    let all: Vec<_> = headers.get_all(names::FORWARDED_FOR).iter().collect();
    assert_eq!(all, ["1.1.1.1,2.2.2.2,3.3.3.3"]);
}

#[test]
fn hosts_lose_what_they_shall_lose() {
    let config = |strip_host_port, strip_trailing_host_dot| HttpConnectionManager {
        strip_host_port,
        strip_trailing_host_dot,
        ..HttpConnectionManager::new("test", RouteSource::Rds("r".into()))
    };
    for (host, port, dot, expected) in [
        ("a.b:80", StripHostPort::Matching, false, Some("a.b")),
        ("a.b:81", StripHostPort::Matching, false, None),
        ("a.b:81", StripHostPort::Any, false, Some("a.b")),
        ("a.b.:81", StripHostPort::Any, true, Some("a.b")),
        ("a.b.:81", StripHostPort::Keep, true, Some("a.b:81")),
        ("a.b.", StripHostPort::Keep, true, Some("a.b")),
        ("[::1]:80", StripHostPort::Any, true, Some("[::1]")),
        ("[::1]", StripHostPort::Any, true, None),
        ("a.b", StripHostPort::Any, true, None),
        ("", StripHostPort::Any, true, None),
    ] {
        assert_eq!(stripped_host(host, &config(port, dot), 80).as_deref(), expected, "{host}");
    }
}

#[test]
fn a_name_in_a_certificate_cannot_forge_an_element() {
    let peer = PeerCertificate {
        uri_sans: vec!["spiffe://td/a,By=x;URI=spiffe://td/b".into()],
        dns_sans: vec!["plain.example".into()],
        subject: "CN=a\"b".into(),
        sha256: "00".into(),
        ..PeerCertificate::default()
    };
    let tls = TlsSession { peer: Some(std::sync::Arc::new(peer)), ..TlsSession::default() };
    let details = SetClientCertDetails { subject: true, dns: true, uri: true };
    assert_eq!(
        client_cert_element(&tls, details).unwrap(),
        "Hash=00;Subject=\"CN=a\\\"b\";URI=\"spiffe://td/a,By=x;URI=spiffe://td/b\";DNS=plain.example"
    );
}
