//! What a client has, as data.

use std::time::Duration;

/// How far a client is with one type. Istio's `proxy-status` shows the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SyncState {
    /// The client accepted the last response.
    Synced,
    /// A response was sent and is not answered yet.
    Stale,
    /// The client asked and nothing was sent yet.
    NotSent,
    /// The client does not ask for this type (any more).
    Ignored,
    /// The client rejected the last response; see [`TypeStatus::error`].
    Error,
}

impl SyncState {
    /// The word that operators know: `SYNCED`, `STALE`, `NOT SENT`, `IGNORED`, `ERROR`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "SYNCED",
            Self::Stale => "STALE",
            Self::NotSent => "NOT SENT",
            Self::Ignored => "IGNORED",
            Self::Error => "ERROR",
        }
    }
}

/// How much of a client's words about a rejection is kept.
const MAX_NACK: usize = 4096;

/// The beginning of a text, at most so many bytes.
pub(super) fn beginning(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// A rejection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// The client's words; of a longer text the first 4 KiB.
    pub message: String,
    /// The gRPC code in `error_detail`.
    pub code: i32,
    /// The nonce of the response that was rejected.
    pub nonce: String,
    /// When it came, on the clock of the stream.
    pub at: Duration,
}

/// One type of one client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TypeStatus {
    /// Whether the client subscribes to the whole set.
    pub wildcard: bool,
    /// How many names it subscribes to beside that.
    pub names: usize,
    /// The nonce of the last response; empty before the first.
    pub nonce_sent: String,
    /// The nonce that was last accepted; empty before the first.
    pub nonce_acked: String,
    /// The version of the last response.
    pub version_sent: String,
    /// The version that was last accepted; of a client that [came back with everything](Self::came_back_current) the
    /// version that it was found to have.
    pub version_acked: String,
    /// When the last response left, on the clock of the stream.
    pub sent_at: Option<Duration>,
    /// When a response was last accepted.
    pub acked_at: Option<Duration>,
    /// The rejection of the last response, if it was rejected.
    pub error: Option<Nack>,
    /// Whether the client came back with all that it subscribes to, so that nothing had to be sent on this stream yet
    /// (Delta: `initial_resource_versions`).
    pub came_back_current: bool,
    /// How many responses were sent.
    pub responses: u64,
    /// How many were rejected.
    pub nacks: u64,
}

impl TypeStatus {
    /// The state in one word.
    #[must_use]
    pub fn state(&self) -> SyncState {
        match self {
            s if !s.wildcard && s.names == 0 => SyncState::Ignored,
            s if s.error.is_some() => SyncState::Error,
            s if s.nonce_sent.is_empty() && s.came_back_current => SyncState::Synced,
            s if s.nonce_sent.is_empty() => SyncState::NotSent,
            s if s.nonce_sent == s.nonce_acked => SyncState::Synced,
            _ => SyncState::Stale,
        }
    }

    /// Whether the client has answered everything that was sent.
    pub(super) fn is_settled(&self) -> bool {
        self.nonce_sent == self.nonce_acked || self.error.as_ref().is_some_and(|e| e.nonce == self.nonce_sent)
    }

    /// Records that the client was found to have everything of this version before anything was sent.
    pub(super) fn found_current(&mut self, version: &str) {
        self.came_back_current = true;
        version.clone_into(&mut self.version_acked);
    }

    pub(super) fn sent(&mut self, nonce: &str, version: &str, now: Duration) {
        nonce.clone_into(&mut self.nonce_sent);
        version.clone_into(&mut self.version_sent);
        self.sent_at = Some(now);
        self.responses += 1;
    }

    /// Records an answer; a rejection is told by its error alone, whatever version it carries.
    pub(super) fn answered(&mut self, nonce: &str, error: Option<(i32, String)>, now: Duration) {
        match error {
            Some((code, message)) => {
                // A copy, so that the rest of a huge text is not kept.
                let message = beginning(&message, MAX_NACK).to_owned();
                self.error = Some(Nack { message, code, nonce: nonce.to_owned(), at: now });
                self.nacks += 1;
            }
            None => {
                self.error = None;
                self.acked_at = Some(now);
                nonce.clone_into(&mut self.nonce_acked);
                if self.nonce_acked == self.nonce_sent {
                    self.version_sent.clone_into(&mut self.version_acked);
                }
            }
        }
    }
}
