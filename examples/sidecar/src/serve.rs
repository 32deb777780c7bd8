//! Puts everything together and runs it until it is told to stop.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use mesh_identity::TrustDomain;
use mesh_netfilter::original_dst::{Destination, OriginalDst, Redirected, Transparent};
use mesh_proxy_core::Proxy;
use mesh_proxy_core::original_dst::OriginalDestination;
use mesh_proxy_core::proxy::Workload;
use mesh_proxy_core::tls::TlsProvider;
use mesh_xds::pb::envoy::config::bootstrap::v3::{Admin as AdminConfig, Bootstrap};
use mesh_xds::pb::envoy::config::core::v3::{Address, SocketAddress, address, socket_address::PortSpecifier};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::admin::Admin;
use crate::agent::{Agent, Life, Pod, SharedAgent, Started};
use crate::app_probe::AppProbes;
use crate::args::{ProxyArgs, StaticArgs};
use crate::dump::Reexec;
use crate::environment::Environment;
use crate::http::{Handler, serve};
use crate::logging::Logging;
use crate::resources::Resources;
use crate::status::{Health, Metrics, Status};
use crate::tls::SidecarTls;
use crate::{control_plane, node, revocation, static_bootstrap, xds};

/// How long requests in flight may take once everything else is over.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often the number of connections is looked at while draining.
const DRAIN_POLL: Duration = Duration::from_millis(100);

/// Where redirected connections wanted to go, from the kernel.
#[derive(Debug)]
struct Kernel<T>(T);

impl<T: OriginalDst + std::fmt::Debug + 'static> OriginalDestination for Kernel<T> {
    fn original_destination(&self, stream: &TcpStream) -> std::io::Result<Option<SocketAddr>> {
        Ok(match self.0.original_dst(stream)? {
            Destination::Redirected(address) => Some(address),
            Destination::Direct(_) => None,
        })
    }
}

/// Runs agent and proxy of an injected pod.
///
/// # Errors
/// The environment cannot be used or a port cannot be bound.
pub async fn pod(args: &ProxyArgs, started: Started, reexec: Reexec) -> anyhow::Result<()> {
    let env = Environment::read(args)?;
    let logging = Logging::start(&args.log);
    let servers = Servers::bind(&env).await?;
    let agent = start_pod(env, logging, started, reexec)?;
    let mut tasks = servers.spawn(&agent);
    if let Some(client) = xds::client(&agent)? {
        tasks.spawn(xds::run(Arc::clone(&agent), agent.ads.get_or_init(|| client).clone()));
    }
    if let Some(identity) = agent.identity() {
        tasks.spawn(revocation::follow(identity.clone(), agent.handle.clone()));
    }
    let watched = Arc::clone(&agent);
    tasks.spawn(async move {
        if let Some(identity) = watched.identity() {
            identity.ready().await;
        }
        watched.check_ready();
    });
    until_told(&agent).await?;
    shut_down(&agent).await;
    Ok(())
}

/// Builds the data path and the agent of a pod; nothing is served yet.
pub(crate) fn start_pod(
    env: Environment,
    logging: Logging,
    started: Started,
    reexec: Reexec,
) -> anyhow::Result<SharedAgent> {
    let trust_domain = TrustDomain::parse(&env.trust_domain)?;
    let svid = control_plane::start_identity(&env)?;
    let tls = SidecarTls::of_workload(svid.identity().clone(), trust_domain.clone());
    let original: Arc<dyn OriginalDestination> = match env.var("ISTIO_META_INTERCEPTION_MODE") {
        Some("TPROXY") => Arc::new(Kernel(Transparent { listener: 15006 })),
        _ => Arc::new(Kernel(Redirected)),
    };
    let proxy = data_path(Arc::new(tls), original, env.concurrency, workload(&env))?;
    let variable = env.var("ISTIO_KUBE_APP_PROBERS").unwrap_or_default();
    let target = match env.var("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION") {
        Some("true") => Ipv4Addr::LOCALHOST.into(),
        _ => env.instance_ip,
    };
    let probes = AppProbes::parse(variable, target)?;
    let bootstrap = Bootstrap {
        node: Some(node::node(&env)),
        admin: Some(AdminConfig { address: Some(local(env.admin_port)), ..AdminConfig::default() }),
        ..Bootstrap::default()
    };
    Ok(Arc::new(Agent {
        handle: proxy.handle().clone(),
        proxy,
        logging,
        started,
        resources: Resources::default(),
        bootstrap,
        svid: Some(svid),
        pod: Some(Pod { env, probes, trust_domain }),
        reexec,
        ads: OnceLock::new(),
        life: Life::default(),
    }))
}

fn local(port: u16) -> Address {
    let socket = SocketAddress {
        address: Ipv4Addr::LOCALHOST.to_string(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

fn workload(env: &Environment) -> Workload {
    let label = |name: &str| env.labels.get(name).map(|v| v.as_str()).unwrap_or_default().into();
    Workload {
        name: env.var("ISTIO_META_WORKLOAD_NAME").unwrap_or_default().into(),
        namespace: env.namespace.as_str().into(),
        canonical_name: label("service.istio.io/canonical-name"),
        canonical_revision: label("service.istio.io/canonical-revision"),
        cluster: env.var("ISTIO_META_CLUSTER_ID").unwrap_or("Kubernetes").into(),
        app: label("app"),
        version: label("version"),
    }
}

fn data_path(
    tls: Arc<dyn TlsProvider>,
    original: Arc<dyn OriginalDestination>,
    workers: usize,
    workload: Workload,
) -> anyhow::Result<Proxy> {
    Proxy::builder()
        .workers(workers)
        .tls(tls)
        .original_destination(original)
        .workload(workload)
        .build()
        .context("the data path cannot be started")
}

/// Runs the proxy on a static bootstrap.
///
/// # Errors
/// The file cannot be run or a port cannot be bound.
pub async fn standalone(args: &StaticArgs, started: Started, reexec: Reexec) -> anyhow::Result<()> {
    let logging = Logging::start(&args.log);
    let bootstrap = reexec.read_bootstrap(&args.file).await?;
    let workers = args.concurrency.unwrap_or(1);
    let original = Arc::new(Kernel(Redirected));
    let proxy = data_path(Arc::new(SidecarTls::of_files()), original, workers, Workload::default())?;
    let admin = static_bootstrap::admin_address(&bootstrap)?;
    let agent = Arc::new(Agent {
        handle: proxy.handle().clone(),
        proxy,
        logging,
        started,
        resources: Resources::default(),
        bootstrap,
        svid: None,
        pod: None,
        reexec,
        ads: OnceLock::new(),
        life: Life::default(),
    });
    let mut tasks = JoinSet::new();
    if let Some(address) = admin {
        let listener = bind(address).await?;
        tasks.spawn(serve(listener, Arc::new(Admin(Arc::clone(&agent)))));
    }
    static_bootstrap::apply_all(&agent.handle, &agent.resources, &agent.bootstrap)?;
    agent.life.saw_clusters();
    agent.life.saw_listeners();
    agent.check_ready();
    until_told(&agent).await?;
    shut_down(&agent).await;
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// The agent's own ports, bound before anything else is started, so that a taken port is found at once.
struct Servers {
    admin: TcpListener,
    status: TcpListener,
    health: TcpListener,
    metrics: TcpListener,
}

impl Servers {
    async fn bind(env: &Environment) -> anyhow::Result<Self> {
        let any = |port| match env.instance_ip {
            std::net::IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            std::net::IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        };
        Ok(Self {
            admin: bind((Ipv4Addr::LOCALHOST, env.admin_port).into()).await?,
            status: bind(any(env.status_port)).await?,
            health: bind(any(env.health_port)).await?,
            metrics: bind(any(env.prometheus_port)).await?,
        })
    }

    fn spawn(self, agent: &SharedAgent) -> JoinSet<()> {
        fn go<H: Handler>(tasks: &mut JoinSet<()>, listener: TcpListener, handler: H) {
            tasks.spawn(serve(listener, Arc::new(handler)));
        }
        let mut tasks = JoinSet::new();
        let scrape = agent.pod.as_ref().and_then(|pod| pod.env.var("ISTIO_PROMETHEUS_ANNOTATIONS"));
        let status = Status::new(Arc::clone(agent), scrape);
        go(&mut tasks, self.admin, Admin(Arc::clone(agent)));
        go(&mut tasks, self.status, status);
        go(&mut tasks, self.health, Health(Arc::clone(agent)));
        go(&mut tasks, self.metrics, Metrics(Arc::clone(agent)));
        tasks
    }
}

/// Waits for SIGTERM, SIGINT or `/quitquitquit`.
async fn until_told(agent: &SharedAgent) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
        () = agent.life.stopped() => tracing::info!("asked to quit"),
    }
    Ok(())
}

/// Drains: inbound connections are asked to close, outbound ones go on for the application's own shutdown, then
/// requests in flight get a last moment. A second SIGTERM ends it at once.
async fn shut_down(agent: &SharedAgent) {
    let drained_before = agent.life.is_draining();
    agent.drain(true);
    let drain = async {
        if let Some(pod) = &agent.pod {
            wait_for_connections(agent, &pod.env, drained_before).await;
        }
        let cut = agent.handle.shutdown(LAST_WORDS).await;
        tracing::info!(connections_cut = cut, "bye");
    };
    match signal(SignalKind::terminate()) {
        Ok(mut again) => tokio::select! {
            () = drain => {}
            _ = again.recv() => tracing::info!("second SIGTERM: not waiting"),
        },
        Err(_) => drain.await,
    }
}

/// A native sidecar was told to drain by its hook and gets SIGTERM when the application is gone: it may go as soon as
/// no connection is left. Any other waits the whole drain time, or with EXIT_ON_ZERO_ACTIVE_CONNECTIONS at least the
/// minimum and then for the last connection.
async fn wait_for_connections(agent: &SharedAgent, env: &Environment, drained_before: bool) {
    let start = Instant::now();
    let (least, most) = if env.exit_on_zero_connections {
        (env.minimum_drain, None)
    } else if drained_before {
        (Duration::ZERO, Some(env.termination_drain))
    } else {
        (env.termination_drain, Some(env.termination_drain))
    };
    sleep(least).await;
    while agent.handle.connections().iter().any(|session| session.listener.is_some())
        && most.is_none_or(|most| start.elapsed() < most)
    {
        sleep(DRAIN_POLL).await;
    }
}
