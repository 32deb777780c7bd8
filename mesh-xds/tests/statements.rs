//! The 30 statements about xDS servers and clients, each a test of that name, in both variants where both apply.
//!
//! Servers are driven through the sans-IO streams, clients through the sans-IO core: no network, no clock.

#[path = "statements/support.rs"]
mod support;

#[path = "statements/client.rs"]
mod client;
#[path = "statements/limits.rs"]
mod limits;
#[path = "statements/readme.rs"]
mod readme;
#[path = "statements/secrets.rs"]
mod secrets;
#[path = "statements/server.rs"]
mod server;
#[path = "statements/server_delta.rs"]
mod server_delta;
#[path = "statements/time_to_live.rs"]
mod time_to_live;
