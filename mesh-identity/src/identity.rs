//! A live identity: the current credential and trust bundles, readable without a lock, watchable.
//!
//! [`Identity`] is the reading side that TLS configurations and services hold; [`IdentityPublisher`] is the writing
//! side that a renewal task, an SDS client or a file watcher holds. Readers always see a whole snapshot.

use std::{sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::{
    bundle::{BundleSet, TrustBundle},
    clock::WallClock,
    id::SpiffeId,
    x509::{Credential, PeerIdentity, X509Error},
};

/// What an [`Identity`] holds at one moment.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct IdentitySnapshot {
    /// The current chain and key; `None` before the first one came.
    pub credential: Option<Arc<Credential>>,
    /// Whom to trust.
    pub bundles: Arc<BundleSet>,
    /// Grows with each change.
    pub revision: u64,
}

impl IdentitySnapshot {
    /// The SPIFFE ID of the credential.
    pub fn id(&self) -> Option<&SpiffeId> {
        self.credential.as_ref().and_then(|credential| credential.id())
    }
}

/// Where an identity stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityState {
    /// No credential yet.
    Waiting,
    /// The credential is valid.
    Valid {
        /// Until when.
        not_after: SystemTime,
    },
    /// The credential's time is over: handshakes fail until a new one comes.
    Expired {
        /// Since when.
        not_after: SystemTime,
    },
}

#[derive(Debug)]
struct Shared {
    current: ArcSwap<IdentitySnapshot>,
    changes: watch::Sender<u64>,
    clock: WallClock,
}

/// A handle on a live identity. Cheap to clone; all clones follow every change.
#[derive(Debug, Clone)]
pub struct Identity(Arc<Shared>);

/// The writing side of an [`Identity`].
#[derive(Debug)]
pub struct IdentityPublisher(Identity);

impl Identity {
    /// An identity that has nothing yet, and the side that fills it.
    pub fn channel(clock: WallClock) -> (IdentityPublisher, Self) {
        let (changes, _) = watch::channel(0);
        let identity = Self(Arc::new(Shared { current: ArcSwap::default(), changes, clock }));
        (IdentityPublisher(identity.clone()), identity)
    }

    /// An identity that never changes, for static configurations and tests.
    pub fn fixed(credential: Option<Credential>, bundles: BundleSet, clock: WallClock) -> Self {
        let (publisher, identity) = Self::channel(clock);
        publisher.publish(credential.map(Arc::new), bundles);
        identity
    }

    /// An identity that never changes, from PEM texts: chain with leaf first, key, and the roots of the leaf's own
    /// trust domain.
    ///
    /// # Errors
    /// Malformed PEM, a leaf that is no X.509-SVID, a key that is not the leaf's, or no usable root.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8], clock: WallClock) -> Result<Self, X509Error> {
        let (credential, bundles) = parse_pem(chain, key, roots)?;
        Ok(Self::fixed(Some(credential), bundles, clock))
    }

    /// The current snapshot.
    pub fn current(&self) -> Arc<IdentitySnapshot> {
        self.0.current.load_full()
    }

    /// The current credential, if there is one and its time is not over.
    pub fn valid_credential(&self) -> Option<Arc<Credential>> {
        let snapshot = self.0.current.load();
        let credential = snapshot.credential.as_ref()?;
        (self.0.clock.now() <= credential.not_after()).then(|| credential.clone())
    }

    /// Where the identity stands, by its clock.
    pub fn state(&self) -> IdentityState {
        let snapshot = self.0.current.load();
        let Some(credential) = &snapshot.credential else { return IdentityState::Waiting };
        let not_after = credential.not_after();
        if self.0.clock.now() <= not_after {
            IdentityState::Valid { not_after }
        } else {
            IdentityState::Expired { not_after }
        }
    }

    /// Whether handshakes can succeed: a valid credential and somebody to trust.
    pub fn is_ready(&self) -> bool {
        matches!(self.state(), IdentityState::Valid { .. }) && !self.0.current.load().bundles.is_empty()
    }

    /// A receiver that wakes at each change, with the snapshot's revision.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Waits until the identity is ready. Cancel safe.
    pub async fn ready(&self) {
        let mut changes = self.subscribe();
        while !self.is_ready() {
            if changes.changed().await.is_err() {
                // The sender lives as long as `self`.
                return std::future::pending().await;
            }
        }
    }

    /// Waits until a revocation list names the peer's certificate: the moment to close its connection. Cancel safe.
    pub async fn revoked(&self, peer: &PeerIdentity) {
        let mut changes = self.subscribe();
        while !self.current().bundles.is_revoked(peer) {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Wakes everybody who follows the identity without changing it, because time passed a validity's end.
    pub(crate) fn touch(&self) -> u64 {
        self.update(|_| {})
    }

    fn update(&self, change: impl Fn(&mut IdentitySnapshot)) -> u64 {
        let Shared { current, changes, .. } = &*self.0;
        current.rcu(|old| {
            let mut new = IdentitySnapshot::clone(old);
            change(&mut new);
            new.revision = old.revision + 1;
            new
        });
        let revision = current.load().revision;
        changes.send_replace(revision);
        revision
    }

    /// The clock that validity is judged by.
    pub fn clock(&self) -> &WallClock {
        &self.0.clock
    }
}

/// A credential and the bundle of its own trust domain.
pub(crate) fn parse_pem(
    chain: &[u8],
    key: &[u8],
    roots: &[u8],
) -> Result<(Credential, BundleSet), X509Error> {
    let credential = Credential::svid_from_pem(chain, key)?;
    let trust_domain = credential.id().ok_or(X509Error::NoUriSan)?.trust_domain();
    let bundle = TrustBundle::from_pem(trust_domain, roots)?;
    Ok((credential, bundle.into()))
}

impl IdentityPublisher {
    /// Replaces credential and bundles; returns the new revision. New handshakes use them at once; connections that
    /// exist are not touched.
    pub fn publish(&self, credential: Option<Arc<Credential>>, bundles: BundleSet) -> u64 {
        self.update(|snapshot| {
            snapshot.credential = credential.clone();
            snapshot.bundles = Arc::new(bundles.clone());
        })
    }

    /// Replaces the bundles and keeps the credential; returns the new revision.
    pub fn publish_bundles(&self, bundles: BundleSet) -> u64 {
        let bundles = Arc::new(bundles);
        self.update(|snapshot| snapshot.bundles = bundles.clone())
    }

    /// The reading side.
    pub fn identity(&self) -> &Identity {
        &self.0
    }

    fn update(&self, change: impl Fn(&mut IdentitySnapshot)) -> u64 {
        self.0.update(change)
    }
}
