//! The same intent as words: what flags, environment variables and annotations carry.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

use super::{
    Contradiction, Dns, InboundPorts, Interception, InvalidInterception, Mode, OutboundRanges, OwnerGroups,
};
use crate::net::{BadWord, Owner, PortRange};

/// An interception as a person writes it: one string per flag of istio-iptables, named as there.
///
/// Lists are separated by commas; empty items are dropped and blanks around an item are ignored. `*` means everything
/// where the field says so.
///
/// # Defaults
/// [`Default`] is that of istio-iptables' flags, which captures nothing: ports 15001, 15006 and 15008, mark 1337, table
/// 133, all owner groups, loopback `127.0.0.1/32`, everything else empty or off. An empty uid means 1337, an empty gid
/// means the uid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterceptionConfig {
    /// `--envoy-port`: where outbound connections go.
    pub proxy_port: String,
    /// `--inbound-capture-port`: where inbound connections go.
    pub inbound_capture_port: String,
    /// `--inbound-tunnel-port`: never captured inbound.
    pub inbound_tunnel_port: String,
    /// `--proxy-uid`: the proxy's users.
    pub proxy_uid: String,
    /// `--proxy-gid`: the proxy's groups.
    pub proxy_gid: String,
    /// `--istio-inbound-interception-mode`: `REDIRECT` or `TPROXY`.
    pub inbound_interception_mode: String,
    /// `--istio-inbound-tproxy-mark`.
    pub inbound_tproxy_mark: String,
    /// `--istio-inbound-tproxy-route-table`.
    pub inbound_tproxy_route_table: String,
    /// `--istio-inbound-ports`: `*`, a list, or empty for none.
    pub inbound_ports_include: String,
    /// `--istio-local-exclude-ports`: only with `*`.
    pub inbound_ports_exclude: String,
    /// `--istio-service-cidr`: `*`, a list of prefixes, or empty for none.
    pub outbound_ip_ranges_include: String,
    /// `--istio-service-exclude-cidr`.
    pub outbound_ip_ranges_exclude: String,
    /// `--istio-outbound-ports`.
    pub outbound_ports_include: String,
    /// `--istio-local-outbound-ports-exclude`.
    pub outbound_ports_exclude: String,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS`: `*` or a list.
    pub owner_groups_include: String,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE`: only with `*`.
    pub owner_groups_exclude: String,
    /// `--istio-exclude-interfaces`.
    pub exclude_interfaces: String,
    /// `--kube-virt-interfaces`.
    pub reroute_virtual_interfaces: String,
    /// `ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR`.
    pub host_ipv4_loopback_cidr: String,
    /// `--redirect-dns`.
    pub redirect_dns: bool,
    /// `--capture-all-dns`.
    pub capture_all_dns: bool,
    /// The machine's name servers (`--dns-server`, or what `/etc/resolv.conf` names); those that are no address are ignored.
    pub dns_servers: Vec<String>,
    /// `--drop-invalid`.
    pub drop_invalid: bool,
    /// `--enable-ipv6`, or what the machine's addresses say.
    pub enable_ipv6: bool,
}

impl Default for InterceptionConfig {
    fn default() -> Self {
        Self {
            proxy_port: "15001".into(),
            inbound_capture_port: "15006".into(),
            inbound_tunnel_port: "15008".into(),
            proxy_uid: String::new(),
            proxy_gid: String::new(),
            inbound_interception_mode: String::new(),
            inbound_tproxy_mark: "1337".into(),
            inbound_tproxy_route_table: "133".into(),
            inbound_ports_include: String::new(),
            inbound_ports_exclude: String::new(),
            outbound_ip_ranges_include: String::new(),
            outbound_ip_ranges_exclude: String::new(),
            outbound_ports_include: String::new(),
            outbound_ports_exclude: String::new(),
            owner_groups_include: "*".into(),
            owner_groups_exclude: String::new(),
            exclude_interfaces: String::new(),
            reroute_virtual_interfaces: String::new(),
            host_ipv4_loopback_cidr: "127.0.0.1/32".into(),
            redirect_dns: false,
            capture_all_dns: false,
            dns_servers: Vec::new(),
            drop_invalid: false,
            enable_ipv6: false,
        }
    }
}

impl InterceptionConfig {
    /// Turns the words into an intent. What has a meaning but contradicts itself is accepted, with a warning in
    /// [`Interception::warnings`].
    ///
    /// # Errors
    /// The first field that has no meaning: what istio-iptables fails on, or what the kernel would refuse.
    pub fn parse(&self) -> Result<Interception, InvalidInterception> {
        let mut warnings = Vec::new();
        let mut proxy_uids = list::<Owner>("proxy-uid", &self.proxy_uid)?;
        if proxy_uids.is_empty() {
            proxy_uids.push(Owner::Id(1337));
        }
        let mut proxy_gids = list::<Owner>("proxy-gid", &self.proxy_gid)?;
        if proxy_gids.is_empty() {
            proxy_gids.clone_from(&proxy_uids);
        }
        let mode = self.mode(&mut warnings)?;
        let inbound = self.inbound(&mut warnings)?;
        let (outbound, outbound_exclude) = self.outbound()?;
        Ok(Interception {
            outbound_port: port("envoy-port", &self.proxy_port)?,
            inbound_port: port("inbound-capture-port", &self.inbound_capture_port)?,
            tunnel_port: port("inbound-tunnel-port", &self.inbound_tunnel_port)?,
            proxy_uids,
            proxy_gids,
            mode,
            inbound,
            inbound_exempt_sources: Vec::new(),
            outbound,
            outbound_exclude,
            outbound_ports: list("istio-outbound-ports", &self.outbound_ports_include)?,
            outbound_exclude_ports: list("istio-local-outbound-ports-exclude", &self.outbound_ports_exclude)?,
            owner_groups: self.owner_groups(&mut warnings)?,
            exclude_interfaces: list("istio-exclude-interfaces", &self.exclude_interfaces)?,
            virtual_interfaces: list("kube-virt-interfaces", &self.reroute_virtual_interfaces)?,
            dns: self.dns(&mut warnings),
            drop_invalid: self.drop_invalid,
            loopback: self.loopback()?,
            ipv6: self.enable_ipv6,
            warnings,
        })
    }

    fn mode(&self, warnings: &mut Vec<Contradiction>) -> Result<Mode, InvalidInterception> {
        const FIELD: &str = "istio-inbound-interception-mode";
        let whole = |field, value: &str| {
            let reason = "is not a decimal number between 1 and 4294967295";
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let parsed: Option<u32> = if digits { value.parse().ok() } else { None };
            parsed.filter(|number| *number != 0).ok_or_else(|| invalid(field, value, reason))
        };
        let mark = whole("istio-inbound-tproxy-mark", &self.inbound_tproxy_mark);
        let table = whole("istio-inbound-tproxy-route-table", &self.inbound_tproxy_route_table);
        if self.inbound_interception_mode == "TPROXY" {
            return Ok(Mode::Tproxy { mark: mark?, table: table? });
        }
        for (field, value, usual) in [
            ("istio-inbound-tproxy-mark", &self.inbound_tproxy_mark, mark == Ok(1337)),
            ("istio-inbound-tproxy-route-table", &self.inbound_tproxy_route_table, table == Ok(133)),
        ] {
            if !usual {
                warnings.push(Contradiction::new(field, value, "has no effect unless the mode is TPROXY"));
            }
        }
        if !matches!(self.inbound_interception_mode.as_str(), "" | "REDIRECT") {
            let reason = "is neither REDIRECT nor TPROXY; treated as REDIRECT";
            warnings.push(Contradiction::new(FIELD, &self.inbound_interception_mode, reason));
        }
        Ok(Mode::Redirect)
    }

    fn inbound(&self, warnings: &mut Vec<Contradiction>) -> Result<InboundPorts, InvalidInterception> {
        const EXCLUDE: &str = "istio-local-exclude-ports";
        if self.inbound_ports_include == "*" {
            return list(EXCLUDE, &self.inbound_ports_exclude).map(InboundPorts::AllExcept);
        }
        if items(&self.inbound_ports_exclude).next().is_some() {
            let reason = "has no effect unless --istio-inbound-ports is *";
            warnings.push(Contradiction::new(EXCLUDE, &self.inbound_ports_exclude, reason));
        }
        list("istio-inbound-ports", &self.inbound_ports_include).map(InboundPorts::Only)
    }

    fn outbound(&self) -> Result<(OutboundRanges, Vec<IpNet>), InvalidInterception> {
        const EXCLUDE: &str = "istio-service-exclude-cidr";
        if self.outbound_ip_ranges_exclude == "*" {
            return Err(invalid(
                EXCLUDE,
                "*",
                "would exclude everything; leave --istio-service-cidr empty instead",
            ));
        }
        let include = if self.outbound_ip_ranges_include == "*" {
            OutboundRanges::All
        } else {
            OutboundRanges::Only(nets("istio-service-cidr", &self.outbound_ip_ranges_include)?)
        };
        Ok((include, nets(EXCLUDE, &self.outbound_ip_ranges_exclude)?))
    }

    fn owner_groups(&self, warnings: &mut Vec<Contradiction>) -> Result<OwnerGroups, InvalidInterception> {
        const INCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS";
        const EXCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE";
        if self.owner_groups_include == "*" {
            return list(EXCLUDE, &self.owner_groups_exclude).map(OwnerGroups::AllExcept);
        }
        if items(&self.owner_groups_exclude).next().is_some() {
            let reason = "has no effect unless ISTIO_OUTBOUND_OWNER_GROUPS is *";
            warnings.push(Contradiction::new(EXCLUDE, &self.owner_groups_exclude, reason));
        }
        let groups: Vec<Owner> = list(INCLUDE, &self.owner_groups_include)?;
        if groups.len() > OwnerGroups::MAX_ONLY {
            let (max, got) = (OwnerGroups::MAX_ONLY, groups.len());
            return Err(InvalidInterception::TooManyGroups { field: INCLUDE, max, got });
        }
        if groups.is_empty() {
            warnings.push(Contradiction::new(INCLUDE, "", "names no group: nothing outbound is captured"));
        }
        Ok(OwnerGroups::Only(groups))
    }

    fn dns(&self, warnings: &mut Vec<Contradiction>) -> Dns {
        if !self.redirect_dns {
            if self.capture_all_dns {
                warnings.push(Contradiction::new(
                    "capture-all-dns",
                    "true",
                    "has no effect without --redirect-dns",
                ));
            }
            return Dns::Off;
        }
        if self.capture_all_dns {
            return Dns::All { port: Dns::PORT };
        }
        let mut servers = Vec::new();
        for word in &self.dns_servers {
            match word.trim().parse::<IpAddr>() {
                Ok(server) if servers.contains(&server) => {}
                Ok(server) => servers.push(server),
                Err(_) => {
                    let reason = "is not an address (or has a zone, which no rule can match); ignored";
                    warnings.push(Contradiction::new("dns-server", word, reason));
                }
            }
        }
        Dns::Servers { port: Dns::PORT, servers }
    }

    fn loopback(&self) -> Result<Ipv4Net, InvalidInterception> {
        const FIELD: &str = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR";
        let value = &self.host_ipv4_loopback_cidr;
        let net: Ipv4Net = value.parse().map_err(|_| invalid(FIELD, value, "is not an IPv4 prefix"))?;
        if net.addr().is_loopback() && net.prefix_len() >= 8 {
            Ok(net)
        } else {
            Err(invalid(FIELD, value, "is not inside 127.0.0.0/8"))
        }
    }
}

pub(super) fn invalid(field: &'static str, value: &str, reason: &'static str) -> InvalidInterception {
    InvalidInterception::Word { field, value: value.to_owned(), reason }
}

/// The items of a comma separated list, empty ones dropped.
fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').filter(|item| !item.is_empty())
}

/// A list without repetitions, in the order written: a repeated item could change no packet's fate.
pub(super) fn list<T>(field: &'static str, value: &str) -> Result<Vec<T>, InvalidInterception>
where
    T: FromStr<Err = BadWord> + PartialEq,
{
    let mut parsed = Vec::new();
    for item in items(value) {
        let item: T = item.parse().map_err(|BadWord { reason }| invalid(field, item, reason))?;
        if !parsed.contains(&item) {
            parsed.push(item);
        }
    }
    Ok(parsed)
}

fn nets(field: &'static str, value: &str) -> Result<Vec<IpNet>, InvalidInterception> {
    let mut parsed = Vec::new();
    for item in items(value) {
        let reason = if item == "*" {
            "stands among prefixes; it must stand alone"
        } else {
            "is not a prefix such as 10.0.0.0/8"
        };
        let net: IpNet = item.trim().parse().map_err(|_| invalid(field, item, reason))?;
        if !parsed.contains(&net) {
            parsed.push(net);
        }
    }
    Ok(parsed)
}

fn port(field: &'static str, value: &str) -> Result<u16, InvalidInterception> {
    let range: PortRange = value.parse().map_err(|BadWord { reason }| invalid(field, value, reason))?;
    if range.is_single() && range.first() != 0 {
        Ok(range.first())
    } else {
        Err(invalid(field, value, "is not one port between 1 and 65535"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Contradictions;
    use super::*;

    fn with(change: impl FnOnce(&mut InterceptionConfig)) -> Result<Interception, InvalidInterception> {
        let mut config = InterceptionConfig::default();
        change(&mut config);
        config.parse()
    }

    #[test]
    fn the_injected_arguments_are_the_default_intent() {
        let parsed = with(|config| {
            config.proxy_uid = "1337".into();
            config.inbound_interception_mode = "REDIRECT".into();
            config.outbound_ip_ranges_include = "*".into();
            config.inbound_ports_include = "*".into();
            config.inbound_ports_exclude = "15090,15021,15020".into();
        });
        assert_eq!(parsed, Ok(Interception::default()));
    }

    #[test]
    fn wrong_words_are_refused_with_their_field() {
        type Change = fn(&mut InterceptionConfig);
        let cases: [(&str, Change); 12] = [
            ("envoy-port", |c| c.proxy_port = "0".into()),
            ("inbound-capture-port", |c| c.inbound_capture_port = "15006:15007".into()),
            ("proxy-uid", |c| c.proxy_uid = "1337,a b".into()),
            ("istio-inbound-ports", |c| c.inbound_ports_include = "80,*".into()),
            ("istio-service-cidr", |c| c.outbound_ip_ranges_include = "10.0.0.1".into()),
            ("istio-service-cidr", |c| c.outbound_ip_ranges_include = "*,10.0.0.0/8".into()),
            ("istio-service-exclude-cidr", |c| c.outbound_ip_ranges_exclude = "*".into()),
            ("istio-exclude-interfaces", |c| c.exclude_interfaces = "eth0,this-is-too-long".into()),
            ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", |c| c.host_ipv4_loopback_cidr = "127.0.0.1/7".into()),
            ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", |c| c.host_ipv4_loopback_cidr = "192.168.1.1/24".into()),
            ("istio-inbound-tproxy-mark", |c| {
                c.inbound_interception_mode = "TPROXY".into();
                c.inbound_tproxy_mark = "0x539".into();
            }),
            ("ISTIO_OUTBOUND_OWNER_GROUPS", |c| {
                c.owner_groups_include =
                    (1..=65).map(|group| group.to_string()).collect::<Vec<_>>().join(",");
            }),
        ];
        for (field, change) in cases {
            assert_eq!(with(change).map_err(|error| error.field()), Err(field));
        }
    }

    #[test]
    fn lists_are_split_as_istio_splits_them() {
        let parsed = with(|config| config.outbound_ports_include = "6000,, 7000,6000,".into());
        assert_eq!(parsed.map(|intent| intent.outbound_ports), Ok(vec![6000.into(), 7000.into()]));
    }

    #[test]
    fn contradictions_are_named_and_refused_when_strict() {
        let parsed = with(|config| {
            config.inbound_ports_include = "80".into();
            config.inbound_ports_exclude = "81".into();
            config.outbound_ports_include = "3306".into();
            config.outbound_ports_exclude = "3306".into();
            config.capture_all_dns = true;
        });
        let found = parsed.map(Interception::strict);
        let Ok(Err(Contradictions(found))) = found else { panic!("{found:?}") };
        let fields: Vec<_> = found.iter().map(|each| each.field).collect();
        assert_eq!(fields, ["istio-local-exclude-ports", "capture-all-dns", "istio-outbound-ports"]);
    }
}
