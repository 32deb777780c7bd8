//! The options of one iptables rule.

use ipnet::IpNet;

use super::restore::chain_name;
use crate::net::{Family, Interface, Owner, PortRange, Protocol, number};
use crate::ruleset::{CtState, Match, Rule, Target};

type Wrong = (&'static str, String);

/// Reads the words after the chain's name.
pub(super) fn rule(words: &[&str], family: Family) -> Result<Rule, Wrong> {
    let mut options =
        Options { words, at: 0, family, module: None, fresh: false, matches: Vec::new(), target: None };
    while let Some(word) = options.next() {
        options.option(word)?;
    }
    let target = options.target.unwrap_or(Target::Count);
    Ok(Rule { family: Some(family), matches: options.matches, target, note: "".into() })
}

struct Options<'a> {
    words: &'a [&'a str],
    at: usize,
    family: Family,
    module: Option<&'a str>,
    /// Whether nothing of that module stands before yet.
    fresh: bool,
    matches: Vec<Match>,
    target: Option<Target>,
}

/// Options that begin something new, whatever stands before.
fn begins(word: &str) -> bool {
    matches!(
        word,
        "-s" | "-d"
            | "-i"
            | "-o"
            | "-p"
            | "-m"
            | "-j"
            | "-g"
            | "!"
            | "--source"
            | "--src"
            | "--destination"
            | "--dst"
            | "--in-interface"
            | "--out-interface"
            | "--protocol"
            | "--proto"
            | "--match"
            | "--jump"
            | "--goto"
            | "-f"
            | "--fragment"
    )
}

impl<'a> Options<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at).copied()?;
        self.at += 1;
        Some(word)
    }

    fn value(&mut self, option: &str) -> Result<&'a str, Wrong> {
        self.next().ok_or_else(|| ("an option without its value", option.to_owned()))
    }

    fn parsed<T: std::str::FromStr>(&mut self, option: &str, reason: &'static str) -> Result<T, Wrong> {
        let word = self.value(option)?;
        word.parse().map_err(|_| (reason, word.to_owned()))
    }

    /// Everything up to the next option that begins something new.
    fn rest(&mut self, mut words: String) -> String {
        while let Some(word) = self.words.get(self.at).filter(|word| !begins(word)) {
            words.push(' ');
            words.push_str(&quoted(word));
            self.at += 1;
        }
        words
    }

    fn option(&mut self, word: &'a str) -> Result<(), Wrong> {
        let invert = word == "!";
        let word = if invert { self.value("!")? } else { word };
        let found = match word {
            "-s" | "--source" | "--src" => Match::Source { net: self.net(word)?, invert },
            "-d" | "--destination" | "--dst" => Match::Destination { net: self.net(word)?, invert },
            "-i" | "--in-interface" => {
                Match::InInterface { interface: self.parsed::<Interface>(word, "not an interface")?, invert }
            }
            "-o" | "--out-interface" => {
                Match::OutInterface { interface: self.parsed::<Interface>(word, "not an interface")?, invert }
            }
            "-p" | "--protocol" | "--proto" => {
                let name = self.value(word)?;
                let wrong = || ("not a protocol", name.to_owned());
                let every = if name == "all" { "0" } else { name };
                let protocol: Protocol = every.parse().map_err(|_| wrong())?;
                match (protocol.number(), invert) {
                    // To iptables, nought is every protocol.
                    (0, false) => return Ok(()),
                    (0, true) => return Err(wrong()),
                    _ => Match::Protocol { protocol, invert },
                }
            }
            "-m" | "--match" if !invert => {
                let name = self.value(word)?;
                self.module = Some(name);
                let known = matches!(
                    name,
                    "tcp"
                        | "udp"
                        | "udplite"
                        | "sctp"
                        | "dccp"
                        | "multiport"
                        | "owner"
                        | "mark"
                        | "connmark"
                        | "conntrack"
                        | "state"
                        | "comment"
                );
                self.fresh = known;
                if known {
                    return Ok(());
                }
                Match::Foreign { words: self.rest(format!("-m {}", quoted(name))) }
            }
            "--dport" | "--destination-port" => {
                Match::DestinationPorts { ports: vec![self.port(word)?], invert }
            }
            "--sport" | "--source-port" => Match::SourcePorts { ports: vec![self.port(word)?], invert },
            "--dports" | "--destination-ports" => {
                Match::DestinationPorts { ports: self.ports(word)?, invert }
            }
            "--sports" | "--source-ports" => Match::SourcePorts { ports: self.ports(word)?, invert },
            "--uid-owner" => Match::Uid { owner: self.parsed::<Owner>(word, "not a user")?, invert },
            "--gid-owner" => Match::Gid { owner: self.parsed::<Owner>(word, "not a group")?, invert },
            "--mark" => {
                let (value, mask) = self.masked(word)?;
                if self.module == Some("connmark") {
                    Match::ConnMark { value, mask, invert }
                } else {
                    Match::Mark { value, mask, invert }
                }
            }
            "--ctstate" | "--state" => self.states(word, invert)?,
            "--comment" if !invert => Match::Comment { text: self.value(word)?.to_owned() },
            "-j" | "--jump" if !invert => {
                let name = self.value(word)?;
                self.target = Some(self.target_of(name)?);
                return Ok(());
            }
            "-g" | "--goto" if !invert => {
                let name = self.value(word)?;
                chain_name(name).map_err(|reason| (reason, name.to_owned()))?;
                self.target = Some(Target::Goto(name.to_owned().into()));
                return Ok(());
            }
            // Later fragments, by an option of no module.
            "-f" | "--fragment" => Match::Foreign { words: if invert { "! -f" } else { "-f" }.to_owned() },
            // `-m socket --transparent` and the like; `-p tcp --syn` needs no module's name.
            other if other.starts_with("--") && self.target.is_none() => {
                let not = if invert { "! " } else { "" };
                let module = self.module.filter(|_| self.fresh);
                let module = module.map_or_else(String::new, |module| format!("-m {module} "));
                Match::Foreign { words: self.rest(format!("{module}{not}{}", quoted(other))) }
            }
            other => return Err(("not an option that is known here", other.to_owned())),
        };
        self.fresh &= matches!(word, "-s" | "-d" | "-i" | "-o" | "-p" | "-f");
        self.matches.push(found);
        Ok(())
    }

    fn net(&mut self, option: &str) -> Result<IpNet, Wrong> {
        let word = self.value(option)?;
        let wrong = || ("not an address or prefix", word.to_owned());
        let net = match word.split_once('/') {
            None => word.parse::<std::net::IpAddr>().map(IpNet::from).map_err(|_| wrong())?,
            Some((address, mask)) => {
                let address: std::net::IpAddr = address.parse().map_err(|_| wrong())?;
                match mask.parse::<u8>() {
                    Ok(length) => IpNet::new(address, length).map_err(|_| wrong())?,
                    Err(_) => IpNet::with_netmask(address, mask.parse().map_err(|_| wrong())?)
                        .map_err(|_| wrong())?,
                }
            }
        };
        if Family::of_net(&net) == self.family {
            Ok(net)
        } else {
            Err(("an address of the other family", word.to_owned()))
        }
    }

    fn port(&mut self, option: &str) -> Result<PortRange, Wrong> {
        self.parsed(option, "not a port or range of ports")
    }

    fn ports(&mut self, option: &str) -> Result<Vec<PortRange>, Wrong> {
        let word = self.value(option)?;
        word.split(',')
            .map(|port| port.parse().map_err(|_| ("not a port or range of ports", port.to_owned())))
            .collect()
    }

    fn masked(&mut self, option: &str) -> Result<(u32, u32), Wrong> {
        let word = self.value(option)?;
        let parts = word.split_once('/').map_or((word, None), |(value, mask)| (value, Some(mask)));
        let value = number(parts.0);
        let mask = parts.1.map_or(Some(u32::MAX), number);
        value.zip(mask).ok_or_else(|| ("not a mark", word.to_owned()))
    }

    fn states(&mut self, option: &str, invert: bool) -> Result<Match, Wrong> {
        let word = self.value(option)?;
        let state = |name: &str| CtState::ALL.into_iter().find(|state| state.as_str() == name);
        let known: Option<Vec<CtState>> = word.split(',').map(state).collect();
        if let Some(states) = known {
            return Ok(Match::State { states, invert });
        }
        // What was translated is a state too, but none that a packet has before rules are asked.
        match word.split(',').find(|name| state(name).is_none() && !matches!(*name, "SNAT" | "DNAT")) {
            Some(wrong) => Err(("not a state that is known here", wrong.to_owned())),
            None => {
                let not = if invert { "! " } else { "" };
                Ok(Match::Foreign { words: format!("-m conntrack {not}--ctstate {word}") })
            }
        }
    }

    fn target_of(&mut self, name: &'a str) -> Result<Target, Wrong> {
        Ok(match name {
            "ACCEPT" => Target::Accept,
            "DROP" => Target::Drop,
            "RETURN" => Target::Return,
            "REJECT" => {
                let with = self.given(&["--reject-with"]).is_some();
                Target::Reject {
                    with: if with { Some(self.value("--reject-with")?.to_owned()) } else { None },
                }
            }
            "REDIRECT" if self.given(&["--to-ports", "--to-port"]).is_some() => {
                let range: PortRange = self.parsed("--to-ports", "not a port")?;
                if !range.is_single() || self.more() {
                    return Ok(Target::Foreign { words: self.rest(format!("REDIRECT --to-ports {range}")) });
                }
                Target::Redirect { port: range.first() }
            }
            "TPROXY" => self.tproxy()?,
            "MARK" => {
                let option = self.given(&["--set-mark", "--set-xmark"]);
                let Some(option) = option else {
                    return Ok(Target::Foreign { words: self.rest(name.to_owned()) });
                };
                let (value, mask) = self.masked(option)?;
                // `--set-mark` also clears the bits of the value.
                let mask = if option == "--set-mark" { mask | value } else { mask };
                Target::SetMark { value, mask }
            }
            "CONNMARK" => self.connmark()?,
            "CT" if self.given(&["--zone"]).is_some() => {
                let zone: u16 = self.parsed("--zone", "not a zone")?;
                if self.more() {
                    Target::Foreign { words: self.rest(format!("CT --zone {zone}")) }
                } else {
                    Target::Zone(zone)
                }
            }
            _ if self.more() || KERNEL.contains(&name) => Target::Foreign { words: self.rest(quoted(name)) },
            chain => {
                chain_name(chain).map_err(|reason| (reason, chain.to_owned()))?;
                Target::Jump(chain.to_owned().into())
            }
        })
    }

    /// The next word if it is one of these; it is then taken.
    fn given(&mut self, options: &[&'static str]) -> Option<&'static str> {
        let word = self.words.get(self.at)?;
        let found = options.iter().copied().find(|option| option == word)?;
        self.at += 1;
        Some(found)
    }

    /// Whether the target has further words.
    fn more(&self) -> bool {
        self.words.get(self.at).is_some_and(|word| !begins(word))
    }

    fn tproxy(&mut self) -> Result<Target, Wrong> {
        let start = self.at;
        let (mut port, mut mark, mut plain) = (None, None, true);
        while let Some(option) = self.given(&["--on-port", "--on-ip", "--tproxy-mark"]) {
            match option {
                "--on-port" => port = Some(self.parsed::<PortRange>(option, "not a port")?.first()),
                "--on-ip" => plain &= matches!(self.value(option)?, "0.0.0.0" | "::"),
                _ => {
                    let (value, mask) = self.masked(option)?;
                    plain &= mask == u32::MAX;
                    mark = Some(value);
                }
            }
        }
        match (port, mark) {
            (Some(port), Some(mark)) if plain && !self.more() => Ok(Target::Tproxy { port, mark }),
            _ => {
                self.at = start;
                Ok(Target::Foreign { words: self.rest("TPROXY".to_owned()) })
            }
        }
    }

    fn connmark(&mut self) -> Result<Target, Wrong> {
        let start = self.at;
        let action = self.given(&["--save-mark", "--restore-mark"]);
        let mut whole = true;
        while let Some(option) = self.given(&["--nfmask", "--ctmask", "--mask"]) {
            whole &= self.masked(option)? == (u32::MAX, u32::MAX);
        }
        Ok(match action {
            Some("--save-mark") if whole && !self.more() => Target::SaveMark,
            Some("--restore-mark") if whole && !self.more() => Target::RestoreMark,
            _ => {
                self.at = start;
                Target::Foreign { words: self.rest("CONNMARK".to_owned()) }
            }
        })
    }
}

/// Targets of the kernel that may stand without options, so that they are not taken for chains.
const KERNEL: [&str; 11] = [
    "LOG",
    "MASQUERADE",
    "REDIRECT",
    "NOTRACK",
    "TRACE",
    "CT",
    "NFLOG",
    "NFQUEUE",
    "QUEUE",
    "TCPMSS",
    "AUDIT",
];

/// A word as `iptables-save` writes it.
pub(crate) fn quoted(word: &str) -> String {
    let plain =
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\'".contains(&byte));
    if plain { word.to_owned() } else { format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")) }
}
