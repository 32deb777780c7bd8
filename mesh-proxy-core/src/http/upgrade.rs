//! Upgrades (WebSocket) and CONNECT: after the upstream agreed the two connections are joined byte by byte.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;

use super::HttpConnection;
use crate::{
    config::{Forward, HttpConnectionManager},
    lifecycle::KILLED,
    net::{Moved, relay},
    upstream::{ActiveRequest, Lease, Permit},
};

/// The kind of a CONNECT request among upgrades.
const CONNECT: &str = "connect";

/// A client asks for an upgrade.
#[derive(Debug)]
pub(crate) struct Requested {
    client: OnUpgrade,
    /// Lower case: `websocket`, `connect`.
    kind: String,
}

/// The upgrade that an HTTP/1.1 request asks for, allowed or not.
pub(crate) fn requested(request: &mut Request<Incoming>) -> Option<Requested> {
    if request.version() != Version::HTTP_11 {
        return None;
    }
    let kind = if request.method() == Method::CONNECT {
        CONNECT.to_owned()
    } else if asks(request.headers()) {
        request.headers().get(header::UPGRADE)?.to_str().ok()?.trim().to_ascii_lowercase()
    } else {
        return None;
    };
    Some(Requested { client: hyper::upgrade::on(request), kind })
}

fn asks(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .any(|v| v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade"))))
}

impl Requested {
    /// Whether the route, else the connection manager, lets it through.
    pub(crate) fn allowed(&self, config: &HttpConnectionManager, forward: &Forward) -> bool {
        let of_route = forward.upgrades.iter().find(|(kind, _)| **kind == *self.kind);
        match of_route {
            Some((_, enabled)) => *enabled,
            None => config.upgrades.iter().any(|kind| **kind == *self.kind),
        }
    }

    /// Whether this is a CONNECT request, which has no meaning but the upgrade.
    pub(crate) fn is_connect(&self) -> bool {
        self.kind == CONNECT
    }

    /// Whether the upstream's answer begins the tunnel.
    pub(crate) fn agreed(&self, status: StatusCode) -> bool {
        if self.is_connect() { status.is_success() } else { status == StatusCode::SWITCHING_PROTOCOLS }
    }

    /// Joins both sides once both codecs have let go. The connection's task waits for the tunnel's end, so that a tunnel
    /// counts as the connection it is; it ends when the chain is killed or nothing moved for `idle_timeout`.
    pub(crate) fn splice(
        self,
        connection: &Arc<HttpConnection>,
        response: &mut Response<Incoming>,
        held: (Lease, ActiveRequest, Permit),
        idle_timeout: Option<Duration>,
    ) {
        let upstream = hyper::upgrade::on(response);
        let lifecycle = connection.lifecycle.clone();
        // The codec has let go of the upstream's connection: only this tunnel can end it.
        held.0.tie_to(&lifecycle);
        let tunnel = async move {
            let _held = held;
            let joined = async {
                let (Ok(client), Ok(upstream)) = (self.client.await, upstream.await) else { return };
                let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
                relay(&mut client, &mut upstream, idle_timeout, &Moved::default()).await;
            };
            tokio::select! {
                () = joined => {}
                () = lifecycle.reached(KILLED) => {}
            }
        };
        connection.set_tunnel(tokio::spawn(tunnel));
    }
}
