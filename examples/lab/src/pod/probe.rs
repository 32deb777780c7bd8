//! Probes and hooks: HTTP and TCP from the node to the pod's address, as a kubelet does, and commands in the container.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::container::run_in;
use super::spec::{ContainerSpec, Handler, Probe};
use crate::http::{self, Call};
use crate::sandbox::Process;

/// Where a handler acts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) ip: Ipv4Addr,
    pub(crate) container: &'a ContainerSpec,
    pub(crate) process: &'a Process,
    pub(crate) pid: i32,
    pub(crate) program: &'a Path,
}

/// A probe with Kubernetes' defaults in place of absent values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) delay: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) successes: u32,
    pub(crate) failures: u32,
}

impl Pace {
    /// The values of `probe`.
    pub(crate) fn of(probe: &Probe) -> Self {
        let or = |value: u64, default: u64| Duration::from_secs(if value == 0 { default } else { value });
        Self {
            delay: Duration::from_secs(probe.initial_delay_seconds),
            period: or(probe.period_seconds, 10),
            timeout: or(probe.timeout_seconds, 1),
            successes: probe.success_threshold.max(1),
            failures: if probe.failure_threshold == 0 { 3 } else { probe.failure_threshold },
        }
    }
}

/// Runs a handler once; the error is the reason.
pub(crate) async fn run(subject: &Subject<'_>, handler: &Handler, limit: Duration) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let process = Process { argv: exec.command.clone(), ..subject.process.clone() };
        let output = run_in(subject.program, subject.pid, &process, limit).await;
        let output = output.map_err(|error| error.to_string())?;
        let said = if output.stderr.is_empty() { output.stdout } else { output.stderr };
        return match output.code {
            0 => Ok(()),
            code => Err(format!("exit code {code}: {}", said.trim())),
        };
    }
    if let Some(get) = &handler.http_get {
        if let Some(scheme) = get.scheme.as_deref().filter(|scheme| *scheme != "HTTP") {
            return Err(format!("scheme {scheme:?} is not possible here, only HTTP"));
        }
        let address = address(subject, get.host.as_deref(), subject.container.port(&get.port))?;
        let path = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
        let mut call = Call::get(&path).host(&address.to_string()).header("user-agent", "kube-probe/lab");
        for header in &get.http_headers {
            call = call.header(&header.name, &header.value);
        }
        let answer = timeout(limit, async {
            let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
            http::send(stream, call).await.map_err(|error| error.to_string())
        });
        let answer = answer.await.map_err(|_| String::from("timeout"))??;
        return match answer.status {
            200..400 => Ok(()),
            status => {
                Err(format!("status {status}: {}", answer.text().chars().take(200).collect::<String>()))
            }
        };
    }
    if let Some(tcp) = &handler.tcp_socket {
        let address = address(subject, tcp.host.as_deref(), subject.container.port(&tcp.port))?;
        return match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(String::from("timeout")),
        };
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds)).await;
        return Ok(());
    }
    Err(String::from("only exec, httpGet, tcpSocket and sleep are known"))
}

fn address(subject: &Subject<'_>, host: Option<&str>, port: Option<u16>) -> Result<SocketAddr, String> {
    let port = port.ok_or_else(|| String::from("no such port"))?;
    let ip = match host {
        None | Some("") => IpAddr::V4(subject.ip),
        Some(host) => host.parse().map_err(|_| format!("{host}: only addresses are possible as host"))?,
    };
    Ok(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_times_are_kubernetes_defaults() {
        let probe: Probe = serde_json::from_value(json!({ "httpGet": { "path": "/", "port": 80 } })).unwrap();
        let pace = Pace::of(&probe);
        assert_eq!(
            (pace.period.as_secs(), pace.timeout.as_secs(), pace.failures, pace.successes),
            (10, 1, 3, 1)
        );
    }
}
