//! Accepting connections on one socket of one worker.

use std::{sync::Arc, time::Duration};

use tokio::net::TcpListener;

use super::{connection, table::ListenerSlot};
use crate::{lifecycle::CLOSING, net, proxy::Shared, worker::Worker};

/// Pause after the process ran out of descriptors or memory.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Accepts until the listener's sockets are closed.
pub(crate) async fn accept_loop(
    socket: TcpListener,
    slot: Arc<ListenerSlot>,
    shared: Arc<Shared>,
    worker: Arc<Worker>,
) {
    let closed = slot.sockets.reached(CLOSING);
    tokio::pin!(closed);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut closed => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let listener = slot.current.load_full();
                let accepted = shared.registry.accept();
                tokio::spawn(connection::run(
                    stream,
                    net::canonical(peer),
                    listener,
                    Arc::clone(&shared),
                    Arc::clone(&worker),
                    accepted,
                ));
            }
            Err(error) if net::is_exhaustion(&error) => {
                tracing::warn!(%error, "cannot accept; pausing");
                tokio::time::sleep(EXHAUSTED).await;
            }
            // The client was gone before it was accepted.
            Err(error) => tracing::debug!(%error, "accept failed"),
        }
    }
}
