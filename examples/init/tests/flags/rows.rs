//! What every flag is called, where else its value may stand, what it sets, and what it refuses.

use mesh_init::Flags;
use mesh_netfilter::{Dns, InboundPorts, Interception, Mode, OutboundRanges, OwnerGroups};

type See = fn(&Flags, &Interception) -> String;

/// One flag. Values are pairs of what is written and what comes of it.
pub(crate) struct Row {
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    /// The variables that give its default, the strongest last.
    pub(crate) variables: &'static [&'static str],
    pub(crate) annotation: &'static str,
    /// Flags without which it has no effect.
    pub(crate) beside: &'static [&'static str],
    pub(crate) see: See,
    /// What comes of not writing it.
    pub(crate) unset: &'static str,
    pub(crate) one: (&'static str, &'static str),
    pub(crate) other: (&'static str, &'static str),
    /// What is refused, with which exit status.
    pub(crate) wrong: &'static [&'static str],
    pub(crate) status: u8,
    /// What a warning says about `one`, which has no effect.
    pub(crate) warning: Option<&'static str>,
}

const SWITCH: Row = Row {
    long: "",
    short: None,
    variables: &[],
    annotation: "",
    beside: &[],
    see: |_, _| String::new(),
    unset: "false",
    one: ("true", "true"),
    other: ("false", "false"),
    wrong: &["perhaps"],
    status: 255,
    warning: None,
};

const TEXT: Row = Row { unset: "", wrong: &[], status: 1, ..SWITCH };

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn servers(intent: &Interception) -> String {
    match &intent.dns {
        Dns::Off => "off".to_owned(),
        Dns::All { port } => format!("all to {port}"),
        Dns::Servers { port, servers } => format!("{} to {port}", list(servers)),
    }
}

const NOT_PORTS: &[&str] = &["http", "0", "65536", "-1", "1:2", ""];
const NOT_PORT_LISTS: &[&str] = &["http", "80,x", "65536", "9:8", "80,*"];

/// The flags that say which packets meet the proxy.
fn interception() -> Vec<Row> {
    vec![
        Row {
            long: "envoy-port",
            short: Some('p'),
            see: |_, intent| intent.outbound_port.to_string(),
            unset: "15001",
            one: ("15011", "15011"),
            other: ("0x3a9c", "15004"),
            wrong: NOT_PORTS,
            ..TEXT
        },
        Row {
            long: "inbound-capture-port",
            short: Some('z'),
            variables: &["INBOUND_CAPTURE_PORT"],
            see: |_, intent| intent.inbound_port.to_string(),
            unset: "15006",
            one: ("15016", "15016"),
            other: ("15017", "15017"),
            wrong: NOT_PORTS,
            ..TEXT
        },
        Row {
            long: "inbound-tunnel-port",
            short: Some('e'),
            variables: &["INBOUND_TUNNEL_PORT"],
            see: |_, intent| intent.tunnel_port.to_string(),
            unset: "15008",
            one: ("15018", "15018"),
            other: ("15019", "15019"),
            wrong: NOT_PORTS,
            ..TEXT
        },
        Row {
            long: "proxy-uid",
            short: Some('u'),
            variables: &["PROXY_UID"],
            see: |_, intent| format!("{} {}", list(&intent.proxy_uids), list(&intent.proxy_gids)),
            unset: "1337 1337",
            one: ("7,8-9,7", "7,8-9 7,8-9"),
            other: ("envoy", "envoy envoy"),
            wrong: &["a b", "4294967295", "9-8", "1;2", "--"],
            ..TEXT
        },
        Row {
            long: "proxy-gid",
            short: Some('g'),
            variables: &["PROXY_GID"],
            see: |_, intent| list(&intent.proxy_gids),
            unset: "1337",
            one: ("7,,8,", "7,8"),
            other: ("mesh", "mesh"),
            wrong: &["a b", "4294967295", "9-8", "1;2"],
            ..TEXT
        },
        Row {
            long: "istio-inbound-interception-mode",
            short: Some('m'),
            variables: &["ISTIO_INBOUND_INTERCEPTION_MODE"],
            annotation: "sidecar.istio.io/interceptionMode",
            see: |_, intent| format!("{:?}", intent.mode),
            unset: "Redirect",
            one: ("tproxy", "Redirect"),
            other: ("TPROXY", "Tproxy { mark: 1337, table: 133 }"),
            warning: Some("is neither REDIRECT nor TPROXY; treated as REDIRECT"),
            ..TEXT
        },
        Row {
            long: "istio-inbound-ports",
            short: Some('b'),
            variables: &["ISTIO_INBOUND_PORTS"],
            annotation: "traffic.sidecar.istio.io/includeInboundPorts",
            see: |_, intent| format!("{:?}", intent.inbound),
            unset: "Only([])",
            one: ("*", "AllExcept([])"),
            other: ("80", "Only([PortRange { first: 80, last: 80 }])"),
            wrong: NOT_PORT_LISTS,
            ..TEXT
        },
        Row {
            long: "istio-local-exclude-ports",
            short: Some('d'),
            variables: &["ISTIO_LOCAL_EXCLUDE_PORTS"],
            annotation: "traffic.sidecar.istio.io/excludeInboundPorts",
            beside: &["-b", "*"],
            see: |_, intent| match &intent.inbound {
                InboundPorts::AllExcept(ports) | InboundPorts::Only(ports) => list(ports),
            },
            one: ("6000,7000:7010,", "6000,7000:7010"),
            other: (" 80", "80"),
            wrong: NOT_PORT_LISTS,
            ..TEXT
        },
        Row {
            long: "istio-exclude-interfaces",
            short: Some('c'),
            variables: &["ISTIO_EXCLUDE_INTERFACES"],
            annotation: "traffic.sidecar.istio.io/excludeInterfaces",
            see: |_, intent| list(&intent.exclude_interfaces),
            one: ("eth1,wg0", "eth1,wg0"),
            other: ("cali+", "cali+"),
            wrong: &["sixteen-bytes-xx", "a/b", "-j", "a b"],
            ..TEXT
        },
        Row {
            long: "istio-service-cidr",
            short: Some('i'),
            variables: &["ISTIO_SERVICE_CIDR"],
            annotation: "traffic.sidecar.istio.io/includeOutboundIPRanges",
            see: |_, intent| match &intent.outbound {
                OutboundRanges::All => "all".to_owned(),
                OutboundRanges::Only(nets) => list(nets),
            },
            one: ("*", "all"),
            other: ("10.0.0.1/8,fd00::/8", "10.0.0.1/8,fd00::/8"),
            wrong: &["10.0.0.1", "10.0.0.0/33", "*,10.0.0.0/8", "everything"],
            ..TEXT
        },
        Row {
            long: "istio-service-exclude-cidr",
            short: Some('x'),
            variables: &["ISTIO_SERVICE_EXCLUDE_CIDR"],
            annotation: "traffic.sidecar.istio.io/excludeOutboundIPRanges",
            see: |_, intent| list(&intent.outbound_exclude),
            one: ("10.1.0.0/16", "10.1.0.0/16"),
            other: ("10.2.0.0/16,10.3.0.0/16", "10.2.0.0/16,10.3.0.0/16"),
            wrong: &["*", "10.0.0.1", "10.0.0.0/33", "10.0.0.0/8,*"],
            ..TEXT
        },
        Row {
            long: "istio-outbound-ports",
            short: Some('q'),
            variables: &["ISTIO_OUTBOUND_PORTS"],
            annotation: "traffic.sidecar.istio.io/includeOutboundPorts",
            see: |_, intent| list(&intent.outbound_ports),
            one: ("80,443", "80,443"),
            other: ("8080", "8080"),
            wrong: NOT_PORT_LISTS,
            ..TEXT
        },
        Row {
            long: "istio-local-outbound-ports-exclude",
            short: Some('o'),
            variables: &["ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE"],
            annotation: "traffic.sidecar.istio.io/excludeOutboundPorts",
            see: |_, intent| list(&intent.outbound_exclude_ports),
            one: ("3306", "3306"),
            other: ("22,25", "22,25"),
            wrong: NOT_PORT_LISTS,
            ..TEXT
        },
        Row {
            long: "kube-virt-interfaces",
            short: Some('k'),
            variables: &["KUBE_VIRT_INTERFACES"],
            annotation: "istio.io/reroute-virtual-interfaces",
            see: |_, intent| list(&intent.virtual_interfaces),
            one: ("vnet0,vnet1", "vnet0,vnet1"),
            other: ("tap0", "tap0"),
            wrong: &["sixteen-bytes-xx", "a/b", "-j", "a b"],
            ..TEXT
        },
        Row {
            long: "istio-inbound-tproxy-mark",
            short: Some('t'),
            variables: &["ISTIO_INBOUND_TPROXY_MARK"],
            beside: &["-m", "TPROXY"],
            see: |_, intent| match intent.mode {
                Mode::Tproxy { mark, .. } => mark.to_string(),
                Mode::Redirect => String::new(),
            },
            unset: "1337",
            one: ("7", "7"),
            other: ("4294967295", "4294967295"),
            wrong: &["0x539", "0", "", "mark", "4294967296"],
            ..TEXT
        },
        Row {
            long: "istio-inbound-tproxy-route-table",
            short: Some('r'),
            variables: &["ISTIO_INBOUND_TPROXY_ROUTE_TABLE"],
            beside: &["-m", "TPROXY"],
            see: |_, intent| match intent.mode {
                Mode::Tproxy { table, .. } => table.to_string(),
                Mode::Redirect => String::new(),
            },
            unset: "133",
            one: ("7", "7"),
            other: ("100", "100"),
            wrong: &["0x10", "0", "main", "4294967296"],
            ..TEXT
        },
        Row {
            long: "redirect-dns",
            variables: &["REDIRECT_DNS", "ISTIO_META_DNS_CAPTURE"],
            beside: &["--dns-server", "10.96.0.10"],
            see: |_, intent| servers(intent),
            unset: "off",
            one: ("true", "10.96.0.10 to 15053"),
            other: ("0", "off"),
            ..SWITCH
        },
        Row {
            long: "capture-all-dns",
            variables: &["CAPTURE_ALL_DNS"],
            beside: &["--redirect-dns", "--dns-server", "10.96.0.10"],
            see: |_, intent| servers(intent),
            unset: "10.96.0.10 to 15053",
            one: ("T", "all to 15053"),
            other: ("F", "10.96.0.10 to 15053"),
            ..SWITCH
        },
        Row {
            long: "dns-server",
            beside: &["--redirect-dns"],
            see: |_, intent| servers(intent),
            unset: " to 15053",
            one: ("10.96.0.10", "10.96.0.10 to 15053"),
            other: ("fd00::a", "fd00::a to 15053"),
            wrong: &["fe80::1%eth0", "dns.example", "10.96.0.0/16", ""],
            status: 255,
            ..TEXT
        },
        Row {
            long: "drop-invalid",
            variables: &["DROP_INVALID", "INVALID_DROP"],
            see: |_, intent| intent.drop_invalid.to_string(),
            ..SWITCH
        },
        Row { long: "enable-ipv6", see: |_, intent| intent.ipv6.to_string(), ..SWITCH },
        Row {
            long: "istio-outbound-owner-groups",
            variables: &["ISTIO_OUTBOUND_OWNER_GROUPS"],
            see: |_, intent| match &intent.owner_groups {
                OwnerGroups::AllExcept(groups) => format!("all but {}", list(groups)),
                OwnerGroups::Only(groups) => list(groups),
            },
            unset: "all but ",
            one: ("java,202", "java,202"),
            other: ("*", "all but "),
            wrong: &["a b", "java,*", "4294967295"],
            ..TEXT
        },
        Row {
            long: "istio-outbound-owner-groups-exclude",
            variables: &["ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"],
            see: |_, intent| match &intent.owner_groups {
                OwnerGroups::AllExcept(groups) | OwnerGroups::Only(groups) => list(groups),
            },
            one: ("java,202", "java,202"),
            other: ("ftp", "ftp"),
            wrong: &["a b", "*", "4294967295"],
            ..TEXT
        },
        Row {
            long: "istio-outbound-ipv4-loopback-cidr",
            variables: &["ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"],
            see: |_, intent| intent.loopback.to_string(),
            unset: "127.0.0.1/32",
            one: ("127.0.0.1/8", "127.0.0.1/8"),
            other: ("127.1.0.0/16", "127.1.0.0/16"),
            wrong: &["192.168.1.1/24", "10.0.0.1/7", "172.16.0.1/40", "127.0.0.1", "::1/128", ""],
            ..TEXT
        },
    ]
}

/// The flags that say what to do, and how.
fn doing() -> Vec<Row> {
    let switch = |long, variables, see| Row { long, variables, see, ..SWITCH };
    vec![
        Row {
            long: "dry-run",
            short: Some('n'),
            variables: &["DRY_RUN"],
            see: |flags, _| format!("{:?}", flags.command),
            unset: "Apply",
            one: ("true", "Plan"),
            other: ("false", "Apply"),
            ..SWITCH
        },
        Row {
            long: "cleanup-only",
            variables: &["CLEANUP_ONLY"],
            see: |flags, _| format!("{:?}", flags.command),
            unset: "Apply",
            one: ("true", "Clean"),
            other: ("false", "Apply"),
            ..SWITCH
        },
        Row {
            long: "iptables-probe-port",
            variables: &["IPTABLES_PROBE_PORT"],
            see: |flags, _| flags.probe_port.to_string(),
            unset: "15002",
            one: ("15102", "15102"),
            other: ("1", "1"),
            wrong: &["0", "65536", "probe", "-1"],
            ..SWITCH
        },
        Row {
            long: "probe-timeout",
            variables: &["PROBE_TIMEOUT"],
            see: |flags, _| format!("{:?}", flags.probe_timeout),
            unset: "5s",
            one: ("1m30s", "90s"),
            other: ("1.5s", "1.5s"),
            wrong: &["5", "0s", "-5s", "soon"],
            ..SWITCH
        },
        switch("skip-rule-apply", &["SKIP_RULE_APPLY"], |flags, _| flags.skip_rule_apply.to_string()),
        switch("run-validation", &["RUN_VALIDATION"], |flags, _| flags.run_validation.to_string()),
        switch("dual-stack", &["DUAL_STACK", "ISTIO_DUAL_STACK"], |flags, _| flags.dual_stack.to_string()),
        switch("force-apply", &["FORCE_APPLY"], |flags, _| flags.force_apply.to_string()),
        Row {
            warning: Some("nothing of the file system is used"),
            ..switch("cni-mode", &["CNI_MODE"], |flags, _| flags.cni_mode.to_string())
        },
        Row {
            unset: "true",
            one: ("false", "false"),
            other: ("true", "true"),
            warning: Some("apply always reconciles"),
            ..switch("reconcile", &["RECONCILE"], |flags, _| flags.reconcile.to_string())
        },
        Row {
            beside: &["--force-iptables-binary=nft"],
            warning: Some("another flag asks for iptables"),
            ..switch("native-nftables", &["NATIVE_NFTABLES"], |flags, _| flags.native_nftables.to_string())
        },
        Row {
            long: "network-namespace",
            variables: &["NETWORK_NAMESPACE"],
            see: |flags, _| flags.network_namespace.clone(),
            one: ("/proc/1/ns/net", "/proc/1/ns/net"),
            other: ("/run/netns/a", "/run/netns/a"),
            ..TEXT
        },
        Row {
            long: "force-iptables-binary",
            variables: &["FORCE_IPTABLES_BINARY"],
            see: |flags, _| flags.backend.map(|kind| kind.to_string()).unwrap_or_default(),
            one: ("legacy", "iptables-legacy"),
            other: ("nft", "iptables-nft"),
            wrong: &["random", "Legacy"],
            ..TEXT
        },
        Row {
            long: "backend",
            see: |flags, _| flags.backend.map(|kind| kind.to_string()).unwrap_or_default(),
            one: ("netlink", "netlink"),
            other: ("nft", "nft"),
            wrong: &["ebpf"],
            status: 255,
            ..TEXT
        },
        switch("strict", &[], |flags, _| flags.strict.to_string()),
        switch("replace-istio", &[], |flags, _| flags.replace_istio.to_string()),
        switch("live", &[], |flags, _| flags.live.to_string()),
        switch("json", &[], |flags, _| flags.json.to_string()),
        Row {
            long: "format",
            see: |flags, _| flags.as_nft.to_string(),
            one: ("nft", "true"),
            other: ("iptables-restore", "false"),
            wrong: &["yaml", ""],
            ..SWITCH
        },
        Row {
            long: "family",
            see: |flags, _| flags.family.to_string(),
            unset: "IPv4",
            one: ("v6", "IPv6"),
            other: ("v4", "IPv4"),
            wrong: &["ipv6", ""],
            ..SWITCH
        },
        Row {
            long: "packet",
            see: |flags, _| flags.packet.clone(),
            one: ("tcp 1.1.1.1:1 > 2.2.2.2:2", "tcp 1.1.1.1:1 > 2.2.2.2:2"),
            other: ("hex:45", "hex:45"),
            ..TEXT
        },
        Row {
            long: "ruleset",
            see: |flags, _| flags.ruleset.clone(),
            one: ("saved", "saved"),
            other: ("other", "other"),
            ..TEXT
        },
    ]
}

/// All flags but the agent's own.
pub(crate) fn rows() -> Vec<Row> {
    interception().into_iter().chain(doing()).collect()
}
