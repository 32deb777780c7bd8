//! Peers that are revoked while they are connected.

use mesh_identity::Identity;
use mesh_proxy_core::Handle;

/// Ends live connections of revoked peers each time that other revocation lists come. Handshakes look at the lists
/// themselves.
pub(crate) async fn follow(identity: Identity, proxy: Handle) {
    let mut changes = identity.subscribe();
    loop {
        changes.mark_unchanged();
        if identity.current().bundles.iter().any(|bundle| !bundle.crls().is_empty()) {
            proxy.close_revoked();
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
