//! The HTTP inspector: `http/1.0`, `http/1.1` or `h2c` by the first bytes.

use std::sync::Arc;

use super::inspect::{Inspected, Look};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Looks at the first bytes of a plain connection.
pub(super) fn look(bytes: &[u8], found: &mut Inspected) -> Look<()> {
    let n = bytes.len().min(PREFACE.len());
    if bytes[..n] == PREFACE[..n] {
        if n < PREFACE.len() {
            return Look::More;
        }
        found.protocols = vec![Arc::from("h2c")];
        found.http2_preface = true;
        return Look::Done(());
    }
    let mut headers = [httparse::EMPTY_HEADER; 1];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(bytes);
    // The request line is enough: a version means that its end was seen.
    if let Some(version) = request.version {
        found.protocols = vec![Arc::from(if version == 0 { "http/1.0" } else { "http/1.1" })];
        return Look::Done(());
    }
    match parsed {
        Ok(httparse::Status::Partial) => Look::More,
        _ => Look::Done(()),
    }
}
