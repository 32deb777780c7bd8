//! What the injector and the kubelet tell the pod: environment variables, PROXY_CONFIG, projected files.
//!
//! Everything is read once, into values, so that tests need neither a process environment nor a file system layout.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use crate::args::ProxyArgs;

/// Largest lifetime of a drain that PROXY_CONFIG may ask for.
const MAX_DRAIN: Duration = Duration::from_secs(3600);

/// Facts about this pod and where its control plane is.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Environment variables.
    pub vars: BTreeMap<String, String>,
    /// POD_NAME.
    pub pod_name: String,
    /// POD_NAMESPACE.
    pub namespace: String,
    /// SERVICE_ACCOUNT, `default` when absent.
    pub service_account: String,
    /// INSTANCE_IP; 127.0.0.1 when absent.
    pub instance_ip: IpAddr,
    /// Further addresses of the pod (`INSTANCE_IPS`), the first one not repeated.
    pub extra_ips: Vec<IpAddr>,
    /// DNS domain of the cluster.
    pub domain: String,
    /// TRUST_DOMAIN, `cluster.local` when absent.
    pub trust_domain: String,
    /// `host:port` of the xDS server.
    pub discovery_address: String,
    /// `host:port` of the certificate service.
    pub ca_address: String,
    /// PROXY_CONFIG as it came, for the node metadata.
    pub proxy_config: serde_json::Map<String, serde_json::Value>,
    /// Port of the agent's server.
    pub status_port: u16,
    /// Port of the admin server.
    pub admin_port: u16,
    /// Port of the kubelet's readiness endpoint.
    pub health_port: u16,
    /// Port of the metrics endpoint.
    pub prometheus_port: u16,
    /// How long outbound traffic goes on after SIGTERM.
    pub termination_drain: Duration,
    /// Number of data-plane workers.
    pub concurrency: usize,
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
    /// The projected token.
    pub token_file: PathBuf,
    /// The mesh's root certificates.
    pub root_cert_file: PathBuf,
    /// The mesh's revocation lists; may be missing.
    pub crl_file: PathBuf,
    /// Wait for the last connection instead of `termination_drain`.
    pub exit_on_zero_connections: bool,
    /// Shortest drain in that case.
    pub minimum_drain: Duration,
    /// Lifetime asked of the CA.
    pub secret_ttl: Duration,
}

/// A fact that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// A variable is missing.
    #[error("environment variable {name} is not set")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A variable or a field of PROXY_CONFIG has a value that cannot be used.
    #[error("{name} cannot be {value:?}: {problem}")]
    Invalid {
        /// The variable or field.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        problem: String,
    },
}

/// The part of Istio's ProxyConfig that this program follows; the rest is only passed on.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProxyConfig {
    discovery_address: Option<String>,
    status_port: Option<u16>,
    proxy_admin_port: Option<u16>,
    termination_drain_duration: Option<String>,
    concurrency: Option<usize>,
    proxy_metadata: BTreeMap<String, String>,
}

impl Environment {
    /// Reads the process environment and the projected files.
    ///
    /// # Errors
    /// A required variable is missing or a value cannot be used.
    pub fn read(args: &ProxyArgs) -> Result<Self, EnvironmentError> {
        let vars = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect();
        Self::from_vars(vars, args)
    }

    /// The same from given variables.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_vars(mut vars: BTreeMap<String, String>, args: &ProxyArgs) -> Result<Self, EnvironmentError> {
        let (config, proxy_config) = proxy_config(&vars)?;
        for (name, value) in &config.proxy_metadata {
            vars.entry(name.clone()).or_insert_with(|| value.clone());
        }
        let get = |name: &str| vars.get(name).filter(|v| !v.is_empty()).cloned();
        let required = |name: &'static str| get(name).ok_or(EnvironmentError::Missing { name });
        let namespace = required("POD_NAMESPACE")?;
        let discovery_address = get("MESH_DISCOVERY_ADDRESS")
            .or(config.discovery_address)
            .unwrap_or_else(|| "istiod.istio-system.svc:15012".into());
        let pod_info =
            get("MESH_POD_INFO_DIR").map_or_else(|| PathBuf::from("/etc/istio/pod"), PathBuf::from);
        let instance_ip = match get("INSTANCE_IP") {
            Some(value) => parse_with("INSTANCE_IP", &value)?,
            None => IpAddr::from([127, 0, 0, 1]),
        };
        let mut extra_ips = Vec::new();
        for part in
            get("INSTANCE_IPS").unwrap_or_default().split(',').map(str::trim).filter(|p| !p.is_empty())
        {
            let ip = parse_with("INSTANCE_IPS", part)?;
            if ip != instance_ip && !extra_ips.contains(&ip) {
                extra_ips.push(ip);
            }
        }
        let termination_drain = match get("TERMINATION_DRAIN_DURATION_SECONDS") {
            Some(seconds) => Duration::from_secs(parse_with("TERMINATION_DRAIN_DURATION_SECONDS", &seconds)?),
            None => duration_or(
                "PROXY_CONFIG.terminationDrainDuration",
                config.termination_drain_duration,
                Duration::from_secs(5),
            )?,
        };
        let concurrency = match args.concurrency.or(config.concurrency) {
            Some(0) => std::thread::available_parallelism().map_or(1, usize::from),
            Some(n) => n,
            None => 1,
        };
        let port = |name: &'static str, default: u16| match get(name) {
            Some(value) => parse_with(name, &value),
            None => Ok(default),
        };
        Ok(Self {
            pod_name: required("POD_NAME")?,
            service_account: get("SERVICE_ACCOUNT").unwrap_or_else(|| "default".into()),
            instance_ip,
            extra_ips,
            domain: cluster_domain(args.domain.as_deref(), &namespace),
            trust_domain: get("TRUST_DOMAIN").unwrap_or_else(|| "cluster.local".into()),
            ca_address: get("CA_ADDR").unwrap_or_else(|| discovery_address.clone()),
            discovery_address,
            proxy_config,
            status_port: port("STATUS_PORT", config.status_port.unwrap_or(15020))?,
            admin_port: port("ADMIN_PORT", config.proxy_admin_port.unwrap_or(15000))?,
            health_port: port("ISTIO_META_ENVOY_STATUS_PORT", 15021)?,
            prometheus_port: port("ISTIO_META_ENVOY_PROMETHEUS_PORT", 15090)?,
            termination_drain: termination_drain.min(MAX_DRAIN),
            concurrency,
            labels: downward_file(&pod_info.join("labels")),
            annotations: downward_file(&pod_info.join("annotations")),
            token_file: get("MESH_TOKEN_FILE")
                .map_or_else(|| PathBuf::from("/var/run/secrets/tokens/istio-token"), PathBuf::from),
            root_cert_file: get("CA_ROOT_CA")
                .map_or_else(|| PathBuf::from("/var/run/secrets/istio/root-cert.pem"), PathBuf::from),
            crl_file: get("MESH_CRL_FILE")
                .map_or_else(|| PathBuf::from("/var/run/secrets/istio/crl/ca-crl.pem"), PathBuf::from),
            exit_on_zero_connections: get("EXIT_ON_ZERO_ACTIVE_CONNECTIONS").is_some_and(|v| v == "true"),
            minimum_drain: duration_or(
                "MINIMUM_DRAIN_DURATION",
                get("MINIMUM_DRAIN_DURATION"),
                Duration::from_secs(5),
            )?,
            secret_ttl: duration_or("SECRET_TTL", get("SECRET_TTL"), Duration::from_secs(24 * 3600))?,
            namespace,
            vars,
        })
    }

    /// A variable that is set and not empty.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// The identity that the CA is expected to give, `spiffe://<td>/ns/<ns>/sa/<sa>`.
    pub fn spiffe_id(&self) -> String {
        format!("spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

fn proxy_config(
    vars: &BTreeMap<String, String>,
) -> Result<(ProxyConfig, serde_json::Map<String, serde_json::Value>), EnvironmentError> {
    let text = vars.get("PROXY_CONFIG").map_or("", |t| t.trim());
    if text.is_empty() {
        return Ok((ProxyConfig::default(), serde_json::Map::new()));
    }
    let invalid = |e: serde_json::Error| EnvironmentError::Invalid {
        name: "PROXY_CONFIG",
        value: text.chars().take(200).collect(),
        problem: e.to_string(),
    };
    let map: serde_json::Map<_, _> = serde_json::from_str(text).map_err(invalid)?;
    let config = serde_json::from_value(serde_json::Value::Object(map.clone())).map_err(invalid)?;
    Ok((config, map))
}

fn parse_with<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &'static str,
    value: &str,
) -> Result<T, EnvironmentError> {
    value.parse().map_err(|e: T::Err| EnvironmentError::Invalid {
        name,
        value: value.into(),
        problem: e.to_string(),
    })
}

fn duration_or(
    name: &'static str,
    value: Option<String>,
    default: Duration,
) -> Result<Duration, EnvironmentError> {
    let Some(value) = value else { return Ok(default) };
    parse_duration(&value).ok_or_else(|| EnvironmentError::Invalid {
        name,
        value,
        problem: "a duration such as 5s, 1m30s or 250ms is expected".into(),
    })
}

/// Reads a Go duration (`1h2m3.5s`, `250ms`) that is not negative.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = 0f64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let factor = match rest.get(..unit)? {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number * factor;
        rest = rest.get(unit..)?;
    }
    Duration::try_from_secs_f64(total).ok()
}

fn cluster_domain(domain: Option<&str>, namespace: &str) -> String {
    let domain = domain.unwrap_or_default();
    let suffix = domain
        .strip_prefix(&format!("{namespace}.svc."))
        .unwrap_or_else(|| domain.trim_start_matches("svc."));
    if suffix.is_empty() || suffix.contains("$(") { "cluster.local".into() } else { suffix.into() }
}

/// Reads a downward API file: lines of `key="value"`, the value quoted as Go does. A missing file is an empty map.
fn downward_file(path: &Path) -> BTreeMap<String, String> {
    std::fs::read_to_string(path).map(|text| downward(&text)).unwrap_or_default()
}

fn downward(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            Some((key.trim().to_owned(), unquote(value.trim())))
        })
        .collect()
}

fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) else { return value.into() };
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let code = |chars: &mut std::str::Chars<'_>, n: usize| {
            let digits: String = chars.take(n).collect();
            u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32)
        };
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('x') => out.extend(code(&mut chars, 2)),
            Some('u') => out.extend(code(&mut chars, 4)),
            Some('U') => out.extend(code(&mut chars, 8)),
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A pod as the injector describes it.
    pub(crate) fn pod() -> BTreeMap<String, String> {
        [
            ("POD_NAME", "reviews-v1-0"),
            ("POD_NAMESPACE", "shop"),
            ("SERVICE_ACCOUNT", "reviews"),
            ("INSTANCE_IP", "10.8.0.3"),
            ("CA_ADDR", "istiod.istio-system.svc:15012"),
            ("PROXY_CONFIG", "{\"statusPort\":15120,\"terminationDrainDuration\":\"1m2.5s\",\"proxyMetadata\":{\"A\":\"b\"}}\n"),
            ("ISTIO_META_POD_PORTS", "[\n    {\"containerPort\":9080,\"protocol\":\"TCP\"}\n]"),
            ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
            ("ISTIO_META_APP_CONTAINERS", "reviews"),
            ("ISTIO_META_ENABLE_HBONE", ""),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
    }

    #[test]
    fn injected_environment_is_read() {
        let args = ProxyArgs { domain: Some("shop.svc.corp.example".into()), ..ProxyArgs::default() };
        let env = Environment::from_vars(pod(), &args).unwrap();
        assert_eq!(env.domain, "corp.example");
        assert_eq!((env.status_port, env.admin_port, env.concurrency), (15120, 15000, 1));
        assert_eq!(env.termination_drain, Duration::from_millis(62_500));
        assert_eq!(env.spiffe_id(), "spiffe://cluster.local/ns/shop/sa/reviews");
        assert_eq!(env.discovery_address, "istiod.istio-system.svc:15012");
        assert_eq!(env.var("A"), Some("b"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let mut vars = pod();
        vars.remove("POD_NAMESPACE");
        let error = Environment::from_vars(vars, &ProxyArgs::default()).unwrap_err().to_string();
        assert!(error.contains("POD_NAMESPACE"), "{error}");
        let mut vars = pod();
        vars.insert("PROXY_CONFIG".into(), "{".into());
        let error = Environment::from_vars(vars, &ProxyArgs::default()).unwrap_err().to_string();
        assert!(error.contains("PROXY_CONFIG"), "{error}");
    }

    #[test]
    fn downward_values_are_unquoted() {
        let map = downward("app=\"reviews\"\nnote=\"a \\\"b\\\"\\n\\u00e9\"\nbroken\n");
        assert_eq!(map["app"], "reviews");
        assert_eq!(map["note"], "a \"b\"\n\u{e9}");
        assert_eq!(map.len(), 2);
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("5s"), Some(Duration::from_secs(5)));
        assert_eq!(parse_duration("1h0m0.5s"), Some(Duration::from_millis(3_600_500)));
        for bad in ["", "5", "s", "-5s", "5y", "1.2.3s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
