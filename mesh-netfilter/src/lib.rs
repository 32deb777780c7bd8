#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod backend;
#[doc(hidden)]
pub mod fuzzing;
mod interception;
pub mod net;
mod netlink;
pub mod original_dst;
mod plan;
pub mod routing;
pub mod ruleset;
mod shadow;
pub mod sockets;
pub mod text;
pub mod trace;

pub use interception::{
    Contradiction, Contradictions, Dns, InboundPorts, Interception, InterceptionConfig, InvalidInterception,
    Mode, OutboundRanges, OwnerGroups,
};
pub use netlink::{Netlink, NetlinkError, Unsupported};
pub use original_dst::{Destination, OriginalDst, original_dst};
pub use plan::{Applied, Change, Plan, RuleCounter};
pub use ruleset::Ruleset;
pub use shadow::Shadow;
