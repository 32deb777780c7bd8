//! `startup`: from exec to ready with a certificate and the first configuration, and the memory this takes.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::compare::{free_port, get};
use crate::options::StartupOptions;
use crate::plane::Plane;
use crate::process::{Cpus, Running, pin};
use crate::report::median;

/// How long one start may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Idle time before resident memory is read.
const SETTLE: Duration = Duration::from_secs(1);

struct Start {
    ready_ms: f64,
    seen_ms: f64,
    rss_kib: u64,
    dumped_kib: u64,
}

/// Measures and prints.
pub(crate) fn run(options: &StartupOptions) -> anyhow::Result<()> {
    let cpus = Cpus::choose()?;
    pin(cpus.load)?;
    std::fs::create_dir_all(&options.out)?;
    let out = options.out.canonicalize()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = runtime.block_on(Box::pin(all(options, cpus, &out)))?;
    if options.json {
        println!("{}", Value::Array(rows));
        return Ok(());
    }
    println!("| services | endpoints each | ready_ms | exec to 200 seen, ms | idle MiB | after dump MiB |");
    println!("|---|---|---|---|---|---|");
    for row in rows {
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            row["services"],
            row["endpoints"],
            row["ready_ms"],
            row["seen_ms"],
            row["idle_mib"],
            row["dumped_mib"]
        );
    }
    Ok(())
}

async fn all(options: &StartupOptions, cpus: Cpus, out: &Path) -> anyhow::Result<Vec<Value>> {
    let plane = Plane::start(out).await?;
    let mut rows = Vec::new();
    for (services, endpoints) in [(5, 2), (options.services, options.endpoints)] {
        let mut starts = Vec::new();
        for _ in 0..options.runs {
            starts.push(once(&plane, services, endpoints, cpus, out).await?);
        }
        let middle =
            |f: &dyn Fn(&Start) -> f64| (median(starts.iter().map(f).collect()) * 10.0).round() / 10.0;
        rows.push(json!({
            "services": services,
            "endpoints": endpoints,
            "ready_ms": middle(&|s| s.ready_ms),
            "seen_ms": middle(&|s| s.seen_ms),
            "idle_mib": middle(&|s| s.rss_kib as f64 / 1024.0),
            "dumped_mib": middle(&|s| s.dumped_kib as f64 / 1024.0),
        }));
    }
    Ok(rows)
}

async fn once(
    plane: &Plane,
    services: usize,
    endpoints: usize,
    cpus: Cpus,
    out: &Path,
) -> anyhow::Result<Start> {
    let ports: Vec<SocketAddr> = (0..6).map(|_| free_port()).collect::<anyhow::Result<_>>()?;
    let [admin, status, health, metrics, outbound, inbound] = ports[..] else {
        bail!("six ports are needed")
    };
    plane.publish(services, endpoints, outbound, inbound)?;
    let discovery = format!("localhost:{}", plane.address.port());
    let config = json!({
        "discoveryAddress": discovery, "statusPort": status.port(), "proxyAdminPort": admin.port(),
    });
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["role", "mesh-sidecar", "proxy", "sidecar", "--domain", "bench.svc.cluster.local"])
        .env_clear()
        .envs([
            ("POD_NAME", "bench-0"),
            ("POD_NAMESPACE", "bench"),
            ("SERVICE_ACCOUNT", "default"),
            ("INSTANCE_IP", "127.0.0.1"),
            ("CA_ADDR", discovery.as_str()),
        ])
        .env("PROXY_CONFIG", config.to_string())
        .env("ISTIO_META_ENVOY_STATUS_PORT", health.port().to_string())
        .env("ISTIO_META_ENVOY_PROMETHEUS_PORT", metrics.port().to_string())
        .env("CA_ROOT_CA", &plane.root)
        .env("MESH_TOKEN_FILE", &plane.token)
        .env("MESH_POD_INFO_DIR", out);
    let log = out.join(format!("startup.{services}.log"));
    let start = Instant::now();
    let mut process = Running::start(command, cpus, &log)?;
    let seen = loop {
        process.check()?;
        if get(health, "/healthz/ready").await.is_ok() {
            break start.elapsed();
        }
        if start.elapsed() > DEADLINE {
            bail!("not ready within {DEADLINE:?}; see {}", log.display());
        }
        sleep(Duration::from_millis(1)).await;
    };
    let info: Value = serde_json::from_str(&get(admin, "/server_info").await?)?;
    sleep(SETTLE).await;
    let rss_kib = process.rss_kib()?;
    get(admin, "/config_dump?include_eds").await?;
    sleep(SETTLE).await;
    Ok(Start {
        ready_ms: info["ready_ms"].as_f64().context("no ready_ms")?,
        seen_ms: seen.as_secs_f64() * 1e3,
        rss_kib,
        dumped_kib: process.rss_kib()?,
    })
}
