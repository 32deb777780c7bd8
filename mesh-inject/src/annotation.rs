//! Names of the annotations and labels that the injector reads and writes.

/// Label (preferred) or annotation that asks for or refuses injection.
pub const INJECT: &str = "sidecar.istio.io/inject";
/// Comma-separated names of templates.
pub const TEMPLATES: &str = "inject.istio.io/templates";
/// What was injected, as JSON; written by the injector.
pub const STATUS: &str = "sidecar.istio.io/status";
/// What the user wrote for injected containers, as JSON; written by the injector.
pub const OVERRIDES: &str = "proxy.istio.io/overrides";
/// Per-pod proxy configuration, as YAML.
pub const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// `REDIRECT`, `TPROXY` or `NONE`.
pub const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
/// `true` or `false`: native sidecar or classic layout.
pub const NATIVE_SIDECAR: &str = "sidecar.istio.io/nativeSidecar";
/// Full image of both injected containers; ignored unless it contains `/`.
pub const PROXY_IMAGE: &str = "sidecar.istio.io/proxyImage";
/// Image variant.
pub const PROXY_IMAGE_TYPE: &str = "sidecar.istio.io/proxyImageType";
/// CPU request.
pub const PROXY_CPU: &str = "sidecar.istio.io/proxyCPU";
/// Memory request.
pub const PROXY_MEMORY: &str = "sidecar.istio.io/proxyMemory";
/// CPU limit.
pub const PROXY_CPU_LIMIT: &str = "sidecar.istio.io/proxyCPULimit";
/// Memory limit.
pub const PROXY_MEMORY_LIMIT: &str = "sidecar.istio.io/proxyMemoryLimit";
/// Log level of the proxy.
pub const LOG_LEVEL: &str = "sidecar.istio.io/logLevel";
/// Log levels of the proxy's components.
pub const COMPONENT_LOG_LEVEL: &str = "sidecar.istio.io/componentLogLevel";
/// Log level of the agent.
pub const AGENT_LOG_LEVEL: &str = "sidecar.istio.io/agentLogLevel";
/// `true` adds `NET_BIND_SERVICE`.
pub const CAP_NET_BIND_SERVICE: &str = "sidecar.istio.io/capNetBindService";
/// Name of the ConfigMap with a custom bootstrap.
pub const BOOTSTRAP_OVERRIDE: &str = "sidecar.istio.io/bootstrapOverride";
/// JSON map of extra volumes.
pub const USER_VOLUME: &str = "sidecar.istio.io/userVolume";
/// JSON map of extra mounts.
pub const USER_VOLUME_MOUNT: &str = "sidecar.istio.io/userVolumeMount";
/// Rewrite application probes (boolean).
pub const REWRITE_PROBES: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
/// Port of the agent's probe server; `0` turns the proxy's own probes off.
pub const STATUS_PORT: &str = "status.sidecar.istio.io/port";
/// Readiness probe: initial delay in seconds.
pub const READINESS_INITIAL_DELAY: &str = "readiness.status.sidecar.istio.io/initialDelaySeconds";
/// Readiness probe: period in seconds.
pub const READINESS_PERIOD: &str = "readiness.status.sidecar.istio.io/periodSeconds";
/// Readiness probe: failures before not ready.
pub const READINESS_FAILURES: &str = "readiness.status.sidecar.istio.io/failureThreshold";
/// Outbound ranges to capture.
pub const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
/// Outbound ranges to leave alone.
pub const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
/// Inbound ports to capture.
pub const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
/// Inbound ports to leave alone.
pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
/// Outbound ports to capture in any case.
pub const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
/// Outbound ports to leave alone.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
/// Interfaces to leave alone.
pub const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
/// Virtual interfaces whose inbound traffic is treated as outbound (older name).
pub const KUBEVIRT_INTERFACES: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
/// Virtual interfaces whose inbound traffic is treated as outbound.
pub const REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
/// Merge the application's Prometheus metrics into the agent's (boolean).
pub const MERGE_METRICS: &str = "prometheus.istio.io/merge-metrics";
/// Several scrape targets: `port[:path],…`.
pub const SCRAPE_TARGETS: &str = "prometheus.istio.io/scrape-targets";
/// Port of merged metrics over TLS.
pub const SECURE_METRICS_PORT: &str = "prometheus.istio.io/secure-port";
/// Multus network attachments.
pub const CNI_NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// The container that kubectl talks to by default.
pub const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// The container whose logs kubectl shows by default.
pub const DEFAULT_LOGS_CONTAINER: &str = "kubectl.kubernetes.io/default-logs-container";
/// Environment for the Datadog tracer, as JSON.
pub const DATADOG_ENV: &str = "apm.datadoghq.com/env";
/// OpenTelemetry service namespace.
pub const OTEL_NAMESPACE: &str = "resource.opentelemetry.io/service.namespace";
/// OpenTelemetry service version.
pub const OTEL_VERSION: &str = "resource.opentelemetry.io/service.version";
/// OpenTelemetry service instance.
pub const OTEL_INSTANCE: &str = "resource.opentelemetry.io/service.instance.id";
/// Revision: annotation written on injected pods, label that selects a control plane.
pub const REVISION: &str = "istio.io/rev";
/// Namespace label that switches injection on or off.
pub const NAMESPACE_INJECTION: &str = "istio-injection";
/// Label: the workload speaks mutual TLS.
pub const TLS_MODE: &str = "security.istio.io/tlsMode";
/// Label: tunnel protocol.
pub const TUNNEL: &str = "networking.istio.io/tunnel";
/// Label: canonical name.
pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
/// Label: canonical revision.
pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// Label: name of the workload.
pub const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
/// Label: network.
pub const NETWORK: &str = "topology.istio.io/network";
/// Namespace label of the Pod Security level that is enforced.
pub const POD_SECURITY_ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// Name of the sidecar container.
pub const PROXY_CONTAINER: &str = "istio-proxy";
/// Name of the container that writes the rules.
pub const INIT_CONTAINER: &str = "istio-init";
/// Name of the container that checks the rules which a CNI plugin wrote.
pub const VALIDATION_CONTAINER: &str = "istio-validation";
/// Name of a container that upstream orders right after the sidecar.
pub const CORE_DUMP_CONTAINER: &str = "enable-core-dump";
/// User and group of the proxy.
pub const PROXY_ID: i64 = 1337;
