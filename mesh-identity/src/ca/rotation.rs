use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::{Ca, CaError, Revocation, RootOptions, Signer};

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
    next: Option<Arc<Signer>>,
    retiring: Option<Arc<Signer>>,
    others: Vec<CertificateDer<'static>>,
    pub(super) revocation: Revocation,
}

impl Roots {
    pub(super) fn new(signer: Signer, others: Vec<CertificateDer<'static>>) -> Self {
        let signer = Arc::new(signer);
        Self { signer, next: None, retiring: None, others, revocation: Revocation::default() }
    }

    pub(super) fn signer(&self) -> &Arc<Signer> {
        &self.signer
    }

    /// The current signer, then the one before or after it.
    pub(super) fn signers(&self) -> impl Iterator<Item = &Arc<Signer>> {
        [Some(&self.signer), self.next.as_ref(), self.retiring.as_ref()].into_iter().flatten()
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

    /// Takes a new signer and its roots; the old signer waits to be retired unless its root stays trusted anyway.
    pub(super) fn replace(
        &mut self,
        new: Signer,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<(), CaError> {
        if self.state() != RootRotation::Stable {
            return Err(CaError::Rotation { step: "replace", state: self.state().name() });
        }
        let root_stays = roots.contains(self.signer.root()) || new.root() == self.signer.root();
        let old = std::mem::replace(&mut self.signer, Arc::new(new));
        self.retiring = (!root_stays).then_some(old);
        for root in roots {
            if !self.others.contains(&root) {
                self.others.push(root);
            }
        }
        Ok(())
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
        self.step("prepare", RootRotation::Stable, |roots| roots.next = Some(Arc::new(new)))
    }

    /// Second step: the new root signs. Take it when every workload trusts both, which is one renewal of the longest
    /// lived certificate after the first step.
    ///
    /// # Errors
    /// There is no prepared root.
    pub fn activate_root(&self) -> Result<(), CaError> {
        self.step("activate", RootRotation::Prepared, |roots| {
            if let Some(next) = roots.next.take() {
                roots.retiring = Some(std::mem::replace(&mut roots.signer, next));
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
                roots.others.retain(|root| root != old.root());
                roots.revocation.forget_issuer(old.certificate());
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
