//! Keeping an identity alive: fetch, renew in time, survive outages, say so when it expired.

mod accept;
mod file;
mod manager;
mod schedule;
mod stamp;

#[cfg(test)]
mod tests;

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

pub(crate) use self::{accept::report_expiry, stamp::Stamp};
use self::{
    accept::{fetch_usable, publish_new},
    schedule::Schedule,
};
pub use self::{
    file::FileFetcher,
    manager::{ManyFetcher, SvidManager},
    schedule::RenewalPolicy,
};
use crate::{
    bundle::BundleSet,
    clock::WallClock,
    identity::{Identity, IdentityPublisher},
    x509::Credential,
};

/// Gets a new credential and the roots to trust: a CA client, a Workload API client, a test's CA.
pub trait SvidFetcher: Send + Sync + 'static {
    /// Fetches once. Retries and their timing are the caller's job. Must be cancel safe.
    fn fetch(&self) -> impl Future<Output = Result<FetchedSvid, FetchError>> + Send;

    /// Waits until there may be something new before it is time to renew, as when somebody replaced a file; the default
    /// waits for ever. Must be cancel safe.
    fn changed(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Waits until whom to trust changes while the credential stays, as when a revocation list comes, and gives it, made
    /// from the bundles of now. It is published at once. The default waits for ever. Must be cancel safe.
    fn bundles_changed(&self, current: &BundleSet) -> impl Future<Output = BundleSet> + Send {
        let _unused = current;
        std::future::pending()
    }
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
    /// How many new credentials were fetched; the same one again does not count.
    pub renewals: u64,
    /// How many fetches failed.
    pub failures: u64,
    /// How many failed since the last success.
    pub consecutive_failures: u32,
    /// The last failure since the last success.
    pub last_error: Option<FetchError>,
}

impl SourceStatus {
    fn succeeded(&mut self, is_new: bool) {
        self.renewals += u64::from(is_new);
        self.consecutive_failures = 0;
        self.last_error = None;
    }

    fn failed(&mut self, error: &FetchError) {
        self.failures += 1;
        self.consecutive_failures += 1;
        self.last_error = Some(error.clone());
    }
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
        let (commands, requests) = mpsc::channel(8);
        let (status_out, status) = watch::channel(SourceStatus::default());
        let renewal = Renewal { fetcher, publisher, schedule: Schedule::new(policy), status: status_out };
        let expiry = report_expiry(identity.clone());
        let task = tokio::spawn(async move {
            tokio::select! {
                () = renewal.run(requests) => {}
                () = expiry => {}
            }
        });
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

    /// Fetches a new credential now; when this returns, new handshakes use it. Where the fetcher has nothing newer, both
    /// serial numbers are the same. Cancel safe.
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
        loop {
            let bundles = self.publisher.identity().current().bundles.clone();
            let asker = tokio::select! {
                biased;
                request = requests.recv() => {
                    let Some(answer) = request else { return };
                    Some(answer)
                }
                () = tokio::time::sleep_until(next) => None,
                () = self.fetcher.changed() => None,
                bundles = self.fetcher.bundles_changed(&bundles) => {
                    self.publisher.publish_bundles(bundles);
                    continue;
                }
            };
            let outcome = self.fetch_once().await;
            next = Instant::now() + self.after(outcome.is_ok());
            if let Some(answer) = asker {
                // The asker may have gone away; the rotation happened all the same.
                let _ = answer.send(outcome);
            }
        }
    }

    async fn fetch_once(&mut self) -> Result<Rotated, FetchError> {
        let identity = self.publisher.identity();
        let timeout = self.schedule.policy().fetch_timeout;
        match fetch_usable(self.fetcher.fetch(), timeout, identity, None).await {
            Ok(fetched) => {
                let old_serial = identity.current().credential.as_ref().map(|old| old.serial().to_owned());
                let new_serial = fetched.credential.serial().to_owned();
                let is_new = publish_new(&self.publisher, fetched);
                self.status.send_modify(|status| status.succeeded(is_new));
                Ok(Rotated { old_serial, new_serial })
            }
            Err(error) => {
                tracing::warn!(reason = error.reason, %error, "SVID not renewed, the current one stays");
                self.status.send_modify(|status| status.failed(&error));
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
