//! TLS for the data path: mesh-identity's configurations behind mesh-proxy-core's [`TlsProvider`].
//!
//! `default` and `ROOTCA` follow the workload's live identity; `file-cert:`, `file-root:` and file names are read when
//! first needed and again when a file changes. Configurations are kept per TLS context; they read the identity at each
//! handshake, so a rotated certificate is used at once without rebuilding anything.

mod files;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use mesh_identity::{Authorizer, ClientTls, Identity, ServerTls, SpiffeId, TrustDomain, WallClock};
use mesh_proxy_core::config::{
    DownstreamTls, SecretRef, StringMatcher, StringPattern, TlsVersion, UpstreamTls,
};
use mesh_proxy_core::tls::{PeerCertificate, TlsProvider, TlsUnavailable};
use rustls::{ClientConfig, ServerConfig};

use self::files::Files;

/// SDS name of the workload's certificate.
pub const DEFAULT: &str = "default";
/// SDS name of the mesh's roots.
pub const ROOTCA: &str = "ROOTCA";
/// Contexts that are kept before dead ones are looked for.
const PRUNE_ABOVE: usize = 64;

/// Gives the data path its rustls configurations.
#[derive(Debug)]
pub struct SidecarTls {
    workload: Option<Workload>,
    files: Files,
    servers: Cache<DownstreamTls, ServerConfig>,
    clients: Cache<UpstreamTls, ClientConfig>,
}

/// The live identity of this workload.
#[derive(Debug, Clone)]
struct Workload {
    identity: Identity,
    trust_domain: TrustDomain,
}

impl SidecarTls {
    /// For an injected pod: named secrets come from `identity`.
    pub fn of_workload(identity: Identity, trust_domain: TrustDomain) -> Self {
        Self::new(Some(Workload { identity, trust_domain }))
    }

    /// For a static bootstrap: only files.
    pub fn of_files() -> Self {
        Self::new(None)
    }

    fn new(workload: Option<Workload>) -> Self {
        Self { workload, files: Files::default(), servers: Cache::default(), clients: Cache::default() }
    }

    /// The identity behind a certificate.
    fn certificate(&self, secret: &SecretRef) -> Result<Identity, TlsUnavailable> {
        match Source::of(secret) {
            Source::Workload => self.workload(secret).map(|w| w.identity.clone()),
            Source::Certificate { chain, key } => self.files.certificate(&chain, &key),
            _ => Err(unavailable(secret, "it is not a certificate")),
        }
    }

    /// The identity whose bundles hold the roots, given the trust domains that the context speaks of.
    fn roots(&self, secret: &SecretRef, domains: BTreeSet<TrustDomain>) -> Result<Identity, TlsUnavailable> {
        match Source::of(secret) {
            Source::Workload => self.workload(secret).map(|w| w.identity.clone()),
            Source::RootsFile(path) => self.files.roots(&path, domains),
            Source::RootsText(pem) => files::roots_of_text(&pem, domains).map_err(|e| unavailable(secret, e)),
            Source::Certificate { .. } | Source::Unknown => Err(unavailable(secret, "it holds no roots")),
        }
    }

    fn workload(&self, secret: &SecretRef) -> Result<&Workload, TlsUnavailable> {
        self.workload
            .as_ref()
            .ok_or_else(|| unavailable(secret, "there is no workload identity in this mode"))
    }

    /// Whom a context accepts: its SAN matchers; without any, the trust domain that we belong to ourselves.
    fn authorizer(
        &self,
        names: &[StringMatcher],
        own: Option<&Identity>,
    ) -> Result<Authorizer, TlsUnavailable> {
        if !names.is_empty() {
            return Ok(Authorizer::any_of(names.iter().map(accepting)));
        }
        let own = own
            .and_then(|identity| identity.current().id().map(SpiffeId::trust_domain))
            .or_else(|| self.workload.as_ref().map(|w| w.trust_domain.clone()));
        own.map(Authorizer::trust_domain).ok_or_else(|| TlsUnavailable {
            secret: "peer names".into(),
            reason: "none are given and there is no trust domain of our own".into(),
        })
    }

    fn build_server(&self, context: &DownstreamTls) -> Result<Arc<ServerConfig>, TlsUnavailable> {
        let certificate = context.certificates.first().ok_or_else(|| TlsUnavailable {
            secret: "server certificate".into(),
            reason: "the context names none".into(),
        })?;
        let identity = self.certificate(certificate)?;
        let mut tls = match &context.validation {
            None => ServerTls::without_client_certificate(identity),
            Some(roots) => {
                let mut domains = domains_of(&context.subject_alt_names);
                domains.extend(identity.current().id().map(SpiffeId::trust_domain));
                let trust = self.roots(roots, domains)?;
                let authorizer = self.authorizer(&context.subject_alt_names, Some(&identity))?;
                let tls = ServerTls::new(identity, authorizer).trust_from(trust);
                if context.require_client_certificate { tls } else { tls.optional_client_certificate() }
            }
        };
        if context.min_version == TlsVersion::V1_2 {
            tls = tls.allow_tls12();
        }
        tls.build().map_err(|e| unavailable(certificate, e))
    }

    fn build_client(&self, context: &UpstreamTls) -> Result<Arc<ClientConfig>, TlsUnavailable> {
        let identity = context.certificate.as_ref().map(|secret| self.certificate(secret)).transpose()?;
        let Some(roots) = &context.validation else {
            return Err(TlsUnavailable {
                secret: "validation context".into(),
                reason: "the system's roots are not supported: name a root file".into(),
            });
        };
        let by_dns_name = context.auto_san_validation || is_dns_only(&context.subject_alt_names);
        let mut tls = if by_dns_name {
            let pem = self.roots_pem(roots)?;
            ClientTls::dns(pem.as_bytes(), WallClock::system()).map_err(|e| unavailable(roots, e))?
        } else {
            let mut domains = domains_of(&context.subject_alt_names);
            domains.extend(identity.as_ref().and_then(|i| i.current().id().map(SpiffeId::trust_domain)));
            let trust = self.roots(roots, domains)?;
            ClientTls::spiffe(trust, self.authorizer(&context.subject_alt_names, identity.as_ref())?)
        };
        if let Some(identity) = identity {
            tls = tls.presenting(identity);
        }
        if context.min_version == TlsVersion::V1_2 {
            tls = tls.allow_tls12();
        }
        tls.build().map_err(|e| unavailable(roots, e))
    }

    fn roots_pem(&self, secret: &SecretRef) -> Result<String, TlsUnavailable> {
        match Source::of(secret) {
            Source::RootsText(pem) => Ok(pem),
            Source::RootsFile(path) => std::fs::read_to_string(path).map_err(|e| unavailable(secret, e)),
            Source::Workload => {
                let bundles = &self.workload(secret)?.identity.current().bundles;
                Ok(bundles.iter().map(mesh_identity::TrustBundle::to_pem).collect())
            }
            Source::Certificate { .. } | Source::Unknown => Err(unavailable(secret, "it holds no roots")),
        }
    }
}

impl TlsProvider for SidecarTls {
    fn server_config(&self, context: &Arc<DownstreamTls>) -> Result<Arc<ServerConfig>, TlsUnavailable> {
        self.servers.get(context, self.files.generation(), || self.build_server(context))
    }

    fn client_config(&self, context: &Arc<UpstreamTls>) -> Result<Arc<ClientConfig>, TlsUnavailable> {
        self.clients.get(context, self.files.generation(), || self.build_client(context))
    }

    /// By the workload's bundles as they are now; roots in files have no lists.
    fn is_revoked(&self, peer: &PeerCertificate) -> bool {
        let (Some(workload), Some(id)) = (&self.workload, peer.spiffe_id()) else { return false };
        let domain = id.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next()).unwrap_or_default();
        let current = workload.identity.current();
        current.bundles.get(domain).is_some_and(|bundle| bundle.is_revoked(&peer.issuer, &peer.serial))
    }

    fn local_identity(&self) -> Option<Arc<str>> {
        let identity = match &self.workload {
            Some(workload) => workload.identity.clone(),
            None => self.files.any_certificate()?,
        };
        identity.current().id().map(|id| id.as_str().into())
    }
}

/// What a secret's name or place means.
#[derive(Debug)]
enum Source {
    Workload,
    Certificate { chain: PathBuf, key: PathBuf },
    RootsFile(PathBuf),
    RootsText(String),
    Unknown,
}

impl Source {
    fn of(secret: &SecretRef) -> Self {
        match secret {
            SecretRef::Named(name) => match &**name {
                DEFAULT | ROOTCA => Self::Workload,
                name => {
                    if let Some(path) = name.strip_prefix("file-root:").filter(|path| *path != "system") {
                        Self::RootsFile(path.into())
                    } else if let Some((chain, key)) =
                        name.strip_prefix("file-cert:").and_then(|files| files.split_once('~'))
                    {
                        Self::Certificate { chain: chain.into(), key: key.into() }
                    } else {
                        Self::Unknown
                    }
                }
            },
            SecretRef::CertificateFiles { chain, key } => {
                Self::Certificate { chain: chain.clone(), key: key.clone() }
            }
            SecretRef::RootsFile(path) => Self::RootsFile(path.clone()),
            SecretRef::InlineRoots(pem) => Self::RootsText(pem.to_string()),
        }
    }
}

fn unavailable(secret: &SecretRef, reason: impl ToString) -> TlsUnavailable {
    let secret = match secret {
        SecretRef::Named(name) => name.to_string(),
        SecretRef::CertificateFiles { chain, .. } => file_name(chain),
        SecretRef::RootsFile(path) => file_name(path),
        SecretRef::InlineRoots(_) => "inline roots".into(),
    };
    TlsUnavailable { secret, reason: reason.to_string() }
}

fn file_name(path: &Path) -> String {
    path.display().to_string()
}

/// One SAN matcher as an authorizer.
fn accepting(matcher: &StringMatcher) -> Authorizer {
    let strict = match &matcher.pattern {
        StringPattern::Exact(text) if !matcher.ignore_case => {
            SpiffeId::parse(text).ok().map(Authorizer::exact)
        }
        StringPattern::Prefix(text) if !matcher.ignore_case => Authorizer::prefix(text).ok(),
        _ => None,
    };
    strict.unwrap_or_else(|| {
        let owned = matcher.clone();
        Authorizer::matching(format!("{:?}", matcher.pattern), move |peer| owned.matches(peer.id.as_str()))
    })
}

/// The trust domains that SAN matchers name.
fn domains_of(names: &[StringMatcher]) -> BTreeSet<TrustDomain> {
    names
        .iter()
        .filter_map(|matcher| match &matcher.pattern {
            StringPattern::Exact(text) | StringPattern::Prefix(text) => text.strip_prefix("spiffe://"),
            _ => None,
        })
        .filter_map(|rest| TrustDomain::parse(rest.split('/').next().unwrap_or_default()).ok())
        .collect()
}

/// Whether the names are those of a server outside the mesh.
fn is_dns_only(names: &[StringMatcher]) -> bool {
    !names.is_empty()
        && names.iter().all(|m| matches!(&m.pattern, StringPattern::Exact(text) if !text.contains("://")))
}

/// Built configurations by context, the context held weakly.
#[derive(Debug)]
struct Cache<K, V>(Mutex<CacheState<K, V>>);

#[derive(Debug)]
struct CacheState<K, V> {
    generation: u64,
    built: HashMap<usize, (Weak<K>, Arc<V>)>,
    prune_at: usize,
}

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(Mutex::new(CacheState { generation: 0, built: HashMap::new(), prune_at: PRUNE_ABOVE }))
    }
}

impl<K, V> Cache<K, V> {
    fn get(
        &self,
        context: &Arc<K>,
        generation: u64,
        build: impl FnOnce() -> Result<Arc<V>, TlsUnavailable>,
    ) -> Result<Arc<V>, TlsUnavailable> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.generation != generation {
            state.generation = generation;
            state.built.clear();
        }
        let at = Arc::as_ptr(context) as usize;
        if let Some((known, built)) = state.built.get(&at)
            && known.upgrade().is_some_and(|known| Arc::ptr_eq(&known, context))
        {
            return Ok(Arc::clone(built));
        }
        let built = build()?;
        state.built.insert(at, (Arc::downgrade(context), Arc::clone(&built)));
        if state.built.len() > state.prune_at {
            state.built.retain(|_, (known, _)| known.strong_count() > 0);
            state.prune_at = (state.built.len() * 2).max(PRUNE_ABOVE);
        }
        Ok(built)
    }
}

#[cfg(test)]
mod tests;
