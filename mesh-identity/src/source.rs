//! Keeping an identity alive: fetch, renew in time, survive outages, say so when it expired.

mod file;
mod manager;
mod schedule;

#[cfg(test)]
mod tests;

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use self::schedule::Schedule;
pub use self::{
    file::FileFetcher,
    manager::{ManyFetcher, SvidManager},
    schedule::RenewalPolicy,
};
use crate::{
    bundle::BundleSet,
    clock::WallClock,
    identity::{Identity, IdentityPublisher, IdentityState},
    x509::Credential,
};

/// Gets a new credential and the roots to trust: a CA client, a Workload API client, a test's CA.
pub trait SvidFetcher: Send + Sync + 'static {
    /// Fetches once. Retries and their timing are the caller's job. Must be cancel safe.
    fn fetch(&self) -> impl Future<Output = Result<FetchedSvid, FetchError>> + Send;
}

/// What an [`SvidFetcher`] brings.
#[derive(Debug, Clone)]
pub struct FetchedSvid {
    /// Chain and key.
    pub credential: Arc<Credential>,
    /// Whom to trust.
    pub bundles: BundleSet,
}

/// Why a fetch failed. It will be tried again.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub struct FetchError {
    /// A stable label of low cardinality, for metrics.
    pub reason: &'static str,
    /// What failed.
    pub detail: String,
}

impl FetchError {
    /// A failure with its label.
    pub fn new(reason: &'static str, detail: impl ToString) -> Self {
        Self { reason, detail: detail.to_string() }
    }
}

/// How renewal goes, as data for metrics and admin pages.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SourceStatus {
    /// How many credentials were fetched.
    pub renewals: u64,
    /// How many fetches failed.
    pub failures: u64,
    /// How many failed since the last success.
    pub consecutive_failures: u32,
    /// The last failure since the last success.
    pub last_error: Option<FetchError>,
}

/// A task that keeps one identity alive. Dropping it stops renewal; the [`Identity`] stays readable until its
/// credential expires.
#[derive(Debug)]
pub struct SvidSource {
    identity: Identity,
    commands: mpsc::Sender<oneshot::Sender<Result<Rotated, FetchError>>>,
    status: watch::Receiver<SourceStatus>,
    task: JoinHandle<()>,
}

/// What [`SvidSource::rotate_now`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The serial number before, if there was a credential.
    pub old_serial: Option<String>,
    /// The serial number now.
    pub new_serial: String,
}

impl SvidSource {
    /// Starts a task that fetches at once and renews from then on. Must be called within a tokio runtime.
    pub fn spawn<F: SvidFetcher>(fetcher: F, policy: RenewalPolicy, clock: WallClock) -> Self {
        let (publisher, identity) = Identity::channel(clock);
        Self::spawn_into(publisher, fetcher, policy, identity)
    }

    fn spawn_into<F: SvidFetcher>(
        publisher: IdentityPublisher,
        fetcher: F,
        policy: RenewalPolicy,
        identity: Identity,
    ) -> Self {
        let (commands, requests) = mpsc::channel(8);
        let (status_out, status) = watch::channel(SourceStatus::default());
        let renewal = Renewal { fetcher, publisher, schedule: Schedule::new(policy), status: status_out };
        let task = tokio::spawn(renewal.run(requests));
        Self { identity, commands, status, task }
    }

    /// The identity that this task keeps alive.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Waits until the identity is ready for the first time. Cancel safe.
    pub async fn ready(&self) {
        self.identity.ready().await;
    }

    /// Fetches a new credential now; when this returns, new handshakes use it. Cancel safe.
    ///
    /// # Errors
    /// The fetch failed; the old credential stays and renewal goes on.
    pub async fn rotate_now(&self) -> Result<Rotated, FetchError> {
        let stopped = || FetchError::new("stopped", "the renewal task has ended");
        let (answer, outcome) = oneshot::channel();
        self.commands.send(answer).await.map_err(|_| stopped())?;
        outcome.await.map_err(|_| stopped())?
    }

    /// How renewal goes.
    pub fn status(&self) -> SourceStatus {
        self.status.borrow().clone()
    }

    /// Follows how renewal goes.
    pub fn watch_status(&self) -> watch::Receiver<SourceStatus> {
        self.status.clone()
    }
}

impl Drop for SvidSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Renewal<F> {
    fetcher: F,
    publisher: IdentityPublisher,
    schedule: Schedule,
    status: watch::Sender<SourceStatus>,
}

impl<F: SvidFetcher> Renewal<F> {
    async fn run(mut self, mut requests: mpsc::Receiver<oneshot::Sender<Result<Rotated, FetchError>>>) {
        let mut next = Instant::now();
        let mut expired_reported = false;
        loop {
            let expires_in = self.expires_in();
            let expiry = async {
                match expires_in {
                    // A moment later than the last valid second.
                    Some(left) => tokio::time::sleep(left + Duration::from_millis(1)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                request = requests.recv() => {
                    let Some(answer) = request else { return };
                    let outcome = self.fetch_once().await;
                    next = Instant::now() + self.after(outcome.is_ok());
                    expired_reported &= outcome.is_err();
                    // The asker may have gone away; the rotation happened all the same.
                    let _ = answer.send(outcome);
                }
                () = tokio::time::sleep_until(next) => {
                    let outcome = self.fetch_once().await;
                    expired_reported &= outcome.is_err();
                    next = Instant::now() + self.after(outcome.is_ok());
                }
                () = expiry, if !expired_reported => {
                    tracing::error!("the SVID expired and no new one came: not ready, handshakes are refused");
                    expired_reported = true;
                    // Wakes those who wait for a change of state.
                    self.publisher.touch();
                }
            }
        }
    }

    /// How long the current credential is still valid; `None` without one.
    fn expires_in(&self) -> Option<Duration> {
        let identity = self.publisher.identity();
        match identity.state() {
            IdentityState::Valid { not_after } => {
                Some(not_after.duration_since(identity.clock().now()).unwrap_or_default())
            }
            IdentityState::Expired { .. } => Some(Duration::ZERO),
            IdentityState::Waiting => None,
        }
    }

    async fn fetch_once(&mut self) -> Result<Rotated, FetchError> {
        let identity = self.publisher.identity().clone();
        let fetched =
            match tokio::time::timeout(self.schedule.policy().fetch_timeout, self.fetcher.fetch()).await {
                Ok(outcome) => outcome,
                Err(_) => Err(FetchError::new("timeout", "the fetch took too long")),
            };
        let usable = fetched.and_then(|fetched| {
            if fetched.credential.is_valid_at(identity.clock().now()) {
                Ok(fetched)
            } else {
                Err(FetchError::new("not_valid_now", "the new certificate is not valid at this time"))
            }
        });
        match usable {
            Ok(FetchedSvid { credential, bundles }) => {
                let old_serial = identity.current().credential.as_ref().map(|old| old.serial().to_owned());
                let new_serial = credential.serial().to_owned();
                tracing::info!(serial = new_serial, not_after = ?credential.not_after(), "new SVID");
                self.publisher.publish(Some(credential), bundles);
                self.status.send_modify(|status| {
                    status.renewals += 1;
                    status.consecutive_failures = 0;
                    status.last_error = None;
                });
                Ok(Rotated { old_serial, new_serial })
            }
            Err(error) => {
                tracing::warn!(reason = error.reason, %error, "SVID not renewed, the current one stays");
                self.status.send_modify(|status| {
                    status.failures += 1;
                    status.consecutive_failures += 1;
                    status.last_error = Some(error.clone());
                });
                Err(error)
            }
        }
    }

    /// When to fetch again, from now.
    fn after(&mut self, succeeded: bool) -> Duration {
        let current = self.publisher.identity().current();
        let now = self.publisher.identity().clock().now();
        match &current.credential {
            Some(credential) if succeeded => self.schedule.after_success(credential, now),
            _ => self.schedule.after_failure(),
        }
    }
}
