//! Intent to rules: the same fate for every packet as Istio's rules, with fewer of them.
//!
//! Three differences in form, none in effect. Chains that only redirect are left out: the redirect stands where the jump
//! would. The rule that spares an application's loopback traffic has no owner: it stands behind the one that has
//! already let the proxy's traffic go. Rules that no packet can reach any more, because loopback traffic is already
//! decided, are not written.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Chain, CtState, Hook, Match, Rule, Ruleset, TableKind, Target};
use crate::interception::{Dns, InboundPorts, Interception, Mode, OutboundRanges, OwnerGroups};
use crate::net::{Family, Interface, Owner, PortRange};

/// nat, from PREROUTING: inbound connections.
pub(crate) const INBOUND: &str = "MESH_INBOUND";
/// nat, from OUTPUT: outbound connections and DNS.
pub(crate) const OUTPUT: &str = "MESH_OUTPUT";
const RAW_IN: &str = "MESH_RAW_IN";
const RAW_OUT: &str = "MESH_RAW_OUT";
const MANGLE_IN: &str = "MESH_MANGLE_IN";
const MANGLE_OUT: &str = "MESH_MANGLE_OUT";
const TPROXY: &str = "MESH_TPROXY";
const DIVERT: &str = "MESH_DIVERT";

/// The mark of the proxy's own connections to its pod's address, in TPROXY mode.
const SELF_MARK: u32 = 1338;
/// Conntrack zone of the agent's own lookups.
const AGENT_ZONE: u16 = 1;
/// Conntrack zone of lookups that applications send to the agent.
const APPLICATION_ZONE: u16 = 2;
/// How many ports one iptables multiport match holds; a range counts twice.
const MULTIPORT: usize = 15;

impl From<&Interception> for Ruleset {
    /// The rules for an intent. Deterministic: equal intents give equal rulesets.
    fn from(intent: &Interception) -> Self {
        let compile = Compile::new(intent);
        let mut ruleset = Self::default();
        compile.raw(&mut ruleset);
        compile.mangle(&mut ruleset);
        compile.nat(&mut ruleset);
        ruleset
    }
}

struct Compile<'a> {
    intent: &'a Interception,
    lo: Interface,
    /// Per captured family: what counts as local, and the proxy's own source address.
    local: Vec<(Family, IpNet, IpNet)>,
    /// The one family of all rules, when IPv6 is left alone.
    only: Option<Family>,
    ids: Vec<(bool, &'a Owner)>,
}

impl<'a> Compile<'a> {
    fn new(intent: &'a Interception) -> Self {
        let six = IpNet::V4(Ipv4Net::new_assert([127, 0, 0, 6].into(), 32));
        let mut local = vec![(Family::V4, IpNet::V4(intent.loopback), six)];
        if intent.ipv6 {
            let host = |last: u16| IpNet::V6(Ipv6Net::new_assert([0, 0, 0, 0, 0, 0, 0, last].into(), 128));
            local.push((Family::V6, host(1), host(6)));
        }
        let uids = intent.proxy_uids.iter().map(|owner| (true, owner));
        let gids = intent.proxy_gids.iter().map(|owner| (false, owner));
        Self {
            intent,
            lo: Interface::loopback(),
            local,
            only: (!intent.ipv6).then_some(Family::V4),
            ids: uids.chain(gids).collect(),
        }
    }

    /// Adds `rules` as chain `name`, and a base chain that sends packets there.
    fn hang(
        &self,
        ruleset: &mut Ruleset,
        at: (TableKind, Hook),
        name: &'static str,
        entry: Vec<Match>,
        rules: Vec<Rule>,
    ) {
        if rules.is_empty() {
            return;
        }
        let (table, hook) = at;
        let mut base = Chain::base(table, hook);
        let note = match hook {
            Hook::Output => "what local processes send",
            _ => "what arrives",
        };
        base.rules.push(Rule::new(entry, Target::Jump(name.into())).only(self.only).noted(note));
        let mut chain = Chain::regular(table, name);
        chain.rules = rules;
        ruleset.chains.extend([base, chain]);
    }

    fn captured(&self, net: &IpNet) -> bool {
        self.intent.ipv6 || net.addr().is_ipv4()
    }

    fn owner(&self, (is_user, owner): (bool, &Owner)) -> Match {
        let owner = owner.clone();
        if is_user { Match::Uid { owner, invert: false } } else { Match::Gid { owner, invert: false } }
    }

    fn raw(&self, ruleset: &mut Ruleset) {
        let Some(agent) = self.intent.dns.port() else { return };
        let udp_to = |port: u16| vec![Match::UDP, Match::ports([port.into()])];
        let udp_from =
            |port: u16| vec![Match::UDP, Match::SourcePorts { ports: vec![port.into()], invert: false }];
        let mut out = Vec::new();
        for id in &self.ids {
            let mut question = udp_to(53);
            question.push(self.owner(*id));
            out.push(Rule::new(question, Target::Zone(AGENT_ZONE)).noted("DNS: the agent's own lookups"));
            let mut answer = udp_from(agent);
            answer.push(self.owner(*id));
            out.push(Rule::new(answer, Target::Zone(APPLICATION_ZONE)).noted("DNS: the agent's answers"));
        }
        let mut back = Vec::new();
        let lookups = "DNS: applications' lookups";
        let answers = "DNS: answers to the agent";
        match &self.intent.dns {
            Dns::Servers { servers, .. } => {
                for net in servers.iter().map(|server| IpNet::from(*server)).filter(|net| self.captured(net))
                {
                    let mut question = udp_to(53);
                    question.push(Match::to(net));
                    out.push(Rule::new(question, Target::Zone(APPLICATION_ZONE)).noted(lookups));
                    let mut answer = udp_from(53);
                    answer.push(Match::from(net));
                    back.push(Rule::new(answer, Target::Zone(AGENT_ZONE)).noted(answers));
                }
            }
            _ => {
                out.push(Rule::new(udp_to(53), Target::Zone(APPLICATION_ZONE)).noted(lookups));
                back.push(Rule::new(udp_from(53), Target::Zone(AGENT_ZONE)).noted(answers));
            }
        }
        self.hang(ruleset, (TableKind::Raw, Hook::Prerouting), RAW_IN, Vec::new(), back);
        self.hang(ruleset, (TableKind::Raw, Hook::Output), RAW_OUT, Vec::new(), out);
    }

    fn mangle(&self, ruleset: &mut Ruleset) {
        let mut rules = Vec::new();
        let tproxy = match self.intent.mode {
            Mode::Tproxy { mark, .. } => Some(mark),
            Mode::Redirect => None,
        };
        if tproxy.is_some() {
            rules.extend(self.spared_interfaces(Match::via));
        }
        if self.intent.drop_invalid {
            let invalid = Match::State { states: vec![CtState::Invalid], invert: false };
            rules.push(Rule::new(vec![invalid], Target::Drop).noted("packets that fit no connection"));
        }
        let Some(mark) = tproxy else {
            return self.hang(ruleset, (TableKind::Mangle, Hook::Prerouting), MANGLE_IN, Vec::new(), rules);
        };
        let inbound = self.intent.captures_inbound();
        if inbound {
            rules.push(Rule::new(vec![Match::TCP], Target::Jump(TPROXY.into())).noted("inbound connections"));
        }
        let marked = vec![Match::TCP, Match::mark(mark)];
        rules.push(Rule::new(marked, Target::SaveMark).noted("remember connections that the proxy marked"));
        self.hang(ruleset, (TableKind::Mangle, Hook::Prerouting), MANGLE_IN, Vec::new(), rules);
        if inbound {
            let mut chain = Chain::regular(TableKind::Mangle, TPROXY);
            chain.rules = self.tproxy_rules(mark);
            let mut divert = Chain::regular(TableKind::Mangle, DIVERT);
            divert.rules = vec![
                Rule::new(Vec::new(), Target::SetMark { value: mark, mask: u32::MAX })
                    .noted("route to this machine"),
                Rule::new(Vec::new(), Target::Accept).noted("to the socket that has the connection"),
            ];
            ruleset.chains.extend([chain, divert]);
        }
        self.mangle_output(ruleset, mark);
    }

    fn tproxy_rules(&self, mark: u32) -> Vec<Rule> {
        let via_lo = || Match::via(&self.lo);
        let mut rules = vec![
            Rule::new(vec![Match::TCP, Match::mark(mark)], Target::Return).noted("the proxy's own, marked"),
        ];
        for (_, _, six) in &self.local {
            let matches = vec![Match::from(*six), via_lo(), Match::TCP];
            rules.push(Rule::new(matches, Target::Return).noted("the proxy to its application"));
        }
        let other = Match::Mark { value: SELF_MARK, mask: u32::MAX, invert: true };
        rules.push(
            Rule::new(vec![via_lo(), Match::TCP, other], Target::Return).noted("an application to itself"),
        );
        rules.extend(self.exempt_sources());
        let ports = match &self.intent.inbound {
            InboundPorts::AllExcept(excluded) => {
                for ports in multiport(excluded) {
                    let matches = vec![Match::TCP, Match::ports(ports)];
                    rules.push(Rule::new(matches, Target::Return).noted("excluded inbound port"));
                }
                vec![None]
            }
            InboundPorts::Only(ports) => multiport(ports).map(Some).collect(),
        };
        for ports in ports {
            let matches = || [Some(Match::TCP), ports.clone().map(Match::ports)].into_iter().flatten();
            let known = Match::State { states: vec![CtState::Related, CtState::Established], invert: false };
            let divert = matches().chain([known]).collect();
            rules
                .push(Rule::new(divert, Target::Jump(DIVERT.into())).noted("connections that exist already"));
            for (_, lo, _) in &self.local {
                let matches = [Match::not_to(*lo)].into_iter().chain(matches()).collect();
                let target = Target::Tproxy { port: self.intent.inbound_port, mark };
                rules.push(Rule::new(matches, target).noted("inbound connections go to the proxy"));
            }
        }
        rules
    }

    fn mangle_output(&self, ruleset: &mut Ruleset, mark: u32) {
        let mut rules = self.spared_interfaces(Match::out);
        let local = vec![Match::out(&self.lo), Match::TCP, Match::mark(mark)];
        rules.push(Rule::new(local, Target::Return).noted("the proxy's own, marked"));
        for id in &self.ids {
            for (_, lo, _) in &self.local {
                let matches = vec![Match::not_to(*lo), Match::out(&self.lo), Match::TCP, self.owner(*id)];
                let target = Target::SetMark { value: SELF_MARK, mask: u32::MAX };
                rules.push(Rule::new(matches, target).noted("the proxy to its own pod"));
            }
        }
        let known = Match::ConnMark { value: mark, mask: u32::MAX, invert: false };
        rules.push(
            Rule::new(vec![Match::TCP, known], Target::RestoreMark).noted("answers of marked connections"),
        );
        self.hang(ruleset, (TableKind::Mangle, Hook::Output), MANGLE_OUT, Vec::new(), rules);
    }

    fn nat(&self, ruleset: &mut Ruleset) {
        let inbound = self.nat_inbound();
        self.hang(ruleset, (TableKind::Nat, Hook::Prerouting), INBOUND, vec![Match::TCP], inbound);
        let mut output = self.nat_output();
        drop_idle_tail(&mut output);
        self.hang(ruleset, (TableKind::Nat, Hook::Output), OUTPUT, Vec::new(), output);
    }

    fn nat_inbound(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        let outbound = Target::Redirect { port: self.intent.outbound_port };
        for interface in &self.intent.virtual_interfaces {
            let note = "outbound, from a virtual machine";
            match &self.intent.outbound {
                OutboundRanges::All => {
                    let matches = vec![Match::via(interface), Match::TCP];
                    rules.push(Rule::new(matches, outbound.clone()).noted(note));
                }
                OutboundRanges::Only(nets) => {
                    for net in nets.iter().filter(|net| self.captured(net)) {
                        let matches = vec![Match::to(*net), Match::via(interface), Match::TCP];
                        rules.push(Rule::new(matches, outbound.clone()).noted(note));
                    }
                }
            }
        }
        if self.intent.mode == Mode::Redirect && self.intent.captures_inbound() {
            for interface in &self.intent.virtual_interfaces {
                let matches = vec![Match::via(interface)];
                rules.push(Rule::new(matches, Target::Return).noted("from a virtual machine, not captured"));
            }
            rules.extend(self.spared_interfaces(Match::via));
            rules.extend(self.exempt_sources());
            let tunnel = PortRange::single(self.intent.tunnel_port);
            let redirect = |ports: Option<Vec<PortRange>>| {
                let matches = [Some(Match::TCP), ports.map(Match::ports)].into_iter().flatten().collect();
                Rule::new(matches, Target::Redirect { port: self.intent.inbound_port })
                    .noted("inbound connections go to the proxy")
            };
            let spare = |ports: Vec<PortRange>, note: &'static str| {
                Rule::new(vec![Match::TCP, Match::ports(ports)], Target::Return).noted(note)
            };
            match &self.intent.inbound {
                InboundPorts::AllExcept(excluded) => {
                    let mut ports = vec![tunnel];
                    ports.extend(excluded.iter().filter(|port| **port != tunnel));
                    rules.extend(
                        multiport(&ports).map(|ports| spare(ports, "excluded inbound port, or the tunnel's")),
                    );
                    rules.push(redirect(None));
                }
                InboundPorts::Only(included) => {
                    if included.iter().any(|port| port.overlaps(tunnel)) {
                        rules.push(spare(vec![tunnel], "the tunnel's port"));
                    }
                    rules.extend(multiport(included).map(|ports| redirect(Some(ports))));
                }
            }
        }
        drop_idle_tail(&mut rules);
        rules
    }

    fn nat_output(&self) -> Vec<Rule> {
        let intent = self.intent;
        let mut rules = self.spared_interfaces(Match::out);
        for ports in multiport(&intent.outbound_exclude_ports) {
            for protocol in [Match::TCP, Match::UDP] {
                let matches = vec![protocol, Match::ports(ports.clone())];
                rules.push(Rule::new(matches, Target::Return).noted("excluded outbound port"));
            }
        }
        for (_, _, six) in &self.local {
            let matches = vec![Match::from(*six), Match::out(&self.lo)];
            rules.push(Rule::new(matches, Target::Return).noted("the proxy to its application"));
        }
        self.own_traffic(&mut rules);
        match &intent.owner_groups {
            OwnerGroups::AllExcept(groups) => {
                for owner in groups {
                    let matches = vec![Match::Gid { owner: owner.clone(), invert: false }];
                    rules.push(Rule::new(matches, Target::Return).noted("excluded owner group"));
                }
            }
            OwnerGroups::Only(groups) => {
                let matches =
                    groups.iter().map(|owner| Match::Gid { owner: owner.clone(), invert: true }).collect();
                rules.push(Rule::new(matches, Target::Return).noted("no included owner group"));
                if groups.is_empty() {
                    return rules;
                }
            }
        }
        self.dns_redirects(&mut rules);
        for (_, lo, _) in &self.local {
            rules.push(Rule::new(vec![Match::to(*lo)], Target::Return).noted("this machine"));
        }
        for net in intent.outbound_exclude.iter().filter(|net| self.captured(net)) {
            rules.push(Rule::new(vec![Match::to(*net)], Target::Return).noted("excluded destination"));
        }
        let redirect = Target::Redirect { port: intent.outbound_port };
        match &intent.outbound {
            OutboundRanges::All => {
                rules.push(Rule::new(vec![Match::TCP], redirect).noted("everything else goes to the proxy"));
            }
            OutboundRanges::Only(nets) => {
                for ports in multiport(&intent.outbound_ports) {
                    let matches = vec![Match::TCP, Match::ports(ports)];
                    rules.push(Rule::new(matches, redirect.clone()).noted("included outbound port"));
                }
                for net in nets.iter().filter(|net| self.captured(net)) {
                    let matches = vec![Match::to(*net), Match::TCP];
                    rules.push(Rule::new(matches, redirect.clone()).noted("included destination"));
                }
            }
        }
        rules
    }

    /// What the proxy itself sends, and what applications send over loopback.
    fn own_traffic(&self, rules: &mut Vec<Rule>) {
        let intent = self.intent;
        let dns = intent.dns.port().is_some();
        let tunnel = intent.tunnel_port;
        let loopback_included = match &intent.outbound {
            OutboundRanges::All => false,
            OutboundRanges::Only(nets) => nets.iter().any(|net| net.addr().is_loopback()),
        };
        // Whether loopback traffic (with DNS capture: TCP but for port 53) is decided by the rules so far.
        let mut decided = false;
        for (index, id) in self.ids.iter().enumerate() {
            let ports = match (decided, dns) {
                (false, true) if id.0 => Some(Match::not_ports([53.into(), tunnel.into()])),
                (false, _) => Some(Match::not_ports([tunnel.into()])),
                (true, true) if !id.0 && tunnel != 53 => Some(Match::ports([53.into()])),
                (true, _) => None,
            };
            if let Some(ports) = ports {
                for (_, lo, _) in &self.local {
                    let matches = vec![
                        Match::not_to(*lo),
                        Match::out(&self.lo),
                        Match::TCP,
                        ports.clone(),
                        self.owner(*id),
                    ];
                    let target = Target::Redirect { port: intent.inbound_port };
                    rules.push(
                        Rule::new(matches, target).noted("the proxy to its own pod: as if from outside"),
                    );
                }
            }
            let own = Rule::new(vec![self.owner(*id)], Target::Return).noted("the proxy's own traffic");
            rules.push(own);
            if index == 0 && !loopback_included {
                decided = true;
                let matches = if dns {
                    vec![Match::out(&self.lo), Match::TCP, Match::not_ports([53.into()])]
                } else {
                    vec![Match::out(&self.lo)]
                };
                rules.push(Rule::new(matches, Target::Return).noted("an application to itself"));
            }
        }
    }

    fn dns_redirects(&self, rules: &mut Vec<Rule>) {
        let Some(agent) = self.intent.dns.port() else { return };
        let redirect = Target::Redirect { port: agent };
        for protocol in [Match::TCP, Match::UDP] {
            let to_dns = [protocol, Match::ports([53.into()])];
            if let Dns::Servers { servers, .. } = &self.intent.dns {
                for net in servers.iter().map(|server| IpNet::from(*server)).filter(|net| self.captured(net))
                {
                    let matches = [Match::to(net)].into_iter().chain(to_dns.clone()).collect();
                    rules.push(Rule::new(matches, redirect.clone()).noted("DNS goes to the agent"));
                }
            } else {
                rules.push(Rule::new(to_dns.to_vec(), redirect.clone()).noted("DNS goes to the agent"));
            }
        }
    }

    fn spared_interfaces(&self, by: fn(&Interface) -> Match) -> Vec<Rule> {
        let rule = |name| Rule::new(vec![by(name)], Target::Return).noted("excluded interface");
        self.intent.exclude_interfaces.iter().map(rule).collect()
    }

    fn exempt_sources(&self) -> impl Iterator<Item = Rule> {
        let nets = self.intent.inbound_exempt_sources.iter().filter(|net| self.captured(net));
        nets.map(|net| Rule::new(vec![Match::from(*net)], Target::Return).noted("exempt source"))
    }
}

/// Port lists in pieces that one iptables rule can hold.
fn multiport(ports: &[PortRange]) -> impl Iterator<Item = Vec<PortRange>> {
    let mut pieces: Vec<Vec<PortRange>> = Vec::new();
    let mut room = 0;
    for port in ports {
        let needs = if port.is_single() { 1 } else { 2 };
        if needs > room {
            pieces.push(Vec::new());
            room = MULTIPORT;
        }
        room -= needs;
        if let Some(last) = pieces.last_mut() {
            last.push(*port);
        }
    }
    pieces.into_iter()
}

/// At the end of a chain, going back and falling off are the same.
fn drop_idle_tail(rules: &mut Vec<Rule>) {
    while rules.last().is_some_and(|rule| rule.target == Target::Return) {
        rules.pop();
    }
}
