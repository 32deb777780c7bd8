//! The two examples: short, and they do what they say.

use std::path::PathBuf;

use libtest_mimic::Failed;
use mesh_xds::TypeUrl;
use mesh_xds::json::from_yaml;
use mesh_xds::pb::envoy::config::cluster::v3::Cluster;
use mesh_xds::server::{Snapshot, SnapshotCache, SyncState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, Process, Server, backend, free_port, until};

/// Cargo builds the examples before it runs the tests of a package, beside the directory of the tests.
fn program(name: &str) -> Result<PathBuf, Failed> {
    let test = std::env::current_exe()?;
    let program = test.ancestors().nth(2).ok_or("the test is in no folder")?.join("examples").join(name);
    if program.exists() { Ok(program) } else { Err(format!("{name} is built by `cargo test`").into()) }
}

/// Whether the backend's answer comes back; plain TCP, so nobody closes the connection after it.
async fn answers(port: u16) -> bool {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: peer\r\n\r\n").await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nexample") {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok::<_, std::io::Error>(())
    };
    tokio::time::timeout(PATIENCE, exchange).await.is_ok_and(|result| result.is_ok())
}

/// Forty lines each, comments included.
pub(crate) fn are_short() -> Result<(), Failed> {
    let texts = [
        ("control_plane", include_str!("../../examples/control_plane.rs")),
        ("watch", include_str!("../../examples/watch.rs")),
    ];
    for (name, text) in texts {
        let lines = text.lines().count();
        println!("{name}: {lines} lines");
        if lines > 40 {
            return Err(format!("{name} has {lines} lines").into());
        }
    }
    Ok(())
}

/// The `envoy.yaml` that the crate's README tells people to write.
fn readme_bootstrap(xds: u16) -> Result<String, Failed> {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```yaml\n").ok_or("the README has no YAML")?;
    let (text, _) = rest.split_once("```").ok_or("it does not end")?;
    let config = text.replace("port_value: 18000", &format!("port_value: {xds}"));
    if config == text { Err("the README's Envoy asks another port".into()) } else { Ok(config) }
}

/// A real Envoy, started as the README says, serves what the example's control plane says, and the other example sees its cluster.
pub(crate) async fn control_plane(path: PathBuf) -> Result<(), Failed> {
    let backend = backend("example").await?;
    let (xds, web) = (free_port().await?, free_port().await?);
    let (listen, to, from) = (format!("127.0.0.1:{xds}"), backend.to_string(), web.to_string());
    let plane = Process::start(&program("control_plane")?, &[&listen, &to, &from], &[])?;
    let config = readme_bootstrap(xds)?;
    let args = ["-c", "envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"];
    let envoy = Process::start(&path, &args, &[("envoy.yaml", &config)])?;
    let served = until("Envoy serves the example's cluster", || answers(web)).await;
    served.map_err(|e| format!("{}\n{}\n{}", e.message().unwrap_or(""), plane.output(), envoy.output()))?;

    let watch = Process::start(&program("watch")?, &[&format!("http://{listen}")], &[])?;
    let seen =
        until("the cluster is printed", || async { watch.output().contains("+ backend (version ") }).await;
    seen.map_err(|e| format!("{}\n{}", e.message().unwrap_or(""), watch.output()).into())
}

fn clusters(names: &[&str]) -> Result<Snapshot, Failed> {
    names
        .iter()
        .try_fold(Snapshot::builder(), |builder, name| {
            // What is called "bare" has no timeout, which the example insists on.
            let timeout = if *name == "bare" { "" } else { ", connect_timeout: 1s" };
            let cluster = from_yaml::<Cluster>(&format!("{{ name: {name}{timeout} }}"))?;
            Ok::<_, Failed>(builder.add(&cluster)?)
        })
        .map(|builder| builder.build())
}

/// Every change is printed: what is new, what is gone, and nothing twice; what the example refuses we hear of.
pub(crate) async fn watch() -> Result<(), Failed> {
    let cache = SnapshotCache::new();
    cache.set("all", clusters(&["one", "two"])?);
    let server = Server::start(cache.clone(), 0).await?;
    let uri = format!("http://127.0.0.1:{}", server.port);
    let watch = Process::start(&program("watch")?, &[&uri], &[])?;
    let printed = |lines: &'static [&'static str]| {
        let output = watch.output();
        let said: Vec<&str> =
            output.lines().map(|line| line.split(" (").next().unwrap_or_default()).collect();
        let same = said == lines;
        async move { same }
    };
    until("two clusters are printed", || printed(&["+ one", "+ two"])).await?;
    cache.set("all", clusters(&["one", "three"])?);
    until("one comes, one goes", || printed(&["+ one", "+ two", "+ three", "- two"])).await?;
    cache.set("all", clusters(&["one", "bare"])?);
    let refused = || async {
        let status = server.ads.clients().last().and_then(|c| c.types.get(&TypeUrl::CLUSTER).cloned());
        let error = status.filter(|s| s.state() == SyncState::Error).and_then(|s| s.error);
        error.is_some_and(|nack| nack.message == "bare: this example insists on a connect timeout")
    };
    until("the example refuses a cluster", refused).await
}
