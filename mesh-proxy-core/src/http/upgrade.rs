//! Upgrades (WebSocket): after 101 the two connections are joined byte by byte.

use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;

use crate::{
    config::HttpConnectionManager,
    upstream::{ActiveRequest, Lease, Permit},
};

/// A client asks for an upgrade that is allowed here.
#[derive(Debug)]
pub(crate) struct Requested {
    client: OnUpgrade,
}

/// Whether a request asks for an allowed upgrade.
pub(crate) fn requested(
    config: &HttpConnectionManager,
    request: &mut Request<Incoming>,
) -> Option<Requested> {
    if config.upgrades.is_empty() || !asks(request.headers()) {
        return None;
    }
    let kind = request.headers().get(header::UPGRADE)?.to_str().ok()?;
    let allowed = config.upgrades.iter().any(|allowed| allowed.eq_ignore_ascii_case(kind));
    allowed.then(|| Requested { client: hyper::upgrade::on(request) })
}

fn asks(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .any(|v| v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade"))))
}

impl Requested {
    /// Joins both sides once both codecs have let go.
    pub(crate) fn splice(
        self,
        response: &mut Response<Incoming>,
        lease: Lease,
        active: ActiveRequest,
        permit: Permit,
    ) {
        debug_assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let upstream = hyper::upgrade::on(response);
        tokio::spawn(async move {
            let _held = (lease, active, permit);
            let (Ok(client), Ok(upstream)) = (self.client.await, upstream.await) else { return };
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            let _either_side_ended = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
        });
    }
}
