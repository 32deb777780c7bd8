//! The client against the server, over loopback and Unix sockets, both variants.

#[path = "end_to_end/csds.rs"]
mod csds;
#[path = "end_to_end/follow.rs"]
mod follow;
#[path = "end_to_end/limits.rs"]
mod limits;
#[path = "end_to_end/reconnect.rs"]
mod reconnect;
#[path = "end_to_end/secrets.rs"]
mod secrets;
#[path = "end_to_end/services.rs"]
mod services;
#[path = "end_to_end/support.rs"]
mod support;
#[path = "end_to_end/transport.rs"]
mod transport;
