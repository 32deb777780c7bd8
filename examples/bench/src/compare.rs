//! Runs the measurements: every peer, every scenario, interleaved, so that a slow minute of the machine hits all alike.

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use crate::backend;
use crate::certs;
use crate::config::{Peer, Scenario, Setup};
use crate::load::{self, Load};
use crate::options::Options;
use crate::process::{Cpus, Running, pin};
use crate::report::{self, Paced, Sample};

/// How long a proxy may take to answer its first request.
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// Load before counting begins.
const WARM_UP: Duration = Duration::from_secs(1);
/// Idle time before resident memory is read.
const SETTLE: Duration = Duration::from_millis(700);

/// Measures and prints.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let cpus = Cpus::choose()?;
    pin(cpus.load)?;
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("cannot make {}", options.out.display()))?;
    let out = options.out.canonicalize()?;
    let certs = certs::write(&out.join("certs"))?;
    let peers = &options.peers;

    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let backend = listener.local_addr()?;
    // The backend's thread inherits the load's CPU; its time is not the proxies'.
    std::thread::Builder::new().name("backend".into()).spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            backend::serve(tokio::net::TcpListener::from_std(listener)?).await;
            anyhow::Ok(())
        })
    })?;

    let bench = Bench { options, cpus, backend, certs, dir: out };
    let mut samples = Vec::new();
    for run in 0..options.runs {
        for scenario in &options.scenarios {
            for (peer, program) in peers.iter().filter(|(peer, _)| peer.plays(*scenario)) {
                let sample = bench.measure(*scenario, *peer, program, None)?;
                eprintln!("run {} {:9} {:7} {}", run + 1, scenario.name(), peer.name(), sample.line());
                samples.push(sample);
            }
        }
    }
    let mut paced = Vec::new();
    for scenario in &options.scenarios {
        let Some(rate) = report::half_of_saturation(&samples, *scenario) else { continue };
        let direct = bench.direct(rate)?;
        for (peer, program) in peers.iter().filter(|(peer, _)| peer.plays(*scenario)) {
            let sample = bench.measure(*scenario, *peer, program, Some(rate))?;
            eprintln!("at {rate:.0}/s {:9} {:7} {}", scenario.name(), peer.name(), sample.line());
            paced.push(Paced { direct: direct.latency.clone(), sample });
        }
    }
    let result = report::summarise(&samples, &paced, options, cpus);
    std::fs::write(bench.dir.join("result.json"), format!("{:#}\n", result.json()))?;
    std::fs::write(bench.dir.join("result.md"), result.table())?;
    if options.json {
        println!("{}", result.json());
    } else {
        print!("{}", result.table());
        println!("configurations and logs: {}", bench.dir.display());
    }
    Ok(())
}

/// What all measurements share.
struct Bench<'a> {
    options: &'a Options,
    cpus: Cpus,
    backend: SocketAddr,
    certs: certs::Certs,
    dir: PathBuf,
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(StdListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

impl Bench<'_> {
    /// One peer, started anew.
    fn measure(
        &self,
        scenario: Scenario,
        peer: Peer,
        program: &Path,
        rate: Option<f64>,
    ) -> anyhow::Result<Sample> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let measuring = Box::pin(self.measure_async(scenario, peer, program, rate));
        runtime
            .block_on(measuring)
            .with_context(|| format!("{} {}; see {}", peer.name(), scenario.name(), self.dir.display()))
    }

    /// The backend alone, at a rate.
    fn direct(&self, rate: f64) -> anyhow::Result<load::Outcome> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let load = self.load(self.backend, Some(rate));
        Ok(runtime.block_on(load::run(load, || Ok(())))?.0)
    }

    fn load(&self, address: SocketAddr, rate: Option<f64>) -> Load {
        let connections = self.options.connections;
        Load { address, connections, rate, warm_up: WARM_UP, window: self.options.window }
    }

    async fn measure_async(
        &self,
        scenario: Scenario,
        peer: Peer,
        program: &Path,
        rate: Option<f64>,
    ) -> anyhow::Result<Sample> {
        let mut upstream = self.backend;
        let mut running: Vec<(Running, SocketAddr)> = Vec::new();
        let mut ready = Duration::ZERO;
        // From the backend's side to the load's.
        for place in scenario.places().iter().rev() {
            let setup = Setup {
                peer,
                program,
                scenario,
                place: *place,
                listen: free_port()?,
                admin: free_port()?,
                upstream,
                certs: &self.certs,
                dir: &self.dir,
            };
            let command: Command = setup.command()?;
            let start = Instant::now();
            let mut process = Running::start(command, self.cpus, &setup.output())?;
            wait_until_serving(&mut process, setup.listen).await?;
            ready = ready.max(start.elapsed());
            upstream = setup.listen;
            running.push((process, setup.admin));
        }
        let entry = upstream;
        load_once_works(entry).await?;
        sleep(SETTLE).await;
        let rss = || running.iter().map(|(p, _)| p.rss_kib()).collect::<anyhow::Result<Vec<u64>>>();
        let largest = |rss: Vec<u64>| rss.into_iter().max().unwrap_or_default();
        let idle_rss_kib = largest(rss()?);
        let mut dumped_rss_kib = None;
        if matches!(peer, Peer::Mesh | Peer::Envoy) {
            for (_, admin) in &running {
                get(*admin, "/config_dump").await?;
            }
            sleep(SETTLE).await;
            dumped_rss_kib = Some(largest(rss()?));
        }
        let cpu = || running.iter().map(|(p, _)| p.cpu_time()).sum::<anyhow::Result<Duration>>();
        let (outcome, before, after) = load::run(self.load(entry, rate), cpu).await?;
        let loaded_rss_kib = largest(rss()?);
        let cpu = after.saturating_sub(before);
        Ok(Sample { peer, scenario, cpu, outcome, ready, idle_rss_kib, loaded_rss_kib, dumped_rss_kib })
    }
}

/// Waits until the proxy accepts connections, and for a proxy alone until an answer comes back.
async fn wait_until_serving(process: &mut Running, listen: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        process.check()?;
        match tokio::net::TcpStream::connect(listen).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).context("the proxy does not listen");
            }
            Err(_) => sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn load_once_works(entry: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        let error = match tokio::time::timeout(Duration::from_secs(2), load::once(entry)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => anyhow::anyhow!("no answer within 2 s"),
        };
        if Instant::now() >= deadline {
            return Err(error).context("the first request fails");
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// A GET whose answer must be 200; gives the body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}
