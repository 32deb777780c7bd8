use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::{sync::MutexGuard, time::Instant};

use super::{AuthError, Authenticator, BoundPod, Caller, CallerCredentials};
use crate::{
    clock::WallClock,
    id::{SpiffeId, TrustDomain},
    jwt::{Algorithm, Claims, JwkSet, JwtError, JwtSigner, MAX_JWKS_BYTES, UnverifiedToken},
};

/// A Kubernetes service account, as a checked token names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccountToken {
    /// The account's namespace.
    pub namespace: String,
    /// The account's name.
    pub service_account: String,
    /// The pod that the token is bound to.
    pub pod: Option<BoundPod>,
}

impl ServiceAccountToken {
    /// Splits `system:serviceaccount:<namespace>:<name>`.
    ///
    /// # Errors
    /// Another kind of user.
    pub fn from_user_name(user: &str, pod: Option<BoundPod>) -> Result<Self, AuthError> {
        let rest = user.strip_prefix("system:serviceaccount:");
        let names = rest.and_then(|rest| rest.split_once(':'));
        match names {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains(':') => {
                Ok(Self { namespace: namespace.to_owned(), service_account: name.to_owned(), pod })
            }
            _ => Err(AuthError::NotServiceAccount { subject: user.chars().take(128).collect() }),
        }
    }
}

/// Checks service-account tokens: with the cluster's public keys, or by asking its API server.
pub trait TokenVerifier: Send + Sync + fmt::Debug {
    /// Checks a token and says whose it is.
    ///
    /// # Errors
    /// The token is not good, or cannot be checked.
    fn verify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ServiceAccountToken, AuthError>>;
}

/// Authenticates callers by a Kubernetes service-account token; the identity is
/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Debug, Clone)]
pub struct ServiceAccountAuthenticator {
    trust_domain: TrustDomain,
    verifier: Arc<dyn TokenVerifier>,
    require_pod: bool,
}

impl ServiceAccountAuthenticator {
    /// Accepts what `verifier` accepts, in this trust domain.
    pub fn new(trust_domain: TrustDomain, verifier: impl TokenVerifier + 'static) -> Self {
        Self { trust_domain, verifier: Arc::new(verifier), require_pod: false }
    }

    /// Refuses tokens that are not bound to a pod.
    #[must_use]
    pub fn require_bound_pod(mut self) -> Self {
        self.require_pod = true;
        self
    }
}

impl Authenticator for ServiceAccountAuthenticator {
    fn name(&self) -> &'static str {
        "token"
    }

    fn authenticate<'a>(
        &'a self,
        credentials: &'a CallerCredentials,
    ) -> BoxFuture<'a, Result<Caller, AuthError>> {
        Box::pin(async move {
            let token = credentials.bearer_token.as_deref().ok_or(AuthError::Absent)?;
            let account = self.verifier.verify(token).await?;
            if self.require_pod && account.pod.is_none() {
                return Err(AuthError::NotBound);
            }
            let id = SpiffeId::workload(&self.trust_domain, &account.namespace, &account.service_account)?;
            Ok(Caller::new(id, "token", account.pod))
        })
    }
}

/// Checks tokens with the public keys of a JWKS document.
#[derive(Debug)]
pub struct JwksTokenVerifier {
    keys: ArcSwap<JwkSet>,
    source: Option<Arc<dyn KeySetSource>>,
    reads: tokio::sync::Mutex<Reads>,
    issuer: String,
    audiences: Vec<String>,
    clock: WallClock,
}

/// When the key set was read.
#[derive(Debug)]
struct Reads {
    last_tried: Option<Instant>,
    last_good: Instant,
}

/// The shortest time between two reads of the key set: unknown key IDs must not make us ask at their rate.
const REREAD_INTERVAL: Duration = Duration::from_secs(5);

/// The age at which a key set is read again though all keys are known: a key that the cluster has withdrawn, perhaps
/// because it was stolen, is good for us no longer than that.
const MAX_AGE: Duration = Duration::from_secs(300);

impl JwksTokenVerifier {
    /// Checks with fixed keys that tokens are of `issuer` and for one of `audiences`.
    pub fn new(
        keys: JwkSet,
        issuer: impl Into<String>,
        audiences: impl IntoIterator<Item = String>,
        clock: WallClock,
    ) -> Self {
        Self {
            keys: ArcSwap::from_pointee(keys),
            source: None,
            reads: tokio::sync::Mutex::new(Reads { last_tried: None, last_good: Instant::now() }),
            issuer: issuer.into(),
            audiences: audiences.into_iter().collect(),
            clock,
        }
    }

    /// Checks with the keys of a JWKS file. The file is read again when a token names a key that is not known, at most
    /// every five seconds, and when it was read five minutes ago.
    ///
    /// # Errors
    /// A file that cannot be read or is not a JWKS document.
    pub fn from_file(
        path: impl Into<PathBuf>,
        issuer: impl Into<String>,
        audiences: impl IntoIterator<Item = String>,
        clock: WallClock,
    ) -> Result<Self, JwtError> {
        let path = path.into();
        let unreadable = |e: std::io::Error| JwtError::KeySet { detail: format!("{}: {e}", path.display()) };
        let keys = JwkSet::from_json(&std::fs::read(&path).map_err(unreadable)?)?;
        Ok(Self::new(keys, issuer, audiences, clock).refreshed_from(KeySetFile(path)))
    }

    /// Asks `source` for the keys again when a token names a key that is not known, at most every five seconds, and when
    /// the keys are five minutes old. When it fails, the keys that are known stay.
    #[must_use]
    pub fn refreshed_from(mut self, source: impl KeySetSource) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Replaces the keys.
    pub fn set_keys(&self, keys: JwkSet) {
        self.keys.store(Arc::new(keys));
    }

    async fn check(&self, token: &str) -> Result<ServiceAccountToken, AuthError> {
        let parsed = UnverifiedToken::parse(token)?;
        let known = self.keys.load().candidates(parsed.kid(), parsed.algorithm()).next().is_some();
        if !known {
            let reads = self.reads.lock().await;
            self.read_again(reads).await;
        } else if let Ok(reads) = self.reads.try_lock()
            && reads.last_good.elapsed() >= MAX_AGE
        {
            // Whoever comes while one reads again goes on with the keys of before.
            self.read_again(reads).await;
        }
        let keys = self.keys.load_full();
        let claims = parsed.verify(&keys, Algorithm::KUBERNETES)?;
        claims.check_time(self.clock.unix_seconds())?;
        claims.check_issuer(&self.issuer)?;
        claims.check_audience(&self.audiences)?;
        account_of(&claims)
    }

    async fn read_again(&self, mut reads: MutexGuard<'_, Reads>) {
        let Some(source) = &self.source else { return };
        if reads.last_tried.is_some_and(|last| last.elapsed() < REREAD_INTERVAL) {
            return;
        }
        reads.last_tried = Some(Instant::now());
        let document = source.fetch().await;
        match document.and_then(|bytes| JwkSet::from_json(&bytes).map_err(|e| e.to_string())) {
            Ok(keys) => {
                self.set_keys(keys);
                reads.last_good = Instant::now();
            }
            Err(error) => tracing::warn!(?source, %error, "key set not read again, keeping the old"),
        }
    }
}

/// Where a key set document comes from.
pub trait KeySetSource: Send + Sync + fmt::Debug + 'static {
    /// Fetches the document.
    ///
    /// # Errors
    /// What failed, for the log.
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, String>>;
}

/// A key set in a file.
#[derive(Debug, Clone)]
pub struct KeySetFile(pub PathBuf);

impl KeySetSource for KeySetFile {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async {
            let facts = tokio::fs::metadata(&self.0).await.map_err(|e| e.to_string())?;
            if facts.len() > MAX_JWKS_BYTES as u64 {
                return Err(format!("{} bytes are too many", facts.len()));
            }
            tokio::fs::read(&self.0).await.map_err(|e| e.to_string())
        })
    }
}

impl TokenVerifier for JwksTokenVerifier {
    fn verify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ServiceAccountToken, AuthError>> {
        Box::pin(self.check(token))
    }
}

/// The account of a verified token. The `kubernetes.io` claim, when it is there, must agree with the subject.
fn account_of(claims: &Claims) -> Result<ServiceAccountToken, AuthError> {
    let kubernetes = claims.as_map().get("kubernetes.io");
    let text = |path: [&str; 2]| kubernetes?.get(path[0])?.get(path[1])?.as_str().map(str::to_owned);
    let namespace = kubernetes.and_then(|k| k.get("namespace")?.as_str()).map(str::to_owned);
    let pod = match (text(["pod", "name"]), text(["pod", "uid"]), &namespace) {
        (Some(name), Some(uid), Some(namespace)) => {
            Some(BoundPod { namespace: namespace.clone(), name, uid })
        }
        _ => None,
    };
    let account = ServiceAccountToken::from_user_name(claims.text("sub")?, pod)?;
    if namespace.is_some_and(|namespace| namespace != account.namespace) {
        return Err(AuthError::Inconsistent { claim: "kubernetes.io namespace" });
    }
    if text(["serviceaccount", "name"]).is_some_and(|name| name != account.service_account) {
        return Err(AuthError::Inconsistent { claim: "kubernetes.io serviceaccount" });
    }
    Ok(account)
}

/// What goes into a projected service-account token; the other half of [`JwksTokenVerifier`], for labs and tests.
#[derive(Debug, Clone)]
pub struct TokenRequest<'a> {
    /// The cluster's issuer.
    pub issuer: &'a str,
    /// Whom the token is for, for example `istio-ca`.
    pub audience: &'a str,
    /// The account's namespace, which is also the pod's.
    pub namespace: &'a str,
    /// The account's name.
    pub service_account: &'a str,
    /// The account's unique ID.
    pub service_account_uid: &'a str,
    /// The pod's name and unique ID, for a bound token.
    pub pod: Option<(&'a str, &'a str)>,
    /// How long the token is valid.
    pub lifetime: Duration,
}

impl TokenRequest<'_> {
    /// Signs the token as Kubernetes would.
    ///
    /// # Errors
    /// No randomness.
    pub fn sign(&self, signer: &JwtSigner, clock: &WallClock) -> Result<String, JwtError> {
        let now = clock.unix_seconds();
        let mut kubernetes = json!({
            "namespace": self.namespace,
            "serviceaccount": {"name": self.service_account, "uid": self.service_account_uid},
        });
        if let Some((name, uid)) = self.pod {
            kubernetes["pod"] = json!({"name": name, "uid": uid});
        }
        signer.sign(&json!({
            "iss": self.issuer,
            "sub": format!("system:serviceaccount:{}:{}", self.namespace, self.service_account),
            "aud": [self.audience],
            "iat": now,
            "nbf": now,
            "exp": now + self.lifetime.as_secs(),
            "kubernetes.io": kubernetes,
        }))
    }
}
