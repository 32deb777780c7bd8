//! Entry points for fuzzers and for tests that replay their findings. Not part of the API.
//!
//! Each takes arbitrary bytes and must neither panic nor use memory beyond a small multiple of them.

mod cores;
mod decode;
#[cfg(all(feature = "client", feature = "server"))]
mod grpc;

pub use cores::{client, server, warming};
#[cfg(feature = "json")]
pub use decode::json;
pub use decode::resources;
#[cfg(all(feature = "client", feature = "server"))]
pub use grpc::grpc;

/// A name, and what is done with the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("resources", resources),
    #[cfg(feature = "json")]
    ("json", json),
    ("server", server),
    ("client", client),
    ("warming", warming),
    #[cfg(all(feature = "client", feature = "server"))]
    ("grpc", grpc),
];

/// Cuts the input into messages: a byte that says what it is, a length byte, then that many bytes.
fn messages(mut data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[kind, length], rest) = data.split_first_chunk::<2>()?;
        let (message, rest) = rest.split_at(usize::from(length).min(rest.len()));
        data = rest;
        Some((kind, message))
    })
}

#[cfg(test)]
mod tests;
