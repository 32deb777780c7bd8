//! Every flag: its names, its default's source, what it means, and the annotation that says the same.

use std::net::IpAddr;

use mesh_netfilter::backend::Kind as Backend;
use mesh_netfilter::net::Family;

use super::Flags;
use super::duration::duration;

type Setter = fn(&mut Flags, &str) -> Result<(), &'static str>;

/// Whether a flag needs a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It does.
    Value,
    /// It may stand alone, which means true.
    Switch,
}

/// One flag.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) long: &'static str,
    pub(super) short: Option<char>,
    pub(super) kind: Kind,
    /// Whether the environment variable of the same name gives the default.
    env: bool,
    /// Further environment variables.
    aliases: &'static [&'static str],
    help: &'static str,
    annotation: &'static str,
    pub(super) set: Setter,
}

impl Flag {
    const fn value(long: &'static str, help: &'static str, set: Setter) -> Self {
        Self { long, short: None, kind: Kind::Value, env: true, aliases: &[], help, annotation: "", set }
    }

    const fn switch(long: &'static str, help: &'static str, set: Setter) -> Self {
        Self { kind: Kind::Switch, ..Self::value(long, help, set) }
    }

    const fn short(self, short: char) -> Self {
        Self { short: Some(short), ..self }
    }

    const fn no_env(self) -> Self {
        Self { env: false, ..self }
    }

    const fn also(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn annotation(self, annotation: &'static str) -> Self {
        Self { annotation, ..self }
    }

    /// The environment variables that give this flag's default, the strongest last.
    pub(super) fn environment_names(&self) -> impl Iterator<Item = String> {
        let own = self.env.then(|| self.long.replace('-', "_").to_ascii_uppercase());
        own.into_iter().chain(self.aliases.iter().map(|alias| (*alias).to_owned()))
    }
}

/// A boolean as Go reads it.
fn truth(word: &str) -> Result<bool, &'static str> {
    match word {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("is neither true nor false"),
    }
}

macro_rules! text {
    ($($field:ident).+) => {
        |flags, word| {
            flags.$($field).+ = word.to_owned();
            Ok(())
        }
    };
}

macro_rules! truth {
    ($($field:ident).+) => {
        |flags, word| {
            flags.$($field).+ = truth(word)?;
            Ok(())
        }
    };
}

const ACCEPTED: Setter = |_, _| Ok(());

/// All flags. Those of `istio-iptables` first, in its order.
pub(super) const FLAGS: &[Flag] = &[
    Flag::value("envoy-port", "where captured outbound connections go", text!(config.proxy_port))
        .short('p')
        .no_env(),
    Flag::value(
        "inbound-capture-port",
        "where captured inbound connections go",
        text!(config.inbound_capture_port),
    )
    .short('z'),
    Flag::value("inbound-tunnel-port", "never captured inbound", text!(config.inbound_tunnel_port))
        .short('e'),
    Flag::value("proxy-uid", "users whose traffic is the proxy's own, a list", text!(config.proxy_uid))
        .short('u'),
    Flag::value(
        "proxy-gid",
        "groups whose traffic is the proxy's own, a list; empty: the uid",
        text!(config.proxy_gid),
    )
    .short('g'),
    Flag::value(
        "istio-inbound-interception-mode",
        "REDIRECT or TPROXY",
        text!(config.inbound_interception_mode),
    )
    .short('m')
    .annotation("sidecar.istio.io/interceptionMode"),
    Flag::value(
        "istio-inbound-ports",
        "captured inbound ports: *, a list, or empty",
        text!(config.inbound_ports_include),
    )
    .short('b')
    .annotation("traffic.sidecar.istio.io/includeInboundPorts"),
    Flag::value(
        "istio-local-exclude-ports",
        "inbound ports not captured, when all are",
        text!(config.inbound_ports_exclude),
    )
    .short('d')
    .annotation("traffic.sidecar.istio.io/excludeInboundPorts"),
    Flag::value(
        "istio-exclude-interfaces",
        "interfaces captured in neither direction",
        text!(config.exclude_interfaces),
    )
    .short('c')
    .annotation("traffic.sidecar.istio.io/excludeInterfaces"),
    Flag::value(
        "istio-service-cidr",
        "captured destinations: *, prefixes, or empty",
        text!(config.outbound_ip_ranges_include),
    )
    .short('i')
    .annotation("traffic.sidecar.istio.io/includeOutboundIPRanges"),
    Flag::value(
        "istio-service-exclude-cidr",
        "destinations not captured, prefixes",
        text!(config.outbound_ip_ranges_exclude),
    )
    .short('x')
    .annotation("traffic.sidecar.istio.io/excludeOutboundIPRanges"),
    Flag::value(
        "istio-outbound-ports",
        "outbound ports captured whatever the address",
        text!(config.outbound_ports_include),
    )
    .short('q')
    .annotation("traffic.sidecar.istio.io/includeOutboundPorts"),
    Flag::value(
        "istio-local-outbound-ports-exclude",
        "outbound ports never captured",
        text!(config.outbound_ports_exclude),
    )
    .short('o')
    .annotation("traffic.sidecar.istio.io/excludeOutboundPorts"),
    Flag::value(
        "kube-virt-interfaces",
        "interfaces of virtual machines: what enters there is outbound",
        text!(config.reroute_virtual_interfaces),
    )
    .short('k')
    .annotation("istio.io/reroute-virtual-interfaces"),
    Flag::value(
        "istio-inbound-tproxy-mark",
        "the mark that routes to this machine",
        text!(config.inbound_tproxy_mark),
    )
    .short('t'),
    Flag::value(
        "istio-inbound-tproxy-route-table",
        "the routing table for that mark",
        text!(config.inbound_tproxy_route_table),
    )
    .short('r'),
    Flag::switch(
        "dry-run",
        "change nothing, say what would change: the same as the command plan",
        truth!(dry_run),
    )
    .short('n'),
    Flag::value("iptables-probe-port", "where the probe connects to", |flags, word| {
        let port = word.parse().ok().filter(|port| *port != 0);
        flags.probe_port = port.ok_or("is not a port")?;
        Ok(())
    }),
    Flag::value("probe-timeout", "how long the probe may take", |flags, word| {
        flags.probe_timeout = duration(word)?;
        if flags.probe_timeout.is_zero() { Err("is no time at all") } else { Ok(()) }
    }),
    Flag::switch("skip-rule-apply", "leave rules and routes alone", truth!(skip_rule_apply)),
    Flag::switch("run-validation", "make a connection through the rules", truth!(run_validation)),
    Flag::switch("redirect-dns", "hand name lookups to the agent", truth!(config.redirect_dns))
        .also(&["ISTIO_META_DNS_CAPTURE"]),
    Flag::switch(
        "capture-all-dns",
        "all of them, not only those to the machine's servers",
        truth!(config.capture_all_dns),
    ),
    Flag::switch("drop-invalid", "drop packets that fit no connection", truth!(config.drop_invalid))
        .also(&["INVALID_DROP"]),
    Flag::switch(
        "dual-stack",
        "write IPv6 rules when any address is IPv6, not only the first",
        truth!(dual_stack),
    )
    .also(&["ISTIO_DUAL_STACK"]),
    Flag::value("network-namespace", "work in this network namespace (a path)", text!(network_namespace)),
    Flag::switch("cni-mode", "accepted; nothing of the file system is used", truth!(cni_mode)),
    Flag::switch("reconcile", "accepted; apply always reconciles", truth!(reconcile)),
    Flag::switch("cleanup-only", "the same as the command clean", truth!(cleanup_only)),
    Flag::switch("force-apply", "write rules even where they are as they should be", truth!(force_apply)),
    Flag::switch(
        "native-nftables",
        "accepted; rules are written to nf_tables where the kernel has it",
        truth!(native_nftables),
    ),
    Flag::value(
        "force-iptables-binary",
        "write rules with this iptables: legacy or nft",
        text!(force_iptables_binary),
    ),
    Flag::value(
        "istio-outbound-owner-groups",
        "groups whose traffic is captured: * or a list",
        text!(config.owner_groups_include),
    )
    .also(&["ISTIO_OUTBOUND_OWNER_GROUPS"])
    .no_env(),
    Flag::value(
        "istio-outbound-owner-groups-exclude",
        "groups whose traffic is not captured",
        text!(config.owner_groups_exclude),
    )
    .also(&["ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"])
    .no_env(),
    Flag::value(
        "istio-outbound-ipv4-loopback-cidr",
        "the addresses that mean this machine",
        text!(config.host_ipv4_loopback_cidr),
    )
    .also(&["ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"])
    .no_env(),
    // The agent's own flags, which pod templates pass along.
    Flag::value("log_output_level", "accepted", ACCEPTED).no_env(),
    Flag::value("log_target", "accepted", ACCEPTED).no_env(),
    Flag::value("log_caller", "accepted", ACCEPTED).no_env(),
    Flag::value("log_stacktrace_level", "accepted", ACCEPTED).no_env(),
    Flag::value("log_rotate", "accepted", ACCEPTED).no_env(),
    Flag::switch("log_as_json", "accepted", ACCEPTED).no_env(),
    Flag::value("vklog", "accepted", ACCEPTED).no_env(),
    // Ours.
    Flag::switch(
        "enable-ipv6",
        "write IPv6 rules; without it apply looks at the machine's addresses",
        |flags, word| {
            flags.enable_ipv6 = Some(truth(word)?);
            Ok(())
        },
    )
    .no_env(),
    Flag::value(
        "dns-server",
        "a name server, repeatable; without it apply reads /etc/resolv.conf",
        |flags, word| {
            word.parse::<IpAddr>().map_err(|_| "is not an address")?;
            flags.config.dns_servers.push(word.to_owned());
            Ok(())
        },
    )
    .no_env(),
    Flag::switch("strict", "refuse contradictions instead of warning", truth!(strict)).no_env(),
    Flag::switch(
        "replace-istio",
        "remove Istio's own chains instead of refusing to work beside them",
        truth!(replace_istio),
    )
    .no_env(),
    Flag::value(
        "backend",
        "netlink, nft, iptables-nft, iptables-legacy or iptables; empty: the best there is",
        |flags, word| {
            let kind = || word.parse::<Backend>().map_err(|error| error.reason);
            flags.backend = if word.is_empty() { None } else { Some(kind()?) };
            Ok(())
        },
    )
    .no_env(),
    Flag::value("format", "render: iptables-restore or nft", |flags, word| {
        flags.as_nft = match word {
            "iptables-restore" => false,
            "nft" => true,
            _ => return Err("is neither iptables-restore nor nft"),
        };
        Ok(())
    })
    .no_env(),
    Flag::value("family", "render: v4 or v6", |flags, word| {
        flags.family = match word {
            "v4" => Family::V4,
            "v6" => Family::V6,
            _ => return Err("is neither v4 nor v6"),
        };
        Ok(())
    })
    .no_env(),
    Flag::value(
        "packet",
        "trace: such as \"tcp 10.0.0.5:40000 > 10.1.2.3:8080 out uid 1000\", or hex:4500...",
        text!(packet),
    )
    .no_env(),
    Flag::value("ruleset", "trace: a file with iptables-save or nft text", text!(ruleset)).no_env(),
    Flag::switch("live", "trace: in the rules that the kernel holds", truth!(live)).no_env(),
    Flag::switch("json", "plan, verify, trace, counters: for tools", truth!(json)).no_env(),
];

/// What `--help` prints.
pub(crate) fn help() -> String {
    let mut text = String::from(
        "mesh-init [apply|plan|verify|clean|render|trace|counters] [flags]\n\n\
         Hands a pod's traffic to its sidecar. Without a command it applies the rules; a second run changes nothing.\n\
         Exit status: 0, 1 (rules), 126 (probe), 255 (arguments).\n\n",
    );
    for flag in FLAGS {
        let short = flag.short.map_or_else(|| "    ".to_owned(), |short| format!("-{short}, "));
        text.push_str(&format!("  {short}--{:<36} {}\n", flag.long, flag.help));
        let environment: Vec<String> = flag.environment_names().collect();
        if !environment.is_empty() {
            text.push_str(&format!("{:45} environment: {}\n", "", environment.join(", ")));
        }
        if !flag.annotation.is_empty() {
            text.push_str(&format!("{:45} annotation:  {}\n", "", flag.annotation));
        }
    }
    text
}
