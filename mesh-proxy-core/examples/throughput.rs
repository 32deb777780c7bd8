//! Measures the HTTP/1.1 path: CPU time per request of one worker with 50 routes, an access log and statistics.
//!
//! `cargo run --release -p mesh-proxy-core --example throughput -- [SECONDS] [CONNECTIONS]`
//!
//! Clients and the upstream are threads of this process; only the worker's thread is counted.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use mesh_proxy_core::{Proxy, config::*};

const BODY: usize = 109;

/// Answers every request on a connection.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let reply = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\ncontent-type: text/plain\r\n\r\n{}",
        "x".repeat(BODY)
    );
    let mut buffer = [0; 8192];
    let mut filled = 0;
    stream.set_nodelay(true)?;
    loop {
        let n = stream.read(&mut buffer[filled..])?;
        if n == 0 {
            return Ok(());
        }
        filled += n;
        while let Some(end) = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n") {
            buffer.copy_within(end + 4..filled, 0);
            filled -= end + 4;
            stream.write_all(reply.as_bytes())?;
        }
    }
}

/// Sends requests one after another until told to stop.
fn load(to: SocketAddr, done: &AtomicBool, count: &AtomicU64) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let request = b"GET /route-40/item?id=7 HTTP/1.1\r\nhost: reviews:9080\r\nuser-agent: load/1.0\r\naccept: */*\r\n\r\n";
    let mut buffer = [0; 4096];
    while !done.load(Relaxed) {
        stream.write_all(request)?;
        let mut filled = 0;
        loop {
            let n = stream.read(&mut buffer[filled..])?;
            filled += n;
            let head = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n");
            if n == 0 || head.is_some_and(|end| filled >= end + 4 + BODY) {
                break;
            }
        }
        count.fetch_add(1, Relaxed);
    }
    Ok(())
}

/// User and system time of the worker's thread, in microseconds.
fn worker_cpu() -> anyhow::Result<u64> {
    for entry in std::fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        if std::fs::read_to_string(path.join("comm"))?.starts_with("mesh-worker") {
            let stat = std::fs::read_to_string(path.join("schedstat"))?;
            let nanoseconds: u64 = stat.split(' ').next().unwrap_or("0").parse()?;
            return Ok(nanoseconds / 1000);
        }
    }
    anyhow::bail!("no worker")
}

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).map(|n| n.parse::<u64>());
    let seconds = numbers.next().unwrap_or(Ok(5))?;
    let connections = numbers.next().unwrap_or(Ok(64))?;
    let upstream = TcpListener::bind("127.0.0.1:0")?;
    let app = upstream.local_addr()?;
    thread::spawn(move || {
        for stream in upstream.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    let routes = (0..50).map(|n| Arc::new(Route::forward(&format!("/route-{n}/"), "app"))).collect();
    let host = VirtualHost {
        domains: vec!["reviews".into(), "reviews:9080".into()],
        routes,
        ..VirtualHost::default()
    };
    let table =
        RouteConfiguration { name: "r".into(), virtual_hosts: vec![host], ..RouteConfiguration::default() };
    let mut manager = HttpConnectionManager::new("bench", RouteSource::Inline(Arc::new(table)));
    manager.access_logs =
        vec![AccessLog { path: "/dev/null".into(), format: AccessLogFormat::Default, filters: Vec::new() }];
    let mut listener = Listener::new("front", "127.0.0.1:0".parse()?);
    listener.filter_chains = vec![FilterChain::new("http", vec![NetworkFilter::Http(Arc::new(manager))])];
    let proxy = Proxy::builder().build()?;
    let endpoints = LoadAssignment::new("app", [app]);
    proxy.handle().apply_cluster(Cluster::new("app", Discovery::Static(Arc::new(endpoints))))?;
    proxy.handle().apply_listener(listener)?;
    let front = proxy.handle().bound_addresses("front")[0];
    let (done, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    for _ in 0..connections {
        let (done, count) = (Arc::clone(&done), Arc::clone(&count));
        thread::spawn(move || load(front, &done, &count));
    }
    let pause = |time| {
        let (_never, wait) = std::sync::mpsc::channel::<()>();
        let _timeout = wait.recv_timeout(time);
    };
    pause(Duration::from_millis(500));
    let (cpu, requests) = (worker_cpu()?, count.load(Relaxed));
    pause(Duration::from_secs(seconds));
    let (cpu, requests) = (worker_cpu()? - cpu, count.load(Relaxed) - requests);
    done.store(true, Relaxed);
    println!("{requests} requests, {:.2} us CPU per request", cpu as f64 / requests as f64);
    Ok(())
}
