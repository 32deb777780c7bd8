//! An Envoy that takes its certificates from our SDS server and completes mutual TLS with a client of ours.

use std::{process::Stdio, sync::Arc, time::Duration};

use libtest_mimic::Trial;
use mesh_identity::{Authorizer, Identity, WallClock, client_config, sds::SdsServer, tls::ConnectionFacts};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};
use tokio_rustls::TlsConnector;

use crate::support::{CART, Outcome, WEB, id, identity, new_ca, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("envoy::takes_its_certificates_from_us", envoy().is_some(), takes_certificates)]
}

fn envoy() -> Option<std::path::PathBuf> {
    let named = std::env::var_os("MESH_ENVOY").map(std::path::PathBuf::from);
    named.filter(|path| path.is_file()).or_else(|| {
        std::env::split_paths(&std::env::var_os("PATH")?).map(|p| p.join("envoy")).find(|path| path.is_file())
    })
}

fn bootstrap(socket: &str, admin: &str, port: u16) -> String {
    let sds = |name: &str| {
        format!(
            "{{name: {name}, sds_config: {{resource_api_version: V3, api_config_source: {{api_type: GRPC, \
             transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: sds}}}}]}}}}}}"
        )
    };
    format!(
        r#"
node: {{id: test, cluster: test}}
admin: {{address: {{pipe: {{path: {admin}}}}}}}
static_resources:
  listeners:
  - name: in
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: "/"}}, direct_response: {{status: 200, body: {{inline_string: "%DOWNSTREAM_PEER_URI_SAN%"}}}}}}]}}
            response_headers_to_add: [{{header: {{key: x-peer, value: "%DOWNSTREAM_PEER_URI_SAN%"}}}}]
          http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
      transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_params: {{tls_minimum_protocol_version: TLSv1_3}}
            tls_certificate_sds_secret_configs: [{certificate}]
            validation_context_sds_secret_config: {roots}
  clusters:
  - name: sds
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: sds
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: {socket}}}}}}}}}]}}]
"#,
        certificate = sds("default"),
        roots = sds("ROOTCA"),
    )
}

async fn takes_certificates() -> Outcome {
    let ca = new_ca();
    let (publisher, envoys) = Identity::channel(WallClock::system());
    let renew = || {
        let credential = ca.issue_svid(&id(CART), None)?;
        let serial = credential.serial().to_owned();
        publisher.publish(Some(Arc::new(credential)), ca.bundle_set());
        Ok::<_, Box<dyn std::error::Error>>(serial)
    };
    let first = renew()?;
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name).display().to_string();
    let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(directory.path())?);
    let server = SdsServer::new(envoys, uid);
    let socket = path("sds.sock");
    tokio::spawn(async move { server.serve(socket).await });

    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    std::fs::write(path("envoy.yaml"), bootstrap(&path("sds.sock"), &path("admin.sock"), port))?;
    let log = std::fs::File::create(path("envoy.log"))?;
    let mut process = Command::new(envoy().ok_or("no envoy")?)
        .args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "warn", "-c"])
        .arg(path("envoy.yaml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;

    let config = client_config(&identity(&ca, WEB), Authorizer::exact(id(CART)))?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(40);
    let mut serial = first;
    for round in 0..3 {
        // Envoy loads its secrets in its own time: ask until it presents this certificate.
        loop {
            let outcome = ask(&config, port).await;
            if outcome.as_ref().is_ok_and(|(seen, _)| *seen == serial) {
                assert!(outcome?.1.contains(&format!("x-peer: {WEB}")));
                break;
            }
            if let Some(status) = process.try_wait()? {
                return Err(format!(
                    "envoy ended: {status}: {}",
                    std::fs::read_to_string(path("envoy.log"))?
                )
                .into());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(format!("{outcome:?}: {}", std::fs::read_to_string(path("envoy.log"))?).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if round < 2 {
            serial = renew()?;
        }
    }
    process.kill().await?;
    Ok(())
}

/// One request; returns the serial of Envoy's certificate and the answer.
async fn ask(config: &Arc<rustls::ClientConfig>, port: u16) -> Result<(String, String), String> {
    let exchange = async {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        let name = ServerName::try_from("cart.shop").map_err(std::io::Error::other)?;
        let mut stream = TlsConnector::from(config.clone()).connect(name, tcp).await?;
        let facts = ConnectionFacts::of(stream.get_ref().1);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let serial = facts.peer.map(|peer| peer.serial).unwrap_or_default();
        Ok::<_, std::io::Error>((serial, String::from_utf8_lossy(&answer).into_owned()))
    };
    exchange.await.map_err(|error| error.to_string())
}
