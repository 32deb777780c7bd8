//! The TLS inspector: server name and ALPN of a ClientHello, read by rustls' own parser.

use std::sync::Arc;

use rustls::server::Acceptor;

use super::inspect::{Inspected, Look};

/// Looks at the first bytes of a connection.
pub(super) fn look(bytes: &[u8], found: &mut Inspected) -> Look<()> {
    // A handshake record of TLS 1.x begins with 22, 3.
    match bytes {
        [22, 3, ..] => {}
        [22] => return Look::More,
        _ => return Look::Done(()),
    }
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return Look::Done(());
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                found.tls = true;
                found.server_name = hello.server_name().map(|name| Arc::from(name.to_ascii_lowercase()));
                found.protocols = hello
                    .alpn()
                    .into_iter()
                    .flatten()
                    .filter_map(|p| std::str::from_utf8(p).ok())
                    .map(Arc::from)
                    .collect();
                return Look::Done(());
            }
            // Not a ClientHello that anyone could serve.
            Err(_) => return Look::Done(()),
        }
    }
    Look::More
}
