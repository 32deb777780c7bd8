use std::time::UNIX_EPOCH;

use super::*;
use crate::config::Direction;

fn render(format: &str, json: bool) -> String {
    let connection = ConnectionInfo {
        id: 7,
        direction: Direction::Inbound,
        listener: "l".into(),
        chain: "c".into(),
        local: "10.0.0.1:80".parse().unwrap(),
        peer: "[::1]:4000".parse().unwrap(),
        server_name: None,
        tls: None,
        start: tokio::time::Instant::now(),
        peer_key: None,
    };
    let mut captures = Captures::default();
    let compiled = Format::compile(format, &mut captures).unwrap();
    let head = http::Request::get("/a?b")
        .header("host", "app")
        .header("x-long", "0123456789")
        .header("x-bad", "a\tb")
        .body(())
        .unwrap()
        .into_parts()
        .0;
    let mut captured = Captured { version: Some(Version::HTTP_11), ..Captured::default() };
    captured.request(&head, &captures);
    captured.response(&HeaderMap::new(), &captures);
    let record = Record {
        start_time: UNIX_EPOCH + Duration::from_millis(1_460_751_420_310),
        client: connection.peer.ip(),
        duration: Duration::from_micros(12_900),
        response_duration: None,
        connection: &connection,
        captured: Some(&captured),
        status: 503,
        flags: ResponseFlags::RETRY_LIMIT.union(ResponseFlags::UPSTREAM_CONNECTION_FAILURE),
        details: Some("a b"),
        termination: None,
        received: 0,
        sent: 1234567,
        upstream: &UpstreamInfo::default(),
        route: Some(""),
        metadata: &[],
    };
    let mut out = Vec::new();
    if json {
        Form::Json(vec![("k\"".replace('"', "\\\"").into(), compiled)]).render(&mut out, &record);
    } else {
        compiled.render(&mut out, &record);
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn operators_print_as_envoy_prints_them() {
    for (format, expected) in [
        ("[%START_TIME%]", "[2016-04-15T20:17:00.310Z]"),
        ("%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%", "GET /a?b HTTP/1.1"),
        ("%REQ(X-LONG):4% %REQ(X-NONE)% %REQ(X-BAD)%", "0123 - a b"),
        ("%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%", "503 UF,URX a_b"),
        ("%BYTES_RECEIVED% %BYTES_SENT% %DURATION%", "0 1234567 12"),
        ("%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS%", "10.0.0.1:80 [::1]:4000"),
        ("%UPSTREAM_HOST% %ROUTE_NAME% %REQ(:AUTHORITY)% 100%%", "- - app 100%"),
    ] {
        assert_eq!(render(format, false), expected, "{format}");
    }
}

#[test]
fn json_keeps_numbers_and_marks_missing_values() {
    assert_eq!(render("%BYTES_SENT%", true), "{\"k\\\"\":1234567}\n");
    assert_eq!(render("%UPSTREAM_HOST%", true), "{\"k\\\"\":null}\n");
    assert_eq!(render("\"%PROTOCOL%\"", true), "{\"k\\\"\":\"\\\"HTTP/1.1\\\"\"}\n");
}

#[test]
fn an_unknown_operator_is_refused() {
    for bad in ["%NOPE%", "%REQ(%", "%START_TIME", "%REQ(a b)%", "%REQ(A):x%"] {
        assert!(Format::compile(bad, &mut Captures::default()).is_err(), "{bad}");
    }
    assert!(Format::compile(DEFAULT, &mut Captures::default()).is_ok());
}
