//! HAProxy, alone, HTTP/1.1.

use std::fmt::Write;

use super::Setup;
use crate::load::ROUTES;

/// The configuration file. Its access log goes to standard output, which the bench connects to a file.
pub(crate) fn config(setup: &Setup<'_>) -> String {
    let mut out = format!(
        "global
    nbthread 1
    maxconn 4096
    log stdout format raw local0 info
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    log global
    option http-keep-alive
    http-reuse always
    log-format \"[%trl] \\\"%HM %HP %HV\\\" %ST %tsc - - \\\"-\\\" %U %B %Ta %Tr \\\"-\\\" \\\"%[capture.req.hdr(0)]\\\" \
\\\"%ID\\\" \\\"%[capture.req.hdr(1)]\\\" \\\"%si:%sp\\\" %b %bi:%bp %fi:%fp %ci:%cp - %f\"
    unique-id-format %{{+X}}o%ci:%cp_%fi:%fp_%Ts_%rt:%pid
frontend bench
    bind {}
    unique-id-header x-request-id
    capture request header user-agent len 64
    capture request header host len 64
    option forwardfor
",
        setup.listen
    );
    for route in 0..ROUTES {
        let _infallible = writeln!(out, "    use_backend b{route:02} if {{ path_beg /r{route:02}/ }}");
    }
    for route in 0..ROUTES {
        let _infallible = writeln!(out, "backend b{route:02}\n    server s {}", setup.upstream);
    }
    out
}
