//! What `apply` finds out about the machine: whether it speaks IPv6, which name servers it asks, and who the proxy is.

use std::net::IpAddr;
use std::path::Path;

use crate::Failure;
use crate::flags::{Command, Flags};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Fills in what the flags leave open.
pub(crate) fn look(flags: &Flags) -> Result<Flags, Failure> {
    let mut flags = flags.clone();
    if flags.config.proxy_uid.is_empty() {
        let user = nix::unistd::User::from_name(&flags.proxy_user).ok().flatten();
        // Without such a user the intent's own default counts.
        flags.config.proxy_uid = user.map(|user| user.uid.to_string()).unwrap_or_default();
    }
    if flags.command == Command::Clean {
        // Whatever the machine speaks now, everything of ours goes.
        flags.config.enable_ipv6 = true;
        "TPROXY".clone_into(&mut flags.config.inbound_interception_mode);
        "*".clone_into(&mut flags.config.inbound_ports_include);
    } else if flags.enable_ipv6.is_none() {
        flags.config.enable_ipv6 = speaks_ipv6(&addresses()?, flags.dual_stack).ok_or_else(|| {
            Failure::rules("no valid local IP address found; --enable-ipv6[=false] says what to write")
        })?;
    }
    let wants_servers =
        flags.command != Command::Clean && flags.config.redirect_dns && !flags.config.capture_all_dns;
    if wants_servers && flags.config.dns_servers.is_empty() {
        let text = std::fs::read_to_string(Path::new(RESOLV_CONF))
            .map_err(|error| Failure::rules(format!("failed to load {RESOLV_CONF}: {error}")))?;
        flags.config.dns_servers = name_servers(&text);
    }
    Ok(flags)
}

/// The addresses of this network namespace, in the kernel's order.
fn addresses() -> Result<Vec<IpAddr>, Failure> {
    let all =
        nix::ifaddrs::getifaddrs().map_err(|error| Failure::rules(format!("local addresses: {error}")))?;
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(all.filter_map(|each| each.address.and_then(ip)).collect())
}

/// As Istio decides: the first usable address says so; in a dual-stack pod any IPv6 address does. `None` without any.
pub fn speaks_ipv6(addresses: &[IpAddr], dual_stack: bool) -> Option<bool> {
    let usable = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_multicast(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_multicast(),
    };
    let mut usable = addresses.iter().map(IpAddr::to_canonical).filter(usable).peekable();
    let first = usable.peek()?.is_ipv6();
    Some(if dual_stack { usable.any(|address| address.is_ipv6()) } else { first })
}

/// The `nameserver` lines of a resolver configuration.
fn name_servers(text: &str) -> Vec<String> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next().map(str::to_owned)).flatten()
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_usable_address_decides() {
        let of = |words: &[&str]| words.iter().filter_map(|word| word.parse().ok()).collect::<Vec<IpAddr>>();
        let mixed = of(&["127.0.0.1", "1.2.3.5", "::1", "fe80::1", "2222:3333::1"]);
        assert_eq!(speaks_ipv6(&mixed, false), Some(false));
        assert_eq!(speaks_ipv6(&mixed, true), Some(true));
        assert_eq!(speaks_ipv6(&of(&["127.0.0.1", "2222::1", "1.2.3.4"]), false), Some(true));
        assert_eq!(speaks_ipv6(&of(&["::ffff:1.2.3.4"]), true), Some(false));
        assert_eq!(speaks_ipv6(&of(&["127.0.0.1", "169.254.1.1", "fe80::1"]), true), None);
    }

    #[test]
    fn name_servers_are_read() {
        let text = "# nameserver 9.9.9.9\nsearch a.b\nnameserver 10.96.0.10\nnameserver\tfd00::a extra\nnameserver\n";
        assert_eq!(name_servers(text), ["10.96.0.10", "fd00::a"]);
    }
}
