//! Rules as `iptables-save` writes them.

use std::fmt::{self, Write};

use super::{CtState, Match, Rule, Target};
use crate::net::{Family, PortRange};

impl fmt::Display for Rule {
    /// The rule without its chain, as `iptables-save` writes it: `-o lo -p tcp -m tcp --dport 80 -j RETURN`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_iptables(f, self.family.unwrap_or(Family::V4))
    }
}

impl Rule {
    /// Writes the rule as one family's `iptables-save` does.
    pub(crate) fn write_iptables(&self, out: &mut impl Write, family: Family) -> fmt::Result {
        let mut first = true;
        // The part before the extensions has a fixed order.
        for order in 0..5 {
            for each in self.matches.iter().filter(|each| base_order(each) == Some(order)) {
                space(out, &mut first)?;
                write_base(each, out)?;
            }
        }
        let mut before = None;
        for each in self.matches.iter().filter(|each| base_order(each).is_none()) {
            space(out, &mut first)?;
            self.write_extension(before, each, out)?;
            before = Some(each);
        }
        if self.target != Target::Count {
            space(out, &mut first)?;
        }
        write_target(&self.target, out, family)
    }

    fn write_extension(&self, before: Option<&Match>, each: &Match, out: &mut impl Write) -> fmt::Result {
        match each {
            Match::SourcePorts { ports, invert } => self.write_ports(out, ports, *invert, ("sport", false)),
            Match::DestinationPorts { ports, invert } => {
                self.write_ports(out, ports, *invert, ("dport", self.continues(before, each)))
            }
            Match::Uid { owner, invert } => write!(out, "-m owner {}--uid-owner {owner}", not(*invert)),
            Match::Gid { owner, invert } => {
                // One owner match holds a user and a group.
                let module = if matches!(before, Some(Match::Uid { .. })) { "" } else { "-m owner " };
                write!(out, "{module}{}--gid-owner {owner}", not(*invert))
            }
            Match::Mark { value, mask, invert } => {
                write!(out, "-m mark {}--mark ", not(*invert))?;
                write_masked(out, *value, *mask)
            }
            Match::ConnMark { value, mask, invert } => {
                write!(out, "-m connmark {}--mark ", not(*invert))?;
                write_masked(out, *value, *mask)
            }
            Match::State { states, invert } => {
                write!(out, "-m conntrack {}--ctstate ", not(*invert))?;
                let mut comma = "";
                for state in CtState::ALL.iter().filter(|state| states.contains(state)) {
                    write!(out, "{comma}{}", state.as_str())?;
                    comma = ",";
                }
                Ok(())
            }
            Match::Comment { text } => write!(out, "-m comment --comment {}", crate::text::quoted(text)),
            Match::Foreign { words } => out.write_str(words),
            _ => Ok(()),
        }
    }

    /// Whether this is said in the same breath as the extension before it: two ports of one protocol.
    fn continues(&self, before: Option<&Match>, each: &Match) -> bool {
        let single = |ports: &[PortRange]| ports.len() == 1;
        match (before, each) {
            (Some(Match::SourcePorts { ports: a, .. }), Match::DestinationPorts { ports: b, .. }) => {
                single(a) && single(b)
            }
            _ => false,
        }
    }

    fn write_ports(
        &self,
        out: &mut impl Write,
        ports: &[PortRange],
        invert: bool,
        (word, continues): (&str, bool),
    ) -> fmt::Result {
        let invert = not(invert);
        if let [port] = ports {
            let protocol = self.matches.iter().find_map(|each| match each {
                Match::Protocol { protocol, .. } => Some(protocol),
                _ => None,
            });
            if let Some(protocol) = protocol.filter(|_| !continues) {
                write!(out, "-m {protocol} ")?;
            }
            return write!(out, "{invert}--{word} {port}");
        }
        write!(out, "-m multiport {invert}--{word}s ")?;
        for (index, port) in ports.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(out, "{comma}{port}")?;
        }
        Ok(())
    }
}

const fn not(invert: bool) -> &'static str {
    if invert { "! " } else { "" }
}

fn space(out: &mut impl Write, first: &mut bool) -> fmt::Result {
    if std::mem::take(first) { Ok(()) } else { out.write_char(' ') }
}

const fn base_order(each: &Match) -> Option<u8> {
    match each {
        Match::Source { .. } => Some(0),
        Match::Destination { .. } => Some(1),
        Match::InInterface { .. } => Some(2),
        Match::OutInterface { .. } => Some(3),
        Match::Protocol { .. } => Some(4),
        _ => None,
    }
}

fn write_base(each: &Match, out: &mut impl Write) -> fmt::Result {
    match each {
        Match::Source { net, invert } => write!(out, "{}-s {}", not(*invert), net.trunc()),
        Match::Destination { net, invert } => write!(out, "{}-d {}", not(*invert), net.trunc()),
        Match::InInterface { interface, invert } => write!(out, "{}-i {interface}", not(*invert)),
        Match::OutInterface { interface, invert } => write!(out, "{}-o {interface}", not(*invert)),
        Match::Protocol { protocol, invert } => write!(out, "{}-p {protocol}", not(*invert)),
        _ => Ok(()),
    }
}

fn write_masked(out: &mut impl Write, value: u32, mask: u32) -> fmt::Result {
    if mask == u32::MAX { write!(out, "{value:#x}") } else { write!(out, "{value:#x}/{mask:#x}") }
}

fn write_target(target: &Target, out: &mut impl Write, family: Family) -> fmt::Result {
    match target {
        Target::Accept => out.write_str("-j ACCEPT"),
        Target::Drop => out.write_str("-j DROP"),
        Target::Reject { with: None } => out.write_str("-j REJECT"),
        Target::Reject { with: Some(with) } => write!(out, "-j REJECT --reject-with {with}"),
        Target::Return => out.write_str("-j RETURN"),
        Target::Jump(chain) => write!(out, "-j {chain}"),
        Target::Goto(chain) => write!(out, "-g {chain}"),
        Target::Redirect { port } => write!(out, "-j REDIRECT --to-ports {port}"),
        Target::Tproxy { port, mark } => {
            let any = if family == Family::V4 { "0.0.0.0" } else { "::" };
            write!(out, "-j TPROXY --on-port {port} --on-ip {any} --tproxy-mark {mark:#x}/0xffffffff")
        }
        Target::SetMark { value, mask } => write!(out, "-j MARK --set-xmark {value:#x}/{mask:#x}"),
        Target::SaveMark => out.write_str("-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"),
        Target::RestoreMark => {
            out.write_str("-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff")
        }
        Target::Zone(zone) => write!(out, "-j CT --zone {zone}"),
        Target::Count => Ok(()),
        Target::Foreign { words } => write!(out, "-j {words}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;

    #[test]
    fn a_rule_reads_as_iptables_save_writes_it() {
        let lo = Interface::loopback();
        let rule = Rule::new(
            vec![
                Match::TCP,
                Match::not_ports([53.into(), 15008.into()]),
                Match::Uid { owner: Owner::Id(1337), invert: false },
                Match::out(&lo),
                Match::not_to("127.0.0.1/32".parse().expect("a prefix")),
            ],
            Target::Redirect { port: 15006 },
        );
        assert_eq!(
            rule.to_string(),
            "! -d 127.0.0.1/32 -o lo -p tcp -m multiport ! --dports 53,15008 -m owner --uid-owner 1337 \
             -j REDIRECT --to-ports 15006"
        );
    }
}
