//! The command line.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::model::MeshSettings;
use crate::resources::GoDuration;
use crate::serve::{Config, InjectorConfig, TokenConfig};

/// Default lifetime of the server certificate.
const SERVER_TTL: Duration = Duration::from_secs(24 * 3600);

/// The control plane of a mesh: resources from directories of YAML; xDS, certificates and injection for sidecars.
#[derive(Debug, Parser)]
#[command(name = "mesh-control", version)]
pub struct Args {
    /// Directory (or file) with resources as one would apply them; watched. Repeatable.
    #[arg(long, value_name = "DIR", required = true)]
    config_dir: Vec<PathBuf>,
    /// Directory with what an API server and kubelets add: pods with status, services with addresses; watched.
    #[arg(long, value_name = "DIR")]
    status_dir: Vec<PathBuf>,
    /// Directory for objects that the control plane writes: root certificates, webhook configuration.
    #[arg(long, value_name = "DIR")]
    publish_dir: Option<PathBuf>,
    /// Directory of the certificate authority's key and certificate; made with mode 0600 if missing.
    #[arg(long, value_name = "DIR", default_value = "mesh-control-state")]
    state_dir: PathBuf,
    /// Public keys of service-account tokens, a JWKS document.
    #[arg(long, value_name = "FILE", requires = "issuer")]
    jwks: Option<PathBuf>,
    /// Issuer that tokens must name.
    #[arg(long, value_name = "ISS", requires = "jwks")]
    issuer: Option<String>,
    /// Audience that tokens must name.
    #[arg(long, value_name = "AUD", default_value = "istio-ca")]
    audience: String,
    /// Address to listen on.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0")]
    listen: IpAddr,
    /// Port for xDS and certificates over TLS.
    #[arg(long, value_name = "PORT", default_value_t = 15012)]
    xds_port: u16,
    /// Port for the injection webhook over TLS.
    #[arg(long, value_name = "PORT", default_value_t = 15017)]
    webhook_port: u16,
    /// Port for readiness, metrics and debugging.
    #[arg(long, value_name = "PORT", default_value_t = 15014)]
    monitoring_port: u16,
    /// Port for xDS without TLS and authentication, on loopback only; off by default.
    #[arg(long, value_name = "PORT")]
    plaintext_port: Option<u16>,
    /// Trust domain of every identity.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
    /// Namespace whose policies are mesh-wide.
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    root_namespace: String,
    /// DNS suffix of services.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    domain: String,
    /// Values of the injection: chart values, or `{values, mesh_configmap, default_templates}` (YAML or JSON).
    #[arg(long, value_name = "FILE")]
    injector_values: Option<PathBuf>,
    /// MeshConfig for injected proxies, merged over the defaults (YAML or JSON).
    #[arg(long, value_name = "FILE")]
    mesh_config: Option<PathBuf>,
    /// Revision of this control plane: what namespaces and pods select it by.
    #[arg(long, value_name = "NAME", value_parser = revision)]
    revision: Option<String>,
    /// Name in the server certificate. Repeatable; default istiod's names in the root namespace.
    #[arg(long, value_name = "NAME")]
    dns_name: Vec<String>,
    /// Lifetime of workload certificates, such as 24h.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    workload_ttl: Duration,
    /// How long another root that is plugged in is trusted before its signer signs; default one workload lifetime.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    root_grace: Option<Duration>,
    /// Open the debugging pages to every address, not to loopback and the root namespace only.
    #[arg(long)]
    open_debug: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    match GoDuration::parse(text) {
        Some(GoDuration(duration)) if !duration.is_zero() => Ok(duration),
        _ => Err("expected a duration such as 24h or 90m".to_owned()),
    }
}

/// A revision is part of names of services and values of labels.
fn revision(text: &str) -> Result<String, String> {
    let fine = (1..=56).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fine {
        Ok(text.to_owned())
    } else {
        Err("expected lower-case letters, digits and inner '-', at most 56".to_owned())
    }
}

/// istiod's environment, as far as the injector honours it.
fn environment() -> BTreeMap<String, String> {
    ["PLATFORM", "COMPLIANCE_POLICY", "ENABLE_NATIVE_SIDECARS"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
        .collect()
}

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        let mesh = MeshSettings {
            trust_domain: args.trust_domain,
            root_namespace: args.root_namespace,
            domain: args.domain,
        };
        let tokens = args.jwks.zip(args.issuer).map(|(jwks, issuer)| TokenConfig {
            jwks,
            issuer,
            audience: args.audience,
        });
        let dns_names = if args.dns_name.is_empty() { Self::default_dns_names(&mesh) } else { args.dns_name };
        let injector = InjectorConfig {
            values: args.injector_values,
            mesh_config: args.mesh_config,
            revision: args.revision,
            environment: environment(),
        };
        Self {
            config_dirs: args.config_dir,
            status_dirs: args.status_dir,
            publish_dir: args.publish_dir,
            state_dir: args.state_dir,
            tokens,
            listen: args.listen,
            xds_port: args.xds_port,
            webhook_port: args.webhook_port,
            monitoring_port: args.monitoring_port,
            plaintext_port: args.plaintext_port,
            mesh,
            injector,
            dns_names,
            workload_ttl: args.workload_ttl,
            root_grace: args.root_grace,
            server_ttl: SERVER_TTL,
            open_debug: args.open_debug,
        }
    }
}
