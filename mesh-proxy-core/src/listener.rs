//! The accept path: socket → listener → inspection → filter chain → transport → filters.

mod accept;
mod chain;
mod connection;
mod http_peek;
mod inspect;
mod matching;
mod table;
mod tls_peek;

pub(crate) use accept::accept_loop;
pub(crate) use chain::{ChainRuntime, ListenerRuntime, Terminal};
pub(crate) use table::{ListenerSlot, ListenerTable};
