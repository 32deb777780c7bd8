//! Envoy's static bootstrap: read by Envoy and by us, the very same text.

use std::fmt::Write;
use std::net::SocketAddr;

use super::{Place, Setup};
use crate::certs::{CLIENT_ID, SERVER_ID};
use crate::load::ROUTES;

/// Istio's text access log.
const ACCESS_LOG: &str = r#"[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"#;

/// The bootstrap of one proxy.
pub(crate) fn bootstrap(setup: &Setup<'_>) -> String {
    let filter = if setup.scenario.is_http() { http_filter(setup) } else { tcp_filter(setup) };
    let (downstream, upstream) = match setup.place {
        Place::Alone => (String::new(), String::new()),
        Place::Client => (String::new(), upstream_tls(setup)),
        Place::Server => (downstream_tls(setup), String::new()),
    };
    format!(
        "admin:
  address: {admin}
static_resources:
  listeners:
  - name: bench
    address: {listen}
    filter_chains:
    - filters:
{filter}{downstream}  clusters:
  - name: backend
    type: STATIC
    connect_timeout: 5s
    lb_policy: LEAST_REQUEST
    circuit_breakers:
      thresholds:
      - max_connections: 4294967295
        max_pending_requests: 4294967295
        max_requests: 4294967295
        max_retries: 4294967295
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint:
            address: {backend}
{upstream}",
        admin = address(setup.admin),
        listen = address(setup.listen),
        backend = address(setup.upstream),
    )
}

fn address(address: SocketAddr) -> String {
    format!("{{ socket_address: {{ address: {}, port_value: {} }} }}", address.ip(), address.port())
}

fn access_log(setup: &Setup<'_>) -> String {
    format!(
        "          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {}
              log_format: {{ text_format_source: {{ inline_string: \"{ACCESS_LOG}\" }} }}
",
        setup.access_log().display()
    )
}

fn http_filter(setup: &Setup<'_>) -> String {
    let mut out = format!(
        "      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          codec_type: AUTO
          generate_request_id: true
          normalize_path: true
          stream_idle_timeout: 0s
{}          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            name: bench
            virtual_hosts:
            - name: bench
              domains: [\"*\"]
              routes:
",
        access_log(setup)
    );
    for route in 0..ROUTES {
        let _infallible = writeln!(
            out,
            "              - {{ name: route-{route}, match: {{ prefix: \"/r{route:02}/\" }}, \
             route: {{ cluster: backend, timeout: 0s }} }}"
        );
    }
    out
}

fn tcp_filter(setup: &Setup<'_>) -> String {
    format!(
        "      - name: envoy.filters.network.tcp_proxy
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: bench
          cluster: backend
{}",
        access_log(setup)
    )
}

/// Certificate, key and the peer's only accepted identity, indented by `indent`.
fn common_tls(setup: &Setup<'_>, indent: &str) -> String {
    let ((chain, key), peer) = match setup.place {
        Place::Server => (&setup.certs.server, CLIENT_ID),
        _ => (&setup.certs.client, SERVER_ID),
    };
    let alpn = if setup.scenario.is_http() { "[http/1.1]" } else { "[istio]" };
    format!(
        "{indent}common_tls_context:
{indent}  alpn_protocols: {alpn}
{indent}  tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }}
{indent}  tls_certificates:
{indent}  - certificate_chain: {{ filename: {chain} }}
{indent}    private_key: {{ filename: {key} }}
{indent}  validation_context:
{indent}    trusted_ca: {{ filename: {root} }}
{indent}    match_typed_subject_alt_names:
{indent}    - {{ san_type: URI, matcher: {{ exact: \"{peer}\" }} }}
",
        chain = chain.display(),
        key = key.display(),
        root = setup.certs.root.display(),
    )
}

fn downstream_tls(setup: &Setup<'_>) -> String {
    format!(
        "      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
{}",
        common_tls(setup, "          ")
    )
}

fn upstream_tls(setup: &Setup<'_>) -> String {
    format!(
        "    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: outbound_.80_._.bench.example
{}",
        common_tls(setup, "        ")
    )
}
