use std::{sync::Arc, time::SystemTime};

use rustls::pki_types::CertificateDer;

use super::{Ca, CaError, CaPem, Revocation, RootOptions, Signer};

/// Where root rotation stands. A root is replaced in three steps, each of which must reach every workload before the
/// next: first everybody trusts both roots, then the new one signs, then the old one is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RootRotation {
    /// One signer; nothing is going on.
    Stable,
    /// The new root is trusted, the old one still signs.
    Prepared,
    /// The new root signs, the old one is still trusted.
    Activated,
}

impl RootRotation {
    /// The state's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Prepared => "prepared",
            Self::Activated => "activated",
        }
    }
}

/// The signer, the roots that are trusted, and what was revoked.
#[derive(Debug)]
pub(super) struct Roots {
    signer: Arc<Signer>,
    next: Option<Next>,
    retiring: Option<Arc<Signer>>,
    /// Signers that others replaced while their root stays trusted, each until its last certificate is over: until
    /// then it can still sign a revocation list.
    former: Vec<(Arc<Signer>, SystemTime)>,
    others: Vec<CertificateDer<'static>>,
    pub(super) revocation: Revocation,
}

/// A signer whose root is trusted but that does not sign yet.
#[derive(Debug)]
struct Next {
    signer: Arc<Signer>,
    /// What a plugged-in signer brought along; `None` for a root that was made here.
    plugged_in: Option<PluggedIn>,
}

#[derive(Debug)]
struct PluggedIn {
    /// Roots that are trusted because of it only.
    new_roots: Vec<CertificateDer<'static>>,
    /// Whether its files trust the current signer's root as well: then nothing is to be retired.
    keeps_old_root: bool,
}

impl Roots {
    pub(super) fn new(signer: Signer, others: Vec<CertificateDer<'static>>) -> Self {
        Self {
            signer: Arc::new(signer),
            next: None,
            retiring: None,
            former: Vec::new(),
            others,
            revocation: Revocation::default(),
        }
    }

    pub(super) fn signer(&self) -> &Arc<Signer> {
        &self.signer
    }

    /// The current signer, then the one before or after it.
    fn signers(&self) -> impl Iterator<Item = &Arc<Signer>> {
        let next = self.next.as_ref().map(|next| &next.signer);
        [Some(&self.signer), next, self.retiring.as_ref()].into_iter().flatten()
    }

    /// Every signer of which a certificate may still be valid.
    pub(super) fn issuers(&self) -> impl Iterator<Item = &Arc<Signer>> {
        self.signers().chain(self.former.iter().map(|(signer, _)| signer))
    }

    /// Forgets signers whose last certificate is over, and their revocation lists.
    pub(super) fn forget_expired(&mut self, now: SystemTime) {
        let (former, over) =
            std::mem::take(&mut self.former).into_iter().partition(|(_, until)| *until >= now);
        self.former = former;
        let over: Vec<_> = over;
        over.iter().for_each(|(signer, _)| self.revocation.forget_issuer(signer.certificate()));
    }

    /// Every trusted root, once, the signer's first.
    pub(super) fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let mut roots: Vec<CertificateDer<'static>> = Vec::new();
        let all = self.signers().map(|signer| signer.root()).chain(&self.others);
        for root in all {
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        roots
    }

    /// Every trusted root, the signer's last: the order of Istio's certificate service.
    pub(super) fn for_response(&self) -> Vec<CertificateDer<'static>> {
        let mut roots = self.trusted();
        roots.rotate_left(1);
        roots
    }

    pub(super) fn crls(&self) -> Vec<Vec<u8>> {
        self.revocation.lists().map(<[u8]>::to_vec).collect()
    }

    /// Takes a new signer and its roots. Under a root that is trusted already it signs at once. Under another one it
    /// waits as the next signer: a certificate of it would be refused by everybody who has only the bundle of before.
    /// `last_end` is when the last certificate that the old signer may have given is over.
    fn replace(
        &mut self,
        new: Signer,
        roots: Vec<CertificateDer<'static>>,
        last_end: SystemTime,
    ) -> Result<(), CaError> {
        let withdrawn = match &self.next {
            Some(Next { plugged_in: Some(withdrawn), .. }) => withdrawn.new_roots.clone(),
            _ if self.state() != RootRotation::Stable => {
                return Err(CaError::Rotation { step: "replace", state: self.state().name() });
            }
            _ => Vec::new(),
        };
        // Whoever waited is not wanted any more.
        self.next = None;
        self.others.retain(|root| !withdrawn.contains(root));
        let trusted = self.trusted();
        let new_roots: Vec<_> = roots.iter().filter(|root| !trusted.contains(root)).cloned().collect();
        let keeps_old_root = roots.contains(self.signer.root()) || new.root() == self.signer.root();
        let is_trusted = trusted.contains(new.root());
        let next = Next { signer: Arc::new(new), plugged_in: Some(PluggedIn { new_roots, keeps_old_root }) };
        self.others.extend(roots.into_iter().filter(|root| !trusted.contains(root)));
        if is_trusted {
            self.activate(next, last_end);
        } else {
            self.next = Some(next);
        }
        Ok(())
    }

    fn activate(&mut self, next: Next, last_end: SystemTime) {
        let old = std::mem::replace(&mut self.signer, next.signer);
        if !next.plugged_in.is_some_and(|it| it.keeps_old_root) {
            self.retiring = Some(old);
        } else if old.certificate() != self.signer.certificate() {
            let until = last_end.min(old.not_after());
            self.former.push((old, until));
        }
    }

    /// Forgets a retired signer's root and everything that stands under it alone.
    fn forget_root_of(&mut self, old: &Signer) {
        self.others.retain(|root| root != old.root());
        let trusted = self.trusted();
        let (former, gone) = std::mem::take(&mut self.former)
            .into_iter()
            .partition::<Vec<_>, _>(|(signer, _)| trusted.contains(signer.root()));
        self.former = former;
        for signer in gone.iter().map(|(signer, _)| &**signer).chain([old]) {
            self.revocation.forget_issuer(signer.certificate());
        }
    }

    fn state(&self) -> RootRotation {
        match (&self.next, &self.retiring) {
            (Some(_), _) => RootRotation::Prepared,
            (None, Some(_)) => RootRotation::Activated,
            (None, None) => RootRotation::Stable,
        }
    }
}

impl Ca {
    /// Whether the signer's own certificate still has the time that the policy demands.
    pub(super) fn can_sign(&self) -> bool {
        let left = self.lock().signer().not_after().duration_since(self.clock.now()).unwrap_or_default();
        left >= self.policy.min_remaining
    }

    /// Where root rotation stands.
    pub fn root_rotation(&self) -> RootRotation {
        self.lock().state()
    }

    /// First step: makes a new root and trusts it beside the current one, which goes on signing.
    ///
    /// # Errors
    /// A rotation is under way, or no randomness.
    pub fn prepare_root(&self, options: &RootOptions) -> Result<(), CaError> {
        let new = Signer::self_signed(&self.trust_domain, options, self.clock.now())?;
        let next = Next { signer: Arc::new(new), plugged_in: None };
        self.step("prepare", RootRotation::Stable, |roots| roots.next = Some(next))
    }

    /// Replaces the signer by another one from PEM; [`Ca::follow_files`] does it when files change.
    ///
    /// Under a root that is trusted already the new signer signs from now on. Under another root this is the first step
    /// of a root rotation, with the root that the PEM brings in place of a new one: both roots are trusted, the former
    /// signer goes on until [`Ca::activate_root`], and its root is trusted until [`Ca::retire_root`]. A signer that
    /// waits in this way gives way to the next one that is plugged in, also to the former one.
    ///
    /// # Errors
    /// As [`Ca::load`], and while another root rotation is under way; the CA is then unchanged.
    pub fn replace_signer(&self, pem: &CaPem) -> Result<(), CaError> {
        let (new, new_roots) = Signer::load(pem, &self.clock)?;
        let now = self.clock.now();
        let mut roots = self.lock();
        roots.forget_expired(now);
        roots.replace(new, new_roots, now + self.policy.max_lifetime)?;
        tracing::info!(
            state = roots.state().name(),
            roots = roots.trusted().len(),
            "another signer plugged in"
        );
        self.publish(&roots)?;
        Ok(())
    }

    /// Second step: the new root signs. Take it when every workload trusts both, which is one renewal of the longest
    /// lived certificate after the first step.
    ///
    /// # Errors
    /// There is no prepared root.
    pub fn activate_root(&self) -> Result<(), CaError> {
        let last_end = self.clock.now() + self.policy.max_lifetime;
        self.step("activate", RootRotation::Prepared, |roots| {
            if let Some(next) = roots.next.take() {
                roots.activate(next, last_end);
            }
        })
    }

    /// Last step: the old root is forgotten. Take it when no certificate of the old root is left.
    ///
    /// # Errors
    /// No root is waiting to be retired.
    pub fn retire_root(&self) -> Result<(), CaError> {
        self.step("retire", RootRotation::Activated, |roots| {
            if let Some(old) = roots.retiring.take() {
                roots.forget_root_of(&old);
            }
        })
    }

    /// Forgets a root that is trusted beside those of the signers: one that a stored CA brought along from a rotation
    /// before a restart, or an additional one of a plugged-in CA. Says whether it was there.
    ///
    /// # Errors
    /// The root stands behind a signer; only [`Ca::retire_root`] removes those.
    pub fn forget_root(&self, root: &CertificateDer<'_>) -> Result<bool, CaError> {
        let mut roots = self.lock();
        if roots.signers().any(|signer| signer.root() == root) {
            return Err(CaError::Rotation { step: "forget a signer's root", state: roots.state().name() });
        }
        let before = roots.others.len();
        roots.others.retain(|other| other != root);
        let was_there = roots.others.len() < before;
        self.publish(&roots)?;
        Ok(was_there)
    }

    fn step(
        &self,
        step: &'static str,
        from: RootRotation,
        change: impl FnOnce(&mut Roots),
    ) -> Result<(), CaError> {
        let mut roots = self.lock();
        let state = roots.state();
        if state != from {
            return Err(CaError::Rotation { step, state: state.name() });
        }
        change(&mut roots);
        tracing::info!(step, state = roots.state().name(), roots = roots.trusted().len(), "root rotation");
        self.publish(&roots)?;
        Ok(())
    }
}
