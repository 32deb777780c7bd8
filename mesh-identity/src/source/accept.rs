use std::{future::Future, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;

use super::{FetchError, FetchedSvid};
use crate::{
    id::SpiffeId,
    identity::{Identity, IdentityPublisher, IdentityState},
    x509::X509Error,
};

/// Fetches within `timeout`, and takes only what can be presented now, for `expected` if somebody was asked for. A fetcher
/// that panics has failed like another: it is asked again.
pub(super) async fn fetch_usable(
    fetching: impl Future<Output = Result<FetchedSvid, FetchError>>,
    timeout: Duration,
    identity: &Identity,
    expected: Option<&SpiffeId>,
) -> Result<FetchedSvid, FetchError> {
    let fetched = match tokio::time::timeout(timeout, AssertUnwindSafe(fetching).catch_unwind()).await {
        Ok(Ok(outcome)) => outcome?,
        Ok(Err(_)) => return Err(FetchError::new("panic", "the fetcher panicked")),
        Err(_) => return Err(FetchError::new("timeout", "the fetch took too long")),
    };
    let refused = |error: X509Error| FetchError::new(error.reason(), error);
    fetched.credential.check_time(identity.clock().now()).map_err(refused)?;
    match (expected, fetched.credential.id()) {
        (Some(expected), Some(id)) if id != expected => {
            Err(refused(X509Error::Denied { id: id.clone(), expected: expected.to_string() }))
        }
        (Some(_), None) => Err(refused(X509Error::NoUriSan)),
        _ => Ok(fetched),
    }
}

/// Publishes what is new of it; says whether the credential is.
pub(super) fn publish_new(publisher: &IdentityPublisher, fetched: FetchedSvid) -> bool {
    let FetchedSvid { credential, bundles } = fetched;
    let current = publisher.identity().current();
    let is_new = current.credential.as_ref().is_none_or(|known| known.chain() != credential.chain());
    if is_new {
        let id = credential.id().map(ToString::to_string);
        tracing::info!(id, serial = credential.serial(), not_after = ?credential.not_after(), "new SVID");
        publisher.publish(Some(credential), bundles);
    } else if *current.bundles != bundles {
        publisher.publish_bundles(bundles);
    }
    is_new
}

/// Says so, and wakes those who follow the identity, each time that its credential expires and no new one came.
pub(crate) async fn report_expiry(identity: Identity) {
    let mut changes = identity.subscribe();
    let mut reported = None;
    loop {
        changes.mark_unchanged();
        let left = match identity.state() {
            // A moment later than the last valid second.
            IdentityState::Valid { not_after } => {
                let left = not_after.duration_since(identity.clock().now()).unwrap_or_default();
                Some(left + Duration::from_millis(1))
            }
            IdentityState::Expired { not_after } if reported != Some(not_after) => {
                reported = Some(not_after);
                say_expired(&identity);
                continue;
            }
            IdentityState::Expired { .. } | IdentityState::Waiting => None,
        };
        let expiry = async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = expiry => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// What there is to say and do when a credential has expired.
pub(super) fn say_expired(identity: &Identity) {
    let id = identity.current().id().map(ToString::to_string);
    tracing::error!(id, "the SVID expired and no new one came: not ready, handshakes are refused");
    identity.touch();
}
