//! The whole control plane in one process, spoken to over its real ports: certificates by token, xDS over TLS,
//! changes on disk, refusals, restarts, the webhook.

mod access;
mod authority;
mod injection;
mod pushes;
mod restart;
#[path = "../support/mod.rs"]
mod support;

use support::{caller, fixture};
