//! Arguments and environment: istio-iptables' names, ours beside them.
//!
//! One table says everything about a flag. The environment gives defaults, the command line wins. Unlike there, a variable
//! that cannot be read is refused unless the command line overrides it: a pod that meant to capture must not start
//! without. An empty switch, number or duration counts as unset.

mod duration;
mod table;
mod warnings;

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_netfilter::backend::{Kind as Backend, Variant};
use mesh_netfilter::net::Family;
use mesh_netfilter::{Interception, InterceptionConfig};

pub(crate) use table::help;
use table::{FLAGS, Flag, Kind};

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Command {
    /// Make the kernel hold the rules.
    #[default]
    Apply,
    /// Say what `apply` would change.
    Plan,
    /// Compare, and make a connection through the rules.
    Verify,
    /// Remove the rules.
    Clean,
    /// Print the rules as text.
    Render,
    /// Say what happens to a packet, and why.
    Trace,
    /// Print how often each rule has matched.
    Counters,
}

impl Command {
    const NAMES: [(&'static str, Self); 7] = [
        ("apply", Self::Apply),
        ("plan", Self::Plan),
        ("verify", Self::Verify),
        ("clean", Self::Clean),
        ("render", Self::Render),
        ("trace", Self::Trace),
        ("counters", Self::Counters),
    ];
}

/// Everything that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flags {
    /// What to do.
    pub command: Command,
    /// The interception, in words.
    pub config: InterceptionConfig,
    /// Whether the machine's IPv6 is given instead of found out.
    pub enable_ipv6: Option<bool>,
    /// Whether one IPv6 address among others suffices for IPv6 rules.
    pub dual_stack: bool,
    /// The user whose id is the proxy's when `--proxy-uid` names none.
    pub proxy_user: String,
    /// Change nothing, say what would change.
    pub dry_run: bool,
    /// Remove the rules instead of making them.
    pub cleanup_only: bool,
    /// Accepted: `apply` always reconciles.
    pub reconcile: bool,
    /// Accepted: nothing of the file system is used.
    pub cni_mode: bool,
    /// Accepted: rules are written to nf_tables where the kernel has it.
    pub native_nftables: bool,
    /// `legacy`, `nft` or empty: the iptables that writes rules.
    pub force_iptables_binary: String,
    /// Refuse contradictions.
    pub strict: bool,
    /// Remove Istio's own chains instead of refusing to work beside them.
    pub replace_istio: bool,
    /// Write rules even where they are as they should be.
    pub force_apply: bool,
    /// Leave rules and routes alone.
    pub skip_rule_apply: bool,
    /// Make a connection through the rules afterwards.
    pub run_validation: bool,
    /// Where the probe goes.
    pub probe_port: u16,
    /// How long the probe may take.
    pub probe_timeout: Duration,
    /// Work in this network namespace.
    pub network_namespace: String,
    /// How rules are written; `None`: the best way there is.
    pub backend: Option<Backend>,
    /// Render as an nft script instead of text for `iptables-restore`.
    pub as_nft: bool,
    /// Render for this family.
    pub family: Family,
    /// The packet to trace, in words or as `hex:4500…`.
    pub packet: String,
    /// A file with rules to trace in.
    pub ruleset: String,
    /// Trace in the kernel's rules.
    pub live: bool,
    /// Print for tools.
    pub json: bool,
    /// Which flags have their value from which environment variable.
    from_environment: BTreeMap<&'static str, String>,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            command: Command::Apply,
            config: InterceptionConfig::default(),
            enable_ipv6: None,
            dual_stack: false,
            proxy_user: "istio-proxy".to_owned(),
            dry_run: false,
            cleanup_only: false,
            reconcile: true,
            cni_mode: false,
            native_nftables: false,
            force_iptables_binary: String::new(),
            strict: false,
            replace_istio: false,
            force_apply: false,
            skip_rule_apply: false,
            run_validation: false,
            probe_port: 15002,
            probe_timeout: Duration::from_secs(5),
            network_namespace: String::new(),
            backend: None,
            as_nft: false,
            family: Family::V4,
            packet: String::new(),
            ruleset: String::new(),
            live: false,
            json: false,
            from_environment: BTreeMap::new(),
        }
    }
}

/// Why arguments make no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UsageError {
    /// No such flag.
    Unknown {
        /// As written.
        flag: String,
    },
    /// A flag without the value it needs.
    NoValue {
        /// The flag.
        flag: String,
    },
    /// A value that the flag does not take.
    Value {
        /// The flag.
        flag: String,
        /// The value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A word that is neither a command nor a flag's value.
    Word {
        /// The word.
        word: String,
    },
    /// An argument that is not UTF-8.
    NotText {
        /// Its readable part.
        value: String,
    },
}

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown { flag } => write!(f, "{flag}: no such flag (see --help)"),
            Self::NoValue { flag } => write!(f, "{flag}: needs a value"),
            Self::Value { flag, value, reason } => write!(f, "{flag}: {value:?} {reason}"),
            Self::Word { word } => write!(f, "{word:?} is neither a command nor a flag (see --help)"),
            Self::NotText { value } => write!(f, "{value:?} is not UTF-8"),
        }
    }
}

impl std::error::Error for UsageError {}

impl UsageError {
    /// A stable label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "unknown_flag",
            Self::NoValue { .. } => "no_value",
            Self::Value { .. } => "bad_value",
            Self::Word { .. } => "unknown_word",
            Self::NotText { .. } => "not_text",
        }
    }
}

impl Flags {
    /// Reads arguments (without the program's name) over environment variables; `None` when help was asked for.
    ///
    /// # Errors
    /// The first argument that makes no sense.
    pub fn parse(
        args: &[String],
        environment: &BTreeMap<String, String>,
    ) -> Result<Option<Self>, UsageError> {
        let mut flags = Self::default();
        let mut refused = flags.take_environment(environment);
        let mut args = args.iter().map(String::as_str);
        let mut words = Vec::new();
        while let Some(arg) = args.next() {
            if arg == "--" {
                words.extend(args.by_ref());
            } else if let Some(long) = arg.strip_prefix("--") {
                if long == "help" {
                    return Ok(None);
                }
                let (name, value) =
                    long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
                let flag = FLAGS.iter().find(|flag| flag.long == name);
                let flag = flag.ok_or_else(|| UsageError::Unknown { flag: format!("--{name}") })?;
                flags.take(flag, value, &mut args)?;
                refused.remove(flag.long);
            } else if let Some(short) = arg.strip_prefix('-').filter(|short| !short.is_empty()) {
                if short == "h" {
                    return Ok(None);
                }
                flags.take_short(short, &mut args, &mut refused)?;
            } else {
                words.push(arg);
            }
        }
        flags.take_words(&words)?;
        if let Some((_, wrong)) = refused.pop_first() {
            return Err(wrong);
        }
        flags.finish();
        Ok(Some(flags))
    }

    /// The defaults that environment variables give; what cannot be read, by flag.
    fn take_environment(
        &mut self,
        environment: &BTreeMap<String, String>,
    ) -> BTreeMap<&'static str, UsageError> {
        let mut refused = BTreeMap::new();
        if let Some(user) = environment.get("ENVOY_USER") {
            user.clone_into(&mut self.proxy_user);
        }
        for flag in FLAGS {
            for name in flag.environment_names() {
                let Some(value) = environment.get(&name) else { continue };
                match (flag.set)(self, value) {
                    Ok(()) => {
                        self.from_environment.insert(flag.long, name);
                        refused.remove(flag.long);
                    }
                    Err(_) if value.is_empty() => {}
                    Err(reason) => {
                        let wrong = UsageError::Value { flag: name, value: value.clone(), reason };
                        refused.insert(flag.long, wrong);
                    }
                }
            }
        }
        refused
    }

    /// `-p 15001`, `-p15001`, `-p=15001`, `-nk eth0`.
    fn take_short<'a>(
        &mut self,
        letters: &'a str,
        args: &mut impl Iterator<Item = &'a str>,
        refused: &mut BTreeMap<&'static str, UsageError>,
    ) -> Result<(), UsageError> {
        let mut rest = letters;
        while let Some(letter) = rest.chars().next() {
            let flag = FLAGS.iter().find(|flag| flag.short == Some(letter));
            let flag = flag.ok_or_else(|| UsageError::Unknown { flag: format!("-{letter}") })?;
            rest = &rest[letter.len_utf8()..];
            refused.remove(flag.long);
            if let Some(value) = rest.strip_prefix('=') {
                return self.take(flag, Some(value), args);
            }
            if flag.kind != Kind::Switch {
                let value = (!rest.is_empty()).then_some(rest);
                return self.take(flag, value, args);
            }
            self.take(flag, None, args)?;
        }
        Ok(())
    }

    fn take<'a>(
        &mut self,
        flag: &Flag,
        value: Option<&'a str>,
        args: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), UsageError> {
        let value = match (value, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Switch) => "true",
            (None, Kind::Value) => {
                args.next().ok_or_else(|| UsageError::NoValue { flag: format!("--{}", flag.long) })?
            }
        };
        self.from_environment.remove(flag.long);
        (flag.set)(self, value).map_err(|reason| UsageError::Value {
            flag: format!("--{}", flag.long),
            value: value.to_owned(),
            reason,
        })
    }

    fn take_words(&mut self, words: &[&str]) -> Result<(), UsageError> {
        // Existing pod templates call the agent's subcommand of this name.
        let words: Vec<&str> = words.iter().copied().filter(|word| *word != "istio-iptables").collect();
        let Some((first, rest)) = words.split_first() else { return Ok(()) };
        let named = Command::NAMES.iter().find(|(name, _)| name == first);
        let (_, command) = named.ok_or_else(|| UsageError::Word { word: (*first).to_owned() })?;
        self.command = *command;
        match rest.first() {
            Some(word) => Err(UsageError::Word { word: (*word).to_owned() }),
            None => Ok(()),
        }
    }

    /// What depends on several flags.
    fn finish(&mut self) {
        if self.cleanup_only && matches!(self.command, Command::Apply | Command::Plan) {
            self.dry_run |= self.command == Command::Plan;
            self.command = Command::Clean;
        }
        if self.dry_run && self.command == Command::Apply {
            self.command = Command::Plan;
        }
        if self.backend.is_none() {
            self.backend = match self.force_iptables_binary.as_str() {
                "legacy" => Some(Backend::Iptables(Variant::Legacy)),
                "nft" => Some(Backend::Iptables(Variant::Nft)),
                _ => None,
            };
        }
        if let Some(enabled) = self.enable_ipv6 {
            self.config.enable_ipv6 = enabled;
        }
    }

    /// The words as an intent.
    ///
    /// # Errors
    /// One line that names the flag or environment variable, its value, and what is wrong with it.
    pub fn intent(&self) -> Result<Interception, String> {
        if !matches!(self.force_iptables_binary.as_str(), "" | "legacy" | "nft") {
            let (place, value) = (self.place("force-iptables-binary"), &self.force_iptables_binary);
            return Err(format!("{place}: {value:?} is neither legacy nor nft"));
        }
        self.config.parse().map_err(|error| self.placed(error.field(), &error.to_string()))
    }

    /// [`Flags::intent`], refused when it contradicts itself and `--strict` was given.
    ///
    /// # Errors
    /// As there, or every contradiction.
    pub fn strict_intent(&self) -> Result<Interception, String> {
        let intent = self.intent()?;
        let found = if self.strict { self.contradictions(&intent) } else { Vec::new() };
        if found.is_empty() { Ok(intent) } else { Err(found.join("; ")) }
    }

    /// What an intent from these flags says twice and differently, by flag or environment variable.
    pub fn contradictions(&self, intent: &Interception) -> Vec<String> {
        let found = intent.contradictions();
        found.iter().map(|each| self.placed(each.field, &each.to_string())).collect()
    }

    /// A line that begins with a field, beginning with where its value stood.
    fn placed(&self, field: &str, line: &str) -> String {
        line.replacen(field, &self.place(field), 1)
    }

    /// Where a field's value stood: the environment variable that gave it, or the flag.
    fn place(&self, field: &str) -> String {
        // Fields without a flag upstream have the name of their variable.
        let long = field.replace('_', "-").to_ascii_lowercase();
        let Some(flag) = FLAGS.iter().find(|flag| flag.long == long) else { return field.to_owned() };
        self.from_environment.get(flag.long).cloned().unwrap_or_else(|| format!("--{long}"))
    }
}

#[cfg(test)]
mod tests;
