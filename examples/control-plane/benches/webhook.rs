//! `cargo bench -p mesh-control --bench webhook`: reviews per second over TLS, from 16 connections that stay open, load
//! generator and control plane in one process on all cores; the certificate rotates meanwhile.
//!
//! `MESH_BENCH_SECONDS` sets how long (default 10).

use std::time::Duration;
#[expect(clippy::disallowed_types, reason = "a benchmark measures the wall clock itself")]
use std::time::Instant;

#[path = "../tests/support/mod.rs"]
mod support;

use bytes::Bytes;
use support::caller::{Caller, asked, injected};
use support::fixture::Fixture;

const CONNECTIONS: usize = 16;
const TARGET: f64 = 3_000.0;
/// The certificate is renewed at half of this.
const SERVER_TTL: Duration = Duration::from_secs(4);

#[tokio::main]
#[expect(clippy::disallowed_types, reason = "a benchmark measures the wall clock itself")]
async fn main() {
    let seconds = std::env::var("MESH_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let fixture = Fixture::start_with(|config| config.server_ttl = SERVER_TTL).await;
    let first = Caller::connect(&fixture).await.certificate;
    let start = Instant::now();
    let end = start + Duration::from_secs(seconds);
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut caller = Caller::connect(&fixture).await;
        load.spawn(async move {
            let body = Bytes::from(asked());
            let (mut times, mut failures) = (Vec::new(), 0_usize);
            while Instant::now() < end {
                let sent = Instant::now();
                let answer = caller.review(body.clone()).await;
                times.push(sent.elapsed());
                failures += usize::from(!injected(&answer));
            }
            (times, failures)
        });
    }
    let (mut times, mut failures) = (Vec::new(), 0);
    while let Some(done) = load.join_next().await {
        let (mine, failed) = done.expect("no panic");
        times.extend(mine);
        failures += failed;
    }
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let rotated = Caller::connect(&fixture).await.certificate != first;
    println!(
        "webhook over TLS, {CONNECTIONS} connections, {seconds} s: {rate:.0} reviews/s (target {TARGET:.0}), p50 {:.2} ms, \
         p99 {:.2} ms, {failures} failures of {}, certificate rotated: {rotated}",
        at(0.5),
        at(0.99),
        times.len()
    );
}
