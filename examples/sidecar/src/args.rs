//! The command line: Istio agent's words and flags, and Envoy's `-c`.
//!
//! Injected pods carry `proxy sidecar --domain … --proxyLogLevel=…`; their hooks call `request` and `wait`. A flag that
//! is not in `ACCEPTED` is refused by name, because a typing error that changes nothing is found too late.

use std::ffi::OsString;
use std::path::PathBuf;

use thiserror::Error;

/// What the program was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run agent and proxy of an injected pod.
    Proxy(ProxyArgs),
    /// Run the proxy alone on an Envoy static bootstrap file.
    Static(StaticArgs),
    /// Send one request to a local debug port and print the answer.
    Request(RequestArgs),
    /// Poll a readiness URL until it answers 200.
    Wait(WaitArgs),
    /// Read a binary `ConfigDump` on stdin and print its JSON; the short-lived child of `/config_dump`.
    RenderDump {
        /// The original request's query string.
        query: String,
    },
    /// Read a bootstrap file and print it in binary; the short-lived child of `-c`.
    EncodeBootstrap {
        /// The file.
        file: PathBuf,
    },
    /// Print the version.
    Version,
    /// Print the usage text.
    Help,
}

/// Arguments of `proxy`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyArgs {
    /// DNS domain of the pod's namespace, `<ns>.svc.<cluster domain>`.
    pub domain: Option<String>,
    /// Number of data-plane workers; `Some(0)` means one per CPU; `None` follows PROXY_CONFIG, then 1.
    pub concurrency: Option<usize>,
    /// Log settings.
    pub log: LogArgs,
}

/// Log settings of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogArgs {
    /// `--proxyLogLevel`: level of the data path (Envoy's level names).
    pub proxy: Option<String>,
    /// `--proxyComponentLogLevel`: `component:level,…`.
    pub components: Option<String>,
    /// `--log_output_level`: `scope:level,…` of the agent.
    pub agent: Option<String>,
    /// `--log_as_json`.
    pub json: bool,
}

/// Arguments of `-c`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticArgs {
    /// The bootstrap file (YAML or JSON).
    pub file: PathBuf,
    /// Number of workers; `None` means one.
    pub concurrency: Option<usize>,
    /// Log settings.
    pub log: LogArgs,
}

/// Arguments of `request`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestArgs {
    /// Port on 127.0.0.1; the default is the admin port.
    pub port: u16,
    /// HTTP method.
    pub method: String,
    /// Path, with a leading slash.
    pub path: String,
}

/// Arguments of `wait`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitArgs {
    /// What to poll.
    pub url: String,
    /// Seconds until giving up.
    pub timeout_seconds: u64,
    /// Milliseconds between two polls.
    pub period_millis: u64,
    /// Milliseconds for one poll.
    pub request_timeout_millis: u64,
}

impl Default for WaitArgs {
    fn default() -> Self {
        Self {
            url: "http://localhost:15021/healthz/ready".into(),
            timeout_seconds: 60,
            period_millis: 500,
            request_timeout_millis: 500,
        }
    }
}

/// Why a command line was refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArgsError {
    /// The first word is none of ours.
    #[error("unknown command {word:?}; try `mesh-sidecar help`")]
    UnknownCommand {
        /// The word.
        word: String,
    },
    /// A flag is none of ours.
    #[error("unknown flag {flag:?} of `{command}`")]
    UnknownFlag {
        /// The command.
        command: &'static str,
        /// The flag.
        flag: String,
    },
    /// A flag needs a value.
    #[error("flag {flag:?} needs a value")]
    MissingValue {
        /// The flag.
        flag: String,
    },
    /// A value cannot be used.
    #[error("{flag} cannot be {value:?}: {expected}")]
    BadValue {
        /// The flag or position.
        flag: String,
        /// The value.
        value: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// An argument is not UTF-8.
    #[error("argument {position} is not UTF-8")]
    NotUtf8 {
        /// Index, from 0.
        position: usize,
    },
    /// Something is missing or left over.
    #[error("`{command}`: {problem}")]
    Usage {
        /// The command.
        command: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// Flags that Istio's agent knows and that change nothing here, with or without a value.
const ACCEPTED: &[&str] = &[
    "log_caller",
    "log_stacktrace_level",
    "log_target",
    "meshConfig",
    "outlierLogPath",
    "profiling",
    "serviceCluster",
    "stsPort",
    "templateFile",
    "tokenManagerPlugin",
    "vklog",
    "kubeconfig",
    "context",
    "drainDuration",
    "parentShutdownDuration",
    "base-id",
    "service-node",
    "service-cluster",
    "drain-time-s",
    "drain-strategy",
    "parent-shutdown-time-s",
    "local-address-ip-version",
    "file-flush-interval-msec",
    "disable-hot-restart",
    "allow-unknown-static-fields",
    "log-format",
    "log-path",
];

/// The usage text.
pub const USAGE: &str = "\
mesh-sidecar: agent and proxy of a mesh sidecar, in one process

  mesh-sidecar proxy sidecar [--domain D] [--concurrency N] [--proxyLogLevel L] [--log_output_level default:info] …
  mesh-sidecar -c BOOTSTRAP.yaml [--concurrency N] [-l LEVEL]
  mesh-sidecar request [--debug-port 15000] METHOD PATH
  mesh-sidecar wait [--url URL] [--timeoutSeconds 60] [--periodMillis 500] [--requestTimeoutMillis 500]
  mesh-sidecar version
";

/// Reads arguments, program name not included.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, ArgsError> {
    let mut words = Vec::new();
    for (position, arg) in args.into_iter().enumerate() {
        words.push(arg.into_string().map_err(|_| ArgsError::NotUtf8 { position })?);
    }
    let Some(first) = words.first().cloned() else { return Ok(Command::Help) };
    match first.as_str() {
        "proxy" => proxy(words.split_off(1)),
        "request" => request(words.split_off(1)),
        "wait" => wait(words.split_off(1)),
        "version" | "--version" => Ok(Command::Version),
        "help" | "--help" | "-h" => Ok(Command::Help),
        "render-config-dump" => Ok(Command::RenderDump { query: words.get(1).cloned().unwrap_or_default() }),
        "encode-bootstrap" => match words.get(1) {
            Some(file) => Ok(Command::EncodeBootstrap { file: file.into() }),
            None => Err(ArgsError::Usage { command: "encode-bootstrap", problem: "no file is named".into() }),
        },
        flag if flag.starts_with('-') => static_bootstrap(words),
        _ => Err(ArgsError::UnknownCommand { word: first }),
    }
}

/// One element of a command line.
enum Item {
    Flag { name: String, value: Option<String> },
    Word(String),
}

/// Splits `--name=value`, `--name` and words.
struct Items(std::iter::Peekable<std::vec::IntoIter<String>>);

impl Items {
    fn new(words: Vec<String>) -> Self {
        Self(words.into_iter().peekable())
    }

    fn value(&mut self, name: &str, value: Option<String>) -> Result<String, ArgsError> {
        match value.or_else(|| self.0.next()) {
            Some(value) => Ok(value),
            None => Err(ArgsError::MissingValue { flag: name.into() }),
        }
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str, value: Option<String>) -> Result<T, ArgsError> {
        let value = self.value(name, value)?;
        value.parse().map_err(|_| ArgsError::BadValue {
            flag: name.into(),
            value,
            expected: "a non-negative number is expected",
        })
    }

    /// Takes the value of a flag that is only tolerated, if the next word looks like one.
    fn skip_value(&mut self, value: Option<String>) {
        if value.is_none() && self.0.peek().is_some_and(|next| !next.starts_with('-')) {
            self.0.next();
        }
    }
}

impl Iterator for Items {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        let word = self.0.next()?;
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            return Some(Item::Word(word));
        };
        Some(match flag.split_once('=') {
            Some((name, value)) => Item::Flag { name: name.into(), value: Some(value.into()) },
            None => Item::Flag { name: flag.into(), value: None },
        })
    }
}

fn is_true(value: Option<&str>) -> bool {
    !matches!(value, Some("false" | "0"))
}

fn tolerated(name: &str) -> bool {
    ACCEPTED.contains(&name) || name.starts_with("log_rotate")
}

fn proxy(words: Vec<String>) -> Result<Command, ArgsError> {
    let mut out = ProxyArgs::default();
    let mut items = Items::new(words);
    while let Some(item) = items.next() {
        match item {
            Item::Word(role) if role == "sidecar" => {}
            Item::Word(role) => {
                return Err(ArgsError::BadValue {
                    flag: "proxy".into(),
                    value: role,
                    expected: "only the role `sidecar` is served",
                });
            }
            Item::Flag { name, value } => match name.as_str() {
                "domain" => out.domain = Some(items.value(&name, value)?),
                "concurrency" => out.concurrency = Some(items.number(&name, value)?),
                "proxyLogLevel" => out.log.proxy = Some(items.value(&name, value)?),
                "proxyComponentLogLevel" => out.log.components = Some(items.value(&name, value)?),
                "log_output_level" => out.log.agent = Some(items.value(&name, value)?),
                "log_as_json" => out.log.json = is_true(value.as_deref()),
                name if tolerated(name) => items.skip_value(value),
                _ => return Err(ArgsError::UnknownFlag { command: "proxy", flag: name }),
            },
        }
    }
    Ok(Command::Proxy(out))
}

fn static_bootstrap(words: Vec<String>) -> Result<Command, ArgsError> {
    let (mut file, mut concurrency, mut log) = (None, None, LogArgs::default());
    let mut items = Items::new(words);
    while let Some(item) = items.next() {
        match item {
            Item::Word(word) => {
                return Err(ArgsError::Usage { command: "-c", problem: format!("{word:?} is left over") });
            }
            Item::Flag { name, value } => match name.as_str() {
                "c" | "config-path" => file = Some(PathBuf::from(items.value(&name, value)?)),
                "concurrency" => concurrency = Some(items.number(&name, value)?),
                "l" | "log-level" => log.proxy = Some(items.value(&name, value)?),
                "component-log-level" => log.components = Some(items.value(&name, value)?),
                name if tolerated(name) => items.skip_value(value),
                _ => return Err(ArgsError::UnknownFlag { command: "-c", flag: name }),
            },
        }
    }
    let file =
        file.ok_or_else(|| ArgsError::Usage { command: "-c", problem: "no bootstrap file is named".into() })?;
    log.agent.clone_from(&log.proxy);
    Ok(Command::Static(StaticArgs { file, concurrency, log }))
}

fn request(words: Vec<String>) -> Result<Command, ArgsError> {
    let (mut port, mut rest) = (15000, Vec::new());
    let mut items = Items::new(words);
    while let Some(item) = items.next() {
        match item {
            Item::Word(word) => rest.push(word),
            Item::Flag { name, value } => match name.as_str() {
                "debug-port" => port = items.number(&name, value)?,
                name if tolerated(name) => items.skip_value(value),
                _ => return Err(ArgsError::UnknownFlag { command: "request", flag: name }),
            },
        }
    }
    let [method, path] = <[String; 2]>::try_from(rest).map_err(|rest| ArgsError::Usage {
        command: "request",
        problem: format!("METHOD PATH expected, got {rest:?}"),
    })?;
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    Ok(Command::Request(RequestArgs { port, method: method.to_ascii_uppercase(), path }))
}

fn wait(words: Vec<String>) -> Result<Command, ArgsError> {
    let mut out = WaitArgs::default();
    let mut items = Items::new(words);
    while let Some(item) = items.next() {
        match item {
            Item::Word(word) => {
                return Err(ArgsError::Usage { command: "wait", problem: format!("{word:?} is left over") });
            }
            Item::Flag { name, value } => match name.as_str() {
                "url" => out.url = items.value(&name, value)?,
                "timeoutSeconds" => out.timeout_seconds = items.number(&name, value)?,
                "periodMillis" => out.period_millis = items.number(&name, value)?,
                "requestTimeoutMillis" => out.request_timeout_millis = items.number(&name, value)?,
                name if tolerated(name) => items.skip_value(value),
                _ => return Err(ArgsError::UnknownFlag { command: "wait", flag: name }),
            },
        }
    }
    Ok(Command::Wait(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Command, ArgsError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn injected_arguments_are_understood() {
        let command = parse_line(
            "proxy sidecar --domain shop.svc.cluster.local --proxyLogLevel=warning \
             --proxyComponentLogLevel=misc:error --log_output_level=default:info --stsPort=0 --log_as_json",
        );
        let expected = ProxyArgs {
            domain: Some("shop.svc.cluster.local".into()),
            concurrency: None,
            log: LogArgs {
                proxy: Some("warning".into()),
                components: Some("misc:error".into()),
                agent: Some("default:info".into()),
                json: true,
            },
        };
        assert_eq!(command, Ok(Command::Proxy(expected)));
    }

    #[test]
    fn hooks_are_understood() {
        assert_eq!(
            parse_line("request --debug-port=15020 POST drain"),
            Ok(Command::Request(RequestArgs { port: 15020, method: "POST".into(), path: "/drain".into() }))
        );
        assert_eq!(parse_line("wait"), Ok(Command::Wait(WaitArgs::default())));
    }

    #[test]
    fn bootstrap_file_is_understood() {
        let Ok(Command::Static(args)) = parse_line("-c /x/boot.yaml --concurrency 2 -l warning") else {
            panic!("not understood")
        };
        assert_eq!((args.file.to_str(), args.concurrency), (Some("/x/boot.yaml"), Some(2)));
    }

    #[test]
    fn unknown_words_and_flags_are_named() {
        assert_eq!(
            parse_line("proxy router").map_err(|e| e.to_string()).unwrap_err(),
            "proxy cannot be \"router\": only the role `sidecar` is served"
        );
        assert!(matches!(parse_line("proxy sidecar --domian=x"), Err(ArgsError::UnknownFlag { .. })));
        assert!(matches!(parse_line("start"), Err(ArgsError::UnknownCommand { .. })));
        assert!(matches!(parse_line("proxy --domain"), Err(ArgsError::MissingValue { .. })));
        assert!(matches!(parse_line("--concurrency 2"), Err(ArgsError::Usage { .. })));
    }
}
