//! The HTTP side of the data path.

/// The host a request names: the authority of its target, else its `host` header.
#[must_use]
pub(crate) fn host(head: &::http::request::Parts) -> Option<&str> {
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => head.headers.get(::http::header::HOST)?.to_str().ok(),
    }
}
