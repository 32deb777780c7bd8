//! nf_tables expressions, as far as our rules use them, to and from attributes.
//!
//! Every value goes through register 1. Expressions that look different are kept by name, so that a changed rule never
//! compares equal to ours.

use super::wire::{Attributes, Messages};

const LIST_ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expr {
    /// Loads a packet's property.
    Meta(Meta),
    /// Sets a packet's property from the register.
    SetMeta(Meta),
    /// Loads a connection's property.
    Ct(Ct),
    /// Sets a connection's property from the register.
    SetCt(Ct),
    /// Loads header bytes.
    Payload { base: Base, offset: u32, len: u32 },
    /// Keeps the bits of a mask.
    Mask(Vec<u8>),
    /// Turns a number of four bytes from the machine's order to the network's, in which ranges compare.
    NetworkOrder,
    /// Goes on if the register compares so.
    Compare(Compare, Vec<u8>),
    /// Goes on if the register is outside.
    Outside(Vec<u8>, Vec<u8>),
    /// Loads a constant.
    Constant(Vec<u8>),
    /// Ends the rule.
    Verdict(Verdict),
    /// Counts. Its values are no part of the rule.
    Counter,
    /// Redirects to the port in the register.
    Redirect,
    /// Gives the packet to the socket that listens on the port in the register.
    Tproxy,
    /// Anything else.
    Other(String),
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $value:expr),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// The kernel's number.
            pub(crate) const fn number(self) -> u32 {
                match self { $(Self::$variant => $value),+ }
            }

            /// What the kernel's number means.
            pub(crate) const fn from_number(number: u32) -> Option<Self> {
                $(if number == $value { return Some(Self::$variant); })+
                None
            }
        }
    };
}

numbered! {
    /// A packet's property.
    Meta { Mark = 3, InName = 6, OutName = 7, Uid = 10, Gid = 11, Family = 15, Protocol = 16 }
}
numbered! {
    /// A connection's property.
    Ct { State = 0, Mark = 3, Zone = 17 }
}
numbered! {
    /// Where header bytes are counted from.
    Base { Network = 1, Transport = 2 }
}
numbered! {
    /// How the register must compare.
    Compare { Equal = 0, NotEqual = 1, AtMost = 3, AtLeast = 5 }
}

/// How a rule ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    const fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }

    fn write(&self, out: &mut Messages) {
        out.bytes(VERDICT_CODE, &self.code().to_be_bytes());
        if let Self::Jump(chain) | Self::Goto(chain) = self {
            out.string(VERDICT_CHAIN, chain);
        }
    }
}

impl Expr {
    /// Writes the expression as one element of a rule's list.
    pub(crate) fn write(&self, out: &mut Messages) {
        out.nest(LIST_ELEMENT, |out| {
            out.string(NAME, self.name());
            out.nest(DATA, |out| self.write_data(out));
        });
    }

    fn name(&self) -> &str {
        match self {
            Self::Meta(_) | Self::SetMeta(_) => "meta",
            Self::Ct(_) | Self::SetCt(_) => "ct",
            Self::Payload { .. } => "payload",
            Self::Mask(_) => "bitwise",
            Self::NetworkOrder => "byteorder",
            Self::Compare(..) => "cmp",
            Self::Outside(..) => "range",
            Self::Constant(_) | Self::Verdict(_) => "immediate",
            Self::Counter => "counter",
            Self::Redirect => "redir",
            Self::Tproxy => "tproxy",
            Self::Other(name) => name,
        }
    }

    fn write_data(&self, out: &mut Messages) {
        let numbers = |out: &mut Messages, numbers: &[(u16, u32)]| {
            for (kind, number) in numbers {
                out.be32(*kind, *number);
            }
        };
        match self {
            Self::Meta(key) => numbers(out, &[(1, REGISTER), (2, key.number())]),
            Self::SetMeta(key) => numbers(out, &[(3, REGISTER), (2, key.number())]),
            Self::Ct(key) => numbers(out, &[(1, REGISTER), (2, key.number())]),
            Self::SetCt(key) => numbers(out, &[(4, REGISTER), (2, key.number())]),
            Self::Payload { base, offset, len } => {
                numbers(out, &[(1, REGISTER), (2, base.number()), (3, *offset), (4, *len)]);
            }
            Self::Mask(mask) => {
                numbers(out, &[(1, REGISTER), (2, REGISTER), (3, u32::try_from(mask.len()).unwrap_or(0))]);
                out.nest(4, |out| out.bytes(DATA_VALUE, mask));
                out.nest(5, |out| out.bytes(DATA_VALUE, &vec![0; mask.len()]));
                out.be32(6, 0);
            }
            // Operation 1 is host to network; length and size are four.
            Self::NetworkOrder => numbers(out, &[(1, REGISTER), (2, REGISTER), (3, 1), (4, 4), (5, 4)]),
            Self::Compare(how, value) => {
                numbers(out, &[(1, REGISTER), (2, how.number())]);
                out.nest(3, |out| out.bytes(DATA_VALUE, value));
            }
            Self::Outside(first, last) => {
                numbers(out, &[(1, REGISTER), (2, 1)]);
                out.nest(3, |out| out.bytes(DATA_VALUE, first));
                out.nest(4, |out| out.bytes(DATA_VALUE, last));
            }
            Self::Constant(value) => {
                out.be32(1, REGISTER);
                out.nest(2, |out| out.bytes(DATA_VALUE, value));
            }
            Self::Verdict(verdict) => {
                out.be32(1, VERDICT_REGISTER);
                out.nest(2, |out| out.nest(DATA_VERDICT, |out| verdict.write(out)));
            }
            Self::Redirect => numbers(out, &[(1, REGISTER), (2, REGISTER)]),
            Self::Tproxy => numbers(out, &[(1, 0), (3, REGISTER)]),
            Self::Counter | Self::Other(_) => {}
        }
    }

    /// Reads one element of a rule's list.
    pub(crate) fn read(element: Attributes<'_>) -> Self {
        let name = element.string(NAME).unwrap_or("?");
        let data = element.inside(DATA).unwrap_or(Attributes(&[]));
        Self::known(name, data).unwrap_or_else(|| match (name, data.string(NAME)) {
            // What `iptables-nft` borrows from x_tables.
            ("match" | "target", Some(which)) => Self::Other(format!("{name} {which}")),
            _ => Self::Other(name.to_owned()),
        })
    }

    fn known(name: &str, data: Attributes<'_>) -> Option<Self> {
        let register = |kind| data.be32(kind) == Some(REGISTER);
        let value = |kind| data.inside(kind)?.get(DATA_VALUE).map(<[u8]>::to_vec);
        Some(match name {
            "meta" if register(1) => Self::Meta(Meta::from_number(data.be32(2)?)?),
            "meta" if register(3) => Self::SetMeta(Meta::from_number(data.be32(2)?)?),
            // A direction would make it another property.
            "ct" if register(1) && data.get(3).is_none() => Self::Ct(Ct::from_number(data.be32(2)?)?),
            "ct" if register(4) && data.get(3).is_none() => Self::SetCt(Ct::from_number(data.be32(2)?)?),
            "payload" if register(1) => {
                let base = Base::from_number(data.be32(2)?)?;
                Self::Payload { base, offset: data.be32(3)?, len: data.be32(4)? }
            }
            "bitwise" if register(1) && register(2) && data.be32(6).unwrap_or(0) == 0 => {
                if value(5)?.iter().any(|byte| *byte != 0) {
                    return None;
                }
                Self::Mask(value(4)?)
            }
            "byteorder"
                if register(1)
                    && register(2)
                    && [3, 4, 5].map(|kind| data.be32(kind)) == [Some(1), Some(4), Some(4)] =>
            {
                Self::NetworkOrder
            }
            "cmp" if register(1) => Self::Compare(Compare::from_number(data.be32(2)?)?, value(3)?),
            "range" if register(1) && data.be32(2) == Some(1) => Self::Outside(value(3)?, value(4)?),
            "immediate" if register(1) => Self::Constant(value(2)?),
            "immediate" if data.be32(1) == Some(VERDICT_REGISTER) => {
                Self::Verdict(verdict(data.inside(2)?.inside(DATA_VERDICT)?)?)
            }
            "counter" => Self::Counter,
            "redir" if register(1) && register(2) => Self::Redirect,
            "tproxy" if data.be32(1).unwrap_or(0) == 0 && data.get(2).is_none() && register(3) => {
                Self::Tproxy
            }
            _ => return None,
        })
    }
}

fn verdict(data: Attributes<'_>) -> Option<Verdict> {
    let chain = || data.string(VERDICT_CHAIN).map(str::to_owned);
    Some(match data.be32(VERDICT_CODE)?.cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::wire::messages;
    use super::*;

    #[test]
    fn expressions_survive_the_wire() {
        let all = [
            Expr::Meta(Meta::Uid),
            Expr::SetMeta(Meta::Mark),
            Expr::Ct(Ct::State),
            Expr::SetCt(Ct::Zone),
            Expr::Payload { base: Base::Transport, offset: 2, len: 2 },
            Expr::Mask(vec![255, 255, 0, 0]),
            Expr::NetworkOrder,
            Expr::Compare(Compare::AtLeast, vec![0, 80]),
            Expr::Outside(vec![0, 80], vec![0, 90]),
            Expr::Constant(vec![58, 153]),
            Expr::Verdict(Verdict::Jump("MESH_OUTPUT".into())),
            Expr::Verdict(Verdict::Return),
            Expr::Counter,
            Expr::Redirect,
            Expr::Tproxy,
            Expr::Other("quota".into()),
        ];
        let mut out = Messages::default();
        out.begin(1, 0, 1, &[0; 4]);
        for each in &all {
            each.write(&mut out);
        }
        let message = messages(out.as_bytes()).next().expect("one message");
        let read: Vec<_> =
            message.attributes().into_iter().map(|(_, element)| Expr::read(Attributes(element))).collect();
        assert_eq!(read, all);
    }
}
