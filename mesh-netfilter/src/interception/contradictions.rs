//! Intents that say two things at once.

use std::fmt;

use super::{Dns, InboundPorts, Interception, OutboundRanges};

/// Two parts of an intent that cannot both hold, and which of them wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    /// The field, by its long flag (or environment variable).
    pub field: &'static str,
    /// The value that has no effect, or not the one it seems to have.
    pub value: String,
    /// What happens instead.
    pub reason: String,
}

impl Contradiction {
    /// A contradiction from its parts.
    pub fn new(field: &'static str, value: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field, value: value.into(), reason: reason.into() }
    }
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?} {}", self.field, self.value, self.reason)
    }
}

/// Every contradiction of one intent; what [`Interception::strict`] refuses with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Contradictions(pub Vec<Contradiction>);

impl fmt::Display for Contradictions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, each) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{each}")?;
        }
        Ok(())
    }
}

impl Interception {
    /// What this intent says twice and differently, with what happens: [`Interception::warnings`] first, then what the
    /// values themselves show.
    pub fn contradictions(&self) -> Vec<Contradiction> {
        let mut found = self.warnings.clone();
        for port in &self.outbound_ports {
            if self.outbound_exclude_ports.iter().any(|excluded| excluded.overlaps(*port)) {
                found.push(Contradiction::new(
                    "istio-outbound-ports",
                    port.to_string(),
                    "is also excluded; the exclusion wins",
                ));
            }
        }
        if let OutboundRanges::Only(nets) = &self.outbound {
            for net in nets {
                if self.outbound_exclude.iter().any(|excluded| excluded.contains(net)) {
                    found.push(Contradiction::new(
                        "istio-service-cidr",
                        net.to_string(),
                        "is also excluded; the exclusion wins",
                    ));
                }
            }
        }
        if let InboundPorts::Only(ports) = &self.inbound
            && self.mode == super::Mode::Redirect
            && ports.iter().any(|port| port.contains(self.tunnel_port))
        {
            found.push(Contradiction::new(
                "istio-inbound-ports",
                self.tunnel_port.to_string(),
                "is the tunnel port, which is never captured",
            ));
        }
        for name in &self.virtual_interfaces {
            if self.exclude_interfaces.contains(name) {
                found.push(Contradiction::new(
                    "kube-virt-interfaces",
                    name.to_string(),
                    "is also excluded; what enters through it is captured all the same",
                ));
            }
        }
        if self.mode != super::Mode::Redirect && self.captures_inbound() {
            for name in &self.virtual_interfaces {
                found.push(Contradiction::new(
                    "kube-virt-interfaces",
                    name.to_string(),
                    "has no effect on inbound ports in TPROXY mode: they go to the inbound port, wherever from",
                ));
            }
        }
        if self.outbound_port == self.inbound_port {
            found.push(Contradiction::new(
                "inbound-capture-port",
                self.inbound_port.to_string(),
                "is the outbound port too; the proxy cannot tell the two directions apart",
            ));
        }
        if matches!(&self.dns, Dns::Servers { servers, .. } if servers.is_empty()) {
            found.push(Contradiction::new(
                "redirect-dns",
                "true",
                "has no effect: no name server is known and not all lookups are captured",
            ));
        }
        if !self.ipv6 {
            let v6 = |nets: &[ipnet::IpNet]| nets.iter().find(|net| net.addr().is_ipv6()).copied();
            let included = match &self.outbound {
                OutboundRanges::Only(nets) => v6(nets),
                OutboundRanges::All => None,
            };
            for (field, net) in
                [("istio-service-cidr", included), ("istio-service-exclude-cidr", v6(&self.outbound_exclude))]
            {
                if let Some(net) = net {
                    let reason = "is IPv6, which is not captured here";
                    found.push(Contradiction::new(field, net.to_string(), reason));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use crate::{Interception, Mode};

    #[test]
    fn a_virtual_machine_under_tproxy() {
        let intent = Interception {
            mode: Mode::TPROXY,
            virtual_interfaces: vec!["vnet0".parse().expect("a name")],
            ..Interception::default()
        };
        let found: Vec<_> =
            intent.contradictions().into_iter().map(|each| (each.field, each.value)).collect();
        assert_eq!(found, [("kube-virt-interfaces", "vnet0".to_owned())]);
        let redirected = Interception { mode: Mode::Redirect, ..intent };
        assert_eq!(redirected.contradictions(), []);
    }
}
