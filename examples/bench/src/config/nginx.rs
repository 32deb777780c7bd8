//! nginx, alone, HTTP/1.1.

use std::fmt::Write;

use super::Setup;
use crate::load::ROUTES;

/// The configuration file: one process, keep-alive on both sides.
pub(crate) fn config(setup: &Setup<'_>) -> String {
    let dir = setup.dir.display();
    let log = setup.access_log();
    let mut out = format!(
        "daemon off;
master_process off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/nginx.error.log;
events {{ worker_connections 4096; }}
http {{
    log_format bench '[$time_iso8601] \"$request_method $request_uri $server_protocol\" $status - - - \"-\" '
                     '$request_length $body_bytes_sent $request_time $upstream_response_time \"-\" '
                     '\"$http_user_agent\" \"$request_id\" \"$http_host\" \"$upstream_addr\" backend - '
                     '$server_addr:$server_port $remote_addr:$remote_port - -';
    access_log {log} bench buffer=64k flush=1s;
    client_body_temp_path {dir}/nginx-body;
    proxy_temp_path {dir}/nginx-proxy;
    fastcgi_temp_path {dir}/nginx-fastcgi;
    uwsgi_temp_path {dir}/nginx-uwsgi;
    scgi_temp_path {dir}/nginx-scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    upstream backend {{
        server {upstream};
        keepalive 256;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen {listen};
        location / {{ return 404; }}
",
        log = log.display(),
        upstream = setup.upstream,
        listen = setup.listen,
    );
    for route in 0..ROUTES {
        let _infallible = writeln!(
            out,
            "        location /r{route:02}/ {{ proxy_pass http://backend; proxy_http_version 1.1; \
             proxy_set_header Connection \"\"; proxy_set_header Host $host; \
             proxy_set_header X-Request-Id $request_id; }}"
        );
    }
    out.push_str("    }\n}\n");
    out
}
