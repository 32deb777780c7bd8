//! `istio.alpn`: the ALPN offered upstream tells the peer which HTTP version is inside mutual TLS.

use http::request;

use crate::{
    config::AlpnOverride,
    filter::{Flow, HttpFilter, RequestContext},
};

#[derive(Debug)]
pub(super) struct Alpn(pub(super) AlpnOverride);

impl HttpFilter for Alpn {
    fn on_request(&self, cx: &mut RequestContext, _head: &mut request::Parts) -> Flow {
        cx.alpn = Some(self.0.clone());
        Flow::Continue
    }
}
