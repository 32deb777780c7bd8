use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use super::*;
use crate::{
    Ca, SpiffeId, TrustDomain,
    ca::{IssuancePolicy, RootOptions},
    identity::IdentityState,
};

const HOUR: Duration = Duration::from_secs(3600);

/// A CA in the same process that can be switched off, and that notes when it was asked.
#[derive(Clone)]
struct TestCa {
    ca: Arc<Ca>,
    up: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl TestCa {
    /// Certificates are valid for 24 hours and two minutes of backdating.
    fn new(clock: &WallClock) -> Self {
        let domain = TrustDomain::parse("td.example").unwrap();
        let ca = Ca::create(domain, &RootOptions::default(), IssuancePolicy::default(), clock.clone());
        let up = Arc::new(AtomicBool::new(true));
        Self { ca: Arc::new(ca.unwrap()), up, asked: Arc::default() }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl SvidFetcher for TestCa {
    async fn fetch(&self) -> Result<FetchedSvid, FetchError> {
        self.asked.lock().unwrap().push(Instant::now());
        if !self.up.load(Ordering::Relaxed) {
            return Err(FetchError::new("down", "the CA is down"));
        }
        let id = SpiffeId::parse("spiffe://td.example/web").unwrap();
        let credential = self.ca.issue_svid(&id, None).map_err(|e| FetchError::new(e.reason(), e))?;
        Ok(FetchedSvid { credential: Arc::new(credential), bundles: self.ca.bundle_set() })
    }
}

fn setup() -> (TestCa, SvidSource, WallClock) {
    let clock = WallClock::following_tokio(SystemTime::now());
    let ca = TestCa::new(&clock);
    let policy = RenewalPolicy::default().with_seed(7);
    let source = SvidSource::spawn(ca.clone(), policy, clock.clone());
    (ca, source, clock)
}

#[tokio::test(start_paused = true)]
async fn renews_around_half_of_the_lifetime() {
    let (ca, source, _) = setup();
    source.ready().await;
    let mut revisions = source.identity().subscribe();
    for _ in 0..20 {
        revisions.changed().await.unwrap();
    }
    let asked = ca.asked.lock().unwrap().clone();
    let gaps: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (10 * HOUR..14 * HOUR).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().any(|gap| gap != &gaps[0]), "jitter moves them");
    assert_eq!(source.status().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_ca_is_survived_until_expiry_and_ends_by_itself() {
    let (ca, source, clock) = setup();
    source.ready().await;
    let identity = source.identity().clone();
    let first = identity.current().credential.clone().unwrap();
    ca.up.store(false, Ordering::Relaxed);

    // Renewal fails from half of the lifetime on; until its end the old certificate serves.
    tokio::time::sleep(first.lifetime().mul_f64(0.9)).await;
    assert!(identity.is_ready());
    assert_eq!(identity.valid_credential().unwrap().serial(), first.serial());
    let status = source.status();
    assert!(status.failures > 100 && status.consecutive_failures > 100, "{status:?}");
    assert_eq!(status.last_error.unwrap().reason, "down");

    // Expiry: not ready, nothing is presented, and those who follow the identity are woken to see it.
    let mut changes = identity.subscribe();
    changes.mark_unchanged();
    let woken = changes.changed();
    tokio::time::timeout(3 * HOUR, woken).await.unwrap().unwrap();
    assert!(clock.now() > first.not_after());
    assert!(!identity.is_ready() && identity.valid_credential().is_none());
    assert!(matches!(identity.state(), IdentityState::Expired { .. }));

    // The CA comes back: ready again without anybody's help, within the longest pause.
    ca.up.store(true, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(31), identity.ready()).await.unwrap();
    assert_ne!(identity.valid_credential().unwrap().serial(), first.serial());
    assert_eq!(source.status().consecutive_failures, 0);
}

#[tokio::test(start_paused = true)]
async fn pauses_after_failures_grow_to_their_limit() {
    let clock = WallClock::following_tokio(SystemTime::now());
    let ca = TestCa::new(&clock);
    ca.up.store(false, Ordering::Relaxed);
    let source = SvidSource::spawn(ca.clone(), RenewalPolicy::default().with_seed(1), clock);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(!source.identity().is_ready());
    let asked = ca.asked.lock().unwrap().clone();
    let gaps: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (index, gap) in gaps.iter().enumerate() {
        let whole = Duration::from_millis(500 << index.min(6)).min(Duration::from_secs(30));
        assert!(*gap >= whole / 2 && *gap <= whole + Duration::from_millis(2), "{index}: {gap:?}");
    }
    assert!((10..30).contains(&asked.len()), "{}", asked.len());
}

#[tokio::test(start_paused = true)]
async fn rotation_on_demand_answers_when_the_new_one_is_live() {
    let (ca, source, _) = setup();
    source.ready().await;
    let old = source.identity().current().credential.clone().unwrap();
    let rotated = source.rotate_now().await.unwrap();
    assert_eq!(rotated.old_serial.as_deref(), Some(old.serial()));
    assert_eq!(source.identity().current().credential.as_ref().unwrap().serial(), rotated.new_serial);
    ca.up.store(false, Ordering::Relaxed);
    let refused = source.rotate_now().await.unwrap_err();
    assert_eq!(refused.reason, "down");
    let current = source.identity().current().credential.as_ref().unwrap().serial().to_owned();
    assert_eq!(current, rotated.new_serial);
}

#[tokio::test(start_paused = true)]
async fn a_new_root_arrives_with_a_renewal() {
    let (ca, source, _) = setup();
    source.ready().await;
    ca.ca.prepare_root(&RootOptions::default()).unwrap();
    source.rotate_now().await.unwrap();
    assert_eq!(source.identity().current().bundles.get("td.example").unwrap().roots().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_hangs_is_given_up() {
    #[derive(Clone)]
    struct Hangs;
    impl SvidFetcher for Hangs {
        async fn fetch(&self) -> Result<FetchedSvid, FetchError> {
            std::future::pending().await
        }
    }
    let clock = WallClock::following_tokio(SystemTime::now());
    let source = SvidSource::spawn(Hangs, RenewalPolicy::default().with_seed(1), clock);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(source.status().last_error.unwrap().reason, "timeout");
}

#[tokio::test(start_paused = true)]
async fn dropping_the_source_stops_renewal_and_keeps_the_identity() {
    let (ca, source, _) = setup();
    source.ready().await;
    let identity = source.identity().clone();
    drop(source);
    let asked = ca.asked();
    tokio::time::sleep(20 * HOUR).await;
    assert_eq!(ca.asked(), asked);
    assert!(identity.is_ready());
}

#[tokio::test]
async fn files_are_read_as_an_identity() {
    let clock = WallClock::system();
    let ca = TestCa::new(&clock);
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let fetched = ca.fetch().await.unwrap();
    std::fs::write(path("cert.pem"), fetched.credential.chain_pem()).unwrap();
    std::fs::write(path("key.pem"), fetched.credential.key().to_pem().as_bytes()).unwrap();
    let files = FileFetcher { chain: path("cert.pem"), key: path("key.pem"), roots: path("root.pem") };
    assert_eq!(files.fetch().await.unwrap_err().reason, "file");
    std::fs::write(path("root.pem"), ca.ca.bundle().to_pem()).unwrap();
    let read = files.fetch().await.unwrap();
    assert_eq!(read.credential.serial(), fetched.credential.serial());
    std::fs::write(path("key.pem"), ca.fetch().await.unwrap().credential.key().to_pem().as_bytes()).unwrap();
    assert_eq!(files.fetch().await.unwrap_err().reason, "key");
}

#[tokio::test(start_paused = true)]
async fn a_short_lived_svid_is_renewed_at_half_of_what_is_left_of_it() {
    let clock = WallClock::following_tokio(SystemTime::now());
    let domain = TrustDomain::parse("td.example").unwrap();
    let policy = IssuancePolicy::default().with_default_lifetime(Duration::from_secs(120));
    assert_eq!(policy.backdate, Duration::from_secs(120), "half of the certificate's time lies in the past");
    let ca = Ca::create(domain, &RootOptions::default(), policy, clock.clone()).unwrap();
    let ca = TestCa { ca: Arc::new(ca), up: Arc::new(AtomicBool::new(true)), asked: Arc::default() };
    let source = SvidSource::spawn(ca.clone(), RenewalPolicy::default().with_seed(1), clock);
    source.ready().await;
    tokio::time::sleep(HOUR).await;
    assert!((55..=66).contains(&ca.asked()), "{} in an hour", ca.asked());
    assert!(source.identity().is_ready());
}

#[tokio::test(start_paused = true)]
async fn files_that_nobody_renews_are_no_renewal_and_new_ones_are_taken_within_two_seconds() {
    let clock = WallClock::following_tokio(SystemTime::now());
    let ca = TestCa::new(&clock);
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let write = async || {
        let fetched = ca.fetch().await.unwrap();
        std::fs::write(path("key.pem"), fetched.credential.key().to_pem().as_bytes()).unwrap();
        std::fs::write(path("cert.pem"), fetched.credential.chain_pem()).unwrap();
        std::fs::write(path("root.pem"), ca.ca.bundle().to_pem()).unwrap();
        fetched.credential
    };
    let first = write().await;
    let files = FileFetcher { chain: path("cert.pem"), key: path("key.pem"), roots: path("root.pem") };
    let source = SvidSource::spawn(files, RenewalPolicy::default().with_seed(1), clock.clone());
    source.ready().await;
    let revision = source.identity().current().revision;
    tokio::time::sleep(first.not_after().duration_since(clock.now()).unwrap() - HOUR).await;
    assert_eq!((source.status().renewals, source.identity().current().revision), (1, revision));
    let rotated = source.rotate_now().await.unwrap();
    assert_eq!(rotated.old_serial.as_deref(), Some(rotated.new_serial.as_str()));

    // The source looks at the files again once it has read them; the clock stands still until it has.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let second = write().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(source.identity().current().credential.as_ref().unwrap().serial(), second.serial());
    assert_eq!(source.status().renewals, 2);

    // A new root in its file, the same certificate.
    ca.ca.prepare_root(&RootOptions::default()).unwrap();
    std::fs::write(path("root.pem"), ca.ca.bundle().to_pem()).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(source.identity().current().bundles.get("td.example").unwrap().roots().len(), 2);
    assert_eq!((source.status().renewals, source.status().failures), (2, 0));
}

/// Misbehaves for some identities.
#[derive(Clone)]
struct OddCa {
    ca: Arc<Ca>,
    asked: Arc<AtomicUsize>,
    mode: Arc<AtomicUsize>,
}

impl OddCa {
    fn new(clock: &WallClock) -> Self {
        Self { ca: TestCa::new(clock).ca, asked: Arc::default(), mode: Arc::default() }
    }

    fn mode(&self, mode: usize) {
        self.mode.store(mode, Ordering::Relaxed);
    }
}

const PANICS: usize = 1;
const ANOTHER_ID: usize = 2;
const EXPIRED: usize = 3;
const DOWN: usize = 4;

impl ManyFetcher for OddCa {
    async fn fetch(&self, id: &SpiffeId) -> Result<FetchedSvid, FetchError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mode = self.mode.load(Ordering::Relaxed);
        assert_ne!(mode, PANICS, "the fetcher panics");
        let issue = |ca: &Ca, id: &SpiffeId| {
            let credential = ca.issue_svid(id, None).unwrap();
            Ok(FetchedSvid { credential: Arc::new(credential), bundles: ca.bundle_set() })
        };
        match mode {
            DOWN => Err(FetchError::new("down", "the CA is down")),
            ANOTHER_ID => issue(&self.ca, &workload(999)),
            EXPIRED => issue(&TestCa::new(&WallClock::from_fn(|| SystemTime::UNIX_EPOCH + HOUR)).ca, id),
            _ => issue(&self.ca, id),
        }
    }
}

impl SvidFetcher for OddCa {
    async fn fetch(&self) -> Result<FetchedSvid, FetchError> {
        ManyFetcher::fetch(self, &workload(1)).await
    }
}

#[tokio::test(start_paused = true)]
async fn many_or_one_what_cannot_be_presented_is_a_failure_that_is_told_and_tried_again() {
    for (mode, reason) in [(PANICS, "panic"), (ANOTHER_ID, "denied"), (EXPIRED, "expired"), (DOWN, "down")] {
        let clock = WallClock::following_tokio(SystemTime::now());
        let odd = OddCa::new(&clock);
        odd.mode(mode);
        let policy = RenewalPolicy::default().with_seed(3);
        let manager = SvidManager::spawn(odd.clone(), policy.clone(), clock.clone(), 2);
        let identity = manager.add(workload(1));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let status = manager.status(&workload(1)).unwrap();
        assert_eq!(status.last_error.map(|error| error.reason), Some(reason));
        assert!(status.failures > 3 && status.renewals == 0 && !identity.is_ready(), "{reason}");
        odd.mode(0);
        tokio::time::timeout(Duration::from_secs(60), identity.ready()).await.expect("tried again by itself");
        let status = manager.status(&workload(1)).unwrap();
        assert_eq!((status.renewals, status.consecutive_failures), (1, 0));
        assert!(status.last_error.is_none() && manager.status(&workload(2)).is_none());

        // For one source the fetcher alone knows whose identity it is.
        if mode == ANOTHER_ID {
            continue;
        }
        odd.mode(mode);
        let source = SvidSource::spawn(odd.clone(), policy, clock);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(source.status().last_error.map(|error| error.reason), Some(reason));
        odd.mode(0);
        tokio::time::timeout(Duration::from_secs(60), source.ready()).await.expect("tried again by itself");
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_follow_one_of_many_are_woken_when_it_expires() {
    let clock = WallClock::following_tokio(SystemTime::now());
    let odd = OddCa::new(&clock);
    let manager = SvidManager::spawn(odd.clone(), RenewalPolicy::default().with_seed(3), clock.clone(), 2);
    let identity = manager.add(workload(1));
    identity.ready().await;
    let not_after = identity.current().credential.as_ref().unwrap().not_after();
    let mut changes = identity.subscribe();
    odd.mode(DOWN);
    let expired = async {
        while !matches!(identity.state(), IdentityState::Expired { .. }) {
            changes.changed().await.unwrap();
        }
    };
    let left = not_after.duration_since(clock.now()).unwrap();
    tokio::time::timeout(left + Duration::from_secs(2), expired).await.expect("woken at the end");
    odd.mode(0);
    tokio::time::timeout(Duration::from_secs(60), identity.ready()).await.expect("recovers by itself");
}

/// Fetches for many, slowly, and notes how many at once and in which order.
#[derive(Clone)]
struct ManyCa {
    ca: Arc<Ca>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    order: Arc<Mutex<Vec<SpiffeId>>>,
}

impl ManyFetcher for ManyCa {
    async fn fetch(&self, id: &SpiffeId) -> Result<FetchedSvid, FetchError> {
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(running, Ordering::Relaxed);
        self.order.lock().unwrap().push(id.clone());
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.running.fetch_sub(1, Ordering::Relaxed);
        let credential = self.ca.issue_svid(id, None).map_err(|e| FetchError::new(e.reason(), e))?;
        Ok(FetchedSvid { credential: Arc::new(credential), bundles: self.ca.bundle_set() })
    }
}

fn many(clock: &WallClock) -> ManyCa {
    ManyCa { ca: TestCa::new(clock).ca, running: Arc::default(), most: Arc::default(), order: Arc::default() }
}

fn workload(number: usize) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://td.example/w{number}")).unwrap()
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_identities_are_kept_alive_a_few_at_a_time() {
    let clock = WallClock::following_tokio(SystemTime::now());
    let fetcher = many(&clock);
    let manager = SvidManager::spawn(fetcher.clone(), RenewalPolicy::default().with_seed(3), clock, 8);
    let identities: Vec<_> = (0..200).map(|n| manager.add(workload(n))).collect();
    for identity in &identities {
        identity.ready().await;
    }
    assert_eq!(fetcher.most.load(Ordering::Relaxed), 8);
    assert_eq!(fetcher.order.lock().unwrap().len(), 200);
    tokio::time::sleep(72 * HOUR).await;
    assert!(identities.iter().all(Identity::is_ready));
    assert_eq!(fetcher.most.load(Ordering::Relaxed), 8);

    let fetched = fetcher.order.lock().unwrap().len();
    (0..200).for_each(|n| manager.remove(workload(n)));
    tokio::time::sleep(72 * HOUR).await;
    assert_eq!(fetcher.order.lock().unwrap().len(), fetched, "nothing is fetched for removed ones");
}

#[tokio::test(start_paused = true)]
async fn a_new_workload_goes_before_renewals() {
    let clock = WallClock::following_tokio(SystemTime::now());
    let fetcher = many(&clock);
    let policy = RenewalPolicy { jitter: 0.0, ..RenewalPolicy::default().with_seed(3) };
    let manager = SvidManager::spawn(fetcher.clone(), policy, clock, 1);
    let identities: Vec<_> = (0..20).map(|n| manager.add(workload(n))).collect();
    for identity in &identities {
        identity.ready().await;
    }
    // All twenty come due for renewal within two seconds; in the middle of it somebody new arrives.
    tokio::time::sleep(12 * HOUR - Duration::from_secs(90)).await;
    assert_eq!(fetcher.order.lock().unwrap().len(), 20);
    while fetcher.order.lock().unwrap().len() < 23 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    manager.add(workload(99)).ready().await;
    let order = fetcher.order.lock().unwrap().clone();
    let place = order.iter().position(|id| *id == workload(99)).unwrap();
    assert!(place <= 24, "{place} of {}", order.len());
}
