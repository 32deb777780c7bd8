//! `/connections`: who talks to whom right now, and how.

use serde_json::{Value, json};

use crate::agent::SharedAgent;

/// A JSON array of live sessions.
pub(super) fn connections(agent: &SharedAgent) -> String {
    let sessions: Vec<Value> = agent
        .handle
        .connections()
        .iter()
        .map(|session| {
            json!({
                "direction": session.direction.as_str(),
                "local": session.local.to_string(),
                "peer": session.peer.to_string(),
                "local_identity": session.local_identity.as_deref(),
                "peer_identity": session.peer_identity.as_deref(),
                "tls_version": session.tls_version,
                "key_exchange": session.key_exchange,
                "cipher": session.cipher,
                "cluster": session.cluster.as_deref(),
                "listener": session.listener.as_deref(),
                "filter_chain": session.chain.as_deref(),
            })
        })
        .collect();
    format!("{:#}\n", Value::Array(sessions))
}
