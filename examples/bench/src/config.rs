//! Who is measured, on what, and with which configuration file.

mod envoy;
mod haproxy;
mod nginx;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::certs::Certs;

/// A proxy that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Ours.
    Mesh,
    Envoy,
    Haproxy,
    Nginx,
}

impl Peer {
    pub(crate) fn parse(name: &str) -> anyhow::Result<Self> {
        Ok(match name {
            "mesh" => Self::Mesh,
            "envoy" => Self::Envoy,
            "haproxy" => Self::Haproxy,
            "nginx" => Self::Nginx,
            _ => bail!("{name:?} is none of mesh, envoy, haproxy, nginx"),
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// Whether there is a configuration for the scenario.
    pub(crate) fn plays(self, scenario: Scenario) -> bool {
        matches!(self, Self::Mesh | Self::Envoy) || matches!(scenario, Scenario::Http)
    }

    /// The arguments that print the version.
    pub(crate) fn version(self, program: &Path) -> String {
        let flag = if self == Self::Envoy { "--version" } else { "-v" };
        let output = Command::new(program).arg(flag).output();
        let text = output.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .lines()
            .map(str::trim)
            .find(|l| !l.is_empty())
            .unwrap_or("unknown")
            .to_owned()
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// HTTP/1.1 through one proxy.
    Http,
    /// HTTP/1.1 through a client proxy and, by mutual TLS, a server proxy.
    HttpMtls,
    /// The same bytes as opaque TCP through one proxy.
    Tcp,
    /// Opaque TCP through a pair with mutual TLS.
    TcpMtls,
}

impl Scenario {
    pub(crate) const ALL: [Self; 4] = [Self::Http, Self::HttpMtls, Self::Tcp, Self::TcpMtls];

    pub(crate) fn parse(name: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|s| s.name() == name);
        found.with_context(|| format!("{name:?} is none of http, http-mtls, tcp, tcp-mtls"))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::HttpMtls => "http-mtls",
            Self::Tcp => "tcp",
            Self::TcpMtls => "tcp-mtls",
        }
    }

    pub(crate) fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::HttpMtls)
    }

    /// The places of proxies from the load to the backend.
    pub(crate) fn places(self) -> &'static [Place] {
        match self {
            Self::Http | Self::Tcp => &[Place::Alone],
            Self::HttpMtls | Self::TcpMtls => &[Place::Client, Place::Server],
        }
    }
}

/// Where a proxy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Plain text on both sides.
    Alone,
    /// Plain text in, mutual TLS out.
    Client,
    /// Mutual TLS in, plain text out.
    Server,
}

impl Place {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// One proxy process to be.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) peer: Peer,
    pub(crate) program: &'a Path,
    pub(crate) scenario: Scenario,
    pub(crate) place: Place,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) upstream: SocketAddr,
    pub(crate) certs: &'a Certs,
    pub(crate) dir: &'a Path,
}

impl Setup<'_> {
    /// `http-mtls.client.envoy`: the stem of this proxy's files.
    pub(crate) fn stem(&self) -> String {
        format!("{}.{}.{}", self.scenario.name(), self.place.name(), self.peer.name())
    }

    pub(crate) fn access_log(&self) -> PathBuf {
        self.dir.join(format!("{}.access.log", self.stem()))
    }

    /// Where standard output and error go.
    pub(crate) fn output(&self) -> PathBuf {
        match self.peer {
            // HAProxy writes its access log to standard output.
            Peer::Haproxy => self.access_log(),
            _ => self.dir.join(format!("{}.out", self.stem())),
        }
    }

    /// Writes the configuration and gives the command that runs it.
    pub(crate) fn command(&self) -> anyhow::Result<Command> {
        let (text, extension) = match self.peer {
            Peer::Mesh | Peer::Envoy => (envoy::bootstrap(self), "yaml"),
            Peer::Haproxy => (haproxy::config(self), "cfg"),
            Peer::Nginx => (nginx::config(self), "conf"),
        };
        let file = self.dir.join(format!("{}.{extension}", self.stem()));
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        match fs::remove_file(self.access_log()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut command = Command::new(self.program);
        match self.peer {
            Peer::Mesh => command.args(["role", "mesh-sidecar", "-c"]).arg(file).args(["--concurrency", "1"]),
            Peer::Envoy => command.arg("-c").arg(file).args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "-l",
                "warning",
            ]),
            Peer::Haproxy => command.arg("-db").arg("-f").arg(file),
            Peer::Nginx => command.arg("-p").arg(self.dir).arg("-c").arg(file),
        };
        Ok(command)
    }
}
